"""All metrics by the names of reports, of any sentences, beside the same metrics of floors.

    rows = table(sentences, grammar, seen)                                   # in this process alone
    rows = beside(values(metrics), floors_of(grammar, n, seen))              # metrics that all ranks updated
    rows = beside(measure(texts, metrics()), {"true": measure(held_out, metrics())})      # without a grammar

A goal counts `Row.excess`, the value over the true floor.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from typing import Any, NamedTuple

import numpy as np

from packages.text.dependencies import Dependency
from packages.text.floors import FLOORS, SEED, samplers
from packages.text.fluency import (
    Agreement,
    Fluency,
    GrammarCrossEntropy,
    LengthTV,
    NgramKL,
    Novelty,
    ParseRate,
    RepeatRate,
    SpecialShare,
)
from packages.text.grammar import Grammar
from packages.text.rows import Words
from packages.text.variety import DistinctN, SelfBLEU, UnigramEntropy, UniqueShare


class Remembering:
    """Reads each distinct sentence once, for the metrics that ask a grammar for the same."""

    def __init__(self, grammar: Grammar):
        self.grammar = grammar
        self.known: dict[tuple[str, Words], Any] = {}

    def parse(self, words: Words) -> Any:
        return self._kept("parse", words)

    def log_prob(self, words: Words) -> float:
        return self._kept("log_prob", words)

    def dependencies(self, words: Words) -> Sequence[Dependency]:
        return self._kept("dependencies", words)

    def _kept(self, question: str, words: Words) -> Any:
        key = question, words
        if key not in self.known:
            self.known[key] = getattr(self.grammar, question)(words)
        return self.known[key]


def metrics(grammar: Grammar | None = None, seen: np.ndarray | None = None, **kwargs: Any) -> dict[str, Fluency]:
    """Name -> metric. grammar: None for those that need only sentences; with held-out pairs, without the exact ones.

    seen: `rows.fingerprints` of training sentences; None: no novelty. kwargs: of torchmetrics; `compute` asks all ranks
    of a process group, with sync_on_compute=False this one alone.
    """
    asked = Remembering(grammar) if grammar else None
    found: dict[str, Fluency] = {}
    if asked:
        found["parse"] = ParseRate(asked, **kwargs)
        found["agreement"] = Agreement(asked.dependencies, **kwargs)
    if grammar and asked and not grammar.held_out_share:
        found["cross_entropy_gap"] = GrammarCrossEntropy(asked, grammar.entropy().per_token, **kwargs)
        found["unigram_kl"] = NgramKL(grammar.words, grammar.unigram(), **kwargs)
        found["bigram_kl"] = NgramKL(grammar.words, grammar.bigram(), **kwargs)
        found["length_tv"] = LengthTV(grammar.length_distribution(), **kwargs)
    found["distinct_2"] = DistinctN(2, **kwargs)
    found["unique"] = UniqueShare(**kwargs)
    found["self_bleu"] = SelfBLEU(4, **kwargs)
    found["unigram_entropy"] = UnigramEntropy(**kwargs)
    found["repeat_3"] = RepeatRate(3, **kwargs)
    found["special"] = SpecialShare(**kwargs)
    if seen is not None:
        found["novel"] = Novelty(seen, asked, **kwargs)
    return found


class Value(NamedTuple):
    """A metric's value, measured on n of what it counts (`of`)."""

    value: float
    n: int
    unit: str
    of: str


def values(metrics: Mapping[str, Fluency]) -> dict[str, Value]:
    """By the metric's name and that of the part: "parse", "agreement", "agreement/quotes", "agreement/quotes/5"."""
    return {
        name + part: Value(value, n, metric.unit, metric.of)
        for name, metric in metrics.items()
        for part, value, n in zip(metric.parts, *(each.reshape(-1).tolist() for each in metric.compute()))
    }


def measure(rows: Iterable[Words], metrics: Mapping[str, Fluency]) -> dict[str, Value]:
    """The metrics, which have seen nothing yet, of rows of words with specials shown."""
    rows = list(rows)
    for metric in metrics.values():
        metric.update(rows)
    return values(metrics)


Floors = Mapping[str, Mapping[str, Value]]  # sampler -> metric -> value


def floors_of(grammar: Grammar, n: int, seen: np.ndarray | None = None, seed: int = SEED) -> Floors:
    """Every metric of n sentences of each sampler; in this process alone."""
    return {
        name: measure(sampler(grammar, n, seed), metrics(grammar, seen, sync_on_compute=False))
        for name, sampler in samplers(grammar).items()
    }


class Row(NamedTuple):
    """A metric beside what samplers without learning reach with as many sentences."""

    name: str
    value: float
    n: int
    unit: str
    of: str
    floors: dict[str, float]

    @property
    def excess(self) -> float | None:
        """Over the true sampler."""
        return self.value - self.floors["true"] if "true" in self.floors else None


def beside(measured: Mapping[str, Value], floors: Floors) -> list[Row]:
    """One row per metric that there was something to measure for; a floor likewise."""
    reached = {floor: {k: v.value for k, v in found.items() if not isnan(v.value)} for floor, found in floors.items()}
    return [
        Row(name, *value, {floor: found[name] for floor, found in reached.items() if name in found})
        for name, value in measured.items()
        if not isnan(value.value)
    ]


def table(
    rows: Iterable[Words], grammar: Grammar, seen: np.ndarray | None = None, floors: Floors | None = None
) -> list[Row]:
    """All metrics of rows of words, specials shown, beside their floors; in this process alone.

    floors: what `floors_of` gave for as many sentences; None: ask it now, which is three times the work.
    """
    rows = list(rows)
    measured = measure(rows, metrics(grammar, seen, sync_on_compute=False))
    return beside(measured, floors or floors_of(grammar, len(rows), seen))


def cells(rows: Iterable[Row]) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of text, for a console or a report."""
    head = ["metric", "value", *FLOORS, "excess over true", "unit", "n"]
    return head, [
        [row.name, *map(_said, [row.value, *map(row.floors.get, FLOORS), row.excess]), row.unit, f"{row.n:,} {row.of}"]
        for row in rows
    ]


def _said(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
