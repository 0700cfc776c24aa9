"""Documents, the corpus that walks them, and the split that no group crosses. Knows no format and no vocabulary.

    training, validation = split(corpus)

A group is what a split may not cut: an article, a field set, a paragraph, a file. Its key is a hash of its content, and
the key alone says which side it is on: the same in every process, wherever the file lies and whatever stands beside it.
"""

import difflib
import glob
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

HELD_OUT = 0.1


@dataclass(frozen=True)
class Document:
    """One text. group: key of the group it belongs to. slots: what it is about, by name; empty when nobody says.

    given: what the text was written for, as text; texts of one group have the same.
    """

    text: str
    group: str
    slots: Mapping[str, str] = field(default_factory=dict)
    given: str = ""


class Facts(NamedTuple):
    """What one walk through a corpus tells."""

    documents: int
    groups: int
    sha256: str  # of texts and groups in their order


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order, read anew by every walk. name: what a report calls it.

    identity: stands in for the hash where a walk would be too long (streams); None: the hash is of the content.
    """

    name: str
    walk: Callable[[], Iterator[Document]]
    identity: str | None = None

    def __iter__(self) -> Iterator[Document]:
        return self.walk()

    @cached_property
    def facts(self) -> Facts:
        found, groups, documents = hashlib.sha256(), set(), 0
        for document in self:
            documents += 1
            found.update(f"{len(document.text)} {document.group} {document.text}".encode())
            groups.add(document.group)
        return Facts(documents, len(groups), found.hexdigest())

    @property
    def sha256(self) -> str:
        return self.facts.sha256 if self.identity is None else hashlib.sha256(self.identity.encode()).hexdigest()


def key(*parts: str) -> str:
    """16 hex digits of the content of a group."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def split(corpus: Corpus, held_out: float = HELD_OUT) -> tuple[Corpus, Corpus]:
    """(training, validation): about `held_out` of the groups are held out, chosen by their keys; no group is in both.

    ValueError: a side without a document. Streams are not walked to see.
    """
    training, validation = _side(corpus, "training", held_out), _side(corpus, "validation", held_out)
    empty = [side for side in (training, validation) if side.identity is None and not side.facts.documents]
    if empty:
        raise ValueError(
            f"{empty[0].name} is empty: {corpus.name} has {corpus.facts.groups} groups (articles, field sets, "
            "paragraphs or files), which no split cuts; give a larger corpus, or smaller documents (sample_by)"
        )
    return training, validation


def _side(corpus: Corpus, side: str, share: float) -> Corpus:
    walk = partial(_kept, corpus, share, side == "validation")
    return Corpus(f"{corpus.name}:{side}", walk, corpus.identity and f"{corpus.identity} {side} {share}")


def is_held_out(group: str, share: float = HELD_OUT) -> bool:
    return int(group, 16) < share * 16 ** len(group)


def _kept(corpus: Corpus, share: float, out: bool) -> Iterator[Document]:
    return (document for document in corpus if is_held_out(document.group, share) == out)


def with_given(corpus: Corpus) -> Corpus:
    """Its documents, each text behind what was given: what a vocabulary of pairs is counted from."""
    return Corpus(corpus.name, partial(_with_given, corpus), corpus.identity and f"{corpus.identity} with given")


def _with_given(corpus: Corpus) -> Iterator[Document]:
    return (replace(document, text=f"{document.given} {document.text}") for document in corpus)


def keys(corpus: Corpus) -> frozenset[str]:
    """What tells a document that was seen: the keys of all groups and of all texts."""
    return frozenset(each for document in corpus for each in (document.group, key(document.text)))


def unseen(corpus: Corpus, seen: frozenset[str]) -> Corpus:
    """The documents whose group and whose very text are not among `seen`: two groups may share a text."""
    identity = corpus.identity and f"{corpus.identity} without {key(*sorted(seen))}"
    return Corpus(f"{corpus.name}:unseen", partial(_unseen, corpus, seen), identity)


def _unseen(corpus: Corpus, seen: frozenset[str]) -> Iterator[Document]:
    return (document for document in corpus if not seen & {document.group, key(document.text)})


def files(path: str, suffix: str) -> list[Path]:
    """The file at `path`, all files with the suffix below a folder, or what a glob finds; sorted. ValueError: none."""
    root = Path(path)
    if root.is_file():
        return [root]
    found = root.rglob(f"*{suffix}") if root.is_dir() else map(Path, glob.glob(path, recursive=True))
    if not (kept := sorted(file for file in found if file.is_file())):
        what = f"holds no {suffix} file" if root.is_dir() else "is no file, folder or glob that finds one"
        raise ValueError(f"{path} {what}; give the path of text that exists")
    return kept


def lines(file: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, without their ends. ValueError: another encoding, with its offset; blanks alone."""
    offset, blank = 0, True
    with file.open("rb") as raw:
        for content in raw:
            line = _decoded(content, file, offset).rstrip("\r\n")
            offset += len(content)
            blank = blank and not line.strip()
            yield line
    if blank:
        raise ValueError(f"{file} is empty; give a file with text in it")


def _decoded(content: bytes, file: Path, offset: int) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8: byte 0x{content[error.start]:02x} at offset {offset + error.start}; convert it "
            "(iconv -f latin1 -t utf-8), or leave it out"
        ) from error


def one_of(name: str, value: str, known: Sequence[str]) -> None:
    """ValueError with the known ones, the nearest first."""
    if value not in known:
        near = sorted(known, key=lambda each: -difflib.SequenceMatcher(None, value, each).ratio())
        raise ValueError(f"unknown {name} {value!r}; wanted one of {', '.join(near)}")
