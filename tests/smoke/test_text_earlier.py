"""The recipes of the earlier system through the command line: five updates, and a report that says what is wrong."""

import json

import pytest

from tests.lines import Line

pytestmark = [
    pytest.mark.usefixtures("at_home"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
TEXT = Line("text")
WRONG = {
    "earlier_bart": "stride adjacent, clamp_space raw_rows, specials skipped",
    "earlier_bert": "clamp_metric dot, x0 placed, specials skipped",
}


@pytest.mark.parametrize("recipe", WRONG)
def test_a_recipe_of_the_earlier_system_trains_and_its_report_says_what_is_wrong(recipe, tmp_path):
    TEXT.run(*TEXT.fit(tmp_path, recipe, f"--config=configs/text/{recipe}.yaml", "--trainer.max_steps=5",
                       "--snapshots.every=5", "--run.validate_every=5", "--data.held_out=8",
                       "--model.likelihood.sentences=4", "--model.likelihood.levels=2"))  # fmt: skip
    run = TEXT.folder(tmp_path) / recipe
    said = json.loads((run / "report.json").read_text())
    assert said["facts"]["compat"] == WRONG[recipe]
    assert {"parse", "unigram_kl", "special", "cross_entropy"} <= {metric["name"] for metric in said["metrics"]}
    head, *drawn = (run / "samples/5/samples.txt").read_text().splitlines()
    assert "[PAD]" in head and drawn and not any("[" in line for line in drawn)
