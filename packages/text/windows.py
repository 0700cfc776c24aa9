"""Windows of a fixed length over tokenised documents: how text becomes rows of ids.

    windows = pack(map(vocabulary.encode, sentences), Packing("eos_pad", 32), len(vocabulary))
    ids, valid = windows.take([0, 7, 3])        # [3, 32] each

What is too long is dropped or split as asked, and counted. Knows ids and no text; files of ids are `token_cache.py`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from packages.text.documents import one_of
from packages.text.vocabulary import EOS, PAD, Tokens

KINDS = ("eos_pad", "concat", "none")
PAIRS = "pairs"
LONG = ("drop", "split")
TAILS = ("keep", "drop", "keep_half")


@dataclass(frozen=True)
class Packing:
    """How documents become windows.

    kind: eos_pad: words, EOS, then PAD, all of it modelled; concat: documents joined by EOS, cut without padding; none:
    words, then PAD that does not count; pairs: what is given, EOS, words, EOS, then PAD that is modelled; never split.
    length: L, tokens of a window, EOS among them.
    long: a document that is longer: drop | split. tail: what is left of a split document, or of the stream with concat:
    keep | drop | keep_half (when it fills half a window). None: keep, with concat drop.
    """

    kind: str = "eos_pad"
    length: int = 32
    long: str = "drop"
    tail: str | None = None

    def __post_init__(self) -> None:
        one_of("packing", self.kind, (*KINDS, PAIRS))
        one_of("long", self.long, ("drop",) if self.kind == PAIRS else LONG)
        if self.tail is not None:
            one_of("tail", self.tail, TAILS)
        if self.length < 2:
            raise ValueError(f"the length of a window is {self.length}; give 2 tokens or more")


class Cut(NamedTuple):
    """spans [W, 2] int64: first token and end of every window. What did not fit is counted, not lost in silence."""

    spans: np.ndarray
    dropped: int  # documents
    split: int  # documents cut into several windows; 0 with concat, where all are
    lost: int  # tokens in no window


def cut(offsets: np.ndarray, packing: Packing) -> Cut:
    """Where the windows of documents lie. offsets [D + 1]: ends of documents in the row of all tokens.

    ValueError: no window comes of it.
    """
    joined = packing.kind == "concat"
    ends = offsets[[0, -1]] if joined else offsets
    start, size = ends[:-1], np.diff(ends)
    long = size > packing.length
    dropped = long & (packing.long == "drop" and not joined)
    pieces = np.where(dropped, 0, -(-size // packing.length))
    owner = np.repeat(np.arange(len(size)), pieces)
    first = start[owner] + packing.length * (np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
    end = np.minimum(first + packing.length, ends[owner + 1])
    kept = ~(long[owner] | joined) | (end - first >= _least(packing))
    spans = np.stack([first, end], 1)[kept]
    if not len(spans):
        raise ValueError(_nothing(offsets, packing))
    split = 0 if joined else int((pieces > 1).sum())
    return Cut(spans, int(dropped.sum()), split, int(ends[-1] - np.diff(spans).sum()))


def _least(packing: Packing) -> int:
    """Tokens that a tail must have to be kept."""
    tail = packing.tail or ("drop" if packing.kind == "concat" else "keep")
    return {"keep": 1, "drop": packing.length, "keep_half": -(-packing.length // 2)}[tail]


def _nothing(offsets: np.ndarray, packing: Packing) -> str:
    documents, tokens = len(offsets) - 1, int(offsets[-1])
    if not tokens:
        return "the corpus has no text; look at what the path and the split leave of it"
    if packing.kind == "concat":
        return f"the corpus has {tokens} tokens, less than a window of {packing.length}; give more text or less length"
    return (
        f"all {documents} documents are longer than a window of {packing.length} tokens (the shortest has "
        f"{np.diff(offsets).min()}); set long to split, or take longer windows"
    )


class Windows:
    """The windows of a corpus, in its order.

    tokens [N]: ids of all documents, each followed by EOS unless packing is none. offsets [D + 1]: of documents.
    given [D] int64: how many of each document's tokens are given, the EOS behind them among these; None: of none any.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        offsets: np.ndarray,
        found: Cut,
        packing: Packing,
        given: np.ndarray | None = None,
    ):
        self.tokens, self.offsets, self.cut, self.packing, self.given = tokens, offsets, found, packing, given

    def __len__(self) -> int:
        return len(self.cut.spans)

    @property
    def lengths(self) -> np.ndarray:
        """[W] int64: tokens of each window, padding not counted."""
        return np.diff(self.cut.spans)[:, 0]

    def take(self, index: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(ids [B, L] int64, valid [B, L] bool: the positions that count, with eos_pad all of them)."""
        first, end = self.cut.spans[np.asarray(index, np.int64)].T[..., None]
        place = first + np.arange(self.packing.length)
        ids = np.where(place < end, self.tokens[np.minimum(place, end - 1)], PAD).astype(np.int64)
        return ids, (place < end) | (self.packing.kind in ("eos_pad", PAIRS))

    def known(self, index: Sequence[int] | np.ndarray) -> np.ndarray:
        """bool [B, L], the positions that are given."""
        return np.arange(self.packing.length) < self.known_tokens(index)[:, None]

    def known_tokens(self, index: Sequence[int] | np.ndarray) -> np.ndarray:
        """[B] int64: how many of them each window has."""
        return np.zeros(len(index), np.int64) if self.given is None else self.given[self.document(index)]

    def texts(self, most: int | None = None) -> Iterator[np.ndarray]:
        """The tokens of each document that are not given, among the first `most` tokens."""
        most = len(self.tokens) if most is None else most
        for n, (start, end) in enumerate(pairwise(self.offsets[: 1 + int(np.searchsorted(self.offsets, most))])):
            yield self.tokens[start if self.given is None else start + self.given[n] : min(end, most)]

    def document(self, index: Sequence[int] | np.ndarray) -> np.ndarray:
        """[B]: the number of the document, in the order of the corpus, that each window begins in."""
        first = self.cut.spans[np.asarray(index, np.int64), 0]
        return np.searchsorted(self.offsets, first, side="right") - 1

    def __str__(self) -> str:
        documents, packing = len(self.offsets) - 1, self.packing
        return (
            f"{len(self):,} windows of {packing.length} ({packing.kind}) from {documents:,} documents, "
            f"{len(self.tokens):,} tokens; too long: {self.cut.dropped:,} dropped, {self.cut.split:,} split; "
            f"{self.cut.lost:,} tokens left out"
        )


def pack(sequences: Iterable[Sequence[int]], packing: Packing, size: int) -> Windows:
    """Windows in memory. sequences: ids of documents without EOS; size: of the vocabulary. ValueError: an id beyond."""
    parts = [ended(ids, packing, size) for ids in sequences]
    offsets = np.cumsum([0, *map(len, parts)])
    return Windows(np.concatenate(parts or [np.zeros(0, np.uint16)]), offsets, cut(offsets, packing), packing)


def pack_pairs(pairs: Iterable[tuple[Sequence[int], Sequence[int]]], length: int, size: int) -> Windows:
    """Windows of pairs of ids; a pair that is too long is dropped and counted. ValueError: as of `pack`."""
    found = [(list(first), list(second)) for first, second in pairs]
    made = pack((paired(*pair) for pair in found), Packing(PAIRS, length), size)
    made.given = np.array([len(first) + 1 for first, _ in found], np.int64)
    return made


def paired(given: Sequence[int], ids: Sequence[int]) -> list[int]:
    """One document of two, for `ended`; len(given) + 1 tokens of it are given."""
    return [*given, EOS, *ids]


def ended(ids: Sequence[int], packing: Packing, size: int) -> np.ndarray:
    """The ids of a document with its EOS, in the smallest type that holds the vocabulary."""
    found = np.array(ids if packing.kind == "none" else [*ids, EOS], np.int64)
    if len(found) and not 0 <= found.min() <= found.max() < size:
        raise ValueError(f"ids {found.min()} .. {found.max()} are not of a vocabulary of {size}; encode with that one")
    return found.astype(np.uint16 if size <= 65_535 else np.uint32)


def stream(texts: Iterable[str], vocabulary: Tokens, length: int) -> Iterator[np.ndarray]:
    """Windows [length] int64 of documents joined by EOS, as they come, for corpora too large to be tokenised first."""
    rest = np.zeros(0, np.int64)
    for ids in vocabulary.encode_all(texts):
        rest = np.concatenate([rest, ids, [EOS]])
        whole = len(rest) // length * length
        yield from rest[:whole].reshape(-1, length)
        rest = rest[whole:]
