"""Two moons, walked back by every process: `python -m shared.processes`.

The denoiser is the exact Bayes belief over the cloud (for the paths: the path itself), so what is left is the error of
the walk alone: mean distance of 500 samples to the nearest point of the moons, in units of their radius. Ids are the
coordinates in 48 bins each; the belief treats the two coordinates apart, which is why few steps cost there.
"""

import math
from functools import partial

import torch
from torch import Tensor

from shared import processes as house
from shared.sampling import sample, uniform_grid

STEPS, BINS, SAMPLES = (1, 2, 4, 16, 64), 48, 500


def moons(count: int) -> Tensor:
    """The two arcs as points [2 count, 2]."""
    angle = torch.linspace(0, math.pi, count)
    upper = torch.stack([angle.cos(), angle.sin()], -1)
    return torch.cat([upper, torch.tensor([1.0, 0.5]) - upper])


CLOUD = moons(100)
LOW, WIDTH = CLOUD.min(0).values, CLOUD.max(0).values - CLOUD.min(0).values
IDS = ((CLOUD - LOW) / WIDTH * (BINS - 1)).round().long()
POINTS = {"real": CLOUD, "ids": IDS / (BINS - 1) * WIDTH + LOW}


def bayes_mean(process, x: Tensor, t: Tensor) -> Tensor:
    alpha, sigma = process.schedule.alpha(t[0]), process.schedule.sigma(t[0])
    return torch.softmax(-torch.cdist(x, alpha * CLOUD).square() / (2 * sigma**2), -1) @ CLOUD


def bayes_logits(process, x: Tensor, t: Tensor) -> Tensor:
    table = process.marginal(IDS, t[:1].expand(len(IDS)))  # [points, 2, states]
    seen = sum(table[:, c][:, x[:, c]].log() for c in (0, 1)).T  # [samples, points]
    return torch.einsum("sp,pck->sck", seen.softmax(-1), process.certain(IDS).exp()).log()


def walk(process, denoise, like: Tensor, steps: int) -> Tensor:
    rng = torch.Generator().manual_seed(steps)
    return sample(denoise, partial(process.step, rng=rng), process.prior(like, rng), uniform_grid(steps))


def cloud_error(process, steps: int) -> float:
    kind = "real" if isinstance(process, house.Gaussian) else "ids"
    denoise = partial(bayes_mean if kind == "real" else bayes_logits, process)
    found = walk(process, denoise, torch.zeros(SAMPLES, 2), steps)
    found = found if kind == "real" else found / (BINS - 1) * WIDTH + LOW
    return torch.cdist(found, POINTS[kind]).min(1).values.mean().item()


def path_error(process, steps: int) -> float:
    path = moons(32)[None, :32]
    wrong = house.interpolate(path[:, ::31], torch.tensor([[0, 31]]), 32)
    start = wrong if isinstance(process, house.Bridge) else path
    return (walk(process, lambda x, t: path, start, steps) - path).norm(dim=-1).mean().item()


def main() -> None:
    survival = house.squared(house.cosine(0.008))
    order = torch.cat([torch.arange(1), torch.arange(2, 32), torch.arange(1, 2)])[None]  # both ends first
    rows = {
        "Gaussian cosine, eta 0": house.Gaussian(house.VariancePreserving(house.cosine())),
        "Gaussian cosine, eta 1": house.Gaussian(house.VariancePreserving(house.cosine()), 1.0),
        "Gaussian linear (flow)": house.Gaussian(house.Linear()),
        "Uniform, markov": house.Uniform(BINS, survival, final="sample"),
        "Uniform, coupled": house.Uniform(BINS, survival, joint="coupled", final="sample"),
        "Hybrid, 20 % uniform": house.Hybrid(BINS, BINS, survival, 0.2, final="sample"),
        "Absorbing": house.Absorbing(BINS, survival, BINS, final="sample"),
        "Bridge (paths)": house.Bridge(0.1),
        "Nested (paths)": house.Nested(order, house.counts("geometric", 32, 2)),
    }
    print(f"{'distance to the moons after':28s}" + "".join(f"{n:>9d}" for n in STEPS) + "  steps")
    for name, process in rows.items():
        error = path_error if "paths" in name else cloud_error
        print(f"{name:28s}" + "".join(f"{error(process, n):9.4f}" for n in STEPS))


if __name__ == "__main__":
    main()
