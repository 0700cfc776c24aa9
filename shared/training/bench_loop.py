"""Training loops of one project, measured in pairs: what our callbacks cost an update, how fast the whole loop goes.

loop: our loop, Lightning's alone and a bare torch loop take turns over the same batches and from the same weights.
throughput: units per second, and FLOPs against what the machine can do. memory: the plan's estimate beside the measured
peak (CUDA). Knows the command line's objects; the repeating and the storing are `bench.py`'s.
"""

import copy
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from itertools import islice
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from shared.training import callbacks, hardware, loggers, optim, plan
from shared.training.averaging import Averaging
from shared.training.bench import REPEATS, paired, spread, take_turns
from shared.training.ema import EmaOptions
from shared.training.profiling import Unwatched
from shared.training.snapshots import SnapshotOptions
from shared.training.tables import read_table

if TYPE_CHECKING:
    from shared.training.cli import PalimpsestCLI

WARM = 20  # updates before the clock starts
MANY = 200  # updates of one loop over several processes


class Clock(Callback):
    """Seconds from the end of update `warm` to the end of the last one, the device's work included."""

    def __init__(self, warm: int):
        self.warm, self.begin, self.end = warm, 0.0, 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            if trainer.global_step == self.warm:
                self.begin = _now(pl_module.device)
            elif trainer.global_step == trainer.max_steps:
                self.end = _now(pl_module.device)


@dataclass
class Loops:
    """Training loops over the batches of one command line, each from the same weights."""

    cli: "PalimpsestCLI"
    updates: int
    folder: Path

    def __post_init__(self) -> None:
        self.cli.options.run = replace(self.cli.options.run, root=str(self.folder), name=None, test_after_fit=False)
        self.blank = copy.deepcopy(self.cli.model)
        self.device = "cuda" if self.cli.config.trainer.accelerator in ("gpu", "cuda") else "cpu"

    def last(self, seconds: float, loops: int) -> None:
        """Make `loops` loops in every turn take about `seconds` in all; ranks agree on a number without a clock."""
        if self.cli.plan.world > 1:
            self.updates = MANY
        else:
            self.updates = max(20, int(1000 * seconds / (REPEATS + 1) / loops / max(self.bare(), 0.1)) - WARM)

    def fit(self, ema: EmaOptions | None = None, *, ours: bool = True) -> float:
        """Milliseconds of an update under the Trainer with our callbacks, or with none."""
        with redirect_stdout(StringIO()):  # the lines of a run in the middle of a table
            return self._fit(self._options(ema or self.cli.options.ema), ours=ours)

    def _fit(self, options: SimpleNamespace, *, ours: bool) -> float:
        run = self.cli._open_run() if ours else None
        clock = Clock(WARM)
        trainer = self.cli.instantiate_trainer(
            callbacks=[*(callbacks.build(run, options) if run else []), clock],
            logger=loggers.CsvLogger(run) if run else False,
            enable_checkpointing=run is not None,
            profiler=Unwatched() if run else None,
            max_steps=WARM + self.updates,
            limit_val_batches=0,
            accumulate_grad_batches=self.cli.plan.accumulate,
        )
        trainer.fit(self._fresh(), datamodule=self.cli.datamodule)
        return 1000 * (clock.end - clock.begin) / self.updates

    def bare(self) -> float:
        """Milliseconds of an update of the loop one would write by hand: step, backward, clip, optimizer, schedule."""
        module, accumulate = self._fresh().to(self.device).train(), self.cli.plan.accumulate
        built = optim.build(module, self.cli.options.optim, WARM + self.updates)
        optimizer, schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
        batches = plan.batches(self.cli.datamodule, 1, accumulate)
        clip = self.cli.config_init.trainer.gradient_clip_val
        parameters, begin = list(module.parameters()), 0.0
        for update in range(WARM + self.updates):
            for batch in islice(batches, accumulate):
                with self._cast():
                    loss = module.training_step(batch.to(module.device), 0)["loss"]
                (loss / accumulate).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if update + 1 == WARM:
                begin = _now(module.device)
        return 1000 * (_now(module.device) - begin) / self.updates

    def average(self, ema: EmaOptions) -> float:
        """Milliseconds that the averaging callback takes of an update, alone."""
        module = self._fresh().to(self.device)
        averaging, trainer = Averaging(ema), SimpleNamespace(global_step=0)
        averaging.on_fit_start(trainer, module)  # type: ignore[arg-type]
        begin = 0.0
        for update in range(1, WARM + self.updates + 1):
            trainer.global_step = update
            averaging.on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]
            if update == WARM:
                begin = _now(module.device)
        return 1000 * (_now(module.device) - begin) / self.updates

    def _options(self, ema: EmaOptions) -> SimpleNamespace:
        """Ours, without what happens between updates: validation, pictures, files."""
        never = self.updates * 1000
        given = vars(self.cli.options)
        files = replace(given["checkpoint"], every=never, monitor=None, keep_every=None)
        return SimpleNamespace(**{**given, "ema": ema, "checkpoint": files, "snapshots": SnapshotOptions()})

    def _fresh(self) -> Any:
        """The module as it was built, with what the hardware profile switches on."""
        module = copy.deepcopy(self.blank)
        hardware.apply(self.cli.options.hardware, getattr(module, "network", module))
        return module

    def _cast(self) -> AbstractContextManager[Any]:
        half = self.cli.plan.precision.startswith("bf16")
        return torch.autocast(self.device, torch.bfloat16) if half else nullcontext()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def loop(cli: "PalimpsestCLI", seconds: float) -> dict[str, Any]:
    """Milliseconds of an update: bare, under Lightning alone, under ours; and of the average."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        loops = Loops(cli, 20, Path(folder))
        loops.last(seconds, 3)
        one, three = replace(cli.options.ema, enabled=True, power=[]), (0.05, 0.1)
        found = take_turns(
            {
                "bare": loops.bare,
                "lightning": lambda: loops.fit(ours=False),
                "ours": loops.fit,
                "ema": lambda: loops.average(one),
                "ema_three": lambda: loops.average(replace(one, power=list(three))),
            }
        )
    bare = found["bare"]["median"]
    over = {name: median(paired(found, name, "bare")) for name in ("lightning", "ours")}
    return {
        "updates": loops.updates,
        "ms_per_update": found,
        "overhead_ms": over,
        "callbacks_ms": median(paired(found, "ours", "lightning")),
        "overhead_share": over["ours"] / bare,
        "ema_share": found["ema"]["median"] / bare,
        "ema_three_share": found["ema_three"]["median"] / bare,
        "goal": "overhead <= 1.0 ms on CPU (moonshot 0.2), <= 5 % of steps from 20 ms; EMA <= 1 %, three <= 2 %",
    }


def throughput(cli: "PalimpsestCLI", seconds: float) -> dict[str, Any]:
    """What perf.csv says of the whole loop, medians over intervals and repeats."""
    names: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        loops = Loops(cli, 20, Path(folder))
        loops.last(seconds, 1)
        cli.options.logging = replace(cli.options.logging, every=max(1, loops.updates // 4))
        for _ in range(REPEATS):
            loops.fit()
        for file in sorted(Path(folder).rglob("perf.csv")):
            for name, column in read_table(file).items():
                if name.startswith("perf/"):
                    names.setdefault(name.removeprefix("perf/"), []).extend(list(column.values())[1:])
    return {"updates": loops.updates, **{name: spread(values) for name, values in names.items()}}


def memory(cli: "PalimpsestCLI", seconds: float) -> dict[str, Any]:
    """The plan's estimate of the largest memory, beside what a card really needed."""
    estimate = {"state_gb": cli.plan.state_bytes / 1e9, "planned_gb": cli.plan.peak_bytes / 1e9}
    if not torch.cuda.is_available():
        return {**estimate, "measured_gb": "needs a CUDA device, here is none"}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        torch.cuda.reset_peak_memory_stats()
        Loops(cli, 20, Path(folder)).fit()
    measured = torch.cuda.max_memory_allocated() / 1e9
    return {**estimate, "measured_gb": measured, "planned_over_measured": estimate["planned_gb"] / measured}


MODES = {"loop": loop, "throughput": throughput, "memory": memory}
