"""Scores: partial credit, strict, per grid, floors and denominators; a wrong shape is wrong; no answers, no metrics."""

import json

import numpy as np
import pytest

from packages.arc import score, stats
from packages.arc.families import family
from packages.arc.tasks import AnswerKey, as_grid

ONE, TWO, WIDE = as_grid([[1]]), as_grid([[2]]), as_grid([[1, 2]])


@pytest.fixture
def asked(task, tasks):
    """Task a with two queries, b with one."""
    demos = [([[5, 6]], [[6, 5]])]
    a = task("a", demos, [as_grid([[1, 2]]), as_grid([[3, 4]])])
    return tasks(a, task("b", demos, [as_grid([[7, 8]])]))


ANSWERS = AnswerKey({"a": [as_grid([[2, 1]]), as_grid([[4, 3]])], "b": [as_grid([[8, 7]])]})


def test_one_grid_of_two_is_half_a_task_no_strict_task_and_half_the_grids(asked):
    only = asked.select(["a"])
    found = score.score(only, ANSWERS, {"a": [[ONE, as_grid([[2, 1]])], [ONE, TWO]]})
    assert found.metrics["pass@2"] == 0.5 and found.metrics["pass@1"] == 0
    assert found.metrics["pass@2_strict"] == 0 and found.metrics["grid_pass@2"] == 0.5
    assert (found.num_tasks, found.num_grids, found.num_solved) == (1, 2, 1)


def test_tasks_weigh_the_same_whatever_their_number_of_grids(asked):
    found = score.score(asked, ANSWERS, {"b": [[as_grid([[8, 7]])]]})
    assert found.metrics["pass@2"] == 0.5 and found.metrics["grid_pass@2"] == pytest.approx(1 / 3)
    assert found.solved_tasks == ("b",) and found.num_tasks == 2 and found.num_grids == 3


def test_a_third_attempt_does_not_count(asked):
    found = score.score(asked.select(["b"]), ANSWERS, {"b": [[ONE, TWO, as_grid([[8, 7]])]]})
    assert found.metrics["pass@2"] == 0 and found.num_solved == 0


def test_a_wrong_shape_is_wrong_and_never_an_exception(asked):
    answers = AnswerKey({"b": [as_grid([[8, 7]])]})
    for attempt in (ONE, as_grid([[8], [7]]), as_grid([[8, 7], [8, 7]])):
        found = score.score(asked.select(["b"]), answers, {"b": [[attempt, attempt]]})
        assert found.metrics["pass@2"] == 0 and found.metrics["size_acc"] == 0 and found.metrics["cell_acc"] == 0


def test_cell_accuracy_counts_correctly_sized_grids_only(asked):
    found = score.score(asked, ANSWERS, {"a": [[as_grid([[2, 9]])], [ONE]], "b": [[ONE]]})
    assert found.metrics["cell_acc"] == 0.5 and found.metrics["size_acc"] == pytest.approx(1 / 3)


def test_without_solutions_there_are_no_metrics_and_no_error(asked):
    for answers in (AnswerKey({}), AnswerKey({"a": [None, None], "b": [None]})):
        found = score.score(asked, answers, {"a": [[ONE, TWO], [ONE, TWO]]})
        assert found.metrics == {} and found.interval is None and (found.num_tasks, found.num_grids) == (0, 0)
        assert found.status == {"a": ("unknown", "unknown"), "b": ("unknown",)} and found.solved_tasks == ()


def test_grids_without_an_answer_leave_every_denominator(asked):
    answers = AnswerKey({"a": [as_grid([[2, 1]]), None], "b": [None]})
    found = score.score(asked, answers, {"a": [[as_grid([[2, 1]])], [ONE]]})
    assert (found.num_tasks, found.num_grids) == (1, 1) and found.metrics["pass@2"] == 1
    assert found.status["a"] == ("solved", "unknown")


def test_the_oracle_takes_any_candidate(asked):
    found = score.score(asked, ANSWERS, {}, {"b": [[ONE, TWO, as_grid([[8, 7]])]]})
    assert found.metrics["oracle"] == 0.5 and found.metrics["pass@2"] == 0


def test_floors_are_what_needs_no_learning(task, tasks):
    copy = task("copy", [([[1]], [[1]]), ([[2]], [[2]])], [as_grid([[3]])])
    constant = task("constant", [([[1]], [[4]]), ([[2]], [[4]]), ([[3]], [[5]])], [as_grid([[6]])])
    turned = task("turned", [([[1, 2]], [[1], [2]])], [as_grid([[3, 4]])])
    sized = task("sized", [([[1, 2]], [[7, 7]]), ([[2, 1]], [[6, 7]])], [as_grid([[3, 4]])])
    answers = AnswerKey({"copy": [[[3]]], "constant": [[[4]]], "turned": [[[3], [4]]], "sized": [[[9, 9]]]})
    answers = AnswerKey({id: [as_grid(out) for out in outputs] for id, outputs in answers.items()})
    found = score.score(tasks(copy, constant, turned, sized), answers, {}).metrics
    assert (found["floor/copy"], found["floor/commonest_output"]) == (0.25, 0.25)
    assert (found["floor/rearrangement"], found["floor/size_rule"]) == (0.5, 1.0)


def test_floors_of_the_official_sets(official):
    tasks, answers = official.questions("arc1", "evaluation"), official.answers("arc1", "evaluation")
    found = score.score(tasks, answers, {})
    floors = {name: round(value, 4) for name, value in found.metrics.items() if name.startswith("floor")}
    assert floors == {
        "floor/copy": 0.0,
        "floor/commonest_output": 0.0063,
        "floor/rearrangement": 0.0225,
        "floor/size_rule": 0.8759,
    }
    assert (found.num_tasks, found.num_grids) == (400, 419)


def test_a_stub_solver_scores_what_it_solves(official):
    tasks, answers = official.questions("arc1", "training"), official.answers("arc1", "training")
    solvers = {task.id: family(task.demos) for task in tasks}
    said = {id: [[solver.solve(query)] for query in tasks[id].queries] for id, solver in solvers.items() if solver}
    found = score.score(tasks, answers, said)
    assert found.metrics["pass@2"] == found.metrics["pass@1"] == 28 / 400 and len(found.solved_tasks) == 28
    low, high = found.interval
    assert low < 0.07 < high and high - low == pytest.approx(4 * np.sqrt(0.07 * 0.93 / 400), rel=0.15)


def test_a_near_miss_has_the_right_size_and_nine_cells_in_ten():
    answer = as_grid([[1] * 10])
    assert score.status([as_grid([[1] * 9 + [2]])], answer) == "near-miss"
    assert score.status([as_grid([[1] * 8 + [2] * 2])], answer) == "failed"
    assert score.status([as_grid([[1] * 9])], answer) == score.status([], answer) == "failed"
    assert score.status([ONE, answer], answer) == "solved" and score.status([ONE], None) == "unknown"


def test_attempts_for_a_foreign_task_are_refused(asked):
    with pytest.raises(ValueError, match="attempts for z"):
        score.score(asked, ANSWERS, {"z": [[ONE]]})


def test_a_submission_has_two_attempts_a_query_and_reads_back(asked):
    said = {"a": [[ONE, TWO], [TWO, WIDE]], "b": [[WIDE, ONE]]}
    raw = json.loads(json.dumps(score.submission(asked, said)))
    assert raw["a"][1] == {"attempt_1": [[2]], "attempt_2": [[1, 2]]} and list(raw) == ["a", "b"]
    back = score.from_submission(raw)
    assert all(
        np.array_equal(x, y) for id in said for p, q in zip(said[id], back[id]) for x, y in zip(p, q, strict=True)
    )


def test_a_submission_with_one_attempt_or_a_bad_grid_is_refused(asked):
    with pytest.raises(ValueError, match="a#0 has 1 attempts, a submission wants two"):
        score.submission(asked, {"a": [[ONE], [ONE, TWO]], "b": [[ONE, TWO]]})
    with pytest.raises(ValueError, match="a#0 attempt_2, row 1, cell 1: 10"):
        score.from_submission({"a": [{"attempt_1": [[1]], "attempt_2": [[10]]}]})


# ---- diagnostics ----


def test_editing_separates_copied_changed_and_kept_cells(task, tasks):
    made = task("a", [([[1]], [[1]])], [as_grid([[1, 2, 3, 4]])] * 3)
    answer = as_grid([[1, 2, 9, 9]])
    said = {"a": [[as_grid([[1, 2, 3, 4]])], [as_grid([[1, 5, 9, 4]])], [ONE]]}
    found = stats.editing(score.rows(tasks(made), AnswerKey({"a": [answer] * 3}), said))
    assert found == (2, 0.5, 0.25, 0.75)


def test_editing_of_nothing_comparable_is_none():
    assert stats.editing([]) == (0, None, None, None)


def test_solved_is_counted_by_area_and_shape(task, tasks):
    answers = [as_grid(np.ones((side, 6), int)) for side in (6, 7, 30)]
    made = task("a", [([[1]], [[1]])], [ONE] * 3)
    found = stats.breakdown(
        score.rows(tasks(made), AnswerKey({"a": answers}), {"a": [[answers[0]], [ONE], [answers[2]]]})
    )
    assert found == {
        "<=36": (1, 1),
        "<=100": (0, 1),
        "<=400": (1, 1),
        "<=900": (0, 0),
        "square": (1, 1),
        "non-square": (1, 2),
    }


def test_early_lock_is_the_first_still_and_sure_step():
    assert stats.early_lock(np.array([0.5, 0.01, 0.0]), np.array([0.99, 0.9, 0.96])) == 2
    assert stats.early_lock(np.array([0.5]), np.array([0.99])) is None
