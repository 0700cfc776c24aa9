"""What the network learns from a batch, and how one walks back with it: an object per objective, so nobody asks which.

`loss` gives terms per sample, in nats summed over its counted tokens: the mean over tokens of the global batch is taken
once, in the training step. `walk` gives what the one loop of the house needs. The others have files of their own:
`bound`, `masked`, `autoregressive`. Ideas: cross-entropy at every level (Dieleman et al. 2022, CDCD), self-conditioning
(Chen et al. 2022). Knows no Trainer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from projects.text import likelihood, sampling
from projects.text.rounding import Rows
from shared.objectives import by_level, cross_entropy, row_mean
from shared.processes import Gaussian
from shared.processes.draws import Rng
from shared.processes.schedules import Schedule
from shared.training.pretrained import build

if TYPE_CHECKING:
    from projects.text.data import Sentences
    from projects.text.module import TextDiffusion


@dataclass
class Losses:
    """Of B samples. total: what is minimised, summed over the counted tokens. The others are means over them.

    t: where they were noised; None: nowhere. terms: what total is made of, where it is a sum.
    """

    total: Tensor  # [B]
    ce: Tensor  # [B] nats
    accuracy: Tensor  # [B]
    t: Tensor | None = None  # [B]
    terms: dict[str, Tensor] = field(default_factory=dict)  # [B] each

    def logs(self) -> dict[str, Any]:
        """Cross-entropy and accuracy in all, and by thirds of t; terms in all."""
        means = {"ce": self.ce.detach(), "accuracy": self.accuracy}
        logs: dict[str, Any] = {name: value.detach().mean() for name, value in (means | self.terms).items()}
        for name, value in means.items() if self.t is not None else ():
            logs |= {f"{name}_{third}_noise": part for third, part in by_level(value, self.t).items()}
        return logs


class Objective(Protocol):
    """What module and sampler ask of an objective. exact: `nats` draws nothing."""

    exact: bool

    def parts(self, module: TextDiffusion, rows: Rows) -> tuple[Any, dict[str, Any]]:
        """The process, and what is special about the network: arguments of `Network`."""

    def loss(self, module: TextDiffusion, batch: Sentences, t: Tensor, rng: Rng) -> Losses: ...

    def nats(self, module: TextDiffusion, batch: Sentences, rng: Rng, levels: int) -> Tensor:
        """-ln p [B] of the counted tokens, or a bound of it, by `levels` draws."""

    def walk(self, module: TextDiffusion, options: sampling.Sampling, n: int, rng: Rng) -> sampling.Walk: ...

    def told(self, options: sampling.Sampling, length: int) -> sampling.Sampling:
        """The options as they act."""


class CrossEntropy:
    """Cross-entropy of the tokens at every level, unweighted: where t is drawn is the weighting."""

    exact = False

    def parts(self, module: TextDiffusion, rows: Rows) -> tuple[Any, dict[str, Any]]:
        schedule = self.schedule(module, rows)
        hears = module.self_conditioning.probability > 0
        return build(Gaussian, schedule=schedule, eta=1.0), {"schedule": schedule, "hears": hears}

    def schedule(self, module: TextDiffusion, rows: Rows) -> Schedule:
        """Where levels lie along t."""
        return module.warp.schedule(module.data.entropy, rows.radius**2)

    def loss(self, module: TextDiffusion, batch: Sentences, t: Tensor, rng: Rng) -> Losses:
        """t: [B]."""
        x0 = module.network.rows(batch.ids)
        x_t = module.process.corrupt(x0, module.process.draw(x0, rng), t)
        x_t = batch.kept(x_t, x0)
        belief = batch.kept(module.earlier_belief(x_t, t, batch.mask), x0)
        return named(module.network.logits(module.network(x_t, t, belief, batch.mask)), batch, t)

    def nats(self, module: TextDiffusion, batch: Sentences, rng: Rng, levels: int) -> Tensor:
        return likelihood.bound(module, batch, rng, levels)

    def walk(self, module: TextDiffusion, options: sampling.Sampling, n: int, rng: Rng) -> sampling.Walk:
        return module.compat.walk(module.network, module.process, options, n, rng, module.log_snr_star)

    def told(self, options: sampling.Sampling, length: int) -> sampling.Sampling:
        return options


def named(logits: Tensor, batch: Sentences, t: Tensor | None = None) -> Losses:
    """The losses of logits [B, L, V] that name the tokens of a batch."""
    counted = batch.counted
    ce = cross_entropy(logits, batch.ids, counted)
    accuracy = row_mean((logits.detach().argmax(-1) == batch.ids).float(), counted)
    return Losses(ce * counted.sum(1), ce, accuracy, t)
