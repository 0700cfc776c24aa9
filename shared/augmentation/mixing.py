"""Two sources in one batch: each sample comes from the one or the other. Knows rows; not what the sources are."""

import torch
from torch import Tensor

from shared.augmentation.masking import chance
from shared.processes.draws import Rng


def mix(a: Tensor, b: Tensor, share: float | Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
    """Samples of a [B, ...], replaced by those of b (same shape) with probability `share`, a number or one per row [B].

    Returns the mixture and from_b [B] bool. share = 0 returns a bitwise, 1 returns b.
    """
    if a.shape != b.shape:
        raise ValueError(f"the sources have shapes {tuple(a.shape)} and {tuple(b.shape)}; give equal ones")
    from_b = chance(share, tuple(a.shape[:1]), rng, a.device)
    return torch.where(from_b.view(-1, *[1] * (a.ndim - 1)), b, a), from_b
