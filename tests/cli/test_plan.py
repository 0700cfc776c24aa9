"""The arithmetic of a plan, for machines that are not here."""

from typing import NamedTuple

import lightning
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shared.training import plan
from shared.training.errors import Mistake
from shared.training.hardware import Machine
from shared.training.optim import Recipe

CPU = Machine(cores=2)
THREE = Machine(("NVIDIA GeForce RTX 3090",) * 3, (8, 6))


def config(batch_size=48, devices=1, accelerator="cpu", **data):
    trainer = {"accelerator": accelerator, "devices": devices, "max_steps": 100}
    return {"trainer": trainer, "data": {"batch_size": batch_size, **data}, "run": {"validate_every": 10}}


@given(share=st.integers(1, 300), world=st.integers(1, 8), cap=st.integers(1, 64))
def test_the_global_batch_is_world_times_micro_times_accumulation(share, world, cap):
    micro, accumulate = plan.split(share * world, world, cap)
    assert world * micro * accumulate == share * world
    assert micro <= cap
    assert not any(share % m == 0 for m in range(micro + 1, min(cap, share) + 1)), "a larger divisor was left"


@pytest.mark.parametrize("batch_size", [48, 96, 192, 384, 768, 1536])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_default_batches_split_over_one_two_and_three_cards(batch_size, world):
    assert plan.split(batch_size, world, 10**6) == (batch_size // world, 1)


def test_a_batch_that_does_not_split_is_refused_with_the_nearest_that_do():
    with pytest.raises(Mistake) as refused:
        plan.split(128, 3, 32)
    assert str(refused.value) == (
        "Global batch 128 does not split over 3 GPUs. Choose data.batch_size 126 or 129, or any multiple of 48"
        " (48, 96, 192, ...)."
    )
    with pytest.raises(Mistake, match=r"Choose data\.batch_size 3, or"):
        plan.split(2, 3, 32)
    with pytest.raises(Mistake, match="Global batch 0"):
        plan.split(0, 1, 32)


def test_a_cpu_takes_at_most_32_samples_at_once_and_a_card_its_whole_share():
    assert plan.resolve(config(96, micro_batch="auto"), CPU).micro_batch == 32
    assert plan.resolve(config(96, 3, "gpu", micro_batch="auto"), CPU).micro_batch == 32
    assert plan.resolve(config(192, 3, "gpu", micro_batch="auto"), CPU).micro_batch == 64


def test_a_given_micro_batch_is_an_upper_bound():
    resolved = plan.resolve(config(48, micro_batch=10), CPU)
    assert (resolved.micro_batch, resolved.accumulate) == (8, 6)


def test_data_without_micro_batches_is_never_accumulated():
    resolved = plan.resolve(config(960), CPU)
    assert (resolved.micro_batch, resolved.accumulate) == (960, 1)


def test_three_cards_are_planned_on_a_machine_without_any():
    resolved = plan.resolve(config(96, 3, "gpu", micro_batch=16), CPU)
    assert (resolved.world, resolved.micro_batch, resolved.accumulate) == (3, 16, 2)
    assert resolved.world * resolved.micro_batch * resolved.accumulate == 96


@pytest.mark.parametrize(
    ("trainer", "machine", "world"),
    [
        ({"accelerator": "cpu", "devices": 2}, THREE, 2),
        ({"accelerator": "gpu", "devices": "auto"}, THREE, 3),
        ({"accelerator": "gpu", "devices": -1}, THREE, 3),
        ({"accelerator": "gpu", "devices": "2"}, THREE, 2),
        ({"accelerator": "gpu", "devices": [0, 2]}, THREE, 2),
        ({"accelerator": "gpu", "devices": "auto"}, CPU, 1),
        ({"accelerator": "cpu", "devices": "auto"}, THREE, 1),
        ({"accelerator": "gpu", "devices": 8, "num_nodes": 4}, CPU, 32),
    ],
)
def test_the_world_is_devices_times_nodes(trainer, machine, world):
    assert plan.world_size(trainer, machine) == world


def test_validation_is_counted_in_updates():
    resolved = plan.resolve(config(96, micro_batch=32), CPU)
    assert resolved.trainer_settings() == {"accumulate_grad_batches": 3, "val_check_interval": 30}
    never = plan.resolve({**config(), "run": {"validate_every": None}}, CPU)
    assert never.trainer_settings()["limit_val_batches"] == 0


def test_the_number_of_updates_must_be_stated():
    with pytest.raises(Mistake, match=r"trainer\.max_steps is -1"):
        plan.resolve({"trainer": {"max_steps": -1}, "data": {"batch_size": 48}}, CPU)


class Step(NamedTuple):
    """A micro-batch of `num_samples` rows."""

    x: torch.Tensor
    num_samples: int
    num_units: int

    def to(self, device):
        return self._replace(x=self.x.to(device))


class Module(lightning.LightningModule):
    def __init__(self, width=8):
        super().__init__()
        self.network = nn.Linear(width, width, bias=False)
        self.network.weight.requires_grad_(width != 4)

    def plan_lines(self):
        return {"views": "72"}

    def flops(self, batch):
        return 1000 * batch.num_samples

    def extra_flops(self, batch):
        return 10 * batch.num_samples

    def training_step(self, batch, _):
        return {"loss": self.network(batch.x.exp()).square().mean()}


class Data:
    """Micro-batches as the Trainer's numbers ask for them."""

    def describe(self):
        return {"source": "made up"}

    def train_dataloader(self):
        rows = 48 // self.trainer.world_size // self.trainer.accumulate_grad_batches
        return [Step(torch.zeros(rows, 8), rows, 5 * rows)]


class Unstarted:
    """Has nothing to train on."""


def complete(module=None, source=None, **changes):
    module, data = module or Module(), source or Data()
    known = plan.described(plan.resolve({**config(), **changes}, CPU), module, data, Recipe())
    return plan.costed(known, module, data)


def test_the_built_objects_complete_the_plan():
    known = complete()
    assert (known.parameters, known.trainable, known.averaged) == (64, 64, 64)
    text = "\n".join(known.lines())
    facts = ("64 (64 trainable, 64 averaged)", "48 = 1 process x 48 x 1", "100, 4,800 samples, 24,000 units")
    facts += ("source      made up", "views  ", "warm-up until update 2", "kFLOP per update")
    assert [fact for fact in facts if fact not in text] == []
    assert "4,800 samples" not in "\n".join(known.lines(training=False))


def test_an_update_costs_three_forwards_and_the_passes_without_a_backward_once():
    assert complete().flops_per_update == 48 * (3 * 1000 + 10)
    assert complete().totals == {"samples": 4800, "units": 24000, "FLOP": 100 * 48 * 3010}


def test_the_batch_that_tells_the_cost_is_split_as_the_run_will_split_it():
    split = complete(**config(48, 3, "gpu", micro_batch=8))
    assert (split.world, split.accumulate) == (3, 2)
    assert split.flops_per_update == complete().flops_per_update
    assert split.activation_bytes < complete().activation_bytes


def test_time_is_estimated_from_the_peak_of_the_card_and_never_guessed():
    def seconds(machine, accelerator="gpu", peak=None):
        given = {**config(accelerator=accelerator), "hardware": {"peak_tflops": peak}}
        given["trainer"]["precision"] = "bf16-mixed"
        known = plan.described(plan.resolve(given, machine), Module(), Data(), Recipe())
        return plan.costed(known, Module(), Data()).seconds

    flops = 100 * 48 * 3010
    a100, unknown = (Machine((name,), (8, 0)) for name in ("NVIDIA A100-SXM4-80GB", "NVIDIA GeForce RTX 9999"))
    assert seconds(a100) == pytest.approx(flops / (0.35 * 312e12))
    assert seconds(a100, peak=1000.0) == pytest.approx(flops / (0.35 * 1000e12)), "the profile's card is planned for"
    assert seconds(unknown) is None
    assert seconds(CPU, "cpu") > 0


def test_what_a_backward_needs_is_counted_and_nothing_else():
    """exp keeps its input's image only where x learns; the layer keeps its input, the square its argument."""
    assert complete().activation_bytes == 2 * 48 * 8 * 4


def test_memory_is_state_and_activations_or_says_that_it_has_no_activations():
    known = complete()
    assert known.state_bytes == 64 * (4 + 4 + 8 + 4)
    assert known.peak_bytes == known.state_bytes + known.activation_bytes
    assert f"activations {plan.metric(known.activation_bytes)}B" in "\n".join(known.lines())
    blind = complete(source=Unstarted())
    assert blind.activation_bytes is None and "without activations" in "\n".join(blind.lines())


def test_frozen_parameters_have_no_gradient_no_moments_and_no_average():
    frozen = plan.described(plan.resolve(config(), CPU), Module(4), Data(), Recipe())
    assert (frozen.trainable, frozen.averaged, frozen.state_bytes) == (0, 0, 16 * 4)
    without = complete(ema={"enabled": False})
    assert without.state_bytes == 64 * 16 and without.averaged == 0


def test_muon_keeps_one_moment_where_adamw_keeps_two():
    module = Module()
    known = plan.described(plan.resolve(config(), CPU), module, Data(), Recipe(kind="muon", hidden="weight"))
    assert known.moments == 64
    assert plan.described(plan.resolve(config(), CPU), module, Data(), Recipe()).moments == 128


def test_the_plan_leaves_the_module_as_it_was():
    module, data = Module(), Data()
    before = module.network.weight
    complete(module, data)
    assert module.network.weight is before and module.device.type == "cpu" and data.trainer is None


def test_a_training_state_larger_than_the_card_is_refused():
    small = {**config(), "hardware": {"memory_gb": 1e-9}}
    with pytest.raises(Mistake, match=r"training state needs 1.28 kB, one card has 1 B"):
        plan.described(plan.resolve(small, CPU), Module(), Data(), Recipe())


def test_numbers_are_told_with_three_digits():
    assert [plan.metric(x) for x in (5, 1234, 1.5e6, 2.5e13)] == ["5 ", "1.23 k", "1.5 M", "25 T"]
