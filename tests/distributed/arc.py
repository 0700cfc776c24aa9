"""Tiny runs of the line arc, its adaptation and its evaluation on any number of ranks, through the command line."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

from projects.arc.data import ArcData
from projects.arc.finetune import FinetuneOptions
from projects.arc.module import ArcModule
from shared.processes.draws import PerSegment
from shared.training import cli
from tests.distributed.adapted import moved, spelled

LAYERS = [f"--config=configs/{name}.yaml" for name in ("arc/base", "arc/nano", "hardware/cpu")]
SMALL = ["--trainer.max_steps=2", "--optim.warmup=1", "--optim.lr=0.01", "--ema.decay=0.5", "--logging.every=1",
         "--snapshots.every=null", "--data.tasks=[25ff71a9,3c9b0459,d037b0a7]", "--data.batch_units=null",
         "--data.batch_size=24", "--model.width=32", "--model.heads=2", "--model.depth=3", "--model.eval.views=8",
         "--model.eval.num_steps=2", "--model.condition_dropout=0", "--model.self_condition.at=same",
         "--model.self_condition.share=1"]  # fmt: skip
GROUPS = {"finetune": FinetuneOptions}
KNOWN, NEW = "25ff71a9", "a416b8f3"


def learn(root: Path, name: str, world: int = 1, verb: str = "fit", **flags: Any) -> Any:
    """All ranks: two updates whose noise is each sample's own, so that every split of the batch sees the same."""
    flags = {"run.root": root, "run.name": name, "trainer.devices": world, "run__test_after_fit": False} | flags
    with patch.object(ArcModule, "path", _by_sample):
        return cli.main(ArcModule, ArcData, [verb, *LAYERS, *SMALL, *spelled(flags)], groups=GROUPS)


def adapt(root: Path, base: Path, name: str, world: int = 1, **flags: Any) -> list[str]:
    """All ranks: adapters and the rows of two tasks, one of them new to the base. Returns what of the base moved."""
    tasks = {"data.tasks": f"[{KNOWN},{NEW}]", "config": "configs/arc/lora.yaml", "ckpt_path": base}
    plain = {"optim.kind": "adamw", "optim.warmup": 1, "ema.decay": 0.5, "logging.every": 1, "trainer.max_steps": 2}
    return moved(learn(root, name, world, "finetune", **tasks, **plain, **flags))


def _by_sample(module: ArcModule, batch: Any) -> PerSegment:
    named = [(batch.share.update, int(position)) for position in batch.share.position]
    return PerSegment([module.randomness.sample(name) for name in named], batch.answer.lengths.tolist())


def trained(root: Path) -> Path:
    """One process: train and evaluate; copies of the run are left for the ranks, one evaluated raw."""
    learn(root, "alone", run__test_after_fit=True)
    home = root / "arc/nano"
    for copy in ("ranks", "raw", "raw-cut"):
        shutil.copytree(home / "alone", home / copy)
        for name in ("answers.json", "report.json"):
            (home / copy / name).unlink()
    evaluate(root, "raw", 1, checkpoint__weights="raw")
    return home


def evaluate(root: Path, name: str, world: int, **flags: Any) -> None:
    """All ranks: that copy of the run again, its queries shared between them."""
    flags = {"ckpt_path": root / "arc/nano" / name, "trainer.devices": world} | flags
    cli.main(ArcModule, ArcData, ["test", LAYERS[-1], *spelled(flags)], groups=GROUPS)


def answers(run: Path) -> Any:
    """What was answered, and how it scored."""
    answered, report = (json.loads((run / name).read_text()) for name in ("answers.json", "report.json"))
    return answered, report["headline"], report["metrics"]
