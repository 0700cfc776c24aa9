"""A tiny run of the line arc, and its evaluation on any number of ranks, through the command line."""

import json
import shutil
from pathlib import Path
from typing import Any

from projects.arc.data import ArcData
from projects.arc.module import ArcModule
from shared.training import cli

LAYERS = [f"--config=configs/{name}.yaml" for name in ("arc/base", "arc/nano", "hardware/cpu")]
SMALL = ["--trainer.max_steps=2", "--snapshots.every=null", "--data.tasks=[25ff71a9,3c9b0459,d037b0a7]",
         "--model.width=32", "--model.heads=2", "--model.depth=1", "--model.eval.views=8",
         "--model.eval.num_steps=2"]  # fmt: skip


def trained(root: Path) -> Path:
    """One process: train and evaluate; a second copy of the run is left for the ranks."""
    cli.main(ArcModule, ArcData, ["fit", *LAYERS, *SMALL, f"--run.root={root}", "--run.name=alone"])
    home = root / "arc/nano"
    shutil.copytree(home / "alone", home / "ranks")
    for name in ("answers.json", "report.json"):
        (home / "ranks" / name).unlink()
    return home


def evaluate(root: Path, world: int) -> None:
    """All ranks: the run `ranks` again, its queries shared between them."""
    run = root / "arc/nano/ranks"
    cli.main(ArcModule, ArcData, ["test", LAYERS[-1], f"--ckpt_path={run}", f"--trainer.devices={world}"])


def answers(run: Path) -> Any:
    return json.loads((run / "answers.json").read_text())
