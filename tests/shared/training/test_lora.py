"""Laws of adapters: nothing changes at the start, everything that should learn learns, the base never moves, folding is
exact, and what a file of an adapted run holds is small, complete and bound to its base."""

import re
from dataclasses import asdict

import pytest
import torch
from torch import nn

from shared.networks import Block
from shared.training import adapting, checkpoints, hardware, lora, pretrained
from shared.training.checkpoints import SCHEMA
from shared.training.errors import Mistake
from shared.training.lora import LoraOptions, Rows
from tests.shared.training import loop
from tests.shared.training.loop import Setting, die_at, train

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

TARGETS = r"blocks\.\d+\.(attention\.[qkvo]|mlp\.(gate|up|down))$"
KINDS = ("q", "k", "v", "o", "gate", "up", "down")


class Network(nn.Module):
    """Words in a row -> logits of the next ones; starts with a read-out that says something."""

    def __init__(self, width: int = 32, depth: int = 2, words: int = 5):
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(Block(width, max(1, width // 64), mlp_multiple=16) for _ in range(depth))
        self.out = nn.Linear(width, 7)

    def forward(self, ids):
        x = self.words(ids)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


class Module(nn.Module):
    lora_targets = TARGETS

    def __init__(self, seed: int = 0, **sizes):
        super().__init__()
        torch.manual_seed(seed)
        self.network = pretrained.build(Network, **sizes)


IDS = torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1]])


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    """Networks of this file may be made from a file."""
    monkeypatch.setattr(pretrained, "ROOMS", (*pretrained.ROOMS, "tests"))


def save(module, path, **told):
    """A checkpoint of the module as it is."""
    state = {name: value.clone() for name, value in adapting.own(module, module.state_dict()).items()}
    origin = {"schema": SCHEMA, "project": "toy", "size": "nano", **pretrained.origin(module)}
    torch.save({"state_dict": state, "palimpsest": origin, **told}, path)
    return path


@pytest.fixture
def base(tmp_path):
    return save(Module(), tmp_path / "base.ckpt")


def adapted(base, seed=1, sizes=None, **options):
    module = Module(seed, **(sizes or {}))
    adapting.attach(module, LoraOptions(enabled=True, **options), base)
    return module


def learn(module, steps=1, lr=0.1):
    """A few updates of what may learn; returns the gradients of the last one."""
    learning = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(learning.values(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        module.network(IDS).square().sum().backward()
        gradients = {name: p.grad.clone() for name, p in learning.items()}
        optimizer.step()
    return gradients


def frozen(module):
    return {re.sub(r"\.(token_adapter\.)?base_layer\.", ".", n): p for n, p in module.named_parameters()}


@pytest.mark.parametrize("options", [{}, {"init": "gaussian"}, {"rslora": True}, {"train_rows": [Rows("words", [1])]}])
def test_at_the_start_the_output_is_bitwise_that_of_the_base(base, options):
    assert torch.equal(adapted(base, **options).network(IDS), Module().network(IDS))


@pytest.mark.parametrize("options", [{"init": "orthogonal"}, {"init": "pissa"}, {"init": "olora"}, {"dora": True}])
def test_at_the_start_the_output_is_that_of_the_base_up_to_rounding(base, options):
    torch.testing.assert_close(adapted(base, **options).network(IDS), Module().network(IDS), rtol=0, atol=1e-5)


def test_after_one_step_every_B_has_a_gradient_and_every_kind_of_layer_is_covered(base):
    gradients = learn(adapted(base))
    into_b = {name: float(g.abs().sum()) for name, g in gradients.items() if "lora_B" in name}
    assert len(into_b) == 2 * len(KINDS) and min(into_b.values()) > 0
    assert {name.split(".lora_B")[0].split(".")[-1] for name in into_b} == set(KINDS)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 6 / 4), (True, 6 / 2)])
def test_an_adapter_adds_alpha_over_r_times_B_A_and_over_the_root_of_r_if_rslora(base, rslora, scale):
    module = adapted(base, r=4, alpha=6, rslora=rslora)
    layer = module.network.blocks[0].mlp.up
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    nn.init.normal_(b)
    x = torch.randn(3, 32)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + scale * x @ a.T @ b.T)


def test_eva_looks_where_the_inputs_of_a_layer_vary_most(base):
    module = Module()
    options = LoraOptions(enabled=True, init="eva", r=3, targets=r"^blocks\.0\.attention\.q$")
    adapting.attach(module, options, base, feed=lambda: module.network(IDS))
    assert torch.equal(module.network(IDS), Module().network(IDS))
    layer, network = module.network.blocks[0].attention.q.lora_A["default"], Module().network
    x = network.blocks[0].attention_norm(network.words(IDS)).flatten(0, 1)
    kept = x @ layer.weight.T @ layer.weight
    lost = torch.linalg.svdvals(x)[3:].square().sum()  # by any three directions, at least (Eckart & Young 1936)
    torch.testing.assert_close((x - kept).square().sum(), lost, rtol=1e-3, atol=1e-4)


def test_eva_names_a_layer_that_training_never_runs(base):
    with pytest.raises(Mistake, match=r"no training step runs blocks\.0\.attention\.q"):
        adapting.attach(Module(), LoraOptions(enabled=True, init="eva"), base, feed=lambda: None)


def test_the_base_does_not_move(base):
    module = adapted(base, train_rows=[Rows("words", [1, 4])])
    learn(module, steps=3)
    now = frozen(module)
    for name, value in Module().named_parameters():
        assert torch.equal(now[name], value) and not now[name].requires_grad, name


def test_chosen_rows_and_layers_learn_and_others_do_not(base):
    module = adapted(base, train_rows=[Rows("words", [1, 4])], modules_to_save=["out"])
    learn(module, steps=3)
    lora.merge(module.network)
    moved = (module.network.words.weight != Module().network.words.weight).any(1)
    assert moved.tolist() == [False, True, False, False, True]
    assert not torch.equal(module.network.out.weight, Module().network.out.weight)
    assert torch.equal(module.network.blocks[0].mlp_norm.weight, Module().network.blocks[0].mlp_norm.weight)


def test_rows_alone_learn_without_any_adapter(base):
    module = adapted(base, train_rows=[Rows("words", [1, 4])], tune="rows")
    learning = [name for name, p in module.named_parameters() if p.requires_grad]
    assert learning == ["network.words.token_adapter.trainable_tokens_delta.default"]
    assert set(adapting.own(module, module.state_dict())) >= set(learning)
    with pytest.raises(Mistake, match=r"lora\.tune is rows and no rows are named"):
        adapted(base, tune="rows")


VARIANTS = [
    {},
    {"rslora": True, "r": 4, "alpha": 3},
    {"dora": True},
    {"init": "orthogonal", "dropout": 0.5},
    {"init": "pissa"},
    {"init": "olora"},
    {"init": "eva"},
    {"train_rows": [Rows("words", [0, 3])], "modules_to_save": ["out", "blocks.1.mlp.up"]},
    {"train_rows": [Rows("words", [0, 3])], "tune": "rows"},
]


@pytest.mark.parametrize("options", VARIANTS)
def test_folded_is_unfolded_and_has_the_names_of_the_base(base, options):
    module = adapted(base, **options)
    learn(module, steps=3, lr=0.02)
    before = module.eval().network(IDS)
    assert lora.merge(module.network) <= 1e-5
    torch.testing.assert_close(module.network(IDS), before, rtol=0, atol=1e-5)
    assert list(module.state_dict()) == list(Module().state_dict())


@pytest.mark.parametrize("options", VARIANTS)
def test_saved_loaded_and_folded_is_what_was_saved(base, tmp_path, options):
    module = adapted(base, **options)
    learn(module, steps=3, lr=0.02)
    before = module.eval().network(IDS)
    path = save(module, tmp_path / "adapted.ckpt")
    again = Module(seed=5).eval()
    pretrained.load(again, path)
    assert torch.equal(again.network(IDS), before)
    lora.merge(again.network)
    torch.testing.assert_close(again.network(IDS), before, rtol=0, atol=1e-5)


def test_a_table_that_grew_starts_its_new_rows_near_the_mean_of_the_known_ones(base, tmp_path):
    module = adapted(base, sizes={"words": 7}, train_rows=[Rows("words", [5, 6])])
    words = module.network.words.weight
    known = Module().network.words.weight
    assert torch.equal(words[:5], known)
    assert not torch.equal(words[5], words[6])
    torch.testing.assert_close(words[5:], known.mean(0).expand(2, -1), rtol=0, atol=0.06)
    learn(module)
    path, again = save(module, tmp_path / "adapted.ckpt"), Module(words=7)
    pretrained.load(again, path)
    assert torch.equal(again.network(IDS + 2), module.network(IDS + 2))


def test_a_table_that_grew_without_rows_to_train_is_another_architecture(base):
    with pytest.raises(Mistake, match=r"network.words.weight is \[5, 32\], wanted \[7, 32\]"):
        adapted(base, sizes={"words": 7})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": "nothing"}, "matches no linear layer. There are for example: "),
        ({"exclude": "."}, "matches no linear layer"),
        ({"modules_to_save": ["outt"]}, "lora.modules_to_save: the network has no outt. Did you mean `out`"),
        ({"train_rows": [Rows("word", [0])]}, "lora.train_rows: the network has no word. Did you mean `words`"),
        ({"train_rows": [Rows("words", [0, 5])]}, "words has 5 rows, none is number 5"),
    ],
)
def test_names_that_match_nothing_are_refused(base, options, words):
    with pytest.raises(Mistake, match=re.escape(words)):
        adapted(base, **options)


def test_zero_targets_name_five_candidates(base):
    with pytest.raises(Mistake) as refused:
        adapted(base, targets="nothing")
    named = str(refused.value).partition("example: ")[2].rstrip(".").split(", ")
    assert len(named) == 5 and set(named) <= {name for name, _ in Module().network.named_modules()}


@pytest.mark.parametrize("wrong", [{"r": 0}, {"alpha": 0}, {"dropout": 1.0}, {"init": "orthogonal", "r": 3}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"lora\.\w+ is "):
        LoraOptions(**wrong)


def test_adapters_are_refused_on_another_base_and_follow_one_that_moved(base, tmp_path):
    path = save(adapted(base), tmp_path / "adapted.ckpt")
    moved = base.rename(tmp_path / "moved.ckpt")
    with pytest.raises(Mistake, match=r"base\.ckpt, the base of these adapters, does not exist\. .*--lora\.base"):
        pretrained.load(Module(), path)
    pretrained.load(Module(), path, base=moved)
    save(Module(seed=9), base)
    with pytest.raises(Mistake, match=r"is not the base .*--lora\.base"):
        pretrained.load(Module(), path)


def test_an_adapted_run_is_no_base(base, tmp_path):
    with pytest.raises(Mistake, match=r"is itself adapted\. Export it with merge"):
        adapted(save(adapted(base), tmp_path / "adapted.ckpt"))


def test_an_adapted_run_goes_on_with_the_options_it_was_begun_with(base):
    said = pretrained.origin(adapted(base))["lora"]
    adapting.attach_again(module := Module(), LoraOptions(enabled=True), said)
    assert pretrained.origin(module)["lora"] == said
    with pytest.raises(Mistake, match=r"lora.r is 4, the run was begun with 8"):
        adapting.attach_again(Module(), LoraOptions(enabled=True, r=4), said)


def test_what_is_missing_or_too_much_beside_the_base_is_refused(base, tmp_path):
    path = save(adapted(base), tmp_path / "adapted.ckpt")
    content = torch.load(path, weights_only=True)
    content["state_dict"]["network.extra"] = content["state_dict"].pop("network.blocks.0.mlp.up.lora_A.default.weight")
    torch.save(content, path)
    with pytest.raises(Mistake, match=r"missing network.blocks.0.mlp.up.lora_A.*unexpected network.extra"):
        pretrained.load(Module(), path)


@pytest.mark.parametrize("options", [LoraOptions(), LoraOptions(enabled=True, tune="full")])
def test_without_adapters_the_base_is_loaded_and_all_of_it_learns(base, options):
    module = Module(seed=3)
    adapting.attach(module, options, base)
    assert torch.equal(module.network(IDS), Module().network(IDS))
    assert all(p.requires_grad for p in module.parameters()) and not hasattr(module, "adapted")


# in a training loop


class Row(nn.Module):
    """Four numbers as four tokens through blocks."""

    def __init__(self, width: int, depth: int):
        super().__init__()
        self.input, self.output = nn.Linear(1, width), nn.Linear(width, 1)
        self.blocks = nn.ModuleList(Block(width, width // 64) for _ in range(depth))

    def forward(self, x):
        x = self.input(x[..., None])
        for block in self.blocks:
            x = block(x)
        return self.output(x)[..., 0]


class RowModule(loop.Module):
    lora_targets = TARGETS

    def __init__(self, base=None, width=64, depth=1):
        super().__init__()
        torch.manual_seed(3)
        self.network = pretrained.build(Row, width=width, depth=depth)
        if base is not None:
            adapting.attach(self, LoraOptions(enabled=True), base)

    def draw(self, folder, update):
        return []

    def results(self, folder):
        return None


def loop_on(monkeypatch, root, name, base, setting, resume=False, **sizes):
    monkeypatch.setattr(loop, "Module", lambda *_: RowModule(base, **sizes))
    return train(root, name, setting, resume=resume)


def test_an_adapted_run_that_is_killed_and_resumed_is_bitwise_the_uninterrupted_one(monkeypatch, tmp_path):
    base = save(RowModule(), tmp_path / "base.ckpt")
    whole, module = loop_on(monkeypatch, tmp_path, "whole", base, Setting())
    with pytest.raises(loop.Killed):
        loop_on(monkeypatch, tmp_path, "killed", base, Setting(extra=die_at(10)))
    killed, again = loop_on(monkeypatch, tmp_path, "killed", base, Setting(), resume=True)
    assert (whole.folder / "metrics.csv").read_text() == (killed.folder / "metrics.csv").read_text()
    for (name, a), b in zip(module.state_dict().items(), again.state_dict().values()):
        assert torch.equal(a, b), name


def test_a_file_holds_adapters_their_average_and_their_moments_and_nothing_frozen(monkeypatch, tmp_path):
    base = save(RowModule(), tmp_path / "base.ckpt")
    run, module = loop_on(monkeypatch, tmp_path, "a", base, Setting(updates=4, validate_every=None))
    stored = checkpoints.read(run.checkpoints / "last.ckpt")
    ours = {name for name, p in module.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in ours) and len(ours) == 2 * len(KINDS)
    assert set(stored["state_dict"]) == set(stored["current_model_state"]) == ours
    assert set(stored["averaging_state"]["shadow"]) == ours
    assert len(stored["optimizer_states"][0]["state"]) == len(ours)
    said = stored["palimpsest"]["lora"]
    assert said["sha256"] == checkpoints.fingerprint(checkpoints.read(base)["state_dict"]) and said["base"] == str(base)
    assert said["options"] == asdict(LoraOptions(enabled=True, targets=TARGETS))


def test_adapters_are_2_and_resume_files_6_percent_of_a_base_of_20_million(monkeypatch, tmp_path):
    sizes = {"width": 1024, "depth": 2}
    base = save(RowModule(**sizes), tmp_path / "base.ckpt")
    assert sum(p.numel() for p in RowModule(**sizes).parameters()) >= 20e6
    setting = Setting(updates=1, validate_every=None)
    run, module = loop_on(monkeypatch, tmp_path, "a", base, setting, **sizes)
    adapters = save(module, tmp_path / "adapters.ckpt").stat().st_size
    whole = base.stat().st_size
    assert adapters <= 0.02 * whole, adapters / whole
    assert (run.checkpoints / "last.ckpt").stat().st_size <= 0.06 * whole


def test_an_adapted_network_compiles_in_place(base, monkeypatch):
    """The compiled blocks run, give what they gave before, and names in files stay plain."""
    seen = []

    def backend(graph, _):
        seen.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", lambda part, **_: set_compiled(part, backend))
    module = adapted(base)
    before, names = module.network(IDS), list(module.state_dict())
    hardware.apply(hardware.HardwareOptions(compile="blocks"), module.network)
    torch.testing.assert_close(module.network(IDS), before)
    assert seen and any("lora" in str(node) for graph in seen for node in graph.graph.nodes)
    assert list(module.state_dict()) == names


def set_compiled(part, backend):
    part._compiled_call_impl = torch.compile(part._call_impl, backend=backend)
