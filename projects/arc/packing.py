"""Grids end to end in flat arrays, and the index arithmetic that makes batches of them without a loop over grids.

Lengths live on the host (numpy), cells on the device: every shape is known before a kernel starts, so nothing waits.
Knows cells and sizes; not tasks, not views, not learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def spread(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The runs start, start+1, ..., start+length-1 of every segment, end to end [sum(lengths)]."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def segments(lengths: np.ndarray) -> np.ndarray:
    """The segment of every cell, [sum(lengths)]."""
    return np.repeat(np.arange(len(lengths)), lengths)


def to_device(array: np.ndarray, device: torch.device | str) -> Tensor:
    """A host array on the device without waiting for it (pinned where there is a CUDA device)."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass
class Cells:
    """The cells of B grids end to end, N in all."""

    colour: Tensor  # [N] int64, 0..9
    row: Tensor  # [N] int64
    col: Tensor  # [N] int64
    segment: Tensor  # [N] int64, 0..B-1
    lengths: np.ndarray  # [B] cells per grid, on the host

    @property
    def count(self) -> int:
        return len(self.lengths)

    def first(self, count: int) -> Cells:
        """The cells of the first `count` grids: slices, no copy."""
        n = int(self.lengths[:count].sum())
        return Cells(self.colour[:n], self.row[:n], self.col[:n], self.segment[:n], self.lengths[:count])


def commonest(cells: Cells, colours: int) -> Tensor:
    """Share of each grid's cells that have its commonest colour [B]: what one colour for all of them gets right."""
    counts = torch.zeros(cells.count, colours, device=cells.colour.device)
    one = torch.ones_like(cells.colour, dtype=counts.dtype)
    counts = counts.index_put((cells.segment, cells.colour), one, accumulate=True)
    return counts.amax(1) / counts.sum(1)


def blank(sizes: np.ndarray, device: torch.device | str) -> Cells:
    """Cells of colour 0 for grids of the given sizes [B, 2]: where an answer will be drawn."""
    lengths = sizes.prod(1)
    place, segment = spread(np.zeros(len(sizes), np.int64), lengths), segments(lengths)
    width = sizes[segment, 1]
    row, col = to_device(place // width, device), to_device(place % width, device)
    return Cells(torch.zeros_like(row), row, col, to_device(segment, device), lengths)


class GridStore:
    """Any number of grids as one flat array. Grids are named by their place in the list they came from."""

    def __init__(self, grids: Sequence[np.ndarray], device: torch.device | str = "cpu"):
        self.size = np.array([grid.shape for grid in grids], np.int64).reshape(-1, 2)
        self.length = self.size.prod(1)
        self.start = np.cumsum(self.length) - self.length
        width = np.repeat(self.size[:, 1], self.length)
        place = spread(np.zeros_like(self.start), self.length)
        flat = np.concatenate([grid.reshape(-1) for grid in grids]) if len(grids) else np.zeros(0, np.uint8)
        self.colour, self.row, self.col = (
            torch.from_numpy(array.astype(np.uint8)).to(device) for array in (flat, place // width, place % width)
        )

    def to(self, device: torch.device | str) -> GridStore:
        self.colour, self.row, self.col = (x.to(device) for x in (self.colour, self.row, self.col))
        return self

    def cells(self, which: np.ndarray) -> Cells:
        """The cells of the grids named by `which` [B], in that order."""
        lengths, device = self.length[which], self.colour.device
        flat = to_device(spread(self.start[which], lengths), device)
        colour, row, col = (x[flat].long() for x in (self.colour, self.row, self.col))
        return Cells(colour, row, col, to_device(segments(lengths), device), lengths)


def weave(first: int | np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How to lay [B, first] tokens and the [sum(second)] tokens behind them end to end, segment by segment.

    Returns (order, place): `cat([a, b])[order]` is the woven stream, `place` says where each token of b went.
    """
    first = np.broadcast_to(first, second.shape)
    start = np.cumsum(first + second) - (first + second)
    place_a, place_b = spread(start, first), spread(start + first, second)
    order = np.empty(len(place_a) + len(place_b), np.int64)
    order[place_a], order[place_b] = np.arange(len(place_a)), len(place_a) + np.arange(len(place_b))
    return order, place_b


def room(tokens: int, quantum: int) -> int:
    """Rows of a stream of so many tokens that is filled up to a multiple of `quantum`, by 1 at least; 1 adds none."""
    return tokens if quantum == 1 else (tokens // quantum + 1) * quantum


def filled(lengths: np.ndarray, quantum: int) -> np.ndarray:
    """Lengths of the segments of a stream and, unless `quantum` is 1, of the one that fills it up."""
    total = int(lengths.sum())
    return lengths if quantum == 1 else np.append(lengths, room(total, quantum) - total)


def repeated(order: np.ndarray, quantum: int) -> np.ndarray:
    """The order of a stream, begun anew to fill it up: so the segment that is no example holds tokens like others."""
    return np.resize(order, room(len(order), quantum))
