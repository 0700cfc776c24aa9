"""A small module on the micro grammar, without a Trainer; its zero heads say something."""

import torch

from projects.text.data import Sentences, TextData
from projects.text.module import TextDiffusion
from projects.text.network import Trunk
from shared.training.batches import Share
from tests.lines import awake

SIZES = {"width": 32, "depth": 2, "heads": 2, "hidden": 64, "level": 16, "gate_init": 1.0, "bias_ramp_updates": 1}

ENCODER = {"kind": "encoder", "width": 32, "depth": 2, "heads": 2, "hidden": 64, "level": 16, "level_hidden": 24}


def text_module(seed: int = 0, asleep: bool = False, sizes: dict | None = None, **options) -> TextDiffusion:
    """asleep: as a network starts, before `awake`. sizes: of the trunk, in place of SIZES."""
    torch.manual_seed(seed)
    module = TextDiffusion(network=Trunk(**{**SIZES, **(sizes or {})}), **options)
    module.adopt(TextData(level="micro", batch_size=8), None)
    module.configure_model()
    module.network.ramp.fill_(1.0)
    if not asleep:
        awake(module.network, seed)
    return module.eval()


def states(network, count: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """x_t [B, L, E] and t [B], about as they come."""
    rng = torch.Generator().manual_seed(seed)
    x_t = torch.randn(count, network.length, network.rows.embedding_dim, generator=rng)
    return x_t, torch.linspace(0.1, 0.9, count)


def batch_of(module: TextDiffusion, count: int = 8, first: int = 0) -> Sentences:
    return module.data.sentences("train", Share.of(range(first, first + count)))


def padded(batch: Sentences, fill: int = 0) -> Sentences:
    """The same as rows whose padding does not count, and holds `fill`."""
    valid = (batch.ids != 0) | (torch.arange(batch.ids.shape[1]) == 0)
    return Sentences(
        batch.share, int(valid.sum()), torch.where(valid, batch.ids, fill), valid, batch.known, batch.index, full=False
    )
