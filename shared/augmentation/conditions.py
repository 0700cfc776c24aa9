"""Condition dropout: some samples lose what they are told; one network learns both cases (Ho & Salimans 2022).

Knows rows; not what a condition says.
"""

import torch
from torch import Tensor

from shared.augmentation.masking import chance
from shared.processes.draws import Rng


def drop_condition(cond: Tensor, p: float | Tensor, rng: Rng, null: Tensor | float) -> tuple[Tensor, Tensor]:
    """Replace whole samples of `cond` [B, ...] by `null` (broadcast to one sample) with probability p, a number or [B].

    Returns the conditions and dropped [B] bool. p = 0 returns `cond` bitwise, p = 1 nothing but `null`.
    """
    dropped = chance(p, cond.shape[:1], rng, cond.device)
    null = torch.as_tensor(null, dtype=cond.dtype, device=cond.device)
    return torch.where(dropped.view(-1, *[1] * (cond.ndim - 1)), null, cond), dropped
