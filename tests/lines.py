"""The lines of work as tests find them: the template and every projects/<p>/__main__.py, with configs and stages.

A line that joins is tested with no edit here. What makes it tiny is one more layer of its own: `tests/smoke/<p>.yaml`,
or `tests/smoke/<p>-<stage>.yaml`. Knows what a line gave to `cli.main`, and nothing of what it does.
"""

import inspect
import os
import runpy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shared.training import catalogue, cli, runs
from shared.training.layers import arrange
from shared.training.verbs import BUILT_IN

ROOT = Path(__file__).parents[1]
PACKAGES = {"template": "shared.training.template"} | {
    path.parent.name: f"projects.{path.parent.name}" for path in sorted(ROOT.glob("projects/*/__main__.py"))
}
CPU = "--config=configs/hardware/cpu.yaml"
SHORT = ("--trainer.max_steps=8", "--run.validate_every=4", "--snapshots.every=4", "--checkpoint.every=4",
         "--logging.every=1", "--snapshots.count=2")  # fmt: skip


@cache
def wiring(project: str) -> SimpleNamespace:
    """What the project's __main__ gives to cli.main: module, data (classes, or tuples of them), verbs, groups."""
    caught: list[SimpleNamespace] = []

    def main(module: Any, data: Any, args: None = None, *, verbs: Any = None, groups: Any = None) -> None:
        caught.append(SimpleNamespace(module=module, data=data, verbs=verbs or {}, groups=groups or {}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "main", main)
        runpy.run_module(PACKAGES[project], run_name="__main__")
    return caught[0]


def built(project: str, arguments: list[str], verb: str = "config", act: str = "config") -> cli.PalimpsestCLI:
    """A command line parsed, planned and built, with no run folder: the layers of `verb`. act `config` builds on the
    meta device and reads no checkpoint."""
    given = wiring(project)
    layers = arrange(project, verb, arguments)
    return cli.PalimpsestCLI(given.module, given.data, layers, act, BUILT_IN | given.verbs, given.groups)


def parsed(project: str, arguments: list[str], verb: str) -> str:
    """The whole configuration that a command line means, as YAML; nothing is built."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.PalimpsestCLI, "instantiate_classes", lambda self: None)
        made = built(project, arguments, verb, verb)
    return made.parser.dump(made.config, skip_unset=False, skip_validation=True)


@dataclass(frozen=True)
class Rung:
    """One size of one project, or of one of its stages. files: its own layers, lowest first."""

    project: str
    stage: str | None
    files: tuple[Path, ...]

    def __str__(self) -> str:
        return str(self.files[-1].relative_to("configs").with_suffix(""))

    @property
    def line(self) -> list[str]:
        return [f"--config={file}" for file in self.files]


def stages(project: str) -> list[str | None]:
    """The config folders with a base.yaml of their own; a project without any is one stage without a name."""
    return sorted(path.parent.name for path in (ROOT / "configs" / project).glob("*/base.yaml")) or [None]


def rungs(project: str) -> Iterator[Rung]:
    """Every size: the files of each stage, or of a project without stages; a folder that is no stage holds sizes."""
    home, staged = ROOT / "configs" / project, stages(project) != [None]
    for file in sorted(home.rglob("*.yaml")):
        stage = file.parent.name if (file.parent / "base.yaml").exists() and file.parent != home else None
        if catalogue.is_size(file) and (stage or not staged or file.parent != home):
            below = [home / "base.yaml", *([home / file.name, file.parent / "base.yaml"] if stage else [])]
            yield Rung(project, stage, tuple(f.relative_to(ROOT) for f in [*below, file] if f.exists()))


RUNGS = [rung for project in PACKAGES for rung in rungs(project)]


@dataclass(frozen=True)
class Line:
    """A project, or one stage of it, at size nano and made tiny."""

    project: str
    stage: str | None = None

    def __str__(self) -> str:
        return f"{self.project}-{self.stage}" if self.stage else self.project

    def folder(self, root: Path, size: str = "nano") -> Path:
        """Where its runs lie."""
        return runs.size_folder(root, self.project, self.stage, size)

    @property
    def arguments(self) -> list[str]:
        """The layers of a tiny run of it."""
        (nano,) = [r for r in RUNGS if (r.project, r.stage) == (self.project, self.stage) and r.files[-1].stem == "nano"
                   and r.files[-1].parent.name == (self.stage or self.project)]  # fmt: skip
        tiny = Path(f"tests/smoke/{self}.yaml")
        return [*nano.line, CPU, *([f"--config={tiny}"] if (ROOT / tiny).exists() else []), *SHORT]

    def run(self, verb: str, *flags: str) -> cli.PalimpsestCLI | None:
        """`python -m projects.<p> <verb> ...` in this process."""
        given = wiring(self.project)
        return cli.main(given.module, given.data, [verb, *flags], verbs=given.verbs, groups=given.groups)

    def fit(self, root: Path, name: str, *more: str) -> list[str]:
        """The arguments of a tiny training run."""
        return ["fit", *self.arguments, f"--run.root={root}", f"--run.name={name}", *more]

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", PACKAGES[self.project], *arguments]

    def build(self, *flags: str) -> cli.PalimpsestCLI:
        """Module and data as `fit` makes them, attached to a Trainer that has not started."""
        made = built(self.project, [*self.arguments, *flags], "fit", "fit")
        trainer = made.instantiate_trainer(logger=False, callbacks=[], enable_checkpointing=False)
        made.datamodule.trainer = made.model.trainer = made.trainer = trainer
        trainer.datamodule, trainer.strategy._lightning_module = made.datamodule, made.model
        made.datamodule.prepare_data()
        made.datamodule.setup("fit")
        return made


LINES = [Line(project, stage) for project in PACKAGES for stage in stages(project)]


def environment() -> dict[str, str]:
    """Of a subprocess: one thread; no network, by the PYTHONPATH that tests/conftest.py set."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def awake(network: torch.nn.Module, seed: int = 0) -> None:
    """Heads and gates that start at zero say something, so that nothing is equal because everything is zero."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3, generator=rng)


def given(network: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """The arguments of one forward call by their names."""
    bound = inspect.signature(network.forward).bind(*arguments, **named)
    bound.apply_defaults()
    return dict(bound.arguments)
