"""What only the line `arc` does on its command line: gallery, submission, settings of an evaluation, the ablation."""

import json
from pathlib import Path

import pytest
import torch

from packages.arc.subsets import read_ids
from tests.lines import ROOT, Line

pytestmark = [
    pytest.mark.usefixtures("at_home"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
ARC = Line("arc")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An uninterrupted run."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        ARC.run(*ARC.fit(root, "whole"))
    return ARC.folder(root) / "whole"


def test_a_run_leaves_its_report_pictures_gallery_and_submission(whole):
    written = {str(f.relative_to(whole)) for f in whole.rglob("*") if f.is_file()}
    pictures = {f"samples/{u}/{name}.png" for u in (4, 8) for name in ("noising", "denoising")}
    files = {"report.md", "report.json", "submission.json", "samples/gallery.html", "samples/gallery.png"}
    assert written >= pictures | files | {f"checkpoints/{n}.ckpt" for n in ("last", "halfway", "final")}
    assert "of 5 hidden test grids" in (whole / "report.md").read_text()


def test_evaluating_the_run_gives_its_score_and_answers_again(whole, capsys):
    first = (whole / "answers.json").read_text()
    ARC.run("test", f"--ckpt_path={whole}")
    assert (whole / "answers.json").read_text() == first
    ARC.run("test", f"--ckpt_path={whole}", "--model.eval.ema=false")
    raw = (whole / "answers.json").read_text()
    assert raw != first
    ARC.run("test", f"--ckpt_path={whole}", "--model.eval.limit=2")
    assert sorted(json.loads((whole / "submission.json").read_text())) == ["25ff71a9", "3c9b0459"]
    ARC.run("test", f"--ckpt_path={whole}", "--model.eval.prefer=halfway")
    assert (whole / "answers.json").read_text() not in (first, raw)
    ARC.run("test", f"--ckpt_path={whole}", "--model.eval.views=5")
    answers = json.loads((whole / "answers.json").read_text())
    assert {sum(c["count"] for c in one["candidates"]) for one in answers} == {5}
    (whole / "submission.json").unlink()
    ARC.run("predict", f"--ckpt_path={whole}")
    assert (whole / "submission.json").exists()
    ARC.run("validate", f"--ckpt_path={whole}")
    assert "grid_exact@1" in capsys.readouterr().out


def test_an_ablation_scores_every_change_once(whole, capsys):
    ARC.run("ablate", f"--ckpt_path={whole}", "--model.eval.views=2", "--ablate.limit=1")
    lines = [line for line in capsys.readouterr().out.splitlines() if ": pass@2 " in line]
    names = [line.partition(":")[0] for line in lines]
    assert len(set(names)) == len(names) == 28 and names[0] == "as configured"
    assert {"steps 1", "views 72 (1 tasks)", "vote poe", "orientation unswapped", "size head", "raw weights"} <= set(
        names
    )


def test_a_run_that_is_not_finite_stops_and_keeps_the_grids_it_saw(tmp_path, capsys):
    with pytest.raises(SystemExit):
        ARC.run(*ARC.fit(tmp_path, "x", "--optim.lr=1e30", "--optim.warmup=0"))
    assert "is not finite" in capsys.readouterr().err
    (file,) = ARC.folder(tmp_path).glob("x/nonfinite-*.pt")
    (batch,) = torch.load(file, weights_only=True)["ranks"][0]["batches"]
    assert len(batch["answer"]["colour"]) == int(batch["answer"]["lengths"].sum()) > 0
    assert len(batch["question"]["cells"]["colour"]) > 0


def test_the_hardest_tasks_are_a_file_for_a_subset(whole, tmp_path):
    """The smoke run holds out the demos of half of its tasks."""
    out = tmp_path / "hard.txt"
    ARC.run("hardest", f"--ckpt_path={whole}", "--hardest.count=1", f"--hardest.out={out}")
    (id,) = read_ids(out)
    assert id in ("25ff71a9", "3c9b0459", "6150a2bd", "d037b0a7") and "of votes wrong" in out.read_text()
    with pytest.raises(SystemExit):
        ARC.run("hardest", f"--ckpt_path={whole}", "--hardest.count=5")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--data.tasks=[aabf363d]"], "task aabf363d has no row in the checkpoint"),
        (["--data.tasks=[nosuch]"], "unknown task 'nosuch'"),
    ],
)
def test_what_a_checkpoint_cannot_answer_is_said(whole, capsys, more, words):
    with pytest.raises(SystemExit) as ended:
        ARC.run("test", f"--ckpt_path={whole}", *more)
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert words in told.out + told.err and "Traceback" not in told.err


def test_an_unknown_task_leaves_no_run_folder(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        ARC.run(*ARC.fit(tmp_path, "x", "--data.tasks=[nosuch]"))
    assert ended.value.code == 2 and not list(tmp_path.iterdir())
    assert "unknown task 'nosuch'" in capsys.readouterr().err
