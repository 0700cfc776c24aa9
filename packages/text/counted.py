"""What counting alone makes of a text: nats per token of held-out ids by the shares of ids in training, and by pairs of
neighbours. They are floors of a likelihood, as the samplers of `empirical.py` are of sentences.

Add one (Laplace) for single ids, Witten & Bell (1991) for pairs, so nothing is impossible. Knows ids, no words.
"""

from collections.abc import Iterable

import numpy as np

from packages.text.vocabulary import BOS


def unigram(counts: np.ndarray, held_out: np.ndarray) -> float:
    """counts [V]: of ids in training. held_out [N]: ids."""
    return -float(np.log(shares(counts)[held_out]).mean())


def bigram(training: Iterable[np.ndarray], held_out: Iterable[np.ndarray], size: int) -> float:
    """Of documents of ids below `size`; the first of each is read behind BOS."""
    keys, (before, after) = _pairs(training, size), divmod(joined := _pairs(held_out, size), size)
    kinds, times = np.unique(keys, return_counts=True)
    seen, followers = np.bincount(keys // size, minlength=size), np.bincount(kinds // size, minlength=size)
    place = np.minimum(np.searchsorted(kinds, joined), len(kinds) - 1)
    count = np.where(kinds[place] == joined, times[place], 0)
    rest = shares(np.bincount(keys % size, minlength=size))[after]
    total = seen[before] + followers[before]
    chance = np.where(total > 0, (count + followers[before] * rest) / np.maximum(total, 1), rest)
    return -float(np.log(chance).mean())


def shares(counts: np.ndarray) -> np.ndarray:
    return (counts + 1) / (counts.sum() + len(counts))


def _pairs(documents: Iterable[np.ndarray], size: int) -> np.ndarray:
    """id before * size + id, of every id of every document."""
    rows = [np.concatenate([[BOS], ids]).astype(np.int64) for ids in documents]
    return np.concatenate([row[:-1] * size + row[1:] for row in rows])
