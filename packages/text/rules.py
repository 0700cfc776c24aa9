"""Templates of rules with features, written out as the plain rules of a probabilistic grammar.

    Subject.c.n.d -> Core.c.n Rel.c.n.d+1 : 0.2
    Action.c.n -> Verb.f.n Object.o : 0.6 : transitive c f o

A symbol is a category and its features. A feature of one letter (and a digit) is a variable: it takes each value of its
domain, once per rule, or those rows of the named relation; any other is a value. `d+1` counts up, and a rule that
would leave the domain does not exist, so recursion ends. 'quoted' is a word that stands for itself.

The weight of a template is shared among the rules it gives for one left side, as the weights of the domains say; then
all rules of a left side are scaled to sum to 1. Knows no particular language.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

Weights = Mapping[str, float]
Relation = Mapping[tuple[str, ...], float]
Production = tuple[float, tuple[str, ...]]  # probability, right side
VARIABLE = re.compile(r"[a-z]\d?")


@dataclass(frozen=True)
class Plain:
    """A probabilistic grammar without features: symbols are names, every distribution sums to 1, no symbol recurs."""

    rules: dict[str, tuple[Production, ...]]
    lexicon: dict[str, tuple[tuple[float, str], ...]]  # preterminal -> (probability, word)
    start: str

    @property
    def order(self) -> list[str]:
        """All symbols that the start reaches, each after everything it derives."""
        found: dict[str, None] = {}
        _visit(self, self.start, found, ())
        return list(found)


def _visit(plain: Plain, symbol: str, found: dict[str, None], path: tuple[str, ...]) -> None:
    if symbol in path:
        raise ValueError(f"{symbol} derives itself; bound the recursion with a depth in the symbol, like {symbol}.d")
    if symbol in found:
        return
    for _, right in plain.rules.get(symbol, ()):
        for each in right:
            _visit(plain, each, found, (*path, symbol))
    found[symbol] = None


@dataclass(frozen=True)
class Template:
    left: str
    right: tuple[str, ...]
    weight: float
    relation: str  # its name, "": none
    columns: tuple[str, ...]

    @property
    def variables(self) -> list[str]:
        """In order of appearance, without those the relation gives."""
        names = (name.split("+")[0] for symbol in (self.left, *self.right) for name in _features(symbol))
        return [name for name in dict.fromkeys(names) if VARIABLE.fullmatch(name) and name not in self.columns]


def _features(symbol: str) -> list[str]:
    return [] if symbol.startswith("'") else symbol.split(".")[1:]


def category(symbol: str) -> str:
    """The symbol without its features; a word that stands for itself is its own category."""
    return symbol if symbol.startswith("'") else symbol.split(".")[0]


def parsed(text: str) -> list[Template]:
    """The templates of a text, one a line; empty lines and lines starting with # say nothing."""
    lines = (line.strip() for line in text.splitlines())
    return [_template(line) for line in lines if line and not line.startswith("#")]


def _template(line: str) -> Template:
    left, arrow, rest = line.partition(" -> ")
    right, *more = re.split(r" : ", rest)
    if not arrow or len(more) > 2:
        raise ValueError(f"cannot read the rule {line!r}; write LEFT -> RIGHT : weight : relation columns")
    relation, *columns = more[1].split() if len(more) > 1 else [""]
    return Template(left, tuple(right.split()), float(more[0]) if more else 1.0, relation, tuple(columns))


def expand(
    text: str,
    domains: Mapping[str, Weights],
    relations: Mapping[str, Relation],
    lexicon: Mapping[str, Weights],
    start: str,
) -> Plain:
    """The plain grammar of the templates. lexicon: preterminal -> weights of its words.

    A rule with a symbol that derives nothing (Colour.person, where persons have no colour) is left out, unless nothing
    of that category exists: ValueError.
    """
    templates = parsed(text)
    words = dict(lexicon) | {s: {s[1:-1]: 1.0} for t in templates for s in t.right if s.startswith("'")}
    found = [(number, *each) for number, t in enumerate(templates) for each in _instances(t, domains, relations)]
    _known_categories([(left, right) for _, left, right, _ in found], words)
    good = _productive([(left, right) for _, left, right, _ in found], words)
    shares: dict[tuple[str, int], list[Production]] = defaultdict(list)
    for number, left, right, weight in found:
        if good.issuperset(right):
            shares[left, number].append((weight, right))
    rules: dict[str, list[Production]] = defaultdict(list)
    for (left, number), instances in shares.items():
        rules[left] += [(templates[number].weight * weight, right) for weight, right in _scaled(instances)]
    order = Plain({left: tuple(each) for left, each in rules.items()}, {}, start).order
    return Plain(
        {symbol: tuple(_scaled(rules[symbol])) for symbol in order if symbol in rules},
        {symbol: tuple(_shares(words[symbol])) for symbol in order if symbol in words},
        start,
    )


def _scaled(found: list[Production]) -> list[Production]:
    total = sum(weight for weight, _ in found)
    return [(weight / total, right) for weight, right in found]


def _shares(weights: Weights) -> list[tuple[float, str]]:
    total = sum(weights.values())
    return [(weight / total, word) for word, weight in weights.items()]


def _instances(
    template: Template, domains: Mapping[str, Weights], relations: Mapping[str, Relation]
) -> Iterator[tuple[str, tuple[str, ...], float]]:
    variables = template.variables
    rows = relations[template.relation].items() if template.relation else [((), 1.0)]
    for row, weight in rows:
        for values in product(*(domains[name[0]].items() for name in variables)):
            bound = dict(zip(template.columns, row)) | {name: value for name, (value, _) in zip(variables, values)}
            symbols = [_bound(symbol, bound, domains) for symbol in (template.left, *template.right)]
            if None not in symbols:
                left, *right = (str(symbol) for symbol in symbols)
                yield left, tuple(right), weight * _product(share for _, share in values)


def _product(shares: Iterator[float]) -> float:
    total = 1.0
    for share in shares:
        total *= share
    return total


def _bound(symbol: str, bound: Mapping[str, str], domains: Mapping[str, Weights]) -> str | None:
    """The symbol with values for variables; None where a count leaves its domain."""
    values = []
    for feature in _features(symbol):
        name, plus, step = feature.partition("+")
        value = bound.get(name, name)
        if plus:
            value = str(int(value) + int(step))
            if value not in domains[name[0]]:
                return None
        values.append(value)
    return ".".join([category(symbol), *values])


def _known_categories(rules: list[tuple[str, tuple[str, ...]]], words: Mapping[str, Weights]) -> None:
    known = {category(symbol) for symbol in (*words, *(left for left, _ in rules))}
    unknown = sorted({category(each) for _, right in rules for each in right} - known)
    if unknown:
        raise ValueError(f"no rule and no word for {', '.join(unknown)}; write one, or take it out of the rules")


def _productive(rules: list[tuple[str, tuple[str, ...]]], words: Mapping[str, Weights]) -> set[str]:
    """The symbols that derive words."""
    good, size = {symbol for symbol, found in words.items() if found}, -1
    while size < len(good):
        size = len(good)
        good |= {left for left, right in rules if good.issuperset(right)}
    return good
