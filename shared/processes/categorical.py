"""Corruption of ids: uniform, absorbing and hybrid noise with the exact two-time posterior in O(K).

Ideas: Austin et al. 2021 (D3PM), Sahoo et al. 2024 (MDLM), von Ruette et al. 2025 (hybrid noise). With survival a_t
and a stationary distribution pi, q(x_t = y | x0) = a_t 1(y = x0) + (1 - a_t) pi(y); the three differ in pi alone.
Knows ids, not tokens or colours. Belief is logits [..., K]; probabilities are float32 (float64 stays float64).
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.processes import draws
from shared.processes.draws import Rng
from shared.processes.schedules import Signal, derivative, expand, hold, readable

T_MIN = 1e-3  # elbo_weight is finite from here on


class Redraw(NamedTuple):
    """Noise of one path of ids: the cell shows `r` from the time on at which survival falls to `u`."""

    u: Tensor  # uniform in [0, 1), shape of x0
    r: Tensor  # ids drawn from the stationary distribution, shape of x0


class Categorical:
    """What the three processes share. A subclass gives `stationary` and `redraw`.

    num_classes: K of the logits. num_states: how many ids x_t may take (one more where a mask id lies beyond K).
    schedule: survival probability of t. joint: `markov` steps by the exact posterior, `coupled` keeps the path's noise;
    marginals agree, joints do not. final: what s = 0 returns. temperature and top_p shape the belief when stepping.
    """

    def __init__(
        self,
        num_classes: int,
        schedule: Signal,
        joint: Literal["markov", "coupled"] = "markov",
        final: Literal["argmax", "sample"] = "argmax",
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        if joint not in ("markov", "coupled") or final not in ("argmax", "sample"):
            raise ValueError(f"joint={joint!r}, final={final!r}: want markov or coupled, argmax or sample")
        self.num_classes, self.num_states, self.schedule = num_classes, num_classes, schedule
        self.joint, self.final, self.temperature, self.top_p = joint, final, temperature, top_p

    def stationary(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """pi [num_states]."""
        raise NotImplementedError

    def redraw(self, like: Tensor, rng: Rng) -> Tensor:
        """Ids of the shape of `like`, drawn from pi."""
        raise NotImplementedError

    def alpha(self, t: Tensor) -> Tensor:
        """Survival probability at t."""
        return self.schedule(t)

    def elbo_weight(self, t: Tensor) -> Tensor:
        """-a'/(1 - a) on [T_MIN, 1]: weight of a corrupted cell's cross-entropy in the bound of continuous time.

        Exact for Absorbing (Sahoo et al. 2024, eq. 10); the leading term for the others, whose bound is objectives.vlb.
        """
        exact = t.double().clamp(T_MIN, 1 - 1e-9)  # the limit from the left at 1
        return (-derivative(self.schedule, exact) / (1 - self.alpha(exact))).to(t.dtype)

    # --- corruption

    def prior(self, like: Tensor, rng: Rng) -> Tensor:
        return self.redraw(like, rng)

    def draw(self, x0: Tensor, rng: Rng) -> Redraw:
        return Redraw(draws.uniform(x0.shape, rng, device=x0.device), self.redraw(x0, rng))

    def corrupt(self, x0: Tensor, noise: Redraw, t: Tensor) -> Tensor:
        """x0 where u < a_t, else r. x0 int64 [B, ...] with t [B] or [B, T], or packed x0 [N] with t [N]."""
        self._check_ids(x0, self.num_classes)
        return torch.where(noise.u < self.alpha(expand(t, x0)), x0, noise.r)

    def marginal(self, x0: Tensor, t: Tensor) -> Tensor:
        """q(x_t | x0): probabilities [..., num_states] in the dtype of t."""
        a = self.alpha(expand(t, x0)).unsqueeze(-1)
        here = F.one_hot(x0, self.num_states).to(a.dtype)
        return a * here + (1 - a) * self.stationary(a.dtype, a.device)

    # --- belief

    def certain(self, x0: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Logits of a belief that is sure of x0: 0 there, -inf elsewhere."""
        logits = torch.full((*x0.shape, self.num_classes), -torch.inf, dtype=dtype, device=x0.device)
        return logits.scatter_(-1, x0.unsqueeze(-1), 0.0)

    def logits(self, belief: Tensor) -> Tensor:
        """The belief over data: logits [..., K] with nothing on a mask id."""
        if belief.shape[-1] != self.num_classes:
            raise ValueError(
                f"belief has {belief.shape[-1]} classes, the process {self.num_classes}; give logits [..., K]"
            )
        return belief

    def probabilities(self, belief: Tensor) -> Tensor:
        """x0 probabilities [..., K] of logits, float32 or wider."""
        return torch.softmax(self.logits(belief), -1, dtype=torch.promote_types(belief.dtype, torch.float32))

    def sharpened(self, belief: Tensor) -> Tensor:
        """Logits after temperature and top_p (the smallest set of classes that holds top_p of the mass)."""
        belief = belief if self.temperature == 1.0 else belief / self.temperature
        if self.top_p >= 1.0:
            return belief
        probs, order = self.probabilities(belief).sort(-1, descending=True)
        outside = probs.cumsum(-1) - probs >= self.top_p
        return belief.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)

    def decide(self, belief: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """x0 drawn from the belief; its argmax where s = 0, if so asked."""
        return self._finish(draws.choose(self.probabilities(self.sharpened(belief)), rng), belief, s)

    def _finish(self, x_s: Tensor, belief: Tensor, s: Tensor) -> Tensor:
        if self.final == "sample":
            return x_s
        return torch.where(expand(s, x_s) == 0, self.logits(belief).argmax(-1), x_s)

    # --- the walk back

    def posterior(self, x_t: Tensor, belief: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """p(x_s | x_t) = sum over x0 of p(x0) q(x_s | x_t, x0), exact for any s < t -> [..., num_states]."""
        self._check_ids(x_t, self.num_states)
        p = self._over_states(self.probabilities(belief))
        a_t, a_s = self._survivals(x_t, t, s)
        here = x_t.unsqueeze(-1)
        pi = self.stationary(p.dtype, p.device)
        pi_here, p_here = pi[here], p.gather(-1, here)
        stay = a_t / a_s
        seen = a_t + (1 - a_t) * pi_here  # q_t(y | x0 = y)
        rest = 1 - p_here * (a_t / seen)  # sum over x0 of p(x0) q_t(y | not y) / q_t(y | x0)
        move = (1 - stay) / (1 - a_t)
        elsewhere = p * (a_s * move) + pi * ((1 - a_s) * move * rest)
        at_here = (stay + (1 - stay) * pi_here) * (a_s * p_here / seen + (1 - a_s) / (1 - a_t) * rest)
        return elsewhere.scatter(-1, here, at_here)

    def step(self, x_t: Tensor, belief: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """x_s: a draw of the posterior (markov), or x0 ~ belief taken with (a_s - a_t)/(1 - a_t) (coupled)."""
        walk = self._markov if self.joint == "markov" else self._coupled
        x_s = walk(x_t, self.sharpened(belief), t, s, rng)
        return hold(x_t, self._finish(x_s, belief, s), t, s)

    def _markov(self, x_t, belief, t, s, rng):
        return draws.choose(self.posterior(x_t, belief, t, s), rng)

    def _coupled(self, x_t, belief, t, s, rng):
        self._check_ids(x_t, self.num_states)
        a_t, a_s = (a.squeeze(-1) for a in self._survivals(x_t, t, s))
        x0 = draws.choose(self.probabilities(belief), rng)
        taken = draws.uniform(x_t.shape, rng, device=x_t.device) < (a_s - a_t) / (1 - a_t)
        return torch.where(taken, x0, x_t)

    # --- inner parts

    def _over_states(self, p: Tensor) -> Tensor:
        """x0 probabilities [..., K] as [..., num_states]."""
        return p if self.num_states == self.num_classes else F.pad(p, (0, 1))

    def _survivals(self, x_t: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """a_t, a_s [..., 1]; s > t and a_t = 1 (no posterior) are errors on the CPU."""
        times = expand(t, x_t), expand(s, x_t)
        a_t, a_s = (self.alpha(x).unsqueeze(-1) for x in times)
        if readable(a_t):
            _check_order(*times, a_t.squeeze(-1))
        return a_t, a_s

    def _check_ids(self, ids: Tensor, limit: int) -> None:
        if ids.dtype != torch.int64:
            raise ValueError(f"ids have dtype {ids.dtype}; the process wants int64 (ids.long())")
        if readable(ids):
            low, high = (int(x) for x in ids.aminmax())
            if low < 0 or high >= limit:
                raise ValueError(f"ids reach from {low} to {high}; the process wants 0..{limit - 1}")


def _check_order(t: Tensor, s: Tensor, a_t: Tensor) -> None:
    rises, stuck = s > t, (a_t >= 1) & (s < t)
    if rises.any():
        raise ValueError(f"a step goes from t down to s, got t={t[rises][0].item()} and s={s[rises][0].item()}")
    if stuck.any():
        raise ValueError(f"alpha is 1 at t={t[stuck][0].item()}, no noise to walk back from; start at a larger t")


class Uniform(Categorical):
    """Noise draws any of the K ids alike, the same one included: P(x_t = x0) = a + (1 - a)/K (Austin et al. 2021)."""

    def stationary(self, dtype, device):
        return torch.full((self.num_classes,), 1 / self.num_classes, dtype=dtype, device=device)

    def redraw(self, like, rng):
        return draws.categorical(self.num_classes, like.shape, rng, like.device)


class Hybrid(Categorical):
    """Noise is the mask with 1 - uniform_share, else any data id alike (von Ruette et al. 2025).

    mask_id may be K, beyond the classes of the logits, or one of them; then its logit counts for nothing.
    """

    def __init__(self, num_classes: int, mask_id: int, schedule: Signal, uniform_share: float, **options):
        super().__init__(num_classes, schedule, **options)
        if not 0 <= mask_id <= num_classes or not 0 <= uniform_share <= 1:
            raise ValueError(f"mask_id {mask_id}, uniform_share {uniform_share}: want 0..{num_classes} and 0..1")
        self.mask_id, self.uniform_share = mask_id, uniform_share
        self.num_states = max(num_classes, mask_id + 1)

    def stationary(self, dtype, device):
        pi = torch.full((self.num_states,), self.uniform_share / (self.num_states - 1), dtype=dtype, device=device)
        pi[self.mask_id] = 1 - self.uniform_share
        return pi

    def redraw(self, like, rng):
        ids = draws.categorical(self.num_states - 1, like.shape, rng, like.device)
        ids = ids + (ids >= self.mask_id)
        coin = draws.uniform(like.shape, rng, device=like.device)
        return torch.where(coin < self.uniform_share, ids, self.mask_id)

    def logits(self, belief):
        belief = super().logits(belief)
        if self.mask_id == self.num_classes:
            return belief
        belief = belief.clone()
        belief[..., self.mask_id] = -torch.inf
        return belief


class Absorbing(Hybrid):
    """Noise is the mask alone; a cell once shown never changes (Austin et al. 2021; Sahoo et al. 2024, MDLM).

    num_classes: K of the logits, mask_id + 1 unless said. Both joints are one here; the cheap one is walked.
    """

    def __init__(self, mask_id: int, schedule: Signal, num_classes: int | None = None, **options):
        super().__init__(mask_id + 1 if num_classes is None else num_classes, mask_id, schedule, 0.0, **options)

    def redraw(self, like, rng):
        return torch.full(like.shape, self.mask_id, device=like.device)

    def step(self, x_t, belief, t, s, rng):
        x_s = hold(x_t, self._finish(self._coupled(x_t, self.sharpened(belief), t, s, rng), belief, s), t, s)
        return torch.where(x_t == self.mask_id, x_s, x_t)

    def posterior(self, x_t, belief, t, s):
        """As for all, and shown cells stay."""
        probs = super().posterior(x_t, belief, t, s)
        shown = (x_t != self.mask_id).unsqueeze(-1)
        return torch.where(shown, F.one_hot(x_t, self.num_states).to(probs.dtype), probs)
