"""A project of one's own, copied from the template:

    python -m shared.training.scaffold spirals          (make new-project NAME=spirals)

Every file of the template, its package, its configs and what bears its name in tests/, is written again under the new
name, and nothing else is touched: all that looks for projects finds them. Knows names and text, not what is learnt.
"""

import keyword
import re
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from shared.training.errors import Mistake, told

HOME = "shared/training/template"
RESULTS = "measured.json"  # measured numbers: a copy has none yet
OWN = re.compile(r"<!-- template -->.*?<!-- /template -->\n?", re.DOTALL)  # what a README says of the template alone


def renamed(text: str, name: str) -> str:
    """`text` with the new project in the template's place, in paths, imports, classes and words."""
    for there, here in ((HOME, f"projects/{name}"), (HOME.replace("/", "."), f"projects.{name}")):
        text = text.replace(there, here)
    return text.replace("Template", class_name(name)).replace("template", name)


def class_name(name: str) -> str:
    """ring_world -> RingWorld."""
    return "".join(word.capitalize() for word in name.split("_"))


def sources(root: Path) -> Iterator[Path]:
    """The files of the template, by path from the root."""
    places = [
        HOME + "/*",
        HOME + "/results/*",
        "configs/template/*",
        "tests/*/template.yaml",
        "tests/*/test_template.py",
    ]
    files = (path for place in places for path in sorted(root.glob(place)) if path.is_file())
    return (path.relative_to(root) for path in files if path.name != RESULTS)


def check(root: Path, name: str) -> None:
    """Raises Mistake for a name that cannot be a project here."""
    taken = sorted({path.name for room in ("projects", "configs") for path in (root / room).glob("*") if path.is_dir()})
    if not name:
        raise Mistake("The new project has no name. Give one: make new-project NAME=spirals.")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise Mistake(f"`{name}` is no name for a project; wanted lower-case letters, digits and single _, as spirals.")
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise Mistake(f"`{name}` is a word of Python's own, so nothing could import it. Choose another name.")
    if name in taken:
        raise Mistake(f"`{name}` is taken, by projects/{name} or configs/{name}. Choose another name than {taken}.")


def create(root: Path, name: str) -> list[Path]:
    """Write the project `name`; its files, by path from the root. Raises Mistake before anything is written."""
    check(root, name)
    written, last = [], root / "projects" / name / "__main__.py"  # what makes a folder a project
    unfinished = last.with_name("unfinished.py")
    for source in sources(root):
        target = root / renamed(str(source), name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target = unfinished if target == last else target
        target.write_text(renamed(OWN.sub("", (root / source).read_text()), name))
        written.append(target.relative_to(root))
    _unmeasured(root / "projects" / name)
    _tidy(root, [str(path) for path in written if path.suffix == ".py"])
    unfinished.rename(last)
    return [(last if root / path == unfinished else root / path).relative_to(root) for path in written]


def _unmeasured(folder: Path) -> None:
    """The README's table of results as its goals give it without a single run."""
    from shared.training import layout, results_table

    layout.insert(folder / "README.md", "measured", results_table.table(folder))


def _tidy(root: Path, files: list[str]) -> None:
    """Imports in order and lines as ruff lays them out, where ruff is installed: other names have other lengths."""
    if find_spec("ruff"):
        for command in (["check", "--quiet", "--fix", "--select=I"], ["format", "--quiet"]):
            subprocess.run([sys.executable, "-m", "ruff", *command, *files], cwd=root, check=True)


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("name", nargs="?", default="")
    with told():
        name = parser.parse_args().name
        for path in create(Path.cwd(), name):
            print(f"written     {path}")
        print(f"next        make train PROJECT={name}")


if __name__ == "__main__":
    main()
