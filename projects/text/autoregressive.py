"""The autoregressive twin: the same trunk, causal, names the next word; its likelihood is exact (the chain rule).

Inputs are shifted by one, BOS first. Knows no noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from packages.text.vocabulary import BOS
from projects.text import twins
from projects.text.objectives import Losses, named
from projects.text.rounding import Rows
from projects.text.sampling import Sampling, Walk
from shared.processes import draws
from shared.processes.draws import Rng
from shared.sampling import uniform_grid

if TYPE_CHECKING:
    from projects.text.data import Sentences
    from projects.text.module import TextDiffusion


class Autoregressive:
    """Cross-entropy of every word given those before it."""

    exact = True

    def parts(self, module: TextDiffusion, rows: Rows) -> tuple[Any, dict[str, Any]]:
        return None, twins.trunk(causal=True)

    def logits(self, module: TextDiffusion, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """[B, L, V] of the word at each place, from the rows x [B, L, e] at the places before it."""
        first = module.network.rows(torch.full((len(x), 1), BOS, device=x.device))
        return twins.logits(module, torch.cat([first, x[:, :-1]], 1), valid)

    def loss(self, module: TextDiffusion, batch: Sentences, t: Tensor, rng: Rng) -> Losses:
        """t, rng: not used, nothing is drawn."""
        return named(self.logits(module, module.network.rows(batch.ids), batch.mask), batch)

    @torch.no_grad()
    def nats(self, module: TextDiffusion, batch: Sentences, rng: Rng, levels: int) -> Tensor:
        return self.loss(module, batch, torch.empty(0), rng).total

    def walk(self, module: TextDiffusion, options: Sampling, n: int, rng: Rng) -> Walk:
        """A word per step, however many were asked for."""
        length = module.network.length

        def believe(x: Tensor, valid: Tensor | None) -> Tensor:
            return self.logits(module, x, valid) / options.logit_temperature

        def say(ids: Tensor, belief: Tensor, t: Tensor, s: Tensor) -> Tensor:
            place = ((1 - t) * length).round().long().unsqueeze(1)
            here = belief.take_along_dim(place.unsqueeze(-1), 1).squeeze(1)
            return ids.scatter(1, place, draws.choose(torch.softmax(here, -1), rng).unsqueeze(1))

        return twins.Writer(module, believe, say, n).walk(uniform_grid(length))

    def told(self, options: Sampling, length: int) -> Sampling:
        return twins.told(options, "autoregressive", length)
