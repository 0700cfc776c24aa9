"""Tasks made up: random grids and a rearrangement of `families.py`, drawn by key without a look at any real task.

They have demos only: material to learn from when a network is to read rules off demos. Knows no dataset.
"""

import numpy as np

from packages.arc.families import Family, drawn
from packages.arc.tasks import NUM_COLOURS, Pair, Task, TaskSet, as_grid

NAME = "invented"
DEMOS = 3, 5  # of a task, both included


def invented(number: int, side: int, key: int = 0) -> TaskSet:
    """`number` tasks, no grid with a side above `side` cells. The first tasks of a larger number are the same ones."""
    return TaskSet(tuple(_task(n, side, key) for n in range(number)), NAME, f"{number} tasks, key {key}")


def _task(number: int, side: int, key: int) -> Task:
    """Draws anew until all outputs fit and no demo is left as it is."""
    for attempt in range(1000):
        rng = np.random.Generator(np.random.PCG64([key, number, attempt]))
        pairs = _pairs(number, rng, side)
        if pairs is not None:
            return Task(f"invented{number:06d}", pairs, (), NAME)
    raise ValueError(f"no task with sides up to {side} was found in 1000 attempts; give a larger side")


def _pairs(kind: int, rng: np.random.Generator, side: int) -> tuple[Pair, ...] | None:
    low, high = sorted(2 + np.floor((side - 1) * rng.random(2) ** 2).astype(int))  # of all inputs; small ones prevail
    squares, one_size = rng.random(2) < 0.5
    size = rng.integers(low, high + 1, 2)
    family = drawn(kind, rng, (int(low), int(low)))
    palette = np.concatenate([[0], 1 + rng.permutation(NUM_COLOURS - 1)[: rng.integers(2, 6)]])
    found: list[Pair] = []
    for _ in range(rng.integers(DEMOS[0], DEMOS[1] + 1)):
        height, width = size if one_size else rng.integers(low, high + 1, 2)
        pair = _pair(rng, (int(height), int(height if squares else width)), palette, family, side)
        if pair is None:
            return None
        found.append(pair)
    return tuple(found)


def _pair(
    rng: np.random.Generator, size: tuple[int, int], palette: np.ndarray, family: Family, side: int
) -> Pair | None:
    grid = as_grid(_noise(rng, size, palette))
    output = family.solve(grid)
    if output is None or max(output.shape) > side or np.array_equal(grid, output):
        return None
    return Pair(grid, output)


def _noise(rng: np.random.Generator, size: tuple[int, int], palette: np.ndarray) -> np.ndarray:
    """Cells on black, more or less dense, or a few rectangles."""
    grid = np.zeros(size, np.uint8)
    if rng.random() < 0.5:
        dense = rng.random(size) < rng.uniform(0.2, 1.0)
        return np.where(dense, rng.choice(palette[1:], size), grid).astype(np.uint8)
    for _ in range(rng.integers(1, 5)):
        (top, left), (down, right) = (rng.integers(0, size) for _ in range(2))
        top, down, left, right = *sorted((top, down)), *sorted((left, right))
        grid[top : down + 1, left : right + 1] = rng.choice(palette)
    return grid
