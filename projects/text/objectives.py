"""What the network learns from a batch, and how one walks back with it: an object per objective, so nobody asks which.

`loss` gives terms per sample, in nats summed over its counted tokens: the mean over tokens of the global batch is taken
once, in the training step. `walk` gives what the one loop of the house needs. Ideas: cross-entropy at every level
(Dieleman et al. 2022, CDCD), self-conditioning (Chen et al. 2022). Knows no Trainer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from projects.text import sampling
from shared.objectives import by_level, cross_entropy, row_mean
from shared.processes.draws import Rng

if TYPE_CHECKING:
    from projects.text.data import Sentences
    from projects.text.module import TextDiffusion


@dataclass
class Losses:
    """Of B samples. total: what is minimised, summed over the counted tokens. The others are means over them."""

    total: Tensor  # [B]
    ce: Tensor  # [B] nats
    accuracy: Tensor  # [B]
    t: Tensor  # [B]

    def logs(self) -> dict[str, Any]:
        """Cross-entropy in all, and by thirds of t; accuracy by thirds."""
        ce, accuracy = by_level(self.ce, self.t), by_level(self.accuracy, self.t)
        return {
            "ce": self.ce.detach().mean(),
            "accuracy": self.accuracy.mean(),
            **{f"ce_{name}_noise": value for name, value in ce.items()},
            **{f"accuracy_{name}_noise": value for name, value in accuracy.items()},
        }


class Objective(Protocol):
    """What module and sampler ask of an objective."""

    def loss(self, module: TextDiffusion, batch: Sentences, t: Tensor, rng: Rng) -> Losses: ...
    def walk(self, module: TextDiffusion, options: sampling.Sampling, n: int, rng: Rng) -> sampling.Walk: ...


class CrossEntropy:
    """Cross-entropy of the tokens at every level, unweighted: where t is drawn is the weighting."""

    def loss(self, module: TextDiffusion, batch: Sentences, t: Tensor, rng: Rng) -> Losses:
        """t: [B]."""
        x0 = module.network.rows(batch.ids)
        x_t = module.process.corrupt(x0, module.process.draw(x0, rng), t)
        x_t = torch.where(batch.known.unsqueeze(-1), x0, x_t)
        belief = module.earlier_belief(x_t, t, batch.mask)
        return named(module.network(x_t, t, belief, batch.mask), batch, t)

    def walk(self, module: TextDiffusion, options: sampling.Sampling, n: int, rng: Rng) -> sampling.Walk:
        return sampling.walk(module.network, module.process, options, n, rng, module.log_snr_star)


def named(logits: Tensor, batch: Sentences, t: Tensor) -> Losses:
    """The losses of logits [B, L, V] that name the tokens of a batch."""
    counted = batch.counted
    ce = cross_entropy(logits, batch.ids, counted)
    accuracy = row_mean((logits.detach().argmax(-1) == batch.ids).float(), counted)
    return Losses(ce * counted.sum(1), ce, accuracy, t)


OBJECTIVES: dict[str, type[Objective]] = {"cross_entropy": CrossEntropy}
