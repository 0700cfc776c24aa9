"""Which profile a machine gets, and what a profile refuses."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo import config
from torch._dynamo.testing import CompileCounter

from shared.training import checkpoints
from shared.training.errors import Mistake
from shared.training.hardware import ROUTES, HardwareOptions, Machine, _nodes, apply, choose, require
from shared.training.template.data import TemplateData
from shared.training.template.module import TemplateModule
from tests.cli.conftest import NANO, ROOT

RTX, H200, B200, A100 = "NVIDIA GeForce RTX 3090", "NVIDIA H200", "NVIDIA B200", "NVIDIA A100-SXM4-80GB"


@pytest.mark.parametrize(
    ("devices", "capability", "nodes", "profile"),
    [
        ((), (0, 0), 1, "cpu"),
        ((RTX,) * 3, (8, 6), 1, "3x3090"),
        ((RTX,) * 2, (8, 6), 1, "gpu"),
        ((H200,), (9, 0), 1, "h200"),
        (("NVIDIA H100 PCIe",), (9, 0), 1, "h200"),
        ((H200,) * 8, (9, 0), 1, "gpu"),
        ((B200,), (10, 0), 1, "b200"),
        ((A100,), (8, 0), 1, "gpu"),
        ((H200,) * 8, (9, 0), 4, "multinode"),
    ],
)
def test_the_machine_decides_the_profile_and_says_why(devices, capability, nodes, profile):
    machine = Machine(devices, capability, nodes, cores=2)
    choice = choose(machine)
    assert choice.profile == profile
    assert profile in choice.reason and str(machine) in choice.reason


def test_cards_without_bf16_get_half_precision():
    assert choose(Machine(("Tesla V100",), (7, 0))).flags == ("--trainer.precision=16-mixed",)
    assert choose(Machine((A100,), (8, 0))).flags == ()


def test_multinode_tells_the_trainer_how_many_nodes():
    assert choose(Machine((H200,) * 8, (9, 0), nodes=4)).flags == ("--trainer.num_nodes=4",)


@pytest.mark.parametrize(
    ("environment", "nodes"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}, 1),
        ({"WORLD_SIZE": "3", "LOCAL_RANK": "1"}, 1),  # started by Lightning: three cards of one node
        ({"WORLD_SIZE": "32", "LOCAL_WORLD_SIZE": "8"}, 4),
        ({"SLURM_NNODES": "3", "SLURM_PROCID": "0"}, 3),
        ({"SLURM_NNODES": "3"}, 1),  # an allocation without srun: one process
    ],
)
def test_the_launcher_says_how_many_nodes(environment, nodes):
    assert _nodes(environment) == nodes


def test_a_profile_the_machine_cannot_serve_is_refused_and_names_what_was_found():
    with pytest.raises(Mistake, match=r"wants 3 GPUs; this machine has no GPU, 2 CPU cores"):
        require({"accelerator": "gpu", "devices": 3}, Machine(cores=2))
    with pytest.raises(Mistake, match=r"wants 3 GPUs; this machine has 1 x NVIDIA H200"):
        require({"accelerator": "gpu", "devices": 3}, Machine((H200,), (9, 0)))
    require({"accelerator": "gpu", "devices": "auto"}, Machine((H200,), (9, 0)))
    require({"accelerator": "cpu", "devices": 3}, Machine(cores=2))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.head = nn.Linear(2, 2)


@pytest.mark.parametrize(("what", "compiled"), [("none", 0), ("blocks", 3), ("network", 1)])
def test_compiling_is_in_place_and_leaves_checkpoint_names_alone(what, compiled):
    network = Net()
    names = list(network.state_dict())
    apply(HardwareOptions(compile=what), network)
    assert sum(part._compiled_call_impl is not None for part in network.modules()) == compiled
    assert list(network.state_dict()) == names


TEMPLATE = [f"--config={ROOT / 'configs' / name}.yaml" for name in ("template/base", "template/nano", "hardware/cpu")]
BRIEF = ["--trainer.max_steps=3", "--run.test_after_fit=false", "--run.validate_every=null", "--snapshots.every=null"]


@pytest.mark.parametrize(("what", "graphs"), [("blocks", 2), ("network", 1)])
def test_the_compiled_path_is_what_training_runs(run, monkeypatch, what, graphs):
    """Counted by a back-end that runs the graph as it is; names and weights are those of a plain run."""
    counter, compiled = CompileCounter(), torch.compile
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", lambda f, mode=None: compiled(f, backend=counter, fullgraph=True))
    stored = []
    for compile in (what, "none"):
        line = [*TEMPLATE, *BRIEF, f"--hardware.compile={compile}"]
        said = run("fit", *line, module=TemplateModule, data=TemplateData)
        assert said.code == 0, said.err
        assert 1 <= counter.frame_count <= graphs, "the plain run has added none"
        file = Path("runs/template/nano", f"{len(stored) + 1:03d}", "checkpoints/last.ckpt")
        stored.append(checkpoints.read(file)["current_model_state"])
    assert config.recompile_limit == ROUTES, "each way through a packed block keeps its graph"
    assert list(stored[0]) == list(stored[1])
    for name, weight in stored[0].items():
        torch.testing.assert_close(weight, stored[1][name])


def test_any_profile_is_planned_here_and_refused_where_it_would_run(run):
    line = [*NANO[:2], "--config=configs/hardware/3x3090.yaml"]
    planned = run("config", *line)
    assert planned.code == 0 and "48 = 3 processes x" in planned.out
    refused = run("fit", *line)
    assert refused.code == 2 and "wants 3 GPUs; this machine has" in refused.err
    assert not Path("runs").exists()


def test_tf32_is_switched_on_only_when_asked():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        apply(HardwareOptions(), Net())
        assert torch.get_float32_matmul_precision() == "highest"
        apply(HardwareOptions(tf32=True), Net())
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
