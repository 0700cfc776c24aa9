"""Laws of the report: every number beside its floors, the command that repeats it, and only files that exist."""

import json
import re

import numpy
import pytest

from shared.training import report
from shared.training.report import interval, number
from tests.shared.training.loop import Setting, train

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    run, _ = train(root, "a", Setting(test=True))
    picture = run.samples / "12" / "walk.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"png")
    return run


def test_a_tested_run_reports_metrics_beside_floors(tested, capsys):
    content = json.loads((tested.folder / "report.json").read_text())
    assert content["headline"] == "error 0.5"
    assert content["metrics"] == [
        {"name": "error", "value": 0.5, "n": 4, "low": 0.4, "high": 0.6, "floors": {"mean": 1.0, "chance": 2.0}}
    ]
    assert content["command"] == "make train PROJECT=toy"
    assert (content["seed"], content["parameters"], content["updates"]) == (7, 148, 12)
    assert content["data"] == {"source": "numbers"}
    assert content["throughput"]["samples_per_s"] > 0
    assert content["wall_clock_s"] > 0
    assert "error 0.5" in (tested.folder / "train.log").read_text()
    text = (tested.folder / "report.md").read_text()
    assert "| metric | value | 95 % interval | n | floor: mean | floor: chance |" in text
    assert "| error | **0.5** | 0.4 .. 0.6 | 4 | 1 | 2 |" in text
    assert "make train PROJECT=toy" in text


def test_a_report_written_again_keeps_what_the_test_measured(tested, capsys):
    before = (tested.folder / "report.md").read_text()
    report.again(str(tested.folder))
    after = (tested.folder / "report.md").read_text().replace("![walk](samples/12/walk.png)\n", "")  # came later
    measured, repeated = (text.split("## To repeat it")[0] for text in (before, after))
    assert measured == repeated and "**0.5**" in measured
    assert str(tested.folder / "report.md") in capsys.readouterr().out


def test_pictures_shown_exist(tested):
    report.write(tested)
    text = (tested.folder / "report.md").read_text()
    shown = re.findall(r"!\[\w+\]\((.*?)\)", text)
    assert shown == ["curves.png", "samples/12/walk.png"]
    assert all((tested.folder / picture).exists() for picture in shown)


def test_a_run_that_was_not_tested_reports_its_last_validation(tmp_path):
    run, _ = train(tmp_path, "a", Setting(test_after_fit=False))
    content = json.loads((run.folder / "report.json").read_text())
    assert [metric["name"] for metric in content["metrics"]] == ["val/error", "val/rows"]
    assert "Not evaluated yet" in (run.folder / "report.md").read_text()


def test_a_run_killed_before_its_first_row_can_still_be_reported(tmp_path):
    run, _ = train(tmp_path, "a", Setting(updates=1))
    for name in ("metrics.csv", "perf.csv", "plan.json"):
        (run.folder / name).unlink()
    manifest = run.manifest
    del manifest["finished"]
    (run.folder / "manifest.json").write_text(json.dumps(manifest))
    assert "| updates | 0 |" in report.write(run).read_text()


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = numpy.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = interval(rng.normal(size=60), repeats=400)
        hits += low < 0 < high
    assert 180 <= hits <= 199  # 190 expected; 3.2 standard errors below, and not always


def test_the_interval_of_one_value_is_that_value():
    assert interval([2.0, 2.0]) == (2.0, 2.0)


def test_numbers_read_well():
    assert [number(x) for x in (None, 3.0, 0.052346, 12345.6, 1e6)] == ["-", "3", "0.05235", "12,346", "1,000,000"]
