"""Exact, invertible views of a grid: scale, then one of the 8 symmetries of the square, then colours, then an offset.

Two forms of the same group. `View` acts on one grid. The packed form acts on cells that lie end to end: a view changes
only their coordinates (`place`, an affine map) and their colour (`recolour`, a table look-up), so no cell moves. Packed
functions use operators only, take numpy arrays and torch tensors alike (signed integers, any broadcastable shapes), and
contain no loop over grids. Knows nothing of tasks, generators or networks: a random view is a function of uniform
numbers.

A symmetry is an integer 0..7 of three bits: 4 swaps rows and columns first, 2 then mirrors rows, 1 mirrors columns.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from packages.arc.tasks import MAX_SIDE, NUM_COLOURS, Grid, Size

NUM_D4 = 8
D4_NAMES = (
    "identity",
    "mirror columns",
    "mirror rows",
    "half turn",
    "transpose",
    "quarter turn",  # clockwise
    "three-quarter turn",
    "anti-transpose",
)
CYCLES = 9  # cyclic shifts of the colours 1..9
IDENTITY_COLOURS = tuple(range(NUM_COLOURS))
UNIFORMS = 13  # uniform numbers one random view is made of: 1 symmetry, 10 colours, 2 offset

Array = Any  # numpy array or torch tensor of signed integers


# ---- the packed form ----


def turned(height: Array, width: Array, d4: Array) -> tuple[Array, Array]:
    """Size after the symmetry: (height, width) swapped by the 4 elements that transpose. Its own inverse in size."""
    swap = d4 >> 2
    return height + swap * (width - height), width + swap * (height - width)


def place(
    row: Array, col: Array, height: Array, width: Array, d4: Array, dy: Array = 0, dx: Array = 0
) -> tuple[Array, Array]:
    """Coordinates of cells after symmetry and offset.

    row, col: coordinates before; height, width: size of the cell's grid before; d4, dy, dx: the view. All broadcast, so
    give them per cell, or use `Placement` to compute per grid and spread once.
    """
    return Placement.of(height, width, d4, dy, dx)(row, col)


def unplace(
    row: Array, col: Array, height: Array, width: Array, d4: Array, dy: Array = 0, dx: Array = 0
) -> tuple[Array, Array]:
    """The inverse of `place`, with the same arguments: height, width are still the size BEFORE the view."""
    tall, wide = turned(height, width, d4)
    return Placement.of(tall, wide, inverse_d4(d4))(row - dy, col - dx)


class Placement(NamedTuple):
    """`place` as an integer affine map per grid: row' = r0 + rr row + rc col, col' = c0 + cr row + cc col."""

    r0: Array
    rr: Array
    rc: Array
    c0: Array
    cr: Array
    cc: Array

    @classmethod
    def of(cls, height: Array, width: Array, d4: Array, dy: Array = 0, dx: Array = 0) -> "Placement":
        """height, width, d4, dy, dx: [B] (or any one shape); heights and widths before the symmetry."""
        swap, up, left = d4 >> 2, (d4 >> 1) & 1, d4 & 1
        tall, wide = turned(height, width, d4)
        sign_row, sign_col = 1 - 2 * up, 1 - 2 * left
        return cls(
            r0=up * (tall - 1) + dy,
            rr=sign_row * (1 - swap),
            rc=sign_row * swap,
            c0=left * (wide - 1) + dx,
            cr=sign_col * swap,
            cc=sign_col * (1 - swap),
        )

    def spread(self, segment: Array) -> "Placement":
        """Per-grid coefficients [B] to cells [N]; segment [N]: the grid of each cell."""
        return Placement(*(_gathered(values, segment) for values in self))

    def __call__(self, row: Array, col: Array) -> tuple[Array, Array]:
        return self.r0 + self.rr * row + self.rc * col, self.c0 + self.cr * row + self.cc * col


def recolour(cells: Array, colours: Array, segment: Array) -> Array:
    """Colours of cells after the view.

    cells [N]: 0..9, any integer type; colours [B, 10]: tables; segment [N] int64 or int32: the table of each cell.
    """
    return _gathered(colours.reshape(-1), segment * NUM_COLOURS + cells)


def upscaled(row: Array, col: Array, factor: int) -> tuple[Array, Array]:
    """Coordinates [N k k] of the cells after integer upscaling by `factor` = k: cell n becomes k k cells from n k k on.

    The one view that makes new cells: repeat every other per-cell array k k times (`repeat_interleave`, `np.repeat`).
    """
    dy, dx = (_like(offset, row) for offset in divmod(np.arange(factor * factor), factor))
    return (row[:, None] * factor + dy).reshape(-1), (col[:, None] * factor + dx).reshape(-1)


def _gathered(values: Array, index: Array) -> Array:
    """values[index]; torch's index_select is four times as fast as its brackets on the CPU."""
    return values[index] if isinstance(values, np.ndarray) else values.index_select(0, index)


def _like(values: np.ndarray, array: Array) -> Array:
    return values.astype(array.dtype) if isinstance(array, np.ndarray) else array.new_tensor(values.tolist())


def _whole(values: Array) -> Array:
    """Floor of non-negative numbers, as int64."""
    return values.astype(np.int64) if isinstance(values, np.ndarray) else values.long()


# ---- the groups ----


def inverse_d4(d4: Array) -> Array:
    """The two quarter turns (5, 6) undo each other; every other symmetry undoes itself."""
    swap, up, left = d4 >> 2, (d4 >> 1) & 1, d4 & 1
    return 4 * swap + 2 * (up + swap * (left - up)) + left + swap * (up - left)


def then_d4(first: Array, second: Array) -> Array:
    """The symmetry that equals `first`, then `second`: the table of 64 products as arithmetic on the bits."""
    swap, up, left = first >> 2, (first >> 1) & 1, first & 1
    again = second >> 2
    turned_up, turned_left = up + again * (left - up), left + again * (up - left)
    return 4 * (swap ^ again) + 2 * (turned_up ^ ((second >> 1) & 1)) + (turned_left ^ (second & 1))


def inverse_colours(colours: Array) -> Array:
    """Tables [..., 10] that undo the tables `colours`."""
    return colours.argsort(-1)


def cycle(shift: int) -> tuple[int, ...]:
    """The table that moves colour c of 1..9 on by `shift`, cyclically; black stays. cycle(0) is the identity."""
    return (0, *((c - 1 + shift) % CYCLES + 1 for c in range(1, NUM_COLOURS)))


# ---- sets of views ----


class Views(NamedTuple):
    """n views without scale and offset. d4 [n]: 0..7; colours [n, 10]: tables. numpy or torch, int64.

    The label of a cyclic shift is `colours[:, 1] - 1`.
    """

    d4: Array
    colours: Array

    def view(self, index: int) -> "View":
        """One of them, to act on single grids."""
        return View(d4=int(self.d4[index]), colours=tuple(int(c) for c in self.colours[index]))


def enumerated(number: int, colours: str = "permute", d4: bool = True, key: int = 0) -> Views:
    """The first `number` views of a balanced enumeration without duplicates (numpy); view 0 is the identity.

    Symmetries run fastest, then the 9 cyclic shifts of 1..9 (72 views), then permutations of 1..9 drawn from `key`.
    colours: permute | cycle | none, what the model was trained with. A longer enumeration begins with the shorter one.
    ValueError: more views than there are.
    """
    elements = NUM_D4 if d4 else 1
    tables = {"permute": math.factorial(CYCLES), "cycle": CYCLES, "none": 1}
    if colours not in tables:
        raise ValueError(f"colours {colours!r}, wanted one of {', '.join(tables)}")
    most = elements * tables[colours]
    if not 1 <= number <= most:
        raise ValueError(f"asked for {number} views; d4={d4} and colours={colours!r} have 1 to {most}")
    index = np.arange(number)
    return Views(index % elements, _tables(-(-number // elements), key)[index // elements])


def _tables(number: int, key: int) -> np.ndarray:
    """The first `number` colour tables: cyclic shifts, then fresh random permutations of 1..9."""
    rng = np.random.Generator(np.random.PCG64(key))
    found = dict.fromkeys(cycle(shift) for shift in range(CYCLES))
    while len(found) < number:
        found[(0, *(int(c) for c in rng.permutation(CYCLES) + 1))] = None
    return np.array(list(found)[:number])


def random_views(uniform: Array, colours: str = "permute", d4: bool = True, black: bool = False) -> Views:
    """Views as functions of uniform numbers in [0, 1), identity included, each equally likely.

    uniform: [n, 13], of which columns 0..10 are read (11 and 12 are for `offsets`). colours: permute | cycle | none.
    black: permutations move black too (permute only).
    """
    element = _whole(uniform[:, 0] * (NUM_D4 if d4 else 1))
    if black and colours != "permute":
        raise ValueError(
            f"black=True moves black by a permutation, got colours={colours!r}; use 'permute' or black=False"
        )
    order = uniform[:, 1:11] * 1
    if colours == "permute":
        if not black:
            order[:, 0] = -1
        return Views(element, order.argsort(-1))
    if colours not in ("cycle", "none"):
        raise ValueError(f"colours {colours!r}, wanted permute, cycle or none")
    shift = _whole(uniform[:, 1] * (CYCLES if colours == "cycle" else 1))
    tables = _like(np.array([cycle(k) for k in range(CYCLES)]), element)
    return Views(element, tables[shift])


def offsets(uniform: Array, height: Array, width: Array, side: int) -> tuple[Array, Array]:
    """Random (dy, dx), each [n], one for both grids of a pair, so that both stay inside side x side.

    uniform: [n, 13], columns 11 and 12 are read; height, width [n]: the larger of the two grids, after the symmetry.
    """
    return _whole(uniform[:, 11] * (side - height + 1)), _whole(uniform[:, 12] * (side - width + 1))


# ---- views of one grid ----


@dataclass(frozen=True)
class View:
    """One view of a grid: scale, d4, colours, offset, in this order; `invert` runs the inverses backwards.

    scale: integer upscaling, the result at most 30 a side. d4: 0..7. colours: table of 10. offset: (dy, dx) in cells,
    which moves coordinates (`cells`) and leaves the grid's array as it is.
    """

    d4: int = 0
    colours: tuple[int, ...] = IDENTITY_COLOURS
    offset: tuple[int, int] = (0, 0)
    scale: int = 1

    def __post_init__(self) -> None:
        if self.d4 not in range(NUM_D4):
            raise ValueError(f"d4 is {self.d4}, wanted 0..{NUM_D4 - 1}")
        if sorted(self.colours) != list(IDENTITY_COLOURS):
            raise ValueError(f"colours are {self.colours}, wanted a permutation of 0..9")
        if self.scale < 1:
            raise ValueError(f"scale is {self.scale}, wanted 1 or more")

    def apply(self, grid: Grid) -> Grid:
        """The grid seen under the view. ValueError: scaled beyond 30 cells a side."""
        if max(grid.shape) * self.scale > MAX_SIDE:
            raise ValueError(f"a {grid.shape[0]}x{grid.shape[1]} grid scaled by {self.scale} exceeds {MAX_SIDE} a side")
        larger = grid.repeat(self.scale, 0).repeat(self.scale, 1) if self.scale > 1 else grid
        return np.array(self.colours, np.uint8)[turn(larger, self.d4)]

    def invert(self, grid: Grid) -> Grid:
        """The grid whose view this is. ValueError: not an exact upscaling by `scale`."""
        plain = turn(inverse_colours(np.array(self.colours)).astype(np.uint8)[grid], inverse_d4(self.d4))
        small = plain[:: self.scale, :: self.scale]
        if not np.array_equal(small.repeat(self.scale, 0).repeat(self.scale, 1), plain):
            raise ValueError(
                f"a {grid.shape[0]}x{grid.shape[1]} grid is no upscaling by {self.scale}; it has no inverse view"
            )
        return small

    def apply_size(self, size: Size) -> Size:
        """(height, width) under the view."""
        height, width = turned(*size, self.d4)
        return height * self.scale, width * self.scale

    def invert_size(self, size: Size) -> Size:
        """(height, width) before the view. ValueError: not divisible by `scale`."""
        height, width = turned(*size, self.d4)
        if height % self.scale or width % self.scale:
            raise ValueError(f"size {size} is not divisible by scale {self.scale}")
        return height // self.scale, width // self.scale

    def cells(self, size: Size) -> tuple[np.ndarray, np.ndarray]:
        """(row, col), each int64 [h w]: where the cells of a grid of `size` lie under the view.

        In row-major order of the scaled grid before symmetry and offset.
        """
        height, width = size[0] * self.scale, size[1] * self.scale
        row, col = np.divmod(np.arange(height * width), width)
        return place(row, col, height, width, self.d4, *self.offset)

    @property
    def labels(self) -> tuple[int, tuple[int, ...]]:
        """What the model is told: the symmetry and the colour table."""
        return self.d4, self.colours


def turn(grid: np.ndarray, d4: int) -> np.ndarray:
    """A grid under one symmetry."""
    grid = grid.T if d4 & 4 else grid
    grid = grid[::-1] if d4 & 2 else grid
    return grid[:, ::-1] if d4 & 1 else grid
