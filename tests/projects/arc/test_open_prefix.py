"""An open prefix: the question sees the answer, the size still does not, and nothing else has changed."""

from dataclasses import replace

import pytest
import torch

from projects.arc import cost
from projects.arc.compat import Compat
from projects.arc.module import ArcModule
from projects.arc.network import OUTPUT
from projects.arc.open_prefix import OpenDenoiser
from projects.arc.pairs import PairBatches
from shared.training import pretrained
from shared.training.batches import Share
from tests.projects.arc.conftest import arc_module, believe, believed_twice
from tests.projects.arc.test_cost import META, batch_of, counted, forward
from tests.projects.arc.test_evaluate import said, solver


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    monkeypatch.setattr("projects.arc.module.ArcModule.global_rank", 0)


@pytest.fixture
def opened(data):
    return arc_module(data, prefix="open").eval()


def sizes(module, batch):
    return module.network.prefix(batch.question).size_logits


def recoloured(batch, example=None):
    """The batch with other colours in the answer's cells, of one example or of all."""
    answer = batch.answer
    which = answer.segment == example if example is not None else torch.ones_like(answer.colour, dtype=torch.bool)
    return replace(batch, answer=replace(answer, colour=torch.where(which, (answer.colour + 1) % 10, answer.colour)))


def test_it_has_the_same_parameters_and_starts_from_the_same_weights(data, opened):
    ours, theirs = opened.network.state_dict(), arc_module(data).network.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_file_says_that_it_is_open(opened):
    assert type(pretrained.rebuild(pretrained.description(opened.network))) is OpenDenoiser


def test_size_logits_are_those_of_a_sealed_prefix_whatever_the_answer(module, opened, batch, data):
    assert torch.equal(sizes(opened, batch), sizes(module, batch))
    pairs = PairBatches(data.examples(), data.max_size, None, data.randomness)
    small, large = (pairs.build(Share.of([0, 1, 2])) for _ in range(2))
    large.answer = pairs.build(Share.of([9, 10, 11])).answer
    found = []
    for each in (small, recoloured(small), large):
        believe(opened.network, each)
        found.append(sizes(opened, each))
    assert small.answer.lengths.tolist() != large.answer.lengths.tolist()
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_size_logits_have_no_gradient_from_the_answer_and_beliefs_have_one_from_the_prefix(opened, batch):
    network, seen = opened.network, []
    embed = network.embed
    network.embed = lambda cells, colour, role: seen.append(embed(cells, colour, role).requires_grad_()) or seen[-1]
    prefix = network.prefix(batch.question)
    logits = network(prefix, network.frame(prefix, batch.answer), batch.answer, torch.full((8,), 0.5))
    read, answer = seen
    assert torch.autograd.grad(prefix.size_logits.sum(), answer, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(logits.square().sum(), read)[0].abs().sum() > 0


def test_the_prefix_changes_with_the_answers_cells(opened, batch):
    """After the first block every token of the altered example has another state, of other examples none."""
    states = []
    opened.network.blocks[0].register_forward_hook(lambda block, given, out: states.append(out))
    prefix = opened.network.prefix(batch.question)
    layout = opened.network.frame(prefix, batch.answer).layout
    states.clear()
    for each in (batch, recoloured(batch, example=3)):
        opened.network(prefix, opened.network.frame(prefix, each.answer), each.answer, torch.full((8,), 0.7))
    moved = (states[0] != states[1]).any(1)
    in_prefix = layout.position < torch.from_numpy(prefix.lengths)[layout.segment.long()]
    assert moved[in_prefix & (layout.segment == 3)].all() and not moved[layout.segment != 3].any()


def test_one_block_believes_as_a_sealed_one_and_two_do_not(data, batch):
    """What the first block hands back to the prefix is read by the second."""
    for depth, equal in ((1, True), (2, False)):
        one, other = (arc_module(data, depth=depth, prefix=prefix).eval() for prefix in ("sealed", "open"))
        found = [believe(each.network, batch) for each in (one, other)]
        assert torch.allclose(*found, atol=1e-5) == equal


def alone(network, batch, example: int, t: float = 0.7):
    """Logits of one example, by dense attention over its own tokens in the order of the file's first line."""
    question, answer = batch.question, batch.answer
    asked, cells = question.cells.segment == example, answer.segment == example
    before = network.told(question)[example]
    read = network.shown(question)[asked]
    own = network.embed(answer, network.colour(answer.colour), OUTPUT)[cells]
    x = torch.cat([before, read, network.time(torch.tensor([t])), own])
    place = torch.zeros(len(x), 2, dtype=torch.int64)
    place[len(before) : len(before) + len(read)] = torch.stack([question.cells.row, question.cells.col], 1)[asked]
    place[len(x) - len(own) :] = torch.stack([answer.row, answer.col], 1)[cells]
    x = x[None]
    for block in network.blocks:
        x = block(x, rotation=network.rotary.rotation(place))
    return network.out(network.norm(x[0, -len(own) :]))


@pytest.mark.parametrize("backend", ["padded", "mask"])
def test_packed_logits_equal_those_of_every_example_alone(opened, batch, monkeypatch, backend):
    monkeypatch.setenv("ATTENTION", backend)
    each = torch.cat([alone(opened.network, batch, n) for n in range(batch.num_samples)])
    assert torch.allclose(believe(opened.network, batch), each, atol=1e-4)


def test_altering_one_example_leaves_the_others_bit_equal(opened, batch):
    others = batch.answer.segment != 3
    before, after = believe(opened.network, batch), believe(opened.network, recoloured(batch, example=3))
    assert torch.equal(before[others], after[others]) and not torch.equal(before, after)


def test_a_question_asked_again_gives_the_same_logits(opened, batch):
    first, second = believed_twice(opened.network, batch)
    assert torch.equal(first, second) and torch.allclose(first, believe(opened.network, batch), atol=1e-6)


def test_the_first_examples_are_believed_as_in_the_whole_batch_and_learn_nothing(opened, batch):
    network, prefix, some = opened.network, opened.network.prefix(batch.question), batch.answer.first(3)
    first = prefix.first(3)
    assert not first.tokens.requires_grad and not first.size_logits.requires_grad
    logits = network(first, network.frame(first, some), some, torch.full((3,), 0.7))
    assert torch.allclose(logits, believe(network, batch)[: len(some.colour)], atol=1e-5)


def test_every_parameter_learns(data, batch):
    module = arc_module(data, prefix="open", condition_dropout=0.5).train()
    module.training_step(batch, 0)["loss"].backward()
    assert not [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]


def test_an_answer_is_the_same_in_any_company(opened, data):
    queries = data.queries()
    together = solver(opened).all(queries)
    alone = [one for query in reversed(queries) for one in solver(opened).all([query])]
    cut = solver(opened, max_tokens=300).all(queries)
    assert said(together) == said(alone[::-1]) == said(cut)


def test_its_cost_is_what_torch_counts(data):
    module = arc_module(data, width=64, depth=3, prefix="open").to(META)
    batch = batch_of([((5, 7), (4, 6))] * 6)
    asked, answers = batch.question.cells.lengths, batch.answer.lengths
    ours = cost.reading(module.network, asked) + cost.denoising(module.network, asked, answers)
    assert ours == counted(lambda: forward(module, batch))
    there = batch.to(META)
    step = counted(lambda: module.training_step(there, 0))
    assert step == module.flops(there) + module.extra_flops(there)


def test_the_earlier_system_has_no_prefix_to_open():
    with pytest.raises(ValueError, match=r"model\.compat .* drop model\.prefix=open"):
        ArcModule(compat=Compat(), prefix="open")
