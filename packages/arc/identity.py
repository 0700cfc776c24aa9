"""When two grids are the same grid: raw, or up to symmetry and colour; and the guard of the evaluated queries.

The guard compares training INPUTS with evaluated QUERIES, never outputs: outputs must not shape the training set. Tiny
grids coincide by chance once symmetry and colours are forgotten, so only raw equality acts; the rest is counted.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from packages.arc.tasks import NUM_COLOURS, Grid, Pair, Task, TaskSet, digest
from packages.arc.views import NUM_D4, turn

POLICIES = ("raise", "drop", "allow")


def canonical(*grids: Grid) -> bytes:
    """The same bytes for grids equal up to one symmetry and one renaming of colours applied to all of them.

    The least, over the 8 symmetries, of the cells with colours renamed in order of first appearance (black included).
    """
    return _least(tuple((grid.shape, grid.tobytes()) for grid in grids))


@lru_cache(maxsize=2**15)  # every pair of two editions: a pool is compared with queries and with held-out pairs
def _least(grids: tuple[tuple[tuple[int, ...], bytes], ...]) -> bytes:
    arrays = [np.frombuffer(cells, np.uint8).reshape(shape) for shape, cells in grids]
    return min(_renamed([turn(grid, d4) for grid in arrays]) for d4 in range(NUM_D4))


def _renamed(grids: list[Grid]) -> bytes:
    cells = b"".join(grid.tobytes() for grid in grids)
    order = sorted((c for c in range(NUM_COLOURS) if c in cells), key=cells.index)
    shapes = bytes(side for grid in grids for side in grid.shape)
    return shapes + cells.translate(bytes.maketrans(bytes(order), bytes(range(len(order)))))


def content_hash(*grids: Grid) -> str:
    """sha256 of `canonical`: of a grid, or of a pair's input and output turned and renamed together."""
    return hashlib.sha256(canonical(*grids)).hexdigest()


def raw_hash(grid: Grid) -> str:
    """sha256 of the grid as it stands, what a checkpoint stores of its training inputs."""
    return hashlib.sha256(digest(grid)).hexdigest()


def pool_hashes(pool: TaskSet) -> tuple[str, ...]:
    """Sorted raw hashes of all training inputs."""
    return tuple(sorted({raw_hash(pair.input) for task in pool for pair in task.demos}))


def seen_queries(hashes: Iterable[str], evaluated: TaskSet) -> tuple[str, ...]:
    """Evaluated queries, as "070dd51e#0", whose raw hash is among `hashes`, such as a checkpoint's pool."""
    known = set(hashes)
    return tuple(name for name, query in _queries(evaluated) if raw_hash(query) in known)


def _queries(tasks: TaskSet) -> Iterator[tuple[str, Grid]]:
    return ((f"{task.id}#{number}", query) for task in tasks for number, query in enumerate(task.queries))


@dataclass(frozen=True)
class Overlap:
    """What training inputs and evaluated queries have in common."""

    queries: tuple[str, ...]  # evaluated queries met raw, "070dd51e#0"
    pairs: tuple[str, ...]  # the training pairs that meet them, "40853293 pair 6"
    canonical: int  # evaluated queries met only up to symmetry and colours
    num_queries: int  # evaluated queries in all

    def __str__(self) -> str:
        tasks = len({name.split("#")[0] for name in self.queries})
        shown = ": " * bool(tasks) + ", ".join(self.queries[:3]) + ", ..." * (len(self.queries) > 3)
        return (
            f"{len(self.queries)} of {self.num_queries} evaluated queries ({tasks} tasks{shown}) "
            f"are training inputs, {self.canonical} more up to symmetry and colours"
        )


def overlap(pool: TaskSet, evaluated: TaskSet) -> Overlap:
    """Coincidences of the pool's inputs with the evaluated queries."""
    wanted = {digest(query) for _, query in _queries(evaluated)}
    pairs = [(task, number, pair) for task in pool for number, pair in enumerate(task.demos)]
    inputs = {digest(pair.input) for _, _, pair in pairs}
    forms = {canonical(pair.input) for _, _, pair in pairs}
    rest = [query for _, query in _queries(evaluated) if digest(query) not in inputs]
    return Overlap(
        queries=tuple(name for name, query in _queries(evaluated) if digest(query) in inputs),
        pairs=tuple(f"{task.id} pair {number}" for task, number, pair in pairs if digest(pair.input) in wanted),
        canonical=sum(canonical(query) in forms for query in rest),
        num_queries=evaluated.num_queries,
    )


def guard(pool: TaskSet, evaluated: TaskSet, policy: str = "raise") -> tuple[TaskSet, Overlap]:
    """The pool that may train, and what it had in common with the evaluated queries.

    policy: raise | drop (pairs whose input is a query leave; a task left without pairs leaves) | allow.
    ValueError: policy raise and a raw coincidence.
    """
    if policy not in POLICIES:
        raise ValueError(f"overlap policy {policy!r}, wanted one of {', '.join(POLICIES)}")
    found = overlap(pool, evaluated)
    if found.queries and policy == "raise":
        raise ValueError(
            f"{pool.name} against {evaluated.name}: {found}; pass data.overlap=drop, or allow to keep them"
        )
    if not found.queries or policy == "allow":
        return pool, found
    wanted = {digest(query) for _, query in _queries(evaluated)}
    return keep_pairs(pool, lambda task, pair: digest(pair.input) not in wanted), found


def keep_pairs(pool: TaskSet, keep: Callable[[Task, Pair], bool]) -> TaskSet:
    """The pool with the pairs for which keep(task, pair) holds; a task left without pairs leaves."""
    rest = ((task, tuple(pair for pair in task.demos if keep(task, pair))) for task in pool)
    tasks = tuple(Task(task.id, pairs, task.queries, task.source) for task, pairs in rest if pairs)
    return TaskSet(tasks, pool.name, pool.version)
