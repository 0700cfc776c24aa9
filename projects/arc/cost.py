"""Forward FLOPs of the three streams of `GridDenoiser`, from the real lengths of a batch and without running anything.

The prefix of the last block needs keys and values only, and the size token is a stream of one token per example; so
the count follows `network.py` line by line. An open prefix is read for the size as a sealed one is, and goes through
all blocks with the body in every pass. To `DenseDenoiser` an empty cell is a token as any other: its boards are counted
whole. Knows lengths on the host; not what training does with the passes.
"""

from functools import singledispatch

import numpy as np

from projects.arc.dense import BOARD, DenseDenoiser
from projects.arc.network import GridDenoiser
from projects.arc.open_prefix import OpenDenoiser
from shared.networks import flops


def prefix_lengths(net: GridDenoiser, cells: np.ndarray) -> np.ndarray:
    """[B] prefix tokens of questions whose inputs have `cells` [B] cells."""
    return cells + net.task_tokens + net.view.count


@singledispatch
def reading(net: GridDenoiser, cells: np.ndarray) -> int:
    """Prefixes of questions whose inputs have `cells` [B] cells, and the belief about the answers' sizes."""
    lengths, count = prefix_lengths(net, cells), len(cells)
    tokens, last = int(lengths.sum()), net.blocks[-1].attention
    own = sum(flops.block(block, tokens, flops.pairs(lengths)) for block in net.blocks[:-1])
    own += flops.matrices(last.k, tokens) + flops.matrices(last.v, tokens)
    seen = int((lengths + 1).sum())
    return own + _walked(net, count, seen) + flops.matrices(net.size, count)


@singledispatch
def denoising(net: GridDenoiser, cells: np.ndarray, answers: np.ndarray, believed: int = 0) -> int:
    """One pass over answers of `answers` [B] cells; `believed` of the cells carry an earlier belief."""
    own, read = answers + 1, prefix_lengths(net, cells)
    return _walked(net, int(own.sum()), flops.pairs(own, read)) + _told(net, answers, believed)


@denoising.register
def _(net: OpenDenoiser, cells: np.ndarray, answers: np.ndarray, believed: int = 0) -> int:
    one = prefix_lengths(net, cells) + answers + 1
    return _walked(net, int(one.sum()), flops.pairs(one)) + _told(net, answers, believed)


def _walked(net: GridDenoiser, tokens: int, pairs: int) -> int:
    """Of a stream through all blocks."""
    return sum(flops.block(block, tokens, pairs) for block in net.blocks)


def _told(net: GridDenoiser, answers: np.ndarray, believed: int) -> int:
    """Of what is told of time and belief, and of the beliefs read off."""
    told = flops.matrices(net.time, len(answers)) + flops.matrices(net.belief, believed)
    return told + flops.matrices(net.out, int(answers.sum()))


@reading.register
def _(net: DenseDenoiser, cells: np.ndarray) -> int:
    count = len(cells)
    return _encoding(net, count, 2 + net.view.count + BOARD) + flops.matrices(net.size_head, count)


@denoising.register
def _(net: DenseDenoiser, cells: np.ndarray, answers: np.ndarray, believed: int = 0) -> int:
    count = len(answers)
    read = flops.matrices(net.level, count) + flops.matrices(net.belief, believed)
    return _encoding(net, count, 2 + net.view.count + 2 * BOARD) + read + flops.matrices(net.out, count * BOARD)


def _encoding(net: DenseDenoiser, count: int, length: int) -> int:
    """Of `count` sequences through all blocks, every token seeing every token."""
    width, pairs = net.out.in_features, count * length**2
    return sum(flops.matrices(block, count * length) + 4 * width * pairs for block in net.blocks)
