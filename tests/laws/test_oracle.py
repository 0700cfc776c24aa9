"""Another library walks the same paths: our steps equal the schedulers of diffusers to 1e-5 in float32.

All comparisons sit in one test, because importing that library takes seconds and each worker would pay for it.
"""

from itertools import pairwise

import pytest
import torch

from shared.processes import Dpm2m, Gaussian, Heun, Linear, VariancePreserving
from tests.laws.cases import generator

STEPS, TABLE = 10, 1000


def believe(x, t):
    """A denoiser bent enough to tell one solver from another."""
    return torch.tanh(1.3 * x) * (0.4 + 0.5 * t[:, None])


def tabled(alphas_cumprod):
    """The library's table as a signal function: its index i is t = (i + 1)/T."""
    signal = torch.cat([torch.ones(1), alphas_cumprod]).sqrt()
    return VariancePreserving(lambda t: signal[(t * TABLE).round().long()])


def clock(level) -> torch.Tensor:
    return torch.full((4,), float(level))


def noise() -> torch.Tensor:
    return torch.randn(4, 6, generator=generator(3))


def walk(step, levels, x, draws=True):
    for i, (t, s) in enumerate(pairwise(levels)):
        rng = [generator(50 + i)] if draws else []
        x = step(x, believe(x, clock(t)), clock(t), clock(s), *rng)
    return x


def strided(scheduler):
    """Levels of a scheduler's integer timesteps, data last."""
    return [(int(i) + 1) / TABLE for i in scheduler.timesteps] + [0.0]


def ddim(library, eta):
    scheduler = library.DDIMScheduler(prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(STEPS)
    x, levels = noise(), strided(scheduler)
    for i, index in enumerate(scheduler.timesteps):
        z = torch.randn(x.shape, generator=generator(50 + i)) if eta > 0 else None
        x = scheduler.step(believe(x, clock(levels[i])), index, x, eta=eta, variance_noise=z).prev_sample
    return x, walk(Gaussian(tabled(scheduler.alphas_cumprod), eta).step, levels, noise())


def ddpm(library):
    scheduler = library.DDPMScheduler(prediction_type="sample", clip_sample=False, variance_type="fixed_small")
    scheduler.set_timesteps(STEPS)
    x, levels = noise(), strided(scheduler)
    for i, index in enumerate(scheduler.timesteps):
        x = scheduler.step(believe(x, clock(levels[i])), index, x, generator=generator(50 + i)).prev_sample
    return x, walk(Gaussian(tabled(scheduler.alphas_cumprod), 1.0).step, levels, noise())


def flow_euler(library):
    scheduler = library.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    x, levels = noise(), scheduler.sigmas.tolist()
    for t, index in zip(levels, scheduler.timesteps):
        x = scheduler.step((x - believe(x, clock(t))) / t, index, x).prev_sample
    return x, walk(Gaussian(Linear()).step, levels, noise())


def flow_heun(library):
    scheduler = library.FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    x = noise()
    for index in scheduler.timesteps:
        t = (index / TABLE).item()
        x = scheduler.step((x - believe(x, clock(t))) / t, index, x).prev_sample
    levels = sorted({*scheduler.sigmas.tolist()}, reverse=True)
    return x, walk(Heun(Gaussian(Linear()), believe, kind="flow"), levels, noise(), draws=False)


def edm_heun(library):
    """The library walks x/alpha; its denoiser is ours at alpha times that."""
    scheduler = library.HeunDiscreteScheduler(timestep_spacing="leading")
    scheduler.set_timesteps(STEPS)
    schedule = tabled(scheduler.alphas_cumprod)
    levels = [(i + 1) / TABLE for i in dict.fromkeys(int(i) for i in scheduler.timesteps)] + [0.0]
    x = noise() / schedule.alpha(clock(levels[0]))[:, None]
    for index in scheduler.timesteps:
        t = clock((int(index) + 1) / TABLE)
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        eps = (x - believe(x * alpha, t)) * alpha / sigma
        x = scheduler.step(eps, index, x).prev_sample
    return x, walk(Heun(Gaussian(schedule), believe, kind="edm"), levels, noise(), draws=False)


def multistep(library):
    scheduler = library.DPMSolverMultistepScheduler(
        prediction_type="sample", algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(STEPS)
    x, levels = noise(), strided(scheduler)
    for index in scheduler.timesteps:
        x = scheduler.step(believe(x, clock((int(index) + 1) / TABLE)), index, x).prev_sample
    return x, walk(Dpm2m(Gaussian(tabled(scheduler.alphas_cumprod))), levels, noise(), draws=False)


def test_steps_equal_those_of_diffusers():
    library = pytest.importorskip("diffusers")
    pairs = {
        "ddim eta 0": ddim(library, 0.0),
        "ddim eta 0.5": ddim(library, 0.5),
        "ddim eta 1": ddim(library, 1.0),
        "ddpm": ddpm(library),
        "flow euler": flow_euler(library),
        "flow heun": flow_heun(library),
        "edm heun": edm_heun(library),
        "dpm-solver++ 2m": multistep(library),
    }
    differences = {name: (theirs - ours).abs().max().item() for name, (theirs, ours) in pairs.items()}
    assert max(differences.values()) <= 1e-5, differences


def test_multistep_memory_starts_anew_with_every_walk():
    process = Gaussian(Linear())
    step, levels, x = Dpm2m(process), [1.0, 0.7, 0.3, 0.0], noise()
    assert torch.equal(walk(step, levels, x, draws=False), walk(step, levels, x, draws=False))
