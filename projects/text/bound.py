"""The objective `elbo`: the variational bound itself is what is minimised, and its schedule is learnt (Kingma et al.
2021, VDM; Gulrajani & Hashimoto 2023, Plaid).

Words at the clean end are read without context, so that term costs no pass of the network. The ends of the warp are
taught by the bound; between them it does not depend on the shape, which is taught by the second moment of its terms
instead. Knows no Trainer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projects.text.likelihood import corrupted, error, prior_kl, told_levels
from projects.text.objectives import CrossEntropy, Losses, named
from projects.text.resolution import scales
from projects.text.rounding import Rows
from projects.text.warping import Affine
from shared.objectives import cross_entropy
from shared.processes import Warped
from shared.processes.draws import Rng
from shared.processes.schedules import Schedule
from shared.training.errors import Mistake
from shared.training.pretrained import build

if TYPE_CHECKING:
    from projects.text.data import Sentences
    from projects.text.module import TextDiffusion

FIRST, LAST = -3.0, 6.0  # gamma where the warp starts and ends, for rows of length 1


class Elbo(CrossEntropy):
    """The bound, in nats summed over the counted tokens; it evaluates and walks as `CrossEntropy` does."""

    def schedule(self, module: TextDiffusion, rows: Rows) -> Schedule:
        if rows.norm == "free" and module.embedding.radius is None:
            raise Mistake(
                "model.objective is elbo, which wants to know how long rows are, and model.embedding.norm is free with"
                " no radius; set model.embedding.radius, or norm sphere."
            )
        reach = 2 * math.log(rows.radius)
        return build(Warped, cdf=build(Affine, gamma_0=FIRST + reach, gamma_1=LAST + reach))

    def loss(self, module: TextDiffusion, batch: Sentences, t: Tensor, rng: Rng) -> Losses:
        """t: [B]."""
        network, where = module.network, batch.counted
        level, x0 = Level(network.warp, t), network.rows(batch.ids)
        with told_levels(network):
            x_t = batch.kept(corrupted(x0, level.log_snr, rng), x0)
            belief = batch.kept(module.earlier_belief(x_t, level.log_snr.detach(), batch.mask), x0)
            out = network(x_t, level.log_snr, belief, batch.mask)
        walked = level.slope / 2 * level.log_snr.exp() * error(x0, network.believe(out), where)
        level.weighs(walked / where.sum(1))
        total = walked + self.ends(network, x0, batch, rng)
        found = named(network.logits(out), batch, t)
        return Losses(total.float(), found.ce, found.accuracy, t)

    def ends(self, network: Any, x0: Tensor, batch: Sentences, rng: Rng) -> Tensor:
        """Reading every word alone at the clean end, and the divergence at the noisy one: [B]."""
        where = batch.counted
        clean, noisy = network.warp.log_snr(torch.tensor([0.0, 1.0], device=x0.device))
        clean = clean.expand(len(x0))
        logits = network.rows.bias(corrupted(x0, clean, rng), *scales(clean))
        return cross_entropy(logits, batch.ids, where) * where.sum(1) + prior_kl(x0, noisy, where)


class Level:
    """log-SNR [B] of times t, and slope = d gamma / d t, for a loss [B] whose square the shape of the warp is to lower.

    The gradient that arrives at the shape is multiplied by twice the loss, sample by sample: it becomes the square's.
    """

    def __init__(self, warp: Affine, t: Tensor):
        rise, steep = warp.shape(t)
        for part in (rise, steep):
            if part.requires_grad:
                part.register_hook(self._weighed)
        span = warp.gamma_1 - warp.gamma_0
        self.log_snr, self.slope = -(warp.gamma_0 + span * rise), span * steep
        self.loss = torch.zeros_like(t)

    def weighs(self, loss: Tensor) -> None:
        """To be called before the backward pass."""
        self.loss = loss.detach()

    def _weighed(self, gradient: Tensor) -> Tensor:
        return gradient * 2 * self.loss.to(gradient)
