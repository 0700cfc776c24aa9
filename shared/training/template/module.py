"""Learning to draw two moons by denoising: the smallest complete project, and the one to copy from.

Flow on the straight path (Lipman et al. 2023): the network gives a velocity, the process reads it as a belief of x0.
"""

from pathlib import Path

import torch
from lightning import LightningModule
from torch import Tensor

from shared.networks import flops
from shared.objectives import by_level, share, squared_error
from shared.processes import Gaussian, Linear
from shared.sampling import Trajectory, sample, uniform_grid
from shared.training import optim
from shared.training.pretrained import build
from shared.training.randomness import Randomness, sample_rng
from shared.training.report import Metric, Results, interval
from shared.training.samples import Sample, SamplingOptions
from shared.training.template.data import Points, distance_to_moons, moons, sliced_w2
from shared.training.template.network import TemplateNetwork

NEAR = 0.2  # of a moon's radius: closer than this counts as on the moon


class TemplateModule(LightningModule):
    """width, depth: of the network."""

    randomness = Randomness()
    optim_recipe = optim.Recipe()
    sampling = SamplingOptions()
    lora_targets = r"^blocks\.\d+\.(up|down)$"

    def __init__(self, width: int, depth: int):
        super().__init__()
        self.width, self.depth = width, depth
        self.process = build(Gaussian, schedule=build(Linear))
        self.drawn: list[tuple[Tensor, Tensor]] = []

    def configure_model(self) -> None:
        if not hasattr(self, "network"):
            self.network = build(TemplateNetwork, width=self.width, depth=self.depth)

    def flops(self, batch: Points) -> int:
        """Of one forward pass: every matrix is used once per point."""
        return flops.matrices(self.network, batch.num_samples)

    def configure_optimizers(self):
        return optim.build(self, self.optim_recipe, self.trainer.max_steps)

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        return self.process.x0_from_velocity(x, self.network(x, t), t)

    def loss(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """[B]: squared error of the velocity, written as a weight on the belief."""
        belief = self.denoise(self.process.corrupt(x0, noise, t), t)
        return squared_error(belief, x0) * self.process.weight(t, "velocity")

    def training_step(self, batch: Points, _: int):
        t = self.randomness.times(batch.share, device=self.device)
        noise = self.process.draw(batch.x0, self.randomness.rng(batch.share, self.global_rank, self.device))
        loss = self.loss(batch.x0, noise, t)
        return {"loss": share(loss, batch.global_samples, batch.shards), "logs": by_level(loss, t)}

    def validation_step(self, batch: Points, _: int):
        seeds = batch.share.index.tolist()
        noise = self.process.draw(batch.x0, [self.randomness.sample(("noise", seed)) for seed in seeds])
        loss = self.loss(batch.x0, noise, self.randomness.times(batch.share, device=self.device))
        return {"logs": {"loss": loss.mean(), "w2": sliced_w2(self.walk(seeds[:512]), batch.x0[:512])}}

    def test_step(self, batch: Points, _: int) -> None:
        self.drawn.append((self.walk(batch.share.index.tolist()), batch.x0))

    def walk(self, seeds: list[int], watch=None) -> Tensor:
        """[len(seeds), 2]: one point per seed, the same in any company."""
        rng = [self.randomness.sample(seed) for seed in seeds]
        start = self.process.prior(torch.zeros(len(seeds), 2, device=self.device), rng)
        return sample(self.denoise, self.process.step, start, uniform_grid(self.sampling.steps), watch)

    def sample(self, seeds: list[int]) -> list[Sample]:
        return [Sample(data={"x0": point}) for point in self.walk(seeds).cpu()]

    def show(self, samples: list[Sample], folder: Path) -> list[Path]:
        """samples.png: the drawn points over fresh data."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 3.4), layout="constrained")
        axes = figure.subplots()
        drawn = torch.stack([each.data["x0"] for each in samples])
        for points, size, name in ((moons(2000, "shown"), 1, "data"), (drawn, 12, "samples")):
            axes.scatter(points[:, 0], points[:, 1], s=size, label=name)
        axes.set(aspect="equal")
        axes.legend(frameon=False)
        figure.savefig(folder / "samples.png", dpi=100)
        return [folder / "samples.png"]

    def results(self, folder: Path) -> Results:
        samples, held_out = (torch.cat(parts).cpu() for parts in zip(*self.drawn))
        self.drawn.clear()
        w2, on = sliced_w2(samples, held_out).item(), (distance_to_moons(samples) < NEAR).float()
        w2_floors, on_floors = floors(held_out)
        metrics = [
            Metric("sliced W2", w2, len(samples), floors=w2_floors),
            Metric(f"share within {NEAR} of a moon", on.mean().item(), len(on), *interval(on.tolist()), on_floors),
        ]
        beside = f"data {w2_floors['data']:.3f}, noise {w2_floors['noise']:.3f}"
        headline = (
            f"sliced W2 {w2:.3f} to held-out moons ({beside}); {100 * metrics[1].value:.1f} % of samples on a moon"
        )
        return Results(headline, metrics, facts={"walk": f"{self.sampling.steps} steps"})

    def draw(self, folder: Path, update: int) -> list[Path]:
        """walk.png: one cloud on its way from noise to the moons, coloured by where its points arrive."""
        from matplotlib.figure import Figure

        path, steps = Trajectory(), self.sampling.steps
        self.walk(list(range(1000)), watch=path)
        shown = [0, steps // 2, 3 * steps // 4, 7 * steps // 8, steps - 1]
        figure = Figure(figsize=(12, 2.3), layout="constrained")
        for axes, step in zip(figure.subplots(1, len(shown)), shown):
            axes.scatter(*path.x[step].T, s=2, c=path.x[-1][:, 0], cmap="coolwarm")
            axes.set(xlim=(-3, 3), ylim=(-2, 2), aspect="equal", title=f"t = {1 - (step + 1) / steps:.2f}")
        figure.savefig(folder / "walk.png", dpi=100)
        return [folder / "walk.png"]


def floors(held_out: Tensor, draws: int = 5) -> tuple[dict[str, float], dict[str, float]]:
    """(sliced W2, share on a moon) of what the walk starts from and of fresh data, means of `draws` clouds."""
    noise = [torch.randn(held_out.shape, generator=sample_rng(i, "noise floor")) for i in range(draws)]
    clouds = {
        "noise": torch.stack(noise),
        "data": torch.stack([moons(len(held_out), f"floor {i}") for i in range(draws)]),
    }
    w2 = {name: sum(sliced_w2(cloud, held_out).item() for cloud in cs) / draws for name, cs in clouds.items()}
    return w2, {name: (distance_to_moons(cs.flatten(0, 1)) < NEAR).float().mean().item() for name, cs in clouds.items()}
