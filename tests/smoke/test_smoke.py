"""Every line through its command line: a rehearsal of the verbs, and a real kill -9 that leaves no trace."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shared.training import callbacks, checkpoints
from tests.lines import LINES, ROOT, Line, environment
from tests.shared.training.loop import Killed, die_at

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
    one, other = (checkpoints.read(folder / "checkpoints/final.ckpt")["state_dict"] for folder in (straight, again))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert {name for name in files(straight) if not name.startswith("tensorboard")} <= files(again)


def killed_and_resumed(line: Line, root: Path, update: int, moment: str) -> Path:
    """A run that ended without a word at `moment` of `update`, in this process, and was resumed."""
    root, build = root / f"{update}-{moment}", callbacks.build
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(callbacks, "build", lambda *given: [*die_at(update, moment), *build(*given)])
        line.run(*line.fit(root, "killed"))
    line.run(*line.fit(root, "killed", "--run.resume=true"))
    return line.folder(root) / "killed"


def dies_anywhere(examples: int):
    """A law for kill points that hypothesis picks: the tables are those of the uninterrupted run."""

    once = {
        "deadline": None,
        "phases": [Phase.generate],
        "suppress_health_check": [HealthCheck.function_scoped_fixture],
    }

    @settings(max_examples=examples, **once)  # a failing kill point is shown as it is found, not made smaller
    @given(
        st.integers(1, 7), st.sampled_from(["on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end"])
    )
    def law(line, whole, tmp_path_factory, update, moment):
        folder = killed_and_resumed(line, tmp_path_factory.mktemp("killed"), update, moment)
        assert (folder / "metrics.csv").read_text() == (whole(line) / "metrics.csv").read_text()

    return EVERY_LINE(law)


test_killed_at_any_update_and_resumed_is_bitwise_the_uninterrupted_run = dies_anywhere(2)
test_fifty_kill_points = pytest.mark.slow(pytest.mark.timeout(1800)(dies_anywhere(50)))


@EVERY_LINE
def test_sampling_writes_what_was_drawn_into_the_run(line, whole, capsys):
    line.run("sample", f"--ckpt_path={whole(line)}", "--sampling.count=2")
    (folder,) = (whole(line) / "samples").glob("sample-*")
    assert "drawn       2 samples" in capsys.readouterr().out and files(folder)


def test_the_processes_started_here_reach_no_network():
    """tests/offline is on their path, so reaching out raises in them, too."""
    ask = "import socket; socket.getaddrinfo('example.org', 80)"
    command = [*LINES[0].command()[:1], "-c", ask]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert "NetworkUsed" in done.stderr and "offline" in os.environ["PYTHONPATH"]
