"""Laws of stateless batches: functions of seed and update, the same for every number of ranks, each sample once."""

from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.training import orders
from shared.training.batches import (
    Batch,
    Phase,
    ResidentBatches,
    SampleKey,
    Share,
    StatelessBatches,
    evaluation_shards,
    loader,
)
from shared.training.errors import Mistake
from shared.training.orders import bijection, deal, shard_capacity
from shared.training.randomness import sample_rng

sizes, updates = st.integers(1, 500), st.integers(0, 3000)
quick = settings(max_examples=60, deadline=None)


def of_all_ranks(size, update, world, **options):
    """The shares of every rank, in the order of ranks and micro-batches."""
    return [
        s for rank in range(world) for s in StatelessBatches(size, world=world, rank=rank, **options).shares(update)
    ]


def joined(shares, field):
    return np.concatenate([getattr(share, field) for share in shares])


def indices(batches, updates):
    return np.concatenate([batches.positions(u)[0] for u in updates])


# --- batches of a fixed number of samples


@quick
@given(size=sizes, batch=st.integers(12, 100), update=updates, accumulate=st.integers(1, 4))
def test_joined_shares_are_the_same_global_batch_at_1_2_and_3_ranks(size, batch, update, accumulate):
    index, position = StatelessBatches(size, seed=3, batch_size=batch).positions(update)
    for world in (1, 2, 3):
        shares = of_all_ranks(size, update, world, seed=3, batch_size=batch, accumulate=accumulate)
        assert len(shares) == world * accumulate == shares[0].shards and all(len(s) > 0 for s in shares)
        assert np.array_equal(joined(shares, "index"), index)
        assert np.array_equal(joined(shares, "position"), position)
        assert np.array_equal(joined(shares, "row"), np.arange(batch))
        assert {s.global_samples for s in shares} == {s.global_units for s in shares} == {batch}


@quick
@given(st.lists(st.integers(1, 60), min_size=1, max_size=500), st.integers(6, 60), updates, st.integers(1, 2))
def test_balanced_shares_are_the_same_global_batch_in_parts_of_nearly_equal_units(lengths, batch, update, accumulate):
    lengths = np.array(lengths)
    options = {"seed": 3, "batch_size": batch, "lengths": lengths, "balance": True, "accumulate": accumulate}
    index, position = StatelessBatches(len(lengths), seed=3, batch_size=batch).positions(update)
    for world in (1, 2, 3):
        shares = of_all_ranks(len(lengths), update, world, **options)
        row, loads = joined(shares, "row"), [lengths[s.index].sum() for s in shares]
        assert np.array_equal(np.sort(row), np.arange(batch)) and min(map(len, shares)) > 0
        assert np.array_equal(joined(shares, "index"), index[row])
        assert np.array_equal(joined(shares, "position"), position[row])
        assert max(loads) - min(loads) <= lengths.max()
        assert {s.global_samples for s in shares} == {batch} and {s.global_units for s in shares} == {sum(loads)}


@quick
@given(size=sizes, batch=st.integers(1, 700), number=st.integers(0, 5))
def test_every_index_comes_once_in_every_pass(size, batch, number):
    batches = StatelessBatches(size, seed=0, batch_size=batch)
    first, last = number * size, (number + 1) * size
    of_pass = indices(batches, range(first // batch, -(-last // batch)))[first - first // batch * batch :][:size]
    assert np.array_equal(np.sort(of_pass), np.arange(size))


@quick
@given(size=sizes, update=updates)
def test_a_restart_at_any_update_goes_on_as_the_uninterrupted_run(size, update):
    options = {"seed": 1, "batch_size": 8, "accumulate": 2}
    resumed = list(islice(StatelessBatches(size, start=update, **options), 6))
    whole = StatelessBatches(size, **options)
    for u in range(max(0, update - 3), update):  # what the uninterrupted run had asked before
        whole.positions(u)
    assert [(s.update, s.micro, s.index.tolist()) for s in resumed] == [
        (s.update, s.micro, s.index.tolist()) for u in range(update, update + 3) for s in whole.shares(u)
    ]


def test_start_is_asked_when_iteration_begins():
    reached = 5
    batches = StatelessBatches(10, seed=0, batch_size=2, start=lambda: reached)
    reached = 7
    assert next(iter(batches)).update == 7


def test_positions_count_the_samples_of_the_run():
    batches = StatelessBatches(10, seed=0, batch_size=4)
    assert np.concatenate([batches.positions(u)[1] for u in range(9)]).tolist() == list(range(36))


def test_passes_and_seeds_are_shuffled_apart():
    first = StatelessBatches(100, seed=0, batch_size=100)
    orders_seen = [
        first.positions(0)[0],
        first.positions(1)[0],
        StatelessBatches(100, seed=1, batch_size=100).positions(0)[0],
    ]
    assert len({tuple(order) for order in orders_seen}) == 3
    assert not np.array_equal(orders_seen[0], np.arange(100))


def test_without_shuffle_samples_come_in_order_round_and_round():
    batches = StatelessBatches(5, seed=0, batch_size=3, shuffle=False)
    assert indices(batches, range(4)).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_all_ranks_have_the_same_number_of_micro_batches_over_1000_updates():
    lengths = np.random.default_rng(0).integers(1, 40, 77)
    for options in ({"batch_size": 14}, {"batch_units": 240, "lengths": lengths}):
        ranks = [StatelessBatches(77, seed=0, world=3, rank=r, accumulate=2, **options) for r in range(3)]
        assert all(len(b.shares(u)) == 2 and all(map(len, b.shares(u))) for u in range(1000) for b in ranks)


def test_units_of_the_global_batch_are_the_lengths_of_its_samples():
    lengths = np.arange(1, 11)
    share = StatelessBatches(10, seed=0, batch_size=10, lengths=lengths, world=2).shares(3)[0]
    assert share.global_units == 55 and len(share) == 5


# --- orders that are not stored


@quick
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**62))
def test_a_keyed_bijection_reaches_every_number_once(size, seed):
    assert np.array_equal(np.sort(bijection(np.arange(size), size, seed)), np.arange(size))


def test_a_keyed_bijection_looks_like_chance():
    n = 20_000
    image = bijection(np.arange(n), n, 1)
    assert abs(np.corrcoef(image, np.arange(n))[0, 1]) < 4 / n**0.5
    assert abs(np.corrcoef(image[1:], image[:-1])[0, 1]) < 4 / n**0.5
    assert (image == np.arange(n)).sum() < 8 and (image == bijection(np.arange(n), n, 2)).sum() < 8


def test_above_the_limit_passes_are_permutations_without_being_stored(monkeypatch):
    monkeypatch.setattr(orders, "LARGE", 50)
    batches = StatelessBatches(60, seed=0, batch_size=20)
    batches._streams[0].order._stored = None  # nothing may ask for it
    assert sorted(indices(batches, range(3))) == sorted(indices(batches, range(3, 6))) == list(range(60))
    assert indices(batches, range(3)).tolist() != indices(batches, range(3, 6)).tolist()


def test_two_billion_samples_need_no_memory():
    index, _ = StatelessBatches(2**31, seed=0, batch_size=256).positions(10**6)
    assert len(set(index.tolist())) == 256 and index.min() >= 0 and index.max() < 2**31
    assert abs(index.mean() / 2**31 - 0.5) < 4 * (1 / 12 / 256) ** 0.5


# --- a budget of units


def packed(draw_lengths, shards=1):
    lengths = np.array(draw_lengths)
    return lengths, int(lengths.max()) * shards + 17 * shards


ragged = st.lists(st.integers(1, 60), min_size=1, max_size=500)


@settings(max_examples=20, deadline=None)
@given(ragged, st.integers(0, 300))
def test_a_packed_batch_keeps_its_budget_and_is_the_same_at_1_2_and_3_ranks(lengths, update):
    lengths, budget = packed(lengths, shards=6)
    index, position = StatelessBatches(len(lengths), seed=2, batch_units=budget, lengths=lengths).positions(update)
    units = lengths[index].sum()
    assert budget - lengths.max() < units <= budget
    for world in (1, 2, 3):
        shares = of_all_ranks(len(lengths), update, world, seed=2, batch_units=budget, lengths=lengths, accumulate=2)
        row = joined(shares, "row")
        assert np.array_equal(np.sort(row), np.arange(len(index)))
        assert np.array_equal(joined(shares, "index"), index[row])
        assert np.array_equal(joined(shares, "position"), position[row])
        assert {s.global_units for s in shares} == {units} and {s.global_samples for s in shares} == {len(index)}


@quick
@given(ragged, st.integers(0, 300), st.integers(1, 3), st.integers(1, 3))
def test_no_share_exceeds_its_capacity_and_padding_stays_below_the_bound(lengths, update, world, accumulate):
    lengths, budget = packed(lengths, world * accumulate)
    options = {"seed": 0, "batch_units": budget, "lengths": lengths, "accumulate": accumulate}
    capacity = StatelessBatches(len(lengths), world=world, **options).capacity
    loads = [lengths[s.index].sum() for s in of_all_ranks(len(lengths), update, world, **options)]
    assert capacity % 128 == 0 and min(loads) > 0 and max(loads) <= np.mean(loads) + lengths.max()
    assert max(loads) <= capacity
    assert 1 - np.mean(loads) / capacity <= (lengths.max() + 128) / capacity


@quick
@given(ragged)
def test_a_packed_pass_holds_64_budgets_and_every_index_equally_often_but_for_the_tail(lengths):
    lengths, budget = packed(lengths)
    batches = StatelessBatches(len(lengths), seed=0, batch_units=budget, lengths=lengths)
    stream = batches._streams[0]
    times = np.bincount(indices(batches, range(stream.batches)), minlength=len(lengths))
    assert stream.batches == stream.joined * lengths.sum() // budget >= 64
    assert times.max() <= stream.joined
    assert (stream.joined - times).sum() == batches.tail_samples(0)


@pytest.mark.parametrize(
    "lengths, rows",
    [([1, 1, 1, 1, 4], [[4], [0, 1, 2, 3]]), ([3, 9, 3, 3], [[1], [0, 2, 3]]), ([5, 5, 5, 5], [[0, 2], [1, 3]])],
)
def test_the_longest_sample_goes_first_onto_the_least_loaded_share(lengths, rows):
    assert [part.tolist() for part in deal(np.array(lengths), 2)] == rows


def test_positions_of_packed_batches_never_repeat():
    batches = StatelessBatches(9, seed=0, batch_units=30, lengths=np.arange(1, 10))
    position = np.concatenate([batches.positions(u)[1] for u in range(500)])
    assert len(np.unique(position)) == len(position)


def test_a_packed_run_restarts_anywhere():
    options = {"seed": 0, "batch_units": 64, "lengths": np.arange(1, 31)}
    whole = [s.index.tolist() for s in islice(StatelessBatches(30, **options), 400)]
    assert [s.index.tolist() for s in islice(StatelessBatches(30, start=317, **options), 83)] == whole[317:]


# --- weights


@quick
@given(st.lists(st.floats(0, 10), min_size=1, max_size=300).filter(lambda w: sum(w) > 1e-3), st.integers(0, 9))
def test_a_weighted_pass_draws_each_index_the_floor_or_ceiling_of_its_expectation(weights, number):
    size, weights = len(weights), np.array(weights)
    batches = StatelessBatches(size, seed=0, batch_size=size, weights=weights)
    times = np.bincount(batches.positions(number)[0], minlength=size)
    expected = weights / weights.sum() * size
    assert (np.abs(times - expected) < 1 + 1e-6).all() and times[weights == 0].sum() == 0


def test_equal_weights_draw_every_index_once_and_passes_differ():
    batches = StatelessBatches(1000, seed=0, batch_size=1000, weights=np.full(1000, 0.1))
    passes = [batches.positions(u)[0] for u in range(20)]
    assert all(np.array_equal(np.sort(p), np.arange(1000)) for p in passes) and not np.array_equal(*passes[:2])


def test_weights_are_met_on_average():
    weights = np.array([0.5, 1.0, 3.3, 0.2])
    times = np.bincount(indices(StatelessBatches(4, seed=0, batch_size=4, weights=weights), range(4000)))
    assert np.allclose(times / times.sum(), weights / weights.sum(), atol=0.01)


# --- phases

PHASES = [Phase("long", 8, 4, 0.5), Phase("short", 2, 10, 0.3), Phase("whole", None, 6, 0.2)]


def test_phases_take_turns_by_their_shares_and_by_the_update_alone():
    batches = StatelessBatches(100, seed=0, phases=PHASES)
    names = [batches.shares(u)[0].phase for u in range(1000)]
    assert [names.count(p.name) for p in PHASES] == [500, 300, 200]
    for until in range(1, 1000):
        assert all(abs(names[:until].count(p.name) - until * p.share) < 2 for p in PHASES)
    assert [StatelessBatches(100, seed=0, phases=PHASES).shares(u)[0].phase for u in (7, 3)] == [names[7], names[3]]


def test_the_last_phase_comes_where_its_share_carries_over():
    batches = StatelessBatches(9, seed=0, phases=[Phase("a", None, 1, 0.7), Phase("b", None, 1, 0.3)])
    carried = [(u + 1) * 3 // 10 > u * 3 // 10 for u in range(200)]
    assert [batches.shares(u)[0].phase == "b" for u in range(200)] == carried


def test_every_phase_passes_through_all_samples_and_positions_never_repeat():
    batches = StatelessBatches(60, seed=0, phases=PHASES)
    shares = [batches.shares(u)[0] for u in range(200)]
    assert joined(shares, "position").tolist() == list(range(sum(map(len, shares))))
    for phase in PHASES:
        own = [s for s in shares if s.phase == phase.name]
        assert {len(s) for s in own} == {phase.batch_size}
        assert np.array_equal(np.sort(joined(own, "index")[:60]), np.arange(60))


def test_a_phase_counts_no_more_units_of_a_sample_than_its_length():
    lengths = np.arange(1, 11)
    phases = [Phase("cut", 3, 10, 0.5), Phase("whole", None, 10, 0.5)]
    units = {
        s.phase: s.global_units
        for u in (0, 1)
        for s in StatelessBatches(10, seed=0, phases=phases, lengths=lengths).shares(u)
    }
    assert units == {"cut": 1 + 2 + 8 * 3, "whole": 55}


# --- what is built from them


@dataclass
class Points(Batch):
    x: Tensor
    inner: "Inner"
    names: list[str]


class Inner(NamedTuple):
    y: Tensor
    lengths: np.ndarray


def build(share: Share) -> Points:
    x = torch.stack([torch.rand(3, generator=sample_rng(0, key.position)) for key in share])
    return Points(share, 3 * len(share), x, Inner(x.sum(1), share.index), [f"#{key.index}" for key in share])


def test_a_share_is_a_sequence_of_sample_keys():
    share = StatelessBatches(10, seed=0, batch_size=4, shuffle=False).shares(3)[0]
    assert list(share) == [SampleKey(2, 12), SampleKey(3, 13), SampleKey(4, 14), SampleKey(5, 15)] and len(share) == 4


def test_a_batch_tells_what_loss_scaling_needs():
    batch = build(StatelessBatches(10, seed=0, batch_size=8, world=2, accumulate=2).shares(0)[1])
    assert (batch.num_samples, batch.num_units, batch.global_samples, batch.global_units, batch.shards) == (
        2,
        6,
        8,
        8,
        4,
    )


def test_moving_a_batch_moves_every_tensor_and_keeps_the_rest():
    batch = build(Share.of([3, 4]))
    moved = batch.to("meta")
    assert type(moved) is Points and moved.x.is_meta and moved.inner.y.is_meta and not batch.x.is_meta
    assert moved.share is batch.share and moved.names == batch.names and moved.inner.lengths is batch.inner.lengths


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_gives_the_resident_batches_whatever_its_workers(workers):
    def batches():
        return StatelessBatches(20, seed=0, batch_size=6, accumulate=2, start=4)

    resident = islice(ResidentBatches(batches(), build), 5)
    for ours, theirs in zip(resident, loader(batches(), build, workers=workers)):
        assert torch.equal(ours.x, theirs.x) and ours.share.update == theirs.share.update and ours.names == theirs.names


@quick
@given(st.integers(0, 500), st.integers(1, 9))
def test_evaluation_parts_are_contiguous_and_meet_every_sample_once(size, world):
    parts = [evaluation_shards(size, rank, world) for rank in range(world)]
    assert [i for part in parts for i in part] == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


# --- refusals

WRONG = [
    ({"size": 0, "batch_size": 4}, "training data is empty"),
    ({"size": 9}, "exactly one of batch_size, batch_units and phases"),
    ({"size": 9, "batch_size": 4, "batch_units": 4}, "exactly one of batch_size, batch_units and phases"),
    ({"size": 9, "batch_size": 5, "world": 3, "accumulate": 2}, "at least 6"),
    ({"size": 9, "batch_size": 12, "world": 3, "micro": 2}, "make 6 samples, not the global batch of 12"),
    ({"size": 3, "batch_units": 10, "lengths": [4, 11, 2]}, "Sample 1 has 11 units, the batch budget is 10"),
    ({"size": 3, "batch_units": 20, "lengths": [4, 11, 2], "world": 2}, "at least 22"),
    ({"size": 3, "batch_units": 20, "lengths": [4, 11]}, "2 lengths for 3 samples"),
    ({"size": 3, "batch_units": 20, "lengths": [4, 0, 1]}, "of 1 unit or more"),
    ({"size": 3, "batch_units": 20}, "needs the lengths"),
    ({"size": 3, "batch_size": 2, "balance": True}, "give lengths, or leave balance out"),
    ({"size": 3, "batch_size": 2, "weights": [1, -1, 1]}, "3 finite numbers, none negative"),
    ({"size": 3, "batch_size": 2, "weights": [0, 0, 0]}, "not all 0"),
    ({"size": 3, "phases": [Phase("a", None, 2, 0.5)]}, "must add up to 1"),
]


@pytest.mark.parametrize("options, sentence", WRONG, ids=[sentence for _, sentence in WRONG])
def test_what_cannot_work_is_refused_with_a_sentence(options, sentence):
    with pytest.raises(Mistake, match=sentence):
        StatelessBatches(seed=0, **options)


def test_capacity_is_the_budget_itself_for_one_share():
    assert (
        shard_capacity(1000, 90, 1) == 1024
        and shard_capacity(1024, 90, 1) == 1024
        and shard_capacity(2048, 100, 2) == 1152
    )
