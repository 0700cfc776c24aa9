"""From the prior to an answer: one walk for a batch of questions, with the belief of each step fed to the next.

The loop, the grid of times and the step are those of `shared`; here the network is bound to its questions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from projects.arc.network import GridDenoiser, Prefix
from projects.arc.packing import Cells
from shared.objectives import segment_mean
from shared.processes.categorical import Categorical
from shared.processes.draws import Rng
from shared.sampling import sample, uniform_grid

Watch = Callable[..., None]


class Denoiser:
    """`denoise(x, t)` for one walk over fixed questions and places. x: [M] colours; t: [M], one time for all cells.

    The first step sees no earlier belief, every later one the probabilities of the step before.
    """

    def __init__(self, network: GridDenoiser, prefix: Prefix, places: Cells, temperature: float = 1.0):
        self.network, self.prefix, self.places = network, prefix, places
        self.frame = network.frame(prefix, places)
        self.temperature = temperature
        self.previous: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        cells = replace(self.places, colour=x)
        logits = self.network(self.prefix, self.frame, cells, t[:1].expand(cells.count), self.previous)
        self.previous = logits.float().softmax(-1)
        return logits.float() / self.temperature


def walk(
    denoise: Denoiser, process: Categorical, num_steps: int, rng: Rng, watch: Watch | None = None
) -> tuple[Tensor, Tensor]:
    """Colours [M] of the answers and the last belief's probabilities [M, 10], after `num_steps` posterior moves."""
    x = process.prior(denoise.places.colour, rng)
    x = sample(denoise, partial(process.step, rng=rng), x, uniform_grid(num_steps), watch)
    assert denoise.previous is not None
    return x, denoise.previous


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
