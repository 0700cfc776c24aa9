"""What each correction is worth on ONE checkpoint: `make ablate PROJECT=arc CKPT=runs/arc/nano/001`.

One thing is changed at a time from the run's own evaluation, and at last the three old faults come together; every line
gives pass@2, the difference in percentage points with a 95 % interval over tasks (paired bootstrap), and the seconds it
took. A line that changes nothing repeats the run's own evaluation without computing it again.
"""

from __future__ import annotations

import runpy
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from packages.arc import score as scoring
from packages.arc.tasks import AnswerKey
from packages.arc.views import enumerated
from projects.arc.data import ArcData
from projects.arc.evaluate import Evaluation, score
from projects.arc.module import ArcModule
from projects.arc.pairs import Query
from projects.arc.size import SizeOptions
from projects.arc.solving import EvalOptions
from shared.training import checkpoints
from shared.training.errors import Mistake

EXPENSIVE = 4  # times the cost of the run's own evaluation


@dataclass
class AblateOptions:
    """limit: lines that cost over four times the run's own evaluation see the first tasks only (None: all)."""

    limit: int | None = None


@dataclass
class Variant:
    """One evaluation. raw: with the weights as they were, not their average."""

    name: str
    options: EvalOptions
    size: SizeOptions
    raw: bool = False

    @property
    def cost(self) -> int:
        """Passes over a query's views."""
        return self.options.num_steps * self.options.views

    def same(self, other: Variant) -> bool:
        """Whether the two are one evaluation under two names."""
        return replace(self, name="") == replace(other, name="")


class Line(NamedTuple):
    """A row of the table. shares: of each task's grids solved."""

    variant: Variant
    shares: np.ndarray
    seconds: float


def variants(options: EvalOptions, size: SizeOptions, colours: str = "permute", d4: bool = True) -> Iterator[Variant]:
    """The run's own evaluation, one change at a time, and the three faults together. colours, d4: views there are."""
    yield Variant("as configured", options, size)
    for sampler in ("posterior", "coupled", "renoise", "confidence", "feedback"):
        yield Variant(f"sampler {sampler}", replace(options, sampler=sampler), size)
    for steps in (1, 4, 8, 16, 32, 128):
        yield Variant(f"steps {steps}", replace(options, num_steps=steps), size)
    for orientation in ("correct", "unswapped"):
        yield Variant(f"orientation {orientation}", replace(options, orientation=orientation), size)
    for mode in ("rule+head", "rule", "head"):
        yield Variant(f"size {mode}", options, replace(size, mode=mode))
    yield Variant("size head, identity view", options, replace(size, mode="head", views="identity"))
    for views in filter(lambda n: _exist(n, colours, d4), (1, 8, 40, 72)):
        yield Variant(f"views {views}", replace(options, views=views), size)
    for vote in ("count", "loglik", "poe"):
        early = options.early_exit and vote == "count"
        yield Variant(f"vote {vote}", replace(options, vote=vote, early_exit=early), size)
    for raw in (False, True):
        yield Variant("raw weights" if raw else "averaged weights", options, size, raw)
    undone = replace(options, sampler="feedback", orientation="unswapped")
    yield Variant("all three corrections undone together", undone, replace(size, mode="head", views="identity"))


def _exist(number: int, colours: str, d4: bool) -> bool:
    try:
        return len(enumerated(number, colours, d4).d4) == number
    except ValueError:
        return False


def shares(module: ArcModule, data: ArcData, queries: list[Query], answers: AnswerKey, v: Variant) -> np.ndarray:
    """Share of each task's grids solved by two attempts, in order of task."""
    found = Evaluation(data, v.options, v.size)
    found.add(module.solver(v.options, v.size).all(queries))
    rows = scoring.rows(found.tasks, answers, found.attempts)
    return np.array(scoring.by_task(rows, [scoring.solved(row.attempts[:2], row.answer) for row in rows]))


def lines(module: ArcModule, data: ArcData, states: dict[bool, Any], limit: int | None) -> Iterator[Line]:
    """Every variant measured, equal ones once. states: the averaged weights (False) and the raw ones (True)."""
    answers, done = score(data), list[Line]()
    every = variants(module.eval_options, module.size_options, data.augment.colour, data.augment.d4)
    for variant in every:
        known = next((line for line in done if line.variant.same(variant)), None)
        if known is None:
            module.load_state_dict(states[variant.raw])
            start = time.perf_counter()
            dear = bool(done) and variant.cost > EXPENSIVE * done[0].variant.cost
            tasks = data.evaluated.ids[: variant.options.limit][: limit if dear else None]
            queries = [query for query in data.queries() if query.task.id in tasks]
            found = shares(module, data, queries, answers, variant)
            done.append(Line(variant, found, time.perf_counter() - start))
        yield done[-1] if known is None else known._replace(variant=variant)


def row(line: Line, first: Line) -> tuple[str, ...]:
    """The cells of a line; against the run's own evaluation on the same tasks."""
    difference = line.shares - first.shares[: len(line.shares)]
    low, high = (100 * x for x in scoring.bootstrap(difference.tolist()))
    part = f" ({len(line.shares)} tasks)" if len(line.shares) < len(first.shares) else ""
    numbers = f"{line.shares.mean():.3f}", f"{100 * difference.mean():+.1f}", f"{low:+.1f} .. {high:+.1f}"
    return line.variant.name + part, *numbers, f"{line.seconds:.1f}"


def ablate(cli: Any) -> None:
    """what each correction is worth on one checkpoint: CKPT=<run>"""
    if cli.checkpoint is None:
        raise Mistake(
            "ablate compares evaluations of one checkpoint and none is named; give CKPT=runs/arc/<size>/<run>."
        )
    module, data, stored = cli.model.eval(), cli.datamodule, checkpoints.read(cli.checkpoint)
    states = {False: stored["state_dict"], True: stored.get("current_model_state", stored["state_dict"])}
    table = Table("change", "pass@2", "difference (pp)", "95 % interval", "seconds", title=f"{cli.checkpoint}")
    first: Line | None = None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "orientation=unswapped")  # it is the point of its line
        for line in lines(module, data, states, cli.options.ablate.limit):
            first = first or line
            cells = row(line, first)
            table.add_row(*cells)
            print(f"{cells[0]}: pass@2 {cells[1]}  {cells[-1]} s", flush=True)
    Console(width=110).print(table)


if __name__ == "__main__":  # the verb by another name
    if len(sys.argv) < 2:
        sys.exit("ablate compares ways to evaluate one trained run: python -m projects.arc.ablate runs/arc/nano/001")
    sys.argv[1:2] = ["ablate", f"--ckpt_path={sys.argv[1]}"]
    runpy.run_module("projects.arc", run_name="__main__")
