"""Averages of weights over updates: exponential (Polyak), and power-function tracks (Karras et al. 2024, EDM2).

Tensors only: floating trainable parameters, each storage once, shadows in float32 or wider; buffers stay live. Reads no
device value on the host. Does not know the Trainer or ranks: equal parameters on every rank give equal averages.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from shared.training.shards import cut_like

Named = Iterable[tuple[str, Tensor]]


@dataclass(frozen=True)
class EmaOptions:
    """Config group `ema`. Every number counts updates."""

    enabled: bool = True
    decay: float = 0.9999
    warmup: Literal["ratio", "ramp", "none"] = "ratio"  # ratio: (1+n)/(10+n) until it reaches decay
    ramp_from: float = 0.99
    ramp_updates: int = 2000
    start: int = 0  # up to this update the average is the parameters
    every: int = 1  # averages every n-th update, with the decay of n updates
    scale_with_batch: bool = False  # decay^(batch / optim.batch_ref), see `scaled`
    power: list[float] = field(default_factory=list)  # relative widths of power-function tracks; empty: none
    power_every: int | None = None  # updates between their snapshots; None: only at the end

    def __post_init__(self) -> None:
        for name in ("decay", "ramp_from"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"ema.{name} is {getattr(self, name):g}; it must be in [0, 1), near 1 as in 0.999.")
        for name, least in (("start", 0), ("every", 1), ("ramp_updates", 1), ("power_every", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"ema.{name} is {value}; it counts updates and must be at least {least}.")
        if wide := [std for std in self.power if not 0 < std < 0.28]:
            raise ValueError(f"ema.power has {wide[0]:g}; a relative width lies between 0 and 0.28, as in 0.05 or 0.1.")

    def scaled(self, ratio: float) -> "EmaOptions":
        """The same horizon in samples for a batch of `ratio` times the reference; itself unless scale_with_batch."""
        return replace(self, decay=self.decay**ratio, scale_with_batch=False) if self.scale_with_batch else self

    def decay_at(self, n: int) -> float:
        """What update n = 1, 2, ... keeps of the average; 0 up to `start`."""
        if n <= self.start:
            return 0.0
        ramp = self.ramp_from + (self.decay - self.ramp_from) * min(1.0, n / self.ramp_updates)
        return {"ratio": min(self.decay, (1 + n) / (10 + n)), "ramp": ramp, "none": self.decay}[self.warmup]


class EMA:
    """Averages of `named_parameters` by `options`: `shadow` name -> tensor, and `tracks` width -> (name -> tensor).

    The parameters themselves are held on to: whatever replaces one, rather than fill it, needs a new average.
    """

    def __init__(self, named_parameters: Named, options: EmaOptions | None = None):
        self.options, self.updates, self._swaps = options or EmaOptions(), 0, 0
        live = _averaged(named_parameters)
        self.shadow = _copies(live)
        self.tracks = {std: _copies(live) for std in sorted(self.options.power)}
        self._parameters = list(live.values())
        self._same = all(p.dtype == s.dtype for p, s in zip(self._parameters, self.shadow.values()))
        self._lists = [list(track.values()) for track in (self.shadow, *self.tracks.values())]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters after one optimizer step; a skipped step must not be reported."""
        if self._swaps:
            raise RuntimeError("The module holds its averaged weights; leave `swapped` before the next update.")
        n = self.updates = self.updates + 1
        early = n <= self.options.start
        if not early and (n - self.options.start) % self.options.every:
            return
        since = 1 if early else self.options.every
        if not self._parameters:
            return
        shadow, *tracks = self._lists
        live = self._parameters if self._same else [p.to(s.dtype) for p, s in zip(self._parameters, shadow)]
        torch._foreach_lerp_(shadow, live, 1 - self.options.decay_at(n) ** since)
        for std, track in zip(self.tracks, tracks):
            torch._foreach_lerp_(track, live, 1 - (max(0, n - since) / n) ** (gamma(std) + 1))

    @contextmanager
    def swapped(self, module: nn.Module) -> Iterator[None]:
        """Inside, `module` holds the averages, copied in place; afterwards its raw weights, bit for bit.

        `module.after_average(network)`, where it exists, may adjust averaged parameters of that swapped copy.
        """
        live = self._live(module.named_parameters())
        raw = {name: parameter.detach().clone() for name, parameter in live.items()}
        self._swaps += 1
        try:
            _overwrite(live, self.shadow)
            if adjust := getattr(module, "after_average", None):
                torch.no_grad()(adjust)(getattr(module, "network", module))
            yield
        finally:
            _overwrite(live, raw)
            self._swaps -= 1

    def state_dict(self) -> dict[str, Any]:
        """Plain types and the live tensors: {"updates": n, "shadow": {name: tensor}, "tracks": {width: shadow}}."""
        return {"updates": self.updates, "shadow": self.shadow, "tracks": self.tracks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`, in place. ValueError when tracks, names or shapes differ."""
        if list(state["tracks"]) != list(self.tracks):
            raise ValueError(f"The checkpoint has tracks {list(state['tracks'])}; set ema.power to them.")
        stored = (state["shadow"], *state["tracks"].values())
        for mine, theirs in zip((self.shadow, *self.tracks.values()), stored):
            if odd := sorted(set(_shapes(mine).items()) ^ set(_shapes(theirs).items())):
                raise ValueError(f"The stored average is of another network: {odd[0]} is in one only; load its config.")
            _overwrite(mine, theirs)
        self.updates = state["updates"]

    def snapshot(self, std: float) -> dict[str, Any]:
        """One power track now, as `reconstruct` reads it: {"std", "updates", "shadow"}."""
        return {"std": std, "updates": self.updates, "shadow": self.tracks[std]}

    def _live(self, named_parameters: Named) -> dict[str, Tensor]:
        live = dict(named_parameters)
        if missing := [name for name in self.shadow if name not in live]:
            raise ValueError(f"{missing[0]} is averaged but not among the parameters given; pass the same module.")
        return {name: live[name] for name in self.shadow}


@cache
def gamma(std: float) -> float:
    """Exponent of the power-function profile whose relative width is `std`: 0.05 -> 16.97, 0.10 -> 6.94."""
    return float(np.roots([1, 7, 16 - std**-2, 12 - std**-2]).real.max())


def reconstruct(
    snapshots: Sequence[Path | str | Mapping[str, Any]], std: float, updates: int | None = None
) -> dict[str, Tensor]:
    """Weights averaged with relative width `std` at update `updates` (None: the last), from files of `EMA.snapshot`.

    Least squares over profiles (EDM2, algorithm 3): exact at a stored (std, updates), close in between.
    """
    taken = [s if isinstance(s, Mapping) else torch.load(s, "cpu", mmap=True, weights_only=True) for s in snapshots]
    n, g = np.array([s["updates"] for s in taken], float), np.array([gamma(s["std"]) for s in taken])
    end = n.max() if updates is None else float(updates)
    target = _overlap(n, g, np.array([end]), np.array([gamma(std)]))
    share = np.linalg.lstsq(_overlap(n, g, n, g), target, rcond=None)[0][:, 0]
    weights = {name: torch.zeros_like(tensor) for name, tensor in taken[0]["shadow"].items()}
    for part, snapshot in zip((share / share.sum()).tolist(), taken):
        for name, tensor in weights.items():
            tensor.add_(snapshot["shadow"][name], alpha=part)
    return weights


def _overlap(n: np.ndarray, g: np.ndarray, m: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Inner products [len(n), len(m)] of profiles of exponent g ending at update n and of exponent h ending at m."""
    n, g = n[:, None], g[:, None]
    return (g + 1) * (h + 1) * (n / m) ** np.where(n < m, h, -g) / ((g + h + 1) * np.maximum(n, m))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _averaged(named_parameters: Named) -> dict[str, Tensor]:
    """Trainable floating parameters; of those that share memory, the first."""
    kept: dict[Any, tuple[str, Tensor]] = {}
    for name, p in named_parameters:
        if p.requires_grad and p.is_floating_point():
            kept.setdefault((p.data_ptr() or id(p), p.shape, p.stride()), (name, p))
    return dict(kept.values())


def _copies(live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for n, p in live.items()}


@torch.no_grad()
def _overwrite(to: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    for name, tensor in to.items():
        tensor.copy_(cut_like(source[name], tensor))
