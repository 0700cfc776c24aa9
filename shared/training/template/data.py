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

from shared.training.batches import Batch, ResidentBatches, Share, StatelessBatches, loader, placed
from shared.training.randomness import Randomness, sample_rng

MOONS_SEED = 1  # of the world, not of the run: every run sees the same points
TRAIN = 20_000  # points to learn from
NEAR = 0.2  # of a moon's radius: closer than this counts as on the moon


@dataclass
class Points(Batch):
    x0: Tensor  # [B, 2] float32, radius 1 per moon, centred


class TemplateData(LightningDataModule):
    """batch_size: samples per update, all ranks. held_out: points of each evaluation."""

    randomness = Randomness()

    def __init__(self, batch_size: int = 192, micro_batch: int | Literal["auto"] = "auto", held_out: int = 2_048):
        super().__init__()
        self.batch_size, self.micro_batch = batch_size, micro_batch
        self.x0 = {name: moons(n, name) for name, n in (("train", TRAIN), ("val", held_out), ("test", held_out))}

    def describe(self) -> dict[str, str]:
        sizes = ", ".join(f"{len(points):,} {name}" for name, points in self.x0.items())
        return {"source": "two moons, made in memory", "points": sizes, "version": f"1, seed {MOONS_SEED}"}

    def train_dataloader(self):
        seed, place = self.randomness.seed, placed(self.trainer)
        batches = StatelessBatches(TRAIN, seed=seed, batch_size=self.batch_size, **place)
        return ResidentBatches(batches, partial(self._points, "train"))

    def val_dataloader(self):
        return self._whole("val")

    def test_dataloader(self):
        return self._whole("test")

    def _whole(self, name: str):
        """One batch of all points; they are few enough for each rank to do all of them."""
        return loader([Share.of(range(len(self.x0[name])))], partial(self._points, name))  # type: ignore[arg-type]

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


def measured(points: Tensor, held_out: Tensor) -> tuple[float, float]:
    """(sliced W2 to the held-out points, share within NEAR of a moon)"""
    return float(sliced_w2(points, held_out)), float((distance_to_moons(points) < NEAR).float().mean())


def floors(held_out: Tensor, draws: int = 5) -> tuple[dict[str, float], dict[str, float]]:
    """`measured` of what the walk starts from and of fresh data, by name: means of `draws` clouds."""
    noise = [torch.randn(held_out.shape, generator=sample_rng(i, "noise floor")) for i in range(draws)]
    clouds = {"noise": noise, "data": [moons(len(held_out), f"floor {i}") for i in range(draws)]}
    both = {name: torch.tensor([measured(c, held_out) for c in cs]).mean(0).tolist() for name, cs in clouds.items()}
    return {name: w2 for name, (w2, _) in both.items()}, {name: on for name, (_, on) in both.items()}
