"""A project that knows its rank: ragged masks, dropout on request, a branch that one rank alone takes, faults on order.

`train` runs it under any number of ranks with the callbacks of the house; alone it is the reference that ranks are held
against.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from shared.objectives import Normalizer, by_level, row_mean, share
from shared.training import callbacks, hardware, loggers, optim, parallel, runs
from shared.training.batches import Batch, ResidentBatches, Share, StatelessBatches, evaluation_shards, loader
from shared.training.checkpoints import CheckpointOptions
from shared.training.ema import EmaOptions
from shared.training.randomness import Randomness, sample_rng, seed_rank
from shared.training.snapshots import SnapshotOptions

SEED, GLOBAL, WIDTH = 7, 24, 6
HELD_OUT = 7  # samples of an evaluation: not a multiple of any number of ranks


@dataclass
class Rows(Batch):
    x0: Tensor  # [B, WIDTH]
    where: Tensor  # [B, WIDTH] bool, ragged


def rows(share: Share) -> Rows:
    rng = [sample_rng(0, i) for i in share.index]
    x0 = torch.stack([torch.randn(WIDTH, generator=g) for g in rng])
    lengths = torch.stack([torch.randint(1, WIDTH + 1, (1,), generator=g) for g in rng])
    return Rows(share, int(lengths.sum()), x0, torch.arange(WIDTH) < lengths)


class Data(L.LightningDataModule):
    def train_dataloader(self) -> ResidentBatches:
        t = self.trainer
        batches = StatelessBatches(
            50, seed=SEED, batch_size=GLOBAL, world=t.world_size, rank=t.global_rank,
            accumulate=t.accumulate_grad_batches, start=lambda: t.global_step,
        )  # fmt: skip
        return ResidentBatches(batches, rows)

    def val_dataloader(self) -> Any:
        held_out = self.trainer.lightning_module.setting.held_out
        mine = evaluation_shards(held_out, self.trainer.global_rank, self.trainer.world_size)
        return loader([Share.of([100 + i]) for i in mine], rows)


class Layer(nn.Sequential):
    def forward(self, h: Tensor) -> Tensor:  # torch compiles no forward of its own containers
        for part in self:
            h = part(h)
        return h


class Network(nn.Module):
    def __init__(self, dropout: float):
        super().__init__()
        self.input = nn.Linear(WIDTH + 1, 16)
        self.null = nn.Parameter(torch.randn(16))
        self.blocks = nn.ModuleList(Layer(nn.Linear(16, 16), nn.GELU(), nn.Dropout(dropout)) for _ in range(2))
        self.output = nn.Linear(16, WIDTH)

    def forward(self, x: Tensor, t: Tensor, hide: bool = False) -> Tensor:
        h = self.input(torch.cat([x, t[:, None]], 1))
        h = h + (self.null if hide else 0 * self.null.sum())
        for block in self.blocks:
            h = h + block(h)
        return self.output(h)


@dataclass
class Setting:
    """How `train` runs. fault, spoil: what a rank does before its step, and to its loss."""

    updates: int = 5
    accumulate: int = 1
    mode: Any = "sample"
    dropout: float = 0.0
    clip: float | None = 1.0
    normalised: bool = False
    hide_on: int | None = None  # rank that alone takes the null branch
    recipe: optim.Recipe = field(default_factory=lambda: optim.Recipe(lr=1e-2, warmup=1))
    ema: EmaOptions = field(default_factory=lambda: EmaOptions(decay=0.9))
    checkpoint: CheckpointOptions = field(default_factory=lambda: CheckpointOptions(every=1000))
    validate_every: int | None = None
    held_out: int = HELD_OUT
    log_every: int = 1
    snapshots: int | None = None
    shard: bool = False
    compile: Any = "none"
    fault: Callable[["Module", int], None] = lambda module, update: None
    spoil: Callable[["Module", int, Tensor], Tensor] = lambda module, update, loss: loss
    at_validation: Callable[["Module"], None] = lambda module: None
    extra: list[L.Callback] = field(default_factory=list)


class Module(L.LightningModule):
    """Undoes noise. `seen`: of each micro-batch its positions, t, noise, dropout and loss; whole numbers of JSON."""

    def __init__(self, setting: Setting):
        super().__init__()
        self.setting, self.randomness = setting, Randomness(SEED, setting.mode)
        self.seen: list[dict[str, Any]] = []
        self.validated: list[int] = []

    def configure_model(self) -> None:
        if not hasattr(self, "network"):
            torch.manual_seed(0)
            self.network = Network(self.setting.dropout)
            self.normalizer = Normalizer(0.5)

    def training_step(self, batch: Rows, _: int) -> dict[str, Any]:
        update, rank = self.trainer.global_step + 1, self.global_rank
        self.setting.fault(self, update)
        t = self.randomness.times(batch.share)
        rng = self.randomness.rng(batch.share, rank)
        noise = torch.stack([torch.randn(WIDTH, generator=g) for g in rng]) if isinstance(rng, list) else torch.randn(
            batch.x0.shape, generator=rng)  # fmt: skip
        belief = self.network(batch.x0 + t[:, None] * noise, t, hide=self.setting.hide_on == rank)
        error = row_mean((belief - batch.x0).square(), batch.where)
        if self.setting.normalised:
            error = self.normalizer(error)
        loss = self.setting.spoil(self, update, share(error, batch.global_samples, batch.shards))
        self.seen.append({
            "update": update, "position": batch.share.position.tolist(), "index": batch.share.index.tolist(),
            "t": t.tolist(), "noise": noise.tolist(), "mask": nn.functional.dropout(torch.ones(32)).tolist(),
            "loss": loss.item(),
        })  # fmt: skip
        return {"loss": loss, "logs": {"units": (error.sum(), torch.tensor(len(error))), **by_level(error, t)}}

    def validation_step(self, batch: Rows, _: int) -> dict[str, Any]:
        self.setting.at_validation(self)
        self.validated += batch.share.index.tolist()
        t = torch.full((len(batch.x0),), 0.5)
        error = row_mean((self.network(batch.x0, t) - batch.x0).square(), batch.where)
        return {"logs": {"error": (error.sum(), torch.tensor(len(error)))}}

    def draw(self, folder: Path, update: int) -> list[Path]:
        (folder / "picture.txt").write_text(str(self.network(torch.zeros(1, WIDTH), torch.zeros(1)).tolist()))
        return [folder / "picture.txt"]

    def configure_optimizers(self) -> Any:
        return optim.build(self, self.setting.recipe, self.trainer.max_steps)


@dataclass
class Outcome:
    run: runs.Run
    module: Module
    callbacks: list[L.Callback]
    trainer: L.Trainer
    raised: BaseException | None = None

    def callback(self, cls: type) -> Any:
        return next(each for each in self.callbacks if isinstance(each, cls))


def train(root: Path, name: str, setting: Setting | None = None, *, resume: bool = False, raises: Any = ()) -> Outcome:
    """One fit. raises: exceptions that are expected, returned in the outcome."""
    setting = setting or Setting()
    run_options = runs.RunOptions(name, str(root), resume, setting.validate_every, test_after_fit=False)
    options = callbacks.Options(
        setting.ema, setting.checkpoint, SnapshotOptions(setting.snapshots), runs.LoggingOptions(setting.log_every),
        run_options,
    )  # fmt: skip
    plan = {"updates": setting.updates, "git": "abc", "parameters": 1, "data": {}, "batch_size": GLOBAL}
    run = runs.open_run(run_options, "toy", None, "nano", f"seed_everything: {SEED}\n", plan, "make train PROJECT=toy")
    L.seed_everything(SEED, verbose=False)
    module, ours = Module(setting), [*setting.extra, *callbacks.build(run, options)]
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    module.configure_model()
    hardware.apply(hardware.HardwareOptions(compile=setting.compile), module.network)
    validation = {"limit_val_batches": 0} if setting.validate_every is None else {}
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world,
        strategy=parallel.strategy("auto", setting.shard, world),
        max_steps=setting.updates,
        max_epochs=-1,
        accumulate_grad_batches=setting.accumulate,
        val_check_interval=(setting.validate_every or 1) * setting.accumulate,
        check_val_every_n_epoch=None,
        gradient_clip_val=setting.clip,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=ours,
        logger=loggers.CsvLogger(run),
        enable_progress_bar=False,
        enable_model_summary=False,
        **validation,
    )
    seed_rank(SEED, trainer.global_rank)
    outcome = Outcome(run, module, ours, trainer)
    try:
        trainer.fit(module, Data(), ckpt_path=run.resume_from)
    except raises as raised:
        outcome.raised = raised
    return outcome
