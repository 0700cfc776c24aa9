"""The real command line with `--trainer.devices=2`, where the first process starts the second itself."""

import subprocess
import sys

import pytest

from tests.distributed.conftest import ROOT, environment
from tests.distributed.settings import TEMPLATE


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    flags = [f"--run.root={root}", "--trainer.devices=2", "--trainer.max_steps=4", "--run.validate_every=2"]
    command = [sys.executable, "-m", "shared.training.template", *TEMPLATE, *flags, "--logging.every=2"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    return root / "template/nano", done.stdout.splitlines()


def test_two_processes_make_one_run(said):
    home, lines = said
    assert [folder.name for folder in home.iterdir()] == ["001"]
    assert "batch       48 = 2 processes x 24 x 1" in lines
    assert {"report.md", "metrics.csv", "train.log"} <= {file.name for file in (home / "001").iterdir()}


def test_each_line_is_said_once(said):
    _, lines = said
    for beginning in ("plan ", "run ", "update 2/4", "update 4/4", "validation at 2", "sliced W2", "written", "next"):
        assert sum(line.startswith(beginning) for line in lines) == 1, beginning


def test_the_log_holds_each_line_once(said):
    log = (said[0] / "001/train.log").read_text().splitlines()
    assert sum(line.startswith("update 4/4") for line in log) == 1
