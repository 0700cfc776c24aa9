"""Token statistics: counts that add up, entropies of known sources, files that say what the numbers are."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from packages.text.bpe import Bpe
from packages.text.corpora import Source, read
from packages.text.grammar import Grammar
from packages.text.token_report import as_markdown, write
from packages.text.token_statistics import BINS, entropies, entropy, statistics
from packages.text.vocabulary import Vocabulary

WORDS = Vocabulary(map(str, range(100)))
TEXTS = [" ".join(["1"] * 10), " ".join(["2"] * 40), " ".join(["3"] * 99 + ["x"])]


def test_counts_are_of_the_texts():
    found = statistics(iter(TEXTS), WORDS)
    assert (found.documents, found.words, found.tokens, found.kinds, found.vocabulary) == (3, 150, 150, 4, 105)
    assert found.characters == sum(map(len, TEXTS))
    assert found.unknown == 1 / 150
    assert found.top[:2] == (("3", 99), ("2", 40)) and found.bottom[:2] == (("[UNK]", 1), ("1", 10))
    assert found.ranks == ((1, 99), (2, 40), (3, 10), (4, 1))
    assert found.tokens_per_second > 0 and found.milliseconds_per_document > 0


def test_lengths_are_spread_as_numpy_says():
    found = statistics(TEXTS, WORDS).token_length
    assert (found.mean, found.median, found.min, found.max) == (50, 40, 10, 100)
    assert found.sd == pytest.approx(math.sqrt(1400)) and found.p25 == 25 and found.p75 == 70 and found.p90 == 88


def test_chunks_are_whole_windows():
    found = {chunk.length: chunk for chunk in statistics(TEXTS, WORDS, length=40).chunks}
    assert sorted(found) == [32, 40, 48, 64, 128]
    assert (found[40].shorter, found[40].per_document) == (1 / 3, (0 + 1 + 2) / 3)  # one document has 40 tokens
    assert (found[32].shorter, found[32].per_document) == (1 / 3, (0 + 1 + 3) / 3)
    assert (found[128].shorter, found[128].per_document) == (1, 0)


def test_the_budget_counts_windows_and_documents():
    found = statistics(TEXTS, WORDS, length=32, parameters=1000).budget
    assert (found.tokens, found.examples, found.documents) == (30_000, 938, 704)
    assert statistics(TEXTS, WORDS, length=128, parameters=1000).budget.documents == 235  # one each, though short
    assert statistics(TEXTS, WORDS).budget is None


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=20).filter(any))
def test_every_document_is_in_one_bin(lengths):
    found = statistics((" ".join(["1"] * n) for n in lengths), WORDS).token_length
    assert sum(found.counts) == len(lengths) and len(found.counts) <= BINS + 1
    assert found.edges[0] == min(lengths) and found.edges[-1] > max(lengths)


# ---- entropies ----


def test_two_sentences_by_hand():
    """1 2 EOS and 1 3 EOS: of 1 follows 2 or 3; all else is sure. Kinds: 1 (2 of 6), EOS (2), 2, 3 (1 each)."""
    unigram, bigram = entropies([[6, 7], [6, 8]], len(WORDS))
    third, sixth = 2 * (1 / 3) * math.log(3), 2 * (1 / 6) * math.log(6)
    assert unigram == pytest.approx(third + sixth + 3 / 12)
    assert bigram == pytest.approx(math.log(2) / 3 + (5 - 1) / 12 - (4 - 1) / 12)


def test_the_bias_of_counting_is_taken_out():
    draws = np.random.default_rng(0).multinomial(500, [1 / 50] * 50, size=400)
    assert abs(np.mean([entropy(counts) for counts in draws]) - math.log(50)) < 0.003  # plug-in: .049 below


def test_the_entropy_of_a_chain_is_found():
    """A chain over three words that ends with 0.1: the rate is that of its rows, weighted by how often each is left."""
    rng, step = np.random.default_rng(1), np.array([[0.6, 0.2, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1], [0.45, 0.45, 0.0, 0.1]])
    documents = []
    for _ in range(4000):
        ids = [int(rng.integers(3))]
        while (following := int(rng.choice(4, p=step[ids[-1]]))) < 3:
            ids.append(following)
        documents.append([5 + id for id in ids])
    left = np.linalg.solve((np.eye(3) - step[:, :3]).T, np.full(3, 1 / 3))  # visits of each word per document
    rows = -(step * np.log(np.where(step > 0, step, 1))).sum(1)
    exact = (math.log(3) + left @ rows) / (1 + left.sum())
    assert entropies(documents, len(WORDS))[1] == pytest.approx(exact, abs=0.01)


def test_a_sure_language_has_no_conditional_entropy():
    _, bigram = entropies([[5, 6, 7]] * 2000, len(WORDS))
    assert abs(bigram) < 1e-3


def test_the_estimates_of_a_grammar_are_near_its_exact_values():
    grammar = Grammar("micro")
    vocabulary = Vocabulary(grammar.words)
    found = statistics((" ".join(each.words) for each in grammar.samples(0, range(4000))), vocabulary, length=16)
    pairs = np.asarray(grammar.bigram())
    exact = [-(p[p > 0] * np.log(p[p > 0])).sum() for p in (grammar.unigram(), pairs.ravel(), pairs.sum(1))]
    assert found.unigram_entropy == pytest.approx(exact[0], abs=0.01)
    assert found.bigram_entropy == pytest.approx(exact[1] - exact[2], abs=0.02)
    assert found.unknown == 0 and found.words == found.tokens


# ---- files ----


def test_the_files_say_the_same(tmp_path):
    found = statistics(["a | b", "`c`\nd"] * 3, Bpe.train(["a | b"], 261), parameters=10**6)
    files = {file.suffix: file for file in write(found, tmp_path / "samples")}
    assert sorted(file.name for file in (tmp_path / "samples").iterdir()) == [
        "token_statistics.json",
        "token_statistics.md",
        "token_statistics.png",
    ]
    assert json.loads(files[".json"].read_text("utf-8")) == json.loads(json.dumps(asdict(found)))
    assert files[".md"].read_text("utf-8") == as_markdown(found)
    picture = np.asarray(Image.open(files[".png"]).convert("L"))
    assert picture.shape[1] > 800 and (picture < 250).mean() > 0.02


def test_every_row_of_a_table_has_its_columns():
    text = as_markdown(statistics(["a | b"] * 3, Bpe.train(["a | b"], 261), parameters=10**6))
    for table in (part.split("\n") for part in text.strip().split("\n\n") if part.startswith("|")):
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert "1.5 x 20 x parameters = 30,000,000 tokens = 468,750 windows of 64" in text


@pytest.mark.parametrize("texts", [[], ["", " "]])
def test_no_text_is_a_mistake(texts):
    with pytest.raises(ValueError, match="there is no text to count"):
        statistics(texts, WORDS)


# ---- the real files ----


def test_wikitext_is_measured(real):
    texts = [document.text for document in read(Source("text", str(real / "wikitext2-valid.txt")))]
    found = statistics(texts, Vocabulary.of(texts))
    assert (found.documents, found.words, found.tokens, found.unknown) == (60, 213_886, 213_886, 0)


def test_e2e_is_measured(real):
    texts = [document.text for document in read(Source("e2e", str(real / "e2e-valid.txt")))]
    found = statistics(texts, Vocabulary.of(texts))
    assert (found.documents, found.kinds) == (4672, 1118)
    assert 1.5 < found.bigram_entropy < found.unigram_entropy < math.log(1118)
