"""What drawn sentences are worth: every metric of `packages/text` beside the samplers that learn nothing.

The true sampler is the noise of the metrics themselves, so the excess over it is what counts. Knows rows of words; not
how they were drawn.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from lightning.pytorch import Trainer

from packages.text.rows import Words, fingerprints, sentence
from packages.text.table import Row, cells, table
from projects.text.data import STREAMS, TextData
from projects.text.health import health
from projects.text.likelihood import NLLBound
from projects.text.pictures import draw_lengths, draw_ngrams, spoken
from projects.text.rounding import Rows
from projects.text.sampling import Sampling
from shared.training import layout
from shared.training.logs import of_every_rank
from shared.training.report import Metric, Results, interval

NOVELTY_WINDOW = 200_000  # training sentences that a novel one is not among
SHOWN = 24  # sentences in the report
CASES = 100  # of a dependency at a distance, for its rate to count


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
    """Gathers drawn sentences over steps and ranks, and measures them."""

    def __init__(self, data: TextData, bound: NLLBound):
        self.data, self.bound, self.drawn = data, bound, list[Words]()

    def add(self, rows: list[list[str]]) -> None:
        self.drawn += rows

    def gather(self, trainer: Trainer) -> None:
        self.drawn = [row for rows in of_every_rank(trainer, self.drawn) for row in rows]
        self.bound.gather(trainer)

    def results(self, folder: Path, options: Sampling, rows: Rows) -> Results:
        """The table of metrics, samples and pictures."""
        grammar, sentences = self.data.grammar, [sentence(row) for row in self.drawn]
        found = {row.name: row for row in table(self.drawn, grammar, seen(self.data))}
        parses = [float(grammar.parse(each) is not None) for each in sentences]
        pictures = {"lengths.png": draw_lengths, "ngrams.png": draw_ngrams}
        return Results(
            "; ".join([headline(found, len(sentences)), *self.bound.said()]),
            [*self.bound.metrics(), *(metric(row, parses) for row in found.values() if top(row)), *standing(found)],
            [
                ("Samples, unselected", shown(self.drawn)),
                ("Agreement by distance", by_distance(found)),
                ("The table of rows", health(rows, self.data.vocabulary, sentences)),
            ],
            [draw(sentences, grammar, folder / "samples" / name) for name, draw in pictures.items()],
            {"walk": f"{options.kind}, {options.steps} steps", "tokens": "padding behind EOS is modelled and counted"},
        )


def seen(data: TextData) -> np.ndarray:
    """Fingerprints of the training sentences that a novel one is not among."""
    return fingerprints(each.words for each in data.grammar.samples(STREAMS["train"], range(NOVELTY_WINDOW)))


def standing(table: Mapping[str, Row]) -> list[Metric]:
    """What goals count: metrics as they stand to the true sampler's, and the worst of agreement."""
    found = []
    for name, (end, beside) in STANDING.items():
        if name in table and (true := table[name].floors.get("true")):
            row = table[name]
            floors = {floor: beside(value, true) for floor, value in row.floors.items()}
            found.append(Metric(f"{name}_{end}", beside(row.value, true), row.n, floors=floors))
    often = [row for row in table.values() if row.name.startswith("agreement/") and not top(row) and row.n >= CASES]
    worst = min(often, key=lambda row: row.value, default=None)
    return [*found, *([Metric("agreement_least", worst.value, worst.n, floors=dict(worst.floors))] if worst else [])]


def metric(row: Row, parses: list[float]) -> Metric:
    """A line of the report; the parse rate with its interval."""
    low, high = interval(parses) if row.name == "parse" else (None, None)
    return Metric(row.name, row.value, row.n, low, high, dict(row.floors))


def top(row: Row) -> bool:
    """Whether a metric is more than a part of another."""
    return row.name.count("/") < 2


def headline(table: Mapping[str, Row], count: int) -> str:
    """Parse rate, and what is left of the divergences when the true sampler's are taken off."""
    excess = {name: table[name].excess or 0.0 for name in ("unigram_kl", "bigram_kl", "length_tv")}
    said = ", ".join(f"{name.replace('_', ' ')} {value:+.3f}" for name, value in excess.items())
    return f"{table['parse'].value:.1%} of {count:,} sentences parse; over the true sampler: {said}"


def shown(rows: list[Words]) -> str:
    """The first sentences as a list in markdown."""
    return "\n".join(f"- {spoken(row)}" for row in rows[:SHOWN])


def by_distance(table: Mapping[str, Row]) -> str:
    """What `top` leaves out, as a table in markdown."""
    return "\n".join(layout.markdown(*cells(row for row in table.values() if not top(row))))
