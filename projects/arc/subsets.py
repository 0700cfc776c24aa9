"""Which tasks a trained network finds hardest: `make hardest PROJECT=arc CKPT=<run> ARGS="--hardest.count=137"`.

Judged by the demo pairs that the run kept from training, never by a hidden output. The list is a file for
`data.subset`, so it holds tasks of the split `training` only. A run with `data.holdout.share=1` has kept one pair of
every task with three demos.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from packages.arc import score as scoring
from packages.arc.identity import pool_hashes, raw_hash
from packages.arc.tasks import Task
from projects.arc.data import ArcData
from projects.arc.module import ArcModule
from projects.arc.pairs import Query
from projects.arc.solving import Answered
from shared.training.errors import Mistake


@dataclass
class HardestOptions:
    """count: ids to list. out: the file to write; None: hardest-<count>.txt in the run folder."""

    count: int = 137
    out: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"hardest.count is {self.count}; it counts tasks to list, so give 1 or more")


def held_queries(data: ArcData) -> list[tuple[Query, np.ndarray]]:
    """The held-out pair of every task of the training split: its input as a query, and its output."""
    training, rows, split = data.pools.training, data.row_of(data.pools.held), data.read("training")
    return [
        (Query(Task(id, training[id].demos, (pair.input,), training.name), 0, rows[id]), pair.output)
        for id, pair in sorted(data.pools.held.items())
        if id in split
    ]


def failure(answered: Answered, output: np.ndarray) -> tuple[float, float]:
    """How far the views were from drawing the output: share of wrong votes, then share of wrong cells."""
    votes = sum(c.count for c in answered.candidates)
    right = sum(c.count for c in answered.candidates if np.array_equal(c.grid, output))
    cells = max(scoring.cell_share(attempt.grid, output) or 0.0 for attempt in answered.attempts)
    return 1 - right / votes, 1 - cells


def ranked(module: ArcModule, data: ArcData) -> list[tuple[str, float, float]]:
    """(id, share of wrong votes, share of wrong cells), the hardest first."""
    held = held_queries(data)
    answered = module.solver().all([query for query, _ in held], say=print)
    found = [(one.query.task.id, *failure(one, output)) for one, (_, output) in zip(answered, held)]
    return sorted(found, key=lambda row: (-row[1], -row[2], row[0]))


def require_kept(data: ArcData) -> None:
    """The pairs that judge a run are those that it kept from training, not those of another choice."""
    more, held = data.seen.difference(pool_hashes(data.pools.training)), held_queries(data)
    if met := [query.task.id for query, _ in held if raw_hash(query.grid) in more]:
        raise Mistake(
            f"The run was trained on {len(met)} of the {len(held)} pairs that would judge it ({met[0]}, ...);"
            " leave data.holdout as the run had it."
        )


def hardest(cli: Any) -> None:
    """the training tasks whose held-out demos a run draws worst, as a file for data.subset: CKPT=<run>"""
    options: HardestOptions = cli.options.hardest
    if cli.checkpoint is None:
        raise Mistake("hardest ranks tasks by a trained run and none is named; give CKPT=runs/arc/<size>/<run>.")
    require_kept(cli.datamodule)
    known = len(held_queries(cli.datamodule))
    if known < options.count:
        raise Mistake(
            f"The run kept demo pairs of {known} tasks out of training, {options.count} are wanted;"
            " lower hardest.count, or train with --data.holdout.share=1."
        )
    with cli.drawing():
        rows = ranked(cli.model, cli.datamodule)[: options.count]
    path = Path(options.out or cli.run_of_weights().folder / f"hardest-{options.count}.txt")
    told = [f"{id}  # {votes:.0%} of votes wrong, {cells:.0%} of cells" for id, votes, cells in rows]
    head = [f"# the hardest of {known} tasks of {cli.datamodule.pools.training.name} for {cli.checkpoint}"]
    path.write_text("\n".join([*head, f"expect: {len(rows)}", *told]) + "\n")
    print(f"hardest     {rows[0][0]} ({told[0].partition('# ')[2]}) ... {rows[-1][0]} ({told[-1].partition('# ')[2]})")
    print(f"written     {path}")
