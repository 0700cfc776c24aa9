"""The objective `diffusion_lm` (Li et al. 2022, Diffusion-LM): x0 is predicted, and the table is learnt with it.

Their data are not rows but rows with a little noise: x_start = E[w] + sigma(1/T) eps'. Three terms, whose plain sum is
the loss: the squared error of the belief, the rounding of x_start to tokens, and what is left of x_start in the prior.
Times are theirs: t = (i + 1)/T of i = 0 .. T - 1. Knows no Trainer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from projects.text.objectives import CrossEntropy, Losses, named
from projects.text.rounding import Rows
from shared.objectives import cross_entropy, squared_error
from shared.processes.draws import Rng
from shared.processes.schedules import spread

if TYPE_CHECKING:
    from projects.text.data import Sentences
    from projects.text.module import TextDiffusion


@dataclass
class Rounding:
    """Of the objective diffusion_lm. times: T. input: what is rounded to tokens; x_start teaches the rows alone,
    x0_hat, the earlier system's, the network too. detach_target: the squared error does not move what it is taken to.
    """

    times: int = 2000
    input: Literal["x_start", "x0_hat"] = "x_start"
    detach_target: bool = False

    def __post_init__(self) -> None:
        if self.times < 2:
            raise ValueError(f"model.rounding.times is {self.times}; give the paper's 2000, or 2 at least.")


class DiffusionLM(CrossEntropy):
    """Squared error to x_start, and to E[w] at i = 0; rounding; prior. It evaluates and walks as `CrossEntropy`."""

    def parts(self, module: TextDiffusion, rows: Rows) -> tuple[Any, dict[str, Any]]:
        process, special = super().parts(module, rows)
        return process, {**special, "prediction": "x0"}

    def loss(self, module: TextDiffusion, batch: Sentences, t: Tensor, rng: Rng) -> Losses:
        """t: [B]. ce and accuracy are of the tokens that the belief is read as."""
        network, process, count = module.network, module.process, module.rounding.times
        index = (t * count).long().clamp(max=count - 1)
        x0, t = network.rows(batch.ids), (index + 1).to(t) / count
        x_start = x0 + process.schedule.sigma(t.new_full((), 1 / count)) * process.draw(x0, rng)
        x_t = process.corrupt(x_start, process.draw(x0, rng), t)
        x_t = batch.kept(x_t, x0)
        belief = batch.kept(module.earlier_belief(x_t, t, batch.mask), x0)
        out = network(x_t, t, belief, batch.mask)
        target = torch.where(spread(index == 0, x0), x0, x_start)
        return self.summed(module, batch, t, out, target, x_start)

    def summed(
        self, module: TextDiffusion, batch: Sentences, t: Tensor, out: Tensor, target: Tensor, x_start: Tensor
    ) -> Losses:
        """The three terms, of a belief `out` [B, L, e]."""
        network, options, counted = module.network, module.rounding, batch.counted
        with torch.set_grad_enabled(options.input == "x0_hat" and out.requires_grad):
            read = named(network.logits(out), batch, t)
        left = module.process.schedule.alpha(t.new_full((), 1 - 1 / options.times)) * x_start
        rounding = read.ce
        if options.input == "x_start":
            rounding = cross_entropy(network.logits(x_start), batch.ids, counted)
        terms = {
            "mse": squared_error(out, target.detach() if options.detach_target else target, counted),
            "rounding": rounding,
            "prior": squared_error(left, torch.zeros_like(left), counted),
        }
        return Losses(sum(terms.values()) * counted.sum(1), read.ce, read.accuracy, t, terms)
