"""What a fit says of itself, as plain values that travel from ranks to tests, and the process they are held against."""

from pathlib import Path
from typing import Any

import torch

from shared.training import cli
from shared.training.averaging import Averaging
from shared.training.gradients import Gradients
from shared.training.shards import whole
from shared.training.tables import read_table
from shared.training.template.data import TemplateData
from shared.training.template.module import TemplateModule
from tests.distributed.project import Outcome, train
from tests.distributed.settings import fits, template


def weights(outcome: Outcome) -> list[float]:
    """Every parameter, joined; gathered where it is cut, so all ranks ask."""
    return torch.cat([whole(p.detach()).flatten() for p in outcome.module.parameters()]).tolist()


def facts(outcome: Outcome) -> dict[str, Any]:
    average = outcome.callback(Averaging).ema
    shadows = [average.shadow, *average.tracks.values()]
    normalizer = outcome.module.normalizer
    return {
        "weights": weights(outcome),
        "average": [torch.cat([whole(s).flatten() for s in shadow.values()]).tolist() for shadow in shadows],
        "statistics": [normalizer.square.item(), normalizer.mass.item()],
        "seen": outcome.module.seen,
        "validated": outcome.module.validated,
        "metrics": {name: float(value) for name, value in outcome.trainer.callback_metrics.items()},
        "update": outcome.trainer.global_step,
        "clip": outcome.callback(Gradients).clip,
        "raised": None if outcome.raised is None else f"{type(outcome.raised).__name__}: {outcome.raised}",
    }


def table(run: Path, column: str) -> dict[int, float]:
    """One column of a run's metrics.csv: update -> value."""
    return dict(read_table(run / "metrics.csv")[column])


# --- held against one process


class Alone:
    """The same fits in this process, each made when it is asked for first."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.made: dict[str, dict[str, Any]] = {}

    def __call__(self, name: str) -> dict[str, Any]:
        if name not in self.made:
            self.made[name] = facts(train(self.folder, name, fits()[name]))
        return self.made[name]

    def template(self) -> Path:
        """The folder in which the template project has run through its command line."""
        if not (self.folder / "template").exists():
            cli.main(TemplateModule, TemplateData, template(self.folder, 1))
        return self.folder


def furthest(a: Any, b: Any) -> float:
    """The largest difference between two lists of numbers."""
    a, b = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    assert a.shape == b.shape and a.numel() and a.isfinite().all()
    return (a - b).abs().max().item()


def spread(ranks: list[dict[str, Any]], what: str) -> dict[int, list[Any]]:
    """Update -> the values of all ranks and micro-batches, sorted."""
    found: dict[int, list[Any]] = {}
    for seen in (step for rank in ranks for step in rank["seen"]):
        found.setdefault(seen["update"], []).extend(seen[what])
    return {update: sorted(values) for update, values in found.items()}


def losses(root: Path) -> list[float]:
    """The loss curve of the template run below `root`."""
    return [*table(root / "template/nano/row6", "train/loss").values()]
