"""`make repro`: a run made again from its own folder, and what is said when it does not come out the same."""

import re
import shutil

import pytest

from shared.training import repro
from shared.training.errors import Mistake
from tests.cli.conftest import NANO

LONG = [*NANO, "--trainer.max_steps=30", "--logging.every=10", "--run.validate_every=25"]


def edit(path, old, new):
    text = path.read_text()
    assert re.search(old, text)
    path.write_text(re.sub(old, new, text, count=1))


def test_a_changed_digit_is_seen_beside_what_may_explain_it(run, desk, capsys):
    run("fit", *LONG)
    folder = desk / "runs/tiny/nano/001"
    edit(folder / "first_losses.csv", r"\n13,(\S)", r"\n13,7\1")
    edit(folder / "manifest.json", '"torch": "', '"torch": "0')
    assert not repro.main(str(folder))
    said = capsys.readouterr().out
    assert "19 of 20 losses equal; the first difference is at update 13: 7" in said
    assert re.search(r"versions .* torch 0.* then, .* now", said)


def test_the_first_20_losses_come_again_from_the_configuration_the_run_began_with(run, desk, capsys):
    run("fit", *LONG, "--optim.lr=0.5", "--trainer.callbacks+=lightning.pytorch.callbacks.Timer",
        "--trainer.callbacks.interval=step")  # fmt: skip
    folder = desk / "runs/tiny/nano/001"
    edit(desk / "configs/tiny/nano.yaml", "width: 4", "width: 8")
    shutil.copy(folder / "config.yaml", folder / "config.8.yaml")
    edit(folder / "config.yaml", "width: 4", "width: 16")  # of a later resume
    assert repro.main("runs/tiny/nano/001")
    said = capsys.readouterr().out
    assert "losses      20 of 20 losses equal\n" in said and "config      equal (" in said


def test_a_run_without_a_row_is_told_so(trained):
    (trained / "first_losses.csv").unlink()
    with pytest.raises(Mistake, match="ended before its first row of logs"):
        repro.main(str(trained))
