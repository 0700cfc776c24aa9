"""Sentences in rows: what is packed is what is read, streams that never meet, shares that never overlap."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from packages.text.vocabulary import EOS, PAD
from projects.text.data import TextData
from projects.text.made import BLOCK, STREAMS
from shared.training.batches import Share
from shared.training.errors import Mistake


@pytest.fixture(scope="module")
def data() -> TextData:
    return TextData(level="micro", batch_size=12)


def placed_as(data: TextData, rank: int, world: int, accumulate: int = 1, update: int = 0) -> TextData:
    """The same data for one process of several."""
    ranked = TextData(level=data.options.level, batch_size=data.batch_size, held_out=data.held_out)
    ranked.trainer = SimpleNamespace(
        world_size=world, global_rank=rank, accumulate_grad_batches=accumulate, global_step=update
    )
    return ranked


def taken(data: TextData, count: int) -> list:
    batches = iter(data.train_dataloader())
    return [next(batches) for _ in range(count)]


def test_rows_are_the_words_of_the_grammar_then_eos_then_pad(data):
    index = np.array([5, 0, BLOCK + 3, BLOCK - 1])
    for row, made in zip(data.source.take("train", index).ids, data.grammar.samples(0, index)):
        ids = data.vocabulary.encode(made.words)
        assert row.tolist() == [*ids, EOS] + [PAD] * (data.length - len(ids) - 1)
        assert data.vocabulary.decode(row[: len(ids)]) == " ".join(made.words)


def test_a_sentence_is_the_same_in_any_company(data):
    index = np.arange(BLOCK - 3, BLOCK + 3)
    together = data.source.take("val", index).ids
    assert all(np.array_equal(data.source.take("val", index[n : n + 1]).ids[0], together[n]) for n in range(len(index)))


def test_every_position_of_a_padded_row_is_modelled_and_counted(data):
    batch = data.sentences("train", Share.of(range(4)))
    assert batch.valid.all() and not batch.known.any() and batch.mask is None
    assert batch.num_units == batch.global_units == 4 * data.length


@pytest.mark.parametrize("accumulate", [1, 3])
def test_two_ranks_cover_every_update_once_and_count_its_tokens(data, accumulate):
    of_both = [taken(placed_as(data, rank, 2, accumulate), 4 * accumulate) for rank in (0, 1)]
    index = np.sort(np.concatenate([batch.index.numpy() for batches in of_both for batch in batches]))
    assert np.array_equal(index, np.arange(4 * data.batch_size))
    assert {batch.global_units for batches in of_both for batch in batches} == {data.batch_size * data.length}


def test_the_stream_goes_on_where_a_run_stopped(data):
    straight, resumed = taken(placed_as(data, 0, 1), 3)[2], taken(placed_as(data, 0, 1, update=2), 1)[0]
    assert torch.equal(straight.ids, resumed.ids) and torch.equal(straight.index, resumed.index)


def test_two_ranks_share_an_evaluation_without_overlap(data):
    data.held_out = 600
    parts = [torch.cat([b.index for b in placed_as(data, rank, 2).val_dataloader()]) for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), torch.arange(600))


def test_the_streams_are_of_different_seeds_and_mostly_of_different_sentences(data):
    assert len({*STREAMS.values()}) == 3
    rows = {name: {tuple(row) for row in data.source.take(name, np.arange(500)).ids.tolist()} for name in STREAMS}
    assert len(rows["train"] & rows["test"]) < 0.2 * len(rows["test"])


def test_a_length_that_cannot_hold_the_longest_sentence_is_refused():
    with pytest.raises(
        ValueError, match=r"data\.length is 12, but sentences of micro have up to 14 words and EOS; give"
    ):
        TextData(level="micro", length=12).length


def test_levels_fill_rows_of_a_multiple_of_sixteen(data):
    assert data.length == 16 and TextData(level="small").length == 32 and TextData(level="long").length == 128


def test_shares_of_ids_are_those_of_the_rows(data):
    shares = data.shares()
    ids = data.source.take("train", np.arange(20_000)).ids
    drawn = np.bincount(ids.ravel(), minlength=len(shares)) / ids.size
    assert shares.sum() == pytest.approx(1) and np.abs(shares - drawn).max() < 0.002


def test_a_sentence_of_words_becomes_a_row_or_is_refused_by_name(data):
    made = data.grammar.sample(0, 3).words
    assert data.row(" ".join(made)).tolist() == data.source.take("train", np.array([3])).ids[0].tolist()
    with pytest.raises(Mistake, match="The word 'quark' is not in the lexicon of micro"):
        data.row("the quark sleeps .")
    with pytest.raises(Mistake, match="has 16 words, a row holds 15 and EOS"):
        data.row("the " * 16)


def test_likelihood_of_the_grammar_is_measured_all_over_its_test(data):
    data.held_out = 1000
    assert data.measured(500).tolist() == list(range(0, 1000, 2)) and data.measured(2000).tolist() == list(range(2000))
