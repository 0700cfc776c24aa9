"""The hardest tasks of a run: judged by held-out demos of the training split, worst first."""

import numpy as np
import pytest

from packages.arc.vote import Attempt, Candidate
from projects.arc.data import HoldoutOptions
from projects.arc.size import Sizes
from projects.arc.solving import Answered
from projects.arc.subsets import HardestOptions, failure, held_queries, ranked, require_kept
from shared.training.errors import Mistake
from tests.projects.arc.conftest import TASKS, arc_data, arc_module


@pytest.fixture(scope="module")
def holding():
    return arc_data(holdout=HoldoutOptions(share=1.0))


def test_a_held_pair_is_asked_for_with_the_demos_that_trained(holding):
    for query, output in held_queries(holding):
        held, rest = holding.pools.held[query.task.id], holding.pools.training[query.task.id].demos
        assert np.array_equal(query.grid, held.input) and np.array_equal(output, held.output)
        assert query.task.demos == rest and not any(pair is held for pair in rest)
        assert query.row == holding.task_ids.index(query.task.id)
    assert len(held_queries(holding)) == len(holding.pools.held) > 2


def test_tasks_of_another_split_are_left_out():
    both = arc_data(
        tasks=["00576224", "0a2355a6", *TASKS[:3]],
        split="evaluation",
        train_sets=["training:demos", "evaluation:demos"],
        holdout=HoldoutOptions(share=1.0),
        max_size=20,
    )
    assert "0a2355a6" in both.pools.held
    assert {query.task.id for query, _ in held_queries(both)} <= set(TASKS[:3])


def test_failure_counts_wrong_votes_and_then_wrong_cells():
    right, near, far = np.zeros((2, 2), np.uint8), np.array([[0, 0], [0, 1]], np.uint8), np.ones((1, 2), np.uint8)

    def answered(*votes):
        found = [Candidate(grid, n, 0.0) for grid, n in votes]
        return Answered(None, Sizes(None, None, []), found, [Attempt(c.grid, c.count) for c in found[:2]], [])

    assert failure(answered((right, 3), (near, 1)), right) == (0.25, 0.0)
    assert failure(answered((near, 3), (far, 1)), right) == (1.0, 0.25)
    assert failure(answered((far, 1)), right) == (1.0, 1.0)


def test_a_run_is_not_judged_by_pairs_that_it_was_trained_on(holding):
    """Nor refused for those it kept itself."""
    holding.require_unseen(holding.fingerprint()["pool"])
    require_kept(holding)
    other = arc_data(holdout=HoldoutOptions(share=1.0))
    other.require_unseen(arc_data().fingerprint()["pool"])
    with pytest.raises(Mistake, match=f"trained on {len(other.pools.held)} of the {len(other.pools.held)} pairs"):
        require_kept(other)


def test_a_list_of_no_task_is_refused():
    with pytest.raises(ValueError, match=r"hardest\.count is 0"):
        HardestOptions(count=0)


def test_the_ranking_falls(holding):
    rows = ranked(arc_module(holding).eval(), holding)
    assert sorted(row[0] for row in rows) == sorted(holding.pools.held)
    assert [row[1:] for row in rows] == sorted((row[1:] for row in rows), reverse=True)
