"""The earlier system: its network cell by cell, its recipe piece by piece, and its configs."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from packages.arc.views import turn
from projects.arc import ablate, dense
from projects.arc.compat import PRESETS, Compat
from projects.arc.data import HoldoutOptions
from projects.arc.dense import DenseDenoiser, Feedback, PostNormBlock, ViewLabels
from projects.arc.evaluate import score
from projects.arc.module import ArcModule, Noise, SelfCondition
from projects.arc.pairs import Augment, PairBatches
from shared.sampling import uniform_grid
from shared.training import pretrained
from shared.training.batches import Share
from shared.training.errors import Mistake
from tests.projects.arc.conftest import arc_batches, arc_data

CONFIGS = Path(__file__).parents[3] / "configs/arc/compat"
SIZES = {  # width, depth, heads, size hidden, arc1, arc2: parameters of preset late
    "toiny": (320, 3, 4, 216, 4_315_479, 4_417_879),
    "smol": (384, 4, 6, 256, 7_911_623, 8_034_503),
    "smol-deep": (192, 16, 4, 128, 7_410_055, 7_471_495),
    "mediom": (640, 6, 10, 432, 31_415_399, 31_620_199),
    "lorge": (896, 10, 14, 608, 99_803_399, 100_090_119),
    "huoge": (1280, 13, 20, 864, 262_119_815, 262_529_415),
    "giont": (1920, 20, 30, 1280, 898_478_791, 899_093_191),
    "test": (128, 2, 4, 128, 583_111, 624_071),
}
COLUMNS = (
    *("data.batch_size", "data.micro_batch", "trainer.max_steps", "optim.lr", "optim.warmup"),
    *("model.width", "model.depth", "model.heads", "model.size_weight", "model.compat.size_hidden"),
)


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    monkeypatch.setattr(ArcModule, "global_rank", 0)


def earlier(data, preset="early", max_steps=100, **options) -> ArcModule:
    """A tiny module of the earlier system, without dropout."""
    torch.manual_seed(0)
    given = {"width": 16, "depth": 1, "heads": 2, "noise": Noise(0.02), "self_condition": SelfCondition("same")}
    compat = options.pop("compat", Compat(preset, size_hidden=8))
    module = ArcModule(**{**given, **options}, compat=compat)
    module.adopt(data, None)
    module.configure_model()
    module._trainer = SimpleNamespace(max_steps=max_steps)
    return module


@pytest.fixture
def boards():
    return arc_data(batch_size=4)


def batch_of(data, update=0):
    order, pairs = arc_batches(data)
    pairs.side = data.side
    return pairs.build(order.shares(update)[0])


def believe(network, batch, t=0.5, belief=None):
    prefix = network.prefix(batch.question)
    times = torch.full((batch.num_samples,), t)
    return network(prefix, network.frame(prefix, batch.answer), batch.answer, times, belief), prefix


# --- the network


def torchs(block: PostNormBlock) -> nn.TransformerEncoderLayer:
    """torch's own layer with the weights of ours."""
    attention, width = block.attention, block.attention.q.in_features
    layer = nn.TransformerEncoderLayer(width, attention.heads, 4 * width, dropout=0.0, batch_first=True)
    parts = [attention.q, attention.k, attention.v]
    given = {
        "self_attn.in_proj_weight": torch.cat([part.weight for part in parts]),
        "self_attn.in_proj_bias": torch.cat([part.bias for part in parts]),
    }
    names = {"self_attn.out_proj": attention.o, "linear1": block.mlp.up, "linear2": block.mlp.down}
    names |= {"norm1": block.attention_norm, "norm2": block.mlp_norm}
    given |= {f"{name}.{kind}": getattr(part, kind) for name, part in names.items() for kind in ("weight", "bias")}
    layer.load_state_dict(given)
    return layer


def test_a_block_is_torchs_encoder_layer():
    torch.manual_seed(0)
    block, x = PostNormBlock(32, 4, 0.0), torch.randn(3, 50, 32)
    for p in block.parameters():
        nn.init.normal_(p, std=0.3)
    assert torch.allclose(block(x), torchs(block)(x), atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts_are_those_of_the_table(size):
    width, depth, heads, hidden, *counts = SIZES[size]
    for rows, count in zip((800, 1120), counts):
        for preset, less in (("late", 0), ("middle", 2 * width + 1), ("early", 2 * width + 1)):
            arguments = Compat(preset, size_hidden=hidden).arguments()
            with torch.device("meta"):
                network = DenseDenoiser(rows, None, width, depth, heads, **arguments)
            assert sum(p.numel() for p in network.parameters()) == count - less


def reference(network, batch, t, belief, gain):
    """Logits [M, 10] and sizes [B, 30 + 30], one example after another on boards of 30 x 30, through torch's layers."""
    layers, logits, sizes = [torchs(block) for block in network.blocks], [], []
    question, answer = batch.question, batch.answer

    def encoded(tokens):
        x = torch.stack(tokens)[None]
        for layer in layers:
            x = layer(x)
        return x[0]

    def place(row, col):
        return torch.cat([network.row.weight[row], network.col.weight[col]])

    for b in range(batch.num_samples):
        own = [(answer.segment == b).nonzero()[:, 0].tolist(), (question.cells.segment == b).nonzero()[:, 0].tolist()]
        asked = {(int(question.cells.row[n]), int(question.cells.col[n])): n for n in own[1]}
        drawn = {(int(answer.row[n]), int(answer.col[n])): n for n in own[0]}
        everywhere = [(row, col) for row in range(30) for col in range(30)]
        empty = torch.zeros(network.out.in_features)
        shown = [
            place(*at) + (network.colour.weight[question.cells.colour[asked[at]]] if at in asked else empty)
            for at in everywhere
        ]
        noisy = [
            place(*at) + network.colour.weight[answer.colour[drawn[at]]] + gain[b] * network.belief(belief[drawn[at]])
            if at in drawn
            else empty
            for at in everywhere
        ]
        task, view = network.tasks.weight[question.task[b]], list(network.view(question.d4, question.colours)[b])
        out = encoded([task, network.levels(t)[b], *view, *shown, *noisy])
        assert len(out) == 1 + 1 + len(view) + 1800
        logits.append(network.out(out[-900:])[[everywhere.index(at) for at in drawn]])
        sizes.append(network.size_head.layers(encoded([task, empty, *view, *shown])[-900:].mean(0)))
    return torch.cat(logits), torch.stack(sizes)


@pytest.mark.parametrize("preset", PRESETS)
def test_logits_are_those_of_boards_built_cell_by_cell(boards, preset):
    """Sequence, empty cells, labels, time, belief and size pass, and that packed cells land where they came from."""
    network = earlier(boards, preset, width=8).network.eval()
    batch = PairBatches(boards.examples(), 30, boards.augment, boards.randomness).build(Share.of([0, 7]))
    belief, gain = torch.rand(len(batch.answer.colour), 10).softmax(-1), torch.tensor([0.7, 0.0])
    logits, prefix = believe(network, batch, 0.5, Feedback(belief, gain))
    expected, sizes = reference(network, batch, torch.tensor([0.5, 0.5]), belief, gain)
    assert torch.allclose(logits, expected, atol=1e-4)
    height, width = (sizes[:, part].log_softmax(-1) for part in (slice(30), slice(30, 60)))
    joint = prefix.size_logits.view(2, 30, 30)
    assert torch.allclose(joint[:, 4, 6], height[:, 4] + width[:, 6], atol=1e-4)
    assert torch.allclose(joint.exp().sum((1, 2)), torch.ones(2), atol=1e-4)


def test_a_sequence_has_1804_tokens_or_1805(boards):
    seen = []
    for labels in ("d4", "rotation_flip"):
        network = earlier(boards, compat=Compat(labels=labels, size_hidden=8)).network
        network.blocks[0].register_forward_hook(lambda block, given, out: seen.append(given[0].shape[1]))
        believe(network, batch_of(boards))
    assert seen == [904, 1804, 905, 1805]


def test_turns_and_flips_spell_the_symmetries():
    """Both spellings: quarter turns, then rows and columns mirrored, make the grid that the symmetry makes."""
    labels, grid = ViewLabels(4, "rotation_flip"), np.arange(6).reshape(2, 3)
    d4 = torch.arange(8).repeat(40)
    met = set()
    for element, quarters, flip in zip(d4.tolist(), *(name.tolist() for name in labels.train().spelled(d4))):
        turned = np.rot90(grid, -quarters)
        turned = turned[::-1] if flip & 2 else turned
        assert np.array_equal(turned[:, ::-1] if flip & 1 else turned, turn(grid, element))
        met.add((quarters, flip))
    assert len(met) == 16
    assert all(int(name.max()) == most for name, most in zip(labels.eval().spelled(d4), (1, 3)))


def test_time_is_told_as_an_index_or_as_log_snr(boards, monkeypatch):
    """Every level of a walk of 128 steps is one of 0..127; log-SNR runs from 7.72 to -3.89."""
    asked = []
    monkeypatch.setattr(dense, "sinusoids", lambda value, width: asked.append(value) or torch.zeros(len(value), width))
    for preset in ("early", "middle"):
        earlier(boards, preset).network.levels(uniform_grid(128)[:-1].float())
    index, log_snr = asked
    assert torch.equal(index, torch.arange(127.0, -1, -1))
    assert log_snr[[127, 0]].tolist() == pytest.approx([7.72, -3.89], abs=0.005)


def test_the_size_pass_may_be_told_the_identity_only(boards):
    batch = batch_of(boards)
    other = replace(batch, question=replace(batch.question, d4=(batch.question.d4 + 1) % 8))
    for told, same in (("identity", True), ("true", False)):
        network = earlier(boards, compat=Compat(size_labels=told, size_hidden=8)).network.eval()
        logits, sizes = zip(
            *((said, prefix.size_logits) for said, prefix in (believe(network, b) for b in (batch, other)))
        )
        assert torch.equal(*sizes) == same and not torch.equal(*logits)


def test_withheld_inputs_leave_no_trace_and_the_others_are_rescaled_in_training(boards):
    network, batch = earlier(boards, condition_dropout=0.2).network, batch_of(boards)
    asked = replace(batch.question, hidden=torch.tensor([True, False, False, False]))
    whole = network.ask(batch.question)
    assert not network.train().ask(asked)[0].any() and torch.allclose(network.ask(asked)[1:], whole[1:] / 0.8)
    assert torch.equal(network.eval().ask(asked)[1:], whole[1:])


def test_many_views_are_read_in_parts_that_change_nothing(boards, monkeypatch):
    network, batch = earlier(boards).network.eval(), batch_of(boards)
    with torch.no_grad():
        whole, _ = believe(network, batch)
        monkeypatch.setattr(dense, "AT_ONCE", 3)
        parts, _ = believe(network, batch)
    assert torch.allclose(whole, parts, atol=1e-6)


def test_flops_are_those_torch_counts(boards):
    module, batch = earlier(boards, "late", self_condition=SelfCondition("same", 1.0)).to("meta"), batch_of(boards)
    batch = batch.to("meta")
    with FlopCounterMode(display=False) as counter:
        module.training_step(batch, 0)
    assert module.flops(batch) + module.extra_flops(batch) == counter.get_total_flops()


# --- the recipe


def test_a_preset_fills_what_is_not_said():
    assert Compat("late").arguments()["self_condition"] == "log_probabilities"
    said = Compat("late", time="index").arguments()
    assert (said["time"], said["labels"]) == ("index", "d4")


def test_colours_that_no_shift_can_tell_are_refused():
    with pytest.raises(Mistake, match="cyclic shifts"):
        earlier(arc_data(augment=Augment(colour="permute")))


def test_times_are_the_128_levels_alike(boards):
    module = earlier(arc_data(batch_size=4))
    batch = SimpleNamespace(num_samples=64_000, answer=SimpleNamespace(row=torch.zeros(1)))
    index = module.recipe.times(module, batch, torch.Generator().manual_seed(0)) * 128
    counts = index.long().bincount(minlength=129)
    assert torch.equal(index, index.round()) and counts[0] == 0
    assert (counts[1:] - 500).abs().max() < 5 * 500**0.5


def test_half_of_a_batch_hears_a_belief_a_quarter_zeros_ever_more_loudly(boards):
    batch = batch_of(boards)
    module, t = earlier(boards, max_steps=100), torch.full((4,), 0.5)
    belief = torch.rand(int(batch.answer.lengths[:2].sum()), 10)
    gains = []
    for update in (0, 40, 80, 99):
        batch.share = replace(batch.share, update=update)
        heard = module.recipe.heard(module, batch, t, belief)
        assert torch.equal(heard.belief[: len(belief)], belief) and not heard.belief[len(belief) :].any()
        assert torch.equal(heard.gain[:3], heard.gain[:1].expand(3)) and heard.gain[3] == 0
        gains.append(float(heard.gain[0]))
    assert gains == pytest.approx([0.3, 0.65, 1.0, 1.0])
    assert module.network.gain(torch.tensor([1.0, 0.6, 0.2, 0.0])).tolist() == pytest.approx(gains)


def test_one_coin_decides_for_a_late_batch_and_the_gain_follows_the_signal(boards):
    batch, module, t = batch_of(boards), earlier(boards, "late"), torch.tensor([1.0, 0.5, 0.25, 1 / 128])
    heard = []
    for update in range(200):
        batch.share = replace(batch.share, update=update)
        count = module.recipe.believed(module, batch)
        gain = module.recipe.heard(module, batch, t, None).gain
        assert torch.allclose(gain, (0.3 + 0.7 * module.process.alpha(t)) * (count == 4)) and count in (0, 4)
        heard.append(count == 4)
    assert 70 < sum(heard) < 130


def test_every_cell_weighs_the_same_and_none_that_is_empty(boards):
    """The loss is the mean over the answers' own cells, sizes beside it; accuracy counts these cells too."""
    module, batch = earlier(boards, "middle", size_weight=0.5, condition_dropout=0.0, dropout=0.0), batch_of(boards)
    said = []
    module.network.register_forward_hook(lambda network, given, out: said.append(out))
    out = module.training_step(batch, 0)
    logits, colour = said[-1], batch.answer.colour
    assert len(logits) == len(colour) == batch.answer.lengths.sum()
    sizes = module.network.prefix(batch.question).size_logits
    assert torch.isclose(out["loss"], F.cross_entropy(logits, colour) + 0.5 * F.cross_entropy(sizes, batch.size))
    right = [(logits.argmax(-1) == colour)[batch.answer.segment == b].float().mean() for b in range(4)]
    assert torch.isclose(out["logs"]["cell_acc"], torch.stack(right).mean())


@pytest.mark.parametrize("preset", PRESETS)
def test_it_learns_and_solves_through_the_ordinary_module(boards, preset):
    module = earlier(boards, preset, dropout=0.1 if preset == "late" else 0.0).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for update in range(3):
        out = module.training_step(batch_of(boards), update)
        optimizer.zero_grad()
        out["loss"].backward()
        assert all(p.grad is not None for p in module.parameters())
        optimizer.step()
        losses.append(float(out["loss"].detach()))
    assert losses[-1] < losses[0]
    options = replace(module.eval_options, views=2, num_steps=2)
    answered = module.eval().solver(options).all(boards.queries()[:1])
    assert len(answered[0].attempts) == 2 and answered[0].attempts[0].grid.max() < 10


def test_held_out_pairs_are_validated_with_sizes_counted_on_the_board():
    data = arc_data(holdout=HoldoutOptions(share=1.0))
    module, held = earlier(data).eval(), data.held()[:3]
    batch = data.pairs(held).build(Share.of(range(3)))
    classes = torch.tensor([(h - 1) * 30 + w - 1 for h, w in (e.pair.output.shape for e in held)])
    module.network.size_head.forward = lambda board: F.one_hot(classes, 900).float()
    with torch.no_grad():
        logs = module.validation_step(batch, 0)["logs"]
    assert logs["size_acc"][0] == 3 and {int(count) for _, count in logs.values()} == {3}
    assert logs["ce"][0] > 0 and all(value.isfinite() for value, _ in logs.values())


@pytest.mark.filterwarnings("ignore:orientation=unswapped")
def test_every_line_of_an_ablation_is_an_evaluation_of_the_earlier_system_too(boards):
    module, answers, queries = earlier(boards, width=8).eval(), score(boards), boards.queries()[:1]
    options, lines = replace(module.eval_options, num_steps=1, views=2), []
    for variant in ablate.variants(options, module.size_options, boards.augment.colour):
        if variant.cost <= 8 and not any(variant.same(other) for other in lines):
            lines.append(variant)
    shares = [ablate.shares(module, boards, queries, answers, variant).tolist() for variant in lines]
    assert lines[-1].name.startswith("all three") and all(found in ([0.0], [1.0]) for found in shares)


def test_a_network_made_again_from_its_description_gives_the_same_logits(boards):
    module, batch = earlier(boards, "late"), batch_of(boards)
    again = pretrained.rebuild(pretrained.description(module.network))
    again.load_state_dict(module.network.state_dict())
    assert torch.equal(believe(again.eval(), batch)[0], believe(module.network.eval(), batch)[0])


# --- the configs


def columns(config: dict) -> dict:
    """A config without what the table of sizes states."""
    for path in COLUMNS:
        *into, last = path.split(".")
        part = config
        for name in into:
            part = part[name]
        part.pop(last, None)
    return config


@pytest.mark.parametrize("size", SIZES)
def test_sizes_differ_in_the_columns_of_the_table_only(size):
    """The size for tests also has no dropout and looks at little."""
    own, smol = (columns(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())) for name in (size, "smol"))
    if size == "test":
        assert own.pop("snapshots") and own.pop("logging") and own["model"].pop("eval") and smol["model"].pop("eval")
        smol["model"].pop("dropout")
    assert own == smol


@pytest.mark.parametrize("size", SIZES)
def test_sizes_have_the_numbers_of_the_table(size):
    config = yaml.safe_load((CONFIGS / f"{size}.yaml").read_text())
    model = config["model"]
    seen = model["width"], model["depth"], model["heads"], model["compat"]["size_hidden"]
    assert seen == SIZES[size][:4]


def test_every_size_of_the_table_has_a_config():
    assert {file.stem for file in CONFIGS.glob("*.yaml") if not file.read_text().startswith("# overlay")} == set(SIZES)
