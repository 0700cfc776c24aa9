"""What a belief about the answer costs: cross-entropy, with a part of the variational bound, of more states or layers.

Ideas: the hybrid loss (Austin et al. 2021, D3PM); losses of intermediate layers (Lee et al. 2015, deeply supervised
nets). Training along the walk itself sees what the sampler will see: states drawn from the model's own belief. Every
part is off by default and then costs nothing. Knows cells and processes; not the questions, not the network's inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from projects.arc.packing import Cells, to_device
from shared.objectives import global_mean, kl, segment_mean, share
from shared.processes.categorical import T_MIN, Categorical

if TYPE_CHECKING:
    from projects.arc.pairs import Grids

STRIDE = 1 / 128  # of the posteriors that the bound compares
LEAST = 1e-12  # probability of a state under the model

Believe = Callable[..., Tensor]  # (colours [M], t [B], earlier belief [<= M, K] or None, *layers) -> logits [M, K]


@dataclass
class LossOptions:
    """kind: ce, or hybrid = ce + vb_weight * KL(true posterior || the model's) over a stride of 1/128.

    elbo_clamp: nats that one cell's KL counts at most. average: example = every answer weighs the same, cell = every
    cell does (over the micro-batch of all ranks).
    """

    kind: Literal["ce", "hybrid"] = "ce"
    vb_weight: float = 0.01
    elbo_clamp: float = 10.0
    average: Literal["example", "cell"] = "example"


@dataclass
class UnrollOptions:
    """Learning along the walk. steps: states visited, from x_t down in equal strides; 1 is the usual training.

    detach: the belief that is handed to the next state is a constant.
    """

    steps: int = 1
    detach: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"unroll.steps is {self.steps}; it counts visited states, so give 1 or more")


@dataclass
class Objective:
    """What is minimised. process: the one that corrupts. deep_supervision: weight of the intermediate layers' loss."""

    process: Categorical
    loss: LossOptions
    unroll: UnrollOptions
    deep_supervision: float = 0.0

    def along(
        self, believe: Believe, x0: Cells, x: Tensor, t: Tensor, belief: Tensor | None, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Loss of each example [B], its mean over the states visited from x [M] at t [B] on; and the first logits."""
        steps, start = self.unroll.steps, t
        loss, first = self.at(believe, x0, x, t, belief)
        losses, logits = [loss], first
        for s in (start * (1 - n / steps) for n in range(1, steps)):
            x, seen = self.moved(x, logits, t, s, x0, rng), logits.float().softmax(-1)
            t = s
            loss, logits = self.at(believe, x0, x, t, seen.detach() if self.unroll.detach else seen)
            losses.append(loss)
        return sum(losses[1:], losses[0]) / steps, first

    def moved(self, x: Tensor, logits: Tensor, t: Tensor, s: Tensor, x0: Cells, rng: torch.Generator) -> Tensor:
        """One step of the walk by the model's own belief."""
        now = t.clamp(min=T_MIN)  # nearer to data float32 knows no noise to walk back from
        return self.process.step(x, logits.detach().float(), now[x0.segment], s[x0.segment], rng)

    def at(self, believe: Believe, x0: Cells, x_t: Tensor, t: Tensor, belief: Tensor | None) -> tuple[Tensor, Tensor]:
        """Loss [B] and logits of one state."""
        if not self.deep_supervision:
            logits = believe(x_t, t, belief)
            return self.cells(logits, x0, x_t, t), logits
        layers: list[Tensor] = []
        logits = believe(x_t, t, belief, layers)
        deeper = torch.stack([per_example(layer, x0) for layer in layers]).mean(0)
        return self.cells(logits, x0, x_t, t) + self.deep_supervision * deeper, logits

    def cells(self, logits: Tensor, x0: Cells, x_t: Tensor, t: Tensor) -> Tensor:
        """[B]; of the hybrid kind, with its part of the bound."""
        loss = per_example(logits, x0)
        if self.loss.kind == "ce":
            return loss
        return loss + self.loss.vb_weight * segment_mean(self.bound(logits, x0, x_t, t), x0.segment, x0.count)

    def bound(self, logits: Tensor, x0: Cells, x_t: Tensor, t: Tensor) -> Tensor:
        """KL(posterior of x0 || posterior of the belief) of every cell [M], in nats."""
        now = t.clamp(min=STRIDE)[x0.segment]
        before = now - STRIDE
        truth = self.process.posterior(x_t, self.process.certain(x0.colour), now, before)
        belief = self.process.posterior(x_t, logits.float(), now, before)
        return kl(truth, belief.clamp(min=LEAST)).clamp(max=self.loss.elbo_clamp)

    def total(self, batch: Grids, loss: Tensor, other: Tensor) -> Tensor:
        """This micro-batch's part of the mean over the update; loss [B] is of cells, `other` [B] of examples."""
        if self.loss.average == "cell":
            return over_cells(batch, loss, other)
        return share(loss + other, batch.global_samples, batch.shards)

    @property
    def refines(self) -> bool:
        """Whether more than one state or layer learns."""
        return self.unroll.steps > 1 or self.deep_supervision > 0


def over_cells(batch: Grids, loss: Tensor, other: Tensor) -> Tensor:
    """Every cell of the micro-batch weighs the same, over all ranks; accumulation averages micro-batches."""
    cells = to_device(batch.answer.lengths, loss.device).to(loss.dtype)
    return global_mean((loss * cells).sum(), cells.sum()) + share(other, batch.global_samples, batch.shards)


def per_example(logits: Tensor, x0: Cells) -> Tensor:
    """Mean cross-entropy of each example's cells [B]: a 30x30 and a 1x1 answer weigh the same."""
    loss = F.cross_entropy(logits.float(), x0.colour, reduction="none")
    return segment_mean(loss, x0.segment, x0.count)
