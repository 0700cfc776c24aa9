"""CSV tables that survive a kill: one row per update, and a row that was torn is left out by every reader.

Knows files, and how one takes another's place at once; not what the columns mean.
"""

import csv
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


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
        self.columns, rows = _whole(self.path)
        self.rows = [row for row in rows if int(row["update"]) <= update]
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
    for row in _whole(path)[1]:
        for name, text in row.items():
            columns.setdefault(name, {})[int(row["update"])] = float(text)
    return columns


def _whole(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """(columns, rows without their empty cells) of the lines that were written to their end."""
    ended = path.read_bytes().decode("utf-8", "replace").split("\n")[:-1]
    columns, *lines = [*csv.reader(ended)] or [["update"]]
    rows = [dict(zip(columns, line)) for line in lines if len(line) == len(columns) and line[0].isdigit()]
    return columns, [{name: text for name, text in row.items() if text} for row in rows]


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` at the end of the block: a reader, or a kill at any moment, meets the old
    file or the new one, never a part. A block that fails leaves the old one.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """`replacing` for a text."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))
