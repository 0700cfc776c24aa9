"""Likelihood in nats per token: the bound of the diffusion model, and how the nats of any objective are gathered.

The bound (Kingma et al. 2021, VDM; Gulrajani & Hashimoto 2023, Plaid), with gamma = -log-SNR from gamma_rec, where
words can be read, to gamma_1, where the walk begins:
    -ln p(w) <= E[-ln p(w | x_rec)] + KL(q(x_1 | w) || prior) + 1/2 E[integral of exp(-gamma) |x0 - belief|^2 dgamma]
The integral is stratified over gamma, in float64. It does not depend on the schedule, so the network is told levels.
Knows no Trainer but the ranks of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from packages.text.rows import sentence
from packages.text.vocabulary import PAD
from projects.text.network import Network
from projects.text.options import at_least
from projects.text.resolution import scales
from shared.objectives import cross_entropy
from shared.processes import draws
from shared.processes.draws import Rng
from shared.processes.schedules import Schedule, spread
from shared.training.logs import of_every_rank
from shared.training.report import Metric

if TYPE_CHECKING:
    from projects.text.data import Sentences
    from projects.text.module import TextDiffusion

HALVES = 2  # a sentence is measured twice with half of the draws: what they differ by is the Monte-Carlo error


@dataclass
class Likelihood:
    """sentences: of the test that are measured, from all over. levels: draws for each of them, two passes of a network
    that hears beliefs."""

    sentences: int = 500
    levels: int = 32

    def __post_init__(self) -> None:
        for name in ("sentences", "levels"):
            at_least(f"model.likelihood.{name}", getattr(self, name), 1)


class Levels(Schedule):
    """Is told a log-SNR where others are told t."""

    def alpha(self, t):
        return scales(t)[0]

    def sigma(self, t):
        return scales(t)[1]

    def log_snr(self, t):
        return t


@contextmanager
def told_levels(network: Network) -> Iterator[None]:
    """Inside, the network takes log-SNR in place of t."""
    schedule, network.schedule = network.schedule, Levels()
    try:
        yield
    finally:
        network.schedule = schedule


def ends(network: Network) -> tuple[float, float]:
    """log-SNR at gamma_rec = ln(R^2 / (12 ln V)), or where the levels start if that is noisier, and at gamma_1."""
    levels = network.schedule if network.warp is None else network.warp
    clean, noisy = levels.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    count, radius_squared = network.rows.num_embeddings, float(network.rows.radius_squared)
    return min(clean, math.log(12 * math.log(count) / radius_squared)), noisy


def corrupted(x0: Tensor, log_snr: Tensor, rng: Rng) -> Tensor:
    """x_t float32 of x0 [B, L, e] at levels [B]."""
    alpha, sigma = (spread(scale, x0) for scale in scales(log_snr))
    return (alpha * x0 + sigma * draws.normal(x0.shape, rng, device=x0.device)).float()


def error(x0: Tensor, belief: Tensor, where: Tensor) -> Tensor:
    """|x0 - belief|^2 [B], summed over the tokens where [B, L]."""
    return (x0.double() - belief).square().sum(-1).masked_fill(~where, 0).sum(1)


def prior_kl(x0: Tensor, noisy: Tensor | float, where: Tensor) -> Tensor:
    """KL [B] of x_1 from the noise that a walk starts with; both have the same sigma. noisy: log-SNR of x_1."""
    snr = torch.as_tensor(noisy, dtype=torch.float64).exp()
    return snr / 2 * error(x0, torch.zeros_like(x0), where)


@torch.no_grad()
def bound(module: TextDiffusion, batch: Sentences, rng: Rng, levels: int) -> Tensor:
    """-ln p [B] of the counted tokens at most, in the mean over what is drawn."""
    network, where = module.network, batch.counted
    x0, (clean, noisy) = network.rows(batch.ids), ends(network)
    heard = Heard(network, batch.mask, batch.known)

    def seen(log_snr: Tensor) -> Tensor:
        return batch.kept(corrupted(x0, log_snr, rng), x0)

    with told_levels(network):
        first = x0.new_full((len(x0),), clean)
        read = cross_entropy(network.logits(heard(seen(first), first)), batch.ids, where).double() * where.sum(1)
        total = read + prior_kl(x0, noisy, where)
        for level in range(levels):
            place = (level + draws.uniform(first.shape, rng, torch.float64, x0.device)) / levels
            log_snr = clean + (noisy - clean) * place
            belief = network.believe(heard(seen(log_snr), log_snr.float()))
            total += (clean - noisy) / (2 * levels) * log_snr.exp() * error(x0, belief, where)
    return total


class Heard:
    """What a network gives that hears what it believes of the same x_t when it has heard nothing, if it can hear.

    known: bool [B, L], where x_t is x0, and is believed; None: nowhere.
    """

    def __init__(self, network: Network, valid: Tensor | None, known: Tensor | None = None):
        self.network, self.valid, self.known = network, valid, known

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        belief = None
        if self.network.belief is not None:
            belief = self.network.believe(self.network(x, t, None, self.valid))
            belief = belief if self.known is None else torch.where(self.known.unsqueeze(-1), x, belief)
        return self.network(x, t, belief, self.valid)


class NLLBound:
    """Gathers nats of held-out sentences over batches and ranks, whatever the objective is.

    tokens_per_word: of the vocabulary; perplexity is per word, so that vocabularies compare. chosen: numbers of those
    that are measured; None: all that are added. floors: nats per token of who learns less.
    """

    def __init__(
        self,
        options: Likelihood,
        tokens_per_word: float = 1.0,
        chosen: np.ndarray | None = None,
        floors: Mapping[str, float] = MappingProxyType({}),
    ):
        self.options, self.tokens_per_word, self.chosen, self.floors = options, tokens_per_word, chosen, floors
        self.rows: list[list[float]] = []  # per sentence: nats of each half, nats of the truth, tokens

    def add(self, module: TextDiffusion, batch: Sentences) -> None:
        """Measure the sentences of a batch that are among the chosen ones."""
        chosen = batch
        if self.chosen is not None:
            among = np.isin(batch.index.cpu().numpy(), self.chosen)
            chosen = batch.of(torch.from_numpy(among.nonzero()[0]).to(batch.ids.device))
        if not len(chosen.ids):
            return
        parts = 1 if module.objective.exact else HALVES
        halves = [self._half(module, chosen, half, -(-self.options.levels // parts)) for half in range(parts)]
        tokens = (chosen.counted & (chosen.ids != PAD)).sum(1).tolist()
        truth = surprise(module, chosen)
        self.rows += map(list, zip(halves[0], halves[-1], truth, tokens))

    def _half(self, module: TextDiffusion, batch: Sentences, half: int, levels: int) -> list[float]:
        rng = [module.randomness.sample(("nats", half, n), module.device) for n in batch.index.tolist()]
        return module.objective.nats(module, batch, rng, levels).tolist()

    def gather(self, trainer: Trainer) -> None:
        self.rows = [row for rows in of_every_rank(trainer, self.rows) for row in rows]

    def metrics(self) -> list[Metric]:
        """Nats and bits per token (words and EOS; what padding costs is paid), perplexity, and nats above the truth of
        the same sentences; with 95 % intervals of the draws, which are 0 wide where nothing is drawn."""
        if not self.rows:
            return []
        one, other, truth, tokens = torch.tensor(self.rows, dtype=torch.float64).T
        whole = float(tokens.sum())
        nats, floor = float((one + other).sum()) / 2 / whole, float(truth.sum()) / whole
        wide = 1.96 * float((one - other).square().sum().sqrt()) / 2 / whole

        def metric(name: str, said: Callable[[float], float]) -> Metric:
            floors = dict(self.floors) if math.isnan(floor) else {"true": floor}
            floors = {each: said(value) for each, value in floors.items()}
            return Metric(name, said(nats), len(tokens), said(nats - wide), said(nats + wide), floors)

        found = [
            metric("nats_per_token", lambda x: x),
            metric("bits_per_token", lambda x: x / math.log(2)),
            metric("perplexity", lambda x: math.exp(x * self.tokens_per_word)),
        ]
        return found if math.isnan(floor) else [*found, metric("bound_gap", lambda x: x - floor)]

    def said(self) -> list[str]:
        """For a headline."""
        names = {"nats_per_token": "nats per token", "bound_gap": "above the truth"}
        return [f"{each.value:.3f} {names[each.name]}" for each in self.metrics() if each.name in names]


def surprise(module: TextDiffusion, batch: Sentences) -> list[float]:
    """-ln p of each sentence as the grammar makes it; nan where there is no grammar."""
    grammar, texts = module.data.grammar, map(sentence, module.words(batch.ids))
    return [-grammar.log_prob(words) if grammar else math.nan for words in texts]
