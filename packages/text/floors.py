"""Sentences that need no learning: true ones, a unigram sampler, a bigram sampler. A metric's value on as many of them
is its floor: the true one is the noise of a plug-in estimate, the other two are what single words and pairs explain.
"""

from collections.abc import Callable

import numpy as np

from packages.text.grammar import Grammar
from packages.text.rows import Words

SEED = 20_121_212  # of floors alone; no split of the data draws from it

Sampler = Callable[[Grammar, int, int], list[Words]]


def true(grammar: Grammar, n: int, seed: int = SEED) -> list[Words]:
    """The grammar's own sentences 0 .. n - 1 of a seed."""
    return [sentence.words for sentence in grammar.samples(seed, range(n))]


def unigram(grammar: Grammar, n: int, seed: int = SEED) -> list[Words]:
    """Words drawn each for itself by the true shares, to the first EOS or `max_words`; some have no words at all."""
    return _walk(grammar, np.tile(grammar.unigram(), (len(grammar.words) + 1, 1)), n, seed)


def bigram(grammar: Grammar, n: int, seed: int = SEED) -> list[Words]:
    """The Markov chain of the true pairs from BOS, to the first EOS or `max_words`."""
    return _walk(grammar, grammar.bigram(), n, seed)


def _walk(grammar: Grammar, weights: np.ndarray, n: int, seed: int) -> list[Words]:
    """weights: [W + 1, W + 1] of (previous, next), the border last. Row i is the same for any n."""
    border, longest = len(grammar.words), len(grammar.length_distribution()) - 1
    chances = np.random.default_rng(seed).random((n, longest))
    bounds = np.cumsum(weights, 1)
    ids = np.full((n, longest + 1), border)
    for place in range(longest):
        reached = bounds[ids[:, place - 1]]  # place 0 looks at the last column, which stays border
        ids[:, place] = (reached <= chances[:, place, None] * reached[:, -1:]).sum(1)
    return [tuple(grammar.words[id] for id in row[: int(np.argmax(row == border))]) for row in ids]


FLOORS: dict[str, Sampler] = {"true": true, "unigram": unigram, "bigram": bigram}


def samplers(grammar: Grammar) -> dict[str, Sampler]:
    """FLOORS, or the true one alone where held-out pairs leave the grammar without exact shares."""
    return {"true": true} if grammar.held_out_share else FLOORS
