"""What the machine has, which profile of `configs/hardware/` fits it, and what a profile switches on.

The profile is plain YAML for the Trainer and `HardwareOptions`. Knows device names and counts; does not know the batch
(`plan.py`) nor the network, except that it can compile one in place.
"""

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from shared.training.errors import Mistake


@dataclass
class HardwareOptions:
    """Facts and switches of a profile.

    memory_gb: memory of one card; None: not planned for.
    peak_tflops: dense bf16 peak of one card (vendor's figure); None: on a CPU a matrix product is timed instead.
    tf32: float32 matrix products may use TF32.
    compile: in place, so that names in checkpoints stay plain: each member of every ModuleList, or the whole network.
    compile_mode: as in torch.compile.
    """

    memory_gb: float | None = None
    peak_tflops: float | None = None
    tf32: bool = False
    compile: Literal["none", "blocks", "network"] = "none"
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"


@dataclass(frozen=True)
class Machine:
    """devices: names of the CUDA cards of this node; capability: of the weakest card; nodes: as the launcher says."""

    devices: tuple[str, ...] = ()
    capability: tuple[int, int] = (0, 0)
    nodes: int = 1
    cores: int = 1

    def __str__(self) -> str:
        if not self.devices:
            return f"no GPU, {self.cores} CPU core{'s' * (self.cores != 1)}"
        here = f"{len(self.devices)} x {self.devices[0]}"
        return here if self.nodes == 1 else f"{self.nodes} nodes of {here}"


@dataclass(frozen=True)
class Choice:
    """profile: file name without suffix (empty: none is inserted); flags: what it cannot know in advance."""

    profile: str = ""
    reason: str = ""
    flags: tuple[str, ...] = ()


def detect() -> Machine:
    """Read the cards from CUDA and the number of nodes from torchrun or SLURM."""
    cards = range(torch.cuda.device_count())
    return Machine(
        devices=tuple(torch.cuda.get_device_name(i) for i in cards),
        capability=min((torch.cuda.get_device_capability(i) for i in cards), default=(0, 0)),
        nodes=_nodes(os.environ),
        cores=os.cpu_count() or 1,
    )


def choose(machine: Machine) -> Choice:
    """The profile for `machine`, with the sentence that says why."""
    names = machine.devices
    if not names:
        return Choice("cpu", f"hardware    cpu: {machine}")
    if machine.nodes > 1:
        return Choice("multinode", f"hardware    multinode: {machine}", (f"--trainer.num_nodes={machine.nodes}",))
    if len(names) == 3 and all("RTX 3090" in name for name in names):
        return Choice("3x3090", f"hardware    3x3090: {machine}")
    for profile, marks in {"b200": ("B200",), "h200": ("H200", "H100")}.items():
        if len(names) == 1 and any(mark in names[0] for mark in marks):
            return Choice(profile, f"hardware    {profile}: {machine}")
    flags = ("--trainer.precision=16-mixed",) if machine.capability < (8, 0) else ()
    return Choice("gpu", f"hardware    gpu: {machine}, no profile of its own", flags)


def require(trainer: dict[str, Any], machine: Machine) -> None:
    """Refuse a Trainer section this machine cannot serve. Raises Mistake naming what was found."""
    wanted = trainer.get("devices", 1)
    needs_cards = trainer.get("accelerator") in ("gpu", "cuda")
    count = wanted if isinstance(wanted, int) and wanted > 0 else 1
    if needs_cards and count > len(machine.devices):
        cards = f"{count} GPU{'s' * (count != 1)}"
        raise Mistake(
            f"The hardware profile wants {cards}; this machine has {machine}."
            " Choose another profile (HW=cpu, HW=gpu), or leave HW out to let the machine decide."
            "\n`make config` plans for any profile on any machine."
        )


def apply(options: HardwareOptions, network: nn.Module) -> None:
    """Switch on what the profile asks for. Call it once, before the first step."""
    if options.tf32:
        torch.set_float32_matmul_precision("high")
    for part in _compiled_parts(options.compile, network):
        part.compile(mode=options.compile_mode)


def matmul_tflops(size: int = 1024) -> float:
    """Speed of one float32 matrix product of this CPU, in TFLOP/s (about 50 ms; the second of two calls is timed)."""
    from time import perf_counter

    a = torch.ones(size, size)
    a @ a
    start = perf_counter()
    a @ a
    return 2 * size**3 / (perf_counter() - start) / 1e12


def _compiled_parts(what: str, network: nn.Module) -> list[nn.Module]:
    if what == "network":
        return [network]
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    return [block for blocks in lists for block in blocks] if what == "blocks" else []


def _nodes(environment: Any) -> int:
    if "SLURM_NNODES" in environment and "SLURM_PROCID" in environment:
        return int(environment["SLURM_NNODES"])
    local = int(environment.get("LOCAL_WORLD_SIZE", 1))
    return max(1, int(environment.get("WORLD_SIZE", 1)) // local)
