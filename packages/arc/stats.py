"""Diagnostics of an evaluation beyond its score: copying against editing, early lock, solved by area and by shape."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from packages.arc.score import Row, solved
from packages.arc.tasks import Grid

AREAS = (36, 100, 400, 900)  # cells: upper ends of the buckets


class Editing(NamedTuple):
    """Over grids whose first attempt, query and answer have one size. None: nothing of the kind to measure."""

    grids: int
    copied: float | None  # share of first attempts that equal the query
    edit_accuracy: float | None  # right among the cells that had to change
    keep_accuracy: float | None  # right among the cells that had to stay


def editing(scored: Sequence[Row]) -> Editing:
    """How first attempts treat the input's cells."""
    same = [r for r in scored if r.attempts and r.attempts[0].shape == r.answer.shape == r.query.shape]
    right = _cells([np.asarray(row.attempts[0]) == row.answer for row in same])
    stays = _cells([row.query == row.answer for row in same])
    copied = [np.array_equal(row.attempts[0], row.query) for row in same]
    return Editing(len(same), _share(np.array(copied)), _share(right[~stays]), _share(right[stays]))


def _cells(masks: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([mask.reshape(-1) for mask in masks]) if masks else np.zeros(0, bool)


def _share(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def area_bucket(answer: Grid) -> str:
    """ "<=36" cells, "<=100", "<=400" or "<=900"."""
    return f"<={next(area for area in AREAS if answer.size <= area)}"


BUCKETS = (*(f"<={area}" for area in AREAS), "square", "non-square")


def buckets(answer: Grid) -> tuple[str, str]:
    """Of BUCKETS, the two an answer belongs to: its area's and its shape's."""
    return area_bucket(answer), "square" if answer.shape[0] == answer.shape[1] else "non-square"


def breakdown(scored: Sequence[Row]) -> dict[str, tuple[int, int]]:
    """Bucket -> (grids solved, grids)."""
    right = [(buckets(row.answer), solved(row.attempts[:2], row.answer)) for row in scored]
    return {
        name: (sum(ok for names, ok in right if name in names), sum(name in names for names, _ in right))
        for name in BUCKETS
    }


def bucket_means(answers: Sequence[Grid], values: np.ndarray) -> dict[str, tuple[int, np.ndarray]]:
    """Bucket -> (grids, mean of their values [grids, ...]); buckets without a grid are left out."""
    member = {name: [name in buckets(answer) for answer in answers] for name in BUCKETS}
    return {name: (sum(inside), values[inside].mean(0)) for name, inside in member.items() if any(inside)}


def early_lock(changed: np.ndarray, confidence: np.ndarray) -> int | None:
    """First step of one walk at which at most 1 % of cells changed and mean confidence is at least 95 %; None: never.

    changed, confidence: [steps], shares in [0, 1]; confidence is the mean top probability.
    """
    locked = np.flatnonzero((np.asarray(changed) <= 0.01) & (np.asarray(confidence) >= 0.95))
    return int(locked[0]) if len(locked) else None
