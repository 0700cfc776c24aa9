"""The masked twin (Sahoo et al. 2024, MDLM): the same trunk, seeing both sides, names words that are hidden.

Words are hidden by `Absorbing`, the share that is hidden growing linearly in t; a word that is shown stays. Nothing
ever is MASK, so its logit is -inf. The network is not told t: it sees how much is hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from packages.text.vocabulary import MASK
from projects.text import twins
from projects.text.objectives import Losses
from projects.text.rounding import Rows
from projects.text.sampling import Sampling, Walk
from shared.objectives import cross_entropy, row_mean
from shared.processes import Absorbing, draws
from shared.processes.draws import Rng
from shared.processes.schedules import log_linear
from shared.sampling import uniform_grid
from shared.training.pretrained import build

if TYPE_CHECKING:
    from projects.text.data import Sentences
    from projects.text.module import TextDiffusion


class Masked:
    """Cross-entropy of the hidden words, weighted by 1/t: in the mean over t a bound of the likelihood."""

    exact = False

    def parts(self, module: TextDiffusion, rows: Rows) -> tuple[Any, dict[str, Any]]:
        count = rows.num_embeddings
        process = build(Absorbing, mask_id=MASK, schedule=log_linear(), num_classes=count, final="sample")
        return process, twins.trunk(causal=False)

    def logits(self, module: TextDiffusion, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """[B, L, V] of rows x [B, L, e]."""
        return module.process.logits(twins.logits(module, x, valid))

    def loss(self, module: TextDiffusion, batch: Sentences, t: Tensor, rng: Rng) -> Losses:
        """t: [B]. ce is the mean over hidden words, without its weight."""
        process, ids = module.process, batch.ids
        hidden = (process.corrupt(ids, process.draw(ids, rng), t) == MASK) & batch.counted
        ce, accuracy = self.judged(module, batch, hidden)
        return Losses(ce * hidden.sum(1) * process.elbo_weight(t), ce, accuracy, t)

    def judged(self, module: TextDiffusion, batch: Sentences, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and accuracy [B], means over the places `hidden` [B, L], when these are hidden."""
        x = module.network.rows(torch.where(hidden, MASK, batch.ids))
        logits = self.logits(module, x, batch.mask)
        accuracy = row_mean((logits.detach().argmax(-1) == batch.ids).float(), hidden)
        return cross_entropy(logits, batch.ids, hidden), accuracy

    @torch.no_grad()
    def nats(self, module: TextDiffusion, batch: Sentences, rng: Rng, levels: int) -> Tensor:
        """A bound [B], by how many words are hidden in place of t, each number as likely (Hoogeboom et al. 2022).

        The same in the mean as the integral over t, and of finite variance. The numbers are stratified over `levels`.
        """
        counted, device = batch.counted, batch.ids.device
        words, total = counted.sum(1), torch.zeros(len(batch.ids), dtype=torch.float64, device=device)
        for level in range(levels):
            order = draws.uniform(counted.shape, rng, device=device).masked_fill(~counted, 2).argsort(1).argsort(1)
            share = (level + draws.uniform(words.shape, rng, torch.float64, device)) / levels
            number = (share * words).long() + 1
            ce, _ = self.judged(module, batch, (order < number.unsqueeze(1)) & counted)
            total += ce.double() * words / levels
        return total

    def walk(self, module: TextDiffusion, options: Sampling, n: int, rng: Rng) -> Walk:
        def believe(x: Tensor, valid: Tensor | None) -> Tensor:
            return self.logits(module, x, valid) / options.logit_temperature

        def say(ids: Tensor, belief: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return module.process.step(ids, belief, t, s, rng)

        return twins.Writer(module, believe, say, n).walk(uniform_grid(options.steps))

    def told(self, options: Sampling, length: int) -> Sampling:
        return twins.told(options, "masked")
