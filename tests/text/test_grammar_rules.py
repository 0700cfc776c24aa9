"""Templates become plain rules: features, relations, bounded recursion, and what a template may not say."""

import pytest

from packages.text.language import with_ed, with_s
from packages.text.lexicon import LEVELS
from packages.text.parser import Parser
from packages.text.rules import expand

NUMBER = {"sg": 0.75, "pl": 0.25}
WORDS = {
    "Det.sg": {"a": 1.0},
    "Det.pl": {"two": 1.0},
    "Noun.sg": {"dog": 2.0, "cat": 1.0},
    "Noun.pl": {"dogs": 1.0},
}


def plain(rules: str, relations=None, **domains):
    return expand(rules, {"n": NUMBER, **domains}, relations or {}, WORDS, "S")


def test_a_variable_takes_one_value_in_a_rule():
    rules = plain("S -> Det.n Noun.n").rules
    assert rules == {"S": ((0.75, ("Det.sg", "Noun.sg")), (0.25, ("Det.pl", "Noun.pl")))}


def test_a_digit_makes_another_variable_of_the_same_domain():
    rules = plain("S -> Det.n Noun.n2").rules["S"]
    assert {right: p for p, right in rules}["Det.sg", "Noun.pl"] == 0.75 * 0.25
    assert len(rules) == 4


def test_a_template_keeps_its_weight_however_many_rules_it_gives():
    rules = plain("S -> Noun.n : 0.2\nS -> 'none' : 0.8").rules["S"]
    assert sum(p for p, right in rules if right != ("'none'",)) == pytest.approx(0.2)


def test_a_count_ends_where_its_domain_ends():
    rules = plain("S -> A.0\nA.d -> 'x' A.d+1 : 0.5\nA.d -> 'y' : 0.5", d=dict.fromkeys("01", 1.0)).rules
    assert rules["A.0"] == ((0.5, ("'x'", "A.1")), (0.5, ("'y'",)))
    assert rules["A.1"] == ((1.0, ("'y'",)),)


def test_a_relation_gives_its_rows_and_no_others():
    likes = {("dog", "cat"): 1.0, ("cat", "dog"): 3.0}
    rules = plain("S -> A.x A.y : 1 : likes x y\nA.dog -> 'd'\nA.cat -> 'c'", {"likes": likes}).rules
    assert rules["S"] == ((0.25, ("A.dog", "A.cat")), (0.75, ("A.cat", "A.dog")))


def test_a_rule_whose_symbol_derives_nothing_is_left_out():
    rules = plain("S -> Det.n Noun.n\nS -> Det.dual Noun.n").rules["S"]
    assert len(rules) == 2


def test_a_chart_sums_over_derivations_and_keeps_the_best():
    rules = "S -> A B : 0.25\nS -> C : 0.75\nA -> 'x'\nB -> 'y' 'z' : 0.5\nB -> 'y' : 0.5\nC -> A 'y' 'z'"
    chart = Parser(plain(rules)).chart(("x", "y", "z"))
    inside, best, _ = chart.spans("S", 0)[3]
    assert (inside, best) == (0.25 * 0.5 + 0.75, 0.75)
    assert str(chart.tree("S", 0, 3)) == "(S (C (A ('x' x)) ('y' y) ('z' z)))"


def test_a_sum_over_splits_of_one_rule_counts_each():
    rules = "S -> A A\nA -> 'x' : 0.5\nA -> 'x' 'x' : 0.5"
    assert Parser(plain(rules)).chart(("x",) * 3).spans("S", 0)[3][:2] == (0.5, 0.25)


def test_words_share_their_weights():
    assert plain("S -> Noun.sg").lexicon["Noun.sg"] == ((2 / 3, "dog"), (1 / 3, "cat"))


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("S -> Nuon.n", "no rule and no word for Nuon"),
        ("S -> Noun.sg S : 0.5\nS -> Noun.sg : 0.5", "S derives itself"),
        ("S : Noun.sg", "cannot read the rule"),
    ],
)
def test_a_mistake_in_a_template_is_named(rules, said):
    with pytest.raises(ValueError, match=said):
        plain(rules)


def test_forms_follow_the_spelling():
    assert [with_s(w) for w in ("dog", "box", "cry", "boy", "watch")] == ["dogs", "boxes", "cries", "boys", "watches"]
    assert [with_ed(w) for w in ("help", "like", "study", "follow")] == ["helped", "liked", "studied", "followed"]


@pytest.mark.parametrize("level", LEVELS)
def test_no_form_is_both_noun_and_verb_and_none_needs_an_before_it(level):
    language = LEVELS[level]
    words = {symbol: {word for _, word in found} for symbol, found in language.plain.lexicon.items()}
    after_a = set().union(
        *(found for symbol, found in words.items() if symbol.split(".")[0] in ("Noun", "Adj", "Colour"))
    )
    assert not set(language.nouns) & set(language.verbs)
    assert not [word for word in after_a if word[0] in "aeiou"]


@pytest.mark.parametrize("level", LEVELS)
def test_words_of_a_class_are_zipf(level):
    for symbol, found in LEVELS[level].plain.lexicon.items():
        first = found[0][0]
        assert [p for p, _ in found] == pytest.approx([first / rank for rank in range(1, len(found) + 1)]), symbol
