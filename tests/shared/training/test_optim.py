"""Laws of the optimizer: the schedule is one pure function, every parameter is in exactly one group, AdamW is AdamW."""

import itertools
import math
from dataclasses import dataclass

import lightning
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shared.training.batches import Batch, ResidentBatches, StatelessBatches
from shared.training.errors import Mistake
from shared.training.optim import Group, Recipe, build, groups, learning_rate, rates, scaled, warmup_updates

SHAPES = ["cosine", "linear", "constant", "wsd"]
schedules = {
    "total": st.integers(2, 3000),
    "shape": st.sampled_from(SHAPES),
    "floor": st.floats(0, 1),
    "start": st.floats(0, 1),
    "cooldown": st.floats(0, 1),
}


class Codebook(nn.Embedding):
    """An embedding by descent, not by name."""


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.colour = nn.Embedding(7, 4)
        self.task = Codebook(5, 4)
        self.norm = nn.LayerNorm(4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.colour.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def by_name(network, recipe):
    names = {id(p): name for name, p in network.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups(network, recipe) for p in g["params"]}


# --- the schedule


@settings(max_examples=100, deadline=None)
@given(**schedules, warmup_share=st.floats(0, 1))
def test_the_rate_stays_between_0_and_the_peak_and_ends_at_the_floor(
    total, shape, floor, start, cooldown, warmup_share
):
    warmup = int(warmup_share * (total - 1))
    rates = [learning_rate(u, total, warmup, shape, floor, start, cooldown) for u in range(1, total + 1)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[-1] == pytest.approx(1 if shape == "constant" else floor, abs=1e-12)
    assert learning_rate(total + 9, total, warmup, shape, floor, start, cooldown) == rates[-1]


@settings(max_examples=100, deadline=None)
@given(**schedules)
def test_the_rate_has_no_jump(total, shape, floor, start, cooldown):
    warmup = warmup_updates(Recipe(), total)
    rates = [learning_rate(u, total, warmup, shape, floor, start, cooldown) for u in range(total + 1)]
    steepest = max(abs(b - a) for a, b in itertools.pairwise(rates))
    fall = 1 / math.sqrt(cooldown * total) if shape == "wsd" and cooldown * total > 1 else 1 if shape == "wsd" else 0
    assert steepest <= max(2 / warmup, fall) + 1e-9  # 1 - sqrt(x) falls by sqrt(1/n) in its first of n steps


def test_warm_up_is_a_straight_line_and_its_default_is_2_percent_of_the_updates():
    assert [learning_rate(u, 100, 4, start=0.2) for u in range(1, 5)] == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert [warmup_updates(Recipe(), total) for total in (1, 20, 2000, 10**6)] == [1, 1, 40, 2000]
    assert warmup_updates(Recipe(warmup=0), 2000) == 0


def test_the_shapes_have_their_textbook_values():
    half = {shape: learning_rate(60, 110, 10, shape, floor=0.2) for shape in ("cosine", "linear", "constant")}
    assert half == pytest.approx({"cosine": 0.6, "linear": 0.6, "constant": 1.0})
    assert learning_rate(35, 110, 10, "cosine", floor=0.0) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    wsd = [learning_rate(u, 100, 0, "wsd", floor=0.0, cooldown=0.2) for u in (1, 80, 85, 100)]
    assert wsd == pytest.approx([1.0, 1.0, 0.5, 0.0])


def test_a_longer_wsd_run_changes_only_the_part_that_falls():
    short, long = ([learning_rate(u, total, 10, "wsd") for u in range(1, 86)] for total in (100, 500))
    assert short == long


def test_a_run_shorter_than_its_warm_up_only_warms_up():
    assert [learning_rate(u, 4, 100, "cosine") for u in (1, 2, 3)] == pytest.approx([0.01, 0.02, 0.03])


def fit(built, network, updates):
    optimizer, scheduler, rates = built["optimizer"], built["lr_scheduler"]["scheduler"], []
    for _ in range(updates):
        network(torch.ones(1, 3)).square().sum().backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return rates


def test_update_u_uses_the_rate_of_u_also_after_a_resume():
    recipe, network = Recipe(lr=0.1, warmup=3, floor=0.0), nn.Linear(3, 1)
    built = build(network, recipe, 10)
    rates = fit(built, network, 4)
    state = built["optimizer"].state_dict(), built["lr_scheduler"]["scheduler"].state_dict()
    resumed = build(network, recipe, 10)
    resumed["optimizer"].load_state_dict(state[0])
    resumed["lr_scheduler"]["scheduler"].load_state_dict(state[1])
    rates += fit(resumed, network, 6)
    assert rates == pytest.approx([0.1 * learning_rate(u, 10, 3, floor=0.0) for u in range(1, 11)])
    assert rates[0] > 0 and rates[-1] == 0


def test_recipes_scale_with_the_batch_only_when_they_name_one():
    recipe = Recipe(lr=1e-3, betas=(0.9, 0.95), batch_ref=64)
    larger = scaled(recipe, 256)
    assert larger.lr == pytest.approx(2e-3) and larger.betas == pytest.approx((0.9, 0.95**4))
    assert scaled(larger, 256) == larger and scaled(Recipe(), 256) == Recipe()
    with pytest.raises(ValueError, match="batch_ref has not been applied"):
        build(nn.Linear(1, 1), recipe, 10)


# --- groups


def test_decay_spares_norms_biases_and_embeddings_and_what_is_tied_to_them():
    decayed = {name for name, (_, decay) in by_name(Network(), Recipe()).items() if decay}
    assert decayed == {"mix.weight"}
    assert all(decay == 0.1 for _, decay in by_name(Network(), Recipe(decay_on="all")).values())


def test_every_trainable_parameter_is_in_exactly_one_group():
    network = Network()
    members = [id(p) for g in groups(network, Recipe(groups=[Group("mix"), Group(".")])) for p in g["params"]]
    assert sorted(members) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def test_the_first_matching_pattern_wins_and_keeps_the_decay_it_does_not_name():
    recipe = Recipe(lr=1.0, groups=[Group("^task", lr_scale=10, weight_decay=0.3), Group("^mix|task", lr_scale=0.5)])
    found = by_name(Network(), recipe)
    assert found["task.weight"] == (10, 0.3)
    assert found["mix.weight"] == (0.5, 0.1) and found["mix.bias"] == (0.5, 0)
    assert found["norm.weight"] == (1, 0)


def test_a_group_keeps_its_scale_along_the_schedule():
    built = build(Network(), Recipe(lr=1.0, warmup=4, groups=[Group("task", lr_scale=10)]), 100)
    rates = {g["name"].split(",")[0]: g["lr"] for g in built["optimizer"].param_groups}
    assert rates == pytest.approx({"default": 0.25, "task": 2.5})


def test_the_rate_of_a_named_group_is_told_beside_that_of_the_rest():
    named = [Group("^task", lr_scale=10, name="task"), Group("^mix", lr_scale=0.5)]
    optimizer = build(Network(), Recipe(lr=1.0, warmup=4, groups=named), 100)["optimizer"]
    assert rates(optimizer) == {"optim/lr": 0.25, "optim/lr_task": 2.5}
    everything = build(Network(), Recipe(lr=1.0, warmup=4, groups=[Group(".", name="all")]), 100)["optimizer"]
    assert rates(everything) == {"optim/lr": 0.25, "optim/lr_all": 0.25}


def test_groups_are_those_of_the_attribute_network_and_nothing_may_lie_outside():
    module = nn.Module()
    module.network = Network()
    assert sum(len(g["params"]) for g in build(module, Recipe(), 5)["optimizer"].param_groups) == 6
    module.stray = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"stray\.weight lies outside"):
        build(module, Recipe(), 5)


@pytest.mark.parametrize(
    "network, recipe, sentence",
    [
        (
            Network(),
            Recipe(groups=[Group("mux.weight")]),
            r"no parameter matches `mux.weight`\. Did you mean `mix.weight`",
        ),
        (nn.Linear(2, 2).requires_grad_(False), Recipe(), "no trainable parameter"),
    ],
)
def test_what_cannot_be_grouped_is_refused(network, recipe, sentence):
    with pytest.raises(Mistake, match=sentence):
        build(network, recipe, 5)


def test_an_optional_group_may_match_nothing():
    plain, more = (build(Network(), Recipe(groups=g), 5) for g in ([], [Group("mux.weight", 3.0, optional=True)]))
    assert [g["lr"] for g in more["optimizer"].param_groups] == [g["lr"] for g in plain["optimizer"].param_groups]


@pytest.mark.parametrize("wrong", [{"lr": 0}, {"floor": 1.5}, {"warmup": -1}, {"cooldown": -0.1}, {"weight_decay": -1}])
def test_values_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=f"optim.{next(iter(wrong))} is "):
        Recipe(**wrong)


def test_a_plateau_without_validation_is_refused():
    module = lightning.LightningModule()
    module.network, module.trainer = nn.Linear(2, 2), lightning.Trainer(limit_val_batches=0, logger=False)
    with pytest.raises(Mistake, match=r"optim.shape is plateau, but this run never validates"):
        build(module, Recipe(shape="plateau"), 10)


def test_the_schedule_needs_the_number_of_updates():
    with pytest.raises(Mistake, match=r"trainer.max_steps is -1"):
        build(nn.Linear(1, 1), Recipe(), -1)


# --- the step


def test_three_steps_are_those_of_adamw_by_hand():
    recipe = Recipe(lr=0.1, warmup=0, shape="constant", weight_decay=0.5, decay_on="all", betas=(0.9, 0.95), eps=1e-6)
    network = nn.Linear(1, 1, bias=False).double()
    optimizer = build(network, recipe, 10)["optimizer"]
    w, m, v = network.weight.item(), 0.0, 0.0
    for n, gradient in enumerate([0.3, -2.0, 0.7], start=1):
        network.weight.grad = torch.full((1, 1), gradient, dtype=torch.float64)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        w = w * (1 - 0.1 * 0.5) - 0.1 * (m / (1 - 0.9**n)) / (math.sqrt(v / (1 - 0.95**n)) + 1e-6)
        assert network.weight.item() == pytest.approx(w, abs=1e-12)


@dataclass
class Points(Batch):
    x: Tensor


class Trained(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = nn.Linear(3, 1)

    def training_step(self, batch, _):
        return 100 * self.network(batch.x).square().mean()

    def configure_optimizers(self):
        return build(self, Recipe(lr=0.01, warmup=0), self.trainer.max_steps)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_clips_before_the_fused_step_and_counts_updates(precision):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=3, gradient_clip_val=1.0, precision=precision, accumulate_grad_batches=2, **quiet
    )
    module = Trained()
    before = module.network.weight.detach().clone()
    batches = StatelessBatches(9, seed=0, batch_size=8, accumulate=2)
    trainer.fit(module, ResidentBatches(batches, lambda share: Points(share, len(share), torch.rand(len(share), 3))))
    assert trainer.global_step == 3 and not torch.equal(before, module.network.weight)
