"""Memoised descent through a plain grammar: every span of every symbol that the words allow, with its probability.

A rule is tried only where it can begin with the word that stands there. Sums over derivations (inside) and keeps the
best of them (Viterbi); for a grammar without ambiguity the two agree. Knows no length limit.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from packages.text.rules import Plain, category


@dataclass(frozen=True)
class Tree:
    """A node: a preterminal with its word, or a symbol with children."""

    symbol: str
    children: tuple["Tree", ...] = ()
    word: str | None = None

    @property
    def category(self) -> str:
        return category(self.symbol)

    def leaves(self) -> Iterator["Tree"]:
        """Preterminals from left to right."""
        if self.word is not None:
            yield self
        for child in self.children:
            yield from child.leaves()

    def nodes(self) -> Iterator["Tree"]:
        """Itself and all below, depth first."""
        yield self
        for child in self.children:
            yield from child.nodes()

    def __str__(self) -> str:
        inside = self.word if self.word is not None else " ".join(map(str, self.children))
        return f"({self.symbol} {inside})"


Span = tuple[float, float, tuple]  # sum over derivations, probability of the best, its (symbol, start, end) children


class Parser:
    """What a plain grammar needs for descent: per symbol and word, the rules that can begin with it."""

    def __init__(self, plain: Plain) -> None:
        self.start = plain.start
        self.lexicon = {symbol: {word: p for p, word in found} for symbol, found in plain.lexicon.items()}
        self.rules: dict[str, dict[str, list[tuple[float, tuple[str, ...]]]]] = {}
        for symbol in plain.order:
            if symbol in plain.rules:
                self.rules[symbol] = self._by_first(plain.rules[symbol])

    def _by_first(self, rules: Sequence[tuple[float, tuple[str, ...]]]) -> dict[str, list]:
        found: dict[str, list] = defaultdict(list)
        for probability, right in rules:
            for word in self.lexicon.get(right[0]) or self.rules[right[0]]:
                found[word].append((probability, right))
        return dict(found)

    def chart(self, words: Sequence[str]) -> "Chart":
        return Chart(self, words)


class Chart:
    """The spans of one row of words, found when asked for."""

    def __init__(self, parser: Parser, words: Sequence[str]) -> None:
        self.words, self.rules, self.lexicon = tuple(words), parser.rules, parser.lexicon
        self.found: dict[tuple[str, int], dict[int, Span]] = {}

    def spans(self, symbol: str, start: int) -> dict[int, Span]:
        """End -> span, for all spans of the symbol from `start` on."""
        key = symbol, start
        known = self.found.get(key)
        if known is None:
            known = self.found[key] = self._spans(symbol, start)
        return known

    def _spans(self, symbol: str, start: int) -> dict[int, Span]:
        if start >= len(self.words):
            return {}
        word = self.words[start]
        if symbol in self.lexicon:
            probability = self.lexicon[symbol].get(word)
            return {} if probability is None else {start + 1: (probability, probability, ())}
        spans: dict[int, Span] = {}
        for probability, right in self.rules[symbol].get(word, ()):
            for end, (inside, best, children) in self._sequence(right, start).items():
                inside, best = probability * inside, probability * best
                if end in spans:
                    inside += spans[end][0]
                    if best < spans[end][1]:
                        _, best, children = spans[end]
                spans[end] = inside, best, children
        return spans

    def _sequence(self, right: tuple[str, ...], start: int) -> dict[int, Span]:
        """Spans of several symbols in a row."""
        partial: dict[int, Span] = {start: (1.0, 1.0, ())}
        for symbol in right:
            longer: dict[int, Span] = {}
            for middle, (inside, best, children) in partial.items():
                for end, (more, more_best, _) in self.spans(symbol, middle).items():
                    total, top, kept = inside * more, best * more_best, (*children, (symbol, middle, end))
                    if end in longer:
                        total += longer[end][0]
                        if top < longer[end][1]:
                            _, top, kept = longer[end]
                    longer[end] = total, top, kept
            if not longer:
                return longer
            partial = longer
        return partial

    def tree(self, symbol: str, start: int, end: int) -> Tree:
        """The best derivation of a span that exists."""
        if symbol in self.lexicon:
            return Tree(symbol, (), self.words[start])
        _, _, children = self.found[symbol, start][end]
        return Tree(symbol, tuple(self.tree(*child) for child in children))
