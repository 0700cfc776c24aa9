"""The resolution law: at which noise a token can be told from its rivals, and the reader who knows no context.

For nearly orthogonal rows of length R the evidence for the true token against one rival has mean SNR R^2/2, so that
P = exp(H) rivals are beaten at SNR* = 2H/R^2, within about one e-fold. What language has to be learnt for lies between
the SNR* of a reader with context (H nats per token) and that of one without (ln V): the window. log-SNR = -gamma.
Knows rows and shares of tokens; no network, no schedule but those handed in.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from projects.text.rounding import Rows
from shared.processes import draws
from shared.processes.schedules import Schedule, time_of

TAIL = 0.5  # nats of log-SNR by which the window is widened at both ends: the law is sharp within about one e-fold
LOG_SNR_MAX = 13.3  # gamma below -13.3 is x0 to float32
LEAST_SIGNAL = 0.002  # SNR R^2 of the other end: nothing of a row is left


def snr_star(entropy: float, radius_squared: float) -> float:
    """SNR at which one of exp(entropy) equally likely rows of squared length R^2 is read."""
    return 2 * entropy / radius_squared


def location(entropy: float, radius_squared: float) -> float:
    """gamma at SNR*: where `Gumbel` stands."""
    return -math.log(snr_star(entropy, radius_squared))


class Window(NamedTuple):
    """log-SNR between which context decides."""

    low: float
    high: float

    def share(self, schedule: Schedule, tail: float = TAIL) -> float:
        """Share of uniformly drawn t that lies in the window and its tails."""
        ends = torch.tensor([self.high + tail, self.low - tail], dtype=torch.float64)
        early, late = time_of(schedule, ends).tolist()
        return late - early


def window(entropy: float, vocabulary_size: int, radius_squared: float) -> Window:
    """From SNR* of a reader with context (entropy in nats per token) to SNR* of one without (ln V)."""
    stars = (snr_star(h, radius_squared) for h in (entropy, math.log(vocabulary_size)))
    return Window(*map(math.log, stars))


def span(radius_squared: float) -> tuple[float, float]:
    """(log_snr_min, log_snr_max) of a warp: from SNR R^2 = .002 to sigma = .0013."""
    return math.log(LEAST_SIGNAL / radius_squared), LOG_SNR_MAX


def scales(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of a variance-preserving process at these levels."""
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


class BayesDecoder:
    """Reads every position alone, and as well as that can be done: argmax of ln p(v) + ln p(x_t | v).

    unigram: p, shares [V] of the tokens as they are counted (PAD among them where it is modelled); what never occurs
    (0) is never said. The floor of every denoiser.
    """

    def __init__(self, rows: Rows, unigram: Tensor):
        if len(unigram) != rows.num_embeddings:
            raise ValueError(f"{len(unigram)} shares for {rows.num_embeddings} rows; give the share of every token")
        self.rows, self.log_shares = rows, unigram.double().log().float()

    def logits(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """[..., V] for x_t [..., e]."""
        return self.log_shares.to(x_t.device) + self.rows.bias(x_t, alpha, sigma)

    def __call__(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Ids [...]."""
        return self.logits(x_t, alpha, sigma).argmax(-1)

    @torch.no_grad()
    def accuracy(self, log_snr: Tensor, count: int, rng: torch.Generator) -> Tensor:
        """Share of tokens read at each level [N], over `count` tokens drawn from the shares, all on one noise: [N]."""
        device = self.rows.weight.device
        ids = torch.multinomial(self.log_shares.exp(), count, replacement=True, generator=rng).to(device)
        x0 = self.rows(ids)
        noise = draws.normal(x0.shape, rng, device=device)
        found = []
        for alpha, sigma in zip(*scales(log_snr.to(device))):
            x_t = alpha * x0 + sigma * noise
            found.append((self(x_t, alpha.expand(count), sigma.expand(count)) == ids).float().mean())
        return torch.stack(found)
