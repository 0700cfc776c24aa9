"""What a run is going to do, worked out before anything is built: devices, batch arithmetic, updates, cost.

`resolve` is pure arithmetic on the configuration and a description of a machine, so each is planned on any other.
`described` adds what only the built objects know (parameters, data), `costed` what only a batch tells (FLOPs, time,
memory). G = global batch in samples, W = processes, m = micro-batch, k = micro-batches per update: G = W m k, exactly.
"""

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch

from shared.training import optim
from shared.training.activations import saved_bytes
from shared.training.errors import Mistake
from shared.training.hardware import Machine, gemm_tflops, peak_tflops
from shared.training.logs import duration
from shared.training.optim import Recipe, warmup_updates
from shared.training.parallel import must_shard
from shared.training.throughput import training_flops

CPU_MICRO_BATCH = 32
GPU_UTILISATION = 0.35  # share of the vendor's peak that a well-fed network of this kind reaches
WEIGHT, MOMENT = 4, 4  # bytes: parameters, gradients, averages and the optimizer's moments are float32


@dataclass(frozen=True)
class Plan:
    """One run, in numbers. batch_size None: the data module decides by units, one micro-batch per process."""

    project: str
    stage: str | None
    size: str
    device: str
    precision: str
    compile: str
    world: int
    batch_size: int | None
    micro_batch: int | None
    accumulate: int
    updates: int
    validate_every: int | None
    averages: bool = True
    peak_tflops: float | None = None
    memory_gb: float | None = None
    parameters: int = 0
    trainable: int = 0
    moments: int = 0  # numbers the optimizer keeps: two per parameter, one where Muon moves it
    warmup: int | None = None
    learning_rate: float | None = None
    samples_per_update: float | None = None  # measured on the first batch where the budget is in units
    units_per_update: float | None = None
    flops_per_update: float | None = None
    activation_bytes: int | None = None  # kept for the backward of one micro-batch; None: not known
    seconds: float | None = None
    batch_units: int | None = None
    shard: bool | Literal["auto"] = "auto"  # as wished; `described` decides
    git: str = ""
    data: dict[str, str] = field(default_factory=dict)
    model: dict[str, str] = field(default_factory=dict)

    @property
    def cuts(self) -> int:
        """Parts that the network is cut into."""
        return self.world if self.shard is True else 1

    @property
    def averaged(self) -> int:
        """Parameters of which an average is kept."""
        return self.trainable if self.averages else 0

    @property
    def state_bytes(self) -> int:
        """Memory of weights, gradients, moments and average in one process, whatever the batch."""
        return (WEIGHT * (self.parameters + self.trainable + self.averaged) + MOMENT * self.moments) // self.cuts

    @property
    def peak_bytes(self) -> int:
        """Largest memory of one process: state, and what is kept for a backward or, at a logging point, a copy of the
        weights from before the update with the difference to it."""
        return self.state_bytes + max(self.activation_bytes or 0, 2 * WEIGHT * self.trainable // self.cuts)

    @property
    def checkpoint_bytes(self) -> int:
        """Size of last.ckpt: averaged weights, raw weights, the average's own state, moments."""
        return WEIGHT * (self.parameters * (1 + self.averages) + self.averaged) + MOMENT * self.moments

    @property
    def totals(self) -> dict[str, float]:
        """What the whole run will have seen and done: samples, units, FLOPs; unknown ones left out."""
        each = {"samples": self.samples_per_update, "units": self.units_per_update, "FLOP": self.flops_per_update}
        return {name: self.updates * number for name, number in each.items() if number}

    def trainer_settings(self) -> dict[str, Any]:
        """What the plan decides for the Trainer. Lightning counts validation in batches, we in updates."""
        validation: dict[str, Any] = {"limit_val_batches": 0}
        if self.validate_every is not None:
            validation = {"val_check_interval": self.validate_every * self.accumulate}
        return {"accumulate_grad_batches": self.accumulate, **validation}

    def as_dict(self) -> dict[str, Any]:
        """For plan.json."""
        derived = ("averaged", "totals", "state_bytes", "peak_bytes", "checkpoint_bytes")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}

    def lines(self, *, training: bool = True) -> list[str]:
        """The plan as the user reads it, one fact a line; what only training needs can be left out."""
        facts = {**self._what(), **(self._how() if training else {}), **self.model}
        facts |= {**self.data, "git": self.git}
        return [f"{name:<11} {value}" for name, value in facts.items() if value]

    def _what(self) -> dict[str, str]:
        compiled = "" if self.compile == "none" else f", {self.compile} compiled"
        return {
            "plan": f"{self.project}{'-' + self.stage if self.stage else ''} / {self.size}",
            "device": f"{self.device}, {self.precision}{compiled}",
            "parameters": f"{self.parameters:,} ({self.trainable:,} trainable, {self.averaged:,} averaged)",
        }

    def _how(self) -> dict[str, str]:
        return {
            "memory": self._memory(),
            "batch": self._batch(),
            "updates": self._updates(),
            "rate": self._learning_rate(),
            "cost": self._cost(),
            "checkpoint": f"{metric(self.checkpoint_bytes)}B a file",
        }

    def _memory(self) -> str:
        card = f", a card has {metric(self.memory_gb * 1e9)}B" if self.memory_gb else ""
        card += f", the network is cut over {self.cuts} processes" if self.cuts > 1 else ""
        if self.activation_bytes is None:
            return f"{metric(self.state_bytes)}B of training state, without activations{card}"
        parts = f"state {metric(self.state_bytes)}B, activations {metric(self.activation_bytes)}B"
        return f"{metric(self.peak_bytes)}B at most ({parts}){card}"

    def _updates(self) -> str:
        seen = {name: total for name, total in self.totals.items() if name != "FLOP"}
        if seen.get("samples") == seen.get("units"):
            seen.pop("units", None)
        return ", ".join([f"{self.updates:,}", *(f"{total:,.0f} {name}" for name, total in seen.items())])

    def _batch(self) -> str:
        processes = f"{self.world} process{'es' * (self.world > 1)}"
        if self.batch_size is None:
            return f"at most {self.batch_units:,} units, {processes}" if self.batch_units else f"by units, {processes}"
        return f"{self.batch_size} = {processes} x {self.micro_batch} x {self.accumulate}"

    def _learning_rate(self) -> str:
        if self.learning_rate is None:
            return ""
        return f"{self.learning_rate:g}" + (f", warm-up until update {self.warmup:,}" if self.warmup else "")

    def _cost(self) -> str:
        if self.flops_per_update is None:
            return ""
        total = f"{metric(self.flops_per_update)}FLOP per update, {metric(self.totals['FLOP'])}FLOP in all"
        how = "about {} at 35 % of peak" if self.peak_tflops else "at least {}, at the speed of one matrix product"
        return f"{total}, {how.format(duration(self.seconds))}" if self.seconds and self.seconds > 1 else total


def resolve(
    config: Mapping[str, Any], machine: Machine, project: str = "", stage: str | None = None, size: str = ""
) -> Plan:
    """The arithmetic of a run. Raises Mistake when the global batch does not split or the updates are not stated."""
    trainer, data, card = config["trainer"], config["data"], config.get("hardware", {})
    world = world_size(trainer, machine)
    batch_size = data.get("batch_size")
    micro, accumulate = None, 1
    if batch_size is not None:
        micro, accumulate = split(batch_size, world, _cap(data, trainer, batch_size // world))
    return Plan(
        project, stage, size,
        device=_device(trainer, world, machine),
        precision=str(trainer.get("precision") or "32-true"),
        compile=card.get("compile", "none"),
        world=world,
        batch_size=batch_size,
        micro_batch=micro,
        accumulate=accumulate,
        updates=_updates(trainer),
        validate_every=config.get("run", {}).get("validate_every"),
        averages=config.get("ema", {}).get("enabled", True),
        peak_tflops=_peak(card, trainer, machine),
        memory_gb=card.get("memory_gb") or machine.memory_gb,
        shard=card.get("shard", "auto"),
        batch_units=data.get("batch_units"),
    )  # fmt: skip


def split(batch_size: int, world: int, cap: int) -> tuple[int, int]:
    """(m, k): m the largest divisor of G / W not above `cap`, k = G / (W m). Raises Mistake if W does not divide G."""
    if batch_size < 1 or batch_size % world:
        below, above = batch_size // world * world, (batch_size // world + 1) * world
        near = f"{below} or {above}" if below > 0 else f"{above}"
        raise Mistake(
            f"Global batch {batch_size} does not split over {world} {'GPUs' if world > 1 else 'process'}."
            f" Choose data.batch_size {near}, or any multiple of 48 (48, 96, 192, ...)."
        )
    share = batch_size // world
    micro = max(m for m in range(1, share + 1) if share % m == 0 and m <= max(1, cap))
    return micro, share // micro


def world_size(trainer: Mapping[str, Any], machine: Machine) -> int:
    """Processes of the run. `devices: auto` counts this machine's cards (one process where it has none)."""
    devices = trainer.get("devices", "auto")
    if isinstance(devices, str) and devices.lstrip("-").isdigit():
        devices = int(devices)
    if isinstance(devices, list):
        count = len(devices)
    elif isinstance(devices, int) and devices > 0:
        count = devices
    else:
        count = max(1, len(machine.devices)) if trainer.get("accelerator") != "cpu" else 1
    return count * trainer.get("num_nodes", 1)


def described(plan: Plan, module: Any, datamodule: Any, recipe: Recipe) -> Plan:
    """The plan with what the built objects know. Raises Mistake when the training state alone exceeds a card.

    module may offer `plan_lines()`; datamodule may offer `describe()`.
    """
    network = getattr(module, "network", module)
    counts = [(p.numel(), p.requires_grad) for p in network.parameters()]
    parameters = sum(n for n, _ in counts)
    plan = replace(
        plan,
        parameters=parameters,
        shard=must_shard(plan.shard, parameters, plan.memory_gb, plan.world),
        trainable=sum(n for n, learns in counts if learns),
        moments=_moments(network, recipe),
        learning_rate=recipe.lr,
        warmup=warmup_updates(recipe, plan.updates),
        samples_per_update=plan.batch_size,
        git=git_state(),
        data=dict(datamodule.describe()) if hasattr(datamodule, "describe") else {},
        model=dict(module.plan_lines()) if hasattr(module, "plan_lines") else {},
    )
    if plan.memory_gb and plan.state_bytes > plan.memory_gb * 1e9:
        raise Mistake(
            f"The training state needs {metric(plan.state_bytes)}B, one card has {metric(plan.memory_gb * 1e9)}B."
            " Choose a smaller size or a larger card."
        )
    return plan


def costed(plan: Plan, module: Any, datamodule: Any) -> Plan:
    """The plan with what the first micro-batch tells: samples and units, FLOPs and time, activations."""
    batch = next(batches(datamodule, plan.world, plan.accumulate), None)
    if batch is None:
        return plan
    shards, flops = plan.world * plan.accumulate, training_flops(module, batch)
    plan = replace(
        plan,
        samples_per_update=plan.batch_size or shards * batch.num_samples,
        units_per_update=shards * batch.num_units,
        flops_per_update=shards * flops or None,
        activation_bytes=saved_bytes(module, batch, plan.precision),
    )
    rate = _flops_per_second(plan) if flops else None
    return replace(plan, seconds=plan.totals["FLOP"] / rate) if rate else plan


def batches(datamodule: Any, world: int = 1, accumulate: int = 1) -> Iterator[Any]:
    """The micro-batches of a run from its first on, made on the CPU as rank 0 of `world` will; none without data."""
    if not hasattr(datamodule, "train_dataloader"):
        return iter(())
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    place = {"world_size": world, "global_rank": 0, "accumulate_grad_batches": accumulate, "global_step": 0}
    before, datamodule.trainer = getattr(datamodule, "trainer", None), SimpleNamespace(strategy=strategy, **place)
    try:
        return iter(datamodule.train_dataloader())
    finally:
        datamodule.trainer = before


def _moments(network: Any, recipe: Recipe) -> int:
    """Numbers the optimizer will keep."""
    if not any(p.requires_grad for p in network.parameters()):
        return 0
    groups = optim.groups(network, recipe)
    return sum((1 if group["orthogonal"] else 2) * sum(p.numel() for p in group["params"]) for group in groups)


def git_state() -> str:
    """Short commit hash, with '+dirty' when tracked files differ; empty outside a repository."""
    try:
        sha = _git("rev-parse", "--short=12", "HEAD")
        return sha + ("+dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def metric(number: float) -> str:
    """1234567 -> '1.23 M'"""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g} "


def _cap(data: Mapping[str, Any], trainer: Mapping[str, Any], share: int) -> int:
    """Most samples in one micro-batch; a data module without the key `micro_batch` takes its share whole."""
    asked = data.get("micro_batch", share)
    if asked != "auto":
        return int(asked)
    return share if trainer.get("accelerator") in ("gpu", "cuda") else CPU_MICRO_BATCH


def _updates(trainer: Mapping[str, Any]) -> int:
    updates = trainer.get("max_steps", -1)
    if updates < 1:
        raise Mistake(f"trainer.max_steps is {updates}; state the number of updates of this run, 1 or more.")
    if trainer.get("accumulate_grad_batches", 1) != 1:
        raise Mistake(
            "trainer.accumulate_grad_batches follows from data.batch_size; leave it out and set data.micro_batch."
        )
    return updates


def _device(trainer: Mapping[str, Any], world: int, machine: Machine) -> str:
    if trainer.get("accelerator") == "cpu":
        return f"{world} CPU process{'es' * (world > 1)}"
    return f"{world} x {machine.devices[0] if machine.devices else 'GPU'}"


def _peak(card: Mapping[str, Any], trainer: Mapping[str, Any], machine: Machine) -> float | None:
    """Peak of the card planned for: the profile's, else that of the card that is here."""
    name = machine.devices[0] if machine.devices and trainer.get("accelerator") != "cpu" else ""
    return card.get("peak_tflops") or peak_tflops(name, str(trainer.get("precision") or ""))


def _flops_per_second(plan: Plan) -> float | None:
    """Of all processes; None for a card whose peak nobody knows: no guess."""
    if plan.peak_tflops:
        return plan.peak_tflops * GPU_UTILISATION * 1e12 * plan.world
    on_cpu = plan.device.endswith(("CPU process", "CPU processes"))
    return gemm_tflops(torch.device("cpu")) * 1e12 * plan.world if on_cpu else None


def _git(*arguments: str) -> str:
    here = Path(__file__).parent
    result = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=10)
    return result.stdout.strip()
