"""Sentences that a grammar makes, as a source of rows: endless streams, each sentence by its number."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from types import MappingProxyType

import numpy as np

from packages.text import table
from packages.text.fluency import Fluency
from packages.text.grammar import Grammar
from packages.text.rows import fingerprints
from packages.text.vocabulary import EOS, PAD, Vocabulary
from projects.text.options import Laid, Options, Unasked, digest, known_words, padded

STREAMS = {"train": 0, "val": 1, "test": 2}  # seeds of the world, not of the run: every run sees the same sentences
ENDLESS = 2**48  # sentences of a stream
BLOCK = 4096  # sentences made at once
NOVELTY_WINDOW = 200_000  # training sentences that a novel one is not among


class Made(Unasked):
    """Sentences of a grammar: endless streams, each sentence by its number; padding is modelled."""

    estimated, whole, even, padding = False, True, True, "behind EOS, modelled and counted"
    joined = staticmethod(" ".join)
    tokens_per_word = 1.0
    counted: Mapping[str, float] = MappingProxyType({})  # the truth is known

    def __init__(self, options: Options):
        if options.packing not in (None, "eos_pad"):
            raise ValueError(f"data.packing is {options.packing}; rows of the grammar are eos_pad, leave it out.")
        self.options, self.grammar = options, Grammar(options.level)
        self.vocabulary = Vocabulary(self.grammar.words)
        self._blocks = lru_cache(maxsize=4)(self._made)

    @cached_property
    def length(self) -> int:
        needed = self.grammar.max_words + 1
        length = self.options.length or -(-needed // 16) * 16
        if length < needed:
            raise ValueError(
                f"data.length is {length}, but sentences of {self.options.level} have up to {needed - 1} words and EOS;"
                f" give {needed} or more"
            )
        return length

    @property
    def judged(self) -> str:
        return "other sentences of the grammar"

    @property
    def sha256(self) -> str:
        return digest("grammar", self.options.level, self.vocabulary.sha256, self.length)

    @property
    def entropy(self) -> float:
        return self.grammar.entropy().per_token

    def size(self) -> int:
        return ENDLESS

    def units(self) -> None:
        """Every position of every row counts."""

    def evaluated(self, stream: str, wanted: int) -> np.ndarray:
        return np.arange(wanted)

    def shares(self) -> np.ndarray:
        """Exact."""
        grammar, found = self.grammar, np.zeros(len(self.vocabulary))
        lengths = grammar.length_distribution()
        tokens = float(lengths @ np.arange(len(lengths))) + 1
        found[[*self.vocabulary.encode(grammar.words), EOS]] = grammar.unigram() * tokens / self.length
        found[PAD] = 1 - tokens / self.length
        return found

    def describe(self) -> dict[str, str]:
        return {
            "source": f"grammar {self.options.level}, made in memory, {len(self.vocabulary)} ids",
            "sentences": f"up to {self.grammar.max_words} words in rows of {self.length}, padding modelled",
            "entropy": f"{self.entropy:.4f} nats per word or EOS, exact",
            "vocabulary": self.vocabulary.sha256[:16],
            "sha256": self.sha256,
        }

    def row(self, text: str) -> list[int]:
        known = known_words(text, self.vocabulary, f"lexicon of {self.options.level}")
        return padded(self.vocabulary.encode(known), self.length, text)

    def take(self, stream: str, index: np.ndarray) -> Laid:
        """Words, EOS, PAD of the sentences of these numbers."""
        number, place = np.divmod(index, BLOCK)
        ids = np.empty((len(index), self.length), np.int64)
        for n in np.unique(number).tolist():
            ids[number == n] = self._blocks(STREAMS[stream], n)[place[number == n]]
        return Laid(ids, np.ones(ids.shape, bool), np.zeros(ids.shape, bool))

    def _made(self, seed: int, number: int) -> np.ndarray:
        """A block of a stream: [BLOCK, L]. Many sentences at once cost a tenth of one batch after the other."""
        words = self.grammar.ids(seed, np.arange(number * BLOCK, (number + 1) * BLOCK))
        named = np.array([*self.vocabulary.encode(self.grammar.words), PAD])
        rows = np.full((BLOCK, self.length), PAD, np.int64)
        rows[:, : words.shape[1]] = named[words]
        rows[np.arange(BLOCK), (words < len(self.grammar.words)).sum(1)] = EOS
        return rows

    @cached_property
    def _seen(self) -> np.ndarray:
        return fingerprints(each.words for each in self.grammar.samples(STREAMS["train"], range(NOVELTY_WINDOW)))

    def metrics(self) -> dict[str, Fluency]:
        return table.metrics(self.grammar, self._seen, sync_on_compute=False)

    def floors(self, n: int) -> table.Floors:
        return table.floors_of(self.grammar, n, self._seen)
