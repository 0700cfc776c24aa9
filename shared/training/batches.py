"""Which samples an update sees: a pure function of (seed, update), cut into one share per micro-batch of every rank.

Nothing is remembered between updates but the order of the current pass (`orders.py`), so a run restarts anywhere and
any number of ranks see the same global batch. Updates may alternate between phases with batch sizes of their own. Does
not know what a sample is; a project's `build` makes a batch of a share.
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shared.training.errors import Mistake
from shared.training.orders import Counted, Order, Packed, deal, proportions, shard_capacity
from shared.training.randomness import key


class SampleKey(NamedTuple):
    """What a dataset item is asked by: which sample, and its place in the run, which keys its randomness."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    position: int


@dataclass(frozen=True, eq=False)
class Share:
    """One micro-batch of one update on one rank: n of the update's samples. A sequence of n SampleKeys."""

    update: int
    micro: int
    index: np.ndarray  # [n] int64, which samples
    position: np.ndarray  # [n] int64, place in the run, never twice: keys the sample's randomness
    row: np.ndarray  # [n] int64, place in the global batch, 0 .. global_samples - 1
    global_samples: int  # of the whole update, all ranks
    global_units: int  # likewise; a sample of unknown length is one unit
    shards: int  # shares of the update: ranks x micro-batches
    phase: str = ""

    @classmethod
    def of(cls, index: Sequence[int] | np.ndarray, units: int | None = None) -> Self:
        """A share on its own, for evaluation: it is the whole batch, and a sample's position is its index."""
        index = np.asarray(index, np.int64)
        return cls(0, 0, index, index, np.arange(len(index)), len(index), len(index) if units is None else units, 1)

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[SampleKey]:
        return map(SampleKey, self.index.tolist(), self.position.tolist())


@dataclass
class Batch:
    """What a step gets; lines of work add fields. Tensors may lie in nested dataclasses, tuples, lists and dicts."""

    share: Share
    num_units: int  # real units here, padding not counted

    @property
    def num_samples(self) -> int:
        return len(self.share)

    @property
    def global_samples(self) -> int:
        return self.share.global_samples

    @property
    def global_units(self) -> int:
        return self.share.global_units

    @property
    def shards(self) -> int:
        return self.share.shards

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> Self:
        """All tensors on `device`. non_blocking None: wait on the way to the CPU only, where it is needed."""
        wait_not = torch.device(device).type != "cpu" if non_blocking is None else non_blocking
        return each_tensor(self, lambda x: x.to(device, non_blocking=wait_not))

    def pin_memory(self) -> Self:
        """All tensors in page-locked memory."""
        return each_tensor(self, Tensor.pin_memory)


@dataclass(frozen=True)
class Phase:
    """A kind of update with a stream of batches of its own. The shares of all phases add up to 1."""

    name: str
    length: int | None  # units a sample has at most in this phase; None: all of it
    batch_size: int
    share: float  # of the updates


class StatelessBatches:
    """The global batches of a run and this rank's shares of them. Endless; iterating yields Shares from `start` on.

    size: samples in the data. One of batch_size (samples per update), batch_units (units per update at most, needs
    `lengths` [size]) and `phases`. micro: samples per micro-batch, checked if given. weights [size]: how often samples
    are drawn, relative to each other. balance: shares of equal units, not of equal counts; needs `lengths`.
    start: the first update, or a function called when iteration begins.
    capacity: units that every share fits into, with batch_units. Raises Mistake for data or a batch that cannot work.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int,
        batch_size: int | None = None,
        batch_units: int | None = None,
        lengths: Sequence[int] | np.ndarray | None = None,
        world: int = 1,
        rank: int = 0,
        micro: int | None = None,
        accumulate: int = 1,
        shuffle: bool = True,
        weights: Sequence[float] | np.ndarray | None = None,
        phases: Sequence[Phase] | None = None,
        balance: bool = False,
        start: int | Callable[[], int] = 0,
    ):
        self.rank, self.accumulate, self.shards, self.start = rank, accumulate, world * accumulate, start
        self.lengths = None if lengths is None else np.asarray(lengths, np.int64)
        self.phases = list(phases or [Phase("", None, batch_size or 0, 1.0)])
        self.balance = balance
        self._check(size, world, micro, (batch_size, batch_units, phases))
        self.capacity: int | None = None
        orders = [Order(size, key("order", seed, p.name), shuffle, proportions(weights, size)) for p in self.phases]
        self._streams: list[Counted | Packed]
        if batch_units is None:
            self._streams = [Counted(order, phase.batch_size) for order, phase in zip(orders, self.phases)]
            return
        if self.lengths is None or weights is not None:
            raise Mistake("A batch budget in units needs the lengths of the samples, and takes no weights.")
        self._streams = [Packed(orders[0], self.lengths, batch_units, self.shards)]
        self.capacity = shard_capacity(batch_units, int(self.lengths.max()), self.shards)

    def positions(self, update: int) -> tuple[np.ndarray, np.ndarray]:
        """(index, position), int64 [n] each, of the whole global batch of `update`."""
        turns = _turns(self.phases, update)
        which = self._phase(update)
        index, place = self._streams[which].batch(turns[which])
        others = sum(s.samples_before(n) for i, (s, n) in enumerate(zip(self._streams, turns)) if i != which)
        return index, place + others

    def shares(self, update: int) -> list[Share]:
        """This rank's micro-batches of `update`, always `accumulate` of them."""
        index, position = self.positions(update)
        phase = self.phases[self._phase(update)]
        units = self._units(index, phase)
        total, first = int(units.sum()), self.rank * self.accumulate
        rows = self._deal(units)[first : first + self.accumulate]
        return [
            Share(update, micro, index[row], position[row], row, len(index), total, self.shards, phase.name)
            for micro, row in enumerate(rows)
        ]

    def tail_samples(self, update: int) -> int:
        """Samples left over at the end of the pass `update` belongs to; 0 with a fixed number of samples."""
        return self._streams[0].tail(update)

    def __iter__(self) -> Iterator[Share]:
        for update in itertools.count(self.start() if callable(self.start) else self.start):
            yield from self.shares(update)

    def _phase(self, update: int) -> int:
        now, after = _turns(self.phases, update), _turns(self.phases, update + 1)
        return next(i for i, (n, m) in enumerate(zip(now, after)) if m > n)

    def _units(self, index: np.ndarray, phase: Phase) -> np.ndarray:
        if self.lengths is None:
            return np.full(len(index), phase.length or 1)
        units = self.lengths[index]
        return units if phase.length is None else np.minimum(units, phase.length)

    def _deal(self, units: np.ndarray) -> list[np.ndarray]:
        """The rows of every share: contiguous parts, or by length."""
        if self.balance or self.capacity is not None:
            return deal(units, self.shards)
        rows, bounds = np.arange(len(units)), np.arange(self.shards + 1) * len(units) // self.shards
        return [rows[low:high] for low, high in itertools.pairwise(bounds)]

    def _check(self, size: int, world: int, micro: int | None, modes: tuple[Any, ...]) -> None:
        if size < 1:
            raise Mistake("The training data is empty; give at least one sample (look at what the data filters drop).")
        if sum(mode is not None for mode in modes) != 1:
            raise Mistake("A batch is given by exactly one of batch_size, batch_units and phases; set one of them.")
        if not 0 <= self.rank < world:
            raise ValueError(f"rank is {self.rank} of {world} processes; it must be in 0..{world - 1}.")
        if self.lengths is not None and (len(self.lengths) != size or self.lengths.min() < 1):
            raise Mistake(f"Got {len(self.lengths)} lengths for {size} samples; give each one, of 1 unit or more.")
        if self.balance and self.lengths is None:
            raise Mistake("Shares of equal units need the lengths of the samples; give lengths, or leave balance out.")
        if abs(sum(phase.share for phase in self.phases) - 1) > 1e-6:
            raise Mistake(f"The shares of the phases {[p.share for p in self.phases]} must add up to 1.")
        if modes[1] is None:
            for phase in self.phases:
                _check_batch_size(phase.batch_size, world, self.accumulate, micro)


class ResidentBatches:
    """Batches built in this process from data at hand, on the device or not; endless, restarts where `batches` does."""

    def __init__(self, batches: StatelessBatches, build: Callable[[Share], Batch]):
        self.batches, self.build = batches, build

    def __iter__(self) -> Iterator[Batch]:
        return map(self.build, self.batches)


class _Built(Dataset[Batch]):
    """Lets a DataLoader's worker turn a whole share into a batch."""

    def __init__(self, build: Callable[[Share], Batch]):
        self.build = build

    def __getitems__(self, share: Share) -> Batch:
        return self.build(share)


def loader(batches: StatelessBatches, build: Callable[[Share], Batch], workers: int = 0, **options: Any) -> DataLoader:
    """The same batches built by `workers` processes; `build` must be picklable. Options are DataLoader's."""
    return DataLoader(
        _Built(build), batch_sampler=batches, collate_fn=_same, num_workers=workers, **options  # type: ignore[arg-type]
    )  # fmt: skip


def placed(trainer: Any) -> dict[str, Any]:
    """Where a Trainer stands, as StatelessBatches asks for it: world, rank, accumulate, start."""
    return {
        "world": trainer.world_size,
        "rank": trainer.global_rank,
        "accumulate": trainer.accumulate_grad_batches,
        "start": lambda: trainer.global_step,
    }


def evaluation_shards(size: int, rank: int, world: int) -> range:
    """This rank's contiguous part of 0..size-1; parts may differ by one, none repeats a sample."""
    return range(rank * size // world, (rank + 1) * size // world)


def _turns(phases: Sequence[Phase], update: int) -> list[int]:
    """How often each phase had its turn before `update`, by error diffusion: the last takes floor(update * share)."""
    turns, rest, left = [], update, Fraction(1)
    for phase in reversed(phases[1:]):
        share = Fraction(phase.share).limit_denominator(10**6)
        turns.append(math.floor(rest * share / left))
        rest, left = rest - turns[-1], left - share
    return [rest, *reversed(turns)]


def _check_batch_size(batch_size: int, world: int, accumulate: int, micro: int | None) -> None:
    shards = world * accumulate
    if batch_size < shards:
        raise Mistake(
            f"A global batch of {batch_size} does not feed {world} processes with {accumulate} micro-batches each."
            f" Choose a batch size of at least {shards}."
        )
    if micro is not None and micro * shards != batch_size:
        raise Mistake(
            f"{world} processes x {accumulate} micro-batches of {micro} make {micro * shards} samples, not the global"
            f" batch of {batch_size}. Choose a batch size of {micro * shards}, or leave the micro-batch to the plan."
        )


def each_tensor(value: Any, act: Callable[[Tensor], Tensor]) -> Any:
    """`value` with `act` done to every tensor in it; of the same type."""
    if isinstance(value, Tensor):
        return act(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, Share):
        result = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(result, field.name, each_tensor(getattr(value, field.name), act))
        return result
    if isinstance(value, dict):
        return {name: each_tensor(item, act) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [each_tensor(item, act) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _same(batch: Batch) -> Batch:
    return batch
