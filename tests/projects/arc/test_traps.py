"""The page `traps.md`: every trap of the line has tests, and every test that is named exists."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = Path(__file__).with_name("traps.md").read_text(encoding="utf-8")
TRAPS = {int(number): tests for number, tests in re.findall(r"^\| (\d+) \|.*\|(.*)\|$", PAGE, re.MULTILINE)}


@cache
def names(file: str) -> set[str]:
    """The tests of a file, be they functions or given a name by assignment."""
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    functions = {part.name for part in body if isinstance(part, ast.FunctionDef)}
    return functions | {
        to.id for part in body if isinstance(part, ast.Assign) for to in part.targets if isinstance(to, ast.Name)
    }


def test_every_trap_has_tests_and_every_test_that_is_named_exists():
    named = re.findall(r"`(tests/.+?)::(test_\w+)`", PAGE)
    assert len(named) == PAGE.count("`tests/") > 60
    assert [name for file, name in named if name not in names(file)] == []
    assert list(TRAPS) == list(range(1, 42))
    assert [number for number, tests in TRAPS.items() if "`tests/" not in tests] == []
