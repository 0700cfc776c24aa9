"""Metrics and floors of text that has no grammar: what held-out sentences count stands in for what a grammar knows.

    measured = measure(drawn, against(held_out, seen))
    rows = beside(measured, floors(training, held_out, against(held_out, seen), n, longest))

The true floor is other true sentences, the training ones, against the same held-out ones. Knows words and no ids.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeVar

import numpy as np
import torch

from packages.text.floors import SEED
from packages.text.fluency import Fluency, LengthTV, NgramKL
from packages.text.rows import BOS, EOS, Words, grams
from packages.text.table import Value, measure, metrics

Item = TypeVar("Item")


class CountedKL(NgramKL):
    """`NgramKL` whose truth is counted from sentences, and holds only the runs that occur: V^n may be billions.

    truth [cells] are the shares of those runs; a run that never occurs there counts in N alone.
    """

    def __init__(self, truth: Iterable[Words], n: int, **kwargs: Any):
        Fluency.__init__(self, **kwargs)
        self.order = n
        counted = Counter(run for words in truth for run in self.runs(words))
        self.places: dict[Words, int] = {run: place for place, run in enumerate(counted)}
        shares = torch.tensor([*counted.values()], dtype=torch.float64) / counted.total()
        self.register_buffer("truth", shares, persistent=False)
        self.tally("total")
        self.tally("counts", shape=(len(counted),))

    def runs(self, words: Words) -> Iterator[Words]:
        return grams([*[BOS] * (self.order - 1), *words, EOS], self.order)

    def see(self, sentences: list[Words]) -> None:
        found = Counter(run for words in sentences for run in self.runs(words))
        known = [(self.places[run], times) for run, times in found.items() if run in self.places]
        places, times = torch.tensor(known, dtype=torch.int64, device=self.device).reshape(-1, 2).T
        self.total += found.total()
        self.counts[places] += times


def against(
    held_out: Sequence[Words], seen: np.ndarray | None = None, lengths: bool = True, **kwargs: Any
) -> dict[str, Fluency]:
    """All metrics that held-out sentences give a truth for, or that need none.

    seen: `rows.fingerprints` of training sentences; None: no novelty. lengths: whether they are the sentences' own.
    """
    counts = np.bincount([len(words) for words in held_out])
    found: dict[str, Fluency] = {"unigram_kl": CountedKL(held_out, 1, **kwargs)}
    found["bigram_kl"] = CountedKL(held_out, 2, **kwargs)
    if lengths:
        found["length_tv"] = LengthTV(counts / counts.sum(), **kwargs)
    return found | metrics(None, seen, **kwargs)


def floors(
    training: Sequence[Words], held_out: Sequence[Words], fresh: Mapping[str, Fluency], n: int, longest: int
) -> dict[str, dict[str, Value]]:
    """The metrics `fresh`, which have seen nothing, of n sentences each: true ones, words alone, a chain of pairs."""
    pool = Pool(training)
    rows = {"true": spread(training, n), "unigram": pool.unigram(n, longest), "bigram": pool.bigram(n, longest)}
    found = {name: measure(each, deepcopy(dict(fresh))) for name, each in rows.items()}
    if "novel" in fresh:  # what trained is not
        found["true"] |= measure(spread(held_out, n), {"novel": deepcopy(fresh["novel"])})
    return found


def spread(items: Sequence[Item], n: int) -> list[Item]:
    """n of them, from all over; with fewer than n, some again."""
    return [items[place] for place in np.linspace(0, len(items), n, endpoint=False).astype(int)]


class Pool:
    """All words of sentences in a row, each sentence ended: where single words and pairs are drawn from."""

    def __init__(self, sentences: Sequence[Words]):
        words = [word for each in sentences for word in (*each, EOS)]
        self.names, self.ids = np.unique(words, return_inverse=True)
        self.end = int(np.searchsorted(self.names, EOS))
        self.places = np.argsort(self.ids, kind="stable")  # of word 0, of word 1, ...
        self.first = np.searchsorted(self.ids[self.places], np.arange(len(self.names) + 1))

    def unigram(self, n: int, longest: int, seed: int = SEED) -> list[Words]:
        """Every word drawn for itself, until the first EOS or `longest`."""
        return self._cut(self.ids[np.random.default_rng(seed).integers(len(self.ids), size=(n, longest))])

    def bigram(self, n: int, longest: int, seed: int = SEED) -> list[Words]:
        """After each word what stands behind it at a place drawn from all of its places, from EOS to EOS."""
        chances = np.random.default_rng(seed).random((n, longest))
        rows, here = np.empty((n, longest), np.int64), np.full(n, self.end)
        for place in range(longest):
            first, count = self.first[here], np.diff(self.first)[here]
            behind = self.places[first + (chances[:, place] * count).astype(int)] + 1
            rows[:, place] = here = self.ids[behind % len(self.ids)]
        return self._cut(rows)

    def _cut(self, rows: np.ndarray) -> list[Words]:
        ends = np.where((rows == self.end).any(1), (rows == self.end).argmax(1), rows.shape[1])
        return [tuple(self.names[row[:end]].tolist()) for row, end in zip(rows, ends)]
