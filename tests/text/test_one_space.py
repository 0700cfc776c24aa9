"""Target, clamp, head and walk read one table; what is learnt is what stands there, as the walk will see it."""

import math

import pytest
import torch

from projects.text import commands
from projects.text.data import TextData
from projects.text.health import recovered
from projects.text.module import OBJECTIVES, Embedding
from projects.text.sampling import Sampling
from shared.processes import draws
from tests.text.trunks import batch_of, padded, text_module

NOISED = ("cross_entropy", "elbo")


def generators(count):
    return [torch.Generator().manual_seed(n) for n in range(count)]


def test_words_that_change_places_in_the_table_change_them_in_target_clamp_head_and_walk():
    """Nobody keeps rows of an earlier table, nor others than these."""
    module, seeds = text_module(), [3, 4, 5]
    options = Sampling(steps=6, clamp="nearest", clamp_start=0.5)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))  # word n lies where order[n] lay
    x = torch.randn(3, module.network.length, module.network.rows.embedding_dim, generator=torch.Generator())
    t, before = torch.full((3,), 0.5), module.walked(seeds, options).ids
    x0, logits = module.network.rows(order), module.network(x, t)
    with torch.no_grad():
        for part in (module.network.rows.weight, module.network.common):
            part.copy_(part[order].clone())
    assert torch.equal(module.network.rows(torch.arange(60)), x0)
    torch.testing.assert_close(module.network(x, t), logits[..., order])
    assert torch.equal(order[module.walked(seeds, options).ids], before) and len(before.unique()) > 5


@pytest.mark.parametrize("objective", NOISED)
def test_what_is_noised_are_rows_of_the_table_and_nothing_else(objective):
    """No position, no dropout, no norm of a sum: x_t is alpha E[w] + sigma eps, and sees w by no other way."""
    module, seen = text_module(objective=objective).train(), []
    batch, network = batch_of(module), module.network
    hook = network.register_forward_hook(lambda net, given, out: seen.append((*given, net.schedule)))
    module.objective.loss(module, batch, torch.full((8,), 0.4), generators(8))
    hook.remove()
    x_t, t, *_, schedule = seen[-1]
    alpha, sigma = (scale(t).view(-1, 1, 1) for scale in (schedule.alpha, schedule.sigma))
    wanted = alpha * network.rows(batch.ids) + sigma * draws.normal(x_t.shape, generators(8))
    torch.testing.assert_close(x_t, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("objective", NOISED)
def test_the_target_of_a_place_is_the_word_that_stands_there(objective):
    """At the clean end words are read off their own rows; sentences have about .3 of their words one place further."""
    module = text_module(objective=objective, asleep=True)
    losses = module.objective.loss(module, batch_of(module), torch.full((8,), 1e-30), generators(8))
    assert losses.accuracy.mean() > 0.9


@pytest.mark.parametrize("ragged", [False, True])
def test_a_look_of_the_walk_is_bit_for_bit_that_of_training(ragged):
    """On one x_t, with the mask of the batch, and the belief that training let the first half hear."""
    module, seen = text_module(), []
    batch = padded(batch_of(module, 4)) if ragged else batch_of(module, 4)
    hook = module.network.register_forward_hook(lambda net, given, out: seen.append((given, out)))
    with torch.no_grad():
        module.objective.loss(module, batch, torch.full((4,), 0.6), generators(4))
    hook.remove()
    (x, t, belief, _), logits = seen[-1]
    speaker = module.objective.walk(module, Sampling(), 4, generators(4)).speaker
    speaker.valid = batch.mask
    with torch.no_grad():
        speaker(x, t, belief)
    assert len(belief) == 2 and torch.equal(speaker.logits, logits)


def test_a_fresh_network_does_not_hear_what_it_believed():
    """The weights that hear start at zero; the rest of the network speaks."""
    network = text_module().network
    torch.nn.init.zeros_(network.belief.weight)
    x, t = torch.randn(4, network.length, network.rows.embedding_dim), torch.linspace(0.2, 0.8, 4)
    assert torch.equal(network(x, t, x), network(x, t)) and not text_module(asleep=True).network.belief.weight.any()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_stands_in_padding_changes_no_loss_no_gradient_and_no_validation_by_a_bit(objective):
    module, found = text_module(objective=objective), []
    for fill in (0, 17):
        batch = padded(batch_of(module), fill)
        module.zero_grad()
        losses = module.objective.loss(module, batch, torch.linspace(0.2, 0.8, 8), generators(8))
        losses.total.sum().backward()
        kept = module.on_fixed_paths(batch)
        found.append([losses.total, losses.ce, losses.accuracy, kept.total, kept.accuracy,
                      *(p.grad for p in module.parameters() if p.grad is not None)])  # fmt: skip
    assert len(found[0]) > 20 and all(torch.equal(one, other) for one, other in zip(*found))


def test_free_rows_are_calibrated_with_the_length_that_they_have(capsys):
    module = text_module(embedding=Embedding(norm="free"))
    with torch.no_grad():
        module.network.rows.weight.mul_(3.0)
    reach = float(module.network.rows.rows.detach().square().sum(-1).mean())
    assert reach > 2 * module.network.rows.radius**2
    said = type("", (), {"model": module, "layers": type("", (), {"run": None})})
    commands.calibrate(said)
    assert f"R^2 {reach:g}" in capsys.readouterr().out
    assert module.log_snr_star == pytest.approx(math.log(2 * TextData(level="micro").entropy / reach))
    with torch.no_grad():
        module.network.rows.weight.div_(1e3)
    assert recovered(module.network.rows) > 0.95
