"""What surrounds every training loop of the house, in the order it must run, and the writing of checkpoints.

`build` is the one list: report, averaged weights, gradients, logs, snapshots, checkpoints. A checkpoint that is
resumed from is taken after an update and before its validation; a resumed run validates first if the update called for
it. So a kill at any moment is followed by the same rows as if it had not happened.
"""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from shared.training import pretrained
from shared.training.averaging import Averaging
from shared.training.checkpoints import SCHEMA, CheckpointOptions, settle
from shared.training.ema import EmaOptions
from shared.training.errors import Mistake
from shared.training.gradients import Gradients
from shared.training.interrupts import Interrupts, Stopped
from shared.training.logs import WriteLogs, of_every_rank
from shared.training.randomness import rng_state, seed_rank, set_rng_state
from shared.training.report import WriteReport
from shared.training.runs import LoggingOptions, Run, RunOptions, read_json, rehearsed
from shared.training.snapshots import SnapshotOptions, Snapshots


@dataclass
class Options:
    """The config groups that the callbacks read."""

    ema: EmaOptions = field(default_factory=EmaOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    snapshots: SnapshotOptions = field(default_factory=SnapshotOptions)
    logging: LoggingOptions = field(default_factory=LoggingOptions)
    run: RunOptions = field(default_factory=RunOptions)


def build(run: Run, options: Any) -> list[Callback]:
    """The callbacks of one run, in order. options: `Options`, or anything with its attributes.

    The Trainer also needs `logger=CsvLogger(run)` and `enable_progress_bar=False`.
    """
    interrupts, averaging = Interrupts(), Averaging(options.ema)
    logs = WriteLogs(run, options.logging, interrupts)
    gradients = Gradients(run, logs)
    return [
        NoneLeftWaiting(),
        RankSeeds(),
        WriteReport(run, at_fit_end=not options.run.test_after_fit),  # before the averaged weights are given back
        averaging,
        gradients,
        logs,
        Snapshots(run, options.snapshots, averaging, logs),
        Checkpoints(run, options.checkpoint, interrupts, logs, averaging, gradients),
    ]


class NoneLeftWaiting(Callback):
    """A failure of the process that started the other ranks ends them: alone they would wait for it in a collective.
    (That of another rank ends all, as Lightning and torchrun watch those they start.)
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        launcher = trainer.strategy.launcher
        if isinstance(exception, Exception | Stopped) and launcher is not None:
            launcher.kill(signal.SIGKILL)  # SIGTERM would be taken for a wish (`interrupts`)


class RankSeeds(Callback):
    """Dropout, and all else that is not keyed, differs between ranks: joining them, Lightning gives all one seed."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        seed = os.environ.get("PL_GLOBAL_SEED")
        if trainer.world_size > 1 and seed is not None:
            seed_rank(int(seed), trainer.global_rank)


class Checkpoints(Checkpoint):
    """last.ckpt every n updates and at a signal, best.ckpt by a metric, halfway.ckpt at T/2, final.ckpt at T."""

    def __init__(
        self,
        run: Run,
        options: CheckpointOptions,
        interrupts: Interrupts,
        logs: WriteLogs,
        averaging: Averaging,
        gradients: Gradients,
    ):
        self.run, self.options, self.interrupts = run, options, interrupts
        self.logs, self.averaging, self.gradients = logs, averaging, gradients
        self.best: float | None = None
        self.ended = -1  # update at which final.ckpt was written
        self.before_validation: dict[str, Any] | None = None  # generators as they were after the update
        self.stored: Mapping[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if rehearsed(trainer):
            return
        _leave_signals_to_us(trainer)
        self.interrupts.catch()
        ranks = self.stored.get("ranks", [])
        if trainer.global_rank < len(ranks):
            set_rng_state(ranks[trainer.global_rank]["random"])
        if self.stored.get("validation_due"):
            self.before_validation = rng_state()
            _validate(trainer)
            self.before_validation = None
        self.stored = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if rehearsed(trainer) or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        update, total = trainer.global_step, trainer.max_steps
        due = _validation_due(trainer)
        self.before_validation = rng_state() if due else None
        stop = self._asked_to_stop(trainer) and update != total
        names = self._names(update, total, stop)
        if due and update == total:  # last.ckpt says that nothing is left to do, so it waits for the validation
            names.remove("last")
        if names:
            self._write(trainer, names)
        if stop:
            self._leave(trainer)

    def _names(self, update: int, total: int, stop: bool) -> list[str]:
        """Files to write after this update."""
        every, keep = self.options.every, self.options.keep_every
        wanted = {
            "last": update % every == 0 or update == total or stop,
            "halfway": update == total // 2,
            "final": update == total,
            f"update-{update}": keep is not None and update % keep == 0,
        }
        return [name for name, wants in wanted.items() if wants]

    def _asked_to_stop(self, trainer: Trainer) -> bool:
        return self.interrupts.agreed if trainer.world_size > 1 else bool(self.interrupts.requested)

    def _leave(self, trainer: Trainer) -> None:
        self.run.say(
            f"Stopped after update {trainer.global_step:,} of {trainer.max_steps:,}, kept in {self.run.folder}."
            f" To go on: --run.resume true --run.name {self.run.name} (with make: RESUME=1 RUN={self.run.name})."
        )
        raise SystemExit(self.interrupts.exit_code)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """One process need not wait for the end of a long validation; the resumed run starts it anew."""
        stoppable = self.before_validation and trainer.world_size == 1 and trainer.global_step < trainer.max_steps
        if stoppable and self.interrupts.requested:
            self.averaging.give_back()
            self._write(trainer, ["last"])
            self._leave(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or rehearsed(trainer):
            return
        self.before_validation = None
        names = ["best"] if self._is_best(trainer) else []
        if trainer.global_step == trainer.max_steps:
            names.append("last")
        if names:
            self._write(trainer, names)

    def _is_best(self, trainer: Trainer) -> bool:
        monitor = self.options.monitor
        if monitor is None:
            return False
        if monitor not in trainer.callback_metrics:
            given = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise Mistake(f"checkpoint.monitor is {monitor}, but validation gave {given}. Name one of those, or null.")
        value = float(trainer.callback_metrics[monitor])
        if not self.options.improves(value, self.best):
            return False
        self.best = value
        return True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.interrupts.release()
        if rehearsed(trainer):
            return
        if self.ended != trainer.global_step:  # stopped early by another callback
            self._write(trainer, ["last", "final"])
        self.run.note(finished={"update": trainer.global_step, "seconds": self.logs.seconds_so_far})

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.interrupts.release()

    def _write(self, trainer: Trainer, names: list[str]) -> None:
        self.gradients.check(trainer, trainer.lightning_module)
        targets = [self.run.checkpoints / f"{name}.ckpt" for name in names]
        refusal = trainer.strategy.broadcast(self._save(trainer, targets))
        if refusal:
            raise Mistake(
                f"{targets[0]} could not be written ({refusal}); the earlier file is whole. Make room, "
                f"then go on with --run.resume true --run.name {self.run.name}."
            )
        self.logs.pause()
        if "final" in names:
            self.ended = trainer.global_step

    def _save(self, trainer: Trainer, targets: list[Path]) -> str | None:
        """`trainer.save_checkpoint`, except that a full disk stops all ranks: its barrier would leave them waiting."""
        temporary = self.run.checkpoints / "writing.tmp"
        content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        try:
            trainer.strategy.save_checkpoint(content, temporary)
            if trainer.is_global_zero:
                settle(temporary, targets[0], targets[1:])
        except OSError as error:
            temporary.unlink(missing_ok=True)
            return error.strerror or str(error)
        return None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        _mark_update_complete(checkpoint["loops"]["fit_loop"], trainer.global_step)
        checkpoint["palimpsest"] = {
            **(self.origin if trainer.is_global_zero else {}),  # only the writer surely has the run's files
            **pretrained.origin(pl_module),
            "updates": trainer.global_step,
            "samples": self.logs.samples,
            "units": self.logs.units,
            "best": self.best,
            "validation_due": self.before_validation is not None,
            "ranks": of_every_rank(trainer, self._rank_state()),
        }

    @cached_property
    def origin(self) -> dict[str, Any]:
        """Where the weights come from: what does not change during one start."""
        run = self.run
        start, plan, config = run.manifest["starts"][-1], run.folder / "plan.json", run.folder / "config.yaml"
        return {
            "schema": SCHEMA,
            "project": run.project,
            "stage": run.stage,
            "size": run.size,
            "config": yaml.safe_load(config.read_text(encoding="utf-8")),
            "git": start.get("git"),
            "data": read_json(plan).get("data"),
        }

    def _rank_state(self) -> dict[str, Any]:
        return {"random": self.before_validation or rng_state(), "logs": self.logs.rank_state()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit" or "palimpsest" not in checkpoint:
            return
        self.stored = checkpoint["palimpsest"]
        self.best = self.stored["best"]
        ranks = self.stored["ranks"]
        if ranks:
            self.logs.restore_rank_states(
                [rank["logs"] for rank in ranks], slice(trainer.global_rank, None, trainer.world_size)
            )


def _validation_due(trainer: Trainer) -> bool:
    """Whether Lightning will validate after the update in hand: its own rule, asked early."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def _validate(trainer: Trainer) -> None:
    """The validation that a kill prevented, as the training loop would have run it."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


def _mark_update_complete(loops: dict[str, Any], update: int) -> None:
    """Progress counters as after the batch and outside any validation, so that Lightning neither repeats nor skips."""
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = update
    batches = loops["epoch_loop.batch_progress"]
    for part in ("total", "current"):
        batches[part]["completed"] = batches[part]["processed"]
        for counter in loops["epoch_loop.val_loop.batch_progress"][part]:
            loops["epoch_loop.val_loop.batch_progress"][part][counter] = 0


def _leave_signals_to_us(trainer: Trainer) -> None:
    """Lightning asks all ranks about SIGTERM before every batch, and the host waits; our wish rides on the logs."""
    if trainer.world_size > 1:
        setattr(trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor", lambda: None)  # noqa: B010
