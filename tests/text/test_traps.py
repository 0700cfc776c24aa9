"""The page `traps.md`: every trap of the line has tests or is of a step to come, and every test named there exists."""

from pathlib import Path

from tests.traps import missing, rows

PAGE = Path(__file__).with_name("traps.md")
TO_COME = (24, 25)  # control


def test_every_trap_has_tests_and_every_test_that_is_named_exists():
    traps = {int(number): tests for number, tests in rows(PAGE).items() if number.isdigit()}
    assert list(traps) == list(range(1, 27)) and missing(PAGE) == []
    assert tuple(number for number, tests in traps.items() if "`tests/" not in tests) == TO_COME
