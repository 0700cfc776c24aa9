"""Vocabularies: fixed specials, nothing lost on the way to ids and back, nothing put in, nothing truncated."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from packages.text.bpe import SMALLEST, Bpe, tokenizer
from packages.text.documents import Corpus, Document
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


# ---- pieces ----


PIECES = Bpe.train(TEXTS * 3, 300)
anything = (
    st.text() | st.text(st.sampled_from("the cat\n\t éß日🦞")) | st.sampled_from([*SPECIALS, "<unk> [EOS] x", "\x00"])
)


@given(anything)
def test_any_text_comes_back_from_pieces_and_gets_no_special(text):
    ids = PIECES.encode(text)
    assert PIECES.decode(ids) == text == PIECES.decode(ids, clean=True)
    assert all(len(SPECIALS) <= id < len(PIECES) for id in ids)


def test_pieces_have_the_specials_of_words():
    assert PIECES.words(range(5)) == list(SPECIALS)
    assert PIECES.decode([*PIECES.encode("the cat"), EOS, PAD]) == "the cat[EOS][PAD]"
    assert PIECES.decode([*PIECES.encode("the cat"), EOS, PAD], clean=True) == "the cat"


def test_texts_and_words_one_and_many_are_encoded_alike():
    assert PIECES.encode(["the", "cat"]) == PIECES.encode("the cat")
    assert list(PIECES.encode_all(TEXTS * 1000)) == [PIECES.encode(text) for text in TEXTS] * 1000


def test_a_piece_occurs_twice_or_is_a_byte():
    assert len(Bpe.train(["abcd"], 300)) == SMALLEST
    assert len(Bpe.train(["abcd abcd"], 300)) > SMALLEST


def test_training_twice_gives_one_tokenizer():
    assert Bpe.train(TEXTS * 3, 300).sha256 == PIECES.sha256


def test_a_size_below_the_bytes_is_refused():
    with pytest.raises(ValueError, match="vocab_size is 260; bytes and specials alone are 261"):
        Bpe.train(TEXTS, 260)


def test_pieces_survive_file_folder_and_pickle(tmp_path):
    file = PIECES.save(tmp_path / "deep" / "tokenizer.json")
    for copy in (Bpe.load(file), Bpe.load(file.parent), pickle.loads(pickle.dumps(PIECES))):
        assert copy.sha256 == PIECES.sha256 and copy.encode("the [EOS]") == PIECES.encode("the [EOS]")


def test_what_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    for wrong in (tmp_path / "x.json", tmp_path, tmp_path / "none.json"):
        with pytest.raises(ValueError, match=r"is no tokenizer .*give a tokenizer.json"):
            Bpe.load(wrong)


def test_an_id_beyond_the_pieces_is_named():
    with pytest.raises(ValueError, match=rf"id {len(PIECES)} is not in"):
        PIECES.decode([len(PIECES)])


@pytest.fixture
def foreign(tmp_path):
    """A tokenizer of another house: its own specials, a template, truncation and padding."""
    words = {"<pad>": 0, "<unk>": 1, "<s>": 2, "the": 3, "cat": 4}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<pad>", "<s>"])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    made.enable_truncation(2)
    made.enable_padding(length=9)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_a_foreign_tokenizer_stands_behind_our_specials_and_cuts_nothing(foreign):
    pieces = Bpe.load(foreign)
    assert len(pieces) == 10 and pieces.words(range(5)) == list(SPECIALS)
    assert pieces.encode("the cat the dog") == [8, 9, 8, UNK]
    assert pieces.words([8, 9]) == ["the", "cat"] and pieces.decode([8, 9, EOS]) == "the cat[EOS]"


def corpus(*texts: str) -> Corpus:
    return Corpus("made", lambda: iter([Document(text, "0") for text in texts]))


def test_a_trained_tokenizer_is_cached_by_corpus_and_size(tmp_path):
    first = tokenizer("train", 300, corpus(*TEXTS * 3), tmp_path)
    assert first.sha256 == PIECES.sha256
    for size, texts in ((300, TEXTS * 3), (290, TEXTS * 3), (300, TEXTS * 4)):
        tokenizer("train", size, corpus(*texts), tmp_path)
    files = sorted(tmp_path.rglob("*"))
    assert [file.name for file in files if file.is_file()] == ["tokenizer.json"] * 3
    other = Bpe.train(["abcd abcd"], 300)
    other.save(next(file for file in files if file.parent.name.endswith("-290")))
    assert tokenizer("train", 290, corpus(*TEXTS * 3), tmp_path).sha256 == other.sha256  # read, not trained again


def test_a_larger_tokenizer_is_never_truncated(tmp_path):
    file = PIECES.save(tmp_path / "tokenizer.json")
    assert len(tokenizer(str(file), len(PIECES), corpus(), tmp_path)) == len(PIECES)
    with pytest.raises(ValueError, match=rf"has {len(PIECES)} ids and 280 were asked for; .*never truncated to UNK"):
        tokenizer(str(file), 280, corpus(), tmp_path)


def test_a_tokenizer_that_is_nowhere_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"'no/where' is neither a file or folder here nor .*give the path"):
        tokenizer("no/where", None, corpus(), tmp_path)
    with pytest.raises(ValueError, match="trained without a size; set vocab_size"):
        tokenizer("train", None, corpus(), tmp_path)
