"""The grammar: one sentence per (seed, index); probabilities, entropy and counts exact for what it draws."""

import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from itertools import pairwise
from math import exp, inf, log
from pathlib import Path

import numpy as np
import pytest

from packages.text import derivation
from packages.text.grammar import Grammar
from packages.text.philox import philox

ROOT = Path(__file__).parents[2]
LEVELS = ["micro", "small", "long"]
KNOWN_ANSWERS = [  # Random123, philox4x32-10: counter, key, output
    ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
SIZES = {"micro": (55, 14), "small": (295, 30), "long": (495, 126)}  # words, longest sentence
STREAM = {
    "micro": "b4798c9fee9a2421",
    "small": "88e0a0a2c4a637f2",
    "long": "6ebff0669f43a2ef",
}  # start of the hash of 200 sentences
DRAWS = {"micro": 200_000, "small": 200_000, "long": 10_000}


@cache
def grammar(level: str, max_words: int | None = None) -> Grammar:
    return Grammar(level, max_words)


@cache
def drawn(level: str) -> np.ndarray:
    return grammar(level).ids(2, range(DRAWS[level]))


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, output):
    answer = philox(tuple(np.array([c], np.uint64) for c in counter), key)
    assert tuple(int(word[0]) for word in answer) == output


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_has_the_words_and_the_length_the_sizes_count_on(level):
    assert (len(set(grammar(level).words)), grammar(level).max_words) == SIZES[level]


@pytest.mark.parametrize("level", LEVELS)
def test_the_stream_is_the_one_it_always_was(level):
    """On any version of Python. A change of rules or words makes another stream: pin it anew, and say so."""
    rows = [" ".join(sentence.words) for sentence in grammar(level).samples(1, range(10**12, 10**12 + 200))]
    assert sha256("\n".join(rows).encode()).hexdigest()[:16] == STREAM[level]


@pytest.mark.parametrize("level", LEVELS)
def test_a_sentence_is_the_same_in_any_company(level):
    indices = [10**9, 3, 2**40, 17, 3]
    together = grammar(level).samples(5, indices)
    assert together == [grammar(level).sample(5, index) for index in indices]
    assert len({sentence.words for sentence in together}) == 4


def test_seeds_are_different_streams():
    assert not np.array_equal(grammar("small").ids(0, range(8)), grammar("small").ids(1, range(8)))


PRINT = """
import hashlib; from packages.text.grammar import Grammar
print(hashlib.sha256(Grammar("small").ids(1, range(500)).tobytes()).hexdigest())
"""


def test_a_sentence_is_the_same_in_any_process():
    here = sha256(grammar("small").ids(1, range(500)).tobytes()).hexdigest()
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": "."}
        command = [sys.executable, "-c", PRINT]
        there = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        assert there.strip() == here


def test_sentence_and_ids_are_the_same():
    small = grammar("small")
    ids = small.ids(3, range(50))
    for row, sentence in zip(ids, small.samples(3, range(50))):
        number = len(sentence.words)
        assert [small.words[n] for n in row[:number]] == list(sentence.words)
        assert set(row[number:]) <= {len(small.words)}


@cache
def fewest(level: str, symbol: str) -> int:
    """Words that the symbol derives at least."""
    rules = grammar(level).plain.rules.get(symbol, ())
    return min((sum(fewest(level, each) for each in right) for _, right in rules), default=1)


def derive(level: str, todo: tuple[str, ...], room: int) -> Iterator[tuple[float, tuple[str, ...]]]:
    """Every derivation of at most `room` words, leftmost first: its probability and words."""
    plain = grammar(level).plain
    if sum(fewest(level, symbol) for symbol in todo) > room:
        return
    if not todo:
        yield 1.0, ()
        return
    symbol, *rest = todo
    for p, word in plain.lexicon.get(symbol, ()):
        for q, words in derive(level, tuple(rest), room - 1):
            yield p * q, (word, *words)
    for p, right in plain.rules.get(symbol, ()):
        for q, words in derive(level, (*right, *rest), room):
            yield p * q, words


@cache
def listed(level: str, room: int) -> list[tuple[float, tuple[str, ...]]]:
    return list(derive(level, ("Text",), room))


def test_short_sentences_and_the_rest_sum_to_one():
    micro, short = grammar("micro"), {words for _, words in listed("micro", 6)}
    rest = micro.length_distribution()[7:].sum()
    assert len(short) > 5000
    assert sum(exp(micro.log_prob(words)) for words in short) + rest == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("level", "room"), [("micro", 6), ("small", 4)])
def test_exact_quantities_are_those_of_the_listed_sentences(level, room):
    """Everything counted by hand over the complete list of sentences, where the list is short enough."""
    found, short = listed(level, room), grammar(level, room)
    total = sum(p for p, _ in found)
    tokens = sum(p * (len(words) + 1) for p, words in found) / total
    number = {word: n for n, word in enumerate(short.words)}
    lengths, pairs = np.zeros(room + 1), np.zeros((len(number) + 1,) * 2)
    for p, words in found:
        lengths[len(words)] += p / total
        for before, after in pairwise((-1, *(number[word] for word in words), -1)):
            pairs[before, after] += p / total / tokens
    for p, words in found[::7]:
        assert short.log_prob(words) == pytest.approx(log(p / total), abs=1e-9)
    entropy = sum(-p / total * log(p / total) for p, _ in found)
    assert short.entropy().per_sentence == pytest.approx(entropy, abs=1e-9)
    assert short.entropy().per_token == pytest.approx(entropy / tokens, abs=1e-9)
    assert np.abs(short.length_distribution() - lengths).max() < 1e-12
    assert np.abs(short.bigram() - pairs).max() < 1e-12
    assert np.abs(short.unigram() - pairs.sum(0)).max() < 1e-12


@pytest.mark.parametrize("level", LEVELS)
def test_shares_sum_to_one_and_pairs_to_words(level):
    words, pairs = grammar(level).unigram(), grammar(level).bigram()
    assert words.min() > 0 and words.sum() == pytest.approx(1) and pairs.sum() == pytest.approx(1)
    assert np.abs(pairs.sum(0) - words).max() < 1e-12 and np.abs(pairs.sum(1) - words).max() < 1e-12


def within(draws: np.ndarray, mean: float, errors: float = 4.0) -> bool:
    return abs(draws.mean() - mean) <= errors * draws.std() / len(draws) ** 0.5


BLOCKS = 200  # of independent sentences, to know the error of a count


def misses(codes: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Standard errors between counts and their expectation, of what is expected 100 times or more.

    codes: [draws, places], which of the things counted stands there, -1 nothing; exact: expected share of each.
    """
    often = np.flatnonzero(exact * (codes >= 0).sum() > 100)
    column = np.full(len(exact) + 1, len(often))  # of the rest and of nothing
    column[often] = np.arange(len(often))
    blocks = np.array_split(codes, BLOCKS)
    counts = np.array([np.bincount(column[block.ravel()], minlength=len(often) + 1)[:-1] for block in blocks])
    totals = np.array([(block >= 0).sum() for block in blocks])
    excess = counts - totals[:, None] * exact[often]
    return excess.mean(0) / (excess.std(0) / BLOCKS**0.5)


@pytest.mark.parametrize("level", LEVELS)
def test_drawn_lengths_words_and_pairs_are_those_of_the_distribution(level):
    """Within four standard errors each; of words and pairs the share among tokens."""
    ids, end = drawn(level).astype(np.int64), len(grammar(level).words)
    lengths = (ids < end).sum(1)
    rows = np.pad(ids, ((0, 0), (1, 1)), constant_values=end)
    before, after = rows[:, :-1], rows[:, 1:]
    inside = np.arange(before.shape[1]) <= lengths[:, None]
    pairs = np.where(inside, before * (end + 1) + after, -1)
    for codes, exact in (
        (lengths[:, None], grammar(level).length_distribution()),
        (np.where(inside, after, -1), grammar(level).unigram()),
        (pairs, grammar(level).bigram().ravel()),
    ):
        found = misses(codes, exact)
        assert len(found) > 10 and np.abs(found).max() < 4 + 0.5 * (len(found) > 300)


@pytest.mark.parametrize(("level", "number"), [("micro", 4000), ("small", 2000), ("long", 300)])
def test_drawn_surprise_is_the_entropy(level, number):
    surprise = np.array([-grammar(level).log_prob(s.words) for s in grammar(level).samples(4, range(number))])
    assert within(surprise, grammar(level).entropy().per_sentence)


@pytest.mark.parametrize(("level", "number"), [("micro", 500), ("small", 2000), ("long", 100)])
def test_a_sentence_has_one_derivation(level, number):
    for sentence in grammar(level).samples(6, range(number)):
        chart = grammar(level)._parser.chart(sentence.words)
        inside, best, _ = chart.spans("Text", 0)[len(sentence.words)]
        assert inside == pytest.approx(best, rel=1e-12), " ".join(sentence.words)


def table_of_spans(small: Grammar, words: tuple[str, ...]) -> float:
    """CKY: inside probability of the words, every span from the bottom up."""
    ones, twos = defaultdict(list), defaultdict(list)
    for left, found in small._tables.rules.items():
        for p, *right in found:
            (ones if right[1] is None else twos)[right[0] if right[1] is None else tuple(right)].append((left, p))
    order = {symbol: n for n, symbol in enumerate(small._tables.rules)}
    cells: dict[tuple[int, int], Counter] = defaultdict(Counter)
    for size in range(1, len(words) + 1):
        for start in range(len(words) - size + 1):
            cell = cells[start, start + size]
            if size == 1:
                cell.update({s: p for s, f in small.plain.lexicon.items() for p, word in f if word == words[start]})
            for middle in range(start + 1, start + size):
                for one, p in cells[start, middle].items():
                    for two, q in cells[middle, start + size].items():
                        for left, r in twos.get((one, two), ()):
                            cell[left] += p * q * r
            waiting = sorted(cell, key=order.__getitem__)
            while waiting:
                symbol = waiting.pop(0)
                for left, p in ones.get(symbol, ()):
                    if left not in cell:
                        waiting = sorted([*waiting, left], key=order.__getitem__)
                    cell[left] += p * cell[symbol]
    return cells[0, len(words)][small.plain.start]


def test_descent_finds_what_a_table_of_all_spans_finds():
    small = grammar("small")
    for sentence in small.samples(8, range(50)):
        expected = log(table_of_spans(small, sentence.words)) - log(small._tables.total)
        assert small.log_prob(sentence.words) == pytest.approx(expected, abs=1e-9)


def test_a_sentence_beyond_the_limit_is_none():
    short = grammar("micro", 4)
    long_one = next(s.words for s in grammar("micro").samples(0, range(99)) if len(s.words) == 6)
    assert short.log_prob(long_one) == -inf and short.parse(long_one) is None
    assert max(len(s.words) for s in short.samples(0, range(500))) == 4


def test_words_that_are_no_words_have_no_probability():
    assert grammar("micro").log_prob(("the", "xyz", "sleeps", ".")) == -inf
    assert grammar("micro").log_prob(()) == -inf


def test_bad_questions_are_answered_with_a_sentence():
    with pytest.raises(ValueError, match="the levels are micro, small, long"):
        Grammar("big")
    with pytest.raises(ValueError, match="raise max_words"):
        Grammar("micro", max_words=2)


def test_a_sentence_that_is_always_refused_is_an_error(monkeypatch):
    monkeypatch.setattr(derivation, "MAX_ATTEMPTS", 5)
    micro = grammar("micro")
    draw = derivation.Derivation(micro.plain, micro.words, 14)
    with pytest.raises(ValueError, match="was refused"):
        draw(0, [0], lambda ids: np.ones(len(ids), bool))
