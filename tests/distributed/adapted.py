"""Adapters on the template's network by the command line: a base of one process, adapted by any number of ranks."""

from pathlib import Path
from typing import Any

import torch

from shared.training import cli
from shared.training.template.data import TemplateData
from shared.training.template.module import TemplateModule
from tests.distributed.facts import furthest, table

LAYERS = [f"--config=configs/{name}.yaml" for name in ("template/base", "template/nano", "hardware/cpu")]
SMALL = ["--randomness.mode=sample", "--data.batch_size=48", "--data.held_out=64", "--model.width=16",
         "--sampling.steps=2", "--snapshots.every=null", "--run.test_after_fit=false"]  # fmt: skip
PARTS = ("state_dict", "current_model_state", "averaging_state", "optimizer_states")


def base(root: Path) -> None:
    """One process trains what will be adapted."""
    last = [f"--run.root={root}", "--run.name=base", "--trainer.max_steps=3", "--run.validate_every=null"]
    cli.main(TemplateModule, TemplateData, ["fit", *LAYERS, *SMALL, *last])


def finetune(root: Path, name: str, world: int = 1, updates: int = 3, **more: Any) -> None:
    """All ranks. more: flags, `__` for a dot."""
    flags = {
        "config": "configs/template/lora.yaml", "ckpt_path": root / "template/nano/base", "run.root": root,
        "run.name": name, "trainer.devices": world, "trainer.max_steps": updates, "run.validate_every": 3,
        "logging.every": 1,
    } | {key.replace("__", "."): value for key, value in more.items()}  # fmt: skip
    given = [f"--{key}={value}" for key, value in flags.items()]
    cli.main(TemplateModule, TemplateData, ["finetune", *LAYERS, *SMALL, *given])


def run(root: Path, name: str) -> Path:
    return root / "template/nano-lora" / name


def losses(root: Path, name: str) -> list[float]:
    return [*table(run(root, name), "train/loss").values()]


def stored(root: Path, name: str) -> dict[str, torch.Tensor]:
    """Every tensor that last.ckpt holds for going on, by its place in the file."""
    content = torch.load(run(root, name) / "checkpoints/last.ckpt", weights_only=True)
    return {key: value for part in PARTS for key, value in _tensors(content[part], part)}


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference between tensors of one name."""
    assert a.keys() == b.keys()
    return max(furthest(a[name].tolist(), b[name].tolist()) for name in a)


def _tensors(tree: Any, place: str) -> list[tuple[str, torch.Tensor]]:
    if isinstance(tree, torch.Tensor):
        return [(place, tree.reshape(-1))]
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [found for key, value in pairs for found in _tensors(value, f"{place}.{key}")]
