"""Time: schedules as functions of a continuous t, and the rule by which t meets data.

A function gives the signal kept, 1 at t = 0 falling to about 0 at t = 1: the coefficient of x0 for a Gaussian, the
survival probability for categories (`squared` turns the first into the second). Objects add sigma, log-SNR and
derivatives, all derived from the one function. Sources: cosine (Nichol and Dhariwal 2021), square root (Li et al.
2022, Diffusion-LM), flow shift (Esser et al. 2024), warping (Dieleman et al. 2022, CDCD). Knows no data and keeps no
tables of T entries: a paper's index i is t = i/T.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Signal = Callable[[Tensor], Tensor]


# --- t meets data -----------------------------------------------------------------------------------------------------


def expand(t: Tensor, like: Tensor) -> Tensor:
    """t of shape [], [B] or [B, T] with the dims of `like` [B, ...] or [B, T, ...]; ndim decides, values are checked.

    Packed data [N] has one t per element, [N].
    """
    check_time(t)
    if t.shape != like.shape[: t.ndim] or t.ndim > 2:
        raise ValueError(f"t {list(t.shape)} does not fit data {list(like.shape)}; give t of shape [B] or [B, T]")
    return spread(t, like)


def spread(value: Tensor, like: Tensor) -> Tensor:
    """Any value of leading dims of `like` (a mask, a weight) with its remaining dims as 1."""
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))


def check_time(t: Tensor) -> None:
    """Raise unless t is float32 or float64 in [0, 1]. Values are read on the CPU only: no sync on an accelerator."""
    if t.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"t has dtype {t.dtype}; process mathematics wants float32 or float64")
    if readable(t):
        low, high = (float(x) for x in t.aminmax())
        if not (low >= 0 and high <= 1):  # NaN fails too
            raise ValueError(f"t must lie in [0, 1], got {low if not low >= 0 else high}; 0 is data, 1 is noise")


def readable(x: Tensor) -> bool:
    """Whether reading x costs nothing: on the CPU and outside of a traced graph."""
    return x.device.type == "cpu" and x.numel() > 0 and not torch.compiler.is_compiling()


def hold(x_t: Tensor, x_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x_s where time moves, x_t bit for bit where a column waits (s = t)."""
    return torch.where(spread(s < t, x_t), x_s, x_t)


class Clock:
    """Tells a rule with memory when a new walk begins: where no column of a sample fell, or one rose."""

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def restarted(self, t: Tensor) -> Tensor:
        """bool [B] for t [B] or [B, T]; remembers t. Reads nothing on the host."""
        last, self.last = self.last, t
        if last is None or last.shape != t.shape:
            return torch.ones(len(t), dtype=torch.bool, device=t.device)
        fell, rose = (t < last).reshape(len(t), -1), (t > last).reshape(len(t), -1)
        return rose.any(1) | ~fell.any(1)


# --- signal kept, as plain functions ----------------------------------------------------------------------------------


def linear(t: Tensor) -> Tensor:
    """1 - t."""
    return 1 - t


def cosine(offset: float = 0.0) -> Signal:
    """cos(pi/2 (t+o)/(1+o)) / cos(pi/2 o/(1+o)); exactly 1 at t = 0 and 0 at t = 1."""
    return partial(_cosine, offset=offset)


def square_root(offset: float = 1e-4, from_zero: bool = True) -> Signal:
    """sqrt(1 - u) with u = (r(t) - r(0))/(r(1) - r(0)), r(t) = sqrt(t + offset).

    from_zero=False takes u = r(t)/r(1), the form of Diffusion-LM: it starts at sigma = sqrt(r(0)/r(1)), not at 0.
    """
    return partial(_square_root, offset=offset, from_zero=from_zero)


def log_linear(eps: float = 1e-3) -> Signal:
    """1 - (1 - eps) t (Sahoo et al. 2024): the masked share grows linearly, eps of the signal is left."""
    return partial(_log_linear, eps=eps)


def with_floor(fn: Signal, floor: float) -> Signal:
    """floor + (1 - floor) fn(t)."""
    return partial(_with_floor, fn=fn, floor=floor)


def at_least(fn: Signal, floor: float) -> Signal:
    """The larger of fn(t) and floor: log-SNR keeps finite at t = 1 (a paper's cap on its last step)."""
    return partial(_at_least, fn=fn, floor=floor)


def squared(fn: Signal) -> Signal:
    """The survival probability of categories from the alpha of a variance-preserving Gaussian."""
    return partial(_squared, fn=fn)


def rooted(fn: Signal) -> Signal:
    """The alpha of a variance-preserving Gaussian from a survival probability (a paper's cumulative product)."""
    return partial(_rooted, fn=fn)


def discrete(fn: Signal, steps: int) -> Signal:
    """fn with t snapped to the nearest i/steps: parity with papers that keep tables."""
    return partial(_discrete, fn=fn, steps=steps)


def _cosine(t, offset):
    quarter = math.pi / 2 / (1 + offset)  # as the sine of the angle left, which is exact at both ends
    return torch.sin((1 - t) * quarter) / torch.sin(torch.ones_like(t) * quarter)


def _square_root(t, offset, from_zero):
    here, first, last = (torch.sqrt(x + offset) for x in (t, torch.zeros_like(t), torch.ones_like(t)))
    return torch.sqrt((last - here) / (last - first) if from_zero else 1 - here / last)


def _log_linear(t, eps):
    return 1 - (1 - eps) * t


def _with_floor(t, fn, floor):
    return 1 - (1 - floor) * (1 - fn(t))


def _at_least(t, fn, floor):
    return fn(t).clamp(min=floor)


def _squared(t, fn):
    return fn(t).square()


def _rooted(t, fn):
    return fn(t).sqrt()


def _discrete(t, fn, steps):
    return fn(torch.round(t * steps) / steps)


# --- objects: alpha, sigma, log_snr, and their derivatives ------------------------------------------------------------


def derivative(fn: Signal, t: Tensor) -> Tensor:
    """d fn / dt elementwise by autograd; works under no_grad and inference_mode."""
    with torch.inference_mode(False), torch.enable_grad():
        t = t.detach().clone().requires_grad_()
        return torch.autograd.grad(fn(t).sum(), t)[0]


class Schedule:
    """alpha and sigma of a Gaussian corruption x_t = alpha x0 + sigma eps; subclasses give these two and `velocity`."""

    def alpha(self, t: Tensor) -> Tensor:
        """Coefficient of x0: 1 at t = 0."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """Coefficient of eps: 0 at t = 0."""
        raise NotImplementedError

    def velocity(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) of velocity = a x0 + b eps, such that alpha b - sigma a = 1."""
        raise NotImplementedError

    def log_snr(self, t: Tensor) -> Tensor:
        """ln(alpha^2 / sigma^2); +inf at t = 0, -inf where no signal is left."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def d_alpha(self, t: Tensor) -> Tensor:
        return derivative(self.alpha, t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return derivative(self.sigma, t)

    def d_log_snr(self, t: Tensor) -> Tensor:
        return derivative(self.log_snr, t)


class VariancePreserving(Schedule):
    """sigma^2 = 1 - alpha^2 for any signal function; velocity = alpha eps - sigma x0 (Salimans and Ho 2022)."""

    def __init__(self, fn: Signal):
        self.fn = fn

    def alpha(self, t):
        return self.fn(t)

    def sigma(self, t):
        alpha = self.alpha(t)
        return ((1 - alpha) * (1 + alpha)).sqrt()

    def velocity(self, t):
        return -self.sigma(t), self.alpha(t)

    def log_snr(self, t):
        alpha = self.alpha(t)
        return 2 * alpha.log() - torch.log1p(-alpha.square())


class Linear(Schedule):
    """Flow matching (Lipman et al. 2023; Liu et al. 2023): alpha = 1 - t, sigma = t, velocity = eps - x0."""

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t.clone()

    def velocity(self, t):
        return -torch.ones_like(t), torch.ones_like(t)

    def log_snr(self, t):
        return 2 * (torch.log1p(-t) - t.log())


def time_of(schedule, log_snr: Tensor) -> Tensor:
    """t at which the schedule, or a warp, has this log-SNR, by bisection; 0 or 1 where it never has it."""
    low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
    for _ in range(60):  # log-SNR falls in t
        middle = (low + high) / 2
        late = schedule.log_snr(middle) < log_snr
        low, high = torch.where(late, low, middle), torch.where(late, middle, high)
    return high


class Shifted(Schedule):
    """A schedule read at t' = shift t / (1 + (shift - 1) t): shift > 1 spends more of the walk in noise."""

    def __init__(self, schedule: Schedule, shift: float):
        self.schedule, self.shift = schedule, shift

    def time(self, t: Tensor) -> Tensor:
        """t' of t."""
        return self.shift * t / (1 + (self.shift - 1) * t)

    def alpha(self, t):
        return self.schedule.alpha(self.time(t))

    def sigma(self, t):
        return self.schedule.sigma(self.time(t))

    def velocity(self, t):
        return self.schedule.velocity(self.time(t))

    def log_snr(self, t):
        return self.schedule.log_snr(self.time(t))


class PiecewiseCdf(torch.nn.Module):
    """Where the loss rises along the noise axis: t as the quantile of a running loss curve (CDCD, sec. 3.4).

    The axis is cut into `bins` between log_snr_max (t = 0) and log_snr_min (t = 1). F follows the running mean of the
    loss per bin, made monotone, normalised, with `uniform` of a flat density mixed in so that no level starves. Flat
    until calibrated. The state is buffers: saved with the module that owns it, equal on all ranks.
    """

    loss: Tensor
    seen: Tensor
    edges: Tensor

    def __init__(
        self, log_snr_min: float, log_snr_max: float, bins: int = 64, decay: float = 0.99, uniform: float = 0.1
    ):
        super().__init__()
        if not log_snr_min < log_snr_max:
            raise ValueError(
                f"log_snr_min {log_snr_min} is not below log_snr_max {log_snr_max}; give them in this order"
            )
        self.low, self.high, self.bins, self.decay, self.uniform = log_snr_min, log_snr_max, bins, decay, uniform
        self.register_buffer("loss", torch.zeros(bins, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(bins, dtype=torch.float64))
        self.register_buffer("edges", torch.linspace(0, 1, bins + 1, dtype=torch.float64))  # F, strictly rising

    @torch.no_grad()
    def calibrate(self, log_snr: Tensor, loss: Tensor) -> None:
        """Take in losses [B] seen at log_snr [B]; sums are reduced over ranks, an unseen bin keeps what it had."""
        index = self._place(log_snr.double()).long().clamp(0, self.bins - 1)
        batch = self.loss.new_zeros(2, self.bins)
        batch[0].index_add_(0, index, loss.double())
        batch[1].index_add_(0, index, torch.ones_like(loss, dtype=torch.float64))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(batch)
        keep = torch.where(batch[1] > 0, self.decay, 1.0)
        self.loss.mul_(keep).add_((1 - keep) * batch[0] / batch[1].clamp(min=1))
        self.seen.mul_(keep).add_(1 - keep)
        self.edges[1:] = self._masses().cumsum(0)

    def _masses(self) -> Tensor:
        """Probability of each bin [bins]: the rise of the monotone loss curve across it, and a flat share."""
        curve = (self.loss / self.seen.clamp(min=1e-12)).cummax(0).values
        rise = torch.cat([curve[:1], (curve[1:] + curve[:-1]) / 2, curve[-1:]]).diff()
        flat = torch.full_like(rise, 1 / self.bins)
        density = torch.where(rise.sum() > 0, rise / rise.sum().clamp(min=1e-30), flat)
        mass = (1 - self.uniform) * density + self.uniform * flat
        return mass / mass.sum()

    def _place(self, log_snr: Tensor) -> Tensor:
        """Where a level lies, in bins from the clean end."""
        return (self.high - log_snr) * (self.bins / (self.high - self.low))

    def log_snr(self, t: Tensor) -> Tensor:
        """The level at quantile t; piecewise linear, differentiable in t."""
        edges = self.edges.to(t)
        i = (torch.searchsorted(edges, t.detach().contiguous(), right=True) - 1).clamp(0, self.bins - 1)
        place = i + (t - edges[i]) / (edges[i + 1] - edges[i])
        return self.high - place * ((self.high - self.low) / self.bins)

    def quantile(self, log_snr: Tensor) -> Tensor:
        """t of a level: the inverse of log_snr(t)."""
        edges, place = self.edges.to(log_snr), self._place(log_snr)
        i = place.long().clamp(0, self.bins - 1)
        return edges[i] + (place - i) * (edges[i + 1] - edges[i])

    def density(self, log_snr: Tensor) -> Tensor:
        """Of the levels met when t is uniform: -d quantile / d log_snr."""
        i = self._place(log_snr).long().clamp(0, self.bins - 1)
        return self.edges.diff().to(log_snr)[i] * (self.bins / (self.high - self.low))

    @torch.no_grad()
    def start_from(self, cdf) -> None:
        """Take the shape of another warp as if it had been the losses seen so far; the flat share stays."""
        middle = self.high - (torch.arange(self.bins).to(self.edges) + 0.5) * ((self.high - self.low) / self.bins)
        self.loss.copy_(cdf.quantile(middle))
        self.seen.fill_(1)
        self.edges[1:] = self._masses().cumsum(0)


class Warped(VariancePreserving):
    """Variance preserving with log_snr(t) given by `cdf.log_snr`; alpha 1 and sigma 0 exactly at t = 0."""

    def __init__(self, cdf):
        self.cdf = cdf

    def alpha(self, t):
        return torch.where(t == 0, 1.0, torch.sigmoid(self.cdf.log_snr(t)).sqrt())

    def sigma(self, t):
        return torch.where(t == 0, 0.0, torch.sigmoid(-self.cdf.log_snr(t)).sqrt())

    def log_snr(self, t):
        return torch.where(t == 0, torch.inf, self.cdf.log_snr(t))
