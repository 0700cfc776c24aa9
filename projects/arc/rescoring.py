"""How well a grid survives noise: what the network loses on its cells at several times, in several views.

Answers that were drawn can so be ranked (a product of experts over views and times), and answers that are known can be
measured. The noise of a view and time is one for all grids of a query, so equal cells meet equal noise. Knows the
network and a query; not where the grids come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from packages.arc.tasks import Grid
from packages.arc.views import Views
from projects.arc.network import Prefix
from projects.arc.packing import GridStore
from projects.arc.pairs import Query, look
from shared.objectives import segment_mean
from shared.processes.draws import PerSegment

if TYPE_CHECKING:
    from projects.arc.solving import Solver

TIMES = (0.25, 0.5, 0.75)
VIEWS = 8


def costs(solver: Solver, query: Query, grids: Sequence[Grid]) -> list[float]:
    """Denoising cross-entropy of each grid, summed over TIMES and the first VIEWS views: less is likelier.

    One grid alone has no rival, so nothing is computed and its cost is 0.
    """
    if len(grids) == 1:
        return [0.0]
    some = VIEWS if solver.d4 or solver.colours != "none" else 1
    found = denoised(solver, query, grids, solver.enumerated(some), TIMES)
    return found[:, 0].sum((1, 2), dtype=torch.float64).tolist()


@torch.no_grad()
def denoised(solver: Solver, query: Query, grids: Sequence[Grid], seen: Views, times: Sequence[float]) -> Tensor:
    """[grids, 2, times, views]: mean cross-entropy (nats) and share of right cells, without self-conditioning."""
    prefix = solver.read([query], seen)
    return torch.stack([torch.stack([_at(solver, query, prefix, grid, seen, t) for t in times], 1) for grid in grids])


def _at(solver: Solver, query: Query, prefix: Prefix, grid: Grid, seen: Views, t: float) -> Tensor:
    """[2, views] of one grid at one time."""
    count, device = len(seen.d4), solver.device
    size = np.tile(np.array(grid.shape), (count, 1))
    x0 = look(GridStore([grid], device).cells(np.zeros(count, np.int64)), size, seen)
    rng = PerSegment(
        [solver.randomness.sample((query.name, "rescored", view, round(1000 * t)), device) for view in range(count)],
        x0.lengths.tolist(),
    )
    time = torch.full((count,), t, device=device)
    x_t = solver.process.corrupt(x0.colour, solver.process.draw(x0.colour, rng), time[x0.segment])
    network = solver.network
    logits = network(prefix, network.frame(prefix, x0), replace(x0, colour=x_t), time).float()
    loss, right = F.cross_entropy(logits, x0.colour, reduction="none"), (logits.argmax(-1) == x0.colour).float()
    return torch.stack([segment_mean(values, x0.segment, count) for values in (loss, right)]).cpu()
