"""Laws of the ladder, on a make that trains nothing: what is finished is skipped, what fails stops it."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.training import ladder
from shared.training.errors import Mistake

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")

MAKEFILE = """\
home = runs/$(PROJECT)/$(SIZE)/new
config:
\t@test $(SIZE) != none
\t@printf 'model: {width: $(words $(filter-out --print_config,$(SIZE) $(ARGS)))}\\nrun: {root: runs, name: null}\\n'
train:
\t@echo '$(SIZE)$(STAGE) $(ARGS) SEED=$(SEED)' >> asked.txt
\t@test $(SIZE) != bad
\t@mkdir -p $(home)/checkpoints
\t@$(MAKE) config > $(home)/config.yaml
\t@echo '{}' > $(home)/manifest.json
\t@touch $(home)/checkpoints/final.ckpt
"""


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    (tmp_path / "Makefile").write_text(MAKEFILE)
    monkeypatch.chdir(tmp_path)
    for name in ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS", "SEED", "ARGS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def asked(folder: Path) -> list[str]:
    path = folder / "asked.txt"
    return path.read_text().splitlines() if path.exists() else []


def test_sizes_are_trained_in_the_order_given_with_the_arguments_given(workshop, capsys):
    assert ladder.main(["toy", "smol", "nano", "--optim.lr=1", "--data.path", "a b"]) == 0
    assert asked(workshop) == [f"{size} --optim.lr=1 --data.path a b SEED=" for size in ("smol", "nano")]
    assert capsys.readouterr().out.endswith("ladder      all sizes are finished\n")


def test_a_second_ladder_skips_what_is_finished_and_trains_what_has_changed(workshop, capsys):
    ladder.main(["toy", "nano", "smol"])
    capsys.readouterr()
    assert ladder.main(["toy", "nano", "smol"]) == 0
    said = capsys.readouterr().out
    assert len(asked(workshop)) == 2
    assert said.count("is finished with this configuration, skipped") == 2 and "runs/toy/nano/new" in said
    shutil.move("runs/toy/nano/new", "runs/toy/nano/old")
    assert ladder.main(["toy", "nano", "--optim.lr=2"]) == 0
    assert len(asked(workshop)) == 3, "another configuration is another run"


def test_a_run_that_was_broken_off_goes_on(workshop):
    ladder.main(["toy", "nano"])
    (workshop / "runs/toy/nano/new/checkpoints/final.ckpt").rename("runs/toy/nano/new/checkpoints/last.ckpt")
    ladder.main(["toy", "nano"])
    assert asked(workshop)[1] == "nano --run.name=new --run.resume=true SEED="


def test_the_first_failure_stops_the_ladder_unless_it_keeps_going(workshop, capsys):
    assert ladder.main(["toy", "nano", "bad", "smol"]) == 1
    assert [line.split()[0] for line in asked(workshop)] == ["nano", "bad"]
    assert "ladder      failed: bad" in capsys.readouterr().out
    assert ladder.main(["toy", "--keep-going", "nano", "bad", "smol"]) == 1
    assert [line.split()[0] for line in asked(workshop)[2:]] == ["bad", "smol"]


def test_a_size_that_does_not_exist_stops_the_ladder_before_it_starts(workshop):
    with pytest.raises(Mistake, match="Size none cannot be trained, so nothing was started"):
        ladder.main(["toy", "nano", "none"])
    assert asked(workshop) == []


def test_what_make_was_given_reaches_every_size(workshop):
    with open("Makefile", "a") as file:
        file.write(f"train-ladder:\n\t@{sys.executable} -m shared.training.ladder $(PROJECT) --stage=words nano\n")
    subprocess.run(["make", "train-ladder", "PROJECT=toy", "SEED=3"], check=True, stdout=subprocess.DEVNULL)
    assert asked(workshop) == ["nanowords  SEED=3"]


def test_a_detached_ladder_says_where_it_is_and_leads_a_session_of_its_own(workshop, capsys):
    assert ladder.main(["toy", "--detach", "nano"]) == 0
    process, log = capsys.readouterr().out.removeprefix("ladder      process ").strip().split(", log ")
    state = Path(f"/proc/{process}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[3] == process, "leader of its session"
    for _ in range(300):
        if "all sizes are finished" in Path(log).read_text():
            break
        time.sleep(0.1)
    assert asked(workshop) == ["nano  SEED="]
    assert json.loads(Path("runs/toy/nano/new/manifest.json").read_text()) == {}


def test_a_run_whose_configuration_is_torn_is_passed_over(tmp_path, capsys):
    for name, text in (("001", "model: {width"), ("002", "model: {width: 4}")):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        for file, content in (("manifest.json", "{}"), ("config.yaml", text), ("checkpoints/last.ckpt", "")):
            (tmp_path / name / file).write_text(content)
    assert ladder.same_runs(tmp_path, "model: {width: 4}") == {tmp_path / "002": False}
    assert f"passed over: {tmp_path}/001/config.yaml cannot be read" in capsys.readouterr().out
