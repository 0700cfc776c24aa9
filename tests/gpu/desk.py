"""What the CUDA tests share: the projects there are, and their command line typed in this process."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning

from shared.training import cli
from tests.lines import PACKAGES, wiring

ROOT = Path(__file__).parents[2]
QUIET = ["--run.test_after_fit=false", "--run.validate_every=null", "--snapshots.every=null", "--checkpoint.every=9999"]
FOUND = [
    (project, size)
    for project in PACKAGES
    for size in ("nano", "smol")
    if (ROOT / f"configs/{project}/{size}.yaml").exists()
]
NANO = [project for project, size in FOUND if size == "nano"]


def line(project: str, size: str, *flags: str) -> list[str]:
    """The arguments of `make <verb> PROJECT= SIZE= HW=gpu` on one card."""
    layers = [f"configs/{project}/base.yaml", f"configs/{project}/{size}.yaml", "configs/hardware/gpu.yaml"]
    return [*(f"--config={layer}" for layer in layers if Path(layer).exists()), "--trainer.devices=1", *flags]


def fit(project: str, size: str, root: Path, *flags: str) -> Any:
    """A run of the project; the command line's object, whose trainer and plan can be looked at."""
    settings = [*QUIET, f"--run.root={root}", *flags]
    given = wiring(project)
    arguments = ["fit", *line(project, size, *settings)]
    return cli.main(given.module, given.data, arguments, verbs=given.verbs, groups=given.groups)


class At(lightning.pytorch.Callback):
    """Calls act(trainer) after each update."""

    def __init__(self, act: Callable[[Any], None]):
        self.act = act

    def on_train_batch_end(self, trainer, *_):
        self.act(trainer)


class KillAt(lightning.pytorch.Callback):
    """Ends this process as `kill -9` would after `update`, in a process started with KILL=1."""

    def __init__(self, update: int):
        self.update = update

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.update and os.environ.get("KILL"):
            os.kill(os.getpid(), signal.SIGKILL)
