"""The smallest project the command line can run: a line fitted to noise. Exists for tests/cli only."""

from dataclasses import dataclass
from pathlib import Path

import lightning
import torch
from torch import Tensor, nn

from shared.training import optim
from shared.training.report import Metric, Results


@dataclass
class Batch:
    x: Tensor
    num_samples: int
    num_units: int

    def to(self, device, non_blocking=False):
        return Batch(self.x.to(device), self.num_samples, self.num_units)


@dataclass
class Evaluation:
    views: int = 8
    stats: bool = False


class Network(nn.Module):
    def __init__(self, width: int, depth: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class TinyModule(lightning.LightningModule):
    """width: of every layer; bug: "library" misses one in the constructor, "nan" spoils update 3."""

    def __init__(
        self,
        width: int = 4,
        depth: int = 1,
        eval: Evaluation = Evaluation(),  # noqa: B008
        bug: str | None = None,
    ):
        super().__init__()
        if width % 4:
            raise ValueError(f"width is {width}; it must be a multiple of 4.")
        if bug == "library":
            import no_such_library  # noqa: F401
        self.width, self.depth, self.eval_options = width, depth, eval
        self.bug = bug
        self.network: Network | None = None

    def configure_model(self):
        self.network = self.network or Network(self.width, self.depth)

    def flops(self, batch):
        return 1000 * batch.num_samples

    def training_step(self, batch, _):
        loss = (self.network(batch.x) - batch.x).square().mean()
        if self.bug == "nan" and self.global_step == 2:
            loss = loss * float("nan")
        return {"loss": loss, "logs": {"error": loss.detach()}}

    def validation_step(self, batch, _):
        return {"logs": {"error": (self.network(batch.x) - batch.x).square().mean()}}

    def test_step(self, batch, _):
        self.error = (self.network(batch.x) - batch.x).square().mean()

    predict_step = test_step

    def results(self, folder: Path) -> Results:
        return Results(f"error {float(self.error):.3f}", [Metric("error", float(self.error), 8)])

    def configure_optimizers(self):
        return optim.build(self, self.optim_recipe, self.trainer.max_steps)


class OtherModule(TinyModule):
    """Another architecture of the same project."""

    def __init__(self, width: int = 8, extra: Evaluation = Evaluation()):  # noqa: B008
        super().__init__(width, depth=2)


class AdoptingModule(TinyModule):
    """Its depth is what the data has, or what the checkpoint had; it prefers the file in the middle of a run."""

    prefer = "halfway"

    def adopt(self, data, checkpoint):
        self.depth = checkpoint["depth"] if checkpoint else len(data.tasks)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["depth"] = self.depth


class Rows(torch.utils.data.IterableDataset):
    def __init__(self, width: int, size: int, batches: int | None):
        self.width, self.size, self.batches = width, size, batches

    def __iter__(self):
        made = 0
        while self.batches is None or made < self.batches:
            yield Batch(
                torch.randn(self.size, self.width, generator=torch.Generator().manual_seed(made)), self.size, self.size
            )
            made += 1


class TinyData(lightning.LightningDataModule):
    """path: a file that must exist; None: the rows are made up."""

    def __init__(
        self,
        batch_size: int = 48,
        micro_batch: int | str = "auto",
        width: int = 4,
        path: str | None = None,
        tasks: list[str] | None = None,
    ):
        super().__init__()
        if path is not None:
            Path(path).read_bytes()
        self.batch_size, self.micro_batch, self.width, self.tasks = batch_size, micro_batch, width, tasks

    def describe(self):
        return {"source": "made up", "fingerprint": "0000"}

    def train_dataloader(self):
        return torch.utils.data.DataLoader(Rows(self.width, self.micro_batch, None), batch_size=None)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(Rows(self.width, 8, 2), batch_size=None)

    test_dataloader = predict_dataloader = val_dataloader
