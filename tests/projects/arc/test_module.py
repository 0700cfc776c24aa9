"""The training step: what it counts, what it leaves alone, and what the walk may ask of it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from packages.arc.tasks import TaskSet
from projects.arc.module import ArcModule, SelfCondition
from projects.arc.network import GridDenoiser
from projects.arc.objective import per_example
from projects.arc.packing import GridStore, commonest
from projects.arc.pairs import Augment
from projects.arc.sampling import WalkOptions
from projects.arc.size import SizeOptions
from projects.arc.walking import Denoiser, walk
from shared.training import adapting, hardware, lora, optim, pretrained
from shared.training.batches import Share
from tests.lines import ROOT
from tests.projects.arc.conftest import TASKS, arc_batches, arc_data, arc_module


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    monkeypatch.setattr("projects.arc.module.ArcModule.global_rank", 0)


def step(module, batch):
    module.zero_grad()
    out = module.training_step(batch, 0)
    out["loss"].backward()
    return out, {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_every_parameter_learns(data, batch):
    _, grads = step(arc_module(data, condition_dropout=0.5).train(), batch)
    silent = [name for name, p in arc_module(data).named_parameters() if name not in grads or not grads[name].any()]
    assert not silent


@pytest.mark.parametrize(
    "options", [{"condition_dropout": 0.0}, {"self_condition": SelfCondition(share=0.0)}, {}], ids=str
)
def test_every_parameter_that_may_learn_has_a_gradient_in_every_step_however_small(data, options):
    """Ranks wait for it."""
    module, pairs = arc_module(data, **options).train(), arc_batches(data)[1]
    _, grads = step(module, pairs.build(Share.of([0])))
    assert grads.keys() == {name for name, p in module.named_parameters() if p.requires_grad}


def test_three_micro_batches_of_unequal_cells_and_counts_equal_one_batch(data):
    """Self-conditioning and withheld inputs off: they are drawn per micro-batch."""
    module = arc_module(data, condition_dropout=0.0, self_condition=SelfCondition(share=0.0)).train()
    whole, pairs = arc_batches(data)
    split, _ = arc_batches(data, accumulate=3)
    _fix_noise(module)
    _, expected = step(module, pairs.build(whole.shares(2)[0]))
    module.zero_grad()
    parts = [pairs.build(share) for share in split.shares(2)]
    assert len({part.num_samples for part in parts}) > 1 < len({part.num_units for part in parts})
    for part in parts:
        (module.training_step(part, 0)["loss"] / 3).backward()  # as the Trainer does
    for name, p in module.named_parameters():
        if name in expected:
            assert torch.allclose(p.grad, expected[name], atol=1e-6), name


def _fix_noise(module):
    """Noise that is a function of the clean cells alone, so that it is equal however the batch is cut."""
    process = module.process

    def draw(x0, rng):
        one = process.draw(torch.zeros(1, dtype=torch.int64), torch.Generator().manual_seed(0))
        return type(one)(one.u.expand(x0.shape), (x0 + 3) % 10)

    module.process = SimpleNamespace(draw=draw, corrupt=process.corrupt)


def test_a_large_and_a_small_grid_weigh_the_same(data, batch):
    """The loss of an example is the mean over its own cells."""
    logits = torch.zeros(len(batch.answer.colour), 10)
    large = int(batch.answer.lengths.argmax())
    logits[batch.answer.segment == large, 0] = 50.0
    loss = per_example(logits, batch.answer)
    own = batch.answer.colour[batch.answer.segment == large]
    assert torch.isclose(loss[large], 50.0 * (own != 0).float().mean(), atol=1e-3)
    others = torch.arange(len(loss)) != large
    assert torch.allclose(loss[others], torch.full_like(loss[others], 10.0).log())


def test_self_conditioning_takes_no_gradient_and_moves_no_generator(data, batch):
    """Its pass runs beside the step: no global random number is drawn, and what it saw is a constant."""
    module = arc_module(data).train()
    seen = []
    forward = module.network.forward
    module.network.forward = lambda *a: seen.append(a[-1] if len(a) == 5 else None) or forward(*a)
    before = torch.get_rng_state()
    step(module, batch)
    assert torch.equal(before, torch.get_rng_state())
    assert seen[0] is None and not seen[1].requires_grad
    assert len(seen[1]) == int(batch.answer.lengths[: batch.num_samples // 2].sum())


def test_the_learning_pass_drops_the_same_cells_with_an_earlier_belief_and_without(data, batch):
    states = []
    for share in (0.0, 0.5):
        module = arc_module(data, dropout=0.5, self_condition=SelfCondition("same", share)).train()
        module.network.register_forward_pre_hook(lambda *_: states.append(torch.get_rng_state()))
        torch.manual_seed(1)
        step(module, batch)
    without, _, learning = states
    assert torch.equal(without, learning)


@pytest.mark.parametrize("at", ["same", "earlier"])
def test_the_earlier_belief_is_that_of_a_noisier_moment(data, batch, at):
    module = arc_module(data, self_condition=SelfCondition(at=at)).train()
    asked = []
    forward = module.network.forward
    module.network.forward = lambda *a: asked.append(a[3]) or forward(*a)
    step(module, batch)
    earlier, now = asked[0], asked[1][: len(asked[0])]
    assert (earlier == now).all() if at == "same" else (earlier > now).all()
    assert earlier.max() <= 1


def test_the_walk_asks_for_times_and_beliefs_that_training_drew(data, batch):
    """First level 1, no level outside (0, 1], and an earlier belief that is a distribution, or none at the start."""
    module, asked = arc_module(data).eval(), []
    forward = GridDenoiser.forward
    module.network.forward = lambda *a: asked.append((a[3], a[4])) or forward(module.network, *a)
    prefix = module.network.prefix(batch.question)
    for steps in (1, 2, 8, 32):
        asked.clear()
        denoise, rng = Denoiser(module.network, prefix, batch.answer), torch.Generator().manual_seed(0)
        walk(denoise, batch.answer, module.process, WalkOptions(steps), rng)
        times = [float(t[0]) for t, _ in asked]
        assert len(times) == steps and times[0] == 1.0 and 0 < times[-1] <= 1
        assert asked[0][1] is None
        for _, belief in asked[1:]:
            assert torch.allclose(belief.sum(-1), torch.ones(len(belief)))


def test_a_colour_outside_the_ten_is_refused(data, batch):
    module = arc_module(data)
    wrong = replace(batch.answer, colour=torch.full_like(batch.answer.colour, 10))
    with pytest.raises(ValueError, match="10"):
        module.training_step(replace(batch, answer=wrong), 0)


def test_logs_count_every_example_once(data, batch):
    logs = arc_module(data).training_step(batch, 0)["logs"]
    for kind in ("ce", "cell_acc"):
        counts = [logs[f"{kind}_{level}_noise"][1] for level in ("low", "mid", "high")]
        assert int(sum(counts)) == batch.num_samples
    assert sum(logs[f"count_{level}_noise"] for level in ("low", "mid", "high")) == batch.num_samples
    sums = sum(logs[f"ce_{level}_noise"][0] for level in ("low", "mid", "high"))
    assert torch.isclose(sums / batch.num_samples, logs["ce"], atol=1e-5)
    assert not any(v.requires_grad for value in logs.values() for v in (value if isinstance(value, tuple) else [value]))


def test_counts_of_micro_batches_are_those_of_the_update(data):
    """Logs are averaged over micro-batches, so each stands for all of them."""
    split, pairs = arc_batches(data, accumulate=4)
    module = arc_module(data)
    logs = [module.training_step(pairs.build(share), 0)["logs"] for share in split.shares(0)]
    assert sum(each[f"count_{level}_noise"] for each in logs for level in ("low", "mid", "high")) / 4 == 8


def test_the_floor_is_what_one_colour_gets_right():
    cells = GridStore([np.array([[1, 1, 2]]), np.array([[5]]), np.array([[0, 1], [2, 3]])]).cells(np.arange(3))
    assert commonest(cells, 10).tolist() == pytest.approx([2 / 3, 1, 1 / 4])


def test_rows_learn_at_a_rate_of_their_own_without_decay(data):
    """As the sizes say it; every matrix decays, no other embedding does."""
    base, smol = (yaml.safe_load((ROOT / f"configs/arc/{name}.yaml").read_text())["optim"] for name in ("base", "smol"))
    said = {**base, **smol, "groups": [optim.Group(**group) for group in smol["groups"]]}
    recipe = optim.Recipe(**said)
    network = arc_module(data).network
    found = {id(p): group for group in optim.groups(network, recipe) for p in group["params"]}
    rates = {name: (found[id(p)]["lr"], found[id(p)]["weight_decay"]) for name, p in network.named_parameters()}
    assert rates["tasks.weight"] == (1e-2, 0.0) and rates["colour.weight"] == (1e-3, 0.0)
    assert rates["blocks.0.mlp.up.weight"] == (1e-3, 0.1) and rates["norm.weight"] == (1e-3, 0.0)
    assert [name for name, (rate, _) in rates.items() if rate != 1e-3] == ["tasks.weight"]


def test_what_is_compiled_is_the_loss_path_and_few_graphs_serve_all_shapes(data, monkeypatch):
    """Each pass through a block is one call of a compiled graph. As on a card, the layout has no groups."""
    made, calls = [], []

    def backend(graph, inputs):
        made.append(graph)
        return lambda *given: calls.append(graph) or graph.forward(*given)

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *given, **options: compiler(*given, **options | {"backend": backend}))
    monkeypatch.setenv("ATTENTION", "mask")
    torch._dynamo.reset()
    module, (order, pairs) = arc_module(data).train(), arc_batches(data)
    plain = arc_module(data).train()
    hardware.apply(hardware.HardwareOptions(compile="blocks"), module.network)
    for update in range(4):
        calls.clear()
        batch = pairs.build(order.shares(update)[0])
        loss, _ = step(module, batch)
        assert len(calls) == 1 + 2 + 2 + 2  # prefix but for its last block, size token, earlier belief, body
        assert torch.allclose(loss["loss"], step(plain, batch)[0]["loss"], atol=1e-5)
    assert len(made) <= 8


def test_the_checkpoint_names_the_rows_and_they_win_over_the_data(data):
    module = arc_module(data)
    stored: dict = {}
    module.on_save_checkpoint(stored)
    other = arc_data(tasks=["3c9b0459", "6d0aefbc"])
    loaded = arc_module(other)
    assert loaded.task_ids == ("3c9b0459", "6d0aefbc")
    loaded.adopt(other, stored)
    assert loaded.task_ids == data.task_ids


def stored_by(data) -> dict:
    """What a module trained on that data leaves in its checkpoint."""
    stored: dict = {}
    arc_module(data).on_save_checkpoint(stored)
    return stored


def test_a_checkpoint_that_saw_the_answer_of_a_query_is_not_judged_by_it(data):
    """One that saw a task's demos is; one that saw its test pairs as well is not, be it adapted in between."""
    demos = stored_by(data)
    shown = arc_data(tasks=TASKS[:2], split="evaluation", train_sets=["training:revealed"])
    shown.evaluated = TaskSet((), "none", "")  # pools are checked against what is evaluated; here nothing is
    revealed = stored_by(shown)
    asked = arc_data(tasks=TASKS[:2])
    arc_module(data).adopt(asked, demos)
    with pytest.raises(ValueError, match=r"trained on the inputs of 3 of 3 evaluated queries \(25ff71a9#0, .*allow"):
        arc_module(data).extend(arc_data(tasks=TASKS[:2]), revealed)
    arc_module(data).extend(arc_data(tasks=TASKS[:2], overlap="allow"), revealed)
    between = arc_data(tasks=TASKS[2:4])
    arc_module(between).extend(between, revealed)
    with pytest.raises(ValueError, match="trained on the inputs"):
        arc_module(data).extend(arc_data(tasks=TASKS[:2]), stored_by(between))


def test_an_unknown_task_has_no_row_and_gets_no_default():
    data = arc_data()
    data.built_for(10, ("25ff71a9",), extend=False)
    for ask in (data.queries, data.examples):
        with pytest.raises(ValueError, match=r"task 3c9b0459 has no row in the checkpoint"):
            ask()


def test_a_checkpoint_that_is_adapted_keeps_its_rows_and_the_pairs_of_other_tasks_get_rows_after_them(data):
    stored: dict = {}
    arc_module(arc_data(tasks=["d037b0a7", "25ff71a9"])).on_save_checkpoint(stored)
    other = arc_data(tasks=["3c9b0459", "d037b0a7", "6d0aefbc"])
    module = arc_module(other)
    module.extend(other, stored)
    assert module.task_ids == ("25ff71a9", "d037b0a7", "3c9b0459", "6d0aefbc")
    assert {(e.row, e.pair) for e in other.examples()} == {
        (module.task_ids.index(task.id), pair) for task in other.pools.training for pair in task.demos
    }
    assert [query.row for query in other.queries()] == [module.task_ids.index(id) for id in other.evaluated.ids]
    assert module.lora_rows[0].rows == [2, 3, 1]


def test_a_task_wider_than_the_checkpoint_is_one_sentence(data):
    stored: dict = {}
    arc_module(data).on_save_checkpoint(stored)
    wide = arc_data(tasks=["007bbfb7"], max_size=30)
    with pytest.raises(ValueError, match=r"data.max_size is 30, CKPT was built for 10"):
        arc_module(arc_data()).extend(arc_data(tasks=None, max_size=30), stored)
    stored["tasks"]["side"] = 5
    with pytest.raises(ValueError, match="task 007bbfb7 needs side 9, CKPT was built for max_size 5"):
        arc_module(arc_data()).extend(wide, stored)


def test_a_recolouring_is_learnt_under_all_views_and_not_without_the_colour_token(tmp_path):
    """1 becomes 2 and 3 becomes 6: under cyclic shifts one input has two answers, unless the shift is told."""
    demos = [{"input": [[a] * 2] * 2, "output": [[b] * 2] * 2} for a, b in ((1, 2), (3, 6))]
    (tmp_path / "recolour.json").write_text(json.dumps({"train": demos, "test": demos}))
    assert _learn(tmp_path)[1] == 1.0 and _learn(tmp_path, blind="canonical")[1] < 0.8


def test_an_answer_of_2_by_5_is_drawn_in_all_eight_symmetries_and_not_without_their_token(tmp_path):
    """The questions look the same in all of them, so the token alone says which side is long and what lies where."""
    answer = [[1] * 5, [2] * 5]
    pairs = [{"input": [[colour] * 3] * 3, "output": answer} for colour in (3, 4)]
    (tmp_path / "constant.json").write_text(json.dumps({"train": pairs, "test": pairs[:1]}))
    votes = []
    for blind in (None, "d4"):
        module, _ = _learn(tmp_path, 100, blind, augment=Augment(colour="none", translate=False))
        options, size = replace(module.eval_options, views=8, num_steps=4), SizeOptions(mode="head")
        (one,) = module.eval().solver(options, size).all(module.data.queries())
        votes.append(sum(c.count for c in one.candidates if np.array_equal(c.grid, answer)))
    assert votes[0] == 8 and votes[1] <= 4


def _learn(folder, updates: int = 150, blind: str | None = None, **options) -> tuple[ArcModule, float]:
    """A module after a short training, and its accuracy on noisy cells over the last updates; blind: no such token."""
    data = arc_data(dataset=str(folder), layout="tasks", tasks=None, overlap="allow", batch_size=16, **options)
    module = arc_module(data, condition_dropout=0.0).train()
    torch.nn.init.zeros_(module.network.out.weight)
    if blind:
        torch.nn.init.zeros_(getattr(module.network.view, blind).weight).requires_grad_(False)
    order, pairs = arc_batches(data)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    right = []
    for update in range(updates):
        out = module.training_step(pairs.build(order.shares(update)[0]), 0)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        right.append(out["logs"]["cell_acc_high_noise"])
    sums, counts = (sum(part[k] for part in right[-20:]) for k in (0, 1))
    return module, float(sums / counts)


def test_samples_answer_the_queries_in_turn_each_seed_by_its_own_walk(data):
    module = arc_module(data).eval()
    queries = data.queries()
    drawn = module.sample(list(range(2 * len(queries))))
    assert [sample.text.splitlines()[0] for sample in drawn] == 2 * [query.name for query in queries]
    for sample in drawn:
        digits = [[int(digit) for digit in row] for row in sample.text.splitlines()[1:]]
        assert digits == sample.data["answer"].tolist()
    again = [first.text == second.text for first, second in zip(drawn, drawn[len(queries) :])]
    assert not all(again)


def test_more_samples_than_fit_into_one_pass_are_the_same(data):
    whole, cut = arc_module(data).eval(), arc_module(data).eval()
    cut.eval_options = replace(cut.eval_options, max_tokens=60)
    texts = [[sample.text for sample in module.sample(list(range(12)))] for module in (whole, cut)]
    assert texts[0] == texts[1]


KINDS = {f"attention.{k}" for k in ("q", "k", "v", "o")} | {f"mlp.{k}" for k in ("gate", "up", "down")}


@pytest.fixture
def adapted(data, tmp_path):
    """A module that adapts one of six tasks' rows to two of them, and a batch of these."""
    base, told = arc_module(data), {}
    base.on_save_checkpoint(told)
    content = {"state_dict": base.state_dict(), "palimpsest": {"project": "arc", **pretrained.origin(base)}, **told}
    torch.save(content, tmp_path / "base.ckpt")
    some = arc_data(tasks=["3c9b0459", "d037b0a7"])
    module = ArcModule(width=32, depth=2, heads=2, task_tokens=1, mlp_multiple=32)
    module.extend(some, told)
    module.configure_model()
    adapting.attach(module, lora.LoraOptions(enabled=True), tmp_path / "base.ckpt")
    order, pairs = arc_batches(some)
    return module, pairs.build(order.shares(0)[0])


def learning(module) -> set[str]:
    """Layers whose adapters have a gradient."""
    return {
        name.removeprefix("network.").partition(".lora_B")[0]
        for name, p in module.named_parameters()
        if "lora_B" in name and p.grad is not None and p.grad.any()
    }


def test_every_adapter_learns_and_of_the_rows_those_of_the_tasks_given(adapted):
    module, batch = adapted
    module.training_step(batch, 0)["loss"].backward()
    assert learning(module) == {f"blocks.{n}.{kind}" for n in (0, 1) for kind in KINDS} | {"size"}
    rows = module.network.tasks.token_adapter.trainable_tokens_delta["default"]
    assert len(rows) == 2 and rows.grad.abs().sum(1).all()


def test_adapters_learn_from_the_prefix_of_whose_last_block_only_keys_and_values_are_made(adapted):
    module, batch = adapted
    memory = module.network.prefix(batch.question).memory
    sum(part.square().sum() for part in memory[-1]).backward()
    assert learning(module) == {f"blocks.0.{k}" for k in KINDS} | {"blocks.1.attention.k", "blocks.1.attention.v"}


def test_adapters_learn_from_the_body(adapted):
    module, batch = adapted
    with torch.no_grad():
        prefix = module.network.prefix(batch.question)
    answer = batch.answer
    logits = module.network(prefix, module.network.frame(prefix, answer), answer, torch.full((answer.count,), 0.5))
    logits.square().sum().backward()
    assert learning(module) == {f"blocks.{n}.{kind}" for n in (0, 1) for kind in KINDS}
