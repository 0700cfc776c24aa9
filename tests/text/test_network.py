"""The trunk: what it counts, what it starts as, what it may see, and that it reads the level of its process."""

import dataclasses
import inspect
import math

import pytest
import torch
from torch import nn

from projects.text.encoder import Encoder
from projects.text.network import Denoiser, Network, Trunk
from projects.text.rounding import Rows
from projects.text.warping import Gumbel
from shared.processes import PiecewiseCdf, Warped
from tests.text.trunks import ENCODER, states, text_module

LADDER = {  # ids, width of a row, length; width, depth, heads, hidden, level -> parameters
    "nano": ((300, 32, 32), (128, 6, 4, 384, 64), 1_626_668),
    "quick": ((60, 16, 16), (128, 6, 4, 384, 64), 1_611_644),
    "smol": ((15_000, 128, 64), (384, 3, 8, 1536, 128), 10_187_192),
    "mediom": ((32_768, 128, 128), (512, 12, 8, 1344, 128), 46_714_368),
    "lorge": ((32_768, 128, 128), (768, 12, 12, 2048, 128), 96_842_240),
}
PLANNED = {"nano": 1_637_452, "quick": 1_622_412, "smol": 10_201_272, "mediom": 46_718_336, "lorge": 96_839_808}


@pytest.mark.parametrize("name", LADDER)
def test_the_sizes_count_as_stated_and_within_one_percent_of_plan(name):
    (count, dim, length), (width, depth, heads, hidden, level), parameters = LADDER[name]
    with torch.device("meta"):
        sizes = {"width": width, "depth": depth, "heads": heads, "hidden": hidden, "level": level}
        made = Denoiser(Warped(Gumbel(3.0, -9.0, 13.3)), Rows(count, dim), length, **sizes)
    assert sum(p.numel() for p in made.parameters()) == parameters
    assert abs(parameters / PLANNED[name] - 1) < 0.01


@pytest.fixture(scope="module", params=[{}, ENCODER], ids=["denoiser", "encoder"])
def network(request) -> Network:
    return text_module(sizes=request.param).network


def test_a_fresh_network_says_what_each_position_says_alone():
    network = text_module(asleep=True).network
    x, t = states(network)
    alone = network.rows.bias(x, network.schedule.alpha(t), network.schedule.sigma(t))
    assert torch.equal(network(x, t), alone)


def test_without_the_bias_a_fresh_network_says_nothing():
    network = text_module(asleep=True, sizes={"logit_bias": False}).network
    assert not network(*states(network)).any()


def test_a_zero_belief_is_no_belief_and_another_is_heard(network):
    x, t = states(network)
    assert torch.equal(network(x, t), network(x, t, torch.zeros_like(x)))
    assert not torch.allclose(network(x, t), network(x, t, x))


def test_a_belief_of_the_first_samples_leaves_the_others_alone(network):
    x, t = states(network)
    heard, alone = network(x, t, x[:2]), network(x, t)
    assert torch.equal(heard[2:], alone[2:]) and not torch.allclose(heard[:2], alone[:2])


def test_what_is_not_valid_is_not_seen(network):
    x, t = states(network)
    valid = (torch.arange(network.length) < 9).expand(len(x), -1)
    other = torch.where(valid.unsqueeze(-1), x, 7.0)
    assert torch.equal(network(x, t, None, valid)[:, :9], network(other, t, None, valid)[:, :9])
    assert not torch.allclose(network(x, t)[:, :9], network(other, t)[:, :9])


def test_every_position_sees_every_other_and_its_place(network):
    x, t = states(network, 1)
    for far, place in ((0, -1), (-1, 0)):
        moved = x.clone()
        moved[:, far] += 1
        assert not torch.allclose(network(x, t)[:, place], network(moved, t)[:, place])
    flipped = network(x.flip(1), t).flip(1)
    assert not torch.allclose(network(x, t), flipped, atol=1e-3)


@pytest.mark.parametrize("positional", ["rotary", "learned", "both"])
def test_every_kind_of_place_is_heard(positional):
    network = text_module(sizes={"positional": positional}).network
    x, t = states(network, 1)
    order = torch.randperm(network.length, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(network(x, t)[:, order], network(x[:, order], t), atol=1e-3)


def test_the_same_state_at_another_level_is_read_otherwise():
    network = text_module(sizes={"logit_bias": False}).network
    x, _ = states(network, 1)
    one, other = (network(x, torch.tensor([t])) for t in (0.4, 0.5))
    assert not torch.allclose(one, other, atol=1e-3)


def test_a_level_that_is_added_starts_from_nothing_is_bounded_by_its_gain_and_is_heard():
    sizes = {"conditioning": "additive", "logit_bias": False}
    network = text_module(sizes=sizes, asleep=True).network
    x, _ = states(network, 1)
    nn.init.normal_(network.out.weight)
    one, other = (network(x, torch.tensor([t])) for t in (0.4, 0.5))
    assert torch.allclose(one, other, atol=1e-2)
    network = text_module(sizes=sizes).network
    assert network.last is None and all(block.modulation is None for block in network.blocks)
    one, other = (network(x, torch.tensor([t])) for t in (0.4, 0.5))
    assert not torch.allclose(one, other, atol=1e-1)
    told = network.gain(1e3 * network.level(torch.linspace(-9, 9, 7)))
    assert (told.square().mean(-1) <= network.gain.weight.square().max() * 1.001).all()


@pytest.mark.parametrize("level", [1e-6, 0.5, 1.0])
def test_the_stream_starts_at_rms_one_at_every_level(level):
    network = text_module().network
    rng, t = torch.Generator().manual_seed(0), torch.full((256,), level)
    x0 = network.rows(torch.randint(network.rows.num_embeddings, (256, network.length), generator=rng)).detach()
    alpha, sigma = (scale(t).view(-1, 1, 1) for scale in (network.schedule.alpha, network.schedule.sigma))
    seen = []
    hook = network.input.register_forward_hook(lambda module, given, out: seen.extend((*given, out)))
    network(alpha * x0 + sigma * torch.randn(x0.shape, generator=rng), t)
    hook.remove()
    entered, stream = (float(part.detach().square().mean().sqrt()) for part in seen)
    assert entered == pytest.approx(1, abs=0.02) and stream == pytest.approx(1, abs=0.25)


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_bf16_leaves_process_bias_and_softmax_in_float32_at_both_ends():
    """At log-SNR 13.3 a logit of the bias is of size 1e7: bf16 would not tell two rows apart."""
    schedule = Warped(PiecewiseCdf(-13.3, 13.3))
    network = Denoiser(schedule, Rows(60, 16), 16, width=32, depth=2, heads=2, hidden=64, level=16)
    network.ramp.fill_(1.0)
    rng, t = torch.Generator().manual_seed(0), torch.tensor([1e-6, 1.0])
    ids = torch.randint(60, (2, 16), generator=rng)
    alpha, sigma = (scale(t).view(2, 1, 1) for scale in (schedule.alpha, schedule.sigma))
    x = alpha * network.rows(ids) + sigma * torch.randn(2, 16, 16, generator=rng)
    h, levels = torch.randn(2, 16, 16, generator=rng), (schedule.alpha(t), schedule.sigma(t))
    exact = h @ network.rows.rows.T + network.rows.bias(x, *levels)
    with torch.autocast("cpu", torch.bfloat16):
        logits, named = network(x, t), network.named(h, x, *levels)
        belief = network.believe(logits)
    assert torch.equal(named, exact)
    assert logits.dtype == belief.dtype == torch.float32 and logits.isfinite().all() and belief.isfinite().all()
    assert torch.allclose(belief[0], network.rows(ids)[0])


def test_belief_is_the_mean_row(network):
    logits = torch.full((1, 1, network.rows.num_embeddings), -math.inf)
    logits[..., 7], logits[..., 9] = math.log(0.25), math.log(0.75)
    rows = network.rows.rows
    assert torch.allclose(network.believe(logits)[0, 0], 0.25 * rows[7] + 0.75 * rows[9])


def test_an_untied_head_has_a_matrix_of_its_own():
    network = text_module(sizes={"head": "untied"}).network
    assert network.out.out_features == network.rows.num_embeddings
    assert network(*states(network)).shape == (4, network.length, network.rows.num_embeddings)


def test_trunk_fields_are_the_arguments_of_the_network():
    """What a config may set is not forgotten on the way."""
    fields = {field.name for field in dataclasses.fields(Trunk)} - {"kind", "bias_ramp_updates"}
    given = {"schedule", "rows", "length", "causal", "hears", "prediction"}
    assert fields | given == {name for trunk in (Denoiser, Encoder) for name in inspect.signature(trunk).parameters}
