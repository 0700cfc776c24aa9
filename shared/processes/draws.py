"""The contract of a corruption, and the one door through which randomness enters it.

Every draw takes `rng`: one torch.Generator, a list of B generators (row b comes from generator b alone, so a sample is
the same at any batch size), or `PerSegment` for packed data. Generators may live on the CPU while the tensors live
elsewhere: numbers are drawn where the generator lives, then moved. Does not know where generators come from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor


class Process(Protocol):
    """A corruption whose noise is named. t, s in [0, 1]: 0 is data, 1 the prior; shape [B] or [B, T], always s <= t."""

    def prior(self, like: Tensor, rng: "Rng") -> Tensor:
        """A sample of x_1, of the shape and on the device of `like`."""

    def draw(self, x0: Tensor, rng: "Rng") -> Any:
        """All randomness of one path, drawn once."""

    def corrupt(self, x0: Tensor, noise: Any, t: Tensor) -> Tensor:
        """x_t on that path; pure."""

    def step(self, x_t: Tensor, belief: Tensor, t: Tensor, s: Tensor, rng: "Rng") -> Tensor:
        """x_s from what the network believes of x_0. Where s = t nothing moves; at s = 0 only the belief is left."""


@dataclass(frozen=True)
class PerSegment:
    """Generators of a packed batch: rows of segment i, `lengths[i]` of them, are drawn from `generators[i]` alone."""

    generators: Sequence[Generator]
    lengths: Sequence[int]


Rng = Generator | Sequence[Generator] | PerSegment
Source = Callable[[Sequence[int], Generator], Tensor]


def normal(shape, rng: Rng, dtype=torch.float32, device=None) -> Tensor:
    """Standard normal numbers of `shape`."""
    return _spread(lambda size, g: torch.randn(size, generator=g, dtype=dtype, device=g.device), shape, rng, device)


def uniform(shape, rng: Rng, dtype=torch.float32, device=None) -> Tensor:
    """Uniform numbers in [0, 1) of `shape`."""
    return _spread(lambda size, g: torch.rand(size, generator=g, dtype=dtype, device=g.device), shape, rng, device)


def categorical(num_classes: int, shape, rng: Rng, device=None) -> Tensor:
    """Ids int64 of `shape`, every one of `num_classes` equally likely."""
    return _spread(lambda size, g: torch.randint(num_classes, size, generator=g, device=g.device), shape, rng, device)


def choose(weights: Tensor, rng: Rng) -> Tensor:
    """Ids int64 [...] drawn in proportion to `weights` [..., K] >= 0, any sum: by inversion, one number per id."""
    reach = weights.cumsum(-1)
    u = uniform(weights.shape[:-1], rng, dtype=weights.dtype, device=weights.device)
    return torch.searchsorted(reach, (u * reach[..., -1]).unsqueeze(-1), right=True).squeeze(-1)


def _spread(source: Source, shape, rng: Rng, device) -> Tensor:
    """`source` once for one generator, else once per row or segment, joined along the first dimension."""
    shape = tuple(shape)
    if isinstance(rng, Generator):
        return source(shape, rng).to(device or rng.device)
    generators, lengths = _rows(shape, rng)
    parts = [source((n, *shape[1:]), g) for g, n in zip(generators, lengths)]
    return torch.cat(parts).to(device or parts[0].device)


def _rows(shape: tuple[int, ...], rng: "Sequence[Generator] | PerSegment") -> tuple[Sequence[Generator], Sequence[int]]:
    generators, lengths = (
        (rng.generators, rng.lengths) if isinstance(rng, PerSegment) else (rng, [1] * len(rng))  # one row each
    )
    if not shape or sum(lengths) != shape[0] or len(generators) != len(lengths):
        raise ValueError(
            f"{len(generators)} generators for {int(sum(lengths))} rows met a draw of shape {list(shape)}; "
            "give one generator, one per row, or PerSegment(generators, lengths)"
        )
    return generators, lengths
