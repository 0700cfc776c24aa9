"""Words of a row that decide about each other: subject and verb, determiner and noun, pronoun and the one it stands
for, quotes, brackets.

A sentence is read off its tree. A row that is no sentence has none, yet much of it may be right: marks are paired
without a tree, and what the rules allow once all features but depth are erased (so with wrong numbers, wrong classes)
is looked for from left to right, the longest piece at every place. Words in no piece decide nothing. How many
dependencies a true sentence has is the scale: a row of single words has few, and should be counted as such.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from packages.text.parser import Chart, Parser, Tree
from packages.text.rules import Plain, category

CLOSING = {"“": "”", "‘": "’", "(": ")"}
VERBS = ("Rests", "Acts", "Gives", "Be", "Say")
PREDICATES = ("Predicate", "Plain", "Rest", "VP", "Action")
SUBJECTS = ("Subject", "Speaker", "Entity", "Pronoun", "NP")
NOUNS = ("Core", "Nom", "Noun", "Known", "Topic", "Name")
HEADS = (*VERBS, *PREDICATES, *SUBJECTS, *NOUNS)  # of the children of a node, the first of these leads to its head
PIECES = ("Text", "Line", "Reference", "Main", "Clause", "NP", "Core")


class Dependency(NamedTuple):
    """Places of two words, the one that decides first (for marks: the opening one, -1 if there is none)."""

    kind: str  # subject-verb | determiner-noun | pronoun | quotes | brackets
    first: int
    second: int  # for a mark left open: the number of words
    satisfied: bool | None  # None: the forms say nothing, as in "the dog slept"

    @property
    def distance(self) -> int:
        return abs(self.second - self.first)


def marks(words: Sequence[str]) -> Iterator[Dependency]:
    """Quotes and brackets, nested. A closing mark that does not fit the last open one was never opened."""
    opening, waiting = {close: mark for mark, close in CLOSING.items()}, []
    for place, word in enumerate(words):
        if word in CLOSING:
            waiting.append(place)
        elif word in opening:
            fits = bool(waiting) and words[waiting[-1]] == opening[word]
            yield Dependency(_kind(word), waiting.pop() if fits else -1, place, fits)
    yield from (Dependency(_kind(words[place]), place, len(words), False) for place in waiting)


def _kind(mark: str) -> str:
    return "brackets" if mark in "()" else "quotes"


class Dependencies:
    """Of one grammar. pronouns: the word for what is spoken of -> its pronoun."""

    def __init__(self, plain: Plain, pronouns: Mapping[str, str]) -> None:
        self.pronouns, bare = pronouns, without_features(plain)
        self.parser = Parser(bare)
        self.pieces = [next(s for s in reversed(bare.order) if category(s) == c) for c in PIECES if _has(bare, c)]
        found: dict[str, set[str]] = defaultdict(set)
        for symbol, words in plain.lexicon.items():
            for number in {"sg", "pl"}.intersection(symbol.split(".")):
                for _, word in words:
                    found[word].add(number)
        self.number = {word: numbers.pop() for word, numbers in found.items() if len(numbers) == 1}

    def __call__(self, words: Sequence[str], tree: Tree | None) -> list[Dependency]:
        """In no particular order; of the tree, if there is one."""
        trees = [(0, tree)] if tree else list(self._pieces(self.parser.chart(words)))
        return [*marks(words), *self.agreements(trees)]

    def _pieces(self, chart: Chart) -> Iterator[tuple[int, Tree]]:
        """(place, tree) of the longest pieces, from left to right; of equal ones the first of PIECES."""
        place = 0
        while place < len(chart.words):
            ends = [(max(chart.spans(symbol, place), default=0), symbol) for symbol in self.pieces]
            end, symbol = max(ends, key=lambda each: each[0])
            if end:
                yield place, chart.tree(symbol, place, end)
            place = max(place + 1, end)

    def agreements(self, trees: Iterable[tuple[int, Tree]]) -> Iterator[Dependency]:
        """Subjects, determiners and pronouns of trees and the places where they begin."""
        topic: tuple[int, str] | None = None
        for start, tree in trees:
            places = {id(leaf): start + n for n, leaf in enumerate(tree.leaves())}
            for node in tree.nodes():
                for kind, first, second in _pairs(node):
                    yield self._agreement(kind, node, places, first, second)
                if node.category == "Entity":
                    topic = places[id(head(node))], str(head(node).word)
                elif node.category == "Pronoun" and topic:
                    right = self.pronouns.get(topic[1]) == node.word
                    yield Dependency("pronoun", topic[0], places[id(node)], right)

    def _agreement(self, kind: str, node: Tree, places: dict[int, int], first: Tree, second: Tree) -> Dependency:
        number = "pl" if joined(first) else self.number.get(str(head(first).word))
        said = self.number.get(str(head(second).word))
        satisfied = None if number is None or said is None else number == said
        return Dependency(kind, places[id(head(first))], places[id(head(second))], satisfied)


def head(node: Tree) -> Tree:
    """The leaf that stands for a node: of a noun phrase the noun, of a predicate its verb."""
    while node.word is None:
        node = next(child for name in HEADS for child in node.children if child.category == name)
    return node


def subject_and_verb(tree: Tree) -> tuple[Tree, Tree]:
    """The leaves of the first clause of a sentence's tree."""
    pairs = (pair for node in tree.nodes() for pair in _pairs(node))
    return next((head(first), head(second)) for kind, first, second in pairs if kind == "subject-verb")


def joined(node: Tree) -> bool:
    """Whether the node is two of its kind: anna and ben."""
    return any(child.word == "and" for child in node.children)


def _pairs(node: Tree) -> Iterator[tuple[str, Tree, Tree]]:
    """(kind, deciding child, other node) among the children of a node."""
    parts = {child.category: child for child in reversed(node.children)}
    noun = next((parts[name] for name in ("Nom", "Noun") if name in parts), None)
    if noun and ("Det" in parts or "Some" in parts):
        yield "determiner-noun", noun, parts.get("Det") or parts["Some"]
    if "'there'" in parts:
        yield "subject-verb", parts["Nom"], parts["Be"]
    subject = next((parts[name] for name in SUBJECTS if name in parts), None)
    verb = next((parts[name] for name in (*PREDICATES, *VERBS) if name in parts), None)
    if subject and verb and node.category != "VP" and node.category != "Plain":
        yield "subject-verb", subject, verb
    clause = next((each for each in (*node.children, *_inside(parts.get("Aside"))) if each.category == "Rel"), None)
    if clause and node.category == "NP" and not any(child.category == "NP" for child in clause.children):
        yield "subject-verb", node.children[0], clause


def _inside(node: Tree | None) -> tuple[Tree, ...]:
    return node.children if node else ()


def _has(plain: Plain, name: str) -> bool:
    return any(category(symbol) == name for symbol in plain.rules)


def without_features(plain: Plain) -> Plain:
    """The rules with no feature left but depths, which are digits; all alternatives alike."""
    rules: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    for left, found in plain.rules.items():
        for _, right in found:
            rules[_bare(left)][tuple(map(_bare, right))] = 1.0
    lexicon: dict[str, dict[str, float]] = defaultdict(dict)
    for symbol, words in plain.lexicon.items():
        lexicon[_bare(symbol)] |= {word: 1.0 for _, word in words}
    return Plain(
        {left: tuple((p, right) for right, p in found.items()) for left, found in rules.items()},
        {symbol: tuple((p, word) for word, p in found.items()) for symbol, found in lexicon.items()},
        _bare(plain.start),
    )


def _bare(symbol: str) -> str:
    name = category(symbol)
    return ".".join([name, *filter(str.isdigit, symbol.removeprefix(name).split("."))])
