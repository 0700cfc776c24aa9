"""Pages `traps.md`: what a line must not fall into, and the tests that hold it. Knows no line."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


@cache
def names(file: str) -> set[str]:
    """The tests of a file, be they functions or given a name by assignment."""
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    functions = {part.name for part in body if isinstance(part, ast.FunctionDef)}
    return functions | {
        to.id for part in body if isinstance(part, ast.Assign) for to in part.targets if isinstance(to, ast.Name)
    }


def rows(page: Path) -> dict[str, str]:
    """First cell -> last cell of the rows of its tables. AssertionError: a row stands twice."""
    found = re.findall(r"^\| ([^|]+) \|.*\| (.*) \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(dict(found)) == len(found)
    return dict(found)


def missing(page: Path) -> list[str]:
    """Tests that a page names and that are nowhere."""
    named = re.findall(r"`(tests/.+?)::(test_\w+)`", page.read_text(encoding="utf-8"))
    assert len(named) == page.read_text(encoding="utf-8").count("`tests/")
    return [f"{file}::{name}" for file, name in named if name not in names(file)]
