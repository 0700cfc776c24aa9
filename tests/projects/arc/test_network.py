"""What the denoiser may and may not see."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from packages.arc.views import enumerated
from projects.arc.network import OUTPUT, GridDenoiser, ViewTokens
from projects.arc.pairs import PairBatches
from shared.training.batches import Share
from tests.projects.arc.conftest import arc_data, arc_module, believe, believed_twice


@pytest.mark.parametrize(
    ("rows", "side", "colours", "shape", "count"),
    [
        (24, 10, "cycle", (128, 3, 4, 1, 32), 676_033),
        (800, 30, "permute", (320, 3, 5, 4, 64), 5_337_025),
        (1120, 30, "permute", (320, 3, 5, 4, 64), 5_746_625),
        (800, 30, "permute", (384, 4, 6, 4, 64), 8_936_577),
        (800, 30, "permute", (896, 10, 14, 4, 64), 102_291_329),
        (800, 30, "permute", (1280, 13, 20, 4, 64), 265_085_825),
        (1120, 30, "permute", (1920, 20, 30, 4, 64), 899_497_601),
    ],
)
def test_parameter_counts_are_those_of_the_table(rows, side, colours, shape, count):
    with torch.device("meta"):
        network = GridDenoiser(rows, side, colours, *shape)
    assert sum(p.numel() for p in network.parameters()) == count


def test_altering_one_example_leaves_the_others_bit_equal(module, batch):
    before = believe(module.network, batch)
    victim = batch.answer.segment == 3
    changed = replace(batch.answer, colour=torch.where(victim, (batch.answer.colour + 1) % 10, batch.answer.colour))
    cells = batch.question.cells
    inputs = replace(cells, colour=torch.where(cells.segment == 3, 9 - cells.colour, cells.colour))
    after = believe(module.network, replace(batch, answer=changed, question=replace(batch.question, cells=inputs)))
    assert torch.equal(before[~victim], after[~victim])
    assert not torch.equal(before[victim], after[victim])


def test_size_logits_do_not_change_with_the_answer(module, batch, data):
    """Neither its colours nor its size: the same questions with other answers."""
    pairs = PairBatches(data.examples(), data.max_size, None, data.randomness)
    small, large = (pairs.build(Share.of([0, 1, 2])) for _ in range(2))
    large.answer = pairs.build(Share.of([9, 10, 11])).answer
    assert small.answer.lengths.tolist() != large.answer.lengths.tolist()
    first, second = (module.network.prefix(b.question).size_logits for b in (small, large))
    assert torch.equal(first, second)


def test_size_logits_have_no_gradient_from_the_answer_nor_the_prefix_from_the_body(module, batch):
    network, seen = module.network, []
    embed = network.embed
    network.embed = lambda cells, colour, role: seen.append(embed(cells, colour, role).requires_grad_()) or seen[-1]
    prefix = network.prefix(batch.question)
    network(prefix, network.frame(prefix, batch.answer), batch.answer, torch.full((8,), 0.5))
    read, answer = seen
    read_grad, answer_grad = torch.autograd.grad(prefix.size_logits.sum(), [read, answer], allow_unused=True)
    assert read_grad.abs().sum() > 0 and answer_grad is None


def test_a_kept_prefix_gives_the_logits_of_a_fresh_one(module, batch):
    first, second = believed_twice(module.network, batch)
    assert torch.equal(first, second)
    assert torch.allclose(first, believe(module.network, batch), atol=1e-6)


@pytest.mark.parametrize("backend", ["mask"])
def test_packed_logits_equal_the_masked_dense_reference(module, batch, monkeypatch, backend):
    packed, size = believe(module.network, batch), module.network.prefix(batch.question).size_logits
    monkeypatch.setenv("ATTENTION", backend)
    assert torch.allclose(packed, believe(module.network, batch), atol=1e-4)
    assert torch.allclose(size, module.network.prefix(batch.question).size_logits, atol=1e-4)


def test_the_largest_side_does_not_change_logits(module, batch, data):
    wide = arc_module(arc_data(max_size=30))
    state = module.network.state_dict()
    for name in ("row.weight", "col.weight", "size.weight"):
        state[name] = torch.cat([state[name], wide.network.state_dict()[name][len(state[name]) :]])
    wide.network.load_state_dict(state)
    assert torch.allclose(believe(module.network, batch), believe(wide.eval().network, batch), atol=1e-5)


def test_no_earlier_belief_is_no_term_at_all(module, batch):
    without = believe(module.network, batch)
    zeros = believe(module.network, batch, belief=torch.zeros(len(batch.answer.colour), 10))
    uniform = believe(module.network, batch, belief=torch.full((len(batch.answer.colour), 10), 0.1))
    assert torch.equal(without, zeros) and not torch.equal(without, uniform)


def test_an_earlier_belief_of_the_first_examples_leaves_the_others_alone(module, batch):
    some = batch.answer.first(3)
    belief = torch.rand(len(some.colour), 10)
    without, with_some = believe(module.network, batch), believe(module.network, batch, belief=belief)
    assert torch.equal(without[len(some.colour) :], with_some[len(some.colour) :])
    assert not torch.equal(without[: len(some.colour)], with_some[: len(some.colour)])


@pytest.mark.parametrize("label", ["d4", "colours", "task"])
def test_the_labels_are_told(module, batch, label):
    """Changing only what the network is told of the view or the task changes size logits and belief."""
    question = batch.question
    other = {
        "d4": {"d4": (question.d4 + 1) % 8},
        "colours": {"colours": torch.cat([question.colours[:, :1], question.colours[:, 1:].roll(1, 1)], 1)},
        "task": {"task": (question.task + 1) % len(module.task_ids)},
    }[label]
    changed = replace(batch, question=replace(question, **other))
    assert not torch.allclose(believe(module.network, batch), believe(module.network, changed), atol=1e-4)
    sizes = [module.network.prefix(b.question).size_logits for b in (batch, changed)]
    assert not torch.allclose(*sizes, atol=1e-4)


@pytest.mark.parametrize("colours", ["cycle", "permute"])
def test_every_view_has_tokens_of_its_own(colours):
    """The 72 views; and where colours are permuted, each exchange of two of them."""
    d4, shown = enumerated(72, colours)
    if colours == "permute":
        swaps = np.tile(np.arange(10), (36, 1))
        for row, (a, b) in zip(swaps, combinations(range(1, 10), 2)):
            row[[a, b]] = b, a
        d4, shown = np.concatenate([d4, np.zeros(36, np.int64)]), np.concatenate([shown, swaps])
    tokens = ViewTokens(8, colours)
    said = tokens(torch.from_numpy(d4), torch.from_numpy(shown))
    assert said.shape[1] == tokens.count and len(said.flatten(1).unique(dim=0)) == len(d4)


def test_withheld_inputs_leave_no_trace_of_their_colours(module, batch):
    hidden = torch.ones(batch.num_samples, dtype=torch.bool)
    cells = batch.question.cells
    one = replace(batch, question=replace(batch.question, hidden=hidden))
    two = replace(one, question=replace(one.question, cells=replace(cells, colour=9 - cells.colour)))
    assert torch.equal(believe(module.network, one), believe(module.network, two))


def test_adapters_find_separate_linear_layers(module):
    for block in module.network.blocks:
        parts = [getattr(block.attention, n) for n in "qkvo"] + [getattr(block.mlp, n) for n in ("gate", "up", "down")]
        assert all(isinstance(part, nn.Linear) for part in parts)


def attended(attention, x_LD, rotation, sees_LL):
    """Attention written out: every head of every token looks at the tokens it may see."""
    q_LHK, (k_LHK, v_LHK) = attention.queries(x_LD, rotation), attention.keys_values(x_LD, rotation)
    scores_HLL = torch.einsum("lhk,mhk->hlm", q_LHK, k_LHK) / attention.head_dim**0.5
    share_HLL = scores_HLL.masked_fill(~sees_LL, -torch.inf).softmax(-1)
    return attention.o(torch.einsum("hlm,mhk->lhk", share_HLL, v_LHK).flatten(1))


def in_one_sequence(network, batch, example, t=0.7):
    """Size logits and belief of one example: prefix, size token and body as one dense sequence under one mask."""
    question, answer = batch.question, batch.answer
    asked, drawn = question.cells.segment == example, answer.segment == example
    told = network.told(question)[example]
    body = network.embed(answer, network.colour(answer.colour), OUTPUT)[drawn]
    parts = [told, network.shown(question)[asked], network.size_token.weight, network.time(torch.full((1,), t)), body]
    x_LD, size = torch.cat(parts), len(told) + int(asked.sum())  # the prefix ends where the size token stands
    place = torch.zeros(len(x_LD), 2, dtype=torch.int64)  # tokens that are no cells stand at angle 0
    for cells, mine, start in ((question.cells, asked, len(told)), (answer, drawn, size + 2)):
        place[start : start + int(mine.sum())] = torch.stack([cells.row, cells.col], 1)[mine]
    sees = torch.zeros(len(x_LD), len(x_LD), dtype=torch.bool)
    sees[:, :size], sees[size, size], sees[size + 1 :, size + 1 :] = True, True, True
    for block in network.blocks:
        x_LD = x_LD + attended(block.attention, block.attention_norm(x_LD), network.rotary.rotation(place), sees)
        x_LD = x_LD + block.mlp(block.mlp_norm(x_LD))
    x_LD = network.norm(x_LD)
    return network.size(x_LD[size]), network.out(x_LD[size + 2 :])


def test_logits_are_those_of_every_example_alone_in_one_dense_sequence(module, batch):
    """Packing, padding, neighbours and a kept prefix change nothing; the size token sees no answer."""
    belief, sizes = believe(module.network, batch), module.network.prefix(batch.question).size_logits
    for example in range(batch.num_samples):
        size, answer = in_one_sequence(module.network, batch, example)
        assert torch.allclose(sizes[example], size, atol=1e-4)
        assert torch.allclose(belief[batch.answer.segment == example], answer, atol=1e-4)
