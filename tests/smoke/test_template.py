"""The template through its command line: a rehearsal of every verb, and a real kill -9 that leaves no trace."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.training import cli
from shared.training.template.data import TemplateData
from shared.training.template.module import TemplateModule

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

ROOT = Path(__file__).parent.parent.parent
LAYERS = [f"--config=configs/template/{name}.yaml" for name in ("base", "nano")] + [
    "--config=configs/hardware/cpu.yaml"
]
SMALL = ["--trainer.max_steps=8", "--run.validate_every=4", "--snapshots.every=4", "--checkpoint.every=4",
         "--logging.every=1", "--data.held_out=64", "--sampling.steps=4"]  # fmt: skip


@pytest.fixture
def at_home(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_rehearsal_of_fit_validate_and_test(at_home, tmp_path):
    for verb in ("fit", "validate", "test"):
        arguments = [*LAYERS, "--data.held_out=64", "--sampling.steps=2", "--trainer.fast_dev_run=true"]
        cli.main(TemplateModule, TemplateData, [verb, *arguments, f"--run.root={tmp_path}"])
    assert not list(tmp_path.rglob("*.ckpt"))


def command(root: Path, name: str, *more: str) -> list[str]:
    where = [f"--run.root={root}", f"--run.name={name}"]
    return [sys.executable, "-m", "shared.training.template", "fit", *LAYERS, *SMALL, *where, *more]


def run_until(root: Path, name: str, update: int) -> None:
    """Start the command in a process of its own and kill it, as hard as can be, once `update` is in the table."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command(root, name), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith(f"update {update}/"):
                process.kill()
                break
    assert process.returncode == -9


def test_killed_at_update_5_and_resumed_is_bitwise_the_uninterrupted_run(at_home, tmp_path):
    fit = [cli.main, TemplateModule, TemplateData]
    fit[0](*fit[1:], command(tmp_path, "whole")[3:])
    run_until(tmp_path, "killed", 5)
    fit[0](*fit[1:], command(tmp_path, "killed", "--run.resume=true")[3:])
    whole, killed = (tmp_path / "template/nano" / name for name in ("whole", "killed"))
    assert (whole / "metrics.csv").read_text() == (killed / "metrics.csv").read_text()
    for folder in (whole, killed):
        written = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
        assert written >= {"report.md", "report.json", "curves.png", "samples/4/walk.png", "samples/8/walk.png"}
        assert {f"checkpoints/{n}.ckpt" for n in ("last", "best", "halfway", "final")} <= written
