"""Ways back from the prior: which step is taken on which grid of times, by name. All walk the process that trained.

Ideas: the exact posterior (Austin et al. 2021), paths kept or drawn anew, the surest cells first (Chang et al. 2022,
MaskGIT), and the sampler of an earlier system, which hands the network its own drawn answer as if it were x_t. Knows
steps and times; not the network, not the questions.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from projects.arc.packing import Cells, spread, to_device
from shared.processes.categorical import Categorical
from shared.processes.draws import Rng
from shared.sampling import Step, by_confidence, own_probability, renoise, uniform_grid

LEVELS = 128  # of the earlier system, whose levels were counted


@dataclass
class WalkOptions:
    """How one answer is drawn.

    num_steps: moves of a walk. sampler: posterior = the process's own step; coupled = the path's noise is kept;
    renoise = an answer drawn from the belief is corrupted afresh; confidence = the surest cells are fixed first;
    feedback = the drawn answer itself is handed back (the earlier system, for comparison). feedback: how it is drawn;
    argmax always takes the likeliest colours. final: what the last step returns. temperature: of the belief's logits.
    guidance: 1 = the belief as it is, more = further away from what is believed when the input is withheld.
    """

    num_steps: int = 32
    sampler: Literal["posterior", "coupled", "renoise", "confidence", "feedback"] = "posterior"
    feedback: Literal["sample", "argmax"] = "sample"
    final: Literal["argmax", "sample"] = "argmax"
    temperature: float = 1.0
    guidance: float = 1.0


def way(process: Categorical, options: WalkOptions, places: Cells, rng: Rng) -> tuple[Step, Tensor]:
    """The step of the sampler, its randomness bound, and its grid of times [S + 1]."""
    walked = shaped(process, options)
    if options.sampler == "renoise":
        return partial(renoise(walked), rng=rng), uniform_grid(options.num_steps)
    if options.sampler == "confidence":
        return surest_first(partial(walked.step, rng=rng), walked, places), uniform_grid(options.num_steps)
    if options.sampler == "feedback":
        return partial(handed_back, walked, options.feedback, rng), counted_grid(options.num_steps)
    return partial(walked.step, rng=rng), uniform_grid(options.num_steps)


def shaped(process: Categorical, options: WalkOptions) -> Categorical:
    """The process, walked as the options say."""
    walked = copy.copy(process)
    walked.final, walked.temperature = options.final, options.temperature
    if options.sampler == "coupled":
        walked.joint = "coupled"
    return walked


# --- the surest cells first


def surest_first(step: Step, process: Categorical, places: Cells) -> Step:
    """`by_confidence` over grids that lie end to end. At s as many cells of each are fixed as survive there."""
    rows, lengths, device = places.count, places.lengths, places.row.device
    widest = int(lengths.max())
    first = np.arange(rows) * widest
    at = to_device(spread(first, lengths), device)  # [M] where each cell lies in rows [J, widest]
    cells, inside = to_device(lengths, device), torch.zeros(rows * widest, dtype=torch.bool, device=device)
    inside[at] = True

    def laid(packed: Tensor) -> Tensor:
        return packed.new_zeros(rows * widest, *packed.shape[1:]).index_put((at,), packed).unflatten(0, (rows, widest))

    def packed_step(x: Tensor, belief: Tensor, t: Tensor, s: Tensor) -> Tensor:
        segment = places.segment
        return laid(step(x.flatten()[at], belief.flatten(0, 1)[at], t[segment], s[segment]))

    def sureness(belief: Tensor, proposal: Tensor) -> Tensor:
        return own_probability(belief, proposal).masked_fill(~inside.view(rows, widest), -torch.inf)

    def new(t: Tensor, s: Tensor) -> Tensor:
        fixed_t, fixed_s = ((process.alpha(time) * cells).round() for time in (t, s))
        return (fixed_s - fixed_t).long()

    ordered = by_confidence(packed_step, sureness, new)
    of_grid = to_device(np.cumsum(lengths) - lengths, device)  # a cell of each grid: all share one time

    def fixed(x: Tensor, belief: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return ordered(laid(x), laid(belief), t[of_grid], s[of_grid]).flatten()[at]

    return fixed


# --- the earlier system


def counted_grid(n: int) -> Tensor:
    """Levels (i + 1) / 128 at n indices i = round(linspace(127, 0, n)), then 0: float32 [n + 1]."""
    if n < 1:
        raise ValueError(f"a walk of {n} steps was asked for; give at least 1")
    index = np.round(np.linspace(LEVELS - 1, 0, n))
    return torch.tensor([*(index + 1) / LEVELS, 0.0], dtype=torch.float32)


def handed_back(
    process: Categorical, draw: str, rng: Rng, x: Tensor, belief: Tensor, t: Tensor, s: Tensor, **_: Any
) -> Tensor:
    """The answer that the belief draws, at every level; nothing is corrupted again."""
    return process.logits(belief).argmax(-1) if draw == "argmax" else process.decide(belief, s, rng)
