"""BLEU (Papineni et al. 2002): of texts against references, and of every sentence of a set against all its others
(self-BLEU: Zhu et al. 2018), exactly.

An n-gram is clipped at the most times any one other sentence says it: the two highest counts of each n-gram decide,
so the whole set costs a few sorts, with words as integers.
"""

import functools
import math
import operator
from collections import Counter
from collections.abc import Sequence

import numpy as np

from packages.text.rows import Words, grams

NO_MATCH = 0.1  # counts as so many matches (Chen & Cherry 2014, method 1)


def against_others(words: np.ndarray, lengths: np.ndarray, order: int = 4) -> np.ndarray:
    """[n] in [0, 1]; words: [sum of lengths] codes 0 .. V - 1, one sentence after another; lengths: [n] >= 1, n >= 2.

    Geometric mean of the clipped precisions of orders 1 .. min(order, length), times the brevity penalty.
    """
    owner = np.repeat(np.arange(len(lengths)), lengths)
    left = np.cumsum(lengths)[owner] - np.arange(len(words))  # words from here to the end of the sentence
    runs, logs = np.zeros_like(words), np.zeros(len(lengths))
    for n in range(1, order + 1):
        _, runs = np.unique(runs * (words.max() + 1) + np.roll(words, 1 - n), return_inverse=True)
        whole = left >= n
        matched, said = _clipped(runs[whole], owner[whole], len(lengths))
        has = said > 0
        logs[has] += np.log(np.where(matched > 0, matched, NO_MATCH)[has] / said[has])
    return np.exp(logs / np.minimum(lengths, order)) * brevity(lengths)


def _clipped(runs: np.ndarray, owner: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(clipped matches, n-grams) of each of n sentences; runs, owner: [n-grams] which run, whose."""
    width = runs.max(initial=0) + 1
    pairs, times = np.unique(owner * width + runs, return_counts=True)
    owners, kinds = pairs // width, pairs % width
    most = np.lexsort((-times, kinds))  # by run, the sentence that says it most first
    _, first, kind = np.unique(kinds[most], return_index=True, return_inverse=True)
    alone = np.diff(first, append=len(most)) == 1
    second = np.where(alone, 0, times[most][np.minimum(first + 1, len(most) - 1)])
    own = owners[most] == owners[most][first][kind]
    limit = np.where(own, second[kind], times[most][first][kind])
    matched = np.bincount(owners[most], np.minimum(times[most], limit), n)
    return matched, np.bincount(owners, times, n)


def brevity(lengths: np.ndarray) -> np.ndarray:
    """[n] exp(1 - r / c) where c, a sentence's length, is below r, the closest length among the others; else 1."""
    kinds, times = np.unique(lengths, return_counts=True)
    return np.array([_brevity(length, kinds[(kinds != length) | (times > 1)]) for length in kinds])[
        np.searchsorted(kinds, lengths)
    ]


def _brevity(length: int, others: np.ndarray) -> float:
    """Of two closest lengths the shorter counts."""
    closest = others[np.argmin(np.abs(others - length))]  # sorted: argmin takes the shorter
    return float(np.exp(min(0.0, 1 - closest / length)))


def against_references(said: Sequence[Words], references: Sequence[Sequence[Words]], order: int = 4) -> float:
    """BLEU in [0, 1] of texts, each against references of its own, of which there is one at least (Papineni et al.).

    Matches and n-grams are summed over all texts before precisions are taken. nan without texts.
    """
    matched, total, short, long = np.zeros(order), np.zeros(order), 0, 0
    for words, meant in zip(said, references):
        short += min((abs(len(each) - len(words)), len(each)) for each in meant)[1]
        long += len(words)
        for n in range(order):
            counts = [Counter(grams(each, n + 1)) for each in (words, *meant)]
            most = functools.reduce(operator.or_, counts[1:])
            matched[n] += (counts[0] & most).total()
            total[n] += counts[0].total()
    if not len(said):
        return math.nan
    logs = np.log(np.maximum(matched, NO_MATCH) / np.maximum(total, 1))
    return float(np.exp(logs.mean() + min(0.0, 1 - short / max(long, 1))))
