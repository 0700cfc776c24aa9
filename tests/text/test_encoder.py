"""The older trunk: what it counts, that it has the denoiser's face, and what it hears."""

import re

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from projects.text.encoder import Encoder
from projects.text.module import TextDiffusion
from projects.text.network import Trunk
from projects.text.rounding import Rows
from projects.text.warping import preserving
from shared.training.errors import Mistake
from shared.training.pretrained import description, rebuild
from tests.lines import awake
from tests.text.trunks import ENCODER, batch_of, states, text_module

BERT = {"level": 256, "level_hidden": 256, "level_into": "rows", "places": 0}


def shape(width, depth, heads, hidden, **more):
    return {"width": width, "depth": depth, "heads": heads, "hidden": hidden, **more}


LADDER = {  # ids, width of a row, length; sizes; parameters, those of b among them
    "diffusion_lm_e2e": (821, 16, 64, shape(768, 12, 12, 3072, level=128, places=512), 87_129_749),
    "earlier_bart": (15_000, 384, 64, shape(384, 3, 8, 1536, level=128, level_hidden=384, places=512),
                     11_478_144 + 15_000),
    "earlier_bert tiny": (15_000, 96, 32, shape(128, 1, 4, 512, **BERT), 1_786_560 + 15_000),
    "earlier_bert small": (22_000, 128, 48, shape(160, 2, 4, 640, **BERT), 3_626_016 + 22_000),
    "earlier_bert medium": (30_000, 128, 64, shape(256, 3, 4, 1024, **BERT), 6_505_472 + 30_000),
    "earlier_bert large": (30_000, 128, 64, shape(768, 12, 12, 3072, **BERT), 90_371_840 + 30_000),
}  # fmt: skip
TOLD = {"tiny": 1.84e6, "small": 3.69e6, "medium": 6.57e6, "large": 90.4e6}


@pytest.mark.parametrize("name", LADDER)
def test_the_recipes_count_as_stated(name):
    count, dim, length, sizes, parameters = LADDER[name]
    with torch.device("meta"):
        rows = Rows(count, dim, "free")
        made = Encoder(preserving("square_root"), rows, length, hears=False, prediction="x0", **sizes)
    assert sum(p.numel() for p in made.parameters()) == parameters


@pytest.mark.parametrize("size", TOLD)
def test_the_earlier_berts_count_as_theirs_with_512_places_and_a_norm_on_their_rows(size):
    count, dim, _, _, parameters = LADDER[f"earlier_bert {size}"]
    theirs = parameters - count + 512 * dim + 2 * dim
    assert theirs == pytest.approx(TOLD[size], rel=0.003)


@pytest.fixture(scope="module")
def network():
    return text_module(sizes=ENCODER).network


def test_it_names_tokens_or_gives_x0(network):
    x, t = states(network)
    assert network(x, t).shape == (4, network.length, network.rows.num_embeddings)
    made = text_module(sizes=ENCODER).network
    made.prediction, made.logit_bias = "x0", False
    out = made(x, t)
    assert out.shape == x.shape and torch.equal(made.believe(out), out)
    assert torch.equal(made.logits(out), out @ made.rows.rows.T + made.common)


def test_without_places_the_order_is_nothing_to_it():
    network = text_module(sizes={**ENCODER, "places": 0}).network
    x, t = states(network, 1)
    assert network.norm is None and torch.allclose(network(x, t), network(x.flip(1), t).flip(1), atol=1e-4)


def test_a_causal_one_does_not_see_the_future():
    network = text_module(sizes=ENCODER, objective="autoregressive").network
    x, _ = states(network, 1)
    moved = x.clone()
    moved[:, 7:] += 1
    one, other = (network(each, torch.zeros(1)) for each in (x, moved))
    assert torch.allclose(one[:, :7], other[:, :7], atol=1e-6) and not torch.allclose(one[:, 7:], other[:, 7:])


@pytest.mark.parametrize("into", ["stream", "rows"])
def test_the_same_state_at_another_level_is_read_otherwise(into):
    network = text_module(sizes={**ENCODER, "level_into": into, "logit_bias": False}).network
    x, _ = states(network, 1)
    one, other = (network(x, torch.tensor([t])) for t in (0.4, 0.5))
    assert not torch.allclose(one, other, atol=1e-3)


def test_dropout_is_of_training_alone():
    network = text_module(sizes={**ENCODER, "dropout": 0.5}).network
    x, t = states(network)
    assert torch.equal(network(x, t), network(x, t))
    assert not torch.allclose(network.train()(x, t), network(x, t))


class Adapted(torch.nn.Linear):
    """What it wraps, and more."""

    def forward(self, x):
        return super().forward(x) + 1


def test_what_adapters_wrap_is_asked_in_evaluation_too():
    """torch's shortcut for evaluation reads the weights and passes by the layers."""
    network = text_module(sizes=ENCODER).network
    x, t = states(network)
    with torch.no_grad():
        before = network(x, t)
        network.blocks[0].linear1.__class__ = Adapted
        assert not torch.allclose(network(x, t), before, atol=1e-3)
    assert re.match(TextDiffusion.lora_targets, "blocks.0.linear1")


def test_a_start_sets_every_weight():
    """As after a build on the meta device."""
    network = text_module(asleep=True, sizes=ENCODER).network
    with torch.no_grad():
        for part in (*network.parameters(), *network.buffers()):
            if part.is_floating_point():
                part.fill_(torch.nan)
        network.rows.weight.normal_()
    network.warp.location.fill_(1.0), network.warp.scale.fill_(1.0)
    network.reset_parameters()
    assert all(part.isfinite().all() for part in network.state_dict().values())
    assert network.level.frequency.isfinite().all()


def test_it_is_made_again_from_what_a_file_says(network):
    made = rebuild(description(network)).eval()
    made.load_state_dict(network.state_dict())
    assert torch.equal(made(*states(network)), network(*states(network)))


@pytest.mark.parametrize("own", [{}, {"conditioning": "additive"}, ENCODER], ids=["denoiser", "additive", "encoder"])
@pytest.mark.parametrize("objective", ["cross_entropy", "masked", "autoregressive"])
def test_what_a_pass_is_said_to_cost_is_what_torch_counts(own, objective):
    network = text_module(objective=objective, sizes=own).network.train()
    x, t = states(network)
    belief = None if network.belief is None else x
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(x, t, belief)
    assert network.flops(4, 4 * network.length) == counter.get_total_flops()


def test_what_only_the_encoder_has_is_refused_elsewhere():
    with pytest.raises(ValueError, match=r"model\.network\.dropout is set, which the encoder alone has"):
        Trunk(dropout=0.1)
    with pytest.raises(Mistake, match=r"places is 8, a row has 16 tokens"):
        text_module(sizes={**ENCODER, "places": 8})


def test_a_training_step_reaches_every_weight():
    module = text_module(sizes=ENCODER)
    awake(module.network)
    module.training_step(batch_of(module), 0)["loss"].backward()
    assert [n for n, p in module.network.named_parameters() if p.grad is None or not p.grad.any()] == []
