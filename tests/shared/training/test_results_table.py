"""The tables of measured results hold what reports said and nothing else, and the READMEs show those tables."""

from pathlib import Path

import pytest

from shared.training import layout, results_table, runs
from shared.training.errors import Mistake
from tests.shared.training.loop import Setting, train

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

ROOT = Path(__file__).parents[3]
FILES = [file for room in ("projects", "shared/training") for file in ROOT.glob(f"{room}/*/results/goals.yaml")]
FOLDERS = [file.parent.parent for file in FILES]
GOALS = """\
- {goal: the error, must: 0.6, moonshot: 0.2, run: nano, metric: error, command: make train}
- {goal: seconds, run: nano, metric: training seconds, command: make train}
- {goal: on a card, must: 1, run: lorge, metric: error, command: make train SIZE=lorge, hardware: one H200}
"""


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_readme_shows_the_table_of_its_results(folder):
    text = (folder / "README.md").read_text()
    again = layout.inserted(text, "measured", results_table.table(folder))
    assert again == text, f"type: python -m shared.training.results_table {folder.name}"


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    run, _ = train(tmp_path_factory.mktemp("runs"), "a", Setting(test=True))
    return run


@pytest.fixture
def house(tmp_path):
    folder = tmp_path / "projects/toy"
    (folder / "results").mkdir(parents=True)
    (folder / "results/goals.yaml").write_text(GOALS)
    (folder / "README.md").write_text("# Toy\n<!-- measured -->\n<!-- /measured -->\n")
    return tmp_path


def cells(house: Path) -> list[list[str]]:
    lines = (house / "projects/toy/README.md").read_text().splitlines()[4:-1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_what_nobody_measured_says_so_with_the_command_that_would(house):
    results_table.main(["toy"], house)
    assert [row[3] for row in cells(house)] == ["not measured"] * 3
    assert cells(house)[2] == ["on a card", "1", "-", "not measured", "`make train SIZE=lorge`", "-", "one H200", "-"]


def test_a_measured_row_holds_the_value_of_the_report_with_its_origin(house, tested):
    results_table.main(["toy", str(tested.folder)], house)
    device = tested.manifest["starts"][0]["machine"]["device"]
    error, seconds, card = cells(house)
    assert error == ["the error", "0.6", "0.2", "**0.5 (0.4 .. 0.6)**", "`make train`", "abc", device, "7"]
    report = runs.read_json(tested.folder / "report.json")
    assert seconds[3] == f"**{report['wall_clock_s']:.4g}**"
    assert card[3] == "not measured"
    results_table.main(["toy"], house)
    assert cells(house)[0] == error, "the numbers are kept beside the table"


def test_seeds_of_one_name_are_told_together(house, tested, tmp_path):
    other = tmp_path / "toy/nano/b"
    other.mkdir(parents=True)
    for name in ("manifest.json", "report.json"):
        (other / name).write_text((tested.folder / name).read_text())
    report = runs.read_json(other / "report.json")
    report["seed"] = 8
    report["metrics"][0]["value"] = 0.25
    runs.write_json(other / "report.json", report)
    results_table.main(["toy", str(tested.folder), str(other)], house)
    assert cells(house)[0][3::4] == ["**0.375 (0.25 .. 0.5 over 2 seeds)**", "7, 8"]
    results_table.main(["toy", str(tested.folder), "--as", "lorge"], house)
    assert cells(house)[2][3] == "**0.5 (0.4 .. 0.6)**", "under a name of its own"


def test_a_run_that_says_nothing_of_the_goal_is_refused(house, tested, tmp_path):
    untested, _ = train(tmp_path, "b", Setting(updates=2, test_after_fit=False))
    with pytest.raises(Mistake, match="was not evaluated: make evaluate PROJECT=toy CKPT="):
        results_table.main(["toy", str(untested.folder)], house)
    with pytest.raises(Mistake, match="is a run of toy, not of arc"):
        results_table.main(["arc", str(tested.folder)], house)
    (house / "projects/toy/results/goals.yaml").write_text(GOALS.replace("metric: error", "metric: eror"))
    with pytest.raises(Mistake, match=r"names the metric `eror`, but nano has .*Did you mean `error`"):
        results_table.main(["toy", str(tested.folder)], house)
    with pytest.raises(Mistake, match="list the goals there"):
        results_table.table(house)
