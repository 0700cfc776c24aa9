"""`make projects`: every project, stage and size with its parameters, promise and cost, as the head of its config says.

A config opens with comments; those read here are `# parameters: N`, `# promise: ...` and `# cost: ...` (or, on one
line, `promise: ...; cost: ...` and `promise and cost: ...`). One that opens with `# overlay` is laid over a size and is
none. `--write` puts the table into README.md. Knows files only.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

from shared.training import layout
from shared.training.errors import told

LADDER = ("nano", "toiny", "smol", "mediom", "lorge", "huoge", "giont")  # other sizes follow by name
NOT_SIZES, OVERLAY = ("base", "lora"), "# overlay"
HEAD = ("project", "stage", "size", "parameters", "promise", "cost")
KEY = re.compile(r"(parameters|promise and cost|promise|cost): (.+)")


def projects(root: Path) -> list[str]:
    """The template, then the folders of projects/ that can be run."""
    return ["template", *sorted(path.parent.name for path in root.glob("projects/*/__main__.py"))]


def sizes(home: Path) -> Iterator[tuple[str, str, Path]]:
    """(stage or "", size, config) of a project's config folder, small sizes first; stages are folders with a base."""
    for stage in ("", *sorted(path.parent.name for path in home.glob("*/base.yaml"))):
        files = (home / stage).glob("*.yaml") if stage else _outside_stages(home)
        named = {str(file.relative_to(home / stage).with_suffix("")): file for file in files if is_size(file)}
        for size in sorted(named, key=lambda size: (LADDER.index(size) if size in LADDER else len(LADDER), size)):
            yield stage, size, named[size]


def _outside_stages(home: Path) -> Iterator[Path]:
    yield from home.glob("*.yaml")
    yield from (file for file in home.glob("*/*.yaml") if not (file.parent / "base.yaml").exists())


def is_overlay(config: Path) -> bool:
    """Whether the file is laid over a size (`ARGS="--config <file>"`) and is none itself."""
    with config.open(encoding="utf-8") as lines:
        return lines.readline().startswith(OVERLAY)


def is_size(config: Path) -> bool:
    """Whether the file is named by SIZE=."""
    return config.stem not in NOT_SIZES and not is_overlay(config)


def header(config: Path) -> dict[str, str]:
    """key -> text of the comments a config opens with."""
    lines = takewhile(lambda line: line.startswith("#"), config.read_text(encoding="utf-8").splitlines())
    parts = [part for line in lines for part in re.split(r"; (?=cost: )", line.lstrip("# "))]
    said = {found[1]: found[2] for part in parts if (found := KEY.match(part))}
    both = said.pop("promise and cost", None)
    return {**({"promise": both} if both else {}), **said}


def rows(root: Path, names: Sequence[str] | None = None) -> list[list[str]]:
    """One row per size of `names` (None: all projects); what a header does not say is a dash."""
    found = []
    for project in projects(root) if names is None else names:
        for stage, size, config in sizes(root / "configs" / project):
            said = header(config)
            found.append([project, stage or "-", size, *(said.get(key, "-") for key in HEAD[3:])])
    return found


def main(words: Sequence[str], root: Path = Path(".")) -> None:
    print("\n".join(layout.plain(HEAD, rows(root))))
    if "--write" in words:
        changed = layout.insert(root / "README.md", "projects", layout.markdown(HEAD, rows(root)))
        print(f"\n{'written' if changed else 'unchanged':<11} README.md")


if __name__ == "__main__":
    with told():
        main(sys.argv[1:])
