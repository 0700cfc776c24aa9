"""What decides about each other in a row of words, what a sentence is about, and pairs that training never shows."""

from collections import Counter
from functools import cache

import numpy as np
import pytest

from packages.text.dependencies import marks
from packages.text.grammar import Grammar, Sentence

LEVELS = ["micro", "small", "long"]


@cache
def grammar(level: str, held_out_share: float = 0.0, compositional: bool = False) -> Grammar:
    return Grammar(level, held_out_share=held_out_share, compositional=compositional)


def found(text: str, level: str = "small") -> Counter:
    """kind, the two words, satisfied; of those that say something."""
    words = [*text.split(), "END"]
    dependencies = grammar(level).dependencies(words[:-1])
    return Counter(
        (d.kind, words[d.first], words[d.second], d.satisfied) for d in dependencies if d.satisfied is not None
    )


def verbs(text: str, level: str = "small") -> set:
    return {each[1:] for each in found(text, level) if each[0] == "subject-verb"}


@pytest.mark.parametrize("level", LEVELS)
def test_every_dependency_of_a_sentence_is_satisfied(level):
    for sentence in grammar(level).samples(1, range(150)):
        assert all(d.satisfied is not False for d in grammar(level).dependencies(sentence.words))


@pytest.mark.parametrize("level", LEVELS)
def test_without_its_tree_a_sentence_has_the_same_dependencies(level):
    dependencies = grammar(level)._dependencies
    for sentence in grammar(level).samples(2, range(100)):
        read, guessed = (sorted(dependencies(sentence.words, tree)) for tree in (sentence.tree, None))
        assert read == guessed


def test_a_verb_belongs_to_its_subject_and_not_to_what_stands_between():
    assert verbs("the dogs near the house sleep .") == {("dogs", "sleep", True)}
    assert verbs("the dogs that the cat sees sleep .") == {("dogs", "sleep", True), ("cat", "sees", True)}
    assert verbs("the dogs ( that chase the cat ) sleep .") == {("dogs", "sleep", True), ("dogs", "chase", True)}
    assert verbs("anna 's dogs sleep .") == {("dogs", "sleep", True)}
    assert verbs("anna and ben sleep .") == {("anna", "sleep", True)}
    assert verbs("there are two dogs near the house .") == {("dogs", "are", True)}
    assert verbs("“ the dog sleeps ” , the girls say .") == {("dog", "sleeps", True), ("girls", "say", True)}


def test_a_wrong_number_is_found_where_it_stands():
    assert verbs("the dogs near the house sleeps .") == {("dogs", "sleeps", False)}
    assert verbs("anna and ben sleeps .") == {("anna", "sleeps", False)}
    assert ("determiner-noun", "dog", "two", False) in found("two small dog sleep .")
    assert ("determiner-noun", "dog", "two", False) in found("there are two dog near the house .")


def test_the_past_agrees_with_either_number():
    assert verbs("the dogs slept .") == set()


def test_a_row_that_is_no_sentence_is_read_piece_by_piece():
    assert verbs("now near the dog sleeps that very two cats runs .") == {
        ("dog", "sleeps", True),
        ("cats", "runs", False),
    }
    assert not found("now near that very . and and")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("“ a ”", [(2, True)]),
        ("“ a ‘ b ’ ”", [(2, True), (5, True)]),
        ("“ a ( b ”", [(3, False), (5, False), (5, False)]),
        ("a ”", [(2, False)]),
        ("( a b", [(3, False)]),
    ],
)
def test_marks_are_paired_inside_out(text, right):
    assert sorted((d.distance, d.satisfied) for d in marks(text.split())) == right


def test_a_pronoun_stands_for_the_one_last_spoken_of():
    text = "anna sleeps . she sings . the dog runs . {} runs . anna waits ."
    right = found(text.format("it"), "long")
    wrong = found(text.format("she"), "long")
    assert ("pronoun", "anna", "she", True) in right and ("pronoun", "dog", "it", True) in right
    assert ("pronoun", "dog", "she", False) in wrong


CORRUPTED = [
    ("the dogs that the cat sees sleep .", "the dogs that the cat see sleep ."),
    ("the dogs that the cat sees sleep .", "the dogs that the cat sees sleeps ."),
    ("this dog sleeps .", "these dog sleeps ."),
    ("the girls shout , “ the dog sleeps ” .", "the girls shout , “ the dog sleeps ’ ."),
    ("the girls shout , “ the dog sleeps ” .", "the girls shout , “ the dog sleeps ."),
    ("the girl ( very young ) sleeps .", "the girl ( very young sleeps ."),
    ("the girl ( very young ) sleeps .", "the girl ( very young ” sleeps ."),
    ("the girl eats the cake .", "the girl eats the house ."),
    ("the girl who sleeps sings .", "the girl that sleeps sings ."),
    ("yesterday , the girl slept .", "yesterday , the girl sleeps ."),
    ("the dog sleeps .", "the dog sleeps the cat ."),
    ("the girl gives ben the book .", "the girl gives ben ."),
]


@pytest.mark.parametrize(("right", "wrong"), CORRUPTED)
def test_a_corrupted_sentence_is_rejected(right, wrong):
    assert grammar("small").parse(right.split()) is not None
    assert grammar("small").parse(wrong.split()) is None


@pytest.mark.parametrize("level", LEVELS)
def test_a_tree_carries_the_words_and_a_category_for_each(level):
    for sentence in grammar(level).samples(9, range(30)):
        assert tuple(leaf.word for leaf in sentence.tree.leaves()) == sentence.words
        assert len(sentence.pos) == len(sentence.words)
        assert sentence.pos[-1] == "."


def test_slots_say_what_a_sentence_is_about():
    small, words = grammar("small"), "the small black dogs never chased the rabbit ."
    assert Sentence(tuple(words.split()), small).slots == {
        "subject": "dog",
        "verb": "chase",
        "object": "rabbit",
        "colour": "black",
        "number": "pl",
        "tense": "past",
    }


def shows(level: str, words: tuple[str, ...], share: float) -> bool:
    """Whether a held-out pair of subject and verb stands in a sentence, by way of the words."""
    held = grammar(level, share).held_out
    pairs = (d for d in grammar(level).dependencies(words) if d.kind == "subject-verb")
    return any(held.holds(words[d.first], words[d.second]) for d in pairs)


def test_training_shows_no_held_out_pair_and_the_split_shows_one_always():
    training = grammar("small", 0.1).samples(0, range(500))
    split = grammar("small", 0.1, True).samples(0, range(40))
    assert not any(shows("small", s.words, 0.1) for s in training)
    assert all(shows("small", s.words, 0.1) for s in split)
    free = grammar("small").samples(0, range(500))
    assert 0.02 < np.mean([shows("small", s.words, 0.1) for s in free]) < 0.4


def test_sentences_without_a_held_out_pair_stay_where_they_were():
    free, held = grammar("small").samples(0, range(300)), grammar("small", 0.1).samples(0, range(300))
    same = [a == b for a, b in zip(free, held)]
    assert same == [not shows("small", s.words, 0.1) for s in free]


def test_the_share_of_held_out_pairs_is_as_asked():
    language, held = grammar("small").language, grammar("small", 0.1).held_out
    nouns, verbs = set(language.nouns.values()), set(language.verbs.values())
    assert 0.07 < np.mean([held.holds(noun, verb) for noun in nouns for verb in verbs]) < 0.13


def test_held_out_pairs_leave_no_exact_quantities():
    held = grammar("micro", 0.1)
    for ask in (held.entropy, held.unigram, held.bigram, held.length_distribution, lambda: held.log_prob(("a",))):
        with pytest.raises(ValueError, match="set held_out_share to 0"):
            ask()
    with pytest.raises(ValueError, match="above 0 for the compositional split"):
        Grammar("micro", compositional=True)
