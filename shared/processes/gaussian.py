"""Gaussian corruption x_t = alpha x0 + sigma eps, and its walk back for any pair of times s < t.

Ideas: Ho et al. 2020 (DDPM, eta = 1), Song et al. 2021 (DDIM, eta = 0), Lipman et al. 2023 (on the linear path eta = 0
is Euler), Karras et al. 2022 (Heun), Lu et al. 2022 (DPM-Solver++ 2M). Belief is x0; what a network predicts instead is
turned into it by the identities. Knows no data range and no network; all arithmetic is in the dtype of t or wider.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from shared.processes import draws
from shared.processes.draws import Rng
from shared.processes.schedules import Clock, Schedule, expand, hold, readable, spread

LOG_SNR_CUT = 20.0  # weights read log-SNR cut to [-20, 20], so that they are finite on the closed interval


class Gaussian:
    """eta = 0 walks without noise, eta = 1 with the posterior's own; prior = sigma(1) eps. t is [B] or [B, T]."""

    def __init__(self, schedule: Schedule, eta: float = 0.0):
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is {eta}; it lies in [0, 1], 0 without noise, 1 the full posterior variance")
        self.schedule, self.eta = schedule, eta

    def prior(self, like: Tensor, rng: Rng) -> Tensor:
        eps = self.draw(like, rng)
        return self.schedule.sigma(torch.ones((), dtype=eps.dtype, device=eps.device)) * eps

    def draw(self, x0: Tensor, rng: Rng) -> Tensor:
        """eps of one path, of the shape of x0, float32 or wider."""
        return draws.normal(x0.shape, rng, torch.promote_types(x0.dtype, torch.float32), x0.device)

    def corrupt(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self._scales(x0, t)
        return alpha * x0 + sigma * noise

    def decide(self, belief: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """x0 of a belief: the belief itself."""
        return belief

    # --- the walk back

    def moments(self, x_t: Tensor, belief: Tensor, t: Tensor, s: Tensor, eta: float = 1.0) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x_s given x_t and x0 = belief (Song et al. 2021, eq. 12, two times)."""
        a_t, s_t = self._scales(x_t, t)
        a_s, s_s = self._scales(x_t, s)
        self._check(s_t, t, s)
        v = eta**2 * s_s**2 * (1 - (a_t * s_s / (a_s * s_t)) ** 2).clamp(min=0)
        eps_hat = (x_t - a_t * belief) / s_t
        return a_s * belief + (s_s**2 - v).clamp(min=0).sqrt() * eps_hat, v.sqrt()

    def step(self, x_t: Tensor, belief: Tensor, t: Tensor, s: Tensor, rng: Rng | None = None) -> Tensor:
        """x_s; the belief itself at s = 0. rng is used only if eta > 0."""
        x_s, std = self.moments(x_t, belief, t, s, self.eta)
        if self.eta > 0:
            if rng is None:
                raise ValueError(f"a step with eta={self.eta} draws noise and got no generator; bind rng to the step")
            x_s = x_s + std * self.draw(x_s, rng)
        return hold(x_t, torch.where(expand(s, x_s) == 0, belief, x_s), t, s)

    def _scales(self, like: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = expand(t, like)
        return self.schedule.alpha(t), self.schedule.sigma(t)

    def _check(self, s_t: Tensor, t: Tensor, s: Tensor) -> None:
        if readable(s_t):
            if (s > t).any():
                raise ValueError(f"a step goes from t down to s, got t={t[s > t][0].item()}, s={s[s > t][0].item()}")
            _refuse_zero(s_t.reshape(t.shape).masked_fill(s == t, 1), t, "sigma")

    # --- identities: x_t with one of x0, eps, velocity gives the other two

    def x0_from_eps(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self._scales(x_t, t)
        return (x_t - sigma * eps) / _refuse_zero(alpha, t, "alpha")

    def eps_from_x0(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self._scales(x_t, t)
        return (x_t - alpha * x0) / _refuse_zero(sigma, t, "sigma")

    def x0_from_velocity(self, x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        time = expand(t, x_t)
        return self.schedule.velocity(time)[1] * x_t - self.schedule.sigma(time) * velocity

    def eps_from_velocity(self, x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        time = expand(t, x_t)
        return self.schedule.alpha(time) * velocity - self.schedule.velocity(time)[0] * x_t

    def velocity_from_x0(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        time = expand(t, x_t)
        return (self.schedule.velocity(time)[1] * x_t - x0) / _refuse_zero(self.schedule.sigma(time), t, "sigma")

    def velocity_from_eps(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        time = expand(t, x_t)
        return (eps + self.schedule.velocity(time)[0] * x_t) / _refuse_zero(self.schedule.alpha(time), t, "alpha")

    # --- weights

    def weight(
        self,
        t: Tensor,
        kind: Literal["x0", "eps", "velocity", "min_snr", "sigmoid"] = "x0",
        gamma: float = 5.0,
        bias: float = 0.0,
    ) -> Tensor:
        """Weight of the squared error in x0 that makes it the loss of `kind`; log-SNR cut to +-20, finite everywhere.

        min_snr: Hang et al. 2023. sigmoid: sigmoid(bias - log_snr) on the error in eps (Hoogeboom et al. 2024).
        """
        log_snr = self.schedule.log_snr(t).clamp(-LOG_SNR_CUT, LOG_SNR_CUT)
        table: dict[str, Callable[[], Tensor]] = {
            "x0": lambda: torch.ones_like(t),
            "eps": lambda: log_snr.exp(),
            "velocity": lambda: self.schedule.sigma(t).square().clamp(min=math.exp(-LOG_SNR_CUT)).reciprocal(),
            "min_snr": lambda: log_snr.exp().clamp(max=gamma),
            "sigmoid": lambda: log_snr.exp() * torch.sigmoid(bias - log_snr),
        }
        if kind not in table:
            raise ValueError(f"weight kind {kind!r} is unknown; choose one of {', '.join(table)}")
        return table[kind]()


def _refuse_zero(divisor: Tensor, t: Tensor, name: str) -> Tensor:
    """The divisor, one number per t; a zero is an error on the CPU."""
    if readable(divisor) and bool((divisor == 0).any()):
        at = t.reshape(divisor.shape)[divisor == 0][0].item()
        raise ValueError(f"{name} is 0 at t={at} and something is divided by it; keep t off that end")
    return divisor


# --- second-order steps, with their memory in plain sight -------------------------------------------------------------


@dataclass
class Heun:
    """eta = 0 step with a second look at s: belief + c (second - belief); the last step takes one call.

    kind: the variable in which the average is taken. `mean` c = 1/2 (the exponential form, any schedule); `flow`
    c = sigma_t/(2 sigma_s), Heun in t on the linear path; `edm` the same with sigma/alpha (Karras et al. 2022, alg. 1).
    """

    process: Gaussian
    denoise: Callable[[Tensor, Tensor], Tensor]
    kind: Literal["mean", "flow", "edm"] = "mean"

    def __call__(self, x_t: Tensor, belief: Tensor, t: Tensor, s: Tensor, *_) -> Tensor:
        euler = Gaussian(self.process.schedule)
        x_s = euler.step(x_t, belief, t, s)
        if not bool((s > 0).any()):
            return x_s
        second = self.denoise(x_s, s)
        share = torch.where(expand(s, x_t) > 0, self._share(expand(t, x_t), expand(s, x_t)), 0)
        return euler.step(x_t, torch.where(share > 0, belief + share * (second - belief), belief), t, s)

    def _share(self, t: Tensor, s: Tensor) -> Tensor:
        schedule = self.process.schedule
        if self.kind == "mean":
            return torch.full_like(t, 0.5)
        if self.kind == "flow":
            return schedule.sigma(t) / (2 * schedule.sigma(s))
        return ((schedule.log_snr(s) - schedule.log_snr(t)) / 2).exp() / 2


@dataclass
class Dpm2m:
    """eta = 0 step on the belief extrapolated in log-SNR: b + h/(2 h') (b - b'), ' the step before.

    Plain belief on the first step of a walk and where either stride in log-SNR is infinite.
    """

    process: Gaussian
    belief: Tensor | None = None
    stride: Tensor | None = None
    clock: Clock = field(default_factory=Clock)

    def __call__(self, x_t: Tensor, belief: Tensor, t: Tensor, s: Tensor, *_) -> Tensor:
        schedule, restarted = self.process.schedule, self.clock.restarted(t)
        stride = schedule.log_snr(s) - schedule.log_snr(t)
        ahead = belief
        if self.belief is not None and self.stride is not None and self.belief.shape == belief.shape:
            share = stride / (2 * self.stride)
            usable = stride.isfinite() & self.stride.isfinite() & (self.stride > 0) & ~spread(restarted, share)
            share = spread(torch.where(usable, share, 0), belief)
            ahead = belief + share * (belief - self.belief)
        self.belief, self.stride = belief, stride
        return Gaussian(schedule).step(x_t, ahead, t, s)
