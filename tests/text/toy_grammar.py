"""Forty-two sentences of two nouns and two verbs that agree, with the face of `Grammar`; exact by enumeration."""

from itertools import product
from types import SimpleNamespace

import numpy as np

from packages.text.dependencies import Dependency

NOUNS, VERBS = {"dog": 0.6, "dogs": 0.4}, {"dog": "runs", "dogs": "run"}


def clauses() -> dict[tuple[str, ...], float]:
    """A noun and its verb, .3 of them with "near" and a second noun between the two."""
    plain = {(noun, VERBS[noun]): 0.7 * p for noun, p in NOUNS.items()}
    near = {(n, "near", m, VERBS[n]): 0.3 * NOUNS[n] * NOUNS[m] for n, m in product(NOUNS, NOUNS)}
    return plain | near


def language() -> dict[tuple[str, ...], float]:
    """A clause, or (.25) two joined by "and"."""
    one = clauses()
    both = {(*a, "and", *b): 0.25 * p * q for (a, p), (b, q) in product(one.items(), one.items())}
    return {words: 0.75 * p for words, p in one.items()} | both


class Toy:
    words = ("dog", "dogs", "runs", "run", "near", "and")
    held_out_share = 0.0

    def __init__(self):
        self.language = language()
        self.max_words = max(map(len, self.language))

    def samples(self, seed, indices):
        found, shares = list(self.language), np.cumsum([*self.language.values()])
        places = [np.searchsorted(shares, np.random.default_rng([seed, i]).random()) for i in indices]
        return [SimpleNamespace(words=found[place]) for place in places]

    def log_prob(self, words):
        return float(np.log(self.language[words])) if self.parse(words) else -np.inf

    def parse(self, words):
        return words if tuple(words) in self.language else None

    def dependencies(self, words):
        """The first noun of each clause and its last word, where that is a verb."""
        starts = [0, *(place + 1 for place, word in enumerate(words) if word == "and")]
        ends = [*(place - 1 for place in starts[1:]), len(words)]
        return [
            Dependency("subject-verb", start, end - 1, VERBS[words[start]] == words[end - 1])
            for start, end in zip(starts, ends)
            if start < end and words[start] in VERBS and words[end - 1] in VERBS.values()
        ]

    def entropy(self):
        p = np.array([*self.language.values()])
        nats = float(-(p * np.log(p)).sum())
        tokens = sum(p * (len(words) + 1) for words, p in self.language.items())
        return SimpleNamespace(per_sentence=nats, per_token=nats / tokens)

    def length_distribution(self):
        return np.bincount([*map(len, self.language)], [*self.language.values()], self.max_words + 1)

    def unigram(self):
        return self.bigram().sum(0)

    def bigram(self):
        border = len(self.words)
        counts = np.zeros((border + 1, border + 1))
        for words, p in self.language.items():
            ids = [border, *map(self.words.index, words), border]
            np.add.at(counts, (ids[:-1], ids[1:]), p)
        return counts / counts.sum()
