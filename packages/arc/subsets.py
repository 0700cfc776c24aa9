"""Which tasks and which pairs: size filter, lists of ids, the held-out demo pairs, and how often a pair is drawn.

Sees known grids only (demos, queries), never an answer key.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from packages.arc.identity import canonical, keep_pairs
from packages.arc.tasks import Pair, Task, TaskSet

TRAINING_HARD = (
    "training-hard is a list of 137 ids that is not shipped; pass data.subset_file=..., or build a comparable list "
    'with `make hardest PROJECT=arc CKPT=RUN ARGS="--hardest.count=137"`'
)


def within(tasks: TaskSet, max_size: int) -> TaskSet:
    """The tasks none of whose known grids has a side above `max_size` cells. A hidden output may still be larger."""
    return tasks.where(lambda task: task.side <= max_size)


def first(tasks: TaskSet, limit: int | None) -> TaskSet:
    """The first `limit` tasks by id; None: all."""
    return TaskSet(tasks.tasks[:limit], tasks.name, tasks.version)


def read_ids(file: Path | str) -> tuple[str, ...]:
    """The ids of a subset file: one a line, `#` opens a comment, an optional line `expect: 137` states their number.

    ValueError: no file, an id twice, another number than expected.
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"no subset file {path}; wanted a text file with one task id a line")
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    ids = tuple(line for line in lines if line and not line.startswith("expect:"))
    twice = next((id for id in ids if ids.count(id) > 1), None)
    if twice:
        raise ValueError(f"{path.name} lists {twice} twice; wanted each id once")
    expected = next((int(line.removeprefix("expect:")) for line in lines if line.startswith("expect:")), len(ids))
    if expected != len(ids):
        raise ValueError(f"{path.name} has {len(ids)} ids where it says expect: {expected}")
    return ids


def subset(tasks: TaskSet, name: str | None, file: str | None = None) -> TaskSet:
    """The tasks named by a subset: None (all), training-hard (its ids in `file`), or the path of a subset file.

    ValueError: training-hard without a file; an id the tasks do not have, with the three nearest.
    """
    if name is None:
        return tasks
    if name == "training-hard" and file is None:
        raise ValueError(TRAINING_HARD)
    return tasks.select(read_ids(file if name == "training-hard" and file else name))


@dataclass(frozen=True)
class Holdout:
    """Training pairs without the held-out ones, and one held-out demo pair for each chosen task."""

    training: TaskSet
    held: dict[str, Pair]


def hold_out(tasks: TaskSet, share: float = 0.1, min_demos: int = 3, key: int = 0) -> Holdout:
    """Take one demo pair out of about `share` of the tasks that show at least `min_demos`.

    Task and pair are chosen by sha256(id, key) alone, so the choice is the same in any pool. Pairs of any task that
    equal a held one up to symmetry and colours leave too; a task left without pairs leaves both sides. A task whose
    demos are all one pair up to symmetry and colours keeps them.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"holdout share is {share}, wanted 0 to 1")
    chosen = {task.id: _held(task, key) for task in tasks if _is_chosen(task, share, min_demos, key)}
    if not chosen:
        return Holdout(tasks, {})
    forms = {canonical(pair.input, pair.output) for pair in chosen.values()}
    training = keep_pairs(tasks, lambda task, pair: canonical(pair.input, pair.output) not in forms)
    return Holdout(training, {id: pair for id, pair in chosen.items() if id in training})


def _is_chosen(task: Task, share: float, min_demos: int, key: int) -> bool:
    if len(_shown(task)) < min_demos or _digest(task, key)[0] >= share * 2**64:
        return False
    return len({canonical(pair.input, pair.output) for pair in task.demos}) > 1


def _held(task: Task, key: int) -> Pair:
    shown = _shown(task)
    return shown[_digest(task, key)[1] % len(shown)]


def _shown(task: Task) -> list[Pair]:
    return [pair for pair in task.demos if pair.origin == "demo"]


def _digest(task: Task, key: int) -> tuple[int, int]:
    """Two independent 64-bit numbers of (id, key)."""
    hashed = hashlib.sha256(f"{task.id}:{key}".encode()).digest()
    return int.from_bytes(hashed[:8], "big"), int.from_bytes(hashed[8:16], "big")


def pair_weights(pool: TaskSet, evaluated: Collection[str], eval_weight: float = 1.0) -> np.ndarray:
    """Expected draws of each pair relative to a training pair, float64 [pairs] in order of task and pair.

    evaluated: ids whose pairs weigh `eval_weight`; all others weigh 1.
    """
    if eval_weight <= 0:
        raise ValueError(f"eval_weight is {eval_weight}, wanted a positive number")
    ids = set(evaluated)
    return np.array([eval_weight if task.id in ids else 1.0 for task in pool for _ in task.demos])
