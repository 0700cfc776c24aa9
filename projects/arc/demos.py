"""Which demos a network is shown with a question, and how they come to lie before it, by index arithmetic alone.

Every cell of a demo knows its role and the number of its pair, equal for the two grids of a pair. Where the order of
the demos is not to matter, numbers are drawn anew for every training example and follow from the demos' contents in an
evaluation. Nothing here leaves a pair out: who asks has named the demos that may be shown (`others`). Knows pairs and
cells; not tasks, views or rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from packages.arc.tasks import Pair, digest
from projects.arc.network import DEMO_INPUT, DEMO_OUTPUT, INPUT, MAX_DEMOS, Marks
from projects.arc.packing import Cells, GridStore, segments, spread, to_device, weave


@dataclass(frozen=True)
class Conditioning:
    """What tells the network its task.

    task: rows, demos or both. max_cells: of the demos of one question; whole demos are left out above it, at random in
    training, the largest last in an evaluation. ordered: a demo's number is its place in the task. row_dropout: share
    of training examples whose row is withheld (both only).
    """

    task: Literal["rows", "demos", "both"] = "rows"
    max_cells: int = 6000
    ordered: bool = False
    row_dropout: float = 0.2

    @property
    def has_rows(self) -> bool:
        return self.task != "demos"

    @property
    def has_demos(self) -> bool:
        return self.task != "rows"

    def demos(self, shown: Sequence[Sequence[Pair]], device: torch.device | str = "cpu") -> Demos | None:
        """The demos of every question; None where none are shown."""
        return Demos(shown, self.max_cells, self.ordered, device) if self.has_demos else None

    def cells(self, shown: Collection[Pair]) -> int:
        """At most so many cells of these demos stand before a question."""
        return min(self.max_cells, sum(map(cells_of, shown))) if self.has_demos else 0


def cells_of(pair: Pair) -> int:
    return pair.input.size + pair.output.size


def content(pair: Pair) -> bytes:
    return digest(pair.input) + digest(pair.output)


def others(demos: Iterable[Pair], pair: Pair) -> tuple[Pair, ...]:
    """What may be shown while `pair` is predicted: no revealed test pair, and no demo equal to it."""
    return tuple(demo for demo in demos if demo.origin == "demo" and content(demo) != content(pair))


@dataclass
class Shown:
    """Demos of B questions before any view: G grids, input and output in turn, in order of question."""

    cells: Cells  # per grid
    size: np.ndarray  # [G, 2]
    question: np.ndarray  # [G] 0..B-1
    number: np.ndarray  # [G] 1..MAX_DEMOS

    def before(self, inputs: Cells, demos: Cells) -> tuple[Cells, Marks]:
        """Every question's `demos` (these cells, seen in its view), then its input."""
        device, grid = inputs.row.device, segments(demos.lengths)
        ahead = np.bincount(self.question, demos.lengths, inputs.count).astype(np.int64)
        order, lengths = weave(ahead, inputs.lengths)[0], ahead + inputs.lengths
        here = to_device(order, device)
        colour, row, col = (
            torch.cat([getattr(demos, name), getattr(inputs, name)]).index_select(0, here)
            for name in ("colour", "row", "col")
        )
        role = np.resize([DEMO_INPUT, DEMO_OUTPUT], len(self.number))
        marks = (
            np.concatenate([mark[grid], np.full(len(inputs.colour), own)])[order]
            for mark, own in ((role, INPUT), (self.number, 0))
        )
        cells = Cells(colour, row, col, to_device(segments(lengths), device), lengths)
        return cells, Marks(*(to_device(mark, device) for mark in marks))


class Demos:
    """The demos of any number of questions, on one device; questions are named by their place in the list."""

    def __init__(
        self, shown: Sequence[Sequence[Pair]], max_cells: int, ordered: bool, device: torch.device | str = "cpu"
    ):
        pairs = list({id(pair): pair for some in shown for pair in some}.values())
        place = {id(pair): n for n, pair in enumerate(pairs)}
        self.store = GridStore([grid for pair in pairs for grid in (pair.input, pair.output)], device)
        self.cells = np.array([cells_of(pair) for pair in pairs], np.int64)
        self.count = np.array([len(some) for some in shown], np.int64)
        self.first = np.cumsum(self.count) - self.count
        self.which = np.array([place[id(pair)] for some in shown for pair in some], np.int64)
        self.rank = np.argsort(sorted(range(len(pairs)), key=lambda n: (-self.cells[n], content(pairs[n]))))
        self.max_cells, self.ordered = max_cells, ordered

    @property
    def uniforms(self) -> int:
        """Uniform numbers a training example needs: one for its row, then for numbers and for order."""
        return 1 + MAX_DEMOS + int(self.count.max(initial=0))

    def numbered(self, asked: np.ndarray, uniform: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(question, number, pair) of every demo shown for `asked` [B]; uniform [B, uniforms] in training."""
        count = self.count[asked]
        question, place = segments(count), spread(np.zeros_like(count), count)
        pair = self.which[spread(self.first[asked], count)]
        priority = self.rank[pair] if uniform is None else uniform[question, 1 + MAX_DEMOS + place]
        order = np.lexsort((priority, question))
        turn, place, pair = place, place[order], pair[order]
        total = np.concatenate([[0], np.cumsum(self.cells[pair])])
        so_far = total[1:] - total[(np.cumsum(count) - count)[question]]
        kept = (so_far <= self.max_cells) & ((place if self.ordered else turn) < MAX_DEMOS)
        if self.ordered:
            number = place
        elif uniform is None:
            number = turn
        else:
            number = uniform[:, 1 : 1 + MAX_DEMOS].argsort(1)[question, turn % MAX_DEMOS]
        return question[kept], 1 + number[kept], pair[kept]

    @property
    def left_out(self) -> int:
        """How many demos do not fit, in an evaluation."""
        return len(self.which) - len(self.numbered(np.arange(len(self.count)), None)[0])

    def show(self, asked: np.ndarray, uniform: np.ndarray | None = None) -> Shown:
        """The demos of the questions `asked` [B]."""
        question, number, pair = self.numbered(asked, uniform)
        grids = (2 * pair[:, None] + np.arange(2)).reshape(-1)
        return Shown(self.store.cells(grids), self.store.size[grids], question.repeat(2), number.repeat(2))
