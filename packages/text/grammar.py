"""A probabilistic grammar with everything known about it: sentences by (seed, index), exact probabilities, parses.

    grammar = Grammar("small")
    grammar.sample(0, 10**9).words
    grammar.log_prob(("the", "dog", "sleeps", "."))

Sentences longer than `max_words` are excluded exactly: every probability is that of the conditioned distribution.
Knows the levels of `lexicon`, no vocabulary and no special tokens; what it calls the end is one more token.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, log

import numpy as np

from packages.text.derivation import Derivation
from packages.text.exact import Exact
from packages.text.lexicon import LEVELS
from packages.text.parser import Parser, Tree


@dataclass(frozen=True)
class Sentence:
    """Words; how they are derived is found when asked for."""

    words: tuple[str, ...]
    grammar: "Grammar" = field(repr=False, compare=False)

    @cached_property
    def tree(self) -> Tree:
        found = self.grammar.parse(self.words)
        if found is None:
            raise ValueError(f"{' '.join(self.words)!r} is no sentence of {self.grammar.level}")
        return found

    @property
    def pos(self) -> tuple[str, ...]:
        """The category of each word; a mark or word that stands for itself is its own."""
        return tuple(leaf.category for leaf in self.tree.leaves())


@dataclass(frozen=True)
class Entropy:
    """Nats. A sentence's tokens are its words and the end."""

    per_sentence: float
    per_token: float


class Grammar:
    """One level, conditioned on at most `max_words` words (None: the level's own limit)."""

    def __init__(self, level: str = "micro", max_words: int | None = None) -> None:
        if level not in LEVELS:
            raise ValueError(f"there is no grammar {level!r}; the levels are {', '.join(LEVELS)}")
        self.level, self.language = level, LEVELS[level]
        self.max_words = max_words or self.language.max_words
        self.plain = self.language.plain()
        self.words = tuple(sorted({word for found in self.plain.lexicon.values() for _, word in found}))
        if not self._exact.inside[self.plain.start].any():
            raise ValueError(f"no sentence of {level} has {self.max_words} words or fewer; raise max_words")

    @cached_property
    def _exact(self) -> Exact:
        return Exact(self.plain, self.max_words)

    @cached_property
    def _derivation(self) -> Derivation:
        return Derivation(self.plain, self.words, self.max_words)

    @cached_property
    def _parser(self) -> Parser:
        return Parser(self.plain)

    def ids(self, seed: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """[B, max_words] uint16, places in `words` of the sentences (seed, index); len(words) from the end on."""
        return self._derivation(seed, indices)

    def samples(self, seed: int, indices: Iterable[int]) -> list[Sentence]:
        """The sentences (seed, index), the same ones in any company."""
        named = np.array([*self.words, ""])[self.ids(seed, np.fromiter(indices, np.int64))]
        return [Sentence(tuple(word for word in row if word), self) for row in named.tolist()]

    def sample(self, seed: int, index: int) -> Sentence:
        return self.samples(seed, [index])[0]

    def log_prob(self, words: Sequence[str]) -> float:
        """Nats, summed over derivations; -inf if the words are no sentence."""
        inside = self._chart(words)[0]
        return log(inside) - log(self._exact.total) if inside else -inf

    def parse(self, words: Sequence[str]) -> Tree | None:
        """The best derivation, None if the words are no sentence."""
        inside, chart = self._chart(words)
        return chart.tree(self.plain.start, 0, len(words)) if inside else None

    def _chart(self, words: Sequence[str]):
        chart = self._parser.chart(words)
        if len(words) > self.max_words:
            return 0.0, chart
        return chart.spans(self.plain.start, 0).get(len(words), (0.0,))[0], chart

    def entropy(self) -> Entropy:
        return Entropy(self._exact.entropy, self._exact.entropy / self._exact.tokens)

    def length_distribution(self) -> np.ndarray:
        """[max_words + 1], probability of each number of words."""
        return self._exact.lengths

    @cached_property
    def _unigram(self) -> np.ndarray:
        return self._exact.unigram(self.words)

    @cached_property
    def _bigram(self) -> np.ndarray:
        return self._exact.bigram(self.words)

    def unigram(self) -> np.ndarray:
        """[W + 1], expected share of each word among tokens, then of the end; sums to 1."""
        return self._unigram

    def bigram(self) -> np.ndarray:
        """[W + 1, W + 1], share of each pair: previous word or the beginning (last row), next word or the end (last
        column); sums to 1."""
        return self._bigram
