"""What counting alone makes of a text: nats that are a likelihood, and by hand."""

import math

import numpy as np
import pytest

from packages.text import counted
from packages.text.vocabulary import BOS

rng = np.random.default_rng(0)


def test_both_are_likelihoods_over_every_id():
    """The chances of all ids at a place sum to 1."""
    training, size = [rng.integers(5, 9, 40), rng.integers(5, 9, 30)], 12
    counts = np.bincount(np.concatenate(training), minlength=size)
    assert counted.shares(counts).sum() == pytest.approx(1)
    for before in (BOS, 6, 11):
        first = counted.bigram(training, [np.array([before])], size)
        both = [counted.bigram(training, [np.array([before, id])], size) * 2 for id in range(size)]
        assert sum(math.exp(first - nats) for nats in both) == pytest.approx(1)


def test_nats_of_pairs_are_those_of_witten_and_bell_by_hand():
    training, size = [np.array([5, 6]), np.array([5, 7])], 8
    alone = np.array([1, 1, 1, 1, 1, 3, 2, 2]) / 12
    first, second = (2 + 1 * alone[5]) / 3, (1 + 2 * alone[6]) / 4
    assert counted.bigram(training, [np.array([5, 6])], size) == pytest.approx(-math.log(first * second) / 2)
    unseen = (0 + 2 * alone[5]) / 4
    assert counted.bigram(training, [np.array([5, 5])], size) == pytest.approx(-math.log(first * unseen) / 2)


def test_pairs_know_more_than_words_of_a_text_with_order():
    text = [np.tile([5, 6, 7], 20)] * 4
    alone = counted.unigram(np.bincount(np.concatenate(text), minlength=8), np.concatenate(text))
    assert counted.bigram(text, text, 8) < 0.3 < 1.05 < alone < 1.2
