"""Whole answers while training goes on: held-out demo pairs are solved as test grids are, every so many updates.

Counts updates, so it knows nothing of validation. Never sees a hidden grid: its questions and answers are demo pairs
that the holdout keeps from training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from packages.arc.score import solved
from packages.arc.tasks import Grid, Task
from projects.arc.data import ArcData
from projects.arc.pairs import Query
from projects.arc.solving import DuringFit, EvalOptions
from shared.training.averaging import Averaging
from shared.training.logs import WriteLogs
from shared.training.parallel import is_cut, together
from shared.training.runs import rehearsed
from shared.training.snapshots import evaluating, untouched_generators


def held_queries(data: ArcData, tasks: int) -> list[tuple[Query, Grid]]:
    """The held-out pair of each of the first tasks by id, as a question and its answer; demos are those that train."""
    held, rows = data.pools.held, data.row_of(data.pools.held)
    return [
        (Query(Task(id, data.pools.training[id].demos, (pair.input,), "held-out"), 0, rows[id]), pair.output)
        for id, pair in sorted(held.items())[:tasks]
    ]


class SolveHeld(Callback):
    """Logs `val/solved@2`, the share of held-out pairs that two attempts solve, with the averaged weights."""

    def __init__(self, options: DuringFit):
        self.options, self.done = options, -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.done = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        update, every = trainer.global_step, self.options.every
        if not every or update % every or update == self.done or rehearsed(trainer):
            return
        self.done = update
        asked = held_queries(pl_module.data, self.options.tasks)
        if asked and (trainer.is_global_zero or is_cut(pl_module)):
            share = self.share(trainer, pl_module, asked)
            for logger in trainer.loggers if trainer.is_global_zero else []:
                logger.log_metrics({"val/solved@2": share}, step=update)
        one_of(WriteLogs, trainer).pause()

    def share(self, trainer: Trainer, module: Any, asked: Sequence[tuple[Query, Grid]]) -> float:
        """Of the pairs asked, those solved."""
        averaged = one_of(Averaging, trainer).swapped(module)
        with untouched_generators(), averaged, together(module), evaluating(module):
            answered = module.solver(during(module.eval_options)).all([query for query, _ in asked])
        tries = ([attempt.grid for attempt in one.attempts[:2]] for one in answered)
        return float(np.mean([solved(grids, answer) for grids, (_, answer) in zip(tries, asked)]))


def one_of(kind: type, trainer: Trainer) -> Any:
    """The callback of that kind."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]


def during(options: EvalOptions) -> EvalOptions:
    """The evaluation's own options, with the steps and views of `during_fit` and nothing for the report."""
    return replace(options, num_steps=options.during_fit.steps, views=options.during_fit.views, stats=False)
