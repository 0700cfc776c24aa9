"""Figures of a test: what was drawn beside what is true, and what is known of a denoiser level by level.

Knows metrics, rows of the table of metrics and levels; no network. Matplotlib is loaded where a figure is made: half a
second, and only reports need it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from packages.text.fluency import DISTANCES, KINDS, LengthTV, NgramKL
from packages.text.table import Row
from projects.text.health import distances, some
from projects.text.levels import Levels, decided
from projects.text.resolution import Window, span
from projects.text.rounding import Rows
from projects.text.warping import SCALE, Gumbel
from shared.processes import time_of
from shared.processes.schedules import Schedule
from shared.training.report import save_figure

CASES = 100  # of a dependency at a distance, for its rate to count
MODEL, FLOOR = {"color": "C0", "marker": ".", "label": "model"}, {"color": "grey", "marker": ".", "linewidth": 1}


def figure(path: Path, size: tuple[float, float], draw: Callable[[Any], None]) -> Path:
    """A picture at `path` of what `draw` does to a matplotlib figure."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=size, layout="constrained")
    draw(drawn)
    return save_figure(drawn, path, 110)


def below(drawn: Any, axes: Any) -> None:
    """The names of lines under the panels, where they hide none."""
    handles, names = axes.get_legend_handles_labels()
    drawn.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)


# --- what was drawn


def draw_lengths(metric: LengthTV, path: Path) -> Path:
    """How many words drawn sentences have, beside what was to be."""
    truth, counts = metric.truth.numpy(), metric.counts.numpy()

    def draw(drawn: Any) -> None:
        axes = drawn.subplots()
        axes.bar(np.arange(len(counts)), counts / counts.sum(), label="drawn", alpha=0.5)
        axes.step(np.arange(len(truth)), truth, where="mid", label="true", color="black")
        axes.set(xlabel="words (the last bar: more)", ylabel="share")
        axes.legend(frameon=False)

    return figure(path, (6, 3), draw)


def draw_ngrams(metrics: Mapping[str, NgramKL], path: Path) -> Path:
    """The share of every word and of every pair of neighbours, drawn against true."""

    def draw(drawn: Any) -> None:
        for axes, (name, metric) in zip(drawn.subplots(1, len(metrics)), metrics.items()):
            truth, share = metric.truth.numpy(), (metric.counts / metric.total).numpy()
            met, least = (truth > 0) & (share > 0), truth[truth > 0].min()
            axes.loglog([least, 1], [least, 1], color="grey", linewidth=1)
            axes.scatter(truth[met], share[met], s=4)
            never = 1 - float(share[truth > 0].sum())
            axes.set(xlabel="true", ylabel="drawn", title=f"{name}, {never:.1%} of what is never true")

    return figure(path, (7, 3.4), draw)


def draw_agreement(table: Mapping[str, Row], path: Path) -> Path | None:
    """The share of dependencies that are satisfied by kind and distance, beside the bigram sampler; None: there are
    none. Hollow: fewer than CASES."""
    at = {kind: [(n, table[name]) for n, far in enumerate(DISTANCES, 1) if (name := f"agreement/{kind}/{far}") in table]
          for kind in KINDS}  # fmt: skip
    at = {kind: rows for kind, rows in at.items() if rows}
    if not at:
        return None

    def draw(drawn: Any) -> None:
        panels = np.atleast_1d(drawn.subplots(1, len(at), sharey=True))
        for axes, (kind, rows) in zip(panels, at.items()):
            floor = [(n, row.floors["bigram"]) for n, row in rows if "bigram" in row.floors]
            axes.plot(*zip(*floor) if floor else ([], []), **FLOOR, label="bigram sampler")
            axes.plot([n for n, _ in rows], [row.value for _, row in rows], color="C0", label="model")
            for filled in (True, False):
                some = [(n, row.value) for n, row in rows if (row.n >= CASES) == filled]
                axes.scatter(*zip(*some) if some else ([], []), s=28, zorder=3, edgecolors="C0",
                             color="C0" if filled else "white",
                             label=f"{CASES} cases or more" if filled else "fewer")  # fmt: skip
            axes.set(title=kind, xlabel="words apart", ylim=(-0.04, 1.04), xlim=(0.5, max(rows[-1][0], 3) + 0.5))
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("satisfied")
        below(drawn, panels[0])

    return figure(path, (1.2 + 2.4 * len(at), 3.2), draw)


def draw_table(rows: Rows, path: Path) -> Path:
    """Histograms of the lengths of rows, and of the distances of two."""
    found = rows.rows.detach().float().cpu()

    def draw(drawn: Any) -> None:
        panels = drawn.subplots(1, 2)
        length, apart = found.norm(dim=-1).numpy(), distances(some(found)).numpy()
        middle = float(length.mean())
        panels[0].hist(length, bins=30, range=(min(length.min(), 0.9 * middle), max(length.max(), 1.1 * middle)))
        panels[0].set(xlabel="length of a row", ylabel="rows")
        panels[1].hist(apart, bins=60, range=(0, apart.max()))
        panels[1].axvline(2**0.5 * middle, color="black", linestyle="--", label="at right angles")
        panels[1].set(xlabel="distance of two rows", ylabel="pairs")
        panels[1].legend(frameon=False, loc="upper left")

    return figure(path, (7, 3), draw)


# --- level by level


def draw_window(found: Levels, path: Path) -> Path:
    """Cross-entropy, the nats that each level decides, and accuracy over the log-SNR, beside the copier."""
    mine, lone = found.even, found.lone
    nats, floor = decided(mine), decided(lone)
    shown = {
        "cross-entropy, nats per position": lambda level: level.ce,
        f"nats decided per nat of log SNR\n(area: model {nats:.2f}, copier {floor:.2f})": lambda level: level.density,
        "share of tokens read": lambda level: level.accuracy,
    }

    def draw(drawn: Any) -> None:
        panels = drawn.subplots(1, len(shown), sharex=True)
        for axes, (name, of) in zip(panels, shown.items()):
            mark(axes, found.window)
            axes.plot([level.log_snr for level in lone], [*map(of, lone)], **FLOOR, label="copier (bayes)")
            axes.plot([level.log_snr for level in mine], [*map(of, mine)], **MODEL)
            axes.set(xlabel="log SNR", title=name)
            axes.title.set_fontsize("medium")
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
        below(drawn, panels[0])

    return figure(path, (11, 3.6), draw)


def mark(axes: Any, here: Window) -> None:
    """The window, and SNR* at both of its ends."""
    axes.axvspan(*here, alpha=0.15, color="C1", label="window")
    axes.axvline(here.low, color="C1", linestyle=":", label="SNR* with context")
    axes.axvline(here.high, color="C1", linestyle="--", label="SNR* without (skill)")


def draw_warp(found: Levels, rows: Rows, path: Path) -> Path:
    """Where along the log-SNR training looks, beside the resolution law."""
    device, (low, high) = rows.weight.device, span(float(rows.radius_squared))
    law = Gumbel(-found.window.low, low, high, SCALE).to(device)
    ends = max(low, found.window.low - 5), min(high, found.window.high + 6)
    shown = torch.linspace(*ends, 241, dtype=torch.float64, device=device)

    def draw(drawn: Any) -> None:
        axes = drawn.subplots()
        mark(axes, found.window)
        axes.plot(*density(law, shown), color="grey", linewidth=1, label="resolution law")
        axes.plot(*density(found.schedule, shown), color="C0", label="this run")
        axes.set(xlabel="log SNR", ylabel="density of levels in training")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        drawn.legend(loc="outside right upper", frameon=False)

    return figure(path, (8, 3.2), draw)


def density(schedule: Schedule | Gumbel, log_snr: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(log-SNR, share of t per nat) between the levels given, of any schedule or warp."""
    with torch.no_grad():
        t = time_of(schedule, log_snr)
    middle, share = (log_snr[1:] + log_snr[:-1]) / 2, -t.diff() / log_snr.diff()
    return middle.cpu().numpy(), share.cpu().numpy()
