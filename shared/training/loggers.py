"""The tables of a run behind Lightning's door, and TensorBoard and Weights & Biases as mirrors; the CSV files are the
truth.

A mirror is opened by the first process when training starts, continues a run that is resumed, and is closed however
training ends. Its library is imported then and not before. Knows names and numbers; not what they mean.
"""

import os
import uuid
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from shared.training.errors import Mistake
from shared.training.runs import LoggingOptions, Run
from shared.training.tables import Table


def build(run: Run, options: LoggingOptions) -> list[Logger]:
    """Every logger of a run, the tables first."""
    mirrors = ([TensorBoard(run)] if options.tensorboard_here else []) + (
        [WeightsAndBiases(run, options.wandb)] if options.wandb != "off" else []
    )
    return [CsvLogger(run), *mirrors]


class RunLogger(Logger):
    """What every logger of a run has in common."""

    def __init__(self, run: Run):
        super().__init__()
        self.run = run

    @property
    def name(self) -> str:
        return self.run.project

    @property
    def version(self) -> str:
        return self.run.name

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration is in config.yaml already."""


class CsvLogger(RunLogger):
    """Lightning's door to the two tables: `perf/*` and `seconds` go to perf.csv, everything else to metrics.csv.

    The stock CSV logger deletes earlier metrics in a folder that is not empty; this one continues them.
    """

    def __init__(self, run: Run):
        super().__init__(run)
        self.metrics = Table(run.folder / "metrics.csv")
        self.perf = Table(run.folder / "perf.csv")

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        timed = {name: value for name, value in metrics.items() if name.startswith("perf/") or name == "seconds"}
        values = {name: value for name, value in metrics.items() if name not in timed}
        if step is None:
            raise ValueError("CsvLogger writes rows by update: pass step=trainer.global_step.")
        if values:
            self.metrics.write(step, values)
        if timed:
            self.perf.write(step, timed)

    @rank_zero_only
    def rewind(self, update: int) -> None:
        """Start (update 0) or continue the tables after `update`."""
        self.metrics.rewind(update)
        self.perf.rewind(update)


class Mirror(RunLogger):
    """What both have in common: `open` is called once, with the update training goes on from."""

    def __init__(self, run: Run):
        super().__init__(run)
        self.writer: Any = None

    @rank_zero_only
    def rewind(self, update: int) -> None:
        """Training starts, or goes on after `update`."""
        self.writer = self.open(update)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.writer is not None:
            self.write(metrics, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self.writer is not None:
            self.close(status)
        self.writer = None

    def open(self, update: int) -> Any:
        raise NotImplementedError

    def write(self, metrics: dict[str, float], step: int | None) -> None:
        raise NotImplementedError

    def close(self, status: str) -> None:
        raise NotImplementedError


class TensorBoard(Mirror):
    """Event files in `<run>/tensorboard`; a resumed run hides what it will write again."""

    def open(self, update: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.run.folder / "tensorboard"), purge_step=update + 1 if update else None)

    def write(self, metrics: dict[str, float], step: int | None) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, status: str) -> None:
        self.writer.close()


class WeightsAndBiases(Mirror):
    """Files in `<run>/wandb`. mode offline never uses the network; `wandb sync` sends the files later."""

    def __init__(self, run: Run, mode: str):
        super().__init__(run)
        self.mode = mode

    def open(self, update: int) -> Any:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it calls home otherwise, in offline mode too
        import wandb

        known = self.run.manifest.get("wandb") or uuid.uuid4().hex[:8]
        self.run.note(wandb=known)
        try:
            return wandb.init(
                project=self.run.project,
                name="/".join(self.run.folder.parts[-2:]),
                id=known,
                resume="allow" if self.mode == "online" else None,
                mode=self.mode,  # type: ignore[arg-type]
                dir=self.run.folder,
                config=_config(self.run.folder / "config.yaml"),
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_machine_info=True),
            )
        except (wandb.errors.UsageError, wandb.errors.CommError) as error:
            raise Mistake(
                f"Weights & Biases refused ({str(error).splitlines()[0]}). Type `wandb login`, or set logging.wandb to"
                " offline: the files can be sent later."
            ) from error

    def write(self, metrics: dict[str, float], step: int | None) -> None:
        self.writer.log(metrics, step=step)

    def close(self, status: str) -> None:
        self.writer.finish(exit_code=0 if status == "success" else 1)


def _config(path: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))
