"""Random derivations of a plain grammar, many at once: every sentence is a stack of symbols, every step pops one.

Sentence (seed, index) takes its random numbers from its own counter, so it is the same in any company. Derivations
that grow beyond the limit are drawn anew, which leaves exactly the distribution conditioned on the limit.
"""

from collections.abc import Callable, Sequence

import numpy as np

from packages.text.philox import uniforms
from packages.text.rules import Plain

STRIDE = 4  # steps per four random numbers; finished rows leave at their end
MAX_ATTEMPTS = 10_000

Refused = Callable[[np.ndarray], np.ndarray]  # ids [B, limit] -> [B], True where drawn anew


class Derivation:
    """Tables of a plain grammar, made for drawing. words: the order of ids."""

    def __init__(self, plain: Plain, words: Sequence[str], limit: int) -> None:
        order, self.limit, self.end = plain.order, limit, len(words)
        number = {symbol: n for n, symbol in enumerate(order)}
        self.start, self.stop = number[plain.start], len(order)
        emitted = {word: n for n, word in enumerate(words)}
        choices = [self._choices(plain, symbol, number, emitted) for symbol in order] + [[(1.0, (self.stop,), -1)]]
        flat = [choice for found in choices for choice in found]
        width = max(len(right) for _, right, _ in flat)
        self.bound = np.concatenate([_bounds(n, [p for p, _, _ in found]) for n, found in enumerate(choices)])
        self.right = np.array([[*right[::-1], *[self.stop] * (width - len(right))] for _, right, _ in flat])
        self.count = np.array([len(right) for _, right, _ in flat])
        self.word = np.array([word for _, _, word in flat])
        self.depth = _stack(plain, order) + width + 1

    @staticmethod
    def _choices(plain: Plain, symbol: str, number: dict[str, int], emitted: dict[str, int]) -> list[tuple]:
        """(probability, right side as numbers, word or -1) of each rule, or of each word of a preterminal."""
        if symbol in plain.lexicon:
            return [(p, (), emitted[word]) for p, word in plain.lexicon[symbol]]
        return [(p, tuple(number[each] for each in right), -1) for p, right in plain.rules[symbol]]

    def __call__(self, seed: int, indices: Sequence[int] | np.ndarray, refused: Refused | None = None) -> np.ndarray:
        """Ids [B, limit] uint16 of the sentences (seed, index), `len(words)` from the end of each on.

        ValueError: a sentence is refused in every attempt.
        """
        indices = np.asarray(indices, np.int64)
        ids = np.full((len(indices), self.limit), self.end, np.uint16)
        left = np.arange(len(indices))
        for attempt in range(MAX_ATTEMPTS):
            if not len(left):
                return ids
            drawn, lengths = self._draw(seed, indices[left], attempt)
            fits = lengths <= self.limit
            if refused is not None:
                fits[fits] = ~refused(drawn[fits, : self.limit])
            ids[left[fits]] = drawn[fits, : self.limit]
            left = left[~fits]
        raise ValueError(f"sentence {indices[left[0]]} was refused {MAX_ATTEMPTS} times; allow longer sentences")

    def _draw(self, seed: int, indices: np.ndarray, attempt: int) -> tuple[np.ndarray, np.ndarray]:
        """One attempt: ids [B, limit + STRIDE], lengths [B], above the limit where it was left unfinished."""
        number = len(indices)
        ids = np.full((number, self.limit + STRIDE + 1), self.end, np.uint16)
        length, height = np.zeros(number, np.int64), np.full(number, 2)
        stack = np.full((number, self.depth), self.stop)
        stack[:, 1] = self.start
        rows, block = np.arange(number), 0
        while len(rows):
            random = uniforms(seed, indices[rows], np.full(len(rows), attempt), block)
            for step in range(STRIDE):
                self._step(rows, random[:, step], stack, height, ids, length)
            rows, block = rows[(height[rows] > 1) & (length[rows] <= self.limit)], block + 1
        return ids, length

    def _step(self, rows, random, stack, height, ids, length) -> None:
        """Pop a symbol of each row, choose one of its rules, push the right side or say the word."""
        top = height[rows] - 1
        rule = np.searchsorted(self.bound, stack[rows, top] + random, side="right")
        stack[rows[:, None], top[:, None] + np.arange(self.right.shape[1])] = self.right[rule]
        height[rows] = top + self.count[rule]
        word = self.word[rule]
        said = word >= 0
        ids[rows[said], length[rows[said]]] = word[said]
        length[rows] += said


def _bounds(number: int, probabilities: list[float]) -> np.ndarray:
    """Upper ends of the parts of [number, number + 1), one per choice."""
    ends = number + np.cumsum(probabilities)
    ends[-1] = number + 1
    return ends


def _stack(plain: Plain, order: list[str]) -> int:
    """The most symbols that ever wait on the stack."""
    need: dict[str, int] = {}
    for symbol in order:
        rules = [right for _, right in plain.rules.get(symbol, ())]
        need[symbol] = max([len(r) - n - 1 + need[each] for r in rules for n, each in enumerate(r)], default=1)
    return need[plain.start]
