"""Answers to queries: many views of each, a size for every view, one walk for all, and a vote.

Whole queries are solved together, as many as fit `max_tokens`; the question of a view is read once, for the size as for
every step. Sees demos and queries; no answer comes near this file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from packages.arc import views, vote
from packages.arc.tasks import Grid, Size
from packages.arc.views import Views
from packages.arc.vote import Attempt, Ballot, Candidate
from projects.arc import size as sizing
from projects.arc.demos import Conditioning
from projects.arc.network import GridDenoiser, Prefix
from projects.arc.packing import Cells, GridStore, blank
from projects.arc.pairs import Query, ask, viewed_sizes
from projects.arc.rescoring import costs
from projects.arc.sampling import WalkOptions
from projects.arc.size import SizeOptions, Sizes
from projects.arc.walking import Denoiser, Trace, walk
from shared.processes.categorical import Categorical
from shared.processes.draws import PerSegment
from shared.sampling import Denoise, guided
from shared.training.randomness import Randomness

BLOCK = 8  # views walked together where a query may stop early


@dataclass
class DuringFit:
    """Solving held-out demo pairs while training goes on. every: updates (None: never). tasks: the first, by id."""

    every: int | None = 10000
    tasks: int = 120
    steps: int = 32
    views: int = 1


@dataclass
class EvalOptions(WalkOptions):
    """How queries are answered; how one answer is drawn, see `sampling.WalkOptions`.

    views: of every query, view 0 the identity; 1 = two walks of the identity. vote: count = the grid most views agree
    on, loglik = the likeliest, poe = of the ten most voted the one that loses least when noised anew. early_exit: a
    query stops when the views left cannot change its leader (count only). attempts: handed in. stats: also report how
    the walks went. orientation: `unswapped` repeats an old fault, for comparison only. max_tokens: cells and tokens of
    one forward pass. limit: the first tasks by id. prefer: which checkpoint of a run. ema: false evaluates the raw
    weights of a checkpoint. during_fit: what is solved while training.
    """

    views: int = 1
    vote: Literal["count", "loglik", "poe"] = "count"
    early_exit: bool = False
    attempts: int = 2
    stats: bool = False
    orientation: Literal["correct", "unswapped"] = "correct"
    max_tokens: int = 16384
    limit: int | None = None
    prefer: Literal["final", "best", "halfway", "last"] = "final"
    ema: bool = True
    during_fit: DuringFit = field(default_factory=DuringFit)

    def __post_init__(self) -> None:
        if self.early_exit and self.vote != "count":
            raise ValueError(f"eval.early_exit counts votes and eval.vote is {self.vote}; use count, or no early exit")


@dataclass
class Answered:
    """What became of one query."""

    query: Query
    sizes: Sizes
    candidates: list[Candidate]
    attempts: list[Attempt]
    strip: list[np.ndarray]  # states of the identity view's walk, from the prior on
    trace: np.ndarray | None = field(default=None, repr=False)  # [steps, 3, views], see `walking.Trace`
    walks: int = 0  # that were made


@dataclass
class Solver:
    """Everything a query is answered with. colours, d4: the views the network was trained with."""

    network: GridDenoiser
    process: Categorical
    options: EvalOptions
    size: SizeOptions
    randomness: Randomness
    colours: str = "permute"
    d4: bool = True
    conditioning: Conditioning = Conditioning()  # noqa: RUF009 (frozen)

    def all(self, queries: Sequence[Query], say: Callable[[str], None] | None = None) -> list[Answered]:
        """Answers in the order of the queries. say: told of progress about every 10 seconds."""
        answered: list[Answered] = []
        start = told = time.monotonic()
        for chunk in self.chunks(queries):
            answered += self.chunk(chunk)
            now = time.monotonic()
            if say and now - told > 10:
                told, rest = now, (now - start) * (len(queries) / len(answered) - 1)
                say(f"answered {len(answered)}/{len(queries)} test grids  eta {rest:.0f}s")
        return answered

    @property
    def walks(self) -> int:
        """Walks per query: one per view, or two of the identity."""
        return self.options.views if self.options.views > 1 else 2

    def views(self) -> Views:
        """The views of one query, [walks]."""
        seen = self.enumerated(self.options.views)
        return seen if self.options.views > 1 else Views(*(np.repeat(part, 2, 0) for part in seen))

    def enumerated(self, number: int) -> Views:
        """The first `number` views of those the network was trained with."""
        return views.enumerated(number, self.colours, self.d4)

    def chunks(self, queries: Sequence[Query]) -> Iterator[list[Query]]:
        """Runs of queries whose views fit `max_tokens`; an answer counts as large as the question."""
        chunk: list[Query] = []
        tokens = 0
        for query in queries:
            cost = self.walks * (2 * query.grid.size + self.conditioning.cells(query.task.demos) + 8)
            if chunk and tokens + cost > self.options.max_tokens:
                yield chunk
                chunk, tokens = [], 0
            chunk.append(query)
            tokens += cost
        if chunk:
            yield chunk

    @torch.no_grad()
    def chunk(self, queries: list[Query]) -> list[Answered]:
        """Answers to queries that fit together."""
        seen, n = self.views(), self.walks
        prefix = self.read(queries, seen)
        sizes = self.sizes(queries, prefix, torch.from_numpy(seen.d4))
        polls = [_Poll(query, size, sizing.shared_out(size.candidates, n)) for query, size in zip(queries, sizes)]
        for block in self.blocks():
            undecided = [poll for poll in polls if not vote.decided(poll.ballots, n - block.start)]
            if not undecided:
                break
            some = Views(*(part[block] for part in seen))
            if len(some.d4) < n:
                prefix = self.read([poll.query for poll in undecided], some)
            self.walk(undecided, some, block.start, prefix)
        return [self.answer(poll) for poll in polls]

    def blocks(self) -> list[slice]:
        """Which views are walked together."""
        size = BLOCK if self.options.early_exit else self.walks
        return [slice(start, min(start + size, self.walks)) for start in range(0, self.walks, size)]

    def walk(self, polls: list[_Poll], seen: Views, first: int, prefix: Prefix) -> None:
        """The views first, first + 1, ... of every poll, walked together, join their polls."""
        n = len(seen.d4)
        flat = np.array([size for poll in polls for size in poll.sizes[first : first + n]])
        drawn, states, table = self.drawn([poll.query for poll in polls], seen, flat, prefix, first)
        for i, poll in enumerate(polls):
            said = [drawn.ballot(i * n + v) for v in range(n)]
            poll.ballots += vote.cast(seen, *zip(*said), orientation=self.options.orientation)
            poll.strip = poll.strip or [drawn.grid(state, i * n) for state in states]
            if table is not None:
                poll.traces.append(table[:, :, i * n : i * n + n])

    def drawn(
        self, queries: list[Query], seen: Views, sizes: np.ndarray, prefix: Prefix, first: int
    ) -> tuple[_Drawn, np.ndarray, np.ndarray | None]:
        """Answers of the given sizes [J, 2], the states [steps, M] on the way, and the table of `walking.Trace`."""
        n = len(seen.d4)
        turned = viewed_sizes(sizes, np.tile(seen.d4, len(queries)))
        places = blank(turned, self.device)
        rng = PerSegment(
            [self.generator(query, first + v) for query in queries for v in range(n)], places.lengths.tolist()
        )
        states: list[Tensor] = []
        trace = Trace(places, places.colour)
        watch = _both(trace, states, self.options.stats)
        said, belief = walk(
            self.denoiser(queries, seen, prefix, places), places, self.process, self.options, rng, watch
        )
        answers = _Drawn(said.cpu().numpy(), belief.cpu().numpy(), turned, places.lengths)
        return answers, torch.stack(states).cpu().numpy(), trace.table().numpy() if self.options.stats else None

    def denoiser(self, queries: list[Query], seen: Views, prefix: Prefix, places: Cells) -> Denoise:
        """What is walked with; guided away from what is believed of a withheld input, if so asked."""
        told = Denoiser(self.network, prefix, places)
        if self.options.guidance == 1.0:
            return told
        untold = Denoiser(self.network, self.read(queries, seen, hidden=True), places)
        return guided(told, untold, self.options.guidance - 1.0)

    @property
    def device(self) -> torch.device:
        return self.network.out.weight.device

    def read(self, queries: list[Query], seen: Views, hidden: bool = False) -> Prefix:
        """The questions in all views of `seen`, read once; hidden: the inputs' colours are withheld."""
        store, n = GridStore([query.grid for query in queries], self.device), len(seen.d4)
        which = np.repeat(np.arange(len(queries)), n)
        rows = np.array([query.row for query in queries])[which]
        demos = self.conditioning.demos([query.task.demos for query in queries], self.device)
        shown = demos and demos.show(which)
        all_views = Views(np.tile(seen.d4, len(queries)), np.tile(seen.colours, (len(queries), 1)))
        question = ask(rows, store.cells(which), store.size[which], all_views, shown=shown)
        if hidden:
            question = replace(question, hidden=torch.ones_like(question.task, dtype=torch.bool))
        return self.network.prefix(question)

    def sizes(self, queries: list[Query], prefix: Prefix, d4: Tensor) -> list[Sizes]:
        """What is decided from the views d4 [n] of each query."""
        asked = 1 if self.size.views == "identity" else len(d4)
        logits = prefix.size_logits.cpu().split(len(d4))
        return [
            sizing.decide(query.task, query.grid, sizing.fused(said[:asked], d4[:asked], self.network.side), self.size)
            for query, said in zip(queries, logits)
        ]

    def generator(self, query: Query, walk: int) -> torch.Generator:
        """The randomness of one walk: named by task, query and view, so it is the same in any company."""
        view, attempt = (walk, 0) if self.options.views > 1 else (0, walk)
        return self.randomness.sample((query.name, view, attempt), self.device)

    def answer(self, poll: _Poll) -> Answered:
        """The vote over the walks of one query."""
        found = vote.poll(poll.ballots, self.options.vote, partial(costs, self, poll.query))
        trace = np.concatenate(poll.traces, 2) if poll.traces else None
        attempts = vote.attempts(found, self.options.attempts)
        return Answered(poll.query, poll.decided, found, attempts, poll.strip, trace, len(poll.ballots))


class OneWalk(Solver):
    """One walk of the identity view per query, without a vote: for looking at."""

    walks = 1  # type: ignore[assignment]

    def looked_at(self, queries: Sequence[Query], seeds: Sequence[int]) -> list[Grid]:
        """An answer [h, w] per query; `seeds` name the walks, which are the same in any company."""
        self.names = iter(seeds)
        return [grid for part in self.chunks(queries) for grid in self.together(part)]

    @torch.no_grad()
    def together(self, queries: list[Query]) -> list[Grid]:
        seen = self.enumerated(1)
        prefix = self.read(queries, seen)
        sizes = self.sizes(queries, prefix, torch.from_numpy(seen.d4))
        best = np.array([each.candidates[0][0] for each in sizes])
        answers, _, _ = self.drawn(queries, seen, best, prefix, 0)
        return [answers.grid(answers.colour, n).astype(np.uint8) for n in range(len(queries))]

    def generator(self, query: Query, walk: int) -> torch.Generator:
        return self.randomness.sample(("sample", next(self.names)), self.device)


@dataclass
class _Poll:
    """What became of one query so far."""

    query: Query
    decided: Sizes
    sizes: list[Size]  # of every view, in the frame of the query
    ballots: list[Ballot] = field(default_factory=list)
    strip: list[np.ndarray] = field(default_factory=list)
    traces: list[np.ndarray] = field(default_factory=list)


@dataclass
class _Drawn:
    """Answers of all walks end to end, on the host."""

    colour: np.ndarray  # [M]
    belief: np.ndarray  # [M, 10]
    size: np.ndarray  # [J, 2] in the views' frames
    lengths: np.ndarray  # [J]

    def __post_init__(self) -> None:
        self.end = np.cumsum(self.lengths)

    def grid(self, values: np.ndarray, walk: int) -> Grid:
        """The part of packed values [M, ...] that belongs to a walk, as [h, w, ...]."""
        part = values[self.end[walk] - self.lengths[walk] : self.end[walk]]
        return part.reshape(*self.size[walk], *values.shape[1:])

    def ballot(self, walk: int) -> tuple[np.ndarray, float, vote.Doubt]:
        """What one walk says: grid, mean log belief of it, and where it doubted, in the view's frame."""
        grid, belief = self.grid(self.colour, walk).astype(np.uint8), self.grid(self.belief, walk)
        log_p = np.log(np.maximum(belief, 1e-30))
        said = np.take_along_axis(log_p, grid[..., None].astype(int), -1)[..., 0]
        order = np.argsort(log_p, -1)
        best, second = order[..., -1], order[..., -2]
        margin = np.take_along_axis(log_p, order, -1)
        return (
            grid,
            float(said.mean()),
            vote.Doubt(np.where(best == grid, second, best), margin[..., -1] - margin[..., -2]),
        )


def _both(trace: Trace, states: list[Tensor], stats: bool) -> Callable[..., None]:
    def watch(t: Tensor, x: Tensor, belief: Tensor) -> None:
        states.append(x)
        if stats:
            trace(t, x, belief)

    return watch
