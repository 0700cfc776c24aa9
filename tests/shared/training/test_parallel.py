"""Which strategy a run gets, and what a launcher's environment must agree with. Ranks are in tests/distributed."""

import pytest
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from shared.training.errors import Mistake
from shared.training.parallel import Sharded, _members, ddp, launch_lines, must_shard, require_ranks, sharded, strategy


@pytest.mark.parametrize(
    ("wish", "parameters", "memory_gb", "world", "cut"),
    [
        ("auto", 3_000_000_000, 80, 8, False),  # 48 GB of 80: exactly 0.6
        ("auto", 3_000_000_001, 80, 8, True),
        ("auto", 3_000_000_001, 80, 1, False),  # nobody to share with
        ("auto", 10**12, None, 8, False),  # a card of unknown size
        (True, 1, 80, 2, True),
        (True, 1, 80, 1, False),
        (False, 10**12, 80, 8, False),
    ],
)
def test_a_network_is_cut_where_its_state_takes_more_than_six_tenths_of_a_card(wish, parameters, memory_gb, world, cut):
    assert must_shard(wish, parameters, memory_gb, world) is cut


@pytest.mark.parametrize("given", ["auto", "ddp", sharded()])
def test_several_processes_get_copies_unless_the_network_must_be_cut(given):
    assert isinstance(strategy(given, shard=False, world=2), DDPStrategy)
    assert isinstance(strategy(given, shard=True, world=2), Sharded)


def test_a_strategy_of_the_users_own_is_kept():
    own = DDPStrategy(find_unused_parameters=True)
    assert strategy(own, shard=False, world=2) is own
    single = SingleDeviceStrategy()
    assert strategy(single, shard=False, world=1) is single


@pytest.mark.parametrize("given", ["auto", ddp(), sharded()])
def test_one_process_needs_no_group(given):
    assert strategy(given, shard=False, world=1) == "auto"


def test_gradients_are_compressed_where_the_bus_is_narrow():
    assert ddp()._ddp_comm_hook is None
    assert ddp(compress=True)._ddp_comm_hook is bf16_compress_hook


def test_inner_parts_are_cut_before_outer_ones():
    block = nn.ModuleDict({"parts": nn.ModuleList([nn.Linear(2, 2), nn.GELU()])})
    network = nn.Sequential(nn.Linear(2, 2), nn.ModuleList([block]))
    assert [*_members(network)] == [block, block["parts"][0]]  # `cut` goes through them in reverse


SLURM = {"SLURM_NTASKS": "16"}


@pytest.mark.parametrize(
    "environment",
    [{}, {"WORLD_SIZE": "8", "RANK": "3"}, {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, {"SLURM_NTASKS": "1"}],
)
def test_ranks_that_agree_with_the_launcher_start(environment):
    require_ranks(8, environment)


@pytest.mark.parametrize(
    ("planned", "environment", "sentence"),
    [
        (8, {"WORLD_SIZE": "16", "RANK": "0"}, "WORLD_SIZE states 16 ranks, the configuration plans 8"),
        (8, {**SLURM, "SLURM_PROCID": "0"}, "SLURM_NTASKS states 16 ranks, the configuration plans 8"),
        (16, SLURM, "SLURM has given 16 tasks, but this is one process outside of them"),
    ],
)
def test_fewer_ranks_than_the_launcher_states_are_refused(planned, environment, sentence):
    with pytest.raises(Mistake, match=sentence):
        require_ranks(planned, environment)


def test_both_ways_to_launch_name_the_command():
    torchrun, srun = launch_lines("python -m projects.text fit --config=a.yaml")
    assert torchrun.startswith("torchrun --nnodes=N") and torchrun.endswith(" -m projects.text fit --config=a.yaml")
    assert srun.startswith("srun ") and srun.endswith(" python -m projects.text fit --config=a.yaml")
