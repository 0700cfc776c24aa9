"""The line's FLOPs are those torch counts: exactly for grids of one size, and less than torch where it must pad."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from packages.arc.tasks import Pair, as_grid
from projects.arc import cost
from projects.arc.module import SelfCondition
from projects.arc.pairs import Augment, Example, PairBatches
from shared.training.batches import Share
from shared.training.randomness import Randomness
from shared.training.throughput import training_flops
from tests.projects.arc.conftest import arc_batches, arc_data, arc_module

META = torch.device("meta")


def batch_of(sizes):
    """One pair for each (input sides, output sides)."""
    rng = np.random.default_rng(0)
    grids = [[as_grid(rng.integers(0, 10, size)) for size in pair] for pair in sizes]
    examples = [Example(i % 6, Pair(*pair)) for i, pair in enumerate(grids)]
    augment = Augment(d4=False, colour="cycle", translate=False)
    return PairBatches(examples, 10, augment, Randomness()).build(Share.of(range(len(examples))))


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture
def on_meta(data):
    made = arc_module(data, width=64, depth=3)
    made.network.to(META)
    return made


def forward(module, batch):
    net, there = module.network, batch.to(META)
    prefix = net.prefix(there.question)
    t = torch.zeros(batch.num_samples, device=META)
    net(prefix, net.frame(prefix, there.answer), there.answer, t)


def test_a_forward_over_grids_of_one_size_is_counted_exactly(on_meta, record_property):
    batch = batch_of([((5, 7), (4, 6))] * 6)
    asked, answers = batch.question.cells.lengths, batch.answer.lengths
    ours = cost.reading(on_meta.network, asked) + cost.denoising(on_meta.network, asked, answers)
    theirs = counted(lambda: forward(on_meta, batch))
    record_property("print", f"arc: FLOPs of a forward, ours over torch's: {ours / theirs:.4f}")
    assert abs(ours / theirs - 1) < 0.02


def test_a_forward_over_ragged_grids_costs_what_its_own_pairs_cost(on_meta, monkeypatch):
    """Torch counts the reference back-end, every pair of tokens, so ours plus the pairs across segments is theirs."""
    monkeypatch.setenv("ATTENTION", "mask")
    batch = batch_of([((5, 7), (4, 6)), ((1, 1), (9, 9)), ((3, 2), (2, 8))])
    net, asked, answers = on_meta.network, batch.question.cells.lengths, batch.answer.lengths
    read, body = cost.prefix_lengths(net, asked), answers + 1
    width = net.blocks[0].attention.q.out_features
    across = 2 * (read.sum() ** 2 - (read**2).sum())  # the last block of the prefix attends to nothing
    across += 3 * (len(read) * (len(read) + read.sum()) - (1 + read).sum())
    across += 3 * (body.sum() * (body.sum() + read.sum()) - (body * (body + read)).sum())
    ours = cost.reading(net, asked) + cost.denoising(net, asked, answers)
    assert ours + 4 * width * int(across) == counted(lambda: forward(on_meta, batch))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_training_step_counts_its_belief_once_and_the_rest_three_times(data, share):
    module = arc_module(data, width=64, depth=3, self_condition=SelfCondition("earlier", share)).to(META)
    batch = batch_of([((5, 7), (4, 6))] * 6).to(META)
    ours = training_flops(module, batch)
    assert ours == 3 * module.flops(batch) + module.extra_flops(batch)
    assert (module.extra_flops(batch) > 0) == (share > 0)
    step = counted(lambda: module.training_step(batch, 0))
    assert step == module.flops(batch) + module.extra_flops(batch)


def test_padding_is_not_counted(data):
    module = arc_module(data)
    order, pairs = arc_batches(data)
    batch = pairs.build(order.shares(0)[0])
    asked, answers = batch.question.cells.lengths, batch.answer.lengths
    alone = [pairs.build(Share.of([i])) for i in batch.share.index]
    apart = sum(
        cost.reading(module.network, one.question.cells.lengths)
        + cost.denoising(module.network, one.question.cells.lengths, one.answer.lengths)
        for one in alone
    )
    assert apart == cost.reading(module.network, asked) + cost.denoising(module.network, asked, answers)


def test_counting_reads_lengths_on_the_host_only(data):
    """On the meta device nothing can be read, so counting there proves that no number of the device is asked for."""
    module = arc_module(arc_data()).to(META)
    assert training_flops(module, batch_of([((2, 3), (3, 3))] * 2).to(META)) > 0
