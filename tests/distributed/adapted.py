"""Adapters on the template's network by the command line: a base of one process, adapted by any number of ranks.
What a run of the command line leaves, of any project, is read here too."""

from pathlib import Path
from typing import Any

import torch

from shared.training import checkpoints, cli
from shared.training.shards import whole
from shared.training.template.data import TemplateData
from shared.training.template.module import TemplateModule
from tests.distributed.facts import furthest, table

LAYERS = [f"--config=configs/{name}.yaml" for name in ("template/base", "template/nano", "hardware/cpu")]
SMALL = ["--randomness.mode=sample", "--data.batch_size=48", "--data.micro_batch=48", "--data.held_out=64",
         "--model.width=16", "--sampling.steps=2", "--snapshots.every=null", "--run.test_after_fit=false"]  # fmt: skip
PARTS = ("state_dict", "current_model_state", "averaging_state", "optimizer_states")


def base(root: Path) -> None:
    """One process trains what will be adapted."""
    last = [f"--run.root={root}", "--run.name=base", "--trainer.max_steps=3", "--run.validate_every=null"]
    cli.main(TemplateModule, TemplateData, ["fit", *LAYERS, *SMALL, *last])


def finetune(root: Path, name: str, world: int = 1, updates: int = 3, **more: Any) -> list[str]:
    """All ranks. more: flags, `__` for a dot. Returns `moved`."""
    flags = {
        "config": "configs/template/lora.yaml", "ckpt_path": root / "template/nano/base", "run.root": root,
        "run.name": name, "trainer.devices": world, "trainer.max_steps": updates, "run.validate_every": 3,
        "logging.every": 1,
    } | more  # fmt: skip
    return moved(cli.main(TemplateModule, TemplateData, ["finetune", *LAYERS, *SMALL, *spelled(flags)]))


def spelled(flags: dict[str, Any]) -> list[str]:
    return [f"--{key.replace('__', '.')}={value}" for key, value in flags.items()]


def moved(done: Any) -> list[str]:
    """Names of frozen parameters that are, in memory, not bit for bit those of the base; all ranks ask."""
    frozen = {n: whole(p).detach() for n, p in done.model.named_parameters() if not p.requires_grad}
    base = checkpoints.read(done.model.adapted["base"])["state_dict"]
    assert frozen and not any("lora_" in name for name in frozen)
    names = {name: name.replace(".token_adapter", "").replace(".base_layer", "") for name in frozen}
    return [name for name, p in frozen.items() if not torch.equal(p[: len(base[names[name]])], base[names[name]])]


def run(root: Path, name: str) -> Path:
    return root / "template/nano-lora" / name


def losses(run: Path) -> list[float]:
    return [*table(run, "train/loss").values()]


def kept(run: Path) -> int:
    """Bytes of its last.ckpt."""
    return (run / "checkpoints/last.ckpt").stat().st_size


def stored(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor that last.ckpt holds for going on, by its place in the file."""
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
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
