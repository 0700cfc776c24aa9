"""What the machine has, which profile of `configs/hardware/` fits it, what that switches on, and how fast cards are.

The profile is plain YAML for the Trainer and `HardwareOptions`. Speeds are the vendor's peak, by name of the card, and
that of one matrix product, measured once per machine. Knows device names and counts; does not know the batch
(`plan.py`) nor the network, except that it can compile one in place.
"""

import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from torch import nn

from shared.training.errors import Mistake
from shared.training.tables import replace_text

PEAKS = {  # dense bf16 TFLOP/s of one card, as its vendor states them, by a part of its name; the first that fits wins
    "B200": 2250.0,
    "H200": 989.5,
    "H100 PCIe": 756.0,
    "H100": 989.5,
    "A100": 312.0,
    "RTX 3090": 71.2,
}
ROUTES = 32  # graphs of one block: with and without prefix, rotation, gradient, kept keys; torch gives up after 8
CACHE = Path(".cache")  # under the folder a command is typed in; measurements of this machine, never of a run


@dataclass
class HardwareOptions:
    """Facts and switches of a profile.

    memory_gb: memory of one card; None: not planned for.
    peak_tflops: of the card to plan for, which need not be here; None: a matrix product of this machine is timed.
    tf32: float32 matrix products may use TF32.
    compile: in place, so that names in checkpoints stay plain: each member of every ModuleList, or the whole network.
    compile_mode: as in torch.compile.
    shard: cut the network over all processes; auto: only where it would fill a card (`parallel.must_shard`).
    """

    memory_gb: float | None = None
    peak_tflops: float | None = None
    tf32: bool = False
    compile: Literal["none", "blocks", "network"] = "none"
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    shard: bool | Literal["auto"] = "auto"


@dataclass(frozen=True)
class Machine:
    """devices: names of the CUDA cards of this node; capability: of the weakest card; nodes: as the launcher says;
    memory_gb: of the smallest card."""

    devices: tuple[str, ...] = ()
    capability: tuple[int, int] = (0, 0)
    nodes: int = 1
    cores: int = 1
    memory_gb: float | None = None

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
        memory_gb=min((torch.cuda.get_device_properties(i).total_memory / 1e9 for i in cards), default=None),
    )


def choose(machine: Machine) -> Choice:
    """The profile for `machine`, with the sentence that says why."""
    names = machine.devices
    if not names:
        return Choice("cpu", f"hardware    cpu: {machine}")
    if machine.nodes > 1:
        return Choice("multinode", f"hardware    multinode: {machine}", node_flags(machine))
    if len(names) == 3 and all("RTX 3090" in name for name in names):
        return Choice("3x3090", f"hardware    3x3090: {machine}")
    for profile, marks in {"b200": ("B200",), "h200": ("H200", "H100")}.items():
        if len(names) == 1 and any(mark in names[0] for mark in marks):
            return Choice(profile, f"hardware    {profile}: {machine}")
    flags = ("--trainer.precision=16-mixed",) if machine.capability < (8, 0) else ()
    return Choice("gpu", f"hardware    gpu: {machine}, no profile of its own", flags)


def node_flags(machine: Machine) -> tuple[str, ...]:
    """What the launcher decides for the Trainer, whatever the profile."""
    return (f"--trainer.num_nodes={machine.nodes}",) if machine.nodes > 1 else ()


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
    if parts := _compiled_parts(options.compile, network):
        from torch._dynamo import config  # two seconds, and only compiling needs it

        config.recompile_limit = ROUTES
    for part in parts:
        part.compile(mode=options.compile_mode)


def peak_tflops(name: str, precision: str) -> float | None:
    """Dense peak of the card called `name` in half precision; None for a card not in the table and for float32."""
    fits = (peak for part, peak in PEAKS.items() if part.lower() in name.lower())
    return next(fits, None) if precision.startswith(("bf16", "16")) else None


def device_name(device: torch.device) -> str:
    """The card, or the processor and how many threads work on one product."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def gemm_tflops(device: torch.device) -> float:
    """Speed of one large matrix product on `device`, in TFLOP/s: CUDA 8192^3 in bf16, CPU 1024^3 in float32.

    Measured once per device, number of threads and torch version (0.1 s), then read from `.cache/gemm.json`.
    """
    return remembered("gemm", f"{device_name(device)}, torch {torch.__version__}", lambda: _measured_gemm(device))


def remembered(table: str, key: str, measure: Callable[[], Any]) -> Any:
    """The value under `key` in `.cache/<table>.json`; measured and written there if it is missing."""
    known = recalled(table)
    if key not in known:
        value = measure()
        known = {**recalled(table), key: value}  # read again: another process may have measured meanwhile
        CACHE.mkdir(exist_ok=True)
        replace_text(CACHE / f"{table}.json", json.dumps(known, indent=1) + "\n")
    return known[key]


def recalled(table: str) -> dict[str, Any]:
    """Everything in `.cache/<table>.json`; a torn or missing file is an empty one."""
    try:
        return dict(json.loads((CACHE / f"{table}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _measured_gemm(device: torch.device, repeats: int = 3) -> float:
    """The best of a few products after a first one; leaves no trace in the card's memory statistics."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a = torch.ones(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(repeats + 1):
        start = perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(perf_counter() - start)
    if device.type == "cuda":
        del a
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return 2 * size**3 / min(seconds[1:]) / 1e12


def _compiled_parts(what: str, network: nn.Module) -> list[nn.Module]:
    if what == "network":
        return [network]
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    return [block for blocks in lists for block in blocks] if what == "blocks" else []


def _nodes(environment: Any) -> int:
    if "SLURM_NNODES" in environment and "SLURM_PROCID" in environment:
        return int(environment["SLURM_NNODES"])
    if "LOCAL_WORLD_SIZE" not in environment:  # no torchrun; processes that Lightning starts share a node
        return 1
    return max(1, int(environment.get("WORLD_SIZE", 1)) // int(environment["LOCAL_WORLD_SIZE"]))
