"""Metrics of sentences: what each is on sentences counted by hand, that padding and ranks change nothing, that specials
are never skipped, and that every floor is where it must be."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from packages.text import floors, fluency, variety
from packages.text.dependencies import Dependency
from packages.text.grammar import Grammar
from packages.text.rows import fingerprint, fingerprints, grams, sentence
from packages.text.table import beside, cells, floors_of, measure, metrics, table, values
from tests.text.toy_grammar import Toy

TOY = Toy()
DOG, DOGS = ("dog", "runs"), ("dogs", "run")
NEAR = ("dog", "near", "dogs", "runs")
SEEN = fingerprints([DOG])


def value(metric, rows):
    metric.update(rows)
    return float(metric.compute().value)


def all_of(rows):
    return measure(rows, metrics(TOY, SEEN))


def assert_same(found, expected):
    """Values to the last digits that the order of a sum decides, numbers of things exactly; nan is nan."""
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name].value == pytest.approx(expected[name].value, rel=1e-12, nan_ok=True), name
        assert found[name].n == expected[name].n, name


@pytest.fixture(scope="module")
def bigrams():
    """Sentences of which some parse, some repeat, some are novel."""
    return floors.bigram(TOY, 300, seed=7)


# rows and sentences


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("dog runs", "dog runs"),
        ("dog runs [EOS] [PAD] [PAD]", "dog runs"),
        ("[EOS]", ""),
        ("dog runs [PAD] [PAD]", "dog runs [PAD] [PAD]"),
        ("dog [PAD] runs [EOS] [PAD]", "dog [PAD] runs"),
        ("dog runs [EOS] dog [PAD]", "dog runs [EOS] dog [PAD]"),
        ("dog runs [EOS] [EOS] [PAD]", "dog runs [EOS] [EOS] [PAD]"),
    ],
)
def test_a_sentence_is_what_stands_before_a_proper_end_and_nothing_in_it_is_skipped(row, words):
    assert " ".join(sentence(row.split())) == words
    assert sentence(sentence(row.split())) == sentence(row.split())


def test_ninety_percent_padding_changes_no_metric(bigrams):
    padded = [[*row, "[EOS]", *["[PAD]"] * (9 * len(row) + 9)] for row in bigrams]
    assert_same(all_of(padded), all_of(bigrams))


@pytest.mark.parametrize("special", ["[PAD]", "[UNK]", "[BOS]", "[MASK]"])
def test_a_special_inside_a_sentence_is_counted_by_every_metric(special):
    found = all_of([["dog", special, "runs", "[EOS]", "[PAD]"]])
    assert found["special"].value == pytest.approx(1 / 3) and found["parse"].value == found["novel"].value == 0
    assert found["unigram_entropy"].value == pytest.approx(math.log(3))
    assert found["unigram_kl"].n == 4 and found["length_tv"].value == 1


def test_one_word_said_forever_is_no_sentence_without_entropy_and_all_repeats():
    found = all_of([["have"] * 64] * 5)
    assert found["parse"].value == found["unigram_entropy"].value == 0
    assert found["self_bleu"].value == found["repeat_3"].value == 1


# single metrics


def test_parse_rate_is_the_share_of_sentences_the_grammar_derives():
    assert value(fluency.ParseRate(TOY), [DOG, NEAR, ("dog", "run"), ()]) == 0.5


def test_cross_entropy_is_of_parsed_sentences_per_token_with_the_end_as_one():
    metric = fluency.GrammarCrossEntropy(TOY, 0.25)
    metric.update([DOG, NEAR, ("dog", "run")])
    expected = -math.log(0.75 * 0.7 * 0.6) - math.log(0.75 * 0.3 * 0.6 * 0.4)
    assert metric.compute().value == pytest.approx(expected / (3 + 5) - 0.25) and metric.compute().n == 2


def test_cross_entropy_of_true_samples_is_the_entropy():
    gaps = [
        value(fluency.GrammarCrossEntropy(TOY, TOY.entropy().per_token), floors.true(TOY, 500, s)) for s in range(12)
    ]
    assert abs(np.mean(gaps)) < 4 * np.std(gaps) / math.sqrt(12)


def test_kl_of_one_word_said_forever_is_the_analytic_one():
    truth = TOY.unigram()
    metric = fluency.NgramKL(TOY.words, np.array([0.5, 0.25, 0, 0, 0, 0, 0.25]))
    assert value(metric, [("dog",) * 3]) == pytest.approx(
        0.5 * math.log(0.5 * 1.01 / (0.75 + 0.005))
        + 0.25 * math.log(101)
        + 0.25 * math.log(0.25 * 1.01 / (0.25 + 0.0025))
    )
    assert truth.sum() == pytest.approx(1)


@pytest.mark.parametrize("order", [1, 2])
def test_kl_is_its_definition_and_counts_what_is_out_of_the_lexicon_in_n(order, bigrams):
    rows = [*bigrams, ("dog", "[UNK]", "barks")]
    truth = TOY.unigram() if order == 1 else TOY.bigram()
    names = [*TOY.words, "[EOS]"]
    runs = Counter(run for row in rows for run in grams([*["[EOS]"] * (order - 1), *row, "[EOS]"], order))
    total = sum(runs.values())
    expected = 0.0
    for cell, p in np.ndenumerate(truth):
        if p:
            q = (runs[tuple(names[place] for place in cell)] + 0.01 * total * p) / (1.01 * total)
            expected += p * math.log(p / q)
    metric = fluency.NgramKL(TOY.words, truth)
    assert value(metric, rows) == pytest.approx(expected, rel=1e-12) and metric.compute().n == total


def test_kl_of_true_shares_is_nothing_and_of_nothing_known_the_logarithm_of_101():
    half = np.array([0.25, 0.25, 0, 0, 0, 0, 0.5])
    assert value(fluency.NgramKL(TOY.words, half), [("dog",), ("dogs",)]) == pytest.approx(0, abs=1e-12)
    assert value(fluency.NgramKL(TOY.words, np.array([0.5, 0.5, 0, 0, 0, 0, 0])), [("cow",)] * 9) == pytest.approx(
        math.log(101)
    )


def test_the_plug_in_noise_of_bigrams_is_about_half_a_cell_per_count():
    """On independent draws it is (cells - 1) / 2N; sentences are less random than that, so it is not more."""
    rows = [floors.true(TOY, 400, seed) for seed in range(10)]
    metric = [fluency.NgramKL(TOY.words, TOY.bigram()) for _ in rows]
    found = np.mean([value(m, r) for m, r in zip(metric, rows)])
    independent = (np.count_nonzero(TOY.bigram()) - 1) / 2 / float(metric[0].total)
    assert 0.25 * independent < found < 1.1 * independent


def test_length_distance_is_total_variation_and_too_long_counts_whole():
    lengths = TOY.length_distribution()
    assert value(fluency.LengthTV(lengths), [DOG] * 3) == pytest.approx(1 - lengths[2])
    assert value(fluency.LengthTV(lengths), [["dog"] * 64, ["dog"] * 10]) == pytest.approx(1)
    half = np.array([0, 0, 0.5, 0, 0.5])
    assert value(fluency.LengthTV(half), [DOG, NEAR]) == 0


def test_variety_is_distinct_among_all():
    rows = [DOG, DOG, NEAR, ()]
    assert value(variety.UniqueShare(), rows) == 3 / 4
    assert value(variety.DistinctN(1), rows) == 4 / 8
    assert value(variety.DistinctN(2), rows) == 4 / 5
    assert value(variety.DistinctN(9), [("a", "b")]) != value(variety.DistinctN(9), [("a", "b")])  # nan


def test_unigram_entropy_is_of_the_words_of_all_sentences_together():
    assert value(variety.UnigramEntropy(), [("a", "b"), ("a", "c")]) == pytest.approx(1.5 * math.log(2))


def test_repeats_are_places_whose_trigram_stands_twice_in_one_sentence():
    assert value(fluency.RepeatRate(3), [["a", "b", "c", "a", "b", "c"], ["a", "b", "c"]]) == 2 / 5
    assert value(fluency.RepeatRate(2), [("a", "b", "a", "b")]) == 2 / 3


def test_novel_is_what_parses_and_was_not_seen():
    metric = fluency.Novelty(fingerprints(iter([DOG, NEAR, DOG])), TOY)
    assert value(metric, [DOG, DOGS, ("dogs", "runs"), NEAR]) == 1 / 4
    assert value(fluency.Novelty(SEEN), [DOG, DOGS, ("dogs", "runs")]) == pytest.approx(2 / 3)
    assert value(fluency.Novelty(fingerprints([])), [DOG]) == 1


def test_what_was_seen_is_kept_as_sorted_64_bit_names():
    seen = fingerprints(sentence.words for sentence in TOY.samples(1, range(200)))
    assert seen.dtype == np.uint64 and (np.diff(seen) > 0).all() and len(seen) <= len(TOY.language)
    assert fingerprint(("dog", "runs")) != fingerprint(("dog runs",)) != fingerprint(("runs", "dog"))


def test_agreement_is_the_share_of_satisfied_dependencies_by_kind_and_distance():
    read = {"a": [("quotes", 0, 3, True), ("quotes", 4, 7, False)], "b": [("quotes", 0, 40, False)], "c": []}
    read["d"] = [("subject-verb", 1, 0, True), ("subject-verb", 1, 3, None)]
    agreement = fluency.Agreement(lambda words: [Dependency(*each) for each in read[words[0]]])
    found = measure([("a",), ("a",), ("b",), ("c",), ("d",)], {"agreement": agreement})
    some = {name: (value.value, value.n) for name, value in found.items() if value.n}
    assert some == {
        "agreement": (0.5, 6),
        "agreement/quotes": (0.4, 5),
        "agreement/quotes/3": (0.5, 4),
        "agreement/quotes/>16": (0, 1),
        "agreement/subject-verb": (1, 1),
        "agreement/subject-verb/1": (1, 1),
    }


def test_a_wrong_number_shows_in_the_agreement_of_what_does_not_parse():
    rows = [DOG, NEAR, ("dogs", "near", "dog", "runs"), ("near",)]
    found = all_of(rows)
    assert found["agreement"].value == pytest.approx(2 / 3) and found["agreement/subject-verb/3"].value == 1 / 2


# self-BLEU


def plain_bleu(words, references, order=4):
    """Papineni et al. 2002 as written, one sentence at a time."""
    if not words:
        return 0.0
    orders = range(1, min(order, len(words)) + 1)
    logs = 0.0
    for n in orders:
        counts, others = Counter(grams(words, n)), [Counter(grams(each, n)) for each in references]
        matched = sum(min(count, max(other[run] for other in others)) for run, count in counts.items())
        logs += math.log((matched or 0.1) / sum(counts.values())) / len(orders)
    closest = min((len(each) for each in references), key=lambda length: (abs(length - len(words)), length))
    return math.exp(logs + min(0.0, 1 - closest / len(words)))


@pytest.mark.parametrize("seed", range(8))
def test_self_bleu_is_the_mean_bleu_against_all_others(seed):
    rng = np.random.default_rng(seed)
    rows = [tuple(rng.choice(list("abc"), size)) for size in rng.choice([1, 3, 4, 6, 9, 13], rng.integers(2, 9))]
    expected = np.mean([plain_bleu(row, rows[:i] + rows[i + 1 :]) for i, row in enumerate(rows)])
    assert value(variety.SelfBLEU(4), rows) == pytest.approx(expected, rel=1e-12)


def test_self_bleu_needs_two_sentences_with_words():
    metric = variety.SelfBLEU()
    assert math.isnan(value(metric, [DOG, ()])) and metric.compute().n == 1
    assert value(metric, [DOG]) == 1


# ranks


def test_parts_merge_to_the_whole_even_an_empty_one(bigrams):
    whole, parts = all_of(bigrams), [metrics(TOY, SEEN) for _ in range(3)]
    for part, rows in zip(parts, [bigrams[:100], [], bigrams[100:]]):
        for metric in part.values():
            metric.update(rows)
    for name, metric in parts[0].items():
        metric.merge_state(parts[1][name])
        metric.merge_state(parts[2][name])
    assert_same(values(parts[0]), whole)


def test_a_metric_sees_many_batches_and_starts_anew(bigrams):
    found = metrics(TOY, SEEN)
    for _ in range(2):
        for metric in found.values():
            metric.reset()
            metric.update(bigrams[:10])
            metric.update(bigrams[10:])
        assert_same(values(found), all_of(bigrams))


def test_without_a_sentence_no_metric_has_a_value():
    found = metrics(TOY, SEEN)
    for metric in found.values():
        metric.update([])
    assert all(math.isnan(value.value) and value.n == 0 for value in values(found).values())


def test_values_are_float64():
    for metric in metrics(TOY, SEEN).values():
        metric.update([DOG, DOGS])
        assert metric.compute().value.dtype == torch.float64


# floors and the table


@pytest.mark.parametrize("sampler", floors.FLOORS.values(), ids=floors.FLOORS)
def test_sentence_17_of_a_floor_is_the_same_at_any_number(sampler):
    assert sampler(TOY, 40)[:18] == sampler(TOY, 18) != sampler(TOY, 18, seed=1)


def test_the_floors_know_what_they_should():
    found = {name: measure(sampler(TOY, 4000), metrics(TOY)) for name, sampler in floors.FLOORS.items()}
    assert found["true"]["parse"].value == found["true"]["agreement"].value == 1
    assert found["unigram"]["unigram_kl"].value < 0.01 < 0.5 < found["unigram"]["bigram_kl"].value
    assert found["bigram"]["bigram_kl"].value < 0.02 and found["bigram"]["parse"].value < 0.9
    assert all(value["parse"].n == 4000 for value in found.values())


def test_the_table_puts_every_metric_beside_the_true_sampler_and_two_that_know_less(bigrams):
    rows = table(bigrams, TOY, SEEN)
    expected = {name for name, value in all_of(bigrams).items() if not math.isnan(value.value)}
    assert {row.name for row in rows} == expected
    floor = measure(floors.true(TOY, len(bigrams)), metrics(TOY, SEEN))
    for row in rows:
        true = floor[row.name].value
        assert row.excess == (None if math.isnan(true) else pytest.approx(row.value - true))
        assert row.unit and row.of and row.n > 0


def test_the_table_prints(bigrams):
    head, lines = cells(table(bigrams, TOY))
    assert {len(line) for line in lines} == {len(head)} and lines[0][0] == "parse" and lines[0][2] == "1.0000"
    assert lines[0][-1] == "300 sentences"


def test_floors_can_be_measured_once_for_many_tables(bigrams):
    assert table(bigrams, TOY, SEEN, floors_of(TOY, 300, SEEN)) == table(bigrams, TOY, SEEN)


def test_sentences_of_no_grammar_stand_beside_others(bigrams):
    true = floors.true(TOY, 50)
    rows = beside(measure(bigrams, metrics(seen=SEEN)), {"true": measure(true, metrics(seen=SEEN))})
    assert [row.name for row in rows] == [
        "distinct_2",
        "unique",
        "self_bleu",
        "unigram_entropy",
        "repeat_3",
        "special",
        "novel",
    ]
    assert all(row.floors.keys() == {"true"} for row in rows)


# the grammar itself


@pytest.mark.parametrize("level", ["micro", "small"])
def test_true_sentences_of_a_level_are_right_in_everything(level):
    grammar = Grammar(level)
    found = measure(floors.true(grammar, 300), metrics(grammar, fingerprints([])))
    assert found["parse"].value == found["agreement"].value == found["novel"].value == 1
    assert abs(found["cross_entropy_gap"].value) < 0.15 and found["length_tv"].value < 0.15


@pytest.mark.parametrize("level", ["micro", "small"])
def test_the_divergence_of_true_sentences_is_noise_that_falls_with_their_number(level):
    grammar = Grammar(level)
    for truth in (grammar.unigram(), grammar.bigram()):
        noise = [value(fluency.NgramKL(grammar.words, truth), floors.true(grammar, n)) for n in (200, 800, 3200)]
        assert noise[0] > 1.5 * noise[1] > 2.25 * noise[2] > 0


def test_one_word_said_forever_is_the_worst_of_the_grammar_too():
    found = measure([["dog"] * 64] * 5, metrics(Grammar("micro")))
    assert found["parse"].value == found["unigram_entropy"].value == found["cross_entropy_gap"].n == 0
    assert found["self_bleu"].value == found["repeat_3"].value == found["length_tv"].value == 1
    assert found["unigram_kl"].value > 3


def test_with_held_out_pairs_only_metrics_without_exact_shares_remain():
    grammar = Grammar("micro", held_out_share=0.1)
    rows = table(floors.true(grammar, 100, seed=4), grammar, SEEN)
    assert rows[0].name == "parse" and rows[0].value == 1 and rows[0].floors == {"true": 1}
    assert not {"cross_entropy_gap", "unigram_kl", "bigram_kl", "length_tv"} & {row.name for row in rows}
