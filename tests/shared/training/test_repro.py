"""Laws of the first losses: what a run keeps is what it computed, once each, however its updates were cut up."""

import pytest
import torch

from shared.training.logs import FIRST_LOSSES, FIRST_UPDATES
from shared.training.repro import command, compare
from shared.training.tables import format_value, read_table
from tests.shared.training.loop import Killed, Setting, die_at, train

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def kept(run) -> dict[int, float]:
    return read_table(run.folder / FIRST_LOSSES)["train/loss"]


@pytest.mark.parametrize(("accumulate", "log_every"), [(1, 3), (2, 3), (2, 100), (1, 25)])
def test_the_first_losses_are_those_the_steps_returned(tmp_path, accumulate, log_every):
    run, module = train(tmp_path, "a", Setting(updates=26, accumulate=accumulate, log_every=log_every))
    means = torch.tensor(module.seen).div(accumulate).view(-1, accumulate).sum(1).tolist()
    wanted = {update: float(format_value(loss)) for update, loss in enumerate(means[:FIRST_UPDATES], 1)}
    assert kept(run) == wanted and len(wanted) == 20


def test_a_kill_leaves_no_trace_in_the_first_losses(tmp_path):
    whole, _ = train(tmp_path, "whole")
    with pytest.raises(Killed):
        train(tmp_path, "killed", Setting(extra=die_at(7)))
    killed, _ = train(tmp_path, "killed", resume=True)
    assert (killed.folder / FIRST_LOSSES).read_text() == (whole.folder / FIRST_LOSSES).read_text()


def test_the_verdict_names_the_first_difference():
    assert compare({1: 0.5, 2: 0.25}, {1: 0.5, 2: 0.25, 3: 9.0}) == ("2 of 2 losses equal", True)
    text, equal = compare({1: 0.5, 2: 0.25, 3: 1.0}, {1: 0.5, 2: 0.75})
    assert text == "1 of 3 losses equal; the first difference is at update 2: 0.25 then, 0.75 now" and not equal
    assert compare({1: 0.5}, {})[0].endswith("0.5 then, missing now")


def test_the_command_names_the_files_the_run_began_with_and_stops_early(tmp_path):
    began = "python -m projects.arc finetune --config a.yaml --config='b c.yaml' --ckpt_path x --optim.lr=1"
    line = list(command(began, tmp_path, "x", 4))
    assert line[1:4] == ["-m", "projects.arc", "finetune"]
    assert line[4:8] == ["--config=a.yaml", "--config=b c.yaml", "--ckpt_path=x", f"--run.root={tmp_path}"]
    assert "--trainer.callbacks.updates=4" in line
    assert not any(word.startswith("--trainer.max_steps") for word in line), "it decides the learning rates"
