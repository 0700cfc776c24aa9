"""Every line through its command line: a rehearsal of the verbs, and a real kill -9 that leaves no trace."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shared.training import callbacks, checkpoints
from shared.training.pretrained import from_pretrained
from tests.lines import CPU, LINES, ROOT, SHORT, Line, environment
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


@contextmanager
def dying(update: int, moment: str) -> Iterator[None]:
    """The run inside ends without a word at `moment` of `update`, in this process."""
    build = callbacks.build
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(callbacks, "build", lambda *given: [*die_at(update, moment), *build(*given)])
        yield


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
        root = tmp_path_factory.mktemp("killed")
        with dying(update, moment):
            line.run(*line.fit(root, "killed"))
        line.run(*line.fit(root, "killed", "--run.resume=true"))
        assert (line.folder(root) / "killed/metrics.csv").read_text() == (whole(line) / "metrics.csv").read_text()

    return EVERY_LINE(law)


test_killed_at_any_update_and_resumed_is_bitwise_the_uninterrupted_run = dies_anywhere(2)
test_fifty_kill_points = pytest.mark.slow(pytest.mark.timeout(1800)(dies_anywhere(50)))


SAMPLES = """
import sys, torch
from shared.training.pretrained import load_for_sampling
network, process = load_for_sampling(sys.argv[1])
same = torch.load(sys.argv[2])
assert all(torch.equal(value, same[f"network.{name}"]) for name, value in network.state_dict().items())
print(type(network).__name__, type(process).__name__, network.training, "lightning" in sys.modules)
"""


@EVERY_LINE
def test_an_export_is_the_averaged_network_in_a_process_without_lightning_and_draws(line, whole, tmp_path, capsys):
    run, out = whole(line), tmp_path / "out"
    line.run("export", f"--ckpt_path={run}", f"--export.out={out}")
    torch.save(checkpoints.read(run / "checkpoints/final.ckpt")["state_dict"], tmp_path / "state.pt")
    command = [sys.executable, "-c", SAMPLES, str(out), str(tmp_path / "state.pt")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.split()[2:] == ["False", "False"]
    for weights in (run, out):
        line.run("sample", f"--ckpt_path={weights}", "--sampling.count=2", f"--run.root={tmp_path}")
    assert capsys.readouterr().out.count("drawn       2 samples") == 2
    assert drawn(run / "samples") == drawn(tmp_path)


def drawn(folder: Path) -> dict[str, bytes]:
    """The pictures, texts and numbers of the last samples below a folder."""
    last = max(folder.rglob("sample-*"), key=lambda path: path.stat().st_mtime)
    return {path.name: path.read_bytes() for path in last.iterdir() if path.suffix != ".npz"}


@EVERY_LINE
def test_adapters_are_trained_killed_resumed_exported_and_merged(line, whole, runs, tmp_path, capsys):
    def arguments(name: str, *more: str) -> list[str]:
        return ["finetune", CPU, *SHORT, f"--ckpt_path={whole(line)}", f"--run.root={runs}",
                f"--run.name={name}", *more]  # fmt: skip

    line.run(*arguments("adapted"))
    with dying(6, "on_train_batch_end"):
        line.run(*arguments("killed"))
    line.run(*arguments("killed", "--run.resume=true"))
    straight, again = (line.folder(runs, "nano-lora") / name for name in ("adapted", "killed"))
    assert (straight / "metrics.csv").read_text() == (again / "metrics.csv").read_text()
    for name, more in (("adapters", ()), ("merged", ("--export.merge=true",))):
        line.run("export", f"--ckpt_path={straight}", f"--export.out={tmp_path / name}", *more)
    assert "merged      equals unmerged" in capsys.readouterr().out
    base, merged = (from_pretrained(path).state_dict() for path in (whole(line), tmp_path / "merged"))
    assert any(not torch.equal(value, merged[name]) for name, value in base.items() if name in merged)


def test_the_processes_started_here_reach_no_network():
    """tests/offline is on their path, so reaching out raises in them, too."""
    ask = "import socket; socket.getaddrinfo('example.org', 80)"
    command = [*LINES[0].command()[:1], "-c", ask]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert "NetworkUsed" in done.stderr and "offline" in os.environ["PYTHONPATH"]
