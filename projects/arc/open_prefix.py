"""A prefix that sees the answer: [prefix, time, answer cells] is one stream, run anew in every pass.

An ablation of the sealed prefix with the same parameters (`model.prefix: open`). What an open prefix believes of the
size would have seen the answer's cell count, so the size comes from a pass over the question alone, which is what the
sealed prefix computes. Knows how the streams are woven; what a token is and what a block does stands in `network.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from projects.arc.network import Frame, GridDenoiser, Prefix, Question
from projects.arc.packing import Cells, filled, repeated, weave


@dataclass(kw_only=True)
class OpenPrefix(Prefix):
    """A question before any block: no block remembers it, all but its size is found out anew in every pass."""

    tokens: Tensor  # [N, D]
    stand: Tensor  # [N, 2] row and column, zeros for tokens that are no cells

    def first(self, count: int) -> OpenPrefix:
        n = self.rows(count)
        return replace(super().first(count), tokens=self.tokens[:n].detach(), stand=self.stand[:n])


class OpenDenoiser(GridDenoiser):
    """`GridDenoiser` whose prefix also attends to the body."""

    def prefix(self, question: Question) -> OpenPrefix:
        """Reads the size off the question alone, and hands the question on as it was embedded."""
        x_ND, stand_N2, lengths = self.asked(question)
        sizes = self.sealed(question, x_ND, stand_N2, lengths).size_logits
        return OpenPrefix([None] * len(self.blocks), lengths, sizes, question.quantum, tokens=x_ND, stand=stand_N2)

    def frame(self, prefix: OpenPrefix, answer: Cells) -> Frame:
        """Where prefix, time token and answer cells of every example lie in the one stream."""
        body, place = weave(1, answer.lengths)
        order, behind = weave(prefix.lengths, answer.lengths + 1)
        first = np.arange(prefix.lengths.sum())
        order = np.concatenate([first, len(prefix.tokens) + body])[order]
        own = filled(prefix.lengths + answer.lengths + 1, prefix.quantum)
        stand = torch.cat([prefix.stand, self.stand(1, answer)])
        return self.framed(repeated(order, prefix.quantum), behind[place], stand, own, None)

    def tokens(self, prefix: OpenPrefix, answer: Cells, t: Tensor, belief: Tensor | None) -> Tensor:
        return torch.cat([prefix.tokens, super().tokens(prefix, answer, t, belief)])
