"""Two moons in the plane, made in memory, and how far a cloud of points is from them.

Training, validation and test points come from generators of their own. Knows no corruption and no network.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from shared.training.batches import Batch, ResidentBatches, Share, StatelessBatches, loader
from shared.training.randomness import Randomness, sample_rng

MOONS_SEED = 1  # of the world, not of the run: every run sees the same points


@dataclass
class Points(Batch):
    x0: Tensor  # [B, 2] float32, radius 1 per moon, centred


class TemplateData(LightningDataModule):
    """train: points to learn from; held_out: points of each evaluation; batch_size: samples per update, all ranks."""

    randomness = Randomness()

    def __init__(
        self,
        batch_size: int = 192,
        micro_batch: int | Literal["auto"] = "auto",
        train: int = 20_000,
        held_out: int = 2_048,
    ):
        super().__init__()
        self.batch_size, self.micro_batch = batch_size, micro_batch
        self.x0 = {"train": moons(train, "train"), "val": moons(held_out, "val"), "test": moons(held_out, "test")}

    def describe(self) -> dict[str, str]:
        sizes = ", ".join(f"{len(points):,} {name}" for name, points in self.x0.items())
        return {"source": "two moons, made in memory", "points": sizes, "version": f"1, seed {MOONS_SEED}"}

    def train_dataloader(self) -> ResidentBatches:
        trainer = self.trainer
        assert trainer is not None
        batches = StatelessBatches(
            len(self.x0["train"]),
            seed=self.randomness.seed,
            batch_size=self.batch_size,
            world=trainer.world_size,
            rank=trainer.global_rank,
            accumulate=trainer.accumulate_grad_batches,
            start=lambda: trainer.global_step,
        )
        return ResidentBatches(batches, partial(self._points, "train"))

    def val_dataloader(self) -> DataLoader:
        return self._whole("val")

    def test_dataloader(self) -> DataLoader:
        return self._whole("test")

    def _whole(self, name: str) -> DataLoader:
        """One batch of all points; they are few enough for each rank to do all of them."""
        whole = Share.of(range(len(self.x0[name])))
        return loader([whole], partial(self._points, name))  # type: ignore[arg-type]

    def _points(self, name: str, share: Share) -> Points:
        return Points(share, len(share), self.x0[name][torch.from_numpy(share.index)])


def moons(count: int, name: str, noise: float = 0.05) -> Tensor:
    """[count, 2] points on two interleaved half circles, drawn from the generator called `name`."""
    rng = sample_rng(MOONS_SEED, name)
    angle, lower = math.pi * torch.rand(count, generator=rng), torch.rand(count, generator=rng) < 0.5
    return curve(angle, lower) + noise * torch.randn(count, 2, generator=rng)


def curve(angle: Tensor, lower: Tensor) -> Tensor:
    """The point [N, 2] at `angle` of the upper moon, or of the lower one where `lower`."""
    upper = torch.stack([angle.cos(), angle.sin()], dim=-1) - torch.tensor([0.5, 0.25])
    return torch.where(lower[:, None], -upper, upper)


def distance_to_moons(points: Tensor) -> Tensor:
    """[N]: from each point [N, 2] to the nearer of the two noiseless curves."""
    angle = torch.linspace(0, math.pi, 256).repeat(2)
    return torch.cdist(points, curve(angle, torch.arange(512) < 256)).min(dim=1).values


def sliced_w2(a: Tensor, b: Tensor, directions: int = 64) -> Tensor:
    """Sliced Wasserstein-2 distance of two clouds [N, 2] (Bonneel et al. 2015), over evenly spaced directions."""
    angle = math.pi * torch.arange(directions) / directions
    onto = torch.stack([angle.cos(), angle.sin()])
    return ((a @ onto).sort(dim=0).values - (b @ onto).sort(dim=0).values).square().mean().sqrt()
