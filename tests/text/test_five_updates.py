"""Every objective and every recipe learns for five updates by the real command; real text has its own smoke."""

from pathlib import Path

import pytest
import torch
import yaml

from projects.text.module import OBJECTIVES
from shared.training import checkpoints
from shared.training.tables import read_table
from tests.lines import ROOT, Line

pytestmark = [
    pytest.mark.usefixtures("at_home"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
TEXT = Line("text")
SHORT = ("--trainer.max_steps=5", "--run.validate_every=5", "--run.test_after_fit=false", "--snapshots.every=null",
         "--logging.every=1")  # fmt: skip


def of_the_grammar(overlay: Path) -> bool:
    """Whether a file is laid over a size and needs no file of text."""
    text = overlay.read_text()
    said = yaml.safe_load(text) or {}
    return text.startswith("# overlay") and said.get("data", {}).get("source", "grammar") == "grammar"


RECIPES = [f"--config=configs/text/{path.name}" for path in sorted((ROOT / "configs/text").glob("*.yaml"))
           if of_the_grammar(path) and path.stem not in OBJECTIVES]  # fmt: skip


@pytest.mark.parametrize("given", [*(f"--model.objective={name}" for name in OBJECTIVES), *RECIPES], ids=str)
def test_every_objective_and_every_recipe_learns_for_five_updates(given, tmp_path):
    TEXT.run(*TEXT.fit(tmp_path, "run", given, "--config=tests/smoke/text.yaml", *SHORT))
    run = TEXT.folder(tmp_path) / "run"
    losses = torch.tensor([*read_table(run / "metrics.csv")["train/loss"].values()])
    assert len(losses) == 5 and losses.isfinite().all() and len(losses.unique()) == 5
    content = checkpoints.read(run / "checkpoints/last.ckpt")
    averaged = content["state_dict"]
    raw = content.get("current_model_state")  # of a recipe that averages
    assert raw is None or any(not torch.equal(value, averaged[name]) for name, value in raw.items())
