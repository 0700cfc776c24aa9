"""Invented tasks: every demo follows the task's one rule, and a task is a function of its number alone."""

from collections import Counter

import numpy as np
import pytest

from packages.arc.families import drawn, family
from packages.arc.invention import DEMOS, invented

KINDS = ("symmetry", "recolour", "shift", "mosaic", "scale", "crop")


@pytest.fixture(scope="module")
def tasks():
    return invented(120, 6)


def test_one_rule_explains_all_demos_of_a_task_and_changes_each(tasks):
    for task in tasks:
        found = family(task.demos)
        assert found is not None
        assert all(np.array_equal(found.solve(pair.input), pair.output) for pair in task.demos)
        assert not any(np.array_equal(pair.input, pair.output) for pair in task.demos)


def test_grids_stay_within_the_side_and_demos_within_their_number(tasks):
    assert all(task.side <= 6 and DEMOS[0] <= len(task.demos) <= DEMOS[1] and not task.queries for task in tasks)
    assert max(task.side for task in tasks) == 6


def test_all_kinds_come_equally_often(tasks):
    kinds = Counter(drawn(n, np.random.default_rng(0), (2, 2)).kind for n in range(12))
    assert kinds == dict.fromkeys(KINDS, 2)
    assert min(Counter(family(task.demos).kind for task in tasks).values()) >= 12  # one rule may look like another


def test_a_task_does_not_depend_on_the_number_of_tasks_but_on_the_key(tasks):
    assert invented(12, 6).sha256 == tasks.where(lambda task: task.id < "invented000012").sha256
    assert invented(12, 6, key=1).sha256 != invented(12, 6).sha256


def test_a_side_that_leaves_no_room_is_refused():
    with pytest.raises(ValueError, match="give a larger side"):
        invented(6, 1)
