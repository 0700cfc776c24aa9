"""What the grammars say: rule templates, relations of verb classes, and words of the three levels.

micro is regular: agreement across a phrase of place, verbs that select their objects, quoted speech. Within a class,
words are Zipf(1.0) in the order they are written.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from packages.text.rules import Plain, Relation, Weights, expand

VOWELS = "aeiou"


@dataclass(frozen=True)
class Language:
    """One level: everything that `expand` needs, and how long its sentences may be."""

    rules: str
    domains: Mapping[str, Weights]
    relations: Mapping[str, Relation]
    lexicon: Mapping[str, Weights]
    lemmas: Mapping[str, str]  # word -> its dictionary form, for nouns and verbs
    max_words: int

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


def _entries(text: str, irregular) -> list[tuple[str, str]]:
    """Pairs of a word and its other form, as written (child/children) or regular."""
    return [(word, form or irregular(word)) for word, _, form in (each.partition("/") for each in text.split())]


def nouns(classes: Mapping[str, str]) -> tuple[dict[str, Weights], dict[str, str]]:
    """Noun.class.number, and lemmas."""
    lexicon: dict[str, Weights] = {}
    lemmas: dict[str, str] = {}
    for name, text in classes.items():
        entries = _entries(text, with_s)
        lexicon[f"Noun.{name}.sg"] = zipf([one for one, _ in entries])
        lexicon[f"Noun.{name}.pl"] = zipf([many for _, many in entries])
        lemmas |= {form: one for one, many in entries for form in (one, many)}
    return lexicon, lemmas


def verbs(category: str, classes: Mapping[str, str]) -> tuple[dict[str, Weights], dict[str, str]]:
    """Category.class.number.tense, and lemmas. The past is one form for both numbers."""
    lexicon: dict[str, Weights] = {}
    lemmas: dict[str, str] = {}
    for name, text in classes.items():
        entries = _entries(text, with_ed)
        lexicon[f"{category}.{name}.sg.pres"] = zipf([with_s(base) for base, _ in entries])
        lexicon[f"{category}.{name}.pl.pres"] = zipf([base for base, _ in entries])
        for number in ("sg", "pl"):
            lexicon[f"{category}.{name}.{number}.past"] = zipf([past for _, past in entries])
        lemmas |= {form: base for base, past in entries for form in (base, with_s(base), past)}
    return lexicon, lemmas


def words(classes: Mapping[str, str]) -> dict[str, Weights]:
    return {symbol: zipf(text.split()) for symbol, text in classes.items()}


def _language(rules: str, domains, relations, parts: list, others: Mapping[str, str], max_words: int) -> Language:
    lexicon = words(others)
    lemmas: dict[str, str] = {}
    for symbols, forms in parts:
        lexicon |= symbols
        lemmas |= forms
    return Language(rules, domains, relations, lexicon, lemmas, max_words)


NUMBER = {"sg": 0.6, "pl": 0.4}

MICRO = _language(
    rules="""
    Text -> Clause.n '.' : 0.7
    Text -> Clause.n 'and' Clause.n2 '.' : 0.15
    Text -> Speaker.n Say.n '“' Clause.n2 '”' '.' : 0.15
    Clause.n -> Subject.c.n Predicate.c.n.pres
    Speaker.sg -> Name : 0.7
    Speaker.n -> Core.person.n : 0.3
    Subject.c.n -> Core.c.n : 0.7
    Subject.c.n -> Core.c.n Place : 0.3
    Subject.person.sg -> Name : 0.5
    Core.c.n -> Det.n Noun.c.n : 0.65
    Core.c.n -> Det.n Adj.c Noun.c.n : 0.35
    Place -> Prep 'the' Spot
    Predicate.c.n.t -> Action.c.n.t : 0.75
    Predicate.c.n.t -> Action.c.n.t Adverb : 0.25
    Action.c.n.t -> Rests.i.n.t : 0.4 : intransitive c i
    Action.c.n.t -> Acts.f.n.t Object.o : 0.6 : transitive c f o
    Object.c -> Core.c.n : 0.8
    Object.person -> Name : 0.2
    """,
    domains={"n": NUMBER, "t": {"pres": 1.0}, "c": {"person": 0.5, "animal": 0.5, "food": 0.1}},
    relations={
        "intransitive": {("person", "live"): 0.7, ("animal", "live"): 1.0, ("person", "speak"): 0.3},
        "transitive": {
            ("person", "help", "person"): 0.3,
            ("person", "eat", "food"): 0.3,
            ("person", "see", "person"): 0.2,
            ("person", "see", "animal"): 0.2,
            ("animal", "eat", "food"): 0.2,
            ("animal", "chase", "animal"): 0.4,
            ("animal", "see", "person"): 0.2,
            ("animal", "see", "animal"): 0.2,
        },
    },
    parts=[
        nouns({"person": "girl boy teacher", "animal": "dog cat bird", "food": "cake pear"}),
        verbs("Rests", {"live": "sleep/slept", "speak": "sing/sang"}),
        verbs("Acts", {"help": "help", "eat": "eat/ate", "see": "see/saw", "chase": "chase"}),
    ],
    others={
        "Det.sg": "the a every",
        "Det.pl": "the two some these",
        "Adj.person": "young small",
        "Adj.animal": "small big young",
        "Adj.food": "sweet big",
        "Spot": "garden house river",
        "Name": "anna ben carol david",
        "Prep": "in near",
        "Adverb": "today quietly",
        "Say.sg": "says",
        "Say.pl": "say",
    },
    max_words=14,
)

LEVELS = {"micro": MICRO}
