"""WikiSplit (Botha et al. 2018): a long sentence, a tab, and the two short ones it was made of, `first <::::> second`.

Pairs long -> two short, and first -> second. Knows the format; a split is by file.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from packages.text.documents import Document, files, lines

BETWEEN = "<::::>"


class Row(NamedTuple):
    long: str
    first: str
    second: str


def rows(file: Path | str) -> Iterator[Row]:
    """Rows of one file. ValueError: one of another form, with its number."""
    for number, line in enumerate(lines(Path(file)), 1):
        if line.strip():
            long, _, short = line.partition("\t")
            first, _, second = short.partition(BETWEEN)
            row = Row(long.strip(), first.strip(), second.strip())
            if not all(row):
                raise ValueError(f"{file}, line {number}: {line[:40]!r}; wanted `long TAB first {BETWEEN} second`")
            yield row


def documents(path: str) -> Iterator[Document]:
    """Every sentence once, the long one of a row before its short ones; the group is the file's content."""
    seen: set[str] = set()
    for file in files(path, ".tsv"):
        with file.open("rb") as content:
            group = hashlib.file_digest(content, "sha256").hexdigest()[:16]
        for sentence in (each for row in rows(file) for each in row):
            if sentence not in seen:
                seen.add(sentence)
                yield Document(sentence, group)
