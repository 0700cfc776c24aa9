"""Random windows of a long sequence, each sample its own. Knows a length axis; not what lies along it."""

import torch
from torch import Tensor

from shared.processes.draws import Rng, categorical


def crop_window(x: Tensor, length: int, rng: Rng, align: int = 1) -> tuple[Tensor, Tensor]:
    """Cut `length` places out of x [B, L, ...], starting at a multiple of `align`, all starts equally likely.

    Returns the windows [B, length, ...] and start [B] int64. length = L returns x bitwise.
    """
    if not 0 < length <= x.shape[1] or align < 1:
        raise ValueError(f"length must be 1..{x.shape[1]} and align at least 1, got {length} and {align}")
    start = align * categorical((x.shape[1] - length) // align + 1, x.shape[:1], rng, device=x.device)
    place = start.unsqueeze(1) + torch.arange(length, device=x.device)
    return x[torch.arange(len(x), device=x.device).unsqueeze(1), place], start
