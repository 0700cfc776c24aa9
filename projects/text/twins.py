"""What the twins of the line share: the same trunk told that nothing is noised, and a walk that says words one by one.

A twin has the tokens, the trunk and the minutes of the diffusion model and another idea of what is unknown: the next
word (`autoregressive`), or any hidden one (`masked`). Its state is the rows of the words said so far and of MASK where
none is said yet, so whoever looks at a walk sees rows, as everywhere in the line. Knows no loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from packages.text.vocabulary import MASK
from projects.text.resolution import LOG_SNR_MAX
from projects.text.sampling import Given, Sampling, Walk
from shared.processes.schedules import Schedule
from shared.training.pretrained import build

if TYPE_CHECKING:
    from projects.text.module import TextDiffusion


class Clean(Schedule):
    """No noise at any t, and the level of no noise."""

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return torch.zeros_like(t)

    def log_snr(self, t):
        return torch.full_like(t, LOG_SNR_MAX)


def trunk(causal: bool) -> dict[str, Any]:
    """How the network of a twin differs: what it does not use is not built."""
    return {"schedule": build(Clean), "logit_bias": False, "hears": False, "causal": causal}


def logits(module: TextDiffusion, x: Tensor, valid: Tensor | None = None) -> Tensor:
    """[B, L, V] of the network at x [B, L, e], which is clean."""
    return module.network(x, x.new_zeros(len(x)), None, valid)


class Writer:
    """Denoiser and step of a twin's walk; remembers the words and how likely each was when it was said.

    believe(x, valid) -> logits [B, L, V]; say(ids, logits, t, s) -> ids, some of them no longer MASK. valid: bool
    [B, L], where sentences stand (None: everywhere).
    """

    def __init__(self, module: TextDiffusion, believe: Callable[..., Tensor], say: Callable[..., Tensor], count: int):
        self.rows, self.network, self.believe, self.say = module.network.rows, module.network, believe, say
        self.ids = torch.full((count, module.network.length), MASK, device=self.rows.weight.device)
        self.score = torch.zeros(self.ids.shape, device=self.ids.device)
        self.valid: Tensor | None = None
        self.given: Given | None = None  # stands in x by itself: what is said is never said again

    @property
    def training(self) -> bool:
        return self.network.training

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.believe(x, self.valid)

    def step(self, x: Tensor, belief: Tensor, t: Tensor, s: Tensor) -> Tensor:
        before = self.rows.nearest(x)
        self.ids = self.say(before, belief, t, s)
        likely = belief.log_softmax(-1).gather(-1, self.ids.unsqueeze(-1)).squeeze(-1)
        self.score = torch.where(self.ids != before, likely, self.score)
        return self.rows(self.ids)

    def words(self) -> tuple[Tensor, Tensor]:
        """The ids [B, L] said so far, MASK elsewhere, and their log-probabilities."""
        return self.ids, self.score

    def walk(self, grid: Tensor) -> Walk:
        return Walk(self, self.step, self.rows(self.ids), grid, self)


def told(options: Sampling, kind: str, steps: int | None = None) -> Sampling:
    """The options as a twin takes them, to be reported."""
    return replace(options, kind=kind, steps=steps or options.steps)
