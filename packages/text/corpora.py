"""Readers of text: files, parquet, the hub, pairs, E2E, WikiSplit, all as one `Corpus` of documents.

    corpus = read(Source("text", path="wikitext2-valid.txt"))
    training, validation = split(corpus)  # of documents.py

Which group a document belongs to (article, field set, paragraph, file) is decided here. Knows no vocabulary and no
windows. `datasets` is imported for parquet and hub alone; nothing reaches the network unless the source is the hub.
"""

import itertools
import logging
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from packages.text import e2e, wikisplit
from packages.text.documents import Corpus, Document, files, key, lines, one_of

SOURCES = ("text", "pairs", "parquet", "hub", "e2e", "wikisplit")
SAMPLES = ("document", "paragraph", "line")
HEADING = re.compile(r" = [^=].* = $")  # of an article of WikiText; those of sections have more signs
SUFFIX = {
    "text": ".txt",
    "pairs": ".txt",
    "e2e": ".txt",
    "wikisplit": ".tsv",
    "parquet": ".parquet",
}  # of the files of a folder
BETWEEN = {"paragraph": re.compile(r"\n\s*\n"), "line": re.compile(r"\n")}  # documents of a group
BLOCK = 100  # lines of a group where neither headings nor blank lines part them


@dataclass(frozen=True)
class Source:
    """Where text lies and what a document of it is.

    source: one of SOURCES. path: a file, a folder or a glob; of all sources but the hub.
    sample_by: of text and rows: a document is an article (from one WikiText heading to the next; without headings the
    whole file, or row), a paragraph (until a blank line) or a line.
    """

    source: str = "text"
    path: str | None = None
    sample_by: str = "document"
    column: str = "text"  # of parquet and hub
    given: str | None = None  # the column of what the text was written for, which makes a row a document and a pair
    dataset_name: str | None = None  # of the hub, such as Salesforce/wikitext
    dataset_config: str | None = None  # such as wikitext-2-raw-v1
    dataset_split: str = "train"
    streaming: bool = False  # read the hub's files as they come, without a copy on disk

    def __post_init__(self) -> None:
        one_of("source", self.source, SOURCES)
        one_of("sample_by", self.sample_by, SAMPLES)
        wanted = "dataset_name" if self.source == "hub" else "path"
        if not getattr(self, wanted):
            raise ValueError(f"the source {self.source} has no {wanted}; set it")

    @property
    def name(self) -> str:
        """ "text:wikitext2-valid.txt", or the hub's names joined by spaces."""
        if self.path:
            return f"{self.source}:{Path(self.path).name}"
        return " ".join(filter(None, ("hub:" + str(self.dataset_name), self.dataset_config, self.dataset_split)))


def read(source: Source, part: int = 0, parts: int = 1) -> Corpus:
    """The corpus of a source. ValueError: what is not there; a walk raises it for what cannot be read.

    part, parts: of parquet files and of a stream, the share of one of several readers (ranks x workers) in the files;
    no file is in two shares.
    """
    if source.source in ("parquet", "hub"):
        stream = f"{source} {part} {parts}" if source.streaming else None
        return Corpus(
            source.name, partial(_row_documents, source, _share(source, _opened(source), part, parts)), stream
        )
    path = source.path or ""
    files(path, SUFFIX[source.source])
    readers = {
        "text": partial(_text_documents, path, source.sample_by),
        "pairs": partial(_pair_documents, path),
        "e2e": partial(e2e.documents, path),
        "wikisplit": partial(wikisplit.documents, path),
    }
    return Corpus(source.name, readers[source.source])


# ---- text: lines make groups, groups make documents ----


def _text_documents(path: str, sample_by: str) -> Iterator[Document]:
    found = files(path, SUFFIX["text"])
    limit = {"document": None, "paragraph": math.inf, "line": BLOCK}[sample_by] if len(found) == 1 else None
    for file in found:
        for group in _groups(lines(file), limit):
            yield from _cut("\n".join(group), sample_by)


def _groups(content: Iterable[str], limit: float | None) -> Iterator[list[str]]:
    """Runs of lines that belong together: an article, and all before the first heading.

    limit: before the first heading a blank line, or that many lines, end a group; None: they do not.
    """
    group: list[str] = []
    for line in content:
        heading = HEADING.match(line)
        limit = None if heading else limit
        if group and (heading or (limit and (not line.strip() or len(group) == limit))):
            yield group
            group = []
        group.append(line)
    yield group


def _cut(group: str, sample_by: str) -> Iterator[Document]:
    """The documents of a group, none of them blank."""
    parts = BETWEEN[sample_by].split(group) if sample_by in BETWEEN else [group]
    name = key(group.strip())
    return (Document(text, name) for part in parts if (text := part.strip()))


# ---- pairs: what is given, and a text for it ----


def _pair_documents(path: str) -> Iterator[Document]:
    """Lines `given||text`, or with a tab between them. ValueError: a line of another form, with file and number."""
    for file in files(path, SUFFIX["pairs"]):
        for number, line in enumerate(lines(file), 1):
            if line.strip():
                given, _, text = line.partition("\t" if "\t" in line else "||")
                yield _pair(given, text, f"{file}, line {number}")


def _pair(given: str, text: str, where: str) -> Document:
    """All texts for the same given one are a group."""
    given, text = given.strip(), text.strip()
    if not (given and text):
        raise ValueError(f"{where}: one of the two texts of a pair is missing; wanted `given||text`, or a tab between")
    return Document(text, key(given), given=given)


# ---- rows of parquet files and of the hub ----


def _opened(source: Source) -> Any:
    """The rows, walked again by every `iter`. ValueError: the library, the data or the column is missing."""
    try:
        import datasets
    except ImportError as missing:
        raise ValueError(
            f"the source {source.source} needs the package datasets (extra 'text'), which is not installed; run "
            "`make setup`, or `pip install datasets`, or give text files with the source text"
        ) from missing
    if source.source == "parquet":
        found = [str(file) for file in files(source.path or "", SUFFIX["parquet"])]
        return datasets.load_dataset("parquet", data_files=found, split="train", streaming=True)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells every attempt; the last one is told below
    try:
        return datasets.load_dataset(
            source.dataset_name, source.dataset_config, split=source.dataset_split, streaming=source.streaming
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{source.name} is not to be had ({first}); fetch it where there is a network and give the folder, with "
            "the source parquet or text"
        ) from error


def _share(source: Source, rows: Any, part: int, parts: int) -> Any:
    if parts == 1:
        return rows
    if (found := getattr(rows, "num_shards", 1)) < parts:
        raise ValueError(
            f"{source.name} has {found} files for {parts} readers (ranks x workers), streamed; use fewer workers"
        )
    return rows.shard(num_shards=parts, index=part)


def _row_documents(source: Source, rows: Iterable[dict[str, Any]]) -> Iterator[Document]:
    """Rows that begin with a heading are lines of articles; others are a group each, pairs are by what is given."""
    if source.given:
        pairs = ((_text(row, source, source.given), _text(row, source, source.column)) for row in rows)
        return (_pair(*pair, f"{source.name}, row {number}") for number, pair in enumerate(pairs, 1))
    texts = (_text(row, source, source.column) for row in rows)
    first = next((text for text in texts if text.strip()), "")
    groups: Iterable[str] = itertools.chain([first], texts)
    if HEADING.match(first.rstrip("\n")):
        groups = map("\n".join, _groups((line.rstrip("\n") for line in groups), None))
    return itertools.chain.from_iterable(_cut(group, source.sample_by) for group in groups)


def _text(row: dict[str, Any], source: Source, column: str) -> str:
    if column not in row:
        raise ValueError(f"{source.name} has no column {column!r}; name one of {', '.join(row)}")
    return row[column]
