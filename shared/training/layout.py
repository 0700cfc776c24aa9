"""Tables as text: Markdown for files, aligned columns for the terminal, and a marked place in a README for either.

Knows strings only.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from shared.training.errors import Mistake
from shared.training.tables import replace_text

Row = Sequence[str]


def markdown(head: Row, rows: Iterable[Row]) -> list[str]:
    """The lines of a Markdown table."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [head, *rows]]
    return [lines[0], "|---" * len(head) + "|", *lines[1:]]


def plain(head: Row, rows: Iterable[Row]) -> list[str]:
    """Columns as wide as their widest cell; the last one ends where its text ends."""
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]


def inserted(text: str, name: str, lines: Iterable[str]) -> str:
    """`text` with `lines` between `<!-- name -->` and `<!-- /name -->`. Raises Mistake when it has no such place."""
    place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    block = "".join(line + "\n" for line in lines)
    if not place.search(text):
        raise Mistake(f"There is no place for the table: write the lines <!-- {name} --> and <!-- /{name} --> there.")
    return place.sub(lambda found: found[1] + block + found[2], text, count=1)


def insert(path: Path, name: str, lines: Iterable[str]) -> bool:
    """Write `lines` into the marked place of a file; True when that changed it."""
    before = path.read_text(encoding="utf-8")
    after = inserted(before, name, lines)
    if after != before:
        replace_text(path, after)
    return after != before
