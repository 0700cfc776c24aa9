"""Tasks that one fixed rearrangement solves, found from demos alone: the rule behind lists of easy tasks.

Six families, tried in this order: a symmetry, a symmetry with a fixed recolouring, a shift by one cell with black fill,
a mosaic of turned copies, an integer upscaling, a fixed crop. Knows no task by name.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from packages.arc.tasks import MAX_SIDE, NUM_COLOURS, Grid, Pair, Size, as_grid
from packages.arc.views import D4_NAMES, NUM_D4, turn

SHIFTS = ((1, 0), (-1, 0), (0, 1), (0, -1))
MOSAICS = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (3, 3))  # of the families that are drawn

Rearrangement = Callable[[np.ndarray], np.ndarray | None]  # an input to its output, None where it does not apply


@dataclass(frozen=True)
class Family:
    """The rearrangement that explains all demos of a task."""

    kind: str  # symmetry | recolour | shift | mosaic | scale | crop
    detail: str  # "transpose", "2x2", "(1, 0)"
    rearrange: Rearrangement

    def solve(self, query: Grid) -> Grid | None:
        """The output the rearrangement gives for a query, None where it does not apply."""
        output = self.rearrange(query)
        return None if output is None or max(output.shape) > MAX_SIDE else as_grid(output)


def family(demos: Sequence[Pair]) -> Family | None:
    """The first family that explains every demo; None if there is none."""
    finders = (_symmetries, _recolourings, _shifts, _mosaics, _scales, _crops)
    candidates = (candidate for find in finders for candidate in find(demos))
    return next((c for c in candidates if all(_fits(c.rearrange, pair) for pair in demos)), None)


def _fits(rearrange: Rearrangement, pair: Pair) -> bool:
    output = rearrange(pair.input)
    return output is not None and np.array_equal(output, pair.output)


def _symmetries(demos: Sequence[Pair]) -> Iterator[Family]:
    for d4 in range(NUM_D4):
        yield Family("symmetry", D4_NAMES[d4], partial(turn, d4=d4))


def _recolourings(demos: Sequence[Pair]) -> Iterator[Family]:
    for d4 in range(NUM_D4):
        table = _table(demos, d4)
        if table is not None:
            yield Family("recolour", D4_NAMES[d4], partial(_recoloured, d4=d4, table=table))


def _recoloured(grid: np.ndarray, d4: int, table: np.ndarray) -> np.ndarray:
    return table[turn(grid, d4)]


def _table(demos: Sequence[Pair], d4: int) -> np.ndarray | None:
    """The colour table of the demos under a symmetry; colours never seen stay.

    None: sizes differ, or the table merges two colours seen. A table that contradicts itself is left to `_fits`.
    """
    table = np.arange(NUM_COLOURS, dtype=np.uint8)
    for pair in demos:
        turned = turn(pair.input, d4)
        if turned.shape != pair.output.shape:
            return None
        table[turned] = pair.output
    seen = np.unique(np.concatenate([pair.input.reshape(-1) for pair in demos]))
    return table if len(np.unique(table[seen])) == len(seen) else None


def _shifts(demos: Sequence[Pair]) -> Iterator[Family]:
    for dy, dx in SHIFTS:
        yield Family("shift", str((dy, dx)), partial(_shifted, dy=dy, dx=dx))


def _shifted(grid: np.ndarray, dy: int, dx: int) -> np.ndarray:
    height, width = grid.shape
    return np.pad(grid, 1)[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]


def _mosaics(demos: Sequence[Pair]) -> Iterator[Family]:
    """Blocks of the input's own size, each the same symmetry of the input in every demo."""
    rows, cols = (out // side for out, side in zip(demos[0].output.shape, demos[0].input.shape))
    if rows * cols < 2 or any(p.output.shape != (p.input.shape[0] * rows, p.input.shape[1] * cols) for p in demos):
        return
    found = [[_element(demos, rows, cols, i, j) for j in range(cols)] for i in range(rows)]
    elements = [[d4 for d4 in line if d4 is not None] for line in found]
    if elements == found:
        yield Family("mosaic", f"{rows}x{cols}", partial(_assembled, elements=elements))


def _element(demos: Sequence[Pair], rows: int, cols: int, i: int, j: int) -> int | None:
    """The symmetry of the block in row i, column j; None if no one symmetry holds in all demos."""
    blocks = [np.split(np.split(pair.output, rows, 0)[i], cols, 1)[j] for pair in demos]
    fits = (d4 for d4 in range(NUM_D4) if all(np.array_equal(turn(p.input, d4), b) for p, b in zip(demos, blocks)))
    return next(fits, None)


def _assembled(grid: np.ndarray, elements: list[list[int]]) -> np.ndarray | None:
    blocks = [[turn(grid, d4) for d4 in line] for line in elements]
    return np.block(blocks) if all(block.shape == grid.shape for line in blocks for block in line) else None


def _scales(demos: Sequence[Pair]) -> Iterator[Family]:
    factor = demos[0].output.shape[0] // demos[0].input.shape[0]
    if factor > 1:
        yield Family("scale", str(factor), partial(_scaled, factor=factor))


def _scaled(grid: np.ndarray, factor: int) -> np.ndarray:
    return grid.repeat(factor, 0).repeat(factor, 1)


def _crops(demos: Sequence[Pair]) -> Iterator[Family]:
    """The same window of every input."""
    (h, w), (tall, wide) = np.min([pair.input.shape for pair in demos], axis=0), demos[0].output.shape
    for top in range(h - tall + 1):
        for left in range(w - wide + 1):
            window = slice(top, top + tall), slice(left, left + wide)
            yield Family("crop", str((top, left)), partial(_cropped, window=window))


def _cropped(grid: np.ndarray, window: tuple[slice, slice]) -> np.ndarray | None:
    """The window of the grid; None if the grid ends inside it."""
    (rows, cols), (height, width) = window, grid.shape
    return grid[rows, cols] if rows.stop <= height and cols.stop <= width else None


# ---- families drawn, not found ----


def drawn(kind: int, rng: np.random.Generator, size: Size) -> Family:
    """A random member of the family number `kind` (modulo their number) that applies to grids of `size` and larger."""
    return _DRAWN[kind % len(_DRAWN)](rng, size)


def _a_symmetry(rng: np.random.Generator, size: Size) -> Family:
    d4 = int(rng.integers(1, NUM_D4))
    return Family("symmetry", D4_NAMES[d4], partial(turn, d4=d4))


def _a_recolouring(rng: np.random.Generator, size: Size) -> Family:
    d4 = int(rng.integers(NUM_D4)) * int(rng.integers(2))  # the identity half of the time
    table = np.concatenate([[0], 1 + rng.permutation(NUM_COLOURS - 1)]).astype(np.uint8)
    return Family("recolour", D4_NAMES[d4], partial(_recoloured, d4=d4, table=table))


def _a_shift(rng: np.random.Generator, size: Size) -> Family:
    dy, dx = SHIFTS[rng.integers(len(SHIFTS))]
    return Family("shift", str((dy, dx)), partial(_shifted, dy=dy, dx=dx))


def _a_mosaic(rng: np.random.Generator, size: Size) -> Family:
    rows, cols = MOSAICS[rng.integers(len(MOSAICS))]
    elements = rng.integers(NUM_D4 // 2, size=(rows, cols)).tolist()  # those that do not swap the sides
    return Family("mosaic", f"{rows}x{cols}", partial(_assembled, elements=elements))


def _a_scale(rng: np.random.Generator, size: Size) -> Family:
    factor = int(rng.integers(2, 4))
    return Family("scale", str(factor), partial(_scaled, factor=factor))


def _a_crop(rng: np.random.Generator, size: Size) -> Family:
    height, width = (int(rng.integers(min(2, side), side + 1)) for side in size)
    top, left = (int(rng.integers(side - part + 1)) for side, part in zip(size, (height, width)))
    window = slice(top, top + height), slice(left, left + width)
    return Family("crop", str((top, left)), partial(_cropped, window=window))


_DRAWN = (_a_symmetry, _a_recolouring, _a_shift, _a_mosaic, _a_scale, _a_crop)
