"""What a validation says of a run besides its loss: skill where words are decided, twentieths of t, the state of the
table of rows and of a warp that moves, whether short walks parse and how varied their words are.

Names with two slashes are parts: kept in metrics.csv, not said on a line. A collapse is said and stops nothing.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback
from lightning.pytorch import Trainer
from torch import Tensor

from packages.text.rows import sentence
from packages.text.variety import UnigramEntropy
from projects.text import levels
from projects.text.health import effective_rank, mean_distance, some
from projects.text.objectives import Losses
from projects.text.rounding import Rows
from shared.objectives import by_level
from shared.training.runs import rehearsed

if TYPE_CHECKING:
    from projects.text.data import Sentences
    from projects.text.module import TextDiffusion

STEPS, WALKS, FEW = 16, 64, 16  # of short walks: steps; sentences of a batch that are judged, or only watched
BINS = 20  # of t: 100 of the earlier 2000 steps each
ASKED = 64  # sentences of which skill is measured
LITTLE_ENTROPY = 1.0  # nats of the words of sentences; with less it is said that they collapse


def validated(module: TextDiffusion, batch: Sentences, losses: Losses, index: int) -> dict[str, Any]:
    """Logs of validation batch `index`; what is the same for all of them is said with the first."""
    means = {"loss": losses.total / batch.counted.sum(1), "accuracy": losses.accuracy}
    logs = {name: (value.sum(), torch.tensor(float(len(value)))) for name, value in means.items()}
    if module.data.grammar or index == 0:
        logs |= walked(module, batch.share.index.tolist()[: WALKS if module.data.grammar else FEW])
    return logs | twentieths(losses) | (once(module) if index == 0 else {})


def walked(module: TextDiffusion, seeds: list[int]) -> dict[str, Any]:
    """Of a few short walks: the share that the grammar derives, and the entropy of their words."""
    drawn = module.walked(seeds, replace(module.sampling, steps=STEPS))
    rows, grammar, parsed = module.words(drawn.ids), module.data.grammar, {}
    if grammar:
        parses = torch.tensor([grammar.parse(sentence(row)) is not None for row in rows]).double()
        parsed = {"parse": (parses.sum(), torch.tensor(float(len(parses))))}
    return {**parsed, "entropy": entropy([module.data.source.said(row) for row in rows])}


def entropy(rows: list[list[str]]) -> Tensor:
    """Of their words, nats; 0 where they have none."""
    metric = UnigramEntropy(sync_on_compute=False)
    metric.update(rows)
    return metric.compute().value.nan_to_num(0.0)


def twentieths(losses: Losses) -> dict[str, Any]:
    """Cross-entropy and accuracy by BINS equal parts of t, the cleanest first."""
    if losses.t is None:
        return {}
    parts = {"ce": losses.ce, "accuracy": losses.accuracy}
    return {
        f"{name}/{place:02}": part
        for name, value in parts.items()
        for place, part in enumerate(by_level(value, losses.t, BINS).values())
    }


def once(module: TextDiffusion) -> dict[str, Tensor]:
    """Skill at SNR*, the table of rows, the warp."""
    star = levels.star(module, levels.few(module, "val", ASKED))
    skill = {} if star is None or star.skill is None else {"skill": star.skill}
    found = {**skill, **table(module.network.rows), **moving(module.network.warp)}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}


def table(rows: Rows) -> dict[str, float]:
    """Mean length, distance over that at right angles, effective rank."""
    found = rows.rows.detach()
    length, distance = float(found.norm(dim=-1).mean()), float(mean_distance(found))
    return {"row_norm": length, "row_distance": distance, "row_rank": effective_rank(some(found))}


def moving(warp: Any) -> dict[str, float]:
    """Location and scale of a warp that follows the loss or learns: those of the Gumbel law that has the same levels at
    t = F(location) and one scale to either side of it. {}: it stays where it is."""
    if warp is None or not (hasattr(warp, "calibrate") or [*warp.parameters()]):
        return {}
    device = next(iter(warp.state_dict().values())).device
    with torch.no_grad():
        t = torch.tensor([math.exp(-math.exp(-side)) for side in (-1, 0, 1)], device=device)
        before, at, behind = (-warp.log_snr(t)).tolist()
    return {"warp_location": at, "warp_scale": (behind - before) / 2}


class CollapseWatch(Callback):
    """One line after a validation whose walks hardly vary."""

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        found = trainer.callback_metrics.get("val/entropy")
        if found is None or trainer.sanity_checking or rehearsed(trainer):
            return
        if found < LITTLE_ENTROPY:
            trainer.logger.run.say(collapsed(float(found)))  # type: ignore[union-attr]


def collapsed(nats: float) -> str:
    return (
        f"The words of validation walks have an entropy of {nats:.2f} nats: the model says nearly the same everywhere."
        f" Training goes on; look at samples/ and at val/row_distance."
    )
