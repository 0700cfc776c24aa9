"""Canonical forms join what a view can turn into one another, and nothing else; the guard acts on raw inputs alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from packages.arc import identity
from packages.arc.tasks import as_grid
from packages.arc.views import View

GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 9))
)
VIEWS = st.builds(View, d4=st.integers(0, 7), colours=st.permutations(range(10)).map(tuple))


@settings(max_examples=100, deadline=None)
@given(one=GRIDS, other=GRIDS, view=VIEWS)
def test_a_pair_seen_under_any_view_keeps_its_canonical_form(one, other, view):
    seen = [as_grid(view.apply(grid)) for grid in (one, other)]
    assert identity.canonical(*seen) == identity.canonical(one, other)
    assert identity.content_hash(*seen) == identity.content_hash(one, other)


def test_different_grids_keep_different_forms():
    grids = [
        [[0, 0, 1]],
        [[0, 1, 0]],
        [[0, 1, 2]],
        [[0, 0, 0]],
        [[0, 0], [0, 1]],
        [[0, 1], [1, 0]],
        [[0, 0, 1, 1]],
        [[0, 0], [0, 0]],
        [[0] * 4],
    ]
    assert len({identity.canonical(as_grid(grid)) for grid in grids}) == len(grids)


def test_input_and_output_are_turned_and_renamed_together():
    one, turned = as_grid([[1, 2, 2]]), as_grid([[2, 2, 1]])
    assert identity.canonical(one) == identity.canonical(turned)
    assert identity.canonical(one, one) != identity.canonical(one, turned)
    assert identity.canonical(one, as_grid([[1]])) != identity.canonical(one, as_grid([[2]]))


@pytest.fixture
def case(task, tasks):
    """A pool of three tasks, one of whose inputs is the evaluated query and one a view of it."""
    query = [[1, 2, 3]]
    pool = tasks(
        task("a", [(query, [[0]]), ([[4, 4, 4]], [[0]])]),
        task("b", [([[3], [2], [1]], [[0]])]),
        task("c", [(query, [[0]])]),
    )
    return pool, tasks(task("z", [([[7]], query)], [as_grid(query), as_grid([[5, 6, 7]])]))


def test_the_guard_raises_drops_or_allows(case):
    pool, evaluated = case
    with pytest.raises(ValueError, match=r"1 of 2 evaluated queries \(1 tasks: z#0\)"):
        identity.guard(pool, evaluated, "raise")
    rest, met = identity.guard(pool, evaluated, "drop")
    assert rest.ids == ("a", "b") and len(rest["a"].demos) == 1
    assert met.queries == ("z#0",) and met.pairs == ("a pair 0", "c pair 0") and met.canonical == 1
    assert identity.guard(pool, evaluated, "allow")[0] is pool
    with pytest.raises(ValueError, match="overlap policy 'ignore', wanted one of raise, drop, allow"):
        identity.guard(pool, evaluated, "ignore")


def test_the_hashes_of_a_pool_tell_raw_inputs_only(case):
    pool, evaluated = case
    assert identity.seen_queries(identity.pool_hashes(pool), evaluated) == ("z#0",)


def test_outputs_never_act(task, tasks, case):
    _, evaluated = case
    pool = tasks(task("a", [([[9]], [[1, 2, 3]])]))
    assert identity.guard(pool, evaluated, "raise")[1].queries == ()
