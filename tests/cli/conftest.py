"""A desk for the command line: a folder with the configs of the tiny project, and `run` to type a line there."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from shared.training import cli
from tests.cli.tiny.module import TinyData, TinyModule

ROOT = Path(__file__).parents[2]
NANO = ["--config=configs/tiny/base.yaml", "--config=configs/tiny/nano.yaml", "--config=configs/hardware/cpu.yaml"]

BASE = """\
# make train PROJECT=tiny
trainer:
  max_steps: 4
data:
  batch_size: 48
optim:
  lr: 1.0e-3
checkpoint:
  every: 2
logging:
  every: 2
run:
  validate_every: 2
"""
NANO_YAML = "# parameters: 20\nmodel:\n  width: 4\n"


class Said(NamedTuple):
    code: int
    out: str
    err: str
    cli: cli.PalimpsestCLI | None


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """The current directory for one test."""
    shutil.copytree(ROOT / "configs/hardware", tmp_path / "configs/hardware")
    write(tmp_path / "configs/tiny/base.yaml", BASE)
    write(tmp_path / "configs/tiny/nano.yaml", NANO_YAML)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEBUG", raising=False)
    monkeypatch.delenv("PALIMPSEST_RUN", raising=False)
    monkeypatch.setattr("sys.argv", ["tiny"])
    monkeypatch.setattr("shared.training.hardware.CACHE", ROOT / ".cache")  # the machine is measured once, not per test
    return tmp_path


@pytest.fixture
def run(desk, capsys):
    """Type a line: run("fit", *NANO, "--optim.lr=0.1") -> exit code, stdout, stderr, the command line's object."""

    def typed(*args, module=TinyModule, data=TinyData, **own) -> Said:
        code, done = 0, None
        capsys.readouterr()
        try:
            done = cli.main(module, data, list(args), **own)
        except SystemExit as exit:
            code = exit.code
        said = capsys.readouterr()
        return Said(code, said.out, said.err, done)

    return typed


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def trained(run, desk, trained_once):
    """A finished run at runs/tiny/nano/001, made once per worker and copied."""
    if not (trained_once / "runs").exists():
        assert run("fit", *NANO).code == 0
        shutil.copytree("runs", trained_once / "runs")
    else:
        shutil.copytree(trained_once / "runs", "runs")
    return Path("runs/tiny/nano/001")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
