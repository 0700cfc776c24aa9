"""Pictures of what the run can do, every n updates, without a trace in the run itself.

The module's `draw(folder, update)` makes them with the averaged weights, in eval mode, on rank 0 only. Every global
generator is put back afterwards, so a run with snapshots is bitwise the run without. Does not know what they show.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from shared.training.averaging import Averaging
from shared.training.logs import WriteLogs
from shared.training.parallel import is_cut, together
from shared.training.randomness import rng_state, set_rng_state
from shared.training.runs import Run, rehearsed


@dataclass
class SnapshotOptions:
    """every: updates between two sets of pictures (None: never). count: samples per set, for the module to read."""

    every: int | None = None
    count: int = 8

    def __post_init__(self):
        if self.every is not None and self.every < 1:
            raise ValueError(
                f"snapshots.every is {self.every}; it counts updates, so give 1 or more, or null for never."
            )


class Snapshots(Callback):
    """Calls `module.draw` into `samples/<update>/` every `snapshots.every` updates and at the end.

    The module finds the options as `self.snapshots`. A module without `draw` has no pictures; a failing `draw` is an
    error like any other.
    """

    def __init__(self, run: Run, options: SnapshotOptions, averaging: Averaging, logs: WriteLogs):
        self.run, self.options, self.averaging, self.logs = run, options, averaging, logs
        self.drawn = -1  # update of the last set

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        pl_module.snapshots = self.options

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.drawn = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        update = trainer.global_step
        # the last update's pictures wait for on_train_end: final.ckpt is written before anything touches the weights
        if self.options.every and update % self.options.every == 0 and update < trainer.max_steps:
            self._draw(trainer, pl_module, update)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.options.every:
            self._draw(trainer, pl_module, trainer.global_step)

    def _draw(self, trainer: Trainer, module: Any, update: int) -> None:
        wanted = update != self.drawn and hasattr(module, "draw") and not rehearsed(trainer)
        self.drawn = update
        if not (wanted and (trainer.is_global_zero or is_cut(module))):
            return
        with untouched_generators(), self.averaging.swapped(module), together(module), evaluating(module):
            if trainer.is_global_zero:
                folder = self.run.samples / str(update)
                folder.mkdir(parents=True, exist_ok=True)
                module.draw(folder, update)
        self.logs.pause()


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Global generators end as they began."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


@contextmanager
def evaluating(module: LightningModule) -> Iterator[None]:
    """Eval mode and no gradients inside; every submodule's own mode afterwards."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True
