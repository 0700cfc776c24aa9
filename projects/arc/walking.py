"""From the prior to an answer: one walk for a batch of questions, with the belief of each step fed to the next.

The loop is that of `shared`, step and times are those of `sampling.py`; here the network is bound to its questions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from projects.arc.network import GridDenoiser, Prefix
from projects.arc.packing import Cells
from projects.arc.sampling import WalkOptions, way
from shared.objectives import segment_mean
from shared.processes.categorical import Categorical
from shared.processes.draws import Rng
from shared.sampling import Denoise, sample

Watch = Callable[..., None]


class Denoiser:
    """`denoise(x, t)` for one walk over fixed questions and places. x: [M] colours; t: [M], one time for all cells.

    The first step sees no earlier belief, every later one the probabilities of the step before.
    """

    def __init__(self, network: GridDenoiser, prefix: Prefix, places: Cells):
        self.network, self.prefix, self.places = network, prefix, places
        self.frame = network.frame(prefix, places)
        self.previous: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        cells = replace(self.places, colour=x)
        logits = self.network(self.prefix, self.frame, cells, t[:1].expand(cells.count), self.previous).float()
        self.previous = logits.softmax(-1)
        return logits


def walk(
    denoise: Denoise, places: Cells, process: Categorical, options: WalkOptions, rng: Rng, watch: Watch | None = None
) -> tuple[Tensor, Tensor]:
    """Colours [M] of the answers and the last belief's probabilities [M, 10], after a walk as the options say."""
    last: list[Tensor] = []

    def noted(t: Tensor, x: Tensor, belief: Tensor) -> None:
        last[:] = [belief]
        if watch is not None:
            watch(t=t, x=x, belief=belief)

    x = process.prior(places.colour, rng)
    step, grid = way(process, options, places, rng)
    x = sample(denoise, step, x, grid, noted)
    return x, last[0].softmax(-1)


class Trace:
    """A `watch` that keeps, per step and example, how much changed, how sure the belief was, and its entropy (nats)."""

    def __init__(self, places: Cells, first: Tensor):
        self.places, self.last = places, first
        self.rows: list[Tensor] = []

    def __call__(self, t: Tensor, x: Tensor, belief: Tensor) -> None:
        log_p = belief.log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        per_cell = ((x != self.last).float(), log_p.amax(-1).exp(), entropy)
        self.rows.append(torch.stack([segment_mean(v, self.places.segment, self.places.count) for v in per_cell]))
        self.last = x

    def table(self) -> Tensor:
        """[steps, 3, B]: changed, top probability, entropy."""
        return torch.stack(self.rows).cpu()
