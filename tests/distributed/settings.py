"""The fits that ranks make together and one process makes alone, by name."""

import shutil
from pathlib import Path

from shared.training.checkpoints import CheckpointOptions
from shared.training.ema import EmaOptions
from shared.training.optim import Recipe
from shared.training.runs import read_json, write_json
from tests.distributed.project import Setting

MUON = Recipe(kind="muon", lr=1e-2, warmup=1)


def halfway(**more) -> Setting:
    """Six updates whose third is kept; the logs of that interval are not written yet."""
    return Setting(updates=6, log_every=2, checkpoint=CheckpointOptions(every=1000, keep_every=3), **more)


def copy_of_third(folder: Path, name: str, twin: str) -> None:
    """The run `name` as if it had been stopped after its third update."""
    home = folder / "toy/nano"
    shutil.copytree(home / name, home / twin)
    (home / twin / "checkpoints/update-3.ckpt").replace(home / twin / "checkpoints/last.ckpt")
    manifest = read_json(home / twin / "manifest.json")
    write_json(home / twin / "manifest.json", {k: v for k, v in manifest.items() if k != "finished"})


def fits() -> dict[str, Setting]:
    """Fresh settings: a fit may not leave anything to the next."""
    return {
        "k1": Setting(),
        "k2": Setting(accumulate=2),
        "k4": Setting(accumulate=4),
        "clipped": Setting(clip=0.05),
        "normalised": Setting(normalised=True),
        "averaged": Setting(ema=EmaOptions(decay=0.9, power=[0.1])),
        "evaluated": Setting(validate_every=5),
        "muon": Setting(updates=3, recipe=MUON),
        "resumed": halfway(),
    }


TEMPLATE = ["fit", "--config=configs/template/base.yaml", "--config=configs/template/nano.yaml",
            "--config=configs/hardware/cpu.yaml", "--randomness.mode=sample", "--trainer.max_steps=50",
            "--data.batch_size=48", "--data.micro_batch=48", "--data.held_out=64",
            "--model.width=16", "--sampling.steps=2", "--run.validate_every=25", "--logging.every=1",
            "--snapshots.every=25"]  # fmt: skip


def template(root, world: int) -> list[str]:
    """The template project through its command line, 50 updates on `world` ranks."""
    return [*TEMPLATE, f"--run.root={root}", "--run.name=row6", f"--trainer.devices={world}"]
