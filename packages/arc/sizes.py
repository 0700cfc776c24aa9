"""The size of an answer as a rule read off the demos, None when no rule fits. Sees demos and the query alone."""

from collections.abc import Callable, Sequence
from fractions import Fraction

from packages.arc.tasks import MAX_SIDE, Grid, Pair, Size

Law = Callable[[Size], Size | None]  # size of a query -> size of its answer, None where the law does not apply


def rule(demos: Sequence[Pair], query: Grid, swap: bool = True) -> Size | None:
    """Size of the answer to `query` by the first law that fits all demos: same, constant, ratio per axis, swapped axes.

    swap: False leaves the swapped axes out. A ratio n/d needs d to divide the query's side.
    None: no law fits, or the fitting law gives no size within 1..30.
    """
    sizes = [(_size(pair.input), _size(pair.output)) for pair in demos]
    laws = [_same, _constant(sizes), _ratio(sizes), *([_swapped] if swap else [])]
    law = next((law for law in laws if all(law(before) == after for before, after in sizes)), None)
    size = law(_size(query)) if law else None
    return size if size and max(size) <= MAX_SIDE else None


def _size(grid: Grid) -> Size:
    height, width = grid.shape
    return height, width


def _same(size: Size) -> Size:
    return size


def _swapped(size: Size) -> Size:
    return size[1], size[0]


def _constant(sizes: Sequence[tuple[Size, Size]]) -> Law:
    return lambda size: sizes[0][1]


def _ratio(sizes: Sequence[tuple[Size, Size]]) -> Law:
    before, after = sizes[0]
    ratios = [Fraction(out, side) for side, out in zip(before, after)]

    def law(size: Size) -> Size | None:
        height, width = (side * ratio for side, ratio in zip(size, ratios))
        whole = height.denominator == 1 == width.denominator
        return (int(height), int(width)) if whole else None

    return law
