"""Metrics of text without a grammar: counted truths are the exact ones where these are known, floors lie in order."""

import numpy as np
import pytest

from packages.text.empirical import CountedKL, Pool, against, floors, spread
from packages.text.fluency import NgramKL
from packages.text.rows import fingerprints
from packages.text.table import measure
from tests.text.toy_grammar import Toy

ALONE = {"sync_on_compute": False}
SAID = [("a", "b"), ("a", "c"), ("b",), ("a", "b", "c")]
DRAWN = [("a", "b"), ("c", "x"), ("b", "b", "a")]


@pytest.mark.parametrize("order", [1, 2])
def test_a_counted_truth_gives_the_divergence_of_the_same_table(order):
    """The table of NgramKL, its border last, filled with the same counts."""
    words, counted = ("a", "b", "c"), CountedKL(SAID, order, **ALONE)
    truth = np.zeros((4,) * order)
    for run, place in counted.places.items():
        truth[tuple(words.index(word) if word in words else 3 for word in run)] = counted.truth[place]
    dense = NgramKL(words, truth, **ALONE)
    for metric in (counted, dense):
        metric.update(DRAWN)
        metric.update(SAID[:1])
    assert [float(x) for x in counted.compute()] == pytest.approx([float(x) for x in dense.compute()], abs=1e-12)


def test_what_was_counted_lies_nearest_to_itself():
    metric = CountedKL(SAID, 2, **ALONE)
    metric.update(SAID)
    assert float(metric.compute().value) == pytest.approx(0, abs=1e-12)
    metric.update([("x",)] * 9)
    assert 0.5 < float(metric.compute().value) < np.log(101)


@pytest.fixture(scope="module")
def halves():
    sentences = [each.words for each in Toy().samples(0, range(1200))]
    return sentences[::2], sentences[1::2]


def test_pairs_are_those_of_the_sentences_and_words_as_frequent(halves):
    training, _ = halves
    pool = Pool(training)
    pairs = {pair for words in training for pair in zip(("", *words), (*words, ""))}
    drawn = pool.bigram(400, 30)
    assert {pair for words in drawn if len(words) < 30 for pair in zip(("", *words), (*words, ""))} <= pairs
    counts = [
        sum(words.count("dogs") for words in rows) / sum(map(len, rows)) for rows in (training, pool.unigram(4000, 30))
    ]
    assert counts[0] == pytest.approx(counts[1], abs=0.01)
    assert pool.bigram(9, 30) == drawn[:9] or len(drawn) == 400


def test_true_sentences_are_nearer_than_pairs_and_pairs_than_words(halves):
    training, held_out = halves
    found = floors(training, held_out, against(held_out, fingerprints(training), **ALONE), 400, 30)
    assert found["true"]["bigram_kl"].value < found["unigram"]["bigram_kl"].value
    assert found["bigram"]["bigram_kl"].value < found["unigram"]["bigram_kl"].value
    assert found["true"]["length_tv"].value < found["unigram"]["length_tv"].value
    assert set(found["true"]) == set(found["bigram"]) and "parse" not in found["true"]


def test_the_true_share_of_novel_sentences_is_that_of_held_out_ones(halves):
    training, held_out = halves
    found = floors(training, held_out, against(held_out, fingerprints(training), **ALONE), 400, 30)
    new = {tuple(words) for words in held_out} - {tuple(words) for words in training}
    share = np.mean([tuple(words) in new for words in spread(held_out, 400)])
    assert found["true"]["novel"].value == pytest.approx(share) and share > 0


def test_lengths_of_windows_are_not_compared():
    assert "length_tv" not in against(SAID, lengths=False) and "length_tv" in against(SAID)


def test_words_that_never_occur_count_in_what_was_said():
    metric = CountedKL(SAID, 1, **ALONE)
    metric.update([("x", "y")])
    assert int(metric.compute().n) == 3 and int(metric.counts.sum()) == 1  # its end


def test_one_word_over_and_over_repeats_itself_and_lies_far_off(halves):
    _, held_out = halves
    found = measure([("dogs",) * 12] * 64, against(held_out, **ALONE))
    assert found["repeat_3"].value == found["self_bleu"].value == 1 and found["unigram_kl"].value > 1
