"""The types: grids are checked and frozen, a task cannot hold a test output, a set knows its identity."""

import ast
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from packages.arc.tasks import AnswerKey, Grid, Pair, Task, as_grid, digest, joined

ROOT = Path(__file__).parents[3]


def test_a_grid_cannot_be_written_even_by_asking():
    made = as_grid([[1, 2], [3, 4]])
    with pytest.raises(ValueError):
        made[0, 0] = 5
    with pytest.raises(ValueError):
        made.setflags(write=True)


def test_a_grid_is_a_copy_of_what_it_was_made_from():
    source = np.ones((2, 3), int)
    made = as_grid(source)
    source[0, 0] = 7
    assert made[0, 0] == 1 and made.dtype == np.uint8 and made.shape == (2, 3)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([[1, 2, 3, 4, 5], [1, 2, 3, 4]], "row 2: 4 cells after rows of 5"),
        ([[1, 10]], "row 1, cell 2: 10, wanted a colour 0..9"),
        ([[-1]], "row 1, cell 1: -1"),
        ([[True]], "row 1, cell 1: True"),
        ([[1.0]], "row 1, cell 1: 1.0"),
        ([["1"]], "row 1, cell 1: '1'"),
        ([[1], 2], "row 2: 2 after rows of 1"),
        ([], "wanted a list of rows"),
        ([[]], "wanted a list of rows"),
        ([[0] * 31], "1x31 cells, wanted no side above 30"),
        ([[0]] * 31, "31x1 cells"),
        (np.full((2, 2), 10), "values 10..10, wanted colours 0..9"),
        (np.zeros((2, 2)), "array float64[2, 2], wanted integers"),
        (np.zeros((2, 0), int), "wanted integers [height, width]"),
    ],
)
def test_a_malformed_grid_is_named_with_what_was_seen_and_wanted(values, words):
    with pytest.raises(ValueError) as error:
        as_grid(values, "tasks/ab12.json, demo 2 output")
    assert str(error.value).startswith("tasks/ab12.json, demo 2 output") and words in str(error.value)


def test_a_digest_sees_the_shape():
    assert len({digest(as_grid(grid)) for grid in ([[0] * 4], [[0], [0], [0], [0]], [[0, 0], [0, 0]])}) == 3


def test_the_smallest_and_the_largest_grid_pass():
    assert as_grid([[0]]).shape == (1, 1) and as_grid(np.full((30, 30), 9)).shape == (30, 30)


def test_a_task_has_no_field_for_a_test_output_and_takes_no_other(task):
    assert {field.name for field in fields(Task)} == {"id", "demos", "queries", "source"}
    made = task("a", [([[1]], [[2]])], [as_grid([[3]])])
    for name in ("answers", "outputs", "_anything"):
        with pytest.raises((AttributeError, TypeError)):
            object.__setattr__(made, name, as_grid([[4]]))


def test_a_query_cannot_be_a_pair(task):
    with pytest.raises(ValueError):
        task("a", [([[1]], [[2]])], [Pair([[3]], [[4]])])


def calls(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and name in (getattr(node.func, "id", ""), getattr(node.func, "attr", ""))


def callers_of(name: str, path: Path) -> list[str]:
    """Functions of a file in which `name` is called."""
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    return [function.name for function in functions if any(calls(node, name) for node in ast.walk(function))]


def test_only_read_answers_makes_an_answer_key():
    files = [path for room in ("packages", "projects") for path in (ROOT / room).rglob("*.py")]
    makers = [(path.name, function) for path in files for function in callers_of("AnswerKey", path)]
    assert makers == [("sources.py", "read_answers")]


def test_what_selects_and_draws_never_names_an_answer_key():
    names = ("tasks", "sources", "score")
    files = [path for path in (ROOT / "packages" / "arc").glob("*.py") if path.stem not in names]
    assert len(files) >= 9
    assert [path.name for path in files if "AnswerKey" in (text := path.read_text()) or "read_answers" in text] == []


def test_an_answer_key_does_not_print_its_answers():
    assert repr(AnswerKey({"a": [as_grid([[7, 7]])]})) == "AnswerKey(1 tasks)"


def test_a_set_is_sorted_and_its_hash_does_not_depend_on_the_order(task, tasks):
    a, b = task("a", [([[1]], [[2]])]), task("b", [([[1]], [[2]])])
    assert tasks(b, a).ids == ("a", "b") and tasks(b, a).sha256 == tasks(a, b).sha256


def test_the_hash_sees_every_visible_cell_and_every_id(task, tasks):
    base = tasks(task("a", [([[1]], [[2]])], [as_grid([[3]])])).sha256
    others = [
        task("b", [([[1]], [[2]])], [as_grid([[3]])]),
        task("a", [([[1]], [[4]])], [as_grid([[3]])]),
        task("a", [([[1]], [[2]])], [as_grid([[4]])]),
        task("a", [([[1]], [[2]])], [as_grid([[3, 3]])]),
        task("a", [([[1]], [[2]])]),
    ]
    assert len({base, *(tasks(other).sha256 for other in others)}) == 6


def test_an_id_twice_is_refused(task, tasks):
    one = task("a", [([[1]], [[2]])])
    with pytest.raises(ValueError, match="task a more than once"):
        tasks(one, one)
    with pytest.raises(ValueError, match="more than once"):
        joined([tasks(one), tasks(one)])


def test_an_unknown_id_is_answered_with_the_three_nearest(official):
    with pytest.raises(
        ValueError, match=r"unknown task '74dd1131' in arc1:training; the nearest ids are 74dd1130, \w+, \w+$"
    ):
        official.questions("arc1", "training").select(["74dd1131"])


def test_the_side_of_a_task_counts_demos_and_queries(task):
    assert task("a", [([[1]], [[2]])], [as_grid([[3] * 8])]).side == 8
    assert task("a", [([[1]], [[2]] * 9)], [as_grid([[3] * 8])]).side == 9


def test_grid_is_the_type_of_its_cells():
    assert Grid.__args__[1].__args__ == (np.uint8,)
