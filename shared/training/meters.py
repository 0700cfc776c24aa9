"""Meters of the house: how long its functions and files are, which rooms import which, what two projects wrote twice.

    python -m shared.training.meters          prints them beside their aims; tests/test_meters.py holds the limits

Reads source text with `ast`, so it knows neither torch nor what the code does.
"""

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median

from shared.training import scaffold

TEMPLATE = scaffold.HOME
ROOMS = ("packages", "shared", "projects")
BLOCK = 8  # lines, of code alone: that many alike in two projects count as written twice


@dataclass(frozen=True)
class Imported:
    """One import: the file's room, the file, the line, and the module or name it asks for ("a.b.c")."""

    path: Path
    line: int
    name: str

    @property
    def root(self) -> str:
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Length:
    """A thing with a number of lines: a file, or a function from its `def` to its last line."""

    lines: int
    name: str


@dataclass
class Meters:
    """What was measured under one root. duplicates: (place, place) of a block that stands in two projects. template:
    lines of code of a new project."""

    functions: list[Length] = field(default_factory=list)
    files: list[Length] = field(default_factory=list)
    arrows: Counter[str] = field(default_factory=Counter)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    template: int = 0

    @property
    def median(self) -> float:
        return median(each.lines for each in self.functions) if self.functions else 0

    @property
    def p90(self) -> int:
        """Nine functions in ten have at most so many lines."""
        lines = sorted(each.lines for each in self.functions)
        return lines[(9 * len(lines) - 1) // 10] if lines else 0

    @property
    def longest_function(self) -> Length:
        return max(self.functions, key=lambda each: each.lines, default=Length(0, "none"))

    @property
    def longest_file(self) -> Length:
        return max(self.files, key=lambda each: each.lines, default=Length(0, "none"))

    def table(self) -> str:
        """One line per meter: measured, aim, limit."""
        function, file = self.longest_function, self.longest_file
        arrows = ", ".join(f"{name} {count}" for name, count in sorted(self.arrows.items())) or "none"
        return "\n".join(
            [
                f"functions        {len(self.functions)} in {len(self.files)} files",
                f"median lines     {self.median:g}  (aim 8, limit 12)",
                f"p90 lines        {self.p90}  (aim 35, limit 50)",
                f"longest function {function.lines}  {function.name}  (aim < 80)",
                f"longest file     {file.lines}  {file.name}  (aim < 400, limit 600)",
                f"import arrows    {arrows}",
                f"written twice    {len(self.duplicates)} blocks of {BLOCK} lines between projects  (aim 0)",
                f"a new project    {self.template} lines of code: package, configs and tests  (aim 180, limit 350)",
            ]
        )


def sources(root: Path, *folders: str) -> list[Path]:
    """The Python files of the folders, sorted; hidden folders and caches are left out."""
    found = [path for folder in folders for path in (root / folder).rglob("*.py")]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))


def imports(path: Path, root: Path) -> Iterator[Imported]:
    """Every import of a file, at any depth, as an absolute name; `from a import b` gives "a.b". Constant
    `importlib.import_module("a.b")` counts as well."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        for name in _asked(node, package):
            yield Imported(path.relative_to(root), node.lineno, name)  # type: ignore[attr-defined]


def _asked(node: ast.AST, package: tuple[str, ...]) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [each.name for each in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            above = [*package[: len(package) - level + 1]] if level else []
            return [".".join([*above, *([module] if module else []), each.name]) for each in names]
        case ast.Call(
            func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"), args=args
        ):
            return [str(each.value) for each in args[:1] if isinstance(each, ast.Constant)]
    return []


def functions(path: Path, root: Path) -> Iterator[Length]:
    """Every function and method of a file with its number of lines."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            place = f"{path.relative_to(root)}:{node.lineno} {node.name}"
            yield Length((node.end_lineno or node.lineno) - node.lineno + 1, place)


def blocks(path: Path, root: Path) -> Iterator[tuple[str, str]]:
    """Each run of BLOCK lines of code as (text, place); blank lines, comments and imports are no code here."""
    code = [(number, line.strip()) for number, line in enumerate(path.read_text().splitlines(), 1)]
    code = [(number, line) for number, line in code if line and not line.startswith(("#", "import ", "from "))]
    for start in range(len(code) - BLOCK + 1):
        window = code[start : start + BLOCK]
        yield "\n".join(line for _, line in window), f"{path.relative_to(root)}:{window[0][0]}"


def duplicates(root: Path) -> list[tuple[str, str]]:
    """Blocks that stand in two different projects, one pair of places for each text and pair of projects. What a
    project has from the template, under its own name, is no copy of another project."""
    places: dict[str, dict[str, str]] = defaultdict(dict)
    template = {text for path in sources(root, TEMPLATE) for text, _ in blocks(path, root)}
    for project in sorted({path.relative_to(root).parts[1] for path in sources(root, "projects")}):
        copied = {scaffold.renamed(text, project) for text in template}
        for path in sources(root, f"projects/{project}"):
            for text, place in blocks(path, root):
                if text not in copied:
                    places[text].setdefault(project, place)
    return [pair for found in places.values() for pair in combinations(found.values(), 2)]


def arrows(root: Path) -> Counter[str]:
    """How many imports go from one room into another, by "projects -> shared"."""
    asked = [each for path in sources(root, *ROOMS) for each in imports(path, root)]
    pairs = [(each.path.parts[0], each.root) for each in asked]
    return Counter(f"{here} -> {there}" for here, there in pairs if there in ROOMS and there != here)


def template_lines(root: Path) -> int:
    """Lines of code a new project starts with: package, configs, tests. Blank lines, comments, docstrings left out."""
    return sum(code_lines(root / path) for path in scaffold.sources(root))


def code_lines(path: Path) -> int:
    """Lines of a Python or YAML file that are neither blank nor comment nor docstring; 0 of any other."""
    if path.suffix not in (".py", ".yaml"):
        return 0
    text, told = path.read_text(), set()
    for node in ast.walk(ast.parse(text)) if path.suffix == ".py" else ():
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            told |= {*range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)}
    lines = enumerate(text.splitlines(), 1)
    return sum(n not in told and line.strip() != "" and not line.strip().startswith("#") for n, line in lines)


def measure(root: Path) -> Meters:
    """Reads the whole house under `root`: functions of the three rooms, files of the rooms and of tests."""
    rooms = sources(root, *ROOMS)
    return Meters(
        functions=[each for path in rooms for each in functions(path, root)],
        files=[
            Length(len(p.read_text().splitlines()), str(p.relative_to(root))) for p in sources(root, *ROOMS, "tests")
        ],
        arrows=arrows(root),
        duplicates=duplicates(root),
        template=template_lines(root),
    )


if __name__ == "__main__":
    print(measure(Path.cwd()).table())
