"""The SNR that a walk really has beside the one it claims: what a step made for other strides gets wrong."""

from itertools import pairwise

import torch
from torch import Tensor

import shared.processes as sound
from tests.laws.measures import close

LONG = ("gaussian-cosine-eta1.0", "gaussian-square_root-eta1.0", "gaussian-warped-eta1.0")  # walked in 1999 steps, too


def snr_along(process, grid: Tensor) -> tuple[Tensor, Tensor]:
    """alpha/sigma that a walk along `grid` has at each later time if x0 is known, and that its process claims.

    Exact: a step is affine in x_t, so two values tell how mean and variance move. The walk ends before s = 0.
    """
    x0, both = torch.ones(2, dtype=torch.float64), torch.tensor([0, 1], dtype=torch.float64)
    mean, var = process.schedule.alpha(grid[0]), process.schedule.sigma(grid[0]) ** 2
    had = []
    for t, s in pairwise(grid.unsqueeze(1).expand(-1, 2)):
        (mean, beyond), (std, _) = process.moments(mean + both, x0, t, s, process.eta)
        var = (beyond - mean) ** 2 * var + std**2
        had.append(mean / var.sqrt())
    return torch.stack(had), process.schedule.alpha(grid[1:]) / process.schedule.sigma(grid[1:])


def a_walk_has_the_snr_it_claims(case, ns=sound):
    """With x0 as belief, at every time of even grids but for the end; in so many steps that an error would add up."""
    process = case.process(torch.zeros(1), ns)
    for n in (1, 5, 20, 200, *[1999] * (case.name in LONG)):
        grid = torch.linspace(1, 0.001, n + 1, dtype=torch.float64)
        had, claimed = snr_along(process, grid)
        close(had / claimed, torch.ones_like(had), 1e-10)
