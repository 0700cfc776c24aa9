"""How large the answer is: a rule read off the demos, a head that learnt it, and how the two share the views.

Sees demos, the query and the head's logits; never an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from packages.arc.sizes import rule
from packages.arc.tasks import Size, Task

OTHERS_GET_A_VIEW = 0.1  # probability from which a size beside the best is drawn at least once


@dataclass
class SizeOptions:
    """mode: rule+head = the rule where it fires and the head finds it possible, else the head; or one alone.

    veto: the head's probability under which a rule's size is refused. top: how many of its sizes share the views.
    views: whose belief the head's is; `identity` repeats an old habit, for comparison only.
    """

    mode: Literal["rule+head", "rule", "head"] = "rule+head"
    veto: float = 0.001
    top: int = 2
    views: Literal["all", "identity"] = "all"


class Sizes(NamedTuple):
    """What was decided for one query: candidates with probabilities, best first, and what each source said."""

    candidates: list[tuple[Size, float]]
    rule: Size | None
    head: Size


def fused(logits: Tensor, d4: Tensor, side: int) -> Tensor:
    """The head's belief in the frame of the query, averaged over views in log space.

    logits [J, S * S] in the views' frames; d4 [J]. Returns log-probabilities [S, S] (height - 1, width - 1).
    """
    log_p = logits.float().log_softmax(-1).unflatten(-1, (side, side))
    turned = (d4 >= 4)[:, None, None]  # views that swap height and width
    return torch.where(turned, log_p.transpose(1, 2), log_p).mean(0).flatten().log_softmax(-1).view(side, side)


def decide(task: Task, query: np.ndarray, log_p: Tensor, options: SizeOptions) -> Sizes:
    """The sizes to draw. log_p [S, S]: the head's fused belief."""
    side = len(log_p)
    ruled = rule(task.demos, query)
    best = log_p.flatten().topk(min(options.top, side * side))
    found = [
        ((int(i) // side + 1, int(i) % side + 1), p) for i, p in zip(best.indices.tolist(), best.values.exp().tolist())
    ]
    head = found[0][0]
    if options.mode != "head" and ruled and max(ruled) <= side:
        possible = float(log_p[ruled[0] - 1, ruled[1] - 1].exp()) > options.veto
        if possible or options.mode == "rule":
            return Sizes([(ruled, 1.0)], ruled, head)
    return Sizes([found[0], *(one for one in found[1:] if one[1] >= OTHERS_GET_A_VIEW)], ruled, head)


def shared_out(candidates: list[tuple[Size, float]], views: int) -> list[Size]:
    """A size for every view, in proportion to the probabilities, each at least once, spread evenly, best first."""
    weight = np.array([p for _, p in candidates])
    counts = np.maximum(1, np.floor(views * weight / weight.sum())).astype(int)
    counts[0] = max(1, views - counts[1:].sum())
    order = sorted((place / count, n) for n, count in enumerate(counts) for place in range(count))
    return [candidates[n][0] for _, n in order[:views]]
