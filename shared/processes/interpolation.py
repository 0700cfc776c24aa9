"""Corruption towards an interpolation of anchors: a bridge from data to a wrong start, and nested sets of kept frames.

Ideas: Brownian bridges (Liu et al. 2023, I2SB; sigma^2 t(1-t) pinned at both ends), cold restoration by re-corruption
(Bansal et al. 2022) with the belief in place of the anchors' error. Frames are rows of [B, L, ...]; what they mean, and
which frames deserve to be kept, is not known here.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from shared.processes import draws
from shared.processes.draws import Rng
from shared.processes.schedules import check_time, expand, hold, readable, spread

# --- interpolation ----------------------------------------------------------------------------------------------------


def interpolate(values: Tensor, index: Tensor, length: int, kind: Literal["linear", "cubic"] = "linear") -> Tensor:
    """Frames [B, length, D] through anchors `values` [B, K, D] at `index` int64 [B, K]; anchors come back bit-exact.

    index rises strictly from 0 to length - 1. cubic is the natural spline.
    """
    _check_index(values, index, length)
    frame = torch.arange(length, device=index.device).expand(len(index), -1).contiguous()
    left = torch.searchsorted(index.contiguous(), frame, right=True) - 1
    right = (left + 1).clamp(max=index.shape[1] - 1)
    span = spread((index.gather(1, right) - index.gather(1, left)).clamp(min=1), values).to(values.dtype)
    w = spread(frame - index.gather(1, left), values).to(values.dtype) / span
    a, b = _rows(values, left), _rows(values, right)
    path = a + w * (b - a)
    if kind == "cubic":
        bend = _bends(values, index)
        path = path - span**2 / 6 * w * (1 - w) * ((2 - w) * _rows(bend, left) + (1 + w) * _rows(bend, right))
    return path


def _rows(values: Tensor, place: Tensor) -> Tensor:
    """values[b, place[b, l]]."""
    return values.gather(1, spread(place, values).expand(-1, -1, *values.shape[2:]))


def _bends(values: Tensor, index: Tensor) -> Tensor:
    """Second derivatives of the natural cubic spline at the anchors: one tridiagonal system per sample."""
    h = index.diff(dim=1).to(values.dtype)
    slope = values.diff(dim=1) / spread(h, values)
    inner = torch.diag_embed(2 * (h[:, 1:] + h[:, :-1]))
    off = torch.diag_embed(h[:, 1:-1], 1) + torch.diag_embed(h[:, 1:-1], -1) if h.shape[1] > 2 else 0
    bends = torch.linalg.solve(inner + off, (6 * slope.diff(dim=1)).flatten(2)).reshape(slope.diff(dim=1).shape)
    rim = torch.zeros_like(values[:, :1])
    return torch.cat([rim, bends, rim], 1)


def _check_index(values: Tensor, index: Tensor, length: int) -> None:
    if index.dtype != torch.int64 or index.shape != values.shape[:2] or index.shape[1] < 2:
        raise ValueError(
            f"index is {index.dtype} {list(index.shape)} for values {list(values.shape)}; give int64 [B, K >= 2]"
        )
    if not readable(index):
        return
    if (index.diff(dim=1) <= 0).any() or (index[:, 0] != 0).any() or (index[:, -1] != length - 1).any():
        row = int(((index.diff(dim=1) <= 0).any(1) | (index[:, 0] != 0) | (index[:, -1] != length - 1)).nonzero()[0])
        raise ValueError(
            f"index {index[row].tolist()} must rise strictly from 0 to {length - 1}; sort it, drop doubles"
        )


# --- bridge -----------------------------------------------------------------------------------------------------------


class BridgeNoise(NamedTuple):
    """One path: where it starts at t = 1, its wobble, and per sample how much of the wobble is used."""

    start: Tensor  # like x0
    xi: Tensor  # standard normal, like x0
    gain: Tensor  # [B]


class Bridge:
    """x_t = (1 - t) x0 + t start + gain sigma sqrt(t (1 - t)) xi; no noise at either end.

    eta = 1 steps with the bridge's own variance, eta = 0 contracts to the belief; eta may be a tensor [B]: the gain the
    network was told. The prior is `like` itself: a bridge begins at the start it is given.
    """

    def __init__(self, sigma: float, eta: float | Tensor = 1.0):
        self.sigma, self.eta = sigma, eta

    def prior(self, like: Tensor, rng: Rng | None = None) -> Tensor:
        return like.clone()

    def draw(self, x0: Tensor, rng: Rng, start: Tensor, gain: Tensor | None = None) -> BridgeNoise:
        gain = x0.new_ones(len(x0)) if gain is None else gain
        return BridgeNoise(start, draws.normal(x0.shape, rng, x0.dtype, x0.device), gain)

    def corrupt(self, x0: Tensor, noise: BridgeNoise, t: Tensor) -> Tensor:
        t = expand(t, x0)
        wobble = spread(noise.gain, x0) * self.sigma * (t * (1 - t)).sqrt()
        return (1 - t) * x0 + t * noise.start + wobble * noise.xi

    def decide(self, belief: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """x0 of a belief: the belief itself."""
        return belief

    def step(self, x_t: Tensor, belief: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """belief + (s/t)(x_t - belief) + eta sigma sqrt(s (t - s)/t) z."""
        now, then = expand(t, x_t), expand(s, x_t)
        eta = spread(self.eta, x_t) if isinstance(self.eta, Tensor) else self.eta
        std = eta * self.sigma * (then * (now - then) / now).sqrt()
        x_s = belief + (then / now) * (x_t - belief)
        return hold(x_t, x_s + std * draws.normal(x_s.shape, rng, x_s.dtype, x_s.device), t, s)


# --- nested -----------------------------------------------------------------------------------------------------------

Counts = Callable[[Tensor], Tensor]  # t [B] -> how many frames are kept, int64 [B]


def counts(kind: Literal["geometric", "linear", "doubling"], length: int, smallest: int) -> Counts:
    """Frames kept: `length` at t = 0 falling to `smallest` at t = 1. doubling keeps smallest times a power of two."""
    if kind not in ("geometric", "linear", "doubling") or not 2 <= smallest <= length:
        raise ValueError(
            f"counts {kind!r} from {length} to {smallest}: want geometric, linear or doubling, 2 <= K <= L"
        )
    return partial({"geometric": _geometric, "linear": _linear, "doubling": _doubling}[kind], length, smallest)


def _geometric(length, smallest, t):
    return torch.round(length * (smallest / length) ** t.double()).long()


def _linear(length, smallest, t):
    return torch.round(length + (smallest - length) * t.double()).long()


def _doubling(length, smallest, t):
    octaves = torch.log2(length * (smallest / length) ** t.double() / smallest)
    kept = (smallest * 2 ** torch.floor(octaves + 1e-9)).long()
    return torch.where(t == 0, length, kept)


class Nested:
    """Keep the frames of rank < counts(t), fill the others by linear interpolation: levels are nested by construction.

    order: ranks int64 [B, L]; ranks 0 and 1 are the end frames. t is [B]. The step re-corrupts the belief, so the only
    noise is the order itself.
    """

    def __init__(self, order: Tensor, counts: Counts):
        self.order, self.counts = order, counts
        ends = order[:, [0, -1]].sort(1).values
        if readable(order) and not bool((ends == torch.tensor([0, 1])).all()):
            raise ValueError(f"ranks 0 and 1 must be the end frames, got {ends[0].tolist()} there; rank the ends first")

    def prior(self, like: Tensor, rng: Rng | None = None) -> Tensor:
        """The anchors of `like` and what lies between them."""
        return self.corrupt(like, self.order, torch.ones(len(like), device=like.device))

    def draw(self, x0: Tensor, rng: Rng | None = None) -> Tensor:
        return self.order

    def kept(self, order: Tensor, t: Tensor) -> Tensor:
        """bool [B, L]: frames shown at t."""
        return order < self.counts(t).unsqueeze(1)

    def corrupt(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x0 [B, L, ...] with every frame of rank >= counts(t) replaced by the line between its kept neighbours."""
        check_time(t)
        if t.ndim != 1 or x0.shape[:2] != noise.shape:
            raise ValueError(
                f"t {list(t.shape)}, x0 {list(x0.shape)}, order {list(noise.shape)}; want [B], [B, L, ...]"
            )
        kept = self.kept(noise, t)
        frame = torch.arange(x0.shape[1], device=x0.device).expand_as(kept)
        left = torch.where(kept, frame, 0).cummax(1).values
        right = torch.where(kept, frame, x0.shape[1]).flip(1).cummin(1).values.flip(1)
        w = spread((frame - left).to(x0.dtype) / (right - left).clamp(min=1), x0)
        a, b = _rows(x0, left), _rows(x0, right)
        return a + w * (b - a)

    def decide(self, belief: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """x0 of a belief: the belief itself."""
        return belief

    def step(self, x_t: Tensor, belief: Tensor, t: Tensor, s: Tensor, rng: Rng | None = None) -> Tensor:
        return hold(x_t, self.corrupt(belief, self.order, s), t, s)
