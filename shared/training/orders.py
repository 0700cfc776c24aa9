"""Endless orders of samples, and how they are cut into global batches: pure index arithmetic in numpy.

Every pass is a permutation of the samples or, with weights, a systematic resampling of them; batches are cut from it by
count or by a budget of units. Permutations of more than 2^24 samples are keyed Feistel networks with cycle walking
(Black & Rogaway 2002). Knows sizes, lengths and weights; not ranks, not what a sample is.
"""

import heapq
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from shared.training.errors import Mistake
from shared.training.randomness import generator, key

LARGE = 2**24  # items above which a permutation is computed where it is asked, not stored
BUDGETS_PER_PASS = 64  # least number of unit batches cut from one pass, so that its tail is small
CAPACITY_MULTIPLE = 128
ROUNDS = 8  # of the Feistel network, even

_1, _27, _30, _31 = map(np.uint64, (1, 27, 30, 31))
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Order:
    """Sample indices one pass after another; pass e is a permutation of 0..size-1, or `size` weighted draws."""

    def __init__(self, size: int, seed: int, shuffle: bool, weights: np.ndarray | None):
        self.size, self.seed, self.shuffle, self.weights = size, seed, shuffle, weights
        self._stored = lru_cache(maxsize=2)(self._whole)

    def at(self, place: np.ndarray) -> np.ndarray:
        """Indices at ascending places of the endless sequence."""
        number, place = np.divmod(place, self.size)
        if number[0] == number[-1]:
            return self.within(int(number[0]), place)
        passes = range(int(number[0]), int(number[-1]) + 1)
        return np.concatenate([self.within(e, place[number == e]) for e in passes])

    def within(self, number: int, place: np.ndarray) -> np.ndarray:
        """Indices at places of pass `number`."""
        if self.weights is None and not self.shuffle:
            return place
        if self.weights is None and self.size > LARGE:
            return bijection(place, self.size, key(self.seed, number))
        return self._stored(number)[place]

    def _whole(self, number: int) -> np.ndarray:
        rng = generator(key(self.seed, number))
        if self.weights is None:
            return torch.randperm(self.size, generator=rng).numpy()
        drawn = _resampled(self.weights, float(torch.rand((), generator=rng)))
        return drawn[torch.randperm(self.size, generator=rng).numpy()] if self.shuffle else drawn


class Counted:
    """Batches of a fixed number of samples; they straddle passes."""

    def __init__(self, order: Order, batch_size: int):
        self.order, self.batch_size = order, batch_size

    def batch(self, turn: int) -> tuple[np.ndarray, np.ndarray]:
        place = np.arange(turn * self.batch_size, (turn + 1) * self.batch_size)
        return self.order.at(place), place

    def samples_before(self, turn: int) -> int:
        return turn * self.batch_size

    def tail(self, turn: int) -> int:
        return 0


class Packed:
    """Batches of at most `budget` units: a pass of joined permutations is cut greedily, its tail is left over."""

    def __init__(self, order: Order, lengths: np.ndarray, budget: int, shards: int):
        longest = int(lengths.argmax())
        if lengths[longest] > budget:
            raise Mistake(
                f"Sample {longest} has {lengths[longest]} units, the batch budget is {budget}."
                f" Raise batch_units to at least {lengths[longest]}, or drop longer samples."
            )
        if lengths[longest] * shards > budget:
            raise Mistake(
                f"A budget of {budget} units may leave one of {shards} shares (ranks x micro-batches) empty: the"
                f" longest sample has {lengths[longest]}. Raise batch_units to at least {lengths[longest] * shards}."
            )
        total = int(lengths.sum())
        self.order, self.lengths, self.budget = order, lengths, budget
        self.joined = -(-BUDGETS_PER_PASS * budget // total)
        self.batches = self.joined * total // budget
        self._cut = lru_cache(maxsize=2)(self._cut_pass)

    def batch(self, turn: int) -> tuple[np.ndarray, np.ndarray]:
        number, turn = divmod(turn, self.batches)
        index, bounds = self._cut(number)
        low, high = bounds[turn], bounds[turn + 1]
        return index[low:high], number * len(index) + np.arange(low, high)

    def samples_before(self, turn: int) -> int:
        return 0  # the only stream of its run

    def tail(self, turn: int) -> int:
        index, bounds = self._cut(turn // self.batches)
        return len(index) - int(bounds[-1])

    def _cut_pass(self, number: int) -> tuple[np.ndarray, list[int]]:
        everything = np.arange(self.order.size)
        first = number * self.joined
        index = np.concatenate([self.order.within(first + i, everything) for i in range(self.joined)])
        ends = np.cumsum(self.lengths[index])
        bounds, used = [0], 0
        for _ in range(self.batches):
            bounds.append(int(np.searchsorted(ends, used + self.budget, side="right")))
            used = int(ends[bounds[-1] - 1])
        return index, bounds


def bijection(place: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Images of `place` under a permutation of 0..size-1 that is never written down; int64."""
    base = math.isqrt(size - 1) + 1
    keys = [np.uint64(key(seed, step)) for step in range(ROUNDS)]
    image = _feistel(place.astype(np.uint64), np.uint64(-(-size // base)), np.uint64(base), keys)
    while len(outside := np.flatnonzero(image >= size)):  # fewer than 1 in `base`: walk on until inside
        image[outside] = _feistel(image[outside], np.uint64(-(-size // base)), np.uint64(base), keys)
    return image.astype(np.int64)


def _feistel(x: np.ndarray, rows: np.uint64, columns: np.uint64, keys: Sequence[np.uint64]) -> np.ndarray:
    """A keyed permutation of 0..rows*columns-1: row and column of x take turns in moving each other."""
    row, column = np.divmod(x, columns)
    for a, b in zip(keys[::2], keys[1::2]):
        row = (row + _mixed(column ^ a)) % rows
        column = (column + _mixed(row ^ b)) % columns
    return row * columns + column


def _mixed(x: np.ndarray) -> np.ndarray:
    """63 bits, each depending on every bit of x (splitmix64; Steele et al. 2014)."""
    x = (x ^ (x >> _30)) * _M1
    x = (x ^ (x >> _27)) * _M2
    return (x ^ (x >> _31)) >> _1


def proportions(weights: Sequence[float] | np.ndarray | None, size: int) -> np.ndarray | None:
    if weights is None:
        return None
    array = np.asarray(weights, np.float64)
    if array.shape != (size,) or not np.isfinite(array).all() or array.min() < 0 or array.sum() == 0:
        raise Mistake(f"weights must be {size} finite numbers, none negative, not all 0; got shape {array.shape}.")
    return array


def _resampled(weights: np.ndarray, offset: float) -> np.ndarray:
    """len(weights) indices, ascending; each as often as the floor or the ceiling of its expectation."""
    count = len(weights)
    ends = np.cumsum(weights) * (count / weights.sum())
    offset = min(max(offset, 1e-6), 1 - 1e-6)  # so that rounding of `ends` cannot move a whole expectation
    reached = np.floor(ends + offset).astype(np.int64)
    reached[-1] = count
    return np.repeat(np.arange(count), np.diff(reached, prepend=0))


def shard_capacity(batch_units: int, longest: int, shards: int) -> int:
    """Units that every share of a budget fits into: mean + longest (1 - 1/shards) (Graham 1969), rounded up to 128."""
    most = math.ceil(batch_units / shards + longest * (1 - 1 / shards))
    return -(-most // CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE


def deal(lengths: np.ndarray, shards: int) -> list[np.ndarray]:
    """Rows for each of `shards`, ascending: the longest sample first, onto the least loaded; ties go to the first."""
    rows: list[list[int]] = [[] for _ in range(shards)]
    loads = [(0, shard) for shard in range(shards)]
    for row in np.argsort(-lengths, kind="stable").tolist():
        load, shard = loads[0]
        rows[shard].append(row)
        heapq.heapreplace(loads, (load + int(lengths[row]), shard))
    return [np.array(sorted(part), np.int64) for part in rows]
