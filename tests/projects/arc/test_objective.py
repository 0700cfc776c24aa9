"""What is minimised: nothing new unless asked for, and each part is what its name says."""

from dataclasses import replace

import pytest
import torch

from projects.arc.compat import Compat
from projects.arc.module import ArcModule, Noise
from projects.arc.network import GridDenoiser
from projects.arc.objective import LossOptions, Objective, UnrollOptions, per_example
from shared.objectives import segment_mean, share
from tests.projects.arc.conftest import arc_module


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    monkeypatch.setattr("projects.arc.module.ArcModule.global_rank", 0)


def step(module, batch):
    """Loss, and what the network was asked: (x, t, belief) of every pass."""
    asked = []
    module.network.forward = lambda *a: asked.append((a[2].colour, *a[3:])) or GridDenoiser.forward(module.network, *a)
    out = module.train().training_step(batch, 0)
    out["loss"].backward()
    return out, asked


def test_a_step_without_options_is_one_pass_and_plain_cross_entropy(data, batch):
    module = arc_module(data)
    out, asked = step(module, batch)
    assert len(asked) == 2  # the earlier belief, and the pass that learns
    size = out["loss"] - share(out["logs"]["ce"].expand(batch.num_samples), batch.global_samples, batch.shards)
    assert torch.isclose(size, 0.1 * out["logs"]["size_ce"], atol=1e-6)


def test_an_unrolled_step_walks_down_with_its_own_belief(data, batch):
    module = arc_module(data, unroll=UnrollOptions(steps=3))
    out, asked = step(module, batch)
    (x, t, _), *later = asked[1:]
    assert len(later) == 2
    for n, (moved, s, belief) in enumerate(later, 1):
        assert torch.allclose(s, t * (1 - n / 3)) and not torch.equal(moved, x)
        assert torch.allclose(belief.sum(-1), torch.ones(len(moved))) and not belief.requires_grad
    plain, _ = step(arc_module(data), batch)
    assert out["loss"] != plain["loss"] and out["logs"]["ce"] == plain["logs"]["ce"]


def test_a_walk_that_is_not_cut_hands_its_gradient_on(data, batch):
    _, asked = step(arc_module(data, unroll=UnrollOptions(steps=2, detach=False)), batch)
    assert asked[-1][2].requires_grad


def test_no_state_to_visit_is_refused():
    with pytest.raises(ValueError, match=r"unroll\.steps is 0"):
        UnrollOptions(steps=0)


@pytest.mark.parametrize("options", [{"deep_supervision": 0.1}, {"noise": Noise(kind="absorbing")}])
def test_the_earlier_system_knows_no_refinement(options):
    with pytest.raises(ValueError, match=r"model\.compat learns uniform noise in one pass"):
        ArcModule(compat=Compat(), **options)


def test_deep_supervision_adds_the_loss_of_the_layers_between(data, batch):
    plain, asked = step(arc_module(data, depth=3, condition_dropout=0.0), batch)
    module = arc_module(data, depth=3, condition_dropout=0.0, deep_supervision=0.5)
    deep, _ = step(module, batch)
    x, t, belief = asked[-1]
    prefix, layers = module.network.prefix(batch.question), []
    cells = replace(batch.answer, colour=x)
    with torch.no_grad():
        frame = module.network.frame(prefix, cells)
        GridDenoiser.forward(module.network, prefix, frame, cells, t, belief, layers)
    assert len(layers) == 2
    expected = 0.25 * sum(per_example(layer, batch.answer).mean() for layer in layers)
    assert torch.isclose(deep["loss"] - plain["loss"], expected, atol=1e-5)
    assert deep["logs"]["ce"] == plain["logs"]["ce"]


@pytest.mark.parametrize("kind", ["uniform", "hybrid", "absorbing"])
def test_the_bound_is_nothing_for_a_sure_belief_and_positive_for_another(batch, kind):
    process, x0 = Noise(kind=kind).process(), batch.answer
    objective = Objective(process, LossOptions(kind="hybrid"), UnrollOptions())
    t = torch.linspace(0.0001, 1, x0.count)
    x_t = process.corrupt(x0.colour, process.draw(x0.colour, torch.Generator().manual_seed(0)), t[x0.segment])
    sure = process.certain(x0.colour).clamp(min=-1e4)
    assert objective.bound(sure, x0, x_t, t).abs().max() < 1e-6
    logits = torch.zeros_like(sure).requires_grad_()
    loss = objective.bound(logits, x0, x_t, t)
    assert loss.mean() > 0 and loss.max() <= 10
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all()
    expected = per_example(logits, x0) + 0.01 * segment_mean(loss, x0.segment, x0.count)
    assert torch.allclose(objective.cells(logits, x0, x_t, t), expected)


def test_the_last_stride_of_the_bound_is_the_cross_entropy_of_masked_cells(batch):
    """At t = 1/128 the posterior of x0 is x0 itself; where the mask stands the model's is its belief."""
    process, x0 = Noise(kind="absorbing").process(), batch.answer
    objective = Objective(process, LossOptions(kind="hybrid"), UnrollOptions())
    logits = torch.randn(len(x0.colour), 10, generator=torch.Generator().manual_seed(0))
    hidden = torch.full_like(x0.colour, 10)
    found = objective.bound(logits, x0, hidden, torch.full((x0.count,), 1 / 128))
    assert torch.allclose(found, torch.nn.functional.cross_entropy(logits, x0.colour, reduction="none"), atol=1e-4)


def test_cells_weigh_the_same_where_the_average_is_over_cells(batch):
    x0, process = batch.answer, Noise().process()
    loss = torch.rand(x0.count, generator=torch.Generator().manual_seed(0))
    by_cell = Objective(process, LossOptions(average="cell"), UnrollOptions())
    expected = (loss * torch.from_numpy(x0.lengths)).sum() / x0.lengths.sum()
    assert torch.isclose(by_cell.total(batch, loss, torch.zeros_like(loss)), expected.float())
    by_example = Objective(process, LossOptions(), UnrollOptions())
    assert torch.isclose(by_example.total(batch, loss, torch.zeros_like(loss)), loss.mean())


@pytest.mark.parametrize("kind", ["hybrid", "absorbing"])
@pytest.mark.parametrize("options", [{"unroll": UnrollOptions(steps=2)}, {"loss": LossOptions(kind="hybrid")}])
def test_every_kind_of_noise_learns_under_every_loss(data, batch, kind, options):
    module = arc_module(data, noise=Noise(kind=kind), **options)
    out, asked = step(module, batch)
    assert torch.isfinite(out["loss"]) and any((x == 10).any() for x, *_ in asked)
    assert module.network.colour.weight.grad[10].any()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
