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

from packages.text.dependencies import Dependencies, Dependency, head, subject_and_verb
from packages.text.derivation import Derivation
from packages.text.exact import Exact
from packages.text.held_out import HeldOut
from packages.text.lexicon import LEVELS
from packages.text.parser import Chart, Parser, Tree


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
        """The category of each word; a mark, or a word that stands for itself, is its own."""
        return tuple(leaf.symbol[1:-1] if leaf.symbol[0] == "'" else leaf.category for leaf in self.tree.leaves())

    @property
    def slots(self) -> dict[str, str]:
        """subject, verb, number and tense of the first clause; object and colour (the first named), where there are."""
        subject, verb = subject_and_verb(self.tree)
        lemmas = self.grammar.language.lemmas
        words = {"subject": subject, "verb": verb, **_object(self.tree, verb), **_colour(self.tree)}
        *_, number, tense = verb.symbol.split(".")
        forms = {name: str(leaf.word) for name, leaf in words.items()}
        return {name: lemmas.get(form, form) for name, form in forms.items()} | {"number": number, "tense": tense}


def _object(tree: Tree, verb: Tree) -> dict[str, Tree]:
    beside = next(node.children for node in tree.nodes() if any(child is verb for child in node.children))
    nouns = [head(child) for child in beside if child.category in ("NP", "Object")]
    return {"object": nouns[-1]} if nouns else {}


def _colour(tree: Tree) -> dict[str, Tree]:
    return {leaf.category.lower(): leaf for leaf in reversed([*tree.leaves()]) if leaf.category == "Colour"}


@dataclass(frozen=True)
class Entropy:
    """Nats. A sentence's tokens are its words and the end."""

    per_sentence: float
    per_token: float


class Grammar:
    """One level, conditioned on at most `max_words` words (None: the level's own limit).

    held_out_share: of the pairs of subject noun and verb, how many never occur; with `compositional` only sentences
    that have one are drawn, without it only those that have none. Either is a distribution without exact quantities.
    """

    def __init__(
        self,
        level: str = "micro",
        max_words: int | None = None,
        held_out_share: float = 0.0,
        compositional: bool = False,
    ) -> None:
        if level not in LEVELS:
            raise ValueError(f"there is no grammar {level!r}; the levels are {', '.join(LEVELS)}")
        if not compositional <= held_out_share < 1:
            raise ValueError(f"held_out_share is {held_out_share}; it is a share, above 0 for the compositional split")
        self.level, self.language = level, LEVELS[level]
        self.max_words = self.language.max_words if max_words is None else max_words
        self.held_out_share, self.compositional = held_out_share, compositional
        self.plain = self.language.plain()
        self.words = tuple(sorted({word for found in self.plain.lexicon.values() for _, word in found}))
        if self.max_words < 1 or not self._tables.total:
            raise ValueError(f"no sentence of {level} has {self.max_words} words or fewer; raise max_words")

    @cached_property
    def _tables(self) -> Exact:
        return Exact(self.plain, self.max_words)

    @property
    def _exact(self) -> Exact:
        if self.held_out_share:
            raise ValueError("held-out pairs leave a distribution that no table knows; set held_out_share to 0")
        return self._tables

    @cached_property
    def _derivation(self) -> Derivation:
        return Derivation(self.plain, self.words, self.max_words)

    @cached_property
    def _parser(self) -> Parser:
        return Parser(self.plain)

    @cached_property
    def _dependencies(self) -> Dependencies:
        return Dependencies(self.plain, self.language.pronouns)

    @cached_property
    def held_out(self) -> HeldOut:
        return HeldOut(self.words, self.language.lemmas, self.held_out_share)

    def ids(self, seed: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """[B, max_words] uint16, places in `words` of the sentences (seed, index); len(words) from the end on."""
        return self._derivation(seed, indices, self._refused if self.held_out_share else None)

    def _refused(self, ids: np.ndarray) -> np.ndarray:
        return self.held_out.shows(ids, self.dependencies) != self.compositional

    def samples(self, seed: int, indices: Iterable[int]) -> list[Sentence]:
        """The sentences (seed, index), the same ones in any company."""
        named = np.array([*self.words, ""])[self.ids(seed, np.fromiter(indices, np.int64))]
        return [Sentence(tuple(word for word in row if word), self) for row in named.tolist()]

    def sample(self, seed: int, index: int) -> Sentence:
        return self.samples(seed, [index])[0]

    def log_prob(self, words: Sequence[str]) -> float:
        """Nats, summed over derivations; -inf if the words are no sentence."""
        total, (inside, _) = self._exact.total, self._chart(words)
        return log(inside) - log(total) if inside else -inf

    def parse(self, words: Sequence[str]) -> Tree | None:
        """The best derivation, None if the words are no sentence."""
        inside, chart = self._chart(words)
        return chart.tree(self.plain.start, 0, len(words)) if inside else None

    def _chart(self, words: Sequence[str]) -> tuple[float, Chart]:
        """Probability of the words before conditioning, and the spans it was found with."""
        chart = self._parser.chart(words)
        if len(words) > self.max_words:
            return 0.0, chart
        return chart.spans(self.plain.start, 0).get(len(words), (0.0,))[0], chart

    def dependencies(self, words: Sequence[str]) -> list[Dependency]:
        """What decides about each other in a row, whether it is a sentence or not."""
        return self._dependencies(words, self.parse(words))

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
