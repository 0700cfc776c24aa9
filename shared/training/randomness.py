"""Where every random number of a run comes from: generators seeded by keys that say what they are for.

A key is a hash of (purpose, seed, place), so nothing depends on what was drawn before: a restart at update u draws what
the uninterrupted run drew, and sample 17 is the same in any batch. Times are stratified over the global batch (after
Kingma et al. 2021, appendix I.1). Does not know what is drawn. torch's CPU generator keeps the low 32 bits of a seed:
some two of n generators of one purpose are equal with a chance of about n^2 / 2^33.
"""

import hashlib
import operator
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol, SupportsIndex

import numpy as np
import torch
from torch import Generator, Tensor

Part = str | SupportsIndex | tuple["Part", ...]
Device = str | torch.device

RANK_STRIDE = 1000003  # between the global seeds of two ranks

# MKL chooses its vector kernels in the first call, and not safely when that call has two threads: in one process of six
# the first cosine of many numbers had other last digits. One number is one thread.
torch.zeros(1).cos()


@dataclass(frozen=True)
class RandomnessOptions:
    """Config group `randomness`. rank: a micro-batch draws from one generator. sample: every sample has its own."""

    mode: Literal["rank", "sample"] = "rank"  # sample: slower, the same at any world size


class Placed(Protocol):
    """What a micro-batch must say of itself (`batches.Share` does)."""

    @property
    def update(self) -> int: ...
    @property
    def micro(self) -> int: ...
    @property
    def position(self) -> np.ndarray:
        """[n] place of each sample in the run."""

    @property
    def row(self) -> np.ndarray:
        """[n] place of each sample in the global batch."""

    @property
    def global_samples(self) -> int: ...


@dataclass(frozen=True)
class Randomness:
    """The randomness of one run, from its seed."""

    seed: int = 0
    mode: Literal["rank", "sample"] = "rank"

    def path(self, rank: int, update: int, micro: int = 0, device: Device = "cpu") -> Generator:
        """`path_rng` of this run."""
        return path_rng(self.seed, rank, update, micro, device)

    def sample(self, index: Part, device: Device = "cpu") -> Generator:
        """`sample_rng` of this run."""
        return sample_rng(self.seed, index, device)

    def times(self, share: Placed, total: int | None = None, device: Device = "cpu") -> Tensor:
        """Times [n] of a micro-batch, stratified over the `total` (None: all) samples of its update."""
        return stratified_times(self.seed, share.update, share.row, total or share.global_samples, device)

    def rng(self, share: Placed, rank: int, device: Device = "cpu") -> Generator | list[Generator]:
        """What a micro-batch draws its noise from, by `mode`: one generator, or one for each of its n samples."""
        if self.mode == "rank":
            return self.path(rank, share.update, share.micro, device)
        return [self.sample((share.update, position), device) for position in share.position.tolist()]


def key(*parts: Part) -> int:
    """A 63-bit number from whole numbers, strings and tuples of them; the same in every process (blake2b)."""
    digest = hashlib.blake2b(_spelled(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def path_rng(seed: int, rank: int, update: int, micro: int = 0, device: Device = "cpu") -> Generator:
    """The generator of one micro-batch of one update on one rank."""
    return generator(key("path", seed, rank, update, micro), device)


def sample_rng(seed: int, index: Part, device: Device = "cpu") -> Generator:
    """The generator of one sample, whatever the batch, worker or rank it lands on."""
    return generator(key("sample", seed, index), device)


def generator(seed: int, device: Device = "cpu") -> Generator:
    """A fresh torch generator on `device`; on the CPU for the meta device, which has none."""
    return Generator("cpu" if torch.device(device).type == "meta" else device).manual_seed(seed)


def stratified_times(
    seed: int, update: int, rows: Sequence[int] | np.ndarray, total: int, device: Device = "cpu"
) -> Tensor:
    """float32 [len(rows)] in (0, 1): t = (pi(row) + u_row) / total, so that the rows 0..total-1 fall one into each bin.

    The permutation pi and the offsets u depend on (seed, update) only: the same times for every split of the batch.
    """
    return _all_times(seed, update, total)[torch.as_tensor(rows, dtype=torch.long)].to(device, non_blocking=True)


@lru_cache(maxsize=2)
def _all_times(seed: int, update: int, total: int) -> Tensor:
    rng = generator(key("times", seed, update))
    margin = min(0.25, total * 2.0**-23)  # of a bin, so that rounding to float32 leaves t inside it
    offset = margin + (1 - 2 * margin) * torch.rand(total, generator=rng, dtype=torch.float64)
    return ((torch.randperm(total, generator=rng) + offset) / total).float()


@contextmanager
def aside(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, the device's global generator starts at `seed`; afterwards it goes on as if nothing had been drawn."""
    drawn = torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
    state = drawn.get_state()
    drawn.manual_seed(seed)
    try:
        yield
    finally:
        drawn.set_state(state)


def seed_rank(seed: int, rank: int) -> None:
    """Seed the global generators (dropout and all that is not keyed) apart on every rank: Python, numpy, torch."""
    own = (seed + RANK_STRIDE * rank) % 2**32
    random.seed(own)
    np.random.seed(own)
    torch.manual_seed(own)


def rng_state() -> dict[str, Any]:
    """The global generators of this process, as tensors and plain types (loads with weights_only=True)."""
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "python": [version, list(words), gauss],
        "numpy": [torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)), numpy_state["state"]["pos"],
                  numpy_state["has_gauss"], numpy_state["gauss"]],
    }  # fmt: skip


def set_rng_state(state: dict[str, Any]) -> None:
    """Continue from `rng_state()`. A CUDA state is used where this process has a CUDA device."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    words, *rest = state["numpy"]
    np.random.set_state(("MT19937", words.cpu().numpy().astype(np.uint32), *rest))


def _spelled(part: Part) -> str:
    """One spelling for each value, none a part of another's."""
    if isinstance(part, str):
        return repr(part)
    if isinstance(part, tuple):
        return f"({','.join(map(_spelled, part))},)"
    try:
        return str(operator.index(part))
    except TypeError:
        raise TypeError(f"A key is made of whole numbers, strings and tuples of them; got {part!r}.") from None
