"""Laws of keyed randomness: same key, same numbers, in any process, batch, rank or after any restart."""

import io
import os
import random
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.training.batches import Share, StatelessBatches
from shared.training.randomness import (
    Randomness,
    key,
    path_rng,
    rng_state,
    sample_rng,
    seed_rank,
    set_rng_state,
    stratified_times,
)

PARTS = [(1,), ("1",), (1, 2), (12,), ((1, 2),), ("a", "b"), ("ab",), ("a,b",), (("a",), "b"), (-1,), ((),), ()]


def noise(rng):
    return torch.randn(8, generator=rng)


def test_key_is_the_same_in_every_process():
    code = "from shared.training.randomness import key; print(key('path', 3, (1, 'x')))"
    env = {**os.environ, "PYTHONHASHSEED": "77"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert int(other.stdout) == key("path", 3, (1, "x")) == key("path", np.int64(3), (np.int32(1), "x"))


def test_key_has_63_bits_and_differs_where_its_parts_differ():
    keys = [key(*parts) for parts in PARTS]
    assert len(set(keys)) == len(PARTS)
    assert all(0 <= k < 2**63 for k in keys) and max(keys).bit_length() > 60


def test_key_refuses_what_has_no_exact_spelling():
    with pytest.raises(TypeError, match=r"whole numbers, strings and tuples of them; got 0\.5"):
        key(0, 0.5)


def test_path_noise_differs_across_ranks_updates_micro_batches_and_seeds_and_repeats():
    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    drawn = [noise(path_rng(*place)) for place in places]
    assert not any(torch.equal(a, b) for a, b in combinations(drawn, 2))
    assert all(torch.equal(a, noise(path_rng(*place))) for a, place in zip(drawn, places))


def test_sample_17_is_the_same_alone_in_a_batch_of_5_and_on_two_ranks():
    keyed = Randomness(3, mode="sample")
    alone = noise(keyed.rng(Share.of([17]), rank=0)[0])
    of_five = [noise(g) for g in keyed.rng(Share.of([3, 17, 5, 8, 9]), rank=1)]
    assert torch.equal(of_five[1], alone) and not torch.equal(of_five[0], alone)


def test_permuting_the_batch_permutes_the_noise_of_its_samples():
    keyed, order = Randomness(mode="sample"), [2, 0, 1]
    drawn = torch.stack([noise(g) for g in keyed.rng(Share.of([4, 5, 6]), rank=0)])
    permuted = torch.stack([noise(g) for g in keyed.rng(Share.of(np.array([4, 5, 6])[order]), rank=0)])
    assert torch.equal(permuted, drawn[order])


def test_noise_of_a_sample_does_not_depend_on_the_world_size_and_differs_between_updates():
    def of_update(world, update):
        parts = [StatelessBatches(50, seed=0, batch_size=12, world=world, rank=r) for r in range(world)]
        keyed = Randomness(0, mode="sample")
        return torch.stack([noise(g) for b in parts for s in b.shares(update) for g in keyed.rng(s, rank=b.rank)])

    assert torch.equal(of_update(1, 7), of_update(3, 7))
    assert len(torch.unique(torch.cat([of_update(1, u)[:, 0] for u in range(9)]))) == 9 * 12


def test_mode_rank_gives_every_micro_batch_of_every_rank_its_own_noise():
    keyed = Randomness(0)
    batches = [StatelessBatches(50, seed=0, batch_size=12, world=2, rank=r, accumulate=2) for r in (0, 1)]
    drawn = [noise(keyed.rng(share, b.rank)) for b in batches for share in b.shares(4)]
    assert len(torch.stack(drawn).unique(dim=0)) == 4


def test_a_sample_rng_differs_from_a_path_rng_of_the_same_numbers():
    assert not torch.equal(noise(path_rng(0, 1, 2, 3)), noise(sample_rng(0, (1, 2, 3))))


@settings(max_examples=60, deadline=None)
@given(total=st.integers(1, 3000), update=st.integers(0, 10**6), seed=st.integers(0, 99))
def test_times_of_a_global_batch_fall_one_into_each_bin_and_never_on_0_or_1(total, update, seed):
    t = stratified_times(seed, update, np.arange(total), total)
    assert t.dtype == torch.float32 and t.min() > 0 and t.max() < 1
    assert torch.equal((t.double() * total).long().sort().values, torch.arange(total))


@pytest.mark.parametrize("total", [2**16, 2**20 + 7])
def test_rounding_to_float32_leaves_the_times_of_a_large_batch_in_their_bins(total):
    t = stratified_times(0, 0, np.arange(total), total)
    assert torch.equal((t.double() * total).long().sort().values, torch.arange(total))


@pytest.mark.parametrize("world, accumulate", [(1, 4), (2, 1), (3, 2)])
def test_times_are_those_of_one_process_for_every_split(world, accumulate):
    split = [
        StatelessBatches(99, seed=1, batch_size=24, world=world, rank=r, accumulate=accumulate) for r in range(world)
    ]
    keyed = Randomness(1)
    parts = torch.cat([keyed.times(share) for batches in split for share in batches.shares(5)])
    assert torch.equal(parts, stratified_times(1, 5, range(24), 24))


def test_times_are_shuffled_and_new_at_every_update_and_seed():
    first = stratified_times(0, 0, range(64), 64)
    assert not torch.equal(first, first.sort().values)
    assert not torch.equal(first, stratified_times(0, 1, range(64), 64))
    assert not torch.equal(first, stratified_times(1, 0, range(64), 64))


def test_times_are_uniform_inside_their_bins():
    offsets = torch.cat([stratified_times(0, u, range(64), 64) * 64 % 1 for u in range(200)])
    assert abs(offsets.mean() - 0.5) < 4 * (1 / 12 / len(offsets)) ** 0.5
    assert abs(offsets.var() - 1 / 12) < 0.003


def test_dropout_masks_differ_across_ranks_and_repeat_on_one():
    def mask(rank):
        seed_rank(5, rank)
        return torch.nn.functional.dropout(torch.ones(64))

    assert not torch.equal(mask(0), mask(1))
    assert torch.equal(mask(1), mask(1))


def test_seeding_a_rank_sets_python_and_numpy_and_takes_the_largest_seed():
    seen = set()
    for rank in range(3):
        seed_rank(2**32 - 1, rank)
        seen.add((random.random(), np.random.rand()))
    assert len(seen) == 3 and len({a for a, _ in seen}) == len({b for _, b in seen}) == 3


def test_global_generators_continue_from_a_state_that_loads_without_pickled_classes():
    def draws():
        return torch.rand(3).tolist(), np.random.randn(3).tolist(), random.random(), random.gauss(0, 1)

    seed_rank(0, 0)
    np.random.randn(), random.gauss(0, 1)  # each keeps half of a pair for the next call
    file = io.BytesIO()
    torch.save(rng_state(), file)
    expected = draws()
    seed_rank(9, 9)
    set_rng_state(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert draws() == expected


@pytest.mark.gpu
def test_the_cuda_generator_continues_from_its_state():
    torch.rand(3, device="cuda")
    state = rng_state()
    expected = torch.rand(3, device="cuda")
    set_rng_state(state)
    assert torch.equal(torch.rand(3, device="cuda"), expected)


FIRST_COSINE = """
import torch
from shared.training import randomness
torch.set_num_threads(2)
x = torch.linspace(0, 3, 20_000)
assert torch.equal(x.cos(), x.cos())
"""


def test_the_first_cosine_of_a_process_has_the_digits_of_the_second():
    """Four processes: each failed with a chance of about 1 in 6 before the kernels were chosen by one thread."""
    started = [subprocess.Popen([sys.executable, "-c", FIRST_COSINE]) for _ in range(4)]
    assert [process.wait() for process in started] == [0] * 4
