"""What each correction is worth on ONE checkpoint: `make ablate PROJECT=arc CKPT=runs/arc/nano/001`.

One thing is changed at a time from the run's own evaluation; every line gives pass@2, the difference in percentage
points with a 95 % interval over tasks (paired bootstrap), and the seconds it took.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from packages.arc import score as scoring
from packages.arc.tasks import AnswerKey
from projects.arc.data import ArcData, Query
from projects.arc.evaluate import Evaluation, score
from projects.arc.module import ArcModule
from projects.arc.size import SizeOptions
from projects.arc.solving import EvalOptions
from shared.training import checkpoints
from shared.training.errors import Mistake


@dataclass
class Variant:
    """One evaluation. raw: with the weights as they were, not their average."""

    name: str
    options: EvalOptions
    size: SizeOptions
    raw: bool = False


def variants(options: EvalOptions, size: SizeOptions) -> Iterator[Variant]:
    """The run's own evaluation, then one change at a time."""
    yield Variant("as configured", options, size)
    for steps in (1, 4, 8, 16, 32, 128):
        if steps != options.num_steps:
            yield Variant(f"steps {steps}", replace(options, num_steps=steps), size)
    for views in (1, 8, 40, 72):
        if views != options.views:
            yield Variant(f"views {views}", replace(options, views=views), size)
    yield Variant("vote loglik", replace(options, vote="loglik"), size)
    yield Variant("orientation unswapped", replace(options, orientation="unswapped"), size)
    yield Variant("size rule", options, replace(size, mode="rule"))
    yield Variant("size head", options, replace(size, mode="head"))
    yield Variant("raw weights", options, size, raw=True)


def shares(module: ArcModule, data: ArcData, queries: list[Query], answers: AnswerKey, v: Variant) -> np.ndarray:
    """Share of each task's grids solved by two attempts, in order of task."""
    found = Evaluation(data, v.options, v.size)
    found.add(module.solver(v.options, v.size).all(queries))
    rows = scoring.rows(found.tasks, answers, found.attempts)
    return np.array(scoring.by_task(rows, [scoring.solved(row.attempts[:2], row.answer) for row in rows]))


def ablate(cli: Any) -> None:
    """what each correction is worth on one checkpoint: CKPT=<run>"""
    if cli.checkpoint is None:
        raise Mistake(
            "ablate compares evaluations of one checkpoint and none is named; give CKPT=runs/arc/<size>/<run>."
        )
    module, data = cli.model.eval(), cli.datamodule
    stored = checkpoints.read(cli.checkpoint)
    states = {False: stored["state_dict"], True: stored.get("current_model_state", stored["state_dict"])}
    queries, answers = data.queries(), score(data)
    table = Table("change", "pass@2", "difference (pp)", "95 % interval", "seconds", title=f"{cli.checkpoint}")
    console, first = Console(width=100), None
    for variant in variants(module.eval_options, module.size_options):
        module.load_state_dict(states[variant.raw])
        start = time.perf_counter()
        found = shares(module, data, queries, answers, variant)
        first = found if first is None else first
        low, high = (100 * x for x in scoring.bootstrap((found - first).tolist()))
        seconds = time.perf_counter() - start
        told = f"{100 * (found - first).mean():+.1f}", f"{low:+.1f} .. {high:+.1f}", f"{seconds:.1f}"
        table.add_row(variant.name, f"{found.mean():.3f}", *told)
        print(f"{variant.name}: pass@2 {found.mean():.3f}  {seconds:.1f} s", flush=True)
    console.print(table)
