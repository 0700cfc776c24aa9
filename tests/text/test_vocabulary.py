"""Vocabularies: fixed specials, nothing lost on the way to ids and back, nothing put in, nothing truncated."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packages.text.vocabulary import BOS, EOS, MASK, PAD, SPECIALS, UNK, Vocabulary

TEXTS = ["the old cat sees the dog", "the cat sleeps"]
words = st.lists(st.sampled_from(sorted({w for text in TEXTS for w in text.split()})))


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary.of(TEXTS)


def test_specials_are_the_first_five_ids(vocabulary):
    assert (PAD, UNK, BOS, EOS, MASK) == (0, 1, 2, 3, 4)
    assert vocabulary.words(range(5)) == list(SPECIALS)


@given(words)
def test_known_words_come_back(spoken):
    vocabulary = Vocabulary.of(TEXTS)
    assert vocabulary.words(vocabulary.encode(spoken)) == spoken
    assert vocabulary.decode(vocabulary.encode(" ".join(spoken))) == " ".join(spoken)


def test_words_are_ordered_by_count_then_spelling(vocabulary):
    assert vocabulary.words(range(5, len(vocabulary))) == ["the", "cat", "dog", "old", "sees", "sleeps"]


def test_rare_words_are_left_out_and_named():
    vocabulary = Vocabulary.of(TEXTS, min_count=2)
    assert vocabulary.words(range(5, len(vocabulary))) == ["the", "cat"]
    assert vocabulary.encode("the old cat") == [5, UNK, 6]
    assert vocabulary.unknown("the old cat") == ["old"]


def test_the_name_of_a_special_in_a_text_is_no_special(vocabulary):
    assert vocabulary.encode("the [EOS] [PAD] cat") == [5, UNK, UNK, 6]


def test_decoding_shows_specials_unless_clean(vocabulary):
    ids = np.array([5, 6, EOS, PAD])
    assert vocabulary.decode(ids) == "the cat [EOS] [PAD]"
    assert vocabulary.decode(ids, clean=True) == "the cat"


@pytest.mark.parametrize("id", [-1, 11])
def test_an_id_beyond_the_vocabulary_is_named(vocabulary, id):
    with pytest.raises(ValueError, match=rf"id {id} is not in a vocabulary of 11 ids"):
        vocabulary.decode([5, id])


@pytest.mark.parametrize("wrong", [["a", "a"], ["[EOS]"], ["a b"], [""], ["\n"]])
def test_words_that_could_not_come_back_are_refused(wrong):
    with pytest.raises(ValueError, match="word"):
        Vocabulary(wrong)


def test_saved_and_loaded_is_the_same(vocabulary, tmp_path):
    loaded = Vocabulary.load(vocabulary.save(tmp_path / "deep" / "vocabulary.json"))
    assert loaded.sha256 == vocabulary.sha256 and loaded.encode(TEXTS[0]) == vocabulary.encode(TEXTS[0])
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["vocabulary.json"]


def test_the_hash_knows_words_and_order():
    assert len({Vocabulary(each).sha256 for each in (["a", "b"], ["b", "a"], ["a"], ["ab"])}) == 4


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"\xff", json.dumps({"words": 3}).encode()])
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match="no vocabulary of words"):
        Vocabulary.load(tmp_path / "x.json")
