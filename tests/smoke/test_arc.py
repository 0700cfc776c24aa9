"""The line `arc` through its command line: a rehearsal of every verb, and a real kill -9 that leaves no trace."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from projects.arc import ablate
from projects.arc.data import ArcData
from projects.arc.module import ArcModule
from shared.training import cli
from shared.training.verbs import Verb

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

ROOT = Path(__file__).parents[2]
LAYERS = [f"--config=configs/{name}.yaml" for name in ("arc/base", "arc/nano", "hardware/cpu")]
SMALL = ["--trainer.max_steps=8", "--run.validate_every=4", "--snapshots.every=4", "--checkpoint.every=4",
         "--logging.every=1", "--snapshots.count=2", "--data.tasks=[25ff71a9,3c9b0459,6150a2bd,d037b0a7]",
         "--data.holdout.share=0.5", "--model.width=32", "--model.heads=2", "--model.eval.views=8",
         "--model.eval.num_steps=2"]  # fmt: skip


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    monkeypatch.chdir(ROOT)


def fit(root: Path, name: str, *more: str) -> list[str]:
    return ["fit", *LAYERS, *SMALL, f"--run.root={root}", f"--run.name={name}", *more]


def run(arguments: list[str]) -> None:
    cli.main(ArcModule, ArcData, arguments, verbs={"ablate": Verb(ablate.ablate)})


def killed(arguments: list[str], update: int) -> None:
    """Start the command in a process of its own and kill it, as hard as can be, once `update` is reported."""
    command = [sys.executable, "-m", "projects.arc", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith(f"update {update}/"):
                process.kill()
                break
    assert process.returncode == -9


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An uninterrupted run."""
    root = tmp_path_factory.mktemp("runs")
    before = os.getcwd()
    os.chdir(ROOT)
    run(fit(root, "whole"))
    os.chdir(before)
    return root / "arc/nano/whole"


def test_killed_at_update_6_and_resumed_is_bitwise_the_uninterrupted_run(whole, tmp_path):
    killed(fit(tmp_path, "killed"), 6)
    run(fit(tmp_path, "killed", "--run.resume=true"))
    again = tmp_path / "arc/nano/killed"
    assert (whole / "metrics.csv").read_text() == (again / "metrics.csv").read_text()
    assert json.loads((whole / "answers.json").read_text()) == json.loads((again / "answers.json").read_text())


def test_a_run_leaves_its_report_pictures_gallery_and_submission(whole):
    written = {str(f.relative_to(whole)) for f in whole.rglob("*") if f.is_file()}
    pictures = {f"samples/{u}/{name}.png" for u in (4, 8) for name in ("noising", "denoising")}
    files = {"report.md", "report.json", "submission.json", "samples/gallery.html", "samples/gallery.png"}
    assert written >= pictures | files | {f"checkpoints/{n}.ckpt" for n in ("last", "halfway", "final")}
    assert "of 5 hidden test grids" in (whole / "report.md").read_text()


def test_evaluating_the_run_gives_its_score_and_answers_again(whole, capsys):
    first = (whole / "answers.json").read_text()
    run(["test", f"--ckpt_path={whole}"])
    assert (whole / "answers.json").read_text() == first
    run(["test", f"--ckpt_path={whole}", "--model.eval.ema=false"])
    raw = (whole / "answers.json").read_text()
    assert raw != first
    for more in (["--model.eval.limit=2"], ["--model.eval.prefer=halfway"], ["--model.eval.views=5"]):
        run(["test", f"--ckpt_path={whole}", *more])
        assert json.loads((whole / "submission.json").read_text())
    (whole / "submission.json").unlink()
    run(["predict", f"--ckpt_path={whole}"])
    assert (whole / "submission.json").exists()
    run(["validate", f"--ckpt_path={whole}"])
    assert "grid_exact@1" in capsys.readouterr().out


def test_an_ablation_scores_every_change_once(whole, capsys):
    run(["ablate", f"--ckpt_path={whole}", "--model.eval.views=2"])
    lines = [line for line in capsys.readouterr().out.splitlines() if ": pass@2 " in line]
    names = [line.partition(":")[0] for line in lines]
    assert len(set(names)) == len(names) == 16 and names[0] == "as configured"
    assert {"steps 1", "views 72", "vote loglik", "orientation unswapped", "size head", "raw weights"} <= set(names)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--data.tasks=[aabf363d]"], "task aabf363d has no row in the checkpoint"),
        (["--data.tasks=[nosuch]"], "unknown task 'nosuch'"),
    ],
)
def test_what_a_checkpoint_cannot_answer_is_said(whole, capsys, more, words):
    with pytest.raises(SystemExit) as ended:
        run(["test", f"--ckpt_path={whole}", *more])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert words in told.out + told.err and "Traceback" not in told.err


def test_an_unknown_task_leaves_no_run_folder(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run(fit(tmp_path, "x", "--data.tasks=[nosuch]"))
    assert ended.value.code == 2 and not list(tmp_path.iterdir())
    assert "unknown task 'nosuch'" in capsys.readouterr().err
