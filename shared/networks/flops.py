"""Forward FLOPs of the house's blocks, exact and without running them: 2 per multiply-add of matrices and attention.

Training costs three times as much; recomputation is not counted. Element-wise work (norms, rotations, gates) is left
out, as torch's FlopCounterMode leaves it out. `pairs` are (query, key) pairs; causal attention counts them in full, as
is usual for MFU. Knows lengths, never padding.
"""

import numpy as np
from torch import nn

from shared.networks.blocks import Block


def pairs(lengths: np.ndarray, prefix: np.ndarray | int = 0) -> int:
    """(query, key) pairs of a packed stream: own tokens [S] times what they may see, their prefix included."""
    return int((lengths * (lengths + prefix)).sum())


def matrices(module: nn.Module, rows: int) -> int:
    """FLOPs of all linear layers inside `module`, each applied to `rows` rows."""
    return 2 * rows * sum(m.in_features * m.out_features for m in module.modules() if isinstance(m, nn.Linear))


def block(part: Block, tokens: int, pairs: int, conditions: int = 0, context: int = 0, context_pairs: int = 0) -> int:
    """FLOPs of one block over `tokens` tokens and `pairs` (query, key) pairs.

    conditions: rows that modulate it; context, context_pairs: tokens read by cross-attention, and pairs with them.
    """
    width = part.attention.q.out_features
    count = matrices(part.attention, tokens) + 4 * width * pairs + matrices(part.mlp, tokens)
    if part.modulation is not None:
        count += matrices(part.modulation, conditions)
    if part.cross is not None:
        asked, read = (part.cross.q, part.cross.o), (part.cross.k, part.cross.v)
        count += sum(matrices(m, tokens) for m in asked) + sum(matrices(m, context) for m in read)
        count += 4 * width * context_pairs
    return count
