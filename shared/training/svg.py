"""Curves as inline SVG: a few kilobytes each, no library, coloured by the page they stand on.

`chart` draws named lines over one axis. Colours are the CSS classes `line0`, `line1`, ... of the page; text and grid
follow its text colour. Knows numbers only.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 34  # margins
MOST_POINTS = 400  # of one line: more cannot be seen


def chart(lines: Mapping[str, Points], x_label: str) -> str:
    """One <svg>. Values that are not finite are left out; the y axis is logarithmic when the data ask for it."""
    kept = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in lines.items()}
    xs = [x for points in kept.values() for x, _ in points] or [0.0]
    ys = [y for points in kept.values() for _, y in points] or [0.0]
    log = 0 < 10 * min(ys) < max(ys)
    x_axis, y_axis = Axis(xs, LEFT, WIDTH - RIGHT), Axis(ys, HEIGHT - BOTTOM, TOP, log=log)
    drawn = [*_grid(x_axis, y_axis, x_label), *_lines(kept, x_axis, y_axis)]
    label = f"{', '.join(lines)} over {x_label}".replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(drawn)}</svg>'


class Axis:
    """Values to pixels. start, end: the pixels of the smallest and the largest value."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool = False):
        self.log, self.start, self.end = log, start, end
        low, high = self._scaled(min(values)), self._scaled(max(values))
        slack = 0.0 if low != high else abs(low) / 10 or 1.0
        self.low, self.high = low - slack, high + slack

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def at(self, value: float) -> float:
        return self.start + (self._scaled(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values inside the axis: multiples of 1, 2 or 5 times a power of ten."""
        if self.log:
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            steps = (1, 2, 5) if self.high - self.low < 2 else (1,)
            return [k * 10.0**p for p in powers for k in steps if self.low <= math.log10(k) + p <= self.high]
        step = next(each for each in _round_steps((self.high - self.low) / most))
        return [n * step for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _round_steps(least: float) -> Iterator[float]:
    power = 10.0 ** math.floor(math.log10(least))
    yield from (k * power for k in (1, 2, 5, 10) if k * power >= least)


def _grid(x: Axis, y: Axis, x_label: str) -> Iterator[str]:
    for value in y.ticks():
        at = f"{y.at(value):.1f}"
        yield f'<path class="grid" d="M{LEFT} {at}H{WIDTH - RIGHT}"/>'
        yield f'<text x="{LEFT - 5}" y="{at}" dy=".32em" text-anchor="end">{value:.3g}</text>'
    for value in x.ticks(4):
        yield f'<text x="{x.at(value):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{_short(value)}</text>'
    yield f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{x_label}</text>'


def _lines(lines: Mapping[str, Points], x: Axis, y: Axis) -> Iterator[str]:
    for number, points in enumerate(lines.values()):
        stride = math.ceil(len(points) / MOST_POINTS) or 1
        shown = [*points[::stride], *points[-1:]]
        path = " ".join(f"{x.at(at):.1f},{y.at(value):.1f}" for at, value in shown)
        yield f'<polyline class="line{number}" points="{path}"/>'
        if len(points) < 20:
            for at, value in points:
                yield f'<circle class="line{number}" cx="{x.at(at):.1f}" cy="{y.at(value):.1f}" r="2.2"/>'


def _short(value: float) -> str:
    """20000 -> 20k"""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"
