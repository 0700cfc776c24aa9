"""Every line through its command line: a rehearsal of the verbs, and a real kill -9 that leaves no trace."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.lines import LINES, ROOT, Line, environment

pytestmark = [
    pytest.mark.usefixtures("at_home"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
EVERY_LINE = pytest.mark.parametrize("line", LINES, ids=str)
KILLED_AT = 5  # of 8 updates; last.ckpt is of update 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(runs):
    """The folder of an uninterrupted run of a line."""

    def folder(line: Line) -> Path:
        if not (line.folder(runs) / "whole").exists():
            line.run(*line.fit(runs, "whole"))
        return line.folder(runs) / "whole"

    return folder


def kill(line: Line, arguments: list[str], update: int) -> None:
    """Start the command in a process of its own and kill it, as hard as can be, once `update` is reported."""
    options = {"cwd": ROOT, "env": environment(), "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(line.command(*arguments), **options) as process:
        for said in process.stdout:
            if said.startswith(f"update {update}/"):
                process.kill()
                break
    assert process.returncode == -9


def files(folder: Path) -> set[str]:
    return {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}


@EVERY_LINE
@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_a_rehearsal_goes_through_and_keeps_nothing(line, verb, tmp_path):
    line.run(verb, *line.arguments, "--trainer.fast_dev_run=true", f"--run.root={tmp_path}")
    assert files(tmp_path) == set()


@EVERY_LINE
def test_a_run_leaves_table_report_pictures_and_checkpoints(line, whole):
    written = files(whole(line))
    assert written >= {"metrics.csv", "report.json", "report.md", "config.yaml", "plan.json", "manifest.json"}
    assert written >= {f"checkpoints/{name}.ckpt" for name in ("last", "halfway", "final")}
    assert {path.split("/")[1] for path in written if path.startswith("samples/")} >= {"4", "8"}


@EVERY_LINE
def test_killed_at_update_5_and_resumed_is_bitwise_the_uninterrupted_run(line, whole, runs):
    kill(line, line.fit(runs, "killed"), KILLED_AT)
    line.run(*line.fit(runs, "killed", "--run.resume=true"))
    straight, again = whole(line), line.folder(runs) / "killed"
    assert (straight / "metrics.csv").read_text() == (again / "metrics.csv").read_text()
    assert files(straight) - {"train.log"} <= files(again)


@EVERY_LINE
def test_sampling_in_a_process_of_its_own_writes_what_was_drawn(line, whole):
    run = whole(line)
    command = line.command("sample", f"--ckpt_path={run}", "--sampling.count=2")
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    (folder,) = (run / "samples").glob("sample-*")
    assert "drawn       2 samples" in done.stdout and files(folder)


def test_the_processes_started_here_reach_no_network():
    """tests/offline is on their path, so reaching out raises in them, too."""
    ask = "import socket; socket.getaddrinfo('example.org', 80)"
    command = [*LINES[0].command()[:1], "-c", ask]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert "NetworkUsed" in done.stderr and "offline" in os.environ["PYTHONPATH"]
