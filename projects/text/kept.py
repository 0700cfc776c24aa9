"""Measurements that are not made twice: cells of a table in a JSON file, each by what it was measured of.

A sweep that was stopped goes on where it stood. Knows plain values only.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared.training import runs
from shared.training.report import Metric

Cell = dict[str, Any]  # what it is `of`, and the `metrics`


class Kept:
    """The cells of a file, which is written after each new one."""

    def __init__(self, path: Path):
        self.path = path
        self.cells: list[Cell] = runs.read_json(path)["cells"] if path.exists() else []

    def find(self, of: Mapping[str, Any]) -> Cell | None:
        """The cell that was measured of just that."""
        return next((cell for cell in self.cells if cell["of"] == of), None)

    def add(self, of: Mapping[str, Any], metrics: Iterable[Metric]) -> Cell:
        """A new one."""
        self.cells.append(cell := {"of": dict(of), "metrics": [asdict(metric) for metric in metrics]})
        runs.write_json(self.path, {"cells": self.cells})
        return cell


def metrics(cell: Cell) -> dict[str, Metric]:
    """What was measured, by name."""
    return {each["name"]: Metric(**each) for each in cell["metrics"]}
