"""Ways back from noise to sentences, by name: each is a composition of pieces of `shared` round one network.

Ideas: DDPM (Ho et al. 2020), DDIM (Song et al. 2021), DPM-Solver++ 2M (Lu et al. 2022), Heun (Karras et al. 2022),
re-corrupting the belief, the temperature of the score (Gulrajani & Hashimoto 2023), the nearest row (Li et al. 2022).
All walk the process that trained. Knows logits, rows and times; no words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from projects.text.network import Network
from shared import sampling as house
from shared.processes import Dpm2m, Gaussian, Heun, time_of
from shared.processes.draws import Rng
from shared.sampling import Denoise, Step
from shared.training.samples import SamplingOptions

Clamp = Callable[..., Denoise]  # denoise, metric=, start= -> the belief moved to rows where t <= start
LEAST_TIME = 1e-3  # below it every word is read: equal strides of the log-SNR end there


@dataclass
class Sampling(SamplingOptions):
    """How sentences are drawn. steps: of the walk from noise to words. count, first: which ones the verb draws.

    kind: ddpm = the exact posterior; ddim = without its noise; multistep, heun = second order; recorrupt = the belief
    corrupted afresh; switched = ddpm in noise, recorrupt where the log-SNR exceeds switch_log_snr (auto: at SNR*,
    where words are decided). grid: warp = equal strides of t, log_snr = equal strides of the log-SNR.
    logit_temperature: of the words believed. score_temperature: below 1 the noise that is believed counts for more.
    clamp: nearest = the belief is moved to a row, by clamp_metric, over the rest of the walk after clamp_start.
    """

    steps: int = 64
    kind: Literal["ddpm", "ddim", "multistep", "heun", "recorrupt", "switched"] = "ddpm"
    grid: Literal["warp", "log_snr"] = "warp"
    logit_temperature: float = 1.0
    score_temperature: float = 1.0
    initial_noise_scale: float = 1.0
    clamp: Literal["none", "nearest"] = "none"
    clamp_metric: Literal["l2", "cosine"] = "l2"
    clamp_start: float = 0.9
    switch_log_snr: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("logit_temperature", "score_temperature", "initial_noise_scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"sampling.{name} is {getattr(self, name)}; it must be above 0, 1 changes nothing.")
        if not 0 <= self.clamp_start <= 1:
            raise ValueError(f"sampling.clamp_start is {self.clamp_start}; it is a share of the walk, 0 to 1.")


class Walk(NamedTuple):
    """What `shared.sampling.sample` takes, and the network's last words."""

    denoise: Denoise
    step: Step
    x: Tensor
    grid: Tensor
    speaker: Speaker


class Given(NamedTuple):
    """Rows that are given to a walk: it begins with them and keeps them at every step, and the network sees and
    believes nothing else there.

    known: bool [B, L]. x0: [B, L, e].
    """

    known: Tensor
    x0: Tensor

    def put(self, x: Tensor) -> Tensor:
        return torch.where(self.known.unsqueeze(-1), self.x0, x)

    def through(self, walk: Walk) -> Walk:
        """The walk that keeps them."""
        walk.speaker.given = self
        return walk._replace(x=self.put(walk.x), step=house.pinned(walk.step, self.known, self.x0))


class Speaker:
    """network(x, t, belief) as a belief of x0; remembers the logits it last gave, [B, L, V]."""

    def __init__(self, network: Network, temperature: float = 1.0):
        self.network, self.temperature = network, temperature
        self.logits = torch.empty(0)
        self.valid: Tensor | None = None  # bool [B, L], where sentences have their lengths given
        self.given: Given | None = None

    def __call__(self, x: Tensor, t: Tensor, belief: Tensor) -> Tensor:
        where = () if self.valid is None else (self.valid,)
        out = self.network(self.given.put(x) if self.given else x, t, belief, *where)
        self.logits = self.network.logits(out) / self.temperature
        said = self.network.believe(out, self.temperature)
        return self.given.put(said) if self.given else said

    @property
    def training(self) -> bool:
        return self.network.training

    def words(self) -> tuple[Tensor, Tensor]:
        """The likeliest ids [B, L] of the last logits, and their log-probabilities."""
        score, ids = self.logits.log_softmax(-1).max(-1)
        return ids, score


def walk(
    network: Network, process: Gaussian, options: Sampling, n: int, rng: Rng, star: float, clamp: Clamp | None = None
) -> Walk:
    """The walk of n sentences as the options say, by steps of the process.

    star: log-SNR at which words are decided. clamp: how a belief is moved (None: to the rows of the network).
    """
    rows = network.rows.rows
    clamp = clamp or partial(house.rounded, table=rows)
    like = rows.new_empty(n, network.length, rows.shape[1])
    speaker = Speaker(network, options.logit_temperature)

    def heard() -> Denoise:
        """The network with a memory of its own for what it believed before."""
        return believed(house.self_conditioned(speaker), process, options, clamp)

    x = options.initial_noise_scale * process.prior(like, rng)
    step = stepping(process, heard, options, star, rng, x.device)
    return Walk(heard(), step, x, grid(process, options, x.device), speaker)


def believed(denoise: Denoise, process: Gaussian, options: Sampling, clamp: Clamp) -> Denoise:
    """The belief, sharpened and moved to rows where the options wish it."""
    if options.score_temperature != 1:
        denoise = sharpened(denoise, process, options.score_temperature)
    if options.clamp == "nearest":
        denoise = clamp(denoise, metric=options.clamp_metric, start=1 - options.clamp_start)
    return denoise


def sharpened(denoise: Denoise, process: Gaussian, temperature: float) -> Denoise:
    """The belief whose noise is that of `denoise` over the temperature (Plaid's score temperature)."""

    def belief(x: Tensor, t: Tensor) -> Tensor:
        eps = process.eps_from_x0(x, denoise(x, t), t)
        return process.x0_from_eps(x, eps / temperature, t)

    return belief


def stepping(
    process: Gaussian, heard: Callable[[], Denoise], options: Sampling, star: float, rng: Rng, device: torch.device
) -> Step:
    """The step of the kind, its randomness bound. Heun's second look goes down the levels by itself, one behind."""
    flat, posterior = (type(process)(process.schedule, eta=eta) for eta in (0.0, 1.0))
    noisy = partial(posterior.step, rng=rng)
    afresh = partial(house.renoise(flat), rng=rng)
    if options.kind == "heun":
        return Heun(flat, heard())
    if options.kind == "switched":
        return house.switched(noisy, afresh, at=time_at(process, star, options, device))
    kinds: dict[str, Step] = {"ddpm": noisy, "ddim": flat.step, "multistep": Dpm2m(flat), "recorrupt": afresh}
    return kinds[options.kind]


def time_at(process: Gaussian, star: float, options: Sampling, device: torch.device) -> float:
    """When `switched` takes its second step."""
    log_snr = star if options.switch_log_snr == "auto" else options.switch_log_snr
    return float(time_of(process.schedule, torch.tensor([log_snr], dtype=torch.float64, device=device)))


def grid(process: Gaussian, options: Sampling, device: torch.device) -> Tensor:
    """Times [S + 1] from 1 to 0."""
    if options.grid == "warp":
        return house.uniform_grid(options.steps)
    ends = process.schedule.log_snr(torch.tensor([1.0, LEAST_TIME], dtype=torch.float64, device=device))
    share = torch.linspace(0, 1, options.steps + 1, dtype=torch.float64, device=device)
    times = time_of(process.schedule, ends[0] + (ends[1] - ends[0]) * share)
    times[0], times[-1] = 1.0, 0.0
    return times.float()
