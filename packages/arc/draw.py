"""Pictures of grids, tasks, corruption and walks back, in the ten official colours of ARC.

    figure = task_sheet(task, attempts=..., targets=...); save(figure, "task.png")

Headless (Agg canvases, no pyplot, no global state); matplotlib is imported when a picture is made. Draws what it is
given: it knows no answer key, no model and no score.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from packages.arc.tasks import NUM_COLOURS, Grid, Task
from packages.files import put

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (
    "#000000",
    "#0074D9",
    "#FF4136",
    "#2ECC40",
    "#FFDC00",
    "#AAAAAA",
    "#F012BE",
    "#FF851B",
    "#7FDBFF",
    "#870C25",
)
NAMES = ("black", "blue", "red", "green", "yellow", "grey", "magenta", "orange", "sky", "maroon")
LINE = "#555555"
HIDDEN = "#FFFFFF"  # a cell that shows no colour: id 10, the mask
CELL = 1.35  # inches a grid's axes take


def save(figure: Figure, path: Path | str, dpi: int = 110) -> Path:
    """Write a figure as PNG, folders included."""
    pixels = io.BytesIO()
    figure.savefig(pixels, dpi=dpi, facecolor="white")
    return put(Path(path), pixels.getvalue())


def as_text(task: Task) -> str:
    """Demos and queries of a task as lines of coloured digits for a terminal."""
    lines = [f"{task.id} ({task.source}), {len(task.demos)} demos, {len(task.queries)} queries"]
    for number, pair in enumerate(task.demos, 1):
        lines += ["", f"demo {number}: {_size(pair.input)} -> {_size(pair.output)}", *_beside(pair.input, pair.output)]
    for number, query in enumerate(task.queries, 1):
        lines += ["", f"query {number}: {_size(query)}", *map(_text_row, query)]
    return "\n".join(lines)


def _size(grid: np.ndarray) -> str:
    return f"{grid.shape[0]}x{grid.shape[1]}"


def _beside(left: Grid, right: Grid) -> list[str]:
    blank = " " * 2 * left.shape[1]
    rows = range(max(len(left), len(right)))
    lefts = [_text_row(left[i]) if i < len(left) else blank for i in rows]
    return [f"{text}    {_text_row(right[i]) if i < len(right) else ''}" for i, text in zip(rows, lefts)]


def _text_row(row: np.ndarray) -> str:
    return (
        "".join(f"\x1b[48;2;{r};{g};{b};38;2;{f};{f};{f}m{c:>2}" for c in row for r, g, b, f in [_ansi(int(c))])
        + "\x1b[0m"
    )


@cache
def _ansi(colour: int) -> tuple[int, int, int, int]:
    """Background of a colour, and the grey of a digit that can be read on it."""
    r, g, b = rgb()[colour].tolist()
    return r, g, b, 0 if 0.3 * r + 0.6 * g + 0.1 * b > 110 else 255


@cache
def rgb() -> np.ndarray:
    """uint8 [11, 3]: the ten colours, then the hidden cell."""
    return np.array([[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in (*COLOURS, HIDDEN)], np.uint8)


# ---- pixels, without axes ----


def pixels(grid: np.ndarray, cell: int = 12) -> np.ndarray:
    """uint8 [h cell + 1, w cell + 1, 3]: square cells with lines between."""
    line = np.array([int(LINE[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    picture = np.pad(rgb()[grid].repeat(cell, 0).repeat(cell, 1), ((0, 1), (0, 1), (0, 0)))
    picture[::cell], picture[:, ::cell] = line, line
    return picture


def pairs(pairs: Sequence[tuple[np.ndarray, np.ndarray]], cell: int = 12) -> np.ndarray:
    """uint8 [H, W, 3]: pairs of grids in a row, input beside output; a rule stands before the last pair."""
    parts = [pixels(grid, cell) for pair in pairs for grid in pair]
    gaps = [cell if n % 2 else 3 * cell for n in range(1, len(parts) + 1)]
    page = np.full(
        (max(map(len, parts)) + 2 * cell, sum(part.shape[1] for part in parts) + sum(gaps), 3), 255, np.uint8
    )
    left = cell
    for n, (part, gap) in enumerate(zip(parts, gaps)):
        if n == len(parts) - 2 > 0:
            page[:, left - 3 * cell // 2] = page[0, 0] // 2
        page[cell : cell + part.shape[0], left : left + part.shape[1]] = part
        left += part.shape[1] + gap
    return page


# ---- one pair of axes ----


def draw_grid(axes: Axes, grid: np.ndarray, side: int | tuple[int, int] | None = None, title: str = "") -> None:
    """A grid with cell lines; id 10 is a hidden cell.

    side: the canvas in cells (one number, or height and width); what of it lies outside the grid is hatched.
    """
    height, width = grid.shape
    tall, wide = (height, width) if side is None else (side, side) if isinstance(side, int) else side
    if tall < height or wide < width:
        raise ValueError(f"a {height}x{width} grid does not fit a canvas of {tall}x{wide}; pass a larger side")
    if (tall, wide) != (height, width):
        _hatch(axes, 0, 0, wide, tall)
    _cells(axes, rgb()[np.asarray(grid)])
    for y, x in zip(*np.nonzero(np.asarray(grid) == NUM_COLOURS)):
        _hatch(axes, x, y, 1, 1)
    _frame(axes, tall, wide, title)


def draw_square(axes: Axes, grid: np.ndarray, title: str = "") -> None:
    """A grid on the smallest square canvas, so that the grids of a sheet line up and non-square ones show it."""
    draw_grid(axes, grid, max(grid.shape), title)


def draw_heat(axes: Axes, values: np.ndarray, title: str = "") -> None:
    """A map of values in [0, 1], such as the probability of the best colour: dark is unsure."""
    from matplotlib import colormaps

    _cells(axes, (colormaps["magma"](np.asarray(values, float))[..., :3] * 255).astype(np.uint8))
    _frame(axes, max(values.shape), max(values.shape), title)


def draw_votes(axes: Axes, counts: Sequence[int], right: int | None = None, shown: int = 8) -> None:
    """Bars of the votes of the leading candidates, best on top; `right`: index of the right one, in green."""
    counts = list(counts[:shown])
    colours = ["#2ca02c" if index == right else "#8899aa" for index in range(len(counts))]
    axes.barh(range(len(counts)), counts, color=colours, height=0.7)
    for index, count in enumerate(counts):
        axes.text(count, index, f" {count}", va="center", fontsize=6)
    axes.set_ylim(max(len(counts), 4) - 0.5, -0.5)
    axes.set_xlim(0, max(counts, default=1) * 1.25)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_title("votes", fontsize=7, pad=3, y=1.0)


def draw_legend(figure: Figure) -> None:
    """The ten colours and their numbers along the lower edge."""
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(facecolor=code, edgecolor=LINE, label=f"{number} {name}")
        for number, (code, name) in enumerate(zip(COLOURS, NAMES))
    ]
    handles.append(Patch(facecolor="white", edgecolor="#999999", hatch="////", label="outside"))
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), fontsize=6, frameon=False, handlelength=1)


def _cells(axes: Axes, colours: np.ndarray) -> None:
    """One rectangle a cell, with lines between; colours uint8 [h, w, 3]."""
    height, width = colours.shape[:2]
    axes.imshow(colours, extent=(0, width, height, 0), interpolation="nearest", zorder=1)
    thickness = 0.6 if max(height, width) <= 15 else 0.3
    axes.vlines(range(width + 1), 0, height, colors=LINE, linewidths=thickness, zorder=2, clip_on=False)
    axes.hlines(range(height + 1), 0, width, colors=LINE, linewidths=thickness, zorder=2, clip_on=False)


def _hatch(axes: Axes, x: float, y: float, width: float, height: float) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle(
            (x, y),
            width,
            height,
            facecolor="white",
            edgecolor="#BBBBBB",
            hatch="////",
            lw=0,
            zorder=1.5 if width == 1 else 0,
        )
    )


def _frame(axes: Axes, height: int, width: int, title: str) -> None:
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(title, fontsize=7, pad=3, y=1.0)  # a given y spares a search over ticks


def sheet(rows: int, cols: int, heading: str, wide: float = CELL, tall: float = CELL) -> tuple[Figure, np.ndarray]:
    """A figure of rows x cols empty axes, with a heading and the legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(cols * wide, 8.2), rows * (tall + 0.25) + 0.75))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, cols, squeeze=False)
    for one in axes.flat:
        one.axis("off")
    height = figure.get_size_inches()[1]
    figure.subplots_adjust(left=0.02, right=0.98, top=1 - 0.55 / height, bottom=0.35 / height, wspace=0.15, hspace=0.3)
    figure.suptitle(heading, fontsize=9, y=1 - 0.12 / height)
    draw_legend(figure)
    return figure, axes


# ---- sheets ----


def task_sheet(
    task: Task,
    attempts: Sequence[Sequence[Grid]] = (),
    targets: Sequence[Grid | None] = (),
    votes: Sequence[Sequence[int]] = (),
) -> Figure:
    """A task: demos in the upper two rows, then a row for each query: input, attempts, target when known, votes."""
    tries = max((len(said) for said in attempts), default=0)
    cols = max(len(task.demos), 3 + tries)
    figure, axes = sheet(2 + len(task.queries), cols, f"{task.id}   {task.source}")
    for number, pair in enumerate(task.demos):
        draw_square(axes[0, number], pair.input, f"{pair.origin} {number + 1}  {_size(pair.input)}")
        draw_square(axes[1, number], pair.output, f"output  {_size(pair.output)}")
    for number, query in enumerate(task.queries):
        row = axes[2 + number]
        target = targets[number] if number < len(targets) else None
        draw_square(row[0], query, f"query {number + 1}  {_size(query)}")
        draw_attempts(row[1:], attempts[number] if number < len(attempts) else (), target)
        if target is not None:
            draw_square(row[1 + tries], target, f"target  {_size(target)}")
        if number < len(votes):
            row[2 + tries].axis("on")
            draw_votes(row[2 + tries], votes[number])
    return figure


def draw_attempts(row: Sequence[Axes] | np.ndarray, attempts: Sequence[Grid], target: Grid | None) -> None:
    for number, (axes, attempt) in enumerate(zip(row, attempts), 1):
        mark = "" if target is None else " right" if np.array_equal(attempt, target) else " wrong"
        draw_square(axes, attempt, f"attempt {number}{mark}")


@dataclass(frozen=True, eq=False)
class Noising:
    """One output on its way to noise. states: x_t at `times`; kept: survival probability alpha at those times."""

    x0: np.ndarray
    times: Sequence[float]
    states: Sequence[np.ndarray]
    kept: Sequence[float]


def noising(rows: Sequence[Noising], heading: str = "corruption of outputs") -> Figure:
    """A strip per example: x_t at each t with alpha and the fraction of cells that differ from x0."""
    figure, axes = sheet(len(rows), max(len(row.states) for row in rows), heading)
    for line, row in zip(axes, rows):
        for place, t, state, alpha in zip(line, row.times, row.states, row.kept):
            wrong = float((np.asarray(state) != row.x0).mean())
            draw_square(place, state, f"t={t:.3g}  α={alpha:.2f}\nwrong {wrong:.0%}")
    return figure


@dataclass(frozen=True, eq=False)
class Walk:
    """One walk back. states: x at `times`, from noise on; beliefs: probabilities [h, w, 10] at the same times."""

    query: np.ndarray
    times: Sequence[float]
    states: Sequence[np.ndarray]
    beliefs: Sequence[np.ndarray]
    final: np.ndarray
    target: np.ndarray | None = None
    name: str = ""


def denoising(walks: Sequence[Walk], heading: str = "the walk back", steps: int = 6) -> Figure:
    """Two rows per walk: input, x_t over the belief at up to `steps` steps, final, target, confidence at the end."""
    shown = min(steps, max(len(walk.states) for walk in walks))
    figure, axes = sheet(2 * len(walks), shown + 4, heading)
    for number, walk in enumerate(walks):
        _draw_walk(axes[2 * number : 2 * number + 2], walk, shown)
    return figure


def _draw_walk(axes: np.ndarray, walk: Walk, shown: int) -> None:
    draw_square(axes[0, 0], walk.query, f"{walk.name} input".strip())
    picks = np.unique(np.linspace(0, len(walk.states) - 1, shown).round().astype(int))
    for place, step in enumerate(picks, 1):
        draw_square(axes[0, place], walk.states[step], f"x  t={walk.times[step]:.3g}")
        belief = np.asarray(walk.beliefs[step])
        draw_square(axes[1, place], belief.argmax(-1), f"belief  {belief.max(-1).mean():.0%} sure")
    draw_square(axes[0, shown + 1], walk.final, "final")
    if walk.target is not None:
        right = np.array_equal(walk.final, walk.target)
        draw_square(axes[0, shown + 2], walk.target, f"target: {'right' if right else 'wrong'}")
    sure = np.asarray(walk.beliefs[-1]).max(-1)
    draw_heat(axes[0, shown + 3], sure, f"confidence {sure.mean():.0%}")
