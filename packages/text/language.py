"""A language as it is written down: rules, and words by class with the forms that do not follow the spelling.

Words of a class are Zipf(1.0) in the order they are written. Knows how English adds -s and -ed, no word of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from packages.text.rules import Plain, Relation, Weights, expand

VOWELS = "aeiou"
Forms = tuple[dict[str, Weights], dict[str, str]]  # preterminal -> weights of words; word -> lemma


@dataclass(frozen=True)
class Language:
    """One level: everything that `expand` needs, and how long its sentences may be."""

    rules: str
    domains: Mapping[str, Weights]
    relations: Mapping[str, Relation]
    lexicon: Mapping[str, Weights]
    nouns: Mapping[str, str]  # form -> dictionary form
    verbs: Mapping[str, str]
    max_words: int
    pronouns: Mapping[str, str] = field(default_factory=dict)  # what is spoken of -> its pronoun

    @property
    def lemmas(self) -> dict[str, str]:
        """form -> dictionary form, of nouns, verbs and the copula."""
        return {**self.nouns, **self.verbs} | dict.fromkeys(("is", "are", "was", "were"), "be")

    @cached_property
    def plain(self) -> Plain:
        return expand(self.rules, self.domains, self.relations, self.lexicon, "Text")


def with_s(word: str) -> str:
    """The regular plural of a noun, and the third person of a verb."""
    if word.endswith(("s", "x", "ch", "sh", "o")):
        return word + "es"
    return word[:-1] + "ies" if word.endswith("y") and word[-2] not in VOWELS else word + "s"


def with_ed(word: str) -> str:
    """The regular past."""
    if word.endswith("e"):
        return word + "d"
    return word[:-1] + "ied" if word.endswith("y") and word[-2] not in VOWELS else word + "ed"


def zipf(words: list[str]) -> dict[str, float]:
    return {word: 1 / rank for rank, word in enumerate(words, 1)}


def _entries(text: str, regular: Callable[[str], str]) -> list[tuple[str, str]]:
    """Pairs of a word and its other form, as written (child/children) or regular."""
    return [(word, form or regular(word)) for word, _, form in (each.partition("/") for each in text.split())]


def nouns(classes: Mapping[str, str]) -> Forms:
    """Noun.class.number, and lemmas."""
    lexicon: dict[str, Weights] = {}
    lemmas: dict[str, str] = {}
    for name, text in classes.items():
        entries = _entries(text, with_s)
        lexicon[f"Noun.{name}.sg"] = zipf([one for one, _ in entries])
        lexicon[f"Noun.{name}.pl"] = zipf([many for _, many in entries])
        lemmas |= {form: one for one, many in entries for form in (one, many)}
    return lexicon, lemmas


def verbs(classes: Mapping[str, str]) -> Forms:
    """Verb symbols (Category or Category.class) with number and tense, and lemmas. The past has one form."""
    lexicon: dict[str, Weights] = {}
    lemmas: dict[str, str] = {}
    for name, text in classes.items():
        entries = _entries(text, with_ed)
        lexicon[f"{name}.sg.pres"] = zipf([with_s(base) for base, _ in entries])
        lexicon[f"{name}.pl.pres"] = zipf([base for base, _ in entries])
        for number in ("sg", "pl"):
            lexicon[f"{name}.{number}.past"] = zipf([past for _, past in entries])
        lemmas |= {form: base for base, past in entries for form in (base, with_s(base), past)}
    return lexicon, lemmas


def relation(text: str) -> dict[tuple[str, ...], float]:
    """Rows of values and a weight, divided by semicolons or ends of lines."""
    rows = [row.split() for row in text.replace(";", "\n").splitlines()]
    return {tuple(values): float(weight) for *values, weight in filter(None, rows)}


def language(
    rules: str,
    domains: Mapping[str, Weights],
    relations: Mapping[str, Relation],
    of_nouns: Mapping[str, str],
    of_verbs: Mapping[str, str],
    others: Mapping[str, str],
    max_words: int,
) -> Language:
    """Forms the words that are written as `word` or `word/irregular form`, best known first."""
    (of_noun, noun_lemmas), (of_verb, verb_lemmas) = nouns(of_nouns), verbs(of_verbs)
    rest = {symbol: zipf(text.split()) for symbol, text in others.items()}
    return Language(rules, domains, relations, of_noun | of_verb | rest, noun_lemmas, verb_lemmas, max_words)
