"""The vote: a view undone in cells, colours and size; one truth in one bucket; attempts that never depend on order."""

import random

import numpy as np
import pytest

from packages.arc import views, vote
from packages.arc.tasks import as_grid
from packages.arc.views import Views
from packages.arc.vote import Ballot, Candidate, Doubt

TRUTH = as_grid([[1, 2, 3, 4, 5], [6, 7, 8, 9, 0]])  # 2x5, ten colours


def oracle(seen, truth=TRUTH):
    """What a perfect solver answers in each view's frame."""
    return [seen.view(n).apply(truth) for n in range(len(seen.d4))]


@pytest.mark.parametrize("number", [8, 40, 72, 200])
def test_a_perfect_solver_collects_every_view_of_an_oblong_answer(number):
    seen = views.enumerated(number)
    (only,) = vote.candidates(vote.cast(seen, oracle(seen)))
    assert only.count == number and np.array_equal(only.grid, TRUTH)


def test_sizes_believed_in_the_views_frames_vote_the_true_size():
    seen = views.enumerated(72)
    said = [seen.view(n).apply_size((2, 5)) for n in range(72)]
    assert set(said) == {(2, 5), (5, 2)}
    assert {seen.view(n).invert_size(size) for n, size in enumerate(said)} == {(2, 5)}


def test_two_colourings_of_one_truth_fall_into_one_bucket():
    seen = Views(np.array([0, 0]), np.array([views.cycle(2), [0, 9, 8, 7, 6, 5, 4, 3, 2, 1]]))
    said = oracle(seen)
    assert not np.array_equal(*said)
    (only,) = vote.candidates(vote.cast(seen, said))
    assert only.count == 2


def test_unswapped_sizes_lose_half_of_the_votes_and_say_so():
    seen = views.enumerated(72)
    with pytest.warns(UserWarning, match="ablation only"):
        found = vote.candidates(vote.cast(seen, oracle(seen), orientation="unswapped"))
    assert next(one.count for one in found if np.array_equal(one.grid, TRUTH)) == 36 and len(found) > 1


def test_unswapped_sizes_do_not_touch_square_answers():
    seen, square = views.enumerated(72), as_grid([[1, 2], [3, 4]])
    with pytest.warns(UserWarning):
        (only,) = vote.candidates(vote.cast(seen, oracle(seen, square), orientation="unswapped"))
    assert only.count == 72


def grids(*rows):
    return [as_grid([list(row)]) for row in rows]


def test_any_order_of_arrival_gives_the_same_attempts():
    rng, numbers = random.Random(0), np.random.default_rng(0)
    ballots = [
        Ballot(grid, float(numbers.normal()), Doubt(numbers.integers(0, 10, (1, 2)), numbers.random((1, 2)).round(1)))
        for grid in grids((1, 2), (3, 4), (5, 6))
        for _ in range(7)
    ]
    for rule in ("count", "loglik"):
        results = set()
        for _ in range(20):
            rng.shuffle(ballots)
            results.add(tuple(a.grid.tobytes() for a in vote.attempts(vote.candidates(ballots, rule), 5)))
        assert len(results) == 1


COUNT, LOGLIK = ("count",), ("loglik",)


@pytest.mark.parametrize(
    ("rules", "better", "worse"),
    [
        (COUNT, Candidate(grids((9, 9))[0], 3, -5.0), Candidate(grids((1,))[0], 2, -1.0)),  # more votes
        (COUNT, Candidate(grids((9, 9))[0], 2, -1.0), Candidate(grids((1,))[0], 2, -2.0)),  # likelier
        (LOGLIK, Candidate(grids((9, 9))[0], 2, -1.0), Candidate(grids((1,))[0], 3, -5.0)),  # likelier
        (LOGLIK, Candidate(grids((9, 9))[0], 3, -1.0), Candidate(grids((1,))[0], 2, -1.0)),  # more votes
        (COUNT + LOGLIK, Candidate(as_grid([[9, 9]] * 2), 2, -1.0), Candidate(grids((1,) * 5)[0], 2, -1.0)),  # smaller
        (COUNT + LOGLIK, Candidate(grids((1, 9))[0], 2, -1.0), Candidate(grids((2, 1))[0], 2, -1.0)),  # first in cells
    ],
)
def test_ties_are_broken_by_likelihood_or_votes_then_area_then_cells(rules, better, worse):
    for rule in rules:
        assert all(vote.ranked(found, rule)[0] is better for found in ([worse, better], [better, worse]))


def test_likelihoods_that_are_equal_in_another_order_tie():
    """0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 in floating point."""
    large, small = grids((1, 1), (2,))
    ballots = [Ballot(large, p) for p in (0.1, 0.2, 0.3)] + [Ballot(small, p) for p in (0.3, 0.2, 0.1)]
    found = vote.candidates(ballots)
    assert found[0].loglik == found[1].loglik and found[0].grid.size == 1


def test_equal_doubts_agree_on_the_smaller_colour_in_any_order():
    doubts = [Doubt(np.array([[colour]]), np.array([[0.5]])) for colour in (7, 4, 6)]
    for some in (doubts, doubts[::-1]):
        said = vote.attempts(vote.candidates([Ballot(as_grid([[1]]), 0.0, doubt) for doubt in some]))
        assert said[1].grid.tolist() == [[4]]


def test_loglik_prefers_the_likelier_candidate_over_the_frequent():
    often, likely = grids((1,), (2,))
    ballots = [Ballot(often, -2.0)] * 3 + [Ballot(likely, -1.0)]
    assert (
        vote.candidates(ballots, "count")[0].grid[0, 0] == 1 and vote.candidates(ballots, "loglik")[0].grid[0, 0] == 2
    )
    assert vote.candidates(ballots, "count")[0].loglik == -2.0


def test_poe_ranks_the_rescored_by_cost_and_the_rest_by_count():
    ballots = [Ballot(grid) for n, grid in enumerate(grids((1,), (2,), (3,), (4,))) for _ in range(9 - n)]
    costs = {1: 3.0, 2: 1.0, 3: 1.0}
    found = vote.poll(ballots, "poe", lambda grids: [costs[int(g[0, 0])] for g in grids], top=3)
    assert [int(one.grid[0, 0]) for one in found] == [2, 3, 1, 4]


def test_a_leader_is_decided_when_the_ballots_left_cannot_reach_it():
    ballots = [Ballot(grid) for grid, number in zip(grids((1,), (2,)), (5, 3)) for _ in range(number)]
    assert vote.decided(ballots, 1) and not vote.decided(ballots, 2)
    assert vote.decided(ballots[:5], 4) and not vote.decided(ballots[:5], 5) and not vote.decided([], 0)


def test_poe_without_costs_says_what_is_missing():
    with pytest.raises(ValueError, match="'poe' ranks by costs and got none"):
        vote.poll([Ballot(TRUTH)], "poe")


def test_attempts_are_the_two_most_frequent_distinct_grids():
    first, second, third = grids((1,), (2,), (3,))
    ballots = [Ballot(second)] * 3 + [Ballot(third)] + [Ballot(first)] * 5
    said = vote.attempts(vote.candidates(ballots))
    assert [(int(a.grid[0, 0]), a.count, a.fallback) for a in said] == [(1, 5, False), (2, 3, False)]


def test_one_candidate_gets_a_fallback_at_its_least_certain_cell():
    doubt = Doubt(np.array([[5, 6, 7]]), np.array([[0.9, 0.1, 0.5]]))
    (first, second) = vote.attempts(vote.candidates([Ballot(as_grid([[1, 2, 3]]), 0.0, doubt)]))
    assert not first.fallback and second.fallback and second.grid.tolist() == [[1, 6, 3]]


def test_doubts_are_undone_with_their_view():
    seen, truth = views.enumerated(72), as_grid([[1, 2, 3]])
    second, margin = as_grid([[5, 6, 7]]), np.array([[0.9, 0.1, 0.5]])
    doubts = [Doubt(seen.view(n).apply(second), views.turn(margin, seen.view(n).d4)) for n in range(72)]
    for said in vote.cast(seen, oracle(seen, truth), doubts=doubts):
        assert np.array_equal(said.doubt.second, second) and np.array_equal(said.doubt.margin, margin)


@pytest.mark.parametrize("grid", [[[0]], [[9]], [[1] * 30] * 30])
@pytest.mark.parametrize("number", [2, 10])
def test_a_fallback_always_exists_and_is_distinct(grid, number):
    said = vote.attempts(vote.candidates([Ballot(as_grid(grid))]), number)
    assert len({a.grid.tobytes() for a in said}) == number == len(said)


def test_a_second_colour_equal_to_the_first_is_passed_over():
    same = Ballot(as_grid([[3]]), 0.0, Doubt(np.array([[3]]), np.array([[0.0]])))
    assert vote.attempts(vote.candidates([same]))[1].grid.tolist() != [[3]]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: vote.attempts([]), "no candidates"),
        (lambda: vote.attempts([Candidate(TRUTH, 1, 0.0)], 11), "asked for 11 attempts"),
        (lambda: vote.candidates([Ballot(TRUTH)], "mean"), "vote 'mean', wanted one of count, loglik, poe"),
        (lambda: vote.cast(views.enumerated(1), [TRUTH], orientation="wrong"), "orientation 'wrong'"),
    ],
)
def test_an_impossible_vote_is_one_sentence(make, words):
    with pytest.raises(ValueError, match=words):
        make()
