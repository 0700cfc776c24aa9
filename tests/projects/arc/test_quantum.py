"""Streams filled up to a multiple: shapes are few, and nothing else of a training step can tell."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from projects.arc import network as networks
from projects.arc.compat import Compat, Earlier
from projects.arc.data import QUANTUM
from projects.arc.packing import filled, repeated, room
from projects.arc.pairs import Augment
from projects.arc.shapes import Shapes
from shared.networks import Layout
from shared.training import plan
from shared.training.errors import Mistake
from shared.training.throughput import training_flops
from tests.projects.arc.conftest import TASKS, arc_batches, arc_data, arc_module, believe

KINDS = [{}, {"prefix": "open"}, {"task": "both", "condition_dropout": 0.5}]


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    monkeypatch.setattr("projects.arc.module.ArcModule.global_rank", 0)


def made(quantum, update=1, **options):
    """A module in training, and a batch of its data."""
    data = arc_data()
    module = arc_module(data, **options).train()
    order, pairs = arc_batches(data)
    return module, pairs.build(order.shares(update)[0], quantum)


def stepped(module, batch):
    """Loss, logs, gradients, and what the network was asked in every pass: x_t and t."""
    asked, forward = [], module.network.forward
    module.network.forward = lambda *a: asked.append((a[2].colour, a[3])) or forward(*a)
    out = module.training_step(batch, 0)
    out["loss"].backward()
    del module.network.forward
    return out, {name: p.grad for name, p in module.named_parameters() if p.grad is not None}, asked


def leaves(logs):
    return {name: torch.stack([torch.as_tensor(v).float() for v in (value if isinstance(value, tuple) else [value])])
            for name, value in logs.items()}  # fmt: skip


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_losses_logs_and_gradients_are_those_of_streams_as_they_are(options):
    (out, grads, asked), (filled_out, filled_grads, filled_asked) = (stepped(*made(q, **options)) for q in (1, 64))
    assert torch.allclose(out["loss"], filled_out["loss"], atol=1e-6)
    logs, filled_logs = leaves(out["logs"]), leaves(filled_out["logs"])
    assert logs.keys() == filled_logs.keys()
    assert all(torch.allclose(logs[name], filled_logs[name], atol=1e-5) for name in logs)
    assert grads.keys() == filled_grads.keys()
    assert all(torch.allclose(grads[name], filled_grads[name], atol=1e-6) for name in grads)
    assert len(asked) == len(filled_asked) == 2
    for (x, t), (filled_x, filled_t) in zip(asked, filled_asked):  # no number is drawn for what fills up
        assert torch.equal(x, filled_x) and torch.equal(t, filled_t)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_every_stream_of_a_step_is_a_multiple_but_the_one_of_size_tokens(options):
    module, batch = made(64, **options)
    met = []
    for block in module.network.blocks:
        block.register_forward_pre_hook(lambda block, given: met.append(len(given[0])))
    module.training_step(batch, 0)
    assert {n for n in met if n % 64} == {batch.num_samples + 1}
    assert len(met) == 1 + 2 + 2 + 2  # prefix but for its last block, size token, earlier belief, body


def test_counts_and_costs_are_of_real_tokens(data):
    (module, batch), (_, full) = made(1), made(4096)
    assert (batch.num_units, batch.num_samples) == (full.num_units, full.num_samples)
    assert training_flops(module, batch) == training_flops(module, full)


def test_no_example_sees_what_fills_up(monkeypatch):
    module, batch = made(64)
    before, sizes = believe(module.network, batch), module.network.prefix(batch.question).size_logits
    other = lambda order, quantum: np.append(order, np.full(room(len(order), quantum) - len(order), order[-1]))  # noqa: E731
    monkeypatch.setattr(networks, "repeated", other)
    assert torch.equal(before, believe(module.network, batch))
    assert torch.equal(sizes, module.network.prefix(batch.question).size_logits)


def test_there_is_always_a_segment_that_fills_up_so_the_number_of_segments_is_that_of_examples_and_one():
    assert filled(np.array([60, 4]), 64).tolist() == [60, 4, 64] and filled(np.array([60, 3]), 64).tolist() == [
        60,
        3,
        1,
    ]
    assert filled(np.array([60, 4]), 1).tolist() == [60, 4]
    assert repeated(np.array([2, 0, 1]), 4).tolist() == [2, 0, 1, 2] and repeated(np.array([2, 0]), 1).tolist() == [
        2,
        0,
    ]


def shapes(quantum, updates=20):
    data = arc_data()
    module, (order, pairs) = arc_module(data), arc_batches(data)
    met = set()
    for update in range(updates):
        batch = pairs.build(order.shares(update)[0], quantum)
        prefix = module.network.prefix(batch.question)
        met.add((module.network.frame(prefix, batch.answer).layout.tokens, len(prefix.memory[0][0])))
    return len(met)


def test_a_large_quantum_leaves_few_shapes():
    assert shapes(1) > 8 >= shapes(256)


def test_the_ninth_shape_is_told_once(capsys):
    shapes = Shapes()
    for tokens in [*range(1, 9), *range(1, 9)]:
        shapes.meet(Layout.of([tokens]))
    assert capsys.readouterr().out == ""
    for tokens in (9, 9, 10, 1):
        shapes.meet(Layout.of([tokens]))
    assert capsys.readouterr().out == "micro-batches of 9 shapes so far; a larger data.token_quantum makes fewer\n"


def test_a_step_meets_its_shape_unless_streams_are_as_they_are():
    (module, batch), (plain, other) = made(64), made(1)
    module.training_step(batch, 0), plain.training_step(other, 0)
    ((segments, body, read),) = module.shapes.met
    assert segments == batch.num_samples + 1 and body % 64 == read % 64 == 0
    assert not plain.shapes.met


def automatic(kind, mean=320, shards=1, **batch):
    order = SimpleNamespace(lengths=np.array([mean - 100, mean + 100]), shards=shards)
    return arc_data(**batch).quantum(order, torch.device(kind))


def test_automatic_is_an_eighth_of_a_stream_on_a_card_and_nothing_elsewhere():
    assert automatic("cpu", batch_size=192) == 1
    assert automatic("cuda", batch_size=192) == 192 * 320 / 2 / 8
    assert automatic("cuda", batch_size=192, shards=3) == 192 * 320 / 3 / 2 / 8
    assert automatic("cuda", batch_size=None, batch_units=51200) == 51200 / 2 / 8
    assert automatic("cuda", batch_size=384) == QUANTUM
    assert automatic("cuda", batch_size=8) == 256  # a step of 128 more


def test_the_loader_fills_up_as_it_is_told():
    assert next(plan.batches(arc_data())).question.quantum == 1
    assert next(plan.batches(arc_data(token_quantum=64))).question.quantum == 64


def test_boards_have_one_shape_and_are_not_filled_up():
    told = {"augment": Augment(colour="cycle"), "tasks": TASKS[:1]}
    data = arc_data(**told)
    Earlier(Compat()).prepare(data)
    assert automatic("cuda", batch_size=192) > 1 == data.quantum(None, torch.device("cuda"))
    with pytest.raises(Mistake, match=r"boards.* leave data\.token_quantum at auto"):
        Earlier(Compat()).prepare(arc_data(**told, token_quantum=64))


def test_no_tokens_at_all_are_refused():
    with pytest.raises(ValueError, match=r"data\.token_quantum is 0; give 1 or more"):
        arc_data(token_quantum=0)
