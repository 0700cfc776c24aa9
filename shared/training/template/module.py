"""Learning to draw two moons by denoising, with nothing that a complete project could do without.

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
from shared.training.randomness import Randomness
from shared.training.report import Metric, Results, interval, save_figure
from shared.training.samples import Sample, SamplingOptions
from shared.training.template.data import NEAR, Points, distance_to_moons, floors, measured, moons, sliced_w2
from shared.training.template.network import TemplateNetwork


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
        self.tested = self.walk(batch.share.index.tolist()).cpu(), batch.x0.cpu()  # all of them: one batch

    def walk(self, seeds: list[int], watch=None) -> Tensor:
        """[len(seeds), 2]: one point per seed, the same in any company."""
        rng = [self.randomness.sample(seed) for seed in seeds]
        start = self.process.prior(torch.zeros(len(seeds), 2, device=self.device), rng)
        return sample(self.denoise, self.process.step, start, uniform_grid(self.sampling.steps), watch)

    def sample(self, seeds: list[int]) -> list[Sample]:
        return [Sample(data={"x0": point}) for point in self.walk(seeds).cpu()]

    def show(self, samples: list[Sample], folder: Path) -> list[Path]:
        """samples.png: the drawn points beside fresh data."""
        drawn = torch.stack([each.data["x0"] for each in samples])
        return [draw_clouds({"data": moons(2000, "shown"), "samples": drawn}, folder / "samples.png")]

    def draw(self, folder: Path, update: int) -> list[Path]:
        """walk.png: one cloud on its way from noise to the moons, coloured by where its points arrive."""
        path, steps = Trajectory(), self.sampling.steps
        self.walk(list(range(1000)), watch=path)
        shown = dict.fromkeys([0, steps // 2, 3 * steps // 4, 7 * steps // 8, steps - 1])
        clouds = {f"t = {1 - (step + 1) / steps:.2f}": path.x[step] for step in shown}
        return [draw_clouds(clouds, folder / "walk.png", path.x[-1][:, 0])]

    def results(self, folder: Path) -> Results:
        samples, held_out = self.tested
        (w2, on), (w2_floors, on_floors) = measured(samples, held_out), floors(held_out)
        spread, n = interval((distance_to_moons(samples) < NEAR).float().tolist()), len(samples)
        metrics = [
            Metric("sliced W2", w2, n, floors=w2_floors),
            Metric(f"share within {NEAR} of a moon", on, n, *spread, on_floors),
        ]
        beside = f"data {w2_floors['data']:.3f}, noise {w2_floors['noise']:.3f}"
        headline = f"sliced W2 {w2:.3f} to held-out moons ({beside}); {100 * on:.1f} % of samples on a moon"
        return Results(headline, metrics, facts={"walk": f"{self.sampling.steps} steps"})


def draw_clouds(clouds: dict[str, Tensor], file: Path, colour: Tensor | None = None) -> Path:
    """Clouds of points [N, 2] side by side under their names."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.4 * len(clouds), 2.3), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(clouds), squeeze=False)[0], clouds.items()):
        axes.scatter(*points.T, s=2, c=colour, cmap="coolwarm" if colour is not None else None)
        axes.set(xlim=(-3, 3), ylim=(-2, 2), aspect="equal", title=name)
    return save_figure(figure, file, 100)
