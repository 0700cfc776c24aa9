"""The arithmetic of a plan, for machines that are not here."""

import pytest
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
    assert resolved.samples == 9600


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


class Module:
    flops_per_sample = 1000

    def __init__(self, width=8):
        self.network = nn.Linear(width, width, bias=False)
        self.network.weight.requires_grad_(width != 4)

    def plan_lines(self):
        return {"views": "72"}


class Data:
    def describe(self):
        return {"source": "made up"}


def test_the_built_objects_complete_the_plan():
    known = plan.described(plan.resolve(config(), CPU), Module(), Data(), Recipe())
    assert (known.parameters, known.trainable) == (64, 64)
    assert known.flops_per_update == 3 * 48 * 1000
    assert plan.described(plan.resolve(config(), CPU), Module(4), Data(), Recipe()).trainable == 0
    text = "\n".join(known.lines())
    facts = ("64 (64 trainable)", "48 = 1 process x 48 x 1", "100, 4,800 samples", "source      made up", "views  ")
    assert [fact for fact in facts if fact not in text] == []
    assert "4,800 samples" not in "\n".join(known.lines(training=False))


def test_a_training_state_larger_than_the_card_is_refused():
    small = {**config(), "hardware": {"memory_gb": 1e-9}}
    with pytest.raises(Mistake, match=r"training state needs 1.28 kB, one card has 1 B"):
        plan.described(plan.resolve(small, CPU), Module(), Data(), Recipe())


def test_numbers_are_told_with_three_digits():
    assert [plan.metric(x) for x in (5, 1234, 1.5e6, 2.5e13)] == ["5 ", "1.23 k", "1.5 M", "25 T"]
