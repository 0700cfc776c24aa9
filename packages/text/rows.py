"""Rows of words as a vocabulary shows them, the sentences in them, and 64-bit names of sentences and n-grams.

Nothing is skipped: a special that stands inside a sentence is one of its words (no parser will know it). Knows words,
not ids: `vocabulary.words(ids)` is a row.
"""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import TypeVar

import numpy as np

from packages.text.vocabulary import SPECIALS

T = TypeVar("T")
Words = Sequence[str]
PAD, BOS, EOS = SPECIALS[0], SPECIALS[2], SPECIALS[3]


def sentence(row: Words) -> Words:
    """The words before the first EOS, if nothing but PAD follows it; a row that does not end so counts whole.

    Hence padding changes nothing behind a proper end, and everything anywhere else; sentences without EOS (a
    grammar's, or rows cut to their lengths) are what they are. sentence(sentence(row)) == sentence(row).
    """
    words = tuple(row)
    if EOS not in words:
        return words
    end = words.index(EOS)
    return words[:end] if all(word == PAD for word in words[end + 1 :]) else words


def grams(words: Sequence[T], n: int) -> Iterator[tuple[T, ...]]:
    """Its len(words) - n + 1 runs of n words, none if it is shorter."""
    return zip(*(words[start:] for start in range(n)))


def fingerprint(words: Iterable[str]) -> int:
    """64 bits of BLAKE2b, unsigned, the same in every process: the name of a sentence or of an n-gram."""
    return int.from_bytes(blake2b("\n".join(words).encode(), digest_size=8).digest(), "little")


def fingerprints(sentences: Iterable[Iterable[str]]) -> np.ndarray:
    """[distinct] uint64, sorted: all that `Novelty` keeps of the training sentences; the iterable is read once."""
    return np.unique(np.fromiter(map(fingerprint, sentences), np.uint64))
