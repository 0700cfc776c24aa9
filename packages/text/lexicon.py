"""What the grammars say: rule templates, relations of verb classes, and words of the three levels.

micro is regular: agreement across a phrase of place, verbs that select their objects, quoted speech. Within a class,
words are Zipf(1.0) in the order they are written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

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
    lemmas: Mapping[str, str]  # word -> its dictionary form, for nouns and verbs
    max_words: int
    pronouns: Mapping[str, str] = field(default_factory=dict)  # what is spoken of -> its pronoun

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
    return Language(rules, domains, relations, of_noun | of_verb | rest, noun_lemmas | verb_lemmas, max_words)


NUMBER = {"sg": 0.6, "pl": 0.4}

MICRO = language(
    rules="""
    Text -> Clause.n '.' : 0.7
    Text -> Clause.n 'and' Clause.n2 '.' : 0.15
    Text -> Speaker.n Say.n.t '“' Clause.n2 '”' '.' : 0.15
    Clause.n -> Subject.c.n Predicate.c.n.t
    Speaker.sg -> Name.sg : 0.7
    Speaker.n -> Core.person.n : 0.3
    Subject.c.n -> Core.c.n : 0.7
    Subject.c.n -> Core.c.n Place : 0.3
    Subject.person.sg -> Name.sg : 0.5
    Core.c.n -> Det.n Noun.c.n : 0.65
    Core.c.n -> Det.n Adj.c Noun.c.n : 0.35
    Place -> Prep 'the' Spot
    Predicate.c.n.t -> Action.c.n.t : 0.75
    Predicate.c.n.t -> Action.c.n.t Adverb : 0.25
    Action.c.n.t -> Rests.i.n.t : 0.4 : intransitive c i
    Action.c.n.t -> Acts.f.n.t Object.o : 0.6 : transitive c f o
    Object.c -> Core.c.n : 0.8
    Object.person -> Name.sg : 0.2
    """,
    domains={"n": NUMBER, "t": {"pres": 1.0}, "c": {"person": 0.5, "animal": 0.5, "food": 0.1}},
    relations={
        "intransitive": relation("person live .6; person speak .4; animal live 1"),
        "transitive": relation(
            """person help person .3; person eat food .3; person see person .2; person see animal .2
            animal eat food .2; animal chase animal .4; animal see person .2; animal see animal .2"""
        ),
    },
    of_nouns={"person": "girl boy teacher", "animal": "dog cat bird", "food": "cake pear"},
    of_verbs={
        "Rests.live": "sleep/slept",
        "Rests.speak": "sing/sang",
        "Acts.help": "help",
        "Acts.eat": "eat/ate",
        "Acts.see": "see/saw",
        "Acts.chase": "chase",
        "Say": "say/said",
    },
    others={
        "Det.sg": "the a every",
        "Det.pl": "the two some these",
        "Adj.person": "young small",
        "Adj.animal": "small big young",
        "Adj.food": "sweet big",
        "Spot": "garden house river",
        "Name.sg": "anna ben carol david",
        "Prep": "in near",
        "Adverb": "today quietly",
    },
    max_words=14,
)

# Clauses and quoted speech; who does what; what a noun phrase is made of.
CLAUSES = """
    Main.t.k -> Clause.t : 0.86
    Main.t.k -> Clause.t Joint Main.t.k+1 : 0.14
    Quoted -> '“' Main.t.1 '”' : 0.9
    Quoted -> '“' Speaker.n Say.n.t ',' '‘' Clause.t2 '’' '”' : 0.1
    Speaker.n -> NP.person.n.2
    Clause.t -> Basic.t : 0.86
    Clause.t -> Place ',' Basic.t : 0.07
    Clause.t -> Time.t ',' Subject.c.n Plain.c.n.t : 0.07
    Basic.t -> Subject.c.n Predicate.c.n.t : 0.94
    Basic.t -> 'there' Be.n.t Some.n Nom.c.n Place : 0.06
    Subject.c.n -> NP.c.n.0
    Subject.person.pl -> Name.woman.sg 'and' Name.man.sg : 0.15
    Subject.person.pl -> Name.man.sg 'and' Name.woman.sg : 0.15
    Predicate.c.n.t -> Plain.c.n.t : 0.9
    Predicate.c.n.t -> VP.c.n.t.0 Time.t : 0.1
    Plain.c.n.t -> VP.c.n.t.0 : 0.6
    Plain.c.n.t -> Often VP.c.n.t.0 : 0.08
    Plain.c.n.t -> Rests.i.n.t Manner.i : 0.07 : intransitive c i
    Plain.c.n.t -> Acts.f.n.t NP.o.n2.0 Manner.f : 0.1 : transitive c f o
    Plain.c.n.t -> Be.n.t Quality.c : 0.15
    VP.c.n.t.d -> Rests.i.n.t : 0.22 : intransitive c i
    VP.c.n.t.d -> Rests.i.n.t Place : 0.13 : intransitive c i
    VP.c.n.t.d -> Acts.f.n.t NP.o.n2.d : 0.55 : transitive c f o
    VP.person.n.t.d -> Gives.n.t Taker NP.o.n2.d : 0.06 : gift o
    VP.person.n.t.d -> Gives.n.t NP.o.n2.d 'to' Taker : 0.06 : gift o
    Taker -> Core.person.n : 0.5
    Taker -> Name.g.sg : 0.5
    NP.c.n.d -> Core.c.n : 0.7
    NP.c.n.d -> Core.c.n Place : 0.08
    NP.c.n.d -> Core.c.n Rel.c.n.d+1 : 0.12
    NP.c.n.d -> Core.c.n Place Rel.c.n.d+1 : 0.02
    NP.c.n.d -> Core.c.n Aside.c.n.d : 0.04
    NP.person.n.d -> Core.person.n 'with' Core.c.n2 : 0.05 : carried c
    NP.person.sg.d -> Name.g.sg : 0.4
    NP.person.sg.d -> Name.g.sg Aside.person.sg.d : 0.03
    Rel.c.n.d -> Who.c VP.c.n.t.d : 0.5
    Rel.c.n.d -> Who.c Be.n.t Quality.c : 0.1
    Rel.c.n.d -> Who.c NP.c2.n2.d Acts.f.n2.t : 0.4 : transitive c2 f c
    Aside.c.n.d -> '(' Rel.c.n.d+1 ')' : 0.4
    Aside.c.n.d -> '(' Quality.c ')' : 0.3
    Aside.c.n.d -> '(' 'not' Core.c.n2 ')' : 0.3
    Core.c.n -> Det.n Nom.c.n : 0.84
    Core.c.n -> Name.g.sg ''s' Nom.c.n : 0.08
    Core.c.pl -> 'the' Number Nom.c.pl : 0.08
    Nom.c.n -> Noun.c.n : 0.62
    Nom.c.n -> Adj.c Noun.c.n : 0.26
    Nom.c.n -> Colour.c Noun.c.n : 0.08
    Nom.c.n -> Adj.c Colour.c Noun.c.n : 0.04
    Quality.c -> Adj.c : 0.75
    Quality.c -> 'very' Adj.c : 0.25
    Place -> Prep 'the' Noun.place.n : 0.7
    Place -> Prep 'the' Adj.place Noun.place.n : 0.3
"""
SENTENCE = """
    Text -> Main.t.0 '.' : 0.82
    Text -> Speaker.n Say.n.t ',' Quoted '.' : 0.12
    Text -> Quoted ',' Speaker.n Say.n.t '.' : 0.06
"""
# 9 - m sentences. The one spoken of is e; next comes its pronoun, its name, or another.
DOCUMENT = """
    Text -> Line.e.t After.m.e.t : 1 : opening m e
    After.m.e.t -> Again.e.t After.m+1.e.t : 0.8
    After.m.e.t -> Line.x.t After.m+1.x.t : 0.2 : change e x
    After.7.e.t -> Again.e.t : 0.8
    After.7.e.t -> Line.x.t : 0.2 : change e x
    Again.e.t -> Reference.p.t : 0.75 : entity e c n p
    Again.e.t -> Line.e.t : 0.25
    Line.e.t -> Entity.e Rest.c.n.t : 0.85 : entity e c n p
    Line.e.t -> Time.t ',' Entity.e Rest.c.n.t : 0.15 : entity e c n p
    Entity.e -> Known.e.n : 1 : entity e c n p
    Entity.e -> 'the' Topic.e.n : 1 : entity e c n p
    Reference.p.t -> Pronoun.p.n Rest.c.n.t : 0.9 : pronoun p c n
    Reference.p.t -> Place ',' Pronoun.p.n Rest.c.n.t : 0.1 : pronoun p c n
    Rest.c.n.t -> Plain.c.n.t '.' : 0.9
    Rest.person.n.t -> Say.n.t ',' Quoted '.' : 0.1
"""
DOMAINS = {
    "n": NUMBER,
    "t": {"pres": 0.5, "past": 0.5},
    "c": {"person": 0.5, "animal": 0.27, "thing": 0.07, "vehicle": 0.07, "text": 0.05, "food": 0.04},
    "g": {"woman": 0.5, "man": 0.5},
    "d": dict.fromkeys("0123", 1.0),
    "k": dict.fromkeys("012", 1.0),
    "m": dict.fromkeys("1234567", 1.0),
}
RELATIONS = {
    "intransitive": relation(
        """person live .5; person speak .5; animal live 1; thing fall 1; food fall 1; text fall 1
        vehicle roll .8; vehicle fall .2"""
    ),
    "transitive": relation(
        """person see person .1; person see animal .08; person see thing .05; person see text .02
        person see vehicle .05; person help person .2; person eat food .14; person write text .1; person hold thing .12
        person hold food .04; person drive vehicle .1
        animal see person .1; animal see animal .1; animal see food .05; animal chase animal .35
        animal chase person .1; animal eat food .2; animal please person .1
        thing please person .8; thing please animal .2; text please person 1
        food please person .7; food please animal .3
        vehicle pass vehicle .5; vehicle pass person .3; vehicle pass animal .2"""
    ),
    "gift": relation("text .4; thing .35; food .25"),
    "carried": relation("animal .4; thing .4; text .2"),
}
NOUNS = {
    "person": "girl boy teacher doctor farmer child/children woman/women man/men painter"
    " | baker nurse singer guard neighbour chef",
    "animal": "dog cat horse bird fox wolf/wolves rabbit mouse/mice | bear goat duck frog",
    "thing": "box ball lamp chair stone bag | basket cup key drum table",
    "text": "book letter poem map | story note",
    "food": "cake pear carrot pie | plum tomato loaf/loaves cookie",
    "vehicle": "car boat train truck | bus plane",
    "place": "garden house river forest village market | lake hill barn station school",
}
VERBS = {
    "Rests.live": "sleep/slept wait run/ran rest | sit/sat jump hide/hid swim/swam",
    "Rests.speak": "sing/sang laugh dance work | smile cry whistle",
    "Rests.fall": "fall/fell vanish | shine/shone shake/shook",
    "Rests.roll": "stop/stopped crash | turn start",
    "Acts.see": "see/saw find/found like watch | notice love",
    "Acts.help": "help thank meet/met | call visit greet",
    "Acts.eat": "eat/ate smell | taste buy/bought",
    "Acts.write": "write/wrote study | finish copy lose/lost",
    "Acts.hold": "hold/held carry drop/dropped | lift wash break/broke",
    "Acts.drive": "drive/drove repair | park steer",
    "Acts.chase": "chase follow bite/bit | catch/caught scare",
    "Acts.please": "please surprise | frighten calm amuse",
    "Acts.pass": "pass block | splash",
    "Gives": "give/gave show sell/sold | bring/brought send/sent offer",
    "Say": "say/said shout whisper | answer reply",
}
OTHERS = {
    "Name.woman.sg": "anna carol emma julia | laura nina",
    "Name.man.sg": "ben david felix peter | george thomas",
    "Det.sg": "the a every this each no another |",
    "Det.pl": "the some two many these three all several no few | most",
    "Some.sg": "a no",
    "Some.pl": "some two many three no",
    "Number": "two three four five six | seven ten",
    "Adj.person": "young tall kind clever happy | tired brave rich",
    "Adj.animal": "small hungry young big clever | wild lazy",
    "Adj.thing": "big small heavy new | round cheap",
    "Adj.text": "long new strange | famous sad",
    "Adj.food": "sweet big fresh | cold ripe",
    "Adj.vehicle": "fast new slow big | dirty noisy",
    "Adj.place": "big dark quiet small | cold distant",
    "Colour.animal": "black white brown | grey",
    "Colour.thing": "red blue black white green |",
    "Colour.vehicle": "blue red white | yellow",
    "Prep": "in near behind beside |",
    "Manner.live": "quietly happily | calmly",
    "Manner.speak": "loudly happily | badly",
    "Manner.fall": "suddenly",
    "Manner.roll": "suddenly slowly",
    "Manner.see": "suddenly",
    "Manner.help": "happily quickly",
    "Manner.eat": "quickly slowly | greedily",
    "Manner.write": "slowly carefully | badly",
    "Manner.hold": "carefully quietly",
    "Manner.drive": "slowly carefully | badly",
    "Manner.chase": "quickly | wildly",
    "Manner.pass": "slowly quickly",
    "Time.pres": "today now",
    "Time.past": "yesterday recently | once",
    "Often": "often never always | sometimes",
    "Joint": "and but",
    "Be.sg.pres": "is",
    "Be.pl.pres": "are",
    "Be.sg.past": "was",
    "Be.pl.past": "were",
    "Who.person": "who",
}
OTHERS |= {f"Who.{name}": "that" for name in ("animal", "thing", "text", "food", "vehicle")}
ENTITIES = relation(
    """anna person sg she 1; ben person sg he 1; carol person sg she 1; dog animal sg it 1; david person sg he 1
    children person pl they 1; emma person sg she 1; cat animal sg it 1; felix person sg he 1; horse animal sg it 1
    farmers person pl they 1; julia person sg she 1; peter person sg he 1; fox animal sg it 1; girls person pl they 1
    bear animal sg it 1; boys person pl they 1; nurses person pl they 1"""
)


def _small(texts: Mapping[str, str]) -> dict[str, str]:
    """The words before the bar."""
    return {name: text.partition("|")[0] for name, text in texts.items()}


def _all(texts: Mapping[str, str]) -> dict[str, str]:
    return {name: text.replace("|", "") for name, text in texts.items()}


def _spoken_of(entities: Relation) -> tuple[dict[str, Relation], dict[str, str]]:
    """The relations and words of DOCUMENT. Entities are Zipf(1.0), a change is to any other."""
    rank = zipf([name for name, *_ in entities])
    kinds = sorted({row[1:] for row in entities})
    relations: dict[str, Relation] = {
        "opening": {(m, e): rank[e] for m in "12345" for e in rank},
        "change": {(e, x): rank[x] for e in rank for x in rank if x != e},
        "entity": entities,
        "pronoun": {(p, c, n): 1.0 for c, n, p in kinds},
    }
    words = {f"{'Known' if p in ('he', 'she') else 'Topic'}.{e}.{n}": e for e, _, n, p in entities}
    return relations, words | {f"Pronoun.{p}.{n}": p for _, n, p in kinds}


SMALL = language(CLAUSES + SENTENCE, DOMAINS, RELATIONS, _small(NOUNS), _small(VERBS), _small(OTHERS), max_words=30)
SPOKEN_OF, ENTITY_WORDS = _spoken_of(ENTITIES)
LONG = replace(
    language(
        CLAUSES + DOCUMENT,
        DOMAINS | {"e": {name: 1.0 for name, *_ in ENTITIES}},
        RELATIONS | SPOKEN_OF,
        _all(NOUNS),
        _all(VERBS),
        _all(OTHERS) | ENTITY_WORDS,
        max_words=126,
    ),
    pronouns={name: pronoun for name, _, _, pronoun in ENTITIES},
)

LEVELS = {"micro": MICRO, "small": SMALL, "long": LONG}
