"""Exact quantities of a plain grammar whose sentences are at most `limit` words long, by dynamic programming over
(symbol, length): inside p(A, n), the probability that A derives n words; expected counts of (A, n) in a sentence.

With counts everything expected is a sum: the entropy over rules, the unigram over preterminals, the bigram over the
seams between neighbours (what stands last in the left one, first in the right one, by length).
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from packages.text.rules import Plain

Binary = tuple[float, str, str | None]  # probability, left child, right child


class Exact:
    """Tables of one grammar. Symbols in topological order, right sides of three and more cut in two at new symbols."""

    def __init__(self, plain: Plain, limit: int) -> None:
        self.limit, self.start, self.lexicon = limit, plain.start, plain.lexicon
        self.rules: dict[str, list[Binary]] = {}
        for symbol in plain.order:
            self.rules[symbol] = [(p, right[0], self._rest(right[1:])) for p, right in plain.rules.get(symbol, ())]
        self.inside = self._inside()

    def _rest(self, right: tuple[str, ...]) -> str | None:
        if len(right) < 2:
            return right[0] if right else None
        name = " ".join(right)
        if name not in self.rules:
            rest = self._rest(right[1:])
            self.rules[name] = [(1.0, right[0], rest)]
        return name

    def _inside(self) -> dict[str, np.ndarray]:
        """symbol -> [limit + 1], p(A, n); unconditioned."""
        inside: dict[str, np.ndarray] = {}
        for symbol, rules in self.rules.items():
            inside[symbol] = np.zeros(self.limit + 1)
            inside[symbol][1] = symbol in self.lexicon
            for p, left, right in rules:
                found = inside[left] if right is None else np.convolve(inside[left], inside[right])[: self.limit + 1]
                inside[symbol] = inside[symbol] + p * found
        return inside

    @cached_property
    def total(self) -> float:
        """Z, the probability of a sentence within the limit."""
        return float(self.inside[self.start].sum())

    @cached_property
    def lengths(self) -> np.ndarray:
        """[limit + 1], distribution of the number of words."""
        return self.inside[self.start] / self.total

    @cached_property
    def counts(self) -> dict[str, np.ndarray]:
        """symbol -> [limit + 1], expected number of A with n words in one sentence."""
        counts = {symbol: np.zeros(self.limit + 1) for symbol in self.rules}
        counts[self.start] = self.lengths.copy()
        for symbol in reversed(self.rules):
            for p, left, right in self.rules[symbol]:
                if right is None:
                    counts[left] += p * self._ratio(symbol, counts)[: self.limit + 1] * self.inside[left]
                    continue
                seam = p * self._seam(symbol, counts)
                counts[left] += self.inside[left] * (seam @ self.inside[right])
                counts[right] += self.inside[right] * (self.inside[left] @ seam)
        return counts

    def _ratio(self, symbol: str, counts: dict[str, np.ndarray]) -> np.ndarray:
        """[2 limit + 1], count of (A, n) over p(A, n); zero beyond the limit."""
        ratio = np.zeros(2 * self.limit + 1)
        inside = self.inside[symbol]
        np.divide(counts[symbol], inside, out=ratio[: self.limit + 1], where=inside > 0)
        return ratio

    def _seam(self, symbol: str, counts: dict[str, np.ndarray]) -> np.ndarray:
        """[limit + 1, limit + 1], that ratio at n = i + j."""
        return np.lib.stride_tricks.sliding_window_view(self._ratio(symbol, counts), self.limit + 1)

    @cached_property
    def uses(self) -> list[tuple[float, float]]:
        """(probability, expected number of uses in a sentence) of every rule."""
        found = []
        for symbol, rules in self.rules.items():
            for p, left, right in rules:
                inside = self.inside[left]
                parts = inside if right is None else np.convolve(inside, self.inside[right])[: self.limit + 1]
                found.append((p, float(p * self._ratio(symbol, self.counts)[: self.limit + 1] @ parts)))
        return found

    @cached_property
    def entropy(self) -> float:
        """Nats per sentence."""
        rules = sum(-uses * np.log(p) for p, uses in self.uses)
        words = sum(-self.counts[s][1] * p * np.log(p) for s, found in self.lexicon.items() for p, _ in found)
        return float(rules + words + np.log(self.total))

    @cached_property
    def tokens(self) -> float:
        """Expected number of words, and one for the end."""
        return float(self.lengths @ np.arange(self.limit + 1)) + 1

    def _said(self, words: Sequence[str]) -> np.ndarray:
        """[preterminals, W], word distributions."""
        number = {word: n for n, word in enumerate(words)}
        said = np.zeros((len(self.lexicon), len(words)))
        for row, found in enumerate(self.lexicon.values()):
            for p, word in found:
                said[row, number[word]] += p
        return said

    def unigram(self, words: Sequence[str]) -> np.ndarray:
        """[W + 1], share of each word among tokens, then of the end."""
        counts = np.array([self.counts[symbol][1] for symbol in self.lexicon])
        return np.append(counts @ self._said(words), 1.0) / self.tokens

    def bigram(self, words: Sequence[str]) -> np.ndarray:
        """[W + 1, W + 1], share of each pair (previous or the beginning, next or the end)."""
        said, between = self._said(words), self._between()
        pairs = np.zeros((len(words) + 1, len(words) + 1))
        pairs[:-1, :-1] = said.T @ between @ said
        pairs[-1, :-1] = self._outermost(0) @ said
        pairs[:-1, -1] = self._outermost(-1) @ said
        return pairs / self.tokens

    def _edges(self, side: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """symbol -> (preterminals [k], probability [limit + 1, k] that A derives n words and this one stands first
        (side 0) or last (side -1) in them)."""
        edges: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for number, symbol in enumerate(self.lexicon):
            edges[symbol] = np.array([number]), self.inside[symbol][:, None]
        for symbol, rules in self.rules.items():
            if not rules:
                continue
            parts = [self._edge(rule, side, edges) for rule in rules]
            union = np.unique(np.concatenate([columns for columns, _ in parts]))
            table = np.zeros((self.limit + 1, len(union)))
            for columns, part in parts:
                table[:, np.searchsorted(union, columns)] += part
            edges[symbol] = union, table
        return edges

    def _edge(self, rule: Binary, side: int, edges: dict) -> tuple[np.ndarray, np.ndarray]:
        p, *children = rule
        outer, inner = (children[0], children[1]) if side == 0 or children[1] is None else children[::-1]
        columns, table = edges[outer]
        return columns, p * (table if inner is None else self._shift(inner) @ table)

    def _shift(self, symbol: str) -> np.ndarray:
        """[n, m] = p(A, n - m): adds the words of A to a length."""
        lengths = np.arange(self.limit + 1)
        gap = lengths[:, None] - lengths
        return np.where(gap >= 0, self.inside[symbol][gap], 0.0)

    @cached_property
    def _both(self) -> tuple[dict, dict]:
        return self._edges(0), self._edges(-1)

    def _outermost(self, side: int) -> np.ndarray:
        """[preterminals], how often each stands first or last in a sentence."""
        columns, table = self._both[side][self.start]
        found = np.zeros(len(self.lexicon))
        found[columns] = table.sum(0) / self.total
        return found

    def _between(self) -> np.ndarray:
        """[preterminals, preterminals], expected number of seams with this one before that one."""
        first, last = self._both
        seams: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros((self.limit + 1, self.limit + 1)))
        for symbol, rules in self.rules.items():
            seam = self._seam(symbol, self.counts)
            for p, left, right in rules:
                if right is not None:
                    seams[left, right] = seams[left, right] + p * seam
        found = np.zeros((len(self.lexicon), len(self.lexicon)))
        for (left, right), seam in seams.items():
            (before, lasts), (after, firsts) = last[left], first[right]
            found[np.ix_(before, after)] += lasts.T @ seam @ firsts
        return found
