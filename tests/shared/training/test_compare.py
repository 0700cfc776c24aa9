"""Laws of the comparison: it names what differs and nothing else, and refuses what cannot be compared."""

import json
import re

import pytest

from shared.training import compare, runs
from shared.training.errors import Mistake
from shared.training.tables import read_table
from tests.shared.training.loop import Setting, train

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

CONFIG = "seed_everything: 7\noptim: {lr: 0.5}\nmodel: {width: 8}\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    tested, _ = train(root, "a", Setting(test=True))
    other, _ = train(root, "b", Setting(updates=6, test_after_fit=False))
    (tested.folder / "config.yaml").write_text(CONFIG)
    (other.folder / "config.yaml").write_text(CONFIG.replace("0.5", "0.25"))
    return tested, other


def test_the_differing_keys_and_both_results_are_printed_and_written(pair, capsys):
    compare.main([str(run.folder) for run in pair])
    said = capsys.readouterr().out
    assert re.search(r"\noptim.lr +0.5 +0.25\n", said)
    assert "model.width" not in said and "seed_everything" not in said
    assert re.search(r"\nerror +0.5 \(0.4 .. 0.6\) +-\n", said)
    assert re.search(r"\nval/error +- +0\.\d+\n", said), "the other one was not tested"
    home = pair[0].folder.parents[2] / "compare"
    assert {path.name for path in home.iterdir()} == {"a-vs-b.md", "a-vs-b.html"}
    assert "| optim.lr | 0.5 | 0.25 |" in (home / "a-vs-b.md").read_text()
    page = (home / "a-vs-b.html").read_text()
    assert all(f"Over {axis}" in page for axis in compare.AXES) and "http" not in page


def test_curves_run_over_updates_samples_and_hours(pair):
    run = pair[0]
    over = {axis: [x for x, _ in compare.curves(run, axis)["train/loss"]] for axis in compare.AXES}
    assert over["updates"] == [3, 6, 9, 12]
    assert over["samples"] == pytest.approx([24, 48, 72, 96])
    seconds = read_table(run.folder / "perf.csv")["seconds"]
    assert over["hours"] == pytest.approx([seconds[update] / 3600 for update in (3, 6, 9, 12)])
    assert [x for x, _ in compare.curves(run, "samples")["val/error"]] == pytest.approx([40, 80]), "between two rows"


def test_runs_of_two_projects_are_refused(pair, tmp_path):
    other = tmp_path / "other/nano/a"
    other.mkdir(parents=True)
    facts = {**pair[0].manifest, "project": "other"}
    (other / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(Mistake, match=r"is a run of toy, .* one of other"):
        compare.main([str(pair[0].folder), str(other)])


def test_two_different_runs_are_wanted(pair):
    folder = str(pair[0].folder)
    with pytest.raises(Mistake, match="takes two runs, 1 are given"):
        compare.main([folder])
    with pytest.raises(Mistake, match="named twice"):
        compare.main([folder, folder])
    with pytest.raises(Mistake, match="not inside a run folder"):
        compare.main([folder, "runs/nowhere"])


def test_runs_are_called_by_the_shortest_names_that_tell_them_apart(tmp_path):
    def names(*paths):
        return compare._names([runs.Run(tmp_path / path, "toy", None, "nano", "x") for path in paths])

    assert names("toy/nano/001", "toy/nano/002") == ["001", "002"]
    assert names("toy/nano/001", "toy/smol/001") == ["nano/001", "smol/001"]
