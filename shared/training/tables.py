"""CSV tables that survive a kill: one row per update, written so that a reader never meets half of one.

Knows text files; not what the columns mean.
"""

import csv
import os
from collections.abc import Mapping
from pathlib import Path


class Table:
    """A CSV file with one row per update; a row may be completed later, a column may appear late."""

    def __init__(self, path: Path):
        self.path = path
        self.columns: list[str] = ["update"]
        self.rows: list[dict[str, str]] = []

    def write(self, update: int, values: Mapping[str, float]) -> None:
        """Append the row of `update`, or complete it when it is the last one; on disk before this returns."""
        texts = {"update": str(update), **{name: format_value(value) for name, value in values.items()}}
        late = [name for name in texts if name not in self.columns]
        self.columns += late
        if self.rows and self.rows[-1]["update"] == texts["update"]:
            self.rows[-1] |= texts
            return self._rewrite()
        self.rows.append(texts)
        if late or len(self.rows) == 1:
            return self._rewrite()
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(self._line(texts))

    def rewind(self, update: int) -> None:
        """Forget every row after `update` (and a torn last line), as a run resumed there will write them again."""
        if not self.path.exists():
            return
        with open(self.path, encoding="utf-8", newline="") as file:
            self.columns, *lines = list(csv.reader(file))
        whole = [line for line in lines if len(line) == len(self.columns) and int(line[0]) <= update]
        self.rows = [{name: text for name, text in zip(self.columns, line) if text} for line in whole]
        self.columns = [name for name in self.columns if name == "update" or any(name in row for row in self.rows)]
        self._rewrite()

    def _rewrite(self) -> None:
        heading = ",".join(self.columns) + "\n"
        replace_text(self.path, heading + "".join(map(self._line, self.rows)))

    def _line(self, row: Mapping[str, str]) -> str:
        return ",".join(row.get(name, "") for name in self.columns) + "\n"


def format_value(value: float) -> str:
    """Nine digits: enough to tell any two float32 apart, so equal text means equal values."""
    return f"{float(value):.9g}"


def read_table(path: Path) -> dict[str, dict[int, float]]:
    """Column -> (update -> value), empty cells left out; {} without a file or without rows."""
    if not path.exists():
        return {}
    columns: dict[str, dict[int, float]] = {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                if text:
                    columns.setdefault(name, {})[int(row["update"])] = float(text)
    return columns


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill at any moment, meets the old text or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
