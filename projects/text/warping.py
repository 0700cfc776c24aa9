"""Warps: which share of the walk each level of noise gets. t is a quantile of the level, so uniform t follows the warp.

A warp gives log_snr(t), its inverse quantile(log_snr), and density(log_snr) of the levels met; `processes.Warped` makes
it a schedule. `Gumbel` stands at the resolution law (LangFlow, arXiv 2604.11748), `Monotone` follows the loss (CDCD,
Dieleman et al. 2022), `Affine` is learnt with the bound (Plaid, Gulrajani and Hashimoto 2023; VDM, Kingma et al. 2021).
`calibrate(log_snr, loss)` takes in what training saw, detached. gamma = -log_snr. Knows no tokens.
"""

import math
from functools import partial
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.text.resolution import LOG_SNR_MAX
from shared.processes import VariancePreserving, at_least, cosine, rooted, square_root, squared
from shared.processes.schedules import PiecewiseCdf, Schedule, Signal, derivative, time_of
from shared.training.pretrained import build

SCALE = 0.85  # of Gumbel, in nats: about the width of the law itself
SCALES = (0.2, 5.0)  # between which a fitted scale stays
CLEANEST = math.sqrt(1 / (1 + math.exp(-LOG_SNR_MAX)))  # alpha of the last level before data


class Warp(Protocol):
    """A distribution of levels between two ends."""

    def log_snr(self, t: Tensor) -> Tensor:
        """The level of quantile t: falls from the clean end at 0 to the noisy one at 1."""

    def quantile(self, log_snr: Tensor) -> Tensor:
        """The inverse: t of a level."""

    def density(self, log_snr: Tensor) -> Tensor:
        """Of levels when t is uniform."""


class Gumbel(nn.Module):
    """F(gamma) = exp(-exp(-(gamma - location)/scale)), cut to [log_snr_min, log_snr_max] and normalised there.

    In logarithms of F and in float64: far on the clean side F is smaller than any float, yet has an inverse.
    """

    location: Tensor
    scale: Tensor

    def __init__(self, location: float, log_snr_min: float, log_snr_max: float, scale: float = SCALE):
        super().__init__()
        if not log_snr_min < -location < log_snr_max or scale <= 0:
            raise ValueError(
                f"location {location}, scale {scale}: want -location in ({log_snr_min}, {log_snr_max}), scale > 0"
            )
        self.low, self.high = log_snr_min, log_snr_max
        self.register_buffer("location", torch.tensor(location, dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))

    def _log_cdf(self, log_snr: Tensor | float) -> Tensor:
        """ln F at a level."""
        return -((log_snr + self.location) / self.scale).exp()

    def _ends(self) -> tuple[Tensor, Tensor]:
        """ln F at the clean end, and ln of the mass between it and the noisy one."""
        clean, noisy = self._log_cdf(self.high), self._log_cdf(self.low)
        return clean, noisy + torch.log1p(-(clean - noisy).exp())

    def log_snr(self, t):
        clean, mass = self._ends()
        log_cdf = torch.logaddexp(clean, t.double().log() + mass)
        return ((-log_cdf).log() * self.scale - self.location).clamp(self.low, self.high).to(t)

    def quantile(self, log_snr):
        clean, mass = self._ends()
        log_cdf = self._log_cdf(log_snr.double())
        return ((log_cdf - mass).exp() - (clean - mass).exp()).clamp(0, 1).to(log_snr)

    def density(self, log_snr):
        log_cdf = self._log_cdf(log_snr.double())
        return (log_cdf - self._ends()[1] + (-log_cdf).log() - self.scale.log()).exp().to(log_snr)


class Monotone(PiecewiseCdf):
    """CDCD's: piecewise linear, follows the running loss per level, a tenth of it flat so that no level starves."""


class Fitted(Gumbel):
    """A Gumbel that follows the loss: where the running curve is F, -ln(-ln F) is a straight line in gamma."""

    def __init__(self, location: float, log_snr_min: float, log_snr_max: float, scale: float = SCALE):
        super().__init__(location, log_snr_min, log_snr_max, scale)
        self.curve = PiecewiseCdf(log_snr_min, log_snr_max, uniform=0.0)
        self.curve.start_from(self)

    @torch.no_grad()
    def calibrate(self, log_snr: Tensor, loss: Tensor) -> None:
        """Take in losses [B] seen at log_snr [B], then draw the line; the ends of the curve weigh least."""
        self.curve.calibrate(log_snr, loss)
        share = self.curve.edges
        gamma = torch.linspace(-self.high, -self.low, len(share), dtype=share.dtype, device=share.device)[1:-1]
        share = share[1:-1].clamp(1e-6, 1 - 1e-6)
        weight, height = (share * (1 - share)).square(), -(-share.log()).log()
        weight = weight / weight.sum()
        middle, level = (weight * gamma).sum(), (weight * height).sum()
        slope = (weight * (gamma - middle) * (height - level)).sum() / (weight * (gamma - middle).square()).sum()
        self.scale.copy_((1 / slope).clamp(*SCALES))
        self.location.copy_((middle - level * self.scale).clamp(-self.high, -self.low))


class Relay(nn.Module):
    """`first` until hand_over(), then `second`, which starts from the first and is calibrated all along."""

    handed: Tensor

    def __init__(self, first: Gumbel, second: Monotone):
        super().__init__()
        self.first, self.second = first, second
        second.start_from(first)
        self.register_buffer("handed", torch.zeros((), dtype=torch.bool))

    def hand_over(self) -> None:
        """From now on the second; no host sync, so it may be called in every update."""
        self.handed.fill_(True)

    def calibrate(self, log_snr: Tensor, loss: Tensor) -> None:
        """Take in losses [B] seen at log_snr [B]."""
        self.second.calibrate(log_snr, loss)

    def log_snr(self, t):
        return torch.where(self.handed, self.second.log_snr(t), self.first.log_snr(t))

    def quantile(self, log_snr):
        return torch.where(self.handed, self.second.quantile(log_snr), self.first.quantile(log_snr))

    def density(self, log_snr):
        return torch.where(self.handed, self.second.density(log_snr), self.first.density(log_snr))


class Affine(nn.Module):
    """gamma(t) = gamma_0 + (gamma_1 - gamma_0) m(t), m monotone from 0 to 1: all of it parameters.

    m is a small network of positive weights (VDM, app. D). The bound teaches the ends, its variance the shape.
    """

    def __init__(self, gamma_0: float = -3.0, gamma_1: float = 6.0, width: int = 64):
        super().__init__()
        self.gamma_0, self.gamma_1 = nn.Parameter(torch.tensor(gamma_0)), nn.Parameter(torch.tensor(gamma_1))
        self.line, self.heights = nn.Parameter(torch.zeros(())), nn.Parameter(torch.full((width,), -5.0))
        self.slopes, self.centres = nn.Parameter(torch.full((width,), 10.0)), nn.Parameter(torch.linspace(0, 1, width))

    def _rise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """A rising function of t, and its derivative."""
        slopes, heights = F.softplus(self.slopes), F.softplus(self.heights)
        bends = torch.sigmoid(slopes * (t.unsqueeze(-1) - self.centres))
        steep = F.softplus(self.line) + (heights * slopes * bends * (1 - bends)).sum(-1)
        return F.softplus(self.line) * t + (heights * bends).sum(-1), steep

    def shape(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """m(t) and dm/dt."""
        first, last = (self._rise(end)[0] for end in (torch.zeros_like(t), torch.ones_like(t)))
        here, steep = self._rise(t)
        return (here - first) / (last - first), steep / (last - first)

    def log_snr(self, t):
        return -(self.gamma_0 + (self.gamma_1 - self.gamma_0) * self.shape(t)[0])

    @torch.no_grad()
    def quantile(self, log_snr):
        return time_of(self, log_snr)

    @torch.no_grad()
    def density(self, log_snr):
        return -1 / derivative(self.log_snr, self.quantile(log_snr))


# --- schedules of papers, which are no warps --------------------------------------------------------------------------


def preserving(
    kind: Literal["square_root", "cosine"], offset: float | None = None, normalised: bool = True
) -> Schedule:
    """By name, with the floor of alpha^2 that is left of the paper's last step. normalised: begins without noise.

    offset: from the clean end (None: the paper's).
    """
    if kind == "cosine":
        fn, floor = cosine(0.008 if offset is None else offset), 1e-8
    else:
        fn, floor = square_root(1e-4 if offset is None else offset, from_zero=normalised), 2.02e-7
    return build(VariancePreserving, fn=noised(rooted(at_least(squared(fn), floor))))


def noised(fn: Signal) -> Signal:
    """fn kept off 1, but for t = 0 itself: float32 would round a little noise to none, and the bias divides by it."""
    return partial(_noised, fn=fn)


def _noised(t: Tensor, fn: Signal) -> Tensor:
    alpha = fn(t)
    return torch.where(t > 0, alpha.clamp(max=CLEANEST), alpha)
