"""Pairs of grids, seen in views, as batches, and the questions of an evaluation: index arithmetic, no loop over grids.

Knows pairs, rows, views and demos; not where they come from (`data.py`), nor what is made of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from packages.arc import views
from packages.arc.tasks import Grid, Pair, Task
from packages.arc.views import Placement, Views, recolour, turned
from projects.arc.demos import Conditioning, Shown
from projects.arc.network import NO_ROW, Question
from projects.arc.packing import Cells, GridStore, to_device
from shared.training.batches import Batch, Share
from shared.training.randomness import Randomness, key


@dataclass
class Augment:
    """Which views training draws, uniformly, the identity among them; evaluation views come from the same group.

    d4: the 8 symmetries. colour: permute = any permutation of 1..9, cycle = the 9 cyclic shifts. black: permutations
    move black too. translate: both grids move together inside the largest side (training only).
    """

    d4: bool = True
    colour: Literal["permute", "cycle", "none"] = "permute"
    black: bool = False
    translate: bool = True


@dataclass
class Grids(Batch):
    """B pairs in one view each. `answer.colour` is x0."""

    question: Question
    answer: Cells
    size: Tensor  # [B] int64 class of the answer's size, (h - 1) S + (w - 1)


class Query(NamedTuple):
    """One hidden test grid to be drawn."""

    task: Task
    index: int
    row: int  # the task's row in the network, or NO_ROW

    @property
    def name(self) -> str:
        return f"{self.task.id}#{self.index}"

    @property
    def grid(self) -> Grid:
        return self.task.queries[self.index]


class Example(NamedTuple):
    """One pair the network learns from, or is validated on."""

    row: int
    pair: Pair
    weight: float = 1.0
    demos: tuple[Pair, ...] = ()  # that may be shown with it

    @property
    def cells(self) -> int:
        return self.pair.input.size + self.pair.output.size


def look(cells: Cells, size: np.ndarray, seen: Views, shift: np.ndarray | None = None) -> Cells:
    """Cells of B grids as their views show them. size: [B, 2] before the view; shift: [B, 2] offset in cells."""
    device = cells.row.device
    dy, dx = (0, 0) if shift is None else (to_device(shift[:, 0], device), to_device(shift[:, 1], device))
    height, width, d4, colours = (to_device(x, device) for x in (size[:, 0], size[:, 1], seen.d4, seen.colours))
    row, col = Placement.of(height, width, d4, dy, dx).spread(cells.segment)(cells.row, cells.col)
    return Cells(recolour(cells.colour, colours, cells.segment), row, col, cells.segment, cells.lengths)


def ask(
    rows: np.ndarray,
    inputs: Cells,
    size: np.ndarray,
    seen: Views,
    shift: np.ndarray | None = None,
    shown: Shown | None = None,
) -> Question:
    """B questions in one view each. rows [B]: task rows; inputs: cells before the view; demos are not shifted."""
    device = inputs.row.device
    row, d4, colours = (to_device(x, device) for x in (rows, seen.d4, seen.colours))
    cells, marks = look(inputs, size, seen, shift), None
    if shown is not None:
        same = Views(*(part[shown.question] for part in seen))
        cells, marks = shown.before(cells, look(shown.cells, shown.size, same))
    return Question(row, d4, colours, cells, marks=marks)


def viewed_sizes(size: np.ndarray, d4: np.ndarray) -> np.ndarray:
    """Sizes [B, 2] after the symmetries; the same map leads back."""
    return np.stack(turned(size[:, 0], size[:, 1], d4), 1)


class PairBatches:
    """Builds batches of examples on one device. Pair p is grids 2p (input) and 2p + 1 (output) of the store.

    augment: None shows pairs and demos as they are, with their rows.
    """

    def __init__(
        self,
        examples: list[Example],
        side: int,
        augment: Augment | None,
        randomness: Randomness,
        conditioning: Conditioning = Conditioning(),  # noqa: B008 (frozen)
    ):
        self.store = GridStore([grid for e in examples for grid in (e.pair.input, e.pair.output)])
        self.row = np.array([e.row for e in examples], np.int64)
        self.side, self.augment, self.randomness = side, augment, randomness
        self.conditioning, self.demos = conditioning, conditioning.demos([e.demos for e in examples])

    def to(self, device: torch.device | str) -> PairBatches:
        self.store.to(device)
        if self.demos:
            self.demos.store.to(device)
        return self

    def draw(self, share: Share) -> tuple[Views, np.ndarray]:
        """The views and offsets of a share: rows of what the whole update draws, so equal for any number of ranks."""
        if self.augment is None:
            return _identity(len(share.index)), np.zeros((len(share.index), 2), np.int64)
        rng = np.random.Generator(np.random.PCG64(key(self.randomness.seed, "views", share.update)))
        uniform = rng.random((share.global_samples, views.UNIFORMS))[share.row]
        seen = views.random_views(uniform, self.augment.colour, self.augment.d4, self.augment.black)
        if not self.augment.translate:
            return seen, np.zeros((len(share.index), 2), np.int64)
        before, after = (viewed_sizes(self.store.size[2 * share.index + k], seen.d4) for k in (0, 1))
        larger = np.maximum(before, after)
        return seen, np.stack(views.offsets(uniform, larger[:, 0], larger[:, 1], self.side), 1)

    def tell(self, share: Share) -> tuple[np.ndarray, Shown | None]:
        """Rows, some withheld where demos can stand in for them, and demos; by rows of the whole update, as `draw`."""
        rows, demos = self.row[share.index], self.demos
        if demos is None or self.augment is None:
            return rows, demos and demos.show(share.index)
        rng = np.random.Generator(np.random.PCG64(key(self.randomness.seed, "demos", share.update)))
        uniform = rng.random((share.global_samples, demos.uniforms))[share.row]
        withheld = uniform[:, 0] < self.conditioning.row_dropout
        return np.where(withheld, NO_ROW, rows), demos.show(share.index, uniform)

    def build(self, share: Share, quantum: int = 1) -> Grids:
        """The batch of one share; the network fills its streams up to multiples of `quantum` tokens."""
        (rows, shown), (seen, shift) = self.tell(share), self.draw(share)
        of_input, of_output = 2 * share.index, 2 * share.index + 1
        inputs, outputs = (self.store.cells(which) for which in (of_input, of_output))
        before, after = self.store.size[of_input], self.store.size[of_output]
        question = ask(rows, inputs, before, seen, shift, shown)
        answer = look(outputs, after, seen, shift)
        size = viewed_sizes(after, seen.d4)
        label = to_device((size[:, 0] - 1) * self.side + size[:, 1] - 1, answer.row.device)
        cells = len(answer.colour) + len(question.cells.colour)
        return Grids(share, cells, replace(question, quantum=quantum), answer, label)


def _identity(count: int) -> Views:
    return Views(np.zeros(count, np.int64), np.tile(np.arange(10), (count, 1)))
