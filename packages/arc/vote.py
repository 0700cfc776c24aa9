"""Many views, one answer: undo each view, put equal grids in one bucket, rank the buckets, name the attempts.

Every order here is total (score, likelihood, area, cells), so nothing depends on the order of arrival. Knows no
network: likelihoods, margins and costs are given.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from packages.arc.tasks import NUM_COLOURS, Grid, as_grid, digest
from packages.arc.views import View, Views, inverse_d4, turn

RULES = ("count", "loglik", "poe")


@dataclass(frozen=True, eq=False)
class Doubt:
    """Where a belief was least certain. second [h, w]: next best colour; margin [h, w]: log p(best) - log p(second)."""

    second: np.ndarray
    margin: np.ndarray


@dataclass(frozen=True, eq=False)
class Ballot:
    """What one view says, in the frame of the query. loglik: mean log belief over the cells of `grid`."""

    grid: Grid
    loglik: float = 0.0
    doubt: Doubt | None = None


def cast(
    views: Views,
    grids: Sequence[np.ndarray],
    logliks: Sequence[float] | None = None,
    doubts: Sequence[Doubt | None] | None = None,
    orientation: str = "correct",
) -> list[Ballot]:
    """One ballot for each prediction: the view undone in cells, colours and size.

    grids, logliks, doubts: of views 0, 1, ..., in each view's own frame; doubts of None serve no fallback.
    orientation: "unswapped" reproduces a fault for comparison: the size is not swapped in the 4 views that transpose.
    """
    if orientation not in ("correct", "unswapped"):
        raise ValueError(f"orientation {orientation!r}, wanted correct or unswapped")
    if orientation == "unswapped":
        warnings.warn(
            "orientation=unswapped leaves the size of 4 views in 8 unswapped; for ablation only", stacklevel=2
        )
    logliks = logliks if logliks is not None else [0.0] * len(grids)
    doubts = doubts if doubts is not None else [None] * len(grids)
    read = _ballot if orientation == "correct" else _unswapped_ballot
    return [read(views.view(n), *said) for n, said in enumerate(zip(grids, logliks, doubts, strict=True))]


def _ballot(view: View, grid: np.ndarray, loglik: float, doubt: Doubt | None) -> Ballot:
    if doubt is not None:
        second = view.invert(np.asarray(doubt.second, np.uint8))
        doubt = Doubt(second, turn(np.asarray(doubt.margin), inverse_d4(view.d4)))
    return Ballot(as_grid(view.invert(grid)), loglik, doubt)


def _unswapped_ballot(view: View, grid: np.ndarray, loglik: float, doubt: Doubt | None) -> Ballot:
    """The prediction cut to the size it would have without the view, as if only its cells had been turned."""
    if view.d4 & 4:
        canvas = np.zeros((max(grid.shape), max(grid.shape)), np.uint8)
        canvas[: grid.shape[0], : grid.shape[1]] = grid
        grid = canvas[: grid.shape[1], : grid.shape[0]]
    return _ballot(view, grid, loglik, None)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One bucket of equal grids. loglik: mean over its ballots. cost: of rescoring (poe), if it was rescored."""

    grid: Grid
    count: int
    loglik: float
    doubts: tuple[Doubt, ...] = ()
    cost: float | None = None


def candidates(ballots: Sequence[Ballot], rule: str = "count") -> list[Candidate]:
    """The distinct grids, best first by `rule`: count | loglik. Ties: see `ranked`."""
    buckets: dict[bytes, list[Ballot]] = {}
    for said in ballots:
        buckets.setdefault(digest(said.grid), []).append(said)
    return ranked([_candidate(bucket) for bucket in buckets.values()], rule)


def _candidate(bucket: Sequence[Ballot]) -> Candidate:
    loglik = math.fsum(said.loglik for said in bucket) / len(bucket)  # fsum: the same for every order
    return Candidate(
        bucket[0].grid, len(bucket), loglik, tuple(said.doubt for said in bucket if said.doubt is not None)
    )


def ranked(found: Sequence[Candidate], rule: str = "count", costs: Sequence[float] | None = None) -> list[Candidate]:
    """Candidates best first.

    rule: count (most ballots, then mean log-likelihood), loglik (the reverse), or poe (product of experts: least cost).
    costs: poe only, for the first len(costs) of `found`; the rest follow by count. Last ties: smaller area, then cells.
    """
    if rule not in RULES:
        raise ValueError(f"vote {rule!r}, wanted one of {', '.join(RULES)}")
    if rule == "poe":
        if costs is None:
            raise ValueError("vote 'poe' ranks by costs and got none; rescore the candidates, or vote by count")
        rescored = [replace(candidate, cost=cost) for cost, candidate in zip(costs, found, strict=False)]
        return sorted(rescored, key=lambda one: (one.cost, *_by_count(one))) + sorted(
            found[len(costs) :], key=_by_count
        )
    return sorted(found, key=_by_count if rule == "count" else _by_loglik)


def _by_count(one: Candidate) -> tuple:
    return -one.count, -one.loglik, one.grid.size, digest(one.grid)


def _by_loglik(one: Candidate) -> tuple:
    return -one.loglik, -one.count, one.grid.size, digest(one.grid)


def decided(ballots: Sequence[Ballot], left: int) -> bool:
    """Whether `left` further ballots cannot change the leader by count."""
    counts = [one.count for one in candidates(ballots)[:2]] + [0, 0]
    return counts[0] - counts[1] > left


@dataclass(frozen=True, eq=False)
class Attempt:
    """An answer handed in. fallback: made from the leader by changing a cell, since no view said anything else."""

    grid: Grid
    count: int = 0
    fallback: bool = False


def attempts(best_first: Sequence[Candidate], number: int = 2) -> list[Attempt]:
    """Exactly `number` distinct grids: the best candidates, then, if too few, the leader with one cell changed.

    The least certain cell first, to its second colour; number is at most 10. ValueError: no candidates.
    """
    if not best_first:
        raise ValueError("no candidates to attempt; vote on at least one ballot")
    if not 1 <= number <= NUM_COLOURS:
        raise ValueError(f"asked for {number} attempts, wanted 1 to {NUM_COLOURS}")
    chosen = [Attempt(one.grid, one.count) for one in best_first[:number]]
    seen = {digest(attempt.grid) for attempt in chosen}
    flips = _flips(best_first[0])
    while len(chosen) < number:
        grid = next(flips)
        if digest(grid) not in seen:
            seen.add(digest(grid))
            chosen.append(Attempt(grid, fallback=True))
    return chosen


def _flips(leader: Candidate) -> Iterator[Grid]:
    """The leader with one cell changed: least certain cells first to their second colours, then to all others."""
    cells, second = _least_certain(leader)
    for offset in range(NUM_COLOURS):
        for cell in cells:
            changed = leader.grid.copy().reshape(-1)
            changed[cell] = (second[cell] + offset) % NUM_COLOURS
            yield as_grid(changed.reshape(leader.grid.shape))


def _least_certain(leader: Candidate) -> tuple[np.ndarray, np.ndarray]:
    """Flat cell indices, least certain first, and the second colour of each cell, over all doubts of the leader."""
    if not leader.doubts:
        return np.arange(leader.grid.size), (leader.grid.reshape(-1).astype(int) + 1) % NUM_COLOURS
    margins = np.stack([doubt.margin.reshape(-1) for doubt in leader.doubts])
    seconds = np.stack([doubt.second.reshape(-1) for doubt in leader.doubts]).astype(int)
    least = np.lexsort((seconds, margins), axis=0)[:1]  # by margin, then colour: no order of arrival
    margin, second = (np.take_along_axis(values, least, 0)[0] for values in (margins, seconds))
    return np.argsort(margin, kind="stable"), second


def poll(
    ballots: Sequence[Ballot], rule: str = "count", rescore: Callable | None = None, top: int = 10
) -> list[Candidate]:
    """Candidates best first; for poe the `top` by count are rescored: rescore(list of grids) -> one cost each."""
    found = candidates(ballots, "count" if rule == "poe" else rule)
    if rule != "poe":
        return found
    return ranked(found, rule, None if rescore is None else rescore([one.grid for one in found[:top]]))
