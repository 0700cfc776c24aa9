"""The gallery of an evaluation: one self-contained HTML page, and one picture of the first entries.

Solved entries come first. The page holds its thumbnails as base64 PNG and filters with CSS alone: nothing is loaded
from elsewhere and nothing runs. Draws what it is given.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np

from packages.arc.draw import LINE, draw_attempts, draw_square, draw_votes, rgb, sheet
from packages.arc.tasks import Grid, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATES = ("solved", "near-miss", "failed", "unknown")


@dataclass(frozen=True, eq=False)
class Entry:
    """One query of a task and what was said about it.

    status: solved | near-miss | failed | unknown. votes: of the leading candidates, best first; right: the index among
    them of the right one. strip: states of one walk from noise to the answer.
    """

    task: Task
    number: int
    attempts: Sequence[Grid]
    target: Grid | None = None
    status: str = "unknown"
    votes: Sequence[int] = ()
    right: int | None = None
    strip: Sequence[np.ndarray] = ()

    @property
    def name(self) -> str:
        return f"{self.task.id}#{self.number}"


def ordered(entries: Sequence[Entry]) -> list[Entry]:
    """Solved first, then near misses, failures, unknown; by task within."""
    return sorted(entries, key=lambda entry: (STATES.index(entry.status), entry.task.id, entry.number))


# ---- the picture ----


def picture(entries: Sequence[Entry], limit: int = 24) -> Figure:
    """The first `limit` entries, two side by side: first demo, query, attempts, target when known, votes."""
    chosen = ordered(entries)[:limit]
    columns, per = (2 if len(chosen) > 4 else 1), 7
    lines = -(-max(len(chosen), 1) // columns)
    solved = sum(entry.status == "solved" for entry in entries)
    figure, axes = sheet(
        lines, columns * per, f"{solved} of {len(entries)} test grids solved; {len(chosen)} shown", 1.15, 1.15
    )
    for index, entry in enumerate(chosen):
        start = (index % columns) * per
        _draw_entry(axes[index // columns, start : start + per], entry)
    return figure


def _draw_entry(row: np.ndarray, entry: Entry) -> None:
    demo = entry.task.demos[0]
    draw_square(row[0], demo.input, "demo 1")
    draw_square(row[1], demo.output, "output")
    draw_square(row[2], entry.task.queries[entry.number], entry.name)
    draw_attempts(row[3:5], entry.attempts[:2], entry.target)
    if entry.target is not None:
        draw_square(row[5], entry.target, "target")
    if entry.votes:
        row[6].axis("on")
        draw_votes(row[6], entry.votes, entry.right)


# ---- the page ----

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title><style>
body { font: 14px/1.4 system-ui, sans-serif; margin: 1.5em; color: #222; background: #fafafa }
img { image-rendering: pixelated; vertical-align: top; margin: 0 .35em .35em 0 }
section { background: #fff; border-left: 5px solid #bbb; margin: 0 0 1em; padding: .6em 1em }
section.solved { border-color: #2ca02c } section.near-miss { border-color: #e6a700 }
section.failed { border-color: #c0392b }
h2 { font-size: 1em; margin: 0 0 .4em } .row { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 0 1.2em }
figure { margin: 0 } figcaption { font-size: 11px; color: #666 }
.bar { background: #89a; height: 10px; margin: 2px 0 } .bar.right { background: #2ca02c }
.votes { min-width: 140px; font-size: 11px }
label { margin-right: 1em }
$filters
</style></head><body>
<h1>$title</h1><p>$note</p>
<input type="radio" name="show" id="all" checked><label for="all">all $total</label>
$radios
<main>
$entries
</main></body></html>
""")
ENTRY = Template("""<section class="$status" id="$name"><h2>$name &middot; $status</h2>
<div class="row">$demos</div>
<div class="row">$answer<div class="votes">$votes</div></div>
<div class="row">$strip</div></section>
""")


def page(entries: Sequence[Entry], title: str = "gallery", note: str = "") -> str:
    """The HTML page of all entries, solved first, with filters solved / near-miss / failed (and unknown)."""
    counts = {state: sum(entry.status == state for entry in entries) for state in STATES}
    present = [state for state in STATES if counts[state] or state != "unknown"]
    radios = (f'<input type="radio" name="show" id="{s}"><label for="{s}">{s} {counts[s]}</label>' for s in present)
    return PAGE.substitute(
        title=escape(title),
        note=escape(note),
        total=len(entries),
        filters="\n".join(f"#{s}:checked ~ main section:not(.{s}) {{ display: none }}" for s in present),
        radios="\n".join(radios),
        entries="\n".join(map(_entry, ordered(entries))),
    )


def write(entries: Sequence[Entry], folder: Path | str, title: str = "gallery", note: str = "") -> None:
    """gallery.html and gallery.png in `folder`."""
    from packages.arc.draw import save
    from packages.files import put

    folder = Path(folder)
    save(picture(entries), folder / "gallery.png")
    put(folder / "gallery.html", page(entries, title, note).encode("utf-8"))


def _entry(entry: Entry) -> str:
    demos = (_thumb(d.input, f"demo {n}") + _thumb(d.output, d.origin) for n, d in enumerate(entry.task.demos, 1))
    answer = [_thumb(entry.task.queries[entry.number], "query", 10)]
    answer += [_thumb(attempt, f"attempt {n}", 10) for n, attempt in enumerate(entry.attempts, 1)]
    answer += [] if entry.target is None else [_thumb(entry.target, "target", 10)]
    return ENTRY.substitute(
        name=escape(entry.name),
        status=entry.status,
        demos="".join(demos),
        answer="".join(answer),
        votes="".join(_bar(n, count, max(entry.votes), n == entry.right) for n, count in enumerate(entry.votes[:8])),
        strip="".join(_thumb(state, f"step {n}") for n, state in enumerate(entry.strip)),
    )


def _bar(number: int, count: int, most: int, right: bool) -> str:
    width = round(100 * count / max(most, 1))
    return f'<div class="bar{" right" if right else ""}" style="width:{width}%"></div>{number + 1}: {count} votes'


def _thumb(grid: np.ndarray, caption: str, cell: int = 6) -> str:
    data = base64.b64encode(png(grid, cell)).decode()
    height, width = grid.shape
    text = f"{escape(caption)} {height}x{width}"
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def png(grid: np.ndarray, cell: int = 6) -> bytes:
    """A grid as PNG: `cell` pixels a cell, one pixel of line between, no axes. Id 10 is a hidden cell."""
    from PIL import Image

    pixels = np.asarray(grid, np.uint8).repeat(cell, 0).repeat(cell, 1) + 1  # palette entry 0 is the line
    pixels[::cell], pixels[:, ::cell] = 0, 0
    image = Image.fromarray(np.pad(pixels, ((0, 1), (0, 1))), mode="P")
    image.putpalette([int(LINE[i : i + 2], 16) for i in (1, 3, 5)] + rgb().reshape(-1).tolist())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
