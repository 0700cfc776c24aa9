"""What drawn sentences are worth: every metric of `packages/text` beside the samplers that learn nothing.

The true sampler is the noise of the metrics themselves, so the excess over it is what counts. Knows rows of words; not
how they were drawn.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer

from packages.text.rows import Words, sentence
from packages.text.table import Row, beside, cells, measure
from projects.text import figures
from projects.text.data import TextData
from projects.text.figures import CASES
from projects.text.health import health
from projects.text.levels import Levels
from projects.text.likelihood import NLLBound
from projects.text.pictures import Moments, spoken
from projects.text.rounding import Rows
from projects.text.sampling import Sampling
from projects.text.watching import LITTLE_ENTROPY
from shared.training import layout
from shared.training.logs import of_every_rank
from shared.training.report import Metric, Results, interval
from shared.training.tables import replace_text

SHOWN = 24  # sentences in the report


def off(value: float, true: float) -> float:
    return value / true - 1


STANDING = {  # metric: what its name ends in when it is set beside that of the true sampler, and how
    "unigram_kl": ("excess", operator.sub),
    "bigram_kl": ("excess", operator.sub),
    "length_tv": ("excess", operator.sub),
    "distinct_2": ("off", off),
    "unique": ("off", off),
    "novel": ("share", operator.truediv),
}


class Evaluation:
    """Gathers drawn sentences and losses of held-out ones over steps and ranks, and measures them.

    moments: of the walk of the first sentence. levels: what is known of the denoiser by level of noise; None of a twin.
    """

    def __init__(self, data: TextData, bound: NLLBound):
        self.data, self.bound, self.drawn, self.losses = data, bound, list[Words](), list[float]()
        self.moments: Moments | None = None
        self.levels: Levels | None = None

    def add(self, rows: list[list[str]], moments: Moments | None = None) -> None:
        self.drawn += rows
        self.moments = moments or self.moments

    def gather(self, trainer: Trainer) -> None:
        self.drawn = [row for rows in of_every_rank(trainer, self.drawn) for row in rows]
        self.losses = [loss for losses in of_every_rank(trainer, self.losses) for loss in losses]
        self.bound.gather(trainer)

    def results(self, folder: Path, options: Sampling, rows: Rows) -> Results:
        """The table of metrics, samples and pictures."""
        data, metrics, samples = self.data, self.data.source.metrics(), folder / "samples"
        samples.mkdir(exist_ok=True)  # a run without snapshots has none
        said, floors = [data.source.said(row) for row in self.drawn], data.source.floors(len(self.drawn))
        table = [*beside(measure(said, metrics), floors), *data.source.faithful(self.drawn)]
        found, sentences = {row.name: row for row in table}, [sentence(row) for row in said]
        return Results(
            "; ".join([headline(found, len(sentences)), *self.bound.said(), *self.praise(found)]),
            [
                *self.bound.metrics(),
                *map(metric, filter(top, found.values())),
                *standing(found),
                *held_out(self.losses),
                *(self.levels.metrics() if self.levels else []),
            ],
            [
                ("Samples, unselected", shown(self.drawn, data.source.joined)),
                *([("By level of noise", self.levels.table())] if self.levels else []),
                *([("Agreement by distance", by_distance(found))] if data.grammar else []),
                ("The table of rows", health(rows, data.vocabulary, sentences)),
            ],
            [*pictures(metrics, found, rows, samples), *self.written(rows, samples)],
            {
                "evaluated on": f"{data.describe()['source']}: {data.source.judged}",
                "walk": f"{options.kind}, {options.steps} steps",
                "likelihood": f"{len(self.bound.rows):,} held-out rows from all over; perplexity is per word or end of"
                f" text, {data.source.tokens_per_word:.3f} tokens",
                "padding": data.source.padding,
            },
        )

    def praise(self, table: Mapping[str, Row]) -> list[str]:
        """For the headline, where the earlier table finds excellent what says nothing."""
        parse = table.get("parse")
        return self.levels.said(None if parse is None else parse.value) if self.levels else []

    def written(self, rows: Rows, folder: Path) -> list[Path]:
        """levels.md with its pictures, and trajectory.md."""
        files = []
        if self.levels is not None:
            replace_text(folder / "levels.md", self.levels.text())
            files += [folder / "levels.md", figures.draw_window(self.levels, folder / "window.png")]
            files.append(figures.draw_warp(self.levels, rows, folder / "warp.png"))
        return [*files, *([self.moments.write(folder, self.drawn[0])] if self.moments else [])]


def standing(table: Mapping[str, Row]) -> list[Metric]:
    """What goals count: metrics as they stand to the true sampler's, and the worst of agreement."""
    found = []
    for name, (end, to) in STANDING.items():
        if name in table and (true := table[name].floors.get("true")):
            row = table[name]
            floors = {floor: to(value, true) for floor, value in row.floors.items()}
            found.append(Metric(f"{name}_{end}", to(row.value, true), row.n, floors=floors))
    often = [row for row in table.values() if row.name.startswith("agreement/") and not top(row) and row.n >= CASES]
    worst = min(often, key=lambda row: row.value, default=None)
    return [*found, *([Metric("agreement_least", worst.value, worst.n, floors=dict(worst.floors))] if worst else [])]


def pictures(metrics: Mapping[str, Any], table: Mapping[str, Row], rows: Rows, folder: Path) -> list[Path]:
    """Of metrics that have seen what was drawn, and of the table of rows."""
    ngrams = {name: metrics[f"{name}_kl"] for name in ("unigram", "bigram")}
    lengths = [figures.draw_lengths(metrics["length_tv"], folder / "lengths.png")] if "length_tv" in metrics else []
    agreement = figures.draw_agreement(table, folder / "agreement.png")
    found = [*lengths, figures.draw_ngrams(ngrams, folder / "ngrams.png"), *([agreement] if agreement else [])]
    return [*found, figures.draw_table(rows, folder / "rows.png")]


def held_out(losses: list[float]) -> list[Metric]:
    """Cross-entropy where training looks, on fixed paths of held-out sentences, nats per token; no likelihood."""
    return [Metric("cross_entropy", float(np.mean(losses)), len(losses), *interval(losses))] if losses else []


def metric(row: Row) -> Metric:
    """A line of the report; the parse rate with its interval."""
    parsed = round(row.value * row.n) if row.name == "parse" else None
    low, high = (None, None) if parsed is None else interval([1.0] * parsed + [0.0] * (row.n - parsed))
    return Metric(row.name, row.value, row.n, low, high, dict(row.floors))


def top(row: Row) -> bool:
    """Whether a metric is more than a part of another."""
    return row.name.count("/") < 2


def headline(table: Mapping[str, Row], count: int) -> str:
    """Parse rate, what is left of the divergences when the true sampler's are taken off, and a collapse."""
    excess = {name: table[name].excess or 0.0 for name in ("unigram_kl", "bigram_kl", "length_tv") if name in table}
    said = ", ".join(f"{name.replace('_', ' ')} {value:+.3f}" for name, value in excess.items())
    parsed = f"{table['parse'].value:.1%} of {count:,} sentences parse" if "parse" in table else f"{count:,} sentences"
    return "; ".join([parsed, f"over the true sampler: {said}", *given(table), *collapse(table)])


def given(table: Mapping[str, Row]) -> list[str]:
    """How well what was given is said, beside people."""
    said = {"bleu": ("BLEU", ".3f"), "fields": ("fields said", ".1%")}
    found = [(table[name], *how) for name, how in said.items() if name in table]
    return [f"{name} {row.value:{form}}, people {row.floors.get('true', math.nan):{form}}" for row, name, form in found]


def collapse(table: Mapping[str, Row]) -> list[str]:
    """Entropy and repeats of words that hardly vary, which no likelihood shows."""
    entropy, repeats = (table[name].value if name in table else 0.0 for name in ("unigram_entropy", "repeat_3"))
    if entropy >= LITTLE_ENTROPY:
        return []
    return [f"collapsed: entropy of the words {entropy:.2f} nats, {repeats:.0%} of 3-grams stand twice in a sentence"]


def shown(rows: list[Words], joined: Callable[[Words], str]) -> str:
    """The first sentences as a list in markdown."""
    return "\n".join(f"- {spoken(row, joined)}" for row in rows[:SHOWN])


def by_distance(table: Mapping[str, Row]) -> str:
    """What `top` leaves out, as a table in markdown."""
    return "\n".join(layout.markdown(*cells(row for row in table.values() if not top(row))))
