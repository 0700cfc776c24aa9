"""The earlier system as a recipe of this house (`model.compat`), so that every later gain is a measured line.

A public uniform-noise grid diffusion of October 2025: `DenseDenoiser` at 128 discrete times, beliefs fed back with a
gain, the loss a mean over all cells of a batch. `Own` is how this house trains; `Earlier` says what differs. Its known
faults (a reverse step that moved nothing, a default row for unknown tasks, ...) are not repeated. Optimiser, averages
and views are plain settings, in `configs/arc/compat`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.arc.dense import LEVELS, SIDE, DenseDenoiser, Feedback, ramp
from projects.arc.objective import over_cells
from shared.training.errors import Mistake
from shared.training.pretrained import build
from shared.training.randomness import key

if TYPE_CHECKING:
    from projects.arc.data import ArcData
    from projects.arc.module import ArcModule
    from projects.arc.pairs import Grids

PRESETS = {
    "early": {"time": "index", "labels": "rotation_flip", "self_condition": "probabilities"},
    "middle": {"time": "log_snr", "labels": "d4", "self_condition": "probabilities"},
    "late": {"time": "log_snr", "labels": "d4", "self_condition": "log_probabilities"},
}


@dataclass
class Compat:
    """The earlier system in one of its three states; what is not said (null) is as the preset has it.

    time: what the time token tells. labels: how the view is told. self_condition: how a belief is fed back.
    size_labels: the view that the size pass is told; identity repeats an old fault. size_hidden: width of its head.
    """

    preset: Literal["early", "middle", "late"] = "early"
    time: Literal["index", "log_snr"] | None = None
    labels: Literal["d4", "rotation_flip"] | None = None
    self_condition: Literal["probabilities", "log_probabilities", "mlp"] | None = None
    size_labels: Literal["identity", "true"] = "true"
    size_hidden: int = 256

    def arguments(self) -> dict[str, Any]:
        """Of the network."""
        said = {name: getattr(self, name) or preset for name, preset in PRESETS[self.preset].items()}
        return {**said, "size_labels": self.size_labels, "size_hidden": self.size_hidden}


class Own:
    """How this house trains: times spread over the batch, beliefs for its first examples, examples of equal weight."""

    def prepare(self, data: ArcData) -> None:
        """Before the network is built for the data."""

    def times(self, module: ArcModule, batch: Grids, rng: torch.Generator) -> Tensor:
        """[B]"""
        return module.randomness.times(batch.share, device=batch.answer.row.device)

    def believed(self, module: ArcModule, batch: Grids) -> int:
        """How many examples see an earlier belief, the first ones (batches are shuffled): if any then one at least, so
        that every rank has its gradient.
        """
        share = module.self_condition.share
        return max(1, int(batch.num_samples * share)) if share else 0

    def heard(self, module: ArcModule, batch: Grids, t: Tensor, belief: Tensor | None) -> Tensor | Feedback | None:
        """What the network is given of the belief of the first examples."""
        return belief

    def total(self, module: ArcModule, batch: Grids, loss: Tensor, size_loss: Tensor) -> Tensor:
        """The loss of a micro-batch, from losses of cells and of weighted sizes [B]."""
        return module.objective.total(batch, loss, size_loss)


class Earlier(Own):
    """How the earlier system trained."""

    def __init__(self, options: Compat):
        self.options = options.arguments()
        self.coin_per_batch = self.options["self_condition"] == "log_probabilities"

    def prepare(self, data: ArcData) -> None:
        """The board is 30 x 30 whatever the grids; shifts of the colours are all that can be told."""
        if data.augment.colour == "permute":
            raise Mistake(
                "model.compat tells cyclic shifts of the colours only; set --data.augment.colour=cycle or none."
            )
        if data.conditioning.has_demos:
            raise Mistake("model.compat knows tasks by their rows; leave model.task at rows.")
        if data.token_quantum not in ("auto", 1):
            raise Mistake("model.compat computes boards, which have one shape; leave data.token_quantum at auto.")
        data.side, data.token_quantum = SIDE, 1

    def network(self, module: ArcModule) -> nn.Module:
        sizes = {name: module.sizes[name] for name in ("width", "depth", "heads", "dropout")}
        schedule, dropped = module.process.schedule, module.condition_dropout
        rows = len(module.task_ids)
        return build(DenseDenoiser, rows=rows, schedule=schedule, input_dropout=dropped, **sizes, **self.options)

    def times(self, module: ArcModule, batch: Grids, rng: torch.Generator) -> Tensor:
        device = batch.answer.row.device
        return (torch.randint(LEVELS, (batch.num_samples,), generator=rng, device=device) + 1) / LEVELS

    def believed(self, module: ArcModule, batch: Grids) -> int:
        if not self.coin_per_batch:
            return super().believed(module, batch)
        given = batch.share
        coin = key("coin", module.randomness.seed, given.update) / 2**63
        return batch.num_samples if coin < module.self_condition.share else 0

    def heard(self, module: ArcModule, batch: Grids, t: Tensor, belief: Tensor | None) -> Feedback:
        """Of the examples without a belief half hear zeros, unless one coin decides for the batch."""
        cells, count = len(batch.answer.colour), self.believed(module, batch)
        before = t.new_zeros(cells, 10) if belief is None else F.pad(belief, (0, 0, 0, cells - len(belief)))
        if self.coin_per_batch:
            gain = module.network.gain(t)
        else:
            count += (batch.num_samples - count) // 2
            gain = ramp(torch.full_like(t, self.way(module, batch)))
        return Feedback(before, gain * (torch.arange(len(t), device=t.device) < count))

    def way(self, module: ArcModule, batch: Grids) -> float:
        """Share of the updates that are done."""
        return batch.share.update / module.trainer.max_steps if module._trainer else 0.0

    def total(self, module: ArcModule, batch: Grids, loss: Tensor, size_loss: Tensor) -> Tensor:
        return over_cells(batch, loss, size_loss)
