"""Answers to queries: many views of each, a size for every view, one walk for all, and a vote.

Whole queries are solved together, as many as fit `max_tokens`; the question of a view is read once, for the size as for
every step. Sees demos and queries; no answer comes near this file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from packages.arc import views, vote
from packages.arc.tasks import Grid
from packages.arc.views import Views
from packages.arc.vote import Attempt, Ballot, Candidate
from projects.arc import size as sizing
from projects.arc.data import Query, ask, viewed_sizes
from projects.arc.demos import Conditioning
from projects.arc.network import GridDenoiser, Prefix
from projects.arc.packing import GridStore, blank
from projects.arc.size import SizeOptions, Sizes
from projects.arc.walking import Denoiser, Trace, walk
from shared.processes.categorical import Categorical
from shared.processes.draws import PerSegment
from shared.training.randomness import Randomness


@dataclass
class EvalOptions:
    """How queries are answered.

    num_steps: moves of a walk. views: of every query, view 0 the identity; 1 = two walks of the identity. vote: count =
    the grid most views agree on, loglik = the likeliest. temperature: of the belief's logits. attempts: handed in.
    stats: also report how the walks went. orientation: `unswapped` repeats an old fault, for comparison only.
    max_tokens: cells and tokens of one forward pass. limit: the first tasks by id. prefer: which checkpoint of a run.
    ema: false evaluates the raw weights of a checkpoint.
    """

    num_steps: int = 32
    views: int = 1
    vote: Literal["count", "loglik"] = "count"
    temperature: float = 1.0
    attempts: int = 2
    stats: bool = False
    orientation: Literal["correct", "unswapped"] = "correct"
    max_tokens: int = 16384
    limit: int | None = None
    prefer: Literal["final", "best", "halfway", "last"] = "final"
    ema: bool = True


@dataclass
class Answered:
    """What became of one query."""

    query: Query
    sizes: Sizes
    candidates: list[Candidate]
    attempts: list[Attempt]
    strip: list[np.ndarray]  # states of the identity view's walk, from the prior on
    trace: np.ndarray | None = field(default=None, repr=False)  # [steps, 3, views], see `walking.Trace`


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
        seen = views.enumerated(self.options.views, self.colours, self.d4)
        return seen if self.options.views > 1 else Views(*(np.repeat(part, 2, 0) for part in seen))

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
        d4, colours = np.tile(seen.d4, len(queries)), np.tile(seen.colours, (len(queries), 1))
        prefix = self.read(queries, Views(d4, colours))
        sizes = self.sizes(queries, prefix, torch.from_numpy(d4))
        flat = np.array([s for decided in sizes for s in sizing.shared_out(decided.candidates, n)])
        places = blank(viewed_sizes(flat, d4), self.device)
        denoise = Denoiser(self.network, prefix, places, self.options.temperature)
        rng = PerSegment([self.generator(q, v) for q in queries for v in range(n)], places.lengths.tolist())
        states: list[Tensor] = []
        trace = Trace(places, places.colour)
        said, belief = walk(
            denoise, self.process, self.options.num_steps, rng, _both(trace, states, self.options.stats)
        )
        drawn = _Drawn(said.cpu().numpy(), belief.cpu().numpy(), viewed_sizes(flat, d4), places.lengths)
        table = trace.table().numpy() if self.options.stats else None
        strips = torch.stack(states).cpu().numpy()
        return [
            self.answer(
                query, sizes[i], seen, drawn, strips, i * n, None if table is None else table[:, :, i * n : i * n + n]
            )
            for i, query in enumerate(queries)
        ]

    @property
    def device(self) -> torch.device:
        return self.network.out.weight.device

    def read(self, queries: list[Query], seen: Views) -> Prefix:
        """The questions of all views, read once."""
        store = GridStore([query.grid for query in queries], self.device)
        which = np.repeat(np.arange(len(queries)), self.walks)
        rows = np.array([query.row for query in queries])[which]
        demos = self.conditioning.demos([query.task.demos for query in queries], self.device)
        shown = demos and demos.show(which)
        return self.network.prefix(ask(rows, store.cells(which), store.size[which], seen, shown=shown))

    def sizes(self, queries: list[Query], prefix: Prefix, d4: Tensor) -> list[Sizes]:
        logits = prefix.size_logits.cpu().split(self.walks)
        return [
            sizing.decide(query.task, query.grid, sizing.fused(said, d4[: self.walks], self.network.side), self.size)
            for query, said in zip(queries, logits)
        ]

    def generator(self, query: Query, walk: int) -> torch.Generator:
        """The randomness of one walk: named by task, query and view, so it is the same in any company."""
        view, attempt = (walk, 0) if self.options.views > 1 else (0, walk)
        return self.randomness.sample((query.name, view, attempt), self.device)

    def answer(
        self,
        query: Query,
        sizes: Sizes,
        seen: Views,
        drawn: _Drawn,
        strips: np.ndarray,
        first: int,
        trace: np.ndarray | None,
    ) -> Answered:
        """The vote over the walks first .. first + walks - 1."""
        ballots = self.ballots(seen, drawn, first)
        found = vote.candidates(ballots, self.options.vote)
        strip = [drawn.grid(state, first) for state in strips]
        return Answered(query, sizes, found, vote.attempts(found, self.options.attempts), strip, trace)

    def ballots(self, seen: Views, drawn: _Drawn, first: int) -> list[Ballot]:
        said = [drawn.ballot(first + v) for v in range(self.walks)]
        return vote.cast(seen, *zip(*said), orientation=self.options.orientation)


class OneWalk(Solver):
    """One walk of the identity view per query, without a vote: for looking at."""

    walks = 1  # type: ignore[assignment]

    def drawn(self, queries: Sequence[Query], seeds: Sequence[int]) -> list[Grid]:
        """An answer [h, w] per query; `seeds` name the walks, which are the same in any company."""
        names = iter(seeds)
        return [grid for part in self.chunks(queries) for grid in self.together(part, [next(names) for _ in part])]

    @torch.no_grad()
    def together(self, queries: list[Query], seeds: list[int]) -> list[Grid]:
        seen = Views(*(part.repeat(len(queries), 0) for part in views.enumerated(1, self.colours, self.d4)))
        prefix = self.read(queries, seen)
        decided = self.sizes(queries, prefix, torch.from_numpy(seen.d4))
        sizes = np.array([each.candidates[0][0] for each in decided])
        places = blank(sizes, self.device)
        denoise = Denoiser(self.network, prefix, places, self.options.temperature)
        rng = PerSegment([self.randomness.sample(("sample", n), self.device) for n in seeds], places.lengths.tolist())
        said, belief = walk(denoise, self.process, self.options.num_steps, rng)
        answers = _Drawn(said.cpu().numpy(), belief.cpu().numpy(), sizes, places.lengths)
        return [answers.grid(answers.colour, n).astype(np.uint8) for n in range(len(queries))]


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
