"""The smallest project that uses all the callbacks offer: dropout, pairs and means in its logs, pictures, results.

`train` runs it in this process; `die_at` ends it without a word, as kill -9 would.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from shared.training import callbacks, loggers, optim, runs
from shared.training.batches import Batch, ResidentBatches, Share, StatelessBatches, loader
from shared.training.checkpoints import CheckpointOptions
from shared.training.ema import EmaOptions
from shared.training.randomness import Randomness, sample_rng, seed_rank
from shared.training.report import Metric, Results
from shared.training.snapshots import SnapshotOptions

SAMPLES = 8  # of one update


class Killed(BaseException):
    """Nothing of ours may react to it: a stand-in for SIGKILL that leaves the test alive."""


@dataclass
class Numbers(Batch):
    x: torch.Tensor


class Data(L.LightningDataModule):
    def train_dataloader(self) -> ResidentBatches:
        def start() -> int:
            return self.trainer.global_step

        batches = StatelessBatches(
            50, seed=3, batch_size=SAMPLES, accumulate=self.trainer.accumulate_grad_batches, start=start
        )
        return ResidentBatches(batches, numbers)

    def val_dataloader(self) -> Any:
        return loader([Share.of([50, 51, 52]), Share.of([53])], numbers)

    test_dataloader = val_dataloader


def numbers(share: Share) -> Numbers:
    return Numbers(
        share, 2 * len(share), torch.stack([torch.randn(4, generator=sample_rng(0, i)) for i in share.index])
    )


class Module(L.LightningModule):
    """Learns to reverse four numbers. `poison`: the update whose gradient is made NaN."""

    randomness = Randomness(7)

    def __init__(self, poison: int | None = None, recipe: optim.Recipe | None = None):
        super().__init__()
        self.poison, self.recipe = poison, recipe
        self.seen: list[float] = []  # losses, one per micro-batch
        self.drawn_with: list[torch.Tensor] = []

    def configure_model(self) -> None:
        if not hasattr(self, "network"):
            self.network = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 4))

    def error(self, x: torch.Tensor) -> torch.Tensor:
        return (self.network(x) - x.flip(1)).square().mean(1)

    def training_step(self, batch: Numbers, _: int) -> dict[str, Any]:
        error = self.error(batch.x)
        if self.trainer.global_step + 1 == self.poison:
            error = error * float("nan")
        loss = error.sum() * batch.shards / batch.global_samples
        self.seen.append(loss.item())
        return {"loss": loss, "logs": {"pair": (error.sum(), torch.tensor(len(error))), "largest": batch.x.max()}}

    def validation_step(self, batch: Numbers, _: int) -> dict[str, Any]:
        error = self.error(batch.x)
        return {"logs": {"error": (error.sum(), torch.tensor(len(error))), "rows": torch.tensor(float(len(error)))}}

    def test_step(self, batch: Numbers, _: int) -> None:
        pass

    def draw(self, folder: Path, update: int) -> list[Path]:
        self.drawn_with.append(self.network[0].weight.detach().clone())
        assert not self.network.training
        torch.rand(3)  # a careless module: consumes the global generator
        (folder / "numbers.txt").write_text(f"{update}")
        return [folder / "numbers.txt"]

    def results(self, folder: Path) -> Results:
        self.tested_with = self.network[0].weight.detach().clone()
        return Results("error 0.5", [Metric("error", 0.5, 4, 0.4, 0.6, {"mean": 1.0, "chance": 2.0})])

    def configure_optimizers(self) -> Any:
        if self.recipe is not None:
            return optim.build(self, self.recipe, self.trainer.max_steps)
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / 100)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass
class Hook(L.Callback):
    """Calls `act(trainer)` in one of Lightning's hooks, before or after our own callbacks had theirs."""

    hook: str
    act: Callable[[L.Trainer], None]

    def __post_init__(self):
        setattr(self, self.hook, lambda trainer, *_: self.act(trainer))


@dataclass
class Setting:
    """How `train` runs; the defaults are 12 updates with everything on."""

    updates: int = 12
    accumulate: int = 1
    validate_every: int | None = 5
    clip: float | None = 1.0
    poison: int | None = None
    recipe: optim.Recipe | None = None
    checkpoint: CheckpointOptions = field(default_factory=lambda: CheckpointOptions(every=4, monitor="val/error"))
    snapshots: int | None = None
    log_every: int = 3
    mirrors: dict[str, Any] = field(default_factory=lambda: {"tensorboard": "off"})
    ema: EmaOptions = field(default_factory=lambda: EmaOptions(decay=0.9))
    extra: list[L.Callback] = field(default_factory=list)
    spans: Any = None  # Lightning's profiler
    test: bool = False
    test_after_fit: bool = True


def train(root: Path, name: str, setting: Setting | None = None, *, resume: Any = False) -> tuple[runs.Run, Module]:
    setting = setting or Setting()
    run_options = runs.RunOptions(
        name, str(root), resume, setting.validate_every, test_after_fit=setting.test_after_fit
    )
    options = callbacks.Options(
        setting.ema,
        setting.checkpoint,
        SnapshotOptions(setting.snapshots),
        runs.LoggingOptions(setting.log_every, **setting.mirrors),
        run_options,
    )
    plan = {"updates": setting.updates, "git": "abc", "parameters": 148, "data": {"source": "numbers"}, "batch_size": 8}
    run = runs.open_run(run_options, "toy", None, "nano", "seed_everything: 7\n", plan, "make train PROJECT=toy")
    seed_rank(7, 0)
    module = Module(setting.poison, setting.recipe)
    validation = {"limit_val_batches": 0} if setting.validate_every is None else {}
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=setting.updates,
        max_epochs=-1,
        accumulate_grad_batches=setting.accumulate,
        val_check_interval=(setting.validate_every or 1) * setting.accumulate,
        check_val_every_n_epoch=None,
        gradient_clip_val=setting.clip,
        num_sanity_val_steps=0,
        callbacks=[*setting.extra, *callbacks.build(run, options)],
        logger=loggers.build(run, options.logging),
        enable_progress_bar=False,
        enable_model_summary=False,
        profiler=setting.spans,
        **validation,
    )
    trainer.fit(module, Data(), ckpt_path=run.resume_from)
    if setting.test:
        trainer.test(module, Data(), verbose=False)
    return run, module


def die_at(update: int, hook: str = "on_train_batch_end") -> list[L.Callback]:
    def act(trainer: L.Trainer) -> None:
        if trainer.global_step == update:
            raise Killed

    return [Hook(hook, act)]
