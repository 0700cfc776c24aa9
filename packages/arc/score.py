"""Scores with their denominators: pass@k with partial credit, strict, per grid, oracle, floors, bootstrap.

A wrong shape is wrong, never an error. Grids without a known answer leave every denominator. Knows attempts and
answers, not how either came about; writes and reads submissions.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from packages.arc.families import family
from packages.arc.sizes import rule
from packages.arc.tasks import AnswerKey, Grid, Task, TaskSet, as_grid, digest

Attempts = Mapping[str, Sequence[Sequence[Grid]]]  # task id -> query -> grids, best first
NEAR_MISS = 0.9  # share of right cells, at the right size, from which a failure is a near miss


def solved(attempts: Sequence[Grid], answer: Grid) -> bool:
    """Whether any attempt is the answer, cell by cell."""
    return any(np.array_equal(attempt, answer) for attempt in attempts)


def cell_share(attempt: Grid, answer: Grid) -> float | None:
    """Share of right cells; None at the wrong size."""
    return float((np.asarray(attempt) == answer).mean()) if attempt.shape == answer.shape else None


def status(attempts: Sequence[Grid], answer: Grid | None) -> str:
    """solved | near-miss (right size, at least 90 % of cells) | failed | unknown (no answer)."""
    if answer is None:
        return "unknown"
    if solved(attempts, answer):
        return "solved"
    best = max((cell_share(attempt, answer) or 0.0 for attempt in attempts), default=0.0)
    return "near-miss" if best >= NEAR_MISS else "failed"


@dataclass(frozen=True, eq=False)
class Row:
    """One test grid with a known answer, and what was said about it."""

    task: Task
    number: int
    answer: Grid
    attempts: Sequence[Grid]
    candidates: Sequence[Grid] = ()

    @property
    def query(self) -> Grid:
        return self.task.queries[self.number]


def rows(tasks: TaskSet, answers: AnswerKey, attempts: Attempts, candidates: Attempts | None = None) -> list[Row]:
    """The test grids that can be scored, in order of task and query. Attempts that are missing are none at all.

    ValueError: attempts for a task that is not among `tasks`.
    """
    foreign = sorted(set(attempts) - set(tasks.ids))
    if foreign:
        raise ValueError(f"attempts for {foreign[0]} ({len(foreign)} in all), which is not in {tasks.name}")
    return [
        Row(task, number, answer, _at(attempts, task.id, number), _at(candidates or {}, task.id, number))
        for task in tasks
        for number, answer in enumerate(answers.of(task))
        if answer is not None
    ]


def _at(grids: Attempts, id: str, number: int) -> Sequence[Grid]:
    queries = grids.get(id, ())
    return queries[number] if number < len(queries) else ()


@dataclass(frozen=True)
class Score:
    """Metrics of one evaluation, shares in [0, 1]. No known answer: no metrics."""

    metrics: dict[str, float]
    interval: tuple[float, float] | None  # 95 % of pass@2, bootstrap over tasks
    num_tasks: int  # tasks with a known answer
    num_grids: int  # known answers
    status: dict[str, tuple[str, ...]] = field(repr=False)  # task -> query -> solved | near-miss | failed | unknown

    @property
    def solved_tasks(self) -> tuple[str, ...]:
        """Tasks all of whose grids are solved."""
        return tuple(id for id, states in self.status.items() if set(states) == {"solved"})

    @property
    def num_solved(self) -> int:
        """Grids solved by the first two attempts."""
        return sum(states.count("solved") for states in self.status.values())


def score(tasks: TaskSet, answers: AnswerKey, attempts: Attempts, candidates: Attempts | None = None) -> Score:
    """Every metric of the attempts on the tasks' queries, with floors; only the first two attempts count.

    candidates: all distinct grids the views proposed; with it the oracle (any candidate right) is reported.
    pass@k: mean over tasks of the share of grids solved; strict: share of tasks with all solved; grid: mean over grids.
    """
    scored = rows(tasks, answers, attempts, candidates)
    states = {task.id: _states(task, answers, attempts) for task in tasks}
    if not scored:
        return Score({}, None, 0, 0, states)
    second = [solved(row.attempts[:2], row.answer) for row in scored]
    shares = by_task(scored, second)
    metrics = {
        "pass@1": _mean(by_task(scored, [solved(row.attempts[:1], row.answer) for row in scored])),
        "pass@2": _mean(shares),
        "pass@2_strict": _mean(share == 1 for share in shares),
        "grid_pass@2": _mean(second),
        "size_acc": _mean(row.attempts[0].shape == row.answer.shape if row.attempts else False for row in scored),
        "cell_acc": _mean(_cells_of_sized(scored)),
        **floors(scored),
    }
    if candidates is not None:
        metrics["oracle"] = _mean(by_task(scored, [solved(row.candidates, row.answer) for row in scored]))
    return Score(metrics, bootstrap(shares), len(shares), len(scored), states)


def _states(task: Task, answers: AnswerKey, attempts: Attempts) -> tuple[str, ...]:
    return tuple(status(_at(attempts, task.id, n)[:2], answer) for n, answer in enumerate(answers.of(task)))


def by_task(scored: Sequence[Row], values: Sequence[float]) -> list[float]:
    """Mean value of each task's grids, in order of task."""
    found: dict[str, list[float]] = {}
    for row, value in zip(scored, values, strict=True):
        found.setdefault(row.task.id, []).append(float(value))
    return [_mean(of_task) for of_task in found.values()]


def _mean(values: Iterable[float]) -> float:
    """Mean; 0 of nothing."""
    found = list(values)
    return float(sum(found) / len(found)) if found else 0.0


def _cells_of_sized(scored: Sequence[Row]) -> list[float]:
    """Share of right cells of first attempts, of correctly sized ones only."""
    shares = (cell_share(row.attempts[0], row.answer) for row in scored if row.attempts)
    return [share for share in shares if share is not None]


def floors(scored: Sequence[Row]) -> dict[str, float]:
    """What needs no learning: pass@k of the copied input, of the commonest demo output, of the one fixed rearrangement
    that explains all demos (`families`), and the share of grids whose size the demo rule gives."""
    said = {"floor/copy": _copied, "floor/commonest_output": _commonest, "floor/rearrangement": _rearranged}
    found = {
        name: _mean(by_task(scored, [solved(say(row), row.answer) for row in scored])) for name, say in said.items()
    }
    found["floor/size_rule"] = _mean(rule(row.task.demos, row.query) == row.answer.shape for row in scored)
    return found


def _copied(row: Row) -> list[Grid]:
    return [row.query]


def _commonest(row: Row) -> list[Grid]:
    outputs = {digest(pair.output): pair.output for pair in row.task.demos}
    return [outputs[Counter(digest(pair.output) for pair in row.task.demos).most_common(1)[0][0]]]


def _rearranged(row: Row) -> list[Grid]:
    found = family(row.task.demos)
    output = found.solve(row.query) if found else None
    return [] if output is None else [output]


def bootstrap(shares: Sequence[float], resamples: int = 2000, key: int = 0) -> tuple[float, float]:
    """95 % interval of the mean, by resampling tasks with replacement."""
    values, rng = np.asarray(shares, float), np.random.default_rng(key)
    means = values[rng.integers(len(values), size=(resamples, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def submission(tasks: TaskSet, attempts: Attempts) -> dict[str, list[dict[str, list[list[int]]]]]:
    """What Kaggle takes: task -> one {"attempt_1": grid, "attempt_2": grid} per query.

    ValueError: a query without two attempts.
    """
    return {task.id: [_two(task, n, _at(attempts, task.id, n)) for n in range(len(task.queries))] for task in tasks}


def _two(task: Task, number: int, said: Sequence[Grid]) -> dict[str, list[list[int]]]:
    if len(said) < 2:
        raise ValueError(f"{task.id}#{number} has {len(said)} attempts, a submission wants two; vote with number=2")
    return {f"attempt_{place}": np.asarray(grid).tolist() for place, grid in enumerate(said[:2], 1)}


def from_submission(raw: Mapping[str, Sequence[Mapping[str, list]]]) -> dict[str, list[list[Grid]]]:
    """Attempts out of a submission, each grid checked."""
    names = ("attempt_1", "attempt_2")
    return {
        id: [[as_grid(query[name], f"{id}#{n} {name}") for name in names] for n, query in enumerate(queries)]
        for id, queries in raw.items()
    }
