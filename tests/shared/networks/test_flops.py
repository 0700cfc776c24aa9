"""The counts are those torch counts, exactly."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shared.networks import Block, Layout, flops


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("modulated", [False, True])
def test_dense_blocks_are_counted_exactly(modulated, kv_heads):
    with torch.device("meta"):
        block, x, c = (
            Block(128, 4, kv_heads=kv_heads, modulated=modulated),
            torch.zeros(3, 17, 128),
            torch.zeros(3, 128),
        )
    expected = flops.block(block, tokens=51, pairs=3 * 17 * 17, conditions=3)
    assert counted(lambda: block(x, c if modulated else None)) == expected


def test_cross_attention_is_counted_exactly():
    with torch.device("meta"):
        block, x, context = Block(128, 4, cross=64), torch.zeros(3, 17, 128), torch.zeros(3, 9, 64)
    expected = flops.block(block, tokens=51, pairs=3 * 17 * 17, context=27, context_pairs=3 * 17 * 9)
    assert counted(lambda: block(x, context=context)) == expected


def test_packed_pairs_count_no_padding():
    layout = Layout.of([3, 0, 5], prefix_lengths=[2, 4, 1])
    assert flops.pairs(layout.lengths, layout.prefix) == 3 * 5 + 5 * 6
    assert flops.pairs(layout.lengths) == 9 + 25
