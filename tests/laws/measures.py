"""How the laws measure: exact closeness, chi-square, four standard errors, order of convergence."""

from itertools import pairwise

import torch
from torch import Tensor

from tests.laws.cases import START, generator

DRAWS = 20_000
PATHS = 8_000  # where 20 pairs of times are walked
SHAPES = {"B": (3, 5, 2), "B=T": (4, 4, 2)}  # of x0; t is [B] and, where a process allows it, [B, T]


def times(shape, kind: str, seed: int = 1) -> list[Tensor]:
    """t of shape [B] and [B, T] inside (0, 1)."""
    both = [torch.rand(shape[:n], generator=generator(seed), dtype=torch.float64) * 0.9 + 0.05 for n in (1, 2)]
    return both[:1] if kind == "nested" else both


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    assert a.shape == b.shape, (a.shape, b.shape)
    worst = (a - b).abs().max().item() if a.is_floating_point() else float((a != b).any())
    assert worst <= tolerance, f"differs by {worst:.3e}, allowed {tolerance:.0e}"


def rare(counts: Tensor, probabilities: Tensor) -> None:
    """Chi-square of counts [K] against probabilities [K], p > 1e-4 (Wilson and Hilferty's cube root)."""
    assert counts[probabilities < 1e-12].sum() == 0, "an id of probability 0 was drawn"
    expected = counts.sum() * probabilities
    used = expected > 1e-6
    k = int(used.sum()) - 1
    if k == 0:
        return
    chi = ((counts - expected)[used].square() / expected[used]).sum()
    z = ((chi / k) ** (1 / 3) - (1 - 2 / (9 * k))) / (2 / (9 * k)) ** 0.5
    assert z < 3.72, f"chi-square {chi:.1f} at {k} degrees: counts {counts.tolist()}, expected {expected.tolist()}"


def four_errors(x: Tensor, mean: Tensor, std: Tensor) -> None:
    """Rows x [N, C] have mean [C] and std [C] within 4 standard errors; exactly where std is 0."""
    tiny = 1e-9
    assert ((x.mean(0) - mean).abs() <= 4 * std / len(x) ** 0.5 + tiny).all(), (x.mean(0) - mean, std)
    spread = x.var(0)
    assert ((spread - std**2).abs() <= 4 * std**2 * (2 / len(x)) ** 0.5 + tiny).all(), (spread, std**2)


def rows(case, count: int = DRAWS) -> Tensor:
    """One sample of three cells, repeated: statistics run over the rows."""
    return case.data((1, 3)).expand(count, -1)


def marginal(case, process, x0: Tensor, t: Tensor):
    """Mean and std (real, bridge) or probabilities (ids) of x_t for one row x0 [3] at t [3]."""
    if case.kind == "ids":
        return process.marginal(x0, t)
    if case.kind == "real":
        return process.schedule.alpha(t) * x0, process.schedule.sigma(t)
    return (1 - t) * x0 + t * (x0 + START), process.sigma * (t * (1 - t)).sqrt()


def follows(case, process, x: Tensor, x0: Tensor, t: Tensor) -> None:
    """x [N, 3] is distributed as x_t of x0 [3] at t [3]."""
    law = marginal(case, process, x0, t)
    if case.kind != "ids":
        four_errors(x, *law)
        return
    for cell, probabilities in enumerate(law):
        rare(torch.bincount(x[:, cell], minlength=process.num_states).double(), probabilities)


def near(value: float, wanted: float, tolerance: float) -> None:
    assert abs(value - wanted) <= tolerance, f"{value:.3f}, wanted {wanted} +- {tolerance}"


def order_of(step_of, schedule) -> float:
    """log2 of the error's fall when the stride is halved, on the exact flow of a Gaussian of std 0.5."""

    def exact(x, t):
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        return 0.25 * alpha * x / (0.25 * alpha**2 + sigma**2)

    def end(n):
        x, step = torch.full((1, 1), 0.9, dtype=torch.float64), step_of(exact)
        levels = torch.linspace(0.9, 0.2, n + 1, dtype=torch.float64)
        for t, s in pairwise(levels):
            x = step(x, exact(x, t[None]), t[None], s[None])
        return x.item()

    ends = torch.tensor([0.9, 0.2], dtype=torch.float64)
    scale = (0.25 * schedule.alpha(ends) ** 2 + schedule.sigma(ends) ** 2).sqrt()
    truth = 0.9 * (scale[1] / scale[0]).item()
    first, second = (abs(end(n) - truth) for n in (24, 48))
    return torch.tensor(first / second).log2().item()
