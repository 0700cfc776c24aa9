"""Laws of run folders: one name one run, a refused start writes nothing, tables forget only what comes again."""

import json
import re

import pytest
import torch

from shared.training import runs
from shared.training.errors import Mistake
from shared.training.loggers import CsvLogger
from shared.training.runs import (
    RunOptions,
    config_differences,
    config_hash,
    data_fingerprint,
    newest,
    open_run,
    reopen,
)
from shared.training.tables import Table, format_value, read_table, replacing

CONFIG = "seed_everything: 0\nmodel: {width: 64}\nrun: {name: a}\n"


def start(root, name=None, *, resume=False, config=CONFIG, updates=10, stage=None):
    plan = {"updates": updates, "git": "abc"}
    return open_run(RunOptions(name, str(root), resume), "toy", stage, "nano", config, plan, "make train PROJECT=toy")


def give_checkpoint(run):
    (run.checkpoints / "last.ckpt").write_bytes(b"weights")


def test_a_run_is_numbered_and_says_how_it_was_started(tmp_path):
    first, second = start(tmp_path), start(tmp_path)
    assert (first.name, second.name) == ("001", "002")
    assert first.folder == tmp_path / "toy/nano/001"
    assert start(tmp_path, stage="words").folder == tmp_path / "toy-words/nano/001"
    began = first.manifest["starts"][0]
    assert (began["command"], began["git"]) == ("make train PROJECT=toy", "abc")
    assert began["versions"]["torch"] == torch.__version__
    assert json.loads((first.folder / "plan.json").read_text())["updates"] == 10
    assert (first.folder / "config.yaml").read_text() == CONFIG


def test_the_next_number_ignores_named_runs(tmp_path):
    start(tmp_path, "best-of-7")
    start(tmp_path, "007")
    assert start(tmp_path).name == "008"


def test_an_existing_name_is_refused_and_untouched(tmp_path):
    run = start(tmp_path, "a")
    before = (run.folder / "manifest.json").read_text()
    with pytest.raises(Mistake, match=r"toy/nano/a exists. Continue it with run.resume true"):
        start(tmp_path, "a")
    assert (run.folder / "manifest.json").read_text() == before


@pytest.mark.parametrize("name", ["../up", "a b", "a/b"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path, name):
    with pytest.raises(Mistake, match="letters, digits"):
        start(tmp_path, name)
    assert not list(tmp_path.rglob("*"))


def test_resume_takes_the_newest_unfinished_run(tmp_path):
    runs_ = [start(tmp_path, name) for name in ("c", "b", "a")]
    for run in runs_:
        give_checkpoint(run)
    runs_[2].note(finished={"update": 10})
    taken = start(tmp_path, resume=True)
    assert (taken.name, taken.resume_from) == ("b", taken.checkpoints / "last.ckpt")
    assert len(taken.manifest["starts"]) == 2
    assert newest(tmp_path, "toy", None, "nano") == taken.folder


def test_resume_without_a_checkpoint_starts_the_same_run_anew(tmp_path):
    start(tmp_path, "a")
    assert start(tmp_path, "a", resume=True).resume_from is None


def test_nothing_to_resume_is_a_mistake_unless_auto(tmp_path):
    with pytest.raises(Mistake, match=r"Nothing to resume: .* no unfinished run"):
        start(tmp_path, resume=True)
    with pytest.raises(Mistake, match="no run named x"):
        start(tmp_path, "x", resume=True)
    assert not list(tmp_path.rglob("*"))
    assert start(tmp_path, resume="auto").name == "001"
    assert start(tmp_path, resume="auto").name == "001"  # now there is one


def test_a_finished_run_goes_on_only_with_more_updates(tmp_path):
    run = start(tmp_path, "a")
    run.note(finished={"update": 10})
    with pytest.raises(Mistake, match=r"has made all its 10 updates. Raise trainer.max_steps"):
        start(tmp_path, "a", resume=True)
    assert not start(tmp_path, "a", resume=True, updates=20).finished


def test_a_changed_configuration_is_told_and_both_files_are_kept(tmp_path, capsys):
    start(tmp_path, "a")
    run = start(tmp_path, "a", resume=True, config=CONFIG.replace("64", "96"))
    assert "model.width: 64 -> 96" in capsys.readouterr().out
    assert "64" in (run.folder / "config.0.yaml").read_text(), "named after the updates it made"
    assert "96" in (run.folder / "config.yaml").read_text()
    torch.save({"palimpsest": {"updates": 8}}, run.checkpoints / "last.ckpt")
    start(tmp_path, "a", resume=True, config=CONFIG.replace("64", "128"))
    start(tmp_path, "a", resume=True, config=CONFIG.replace("64", "256"))
    kept = {path.name: path.read_text() for path in run.folder.glob("config*.yaml")}
    assert {name: re.findall(r"64|96|128|256", text) for name, text in kept.items()} == {
        "config.0.yaml": ["64"],
        "config.8.yaml": ["96"],
        "config.yaml": ["256"],
    }


def test_every_start_is_written_down(tmp_path):
    start(tmp_path, "a")
    first, second = start(tmp_path, "a", resume=True).manifest["starts"]
    wanted = {"utc", "command", "argv", "resumed", "versions", "machine", "git", "data", "seed", "config"}
    assert first.keys() == second.keys() == wanted
    assert first["utc"] < second["utc"] and first["config"] == second["config"]
    assert first["machine"].keys() == {"system", "device", "threads", "processes"}


def test_a_hash_changes_with_the_configuration_and_not_with_how_the_run_is_started():
    assert config_hash(CONFIG) == config_hash(CONFIG.replace("name: a", "name: b"))
    assert config_hash(CONFIG) != config_hash(CONFIG.replace("64", "96"))


def test_the_fingerprint_of_data_is_its_own_or_that_of_its_description():
    assert data_fingerprint({"source": "x", "sha256": "abc"}) == "abc"
    assert data_fingerprint({"source": "x"}) != data_fingerprint({"source": "y"})
    assert data_fingerprint({}) == ""


def test_differences_leave_out_how_the_run_was_started():
    assert config_differences(CONFIG, CONFIG.replace("name: a", "name: b")) == []
    assert config_differences("a: {b: 1}\n", "a: {c: 2}\n") == ["a.b: 1 -> (not set)", "a.c: (not set) -> 2"]


def test_any_path_inside_a_run_finds_it(tmp_path):
    run = start(tmp_path, "a", stage="words")
    give_checkpoint(run)
    found = reopen(run.checkpoints / "last.ckpt", "make evaluate")
    assert (found.folder, found.stage, found.name, found.command) == (run.folder, "words", "a", "make evaluate")
    with pytest.raises(Mistake, match="not inside a run folder"):
        reopen(tmp_path)


def test_other_ranks_follow_rank_zero_and_write_nothing(tmp_path, monkeypatch):
    first = start(tmp_path)
    monkeypatch.setattr(runs, "rank", lambda: 1)
    before = sorted(first.folder.rglob("*"))
    second = start(tmp_path)
    assert second.folder == first.folder
    second.say("not heard")
    second.note(finished={})
    assert sorted(first.folder.rglob("*")) == before
    monkeypatch.delenv("PALIMPSEST_RUN")
    with pytest.raises(Mistake, match="common run name"):
        start(tmp_path)


def test_a_table_completes_its_last_row_and_takes_late_columns(tmp_path):
    table = Table(tmp_path / "m.csv")
    table.write(10, {"train/loss": 1 / 3})
    table.write(20, {"train/loss": 0.25})
    table.write(20, {"val/loss": 2.0})
    table.write(30, {"train/loss": 1e-12})
    assert (tmp_path / "m.csv").read_text() == ("update,train/loss,val/loss\n10,0.333333333,\n20,0.25,2\n30,1e-12,\n")
    assert read_table(tmp_path / "m.csv")["val/loss"] == {20: 2.0}


def test_a_rewound_table_is_bitwise_one_that_never_went_on(tmp_path):
    straight, torn = Table(tmp_path / "a.csv"), Table(tmp_path / "b.csv")
    for update in (10, 20):
        straight.write(update, {"loss": update / 7})
    for update in (10, 20, 30):
        torn.write(update, {"loss": update / 7} | ({"late": 1.0} if update == 30 else {}))
    with open(tmp_path / "b.csv", "a") as file:
        file.write("4")  # a kill in the middle of a line
    again = Table(tmp_path / "b.csv")
    again.rewind(20)
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    again.write(30, {"loss": 1.0})
    straight.write(30, {"loss": 1.0})
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()


def test_equal_text_means_equal_float32():
    values = torch.randn(1000).tolist()
    assert [torch.tensor(float(format_value(v))).item() for v in values] == values


def test_what_a_clock_says_stays_out_of_metrics(tmp_path):
    logger = CsvLogger(start(tmp_path, "a"))
    logger.log_metrics({"train/loss": 1.0, "perf/samples_per_s": 9.0, "seconds": 2.0}, step=5)
    assert (tmp_path / "toy/nano/a/metrics.csv").read_text() == "update,train/loss\n5,1\n"
    assert (tmp_path / "toy/nano/a/perf.csv").read_text() == "update,perf/samples_per_s,seconds\n5,9,2\n"
    with pytest.raises(ValueError, match=r"step=trainer.global_step"):
        logger.log_metrics({"train/loss": 1.0})


def test_a_torn_manifest_or_configuration_is_named_in_a_sentence(tmp_path):
    run = start(tmp_path)
    (run.folder / "config.yaml").write_text("model: {width")
    with pytest.raises(Mistake, match=r"config.yaml cannot be read"):
        runs.read_config(run.folder)
    (run.folder / "manifest.json").write_text('{"project": "to')
    for read in (lambda: reopen(run.folder), lambda: start(tmp_path, "001", resume=True)):
        with pytest.raises(Mistake, match=r"manifest.json is not JSON .* Restore it, or delete its folder"):
            read()
    (run.folder / "manifest.json").write_text('{"project": "toy", "starts": []}')
    with pytest.raises(Mistake, match=r"manifest.json is not the manifest of a run"):
        reopen(run.folder)


def test_a_torn_manifest_is_named_and_is_in_no_other_runs_way(tmp_path, capsys):
    torn, whole = start(tmp_path), start(tmp_path)
    (torn.folder / "manifest.json").write_text('{"project": "to')
    assert newest(tmp_path, "toy", None, "nano") == whole.folder
    assert "Passed over: " in (said := capsys.readouterr().err) and f"{torn.folder}/manifest.json is not JSON" in said
    assert start(tmp_path).name == "003"
    assert start(tmp_path, resume=True).name == "003", "the newest unfinished one"


def test_a_row_cut_by_a_kill_is_left_out_wherever_the_table_is_read(tmp_path):
    path, text = tmp_path / "m.csv", "update,loss,late\n10,0.5,\n20,0.25,1.25\n"
    for cut in range(len(text)):
        path.write_text(text[:cut])
        kept = {update for update, line in ((10, "0.5,\n"), (20, "1.25\n")) if line in text[:cut]}
        assert read_table(path).get("loss", {}).keys() == kept
        again = Table(path)
        again.rewind(20)
        assert {int(row["update"]) for row in again.rows} == kept
    path.write_text(text + 7 * "\0")
    assert read_table(path)["late"] == {20: 1.25}


def test_a_file_that_fails_midway_leaves_the_earlier_one(tmp_path):
    path = tmp_path / "a.png"
    with replacing(path) as file:
        file.write(b"whole")
    with pytest.raises(OSError, match="full"), replacing(path) as file:
        file.write(b"ha")
        assert path.read_bytes() == b"whole"
        raise OSError("full")
    assert [f.name for f in tmp_path.iterdir()] == ["a.png"] and path.read_bytes() == b"whole"
