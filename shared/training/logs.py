"""What a step returns under "logs" becomes rows and lines: gathered on the device, reduced and read once per interval.

A value is a 0-dim tensor (averaged over micro-batches and ranks) or a pair (sum, count). Keys get the prefix `train/`
or `val/`; `train/loss`, `optim/lr` and `perf/*` are added here. Knows the Trainer; not what the numbers mean.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor

from shared.training.errors import Mistake
from shared.training.interrupts import Interrupts
from shared.training.optim import rates
from shared.training.runs import LoggingOptions, Run
from shared.training.tables import Table
from shared.training.throughput import Counts, Rates, Stopwatch

FIRST_UPDATES, FIRST_LOSSES = 20, "first_losses.csv"  # what `repro` makes again


class Sums:
    """Sums and counts by name. Adding keeps references and launches nothing; `totals` does all the arithmetic."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}
        self.counts: dict[str, list[Tensor]] = {}
        self.whole: dict[str, float] = {}  # counts that the host knows

    def add(self, logs: Mapping[str, Any], count: float = 1.0) -> None:
        """logs: name -> 0-dim tensor that stands for `count` things, or a pair (sum, count) of 0-dim tensors."""
        for name, value in logs.items():
            if isinstance(value, tuple):
                self.values.setdefault(name, []).append(value[0].detach())
                self.counts.setdefault(name, []).append(value[1].detach())
            else:
                self.values.setdefault(name, []).append(value.detach())
                self.whole[name] = self.whole.get(name, 0.0) + count

    def totals(self, names: Iterable[str], device: torch.device) -> Tensor:
        """[2 x names] float64 on `device`: all sums, then all counts; a name not seen here gives zeros."""
        names = list(names)
        parts = [_total(group.get(name), device) for group in (self.values, self.counts) for name in names]
        known = torch.tensor([0.0] * len(names) + [self.whole.get(name, 0.0) for name in names], dtype=torch.float64)
        return torch.stack(parts) + known.to(device) if parts else known.to(device)

    def state(self) -> dict[str, Any]:
        """Everything gathered so far, as tensors, so that an interval can be finished after a resume."""
        stacked = ({name: torch.stack(parts) for name, parts in group.items()} for group in (self.values, self.counts))
        values, counts = stacked
        return {"values": values, "counts": counts, "whole": dict(self.whole)}

    @classmethod
    def restored(cls, states: Iterable[Mapping[str, Any]]) -> "Sums":
        """What `state` gave, of several ranks together if fewer go on."""
        sums = cls()
        for state in states:
            for name, parts in state["values"].items():
                sums.values.setdefault(name, []).extend(parts.unbind())
            for name, parts in state["counts"].items():
                sums.counts.setdefault(name, []).extend(parts.unbind())
            for name, count in state["whole"].items():
                sums.whole[name] = sums.whole.get(name, 0.0) + count
        return sums


def _total(parts: list[Tensor] | None, device: torch.device) -> Tensor:
    if not parts:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack(parts).to(device, torch.float64).sum()


class Reducer:
    """Means over all ranks by one flat all-reduce and one host read.

    The list of names is agreed again only when a rank brings one that is not in it; a name that a rank lacks counts 0
    there. `extra` host numbers (units, a wish to stop) ride along and come back summed.
    """

    def __init__(self) -> None:
        self.names: list[str] = []

    def means(self, trainer: Trainer, sums: Sums, extra: Sequence[float] = ()) -> tuple[dict[str, float], list[float]]:
        """(name -> mean, sums of extra). A name whose count is 0 everywhere is left out."""
        if trainer.world_size == 1:
            self.names = self._with_new(sums)
        values = self._reduced(trainer, sums, [float(len(self._with_new(sums)) > len(self.names)), *extra])
        if values[2 * len(self.names)]:
            self.names = self._agreed(trainer, sums)
            values = self._reduced(trainer, sums, [0.0, *extra])
        size = len(self.names)
        found = zip(self.names, values[:size], values[size : 2 * size])
        return {name: total / count for name, total, count in found if count}, values[2 * size + 1 :]

    def _with_new(self, sums: Sums) -> list[str]:
        return [*self.names, *(name for name in sums.values if name not in self.names)]

    def _reduced(self, trainer: Trainer, sums: Sums, extra: list[float]) -> list[float]:
        device = trainer.strategy.root_device
        flat = torch.cat([sums.totals(self.names, device), torch.tensor(extra, dtype=torch.float64).to(device)])
        return trainer.strategy.reduce(flat, reduce_op="sum").tolist()

    def _agreed(self, trainer: Trainer, sums: Sums) -> list[str]:
        lists = of_every_rank(trainer, self._with_new(sums))
        return list(dict.fromkeys(name for names in lists for name in names))


def of_every_rank(trainer: Trainer, mine: Any) -> list[Any]:
    """One entry per rank; a collective when there are several."""
    if trainer.world_size == 1:
        return [mine]
    entries: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(entries, mine)
    return entries


def keep_first(folder: Path, update: int, losses: Sequence[Tensor], micro_batches: int) -> None:
    """Called where the host reads the logs of `update` anyway. losses: of this rank's micro-batches since the last row,
    each already divided by their number in an update."""
    begun = update - len(losses) // micro_batches
    if begun >= FIRST_UPDATES:
        return
    values = torch.stack(list(losses)).view(-1, micro_batches).sum(1)[: FIRST_UPDATES - begun].tolist()
    table = Table(folder / FIRST_LOSSES)
    table.rewind(begun)
    for number, value in enumerate(values, begun + 1):
        table.write(number, {"train/loss": value})


class WriteLogs(Callback):
    """Rows for the loggers and lines for the reader, every `logging.every` updates and after each validation."""

    def __init__(self, run: Run, options: LoggingOptions, interrupts: Interrupts):
        self.run, self.every, self.interrupts = run, options.every, interrupts
        self.train, self.evaluation = Sums(), Sums()
        self.train_keys, self.evaluation_keys = Reducer(), Reducer()
        self.seconds = 0.0
        self.learning_rates: dict[str, float] = {}
        self.samples = self.units = 0  # of all ranks up to the last row
        self.unreported: tuple[float, ...] = ()  # of this rank since then, before this start
        self.watch: Stopwatch | None = None
        self.console: Console | None = None
        self.timing = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Lightning would raise on that rank alone, and leave the others waiting
        pl_module.allow_zero_length_dataloader_with_multiple_devices = stage == "fit"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _require_validation_everywhere(trainer)
        for logger in trainer.loggers:
            if hasattr(logger, "rewind"):
                logger.rewind(trainer.global_step)
        device = trainer.strategy.root_device
        rates = Rates.of(device, str(trainer.precision), trainer.world_size)
        self.watch = Stopwatch(device, self.seconds, rates, pl_module)
        self.watch.counts = Counts(*self.unreported)
        self.console = Console(self.run, trainer, self.seconds)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert self.watch
        if not self.timing:  # the loop sets its own when it starts, after on_train_start
            self.timing = _time_fetches(trainer, self.watch)
        self.watch.batch_starts()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.learning_rates = rates(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self.watch
        k = trainer.accumulate_grad_batches
        update, done = trainer.global_step, (batch_idx + 1) % k == 0
        # Lightning has divided the loss by k; k of them make the loss of one update
        self.train.add({"train/loss": outputs["loss"]}, 1 / k)
        self.train.add({f"train/{name}": value for name, value in outputs.get("logs", {}).items() if name != "loss"})
        self.watch.batch_ends(batch, update_done=done)
        if done and (update % self.every == 0 or update == trainer.max_steps):
            self._write_row(trainer, update)

    def _write_row(self, trainer: Trainer, update: int) -> None:
        assert self.watch and self.console
        extra = [*self.watch.counts, float(self.interrupts.requested)]
        means, (*counts, stop) = self.train_keys.means(trainer, self.train, extra)
        self.interrupts.agreed, done = stop > 0, Counts(*counts)
        perf = self.watch.read(done)
        self.samples, self.units = self.samples + int(done.samples), self.units + int(done.units)
        row = means | self.learning_rates
        for logger in trainer.loggers:
            logger.log_metrics(row | perf, step=update)
        self.console.progress(update, row, perf)
        if trainer.is_global_zero:
            keep_first(self.run.folder, update, self.train.values["train/loss"], trainer.accumulate_grad_batches)
        self.train = Sums()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.evaluation = Sums()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.evaluation.add({f"val/{name}": value for name, value in (outputs or {}).get("logs", {}).items()})

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row, _ = self.evaluation_keys.means(trainer, self.evaluation)
        trainer.callback_metrics.update({name: torch.tensor(value, dtype=torch.float64) for name, value in row.items()})
        if trainer.sanity_checking:
            return
        fitting = trainer.state.fn == "fit"
        for logger in trainer.loggers if fitting else []:
            logger.log_metrics(row, step=trainer.global_step)
        self.run.say(validation_line(f" at {trainer.global_step:,}" if fitting else "", row))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pause()

    def pause(self) -> None:
        """What just happened was no update: leave its time out of the pace."""
        if self.watch:
            self.watch.pause()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.console:
            self.console.close()

    def rank_state(self) -> dict[str, Any]:
        """What this rank has gathered since the last row, for last.ckpt."""
        counts = {"samples": self.samples, "units": self.units, "seconds": self.seconds_so_far}
        unreported = tuple(self.watch.counts) if self.watch else ()
        return {"train": self.train.state(), "names": self.train_keys.names, "unreported": unreported, **counts}

    def restore_rank_states(self, states: Sequence[Mapping[str, Any]], mine: slice) -> None:
        """Go on from `rank_state` of all ranks; what those of `mine` had gathered is this rank's from now on."""
        first, own = states[0], states[mine]
        self.train_keys.names = list(first["names"])
        self.samples, self.units, self.seconds = first["samples"], first["units"], first["seconds"]
        self.train = Sums.restored([state["train"] for state in own])
        samples, units = zip((0, 0), *(state["unreported"] for state in own))
        self.unreported = (sum(samples), sum(units))

    @property
    def seconds_so_far(self) -> float:
        """Wall clock of training, earlier starts of the run included."""
        return self.watch.seconds if self.watch else self.seconds


def _require_validation_everywhere(trainer: Trainer) -> None:
    """A rank without a batch never comes to the sums of a validation, and the others would wait for it."""
    batches = of_every_rank(trainer, sum(trainer.num_val_batches))
    if 0 in batches and any(batches):
        raise Mistake(
            f"Validation has no batch for rank {batches.index(0)} of {len(batches)}; its data are too few to share."
            f" Hold out at least {len(batches)} samples, or start fewer processes."
        )


def _time_fetches(trainer: Trainer, watch: Stopwatch) -> bool:
    """Clock the loader alone: Lightning calls these two around every fetch (for a profiler that is off here)."""
    fetcher: Any = trainer.fit_loop._data_fetcher
    fetcher._start_profiler, fetcher._stop_profiler = watch.fetch_starts, watch.fetch_ends
    return True


class Console:
    """The progress of training: a Rich line on a terminal, plain lines elsewhere; always plain lines in train.log."""

    def __init__(self, run: Run, trainer: Trainer, seconds: float):
        self.run, self.total, self.first, self.begun = run, trainer.max_steps, trainer.global_step, seconds
        self.bar: Progress | None = None
        if sys.stdout.isatty() and trainer.is_global_zero:
            columns = BarColumn(bar_width=12), TextColumn("eta {task.fields[eta]}  {task.description}")
            self.bar = Progress(*columns, transient=True, auto_refresh=False)
            self.task = self.bar.add_task("", total=self.total, completed=self.first, eta="?")
            self.bar.start()

    def progress(self, update: int, row: Mapping[str, float], perf: Mapping[str, float]) -> None:
        line, eta = progress_line(update, self.total, row, perf), duration(self._eta(update, perf))
        self.run.say(f"{line}  eta {eta}", console=self.bar is None)
        if self.bar:
            brief = progress_line(update, self.total, row, perf, shown=1)  # a terminal line does not wrap
            self.bar.update(self.task, completed=update, description=brief, eta=eta, refresh=True)

    def _eta(self, update: int, perf: Mapping[str, float]) -> float:
        """Seconds left at the mean pace of this start, validations included."""
        return (self.total - update) * (perf["seconds"] - self.begun) / max(update - self.first, 1)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None


def progress_line(update: int, total: int, row: Mapping[str, float], perf: Mapping[str, float], shown: int = 4) -> str:
    """One line: update, loss and the next few logs in the step's order, learning rate, pace."""
    logs = [(name.removeprefix("train/"), value) for name, value in row.items() if name.startswith("train/")]
    parts = [f"update {update:,}/{total:,}"] + [f"{name} {value:.4f}" for name, value in logs[:shown]]
    pace = "units" if perf["perf/units_per_s"] else "samples"
    parts += [f"lr {row['optim/lr']:.1e}", f"{short(perf[f'perf/{pace}_per_s'])} {pace}/s"]
    parts += [f"mfu {perf['perf/mfu']:.1%}"] if "perf/mfu" in perf else []
    return "  ".join(parts)


def part(name: str) -> bool:
    """Whether a metric is a part of another (val/ce/07): kept in the tables, and too much for a line or a panel."""
    return name.count("/") > 1


def validation_line(when: str, row: Mapping[str, float]) -> str:
    return "  ".join([f"validation{when}", *(f"{name} {value:.4f}" for name, value in row.items() if not part(name))])


def short(number: float) -> str:
    """41234 -> 41.2k"""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.1f}"


def duration(seconds: float) -> str:
    """4321 -> 1h12m, 72 -> 1m12s"""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
