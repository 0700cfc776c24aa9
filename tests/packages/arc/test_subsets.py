"""Lists of ids, the held-out pairs and the drawing weights."""

import numpy as np
import pytest

from packages.arc import subsets
from packages.arc.identity import canonical
from packages.arc.tasks import Pair, Task, TaskSet, as_grid
from packages.arc.views import View


def test_a_subset_file_has_comments_and_a_count(tmp_path, official):
    file = tmp_path / "some.txt"
    file.write_text("# two tasks\nexpect: 2\n74dd1130\n\n67a3c6ac  # a flip\n")
    assert subsets.read_ids(file) == ("74dd1130", "67a3c6ac")
    assert subsets.subset(official.questions("arc1", "training"), str(file)).ids == ("67a3c6ac", "74dd1130")


@pytest.mark.parametrize(
    ("text", "words"),
    [("expect: 3\na\nb\n", "has 2 ids where it says expect: 3"), ("a\nb\na\n", "lists a twice")],
)
def test_a_wrong_subset_file_is_one_sentence(tmp_path, text, words):
    (tmp_path / "some.txt").write_text(text)
    with pytest.raises(ValueError, match=words):
        subsets.read_ids(tmp_path / "some.txt")


def test_a_missing_list_says_how_to_get_one(official):
    tasks = official.questions("arc1", "training")
    with pytest.raises(ValueError, match=r"not shipped; pass data.subset_file=.*make hardest .*hardest.count=137"):
        subsets.subset(tasks, "training-hard")
    with pytest.raises(ValueError, match=r"no subset file nowhere\.txt"):
        subsets.subset(tasks, "nowhere.txt")
    assert subsets.subset(tasks, None) is tasks


def test_training_hard_reads_its_file(tmp_path, official):
    (tmp_path / "hard.txt").write_text("74dd1130\n")
    assert subsets.subset(official.questions("arc1", "training"), "training-hard", str(tmp_path / "hard.txt")).ids == (
        "74dd1130",
    )


def test_an_id_of_another_set_names_its_neighbours(tmp_path, official):
    (tmp_path / "some.txt").write_text("nosuch\n")
    with pytest.raises(ValueError, match="unknown task 'nosuch' in arc1:training; the nearest ids are"):
        subsets.subset(official.questions("arc1", "training"), str(tmp_path / "some.txt"))


def test_limit_keeps_the_first_by_id(official):
    tasks = official.questions("arc1", "training")
    assert subsets.first(tasks, 3).ids == tasks.ids[:3] and subsets.first(tasks, None).ids == tasks.ids


def test_about_a_tenth_of_tasks_hold_one_shown_pair_out(official):
    tasks = official.questions("arc1", "training")
    cut = subsets.hold_out(tasks)
    eligible = [task for task in tasks if len(task.demos) >= 3]
    assert abs(len(cut.held) - 0.1 * len(eligible)) < 4 * np.sqrt(0.09 * len(eligible))
    assert all(
        len(tasks[id].demos) >= 3 and any(pair is shown for shown in tasks[id].demos) for id, pair in cut.held.items()
    )
    assert cut.training.ids == tasks.ids and cut.training.num_demos <= tasks.num_demos - len(cut.held)


@pytest.mark.parametrize("key", [0, 1])
def test_no_view_of_a_held_pair_is_in_training(official, key):
    cut = subsets.hold_out(official.questions("arc1", "training"), share=0.3, key=key)
    kept = {canonical(pair.input, pair.output) for task in cut.training for pair in task.demos}
    held = {canonical(pair.input, pair.output) for pair in cut.held.values()}
    assert len(held) > 50 and not held & kept


def test_a_view_of_the_held_pair_leaves_with_it_revealed_or_not():
    base = Pair([[1, 2, 3], [4, 5, 6]], [[1]])
    seen = View(d4=5, colours=(0, 9, 8, 7, 6, 5, 4, 3, 2, 1))
    twin = Pair(seen.apply(base.input), seen.apply(base.output), "revealed")
    rest = Pair([[7, 7]], [[8]])
    for id in "abcdefgh":
        cut = subsets.hold_out(_one((twin, base, base, rest, twin), id), share=1.0)
        assert cut.held[id].origin == "demo"
        assert cut.training[id].demos == ((rest,) if cut.held[id] is base else (twin, base, base, twin))


def _one(pairs, id="a"):
    return TaskSet((Task(id, tuple(pairs), (), "hand:training"),), "hand", "by hand")


def test_a_task_whose_pairs_are_all_one_keeps_them():
    cut = subsets.hold_out(_one([Pair([[1, 2]], [[1]])] * 3), share=1.0)
    assert cut.held == {} and cut.training.num_demos == 3


def test_the_choice_is_a_function_of_id_and_key_alone(official):
    tasks = official.questions("arc1", "training")
    whole = subsets.hold_out(tasks).held
    some = subsets.hold_out(tasks.select(list(whole)[:5])).held
    assert set(some) == set(list(whole)[:5]) and all(some[id] is whole[id] for id in some)
    assert set(subsets.hold_out(tasks, key=1).held) != set(whole)


def test_a_share_of_zero_holds_nothing_out(official):
    tasks = official.questions("arc1", "training")
    assert subsets.hold_out(tasks, share=0.0) == subsets.Holdout(tasks, {})
    with pytest.raises(ValueError, match="holdout share is 2, wanted 0 to 1"):
        subsets.hold_out(tasks, share=2)


def test_an_evaluation_pair_weighs_what_was_asked(task, tasks):
    pool = tasks(task("a", [([[1]], [[1]])] * 3), task("b", [([[1]], [[1]])] * 2))
    weights = subsets.pair_weights(pool, {"b"}, 10)
    assert weights.tolist() == [1, 1, 1, 10, 10]
    with pytest.raises(ValueError, match="eval_weight is 0"):
        subsets.pair_weights(pool, {"b"}, 0)


def test_the_filter_counts_queries_too(task, tasks):
    pool = tasks(task("a", [([[1]], [[1]])], [as_grid([[1] * 5])]), task("b", [([[1]], [[1] * 4])]))
    assert subsets.within(pool, 4).ids == ("b",) and subsets.within(pool, 5).ids == ("a", "b")
