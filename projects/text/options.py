"""The text of a run as its configuration names it, and what its sources share. Knows no reader and no grammar."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from packages.text import empirical, table
from packages.text.documents import HELD_OUT
from packages.text.rows import Words
from packages.text.vocabulary import EOS, PAD, Vocabulary
from shared.training.errors import Mistake


@dataclass
class Options:
    """The text of a run.

    source: grammar, made in memory; text, a file, folder or glob; e2e, lines `fields||text`; parquet; hub. level: of
    the grammar. length: tokens of a row (None: what the grammar's longest sentence needs, up to a multiple of 16; 64
    of a corpus). path, column, dataset_name, dataset_config, streaming, sample_by: see `corpora.Source`.
    conditional: rows are pairs, of which the first is given and the second is learnt: the fields and the text of e2e,
    lines `given||text` (or with a tab between them) of text, the columns given_column and column of parquet and hub.
    held_out_share: of articles, field sets, ... that do not train. packing, long, tail: see `windows.Packing` (None:
    concat where a document is an article, else eos_pad). tokenizer: words, train (byte pairs on the training part), a
    path, a hub id (auto: words for e2e, else train). vocab_size: ids of it at most (None: 4096 to train). min_count:
    occurrences that make a word one. cache_dir: of tokenizers and tokens.
    """

    source: Literal["grammar", "text", "parquet", "hub", "e2e"] = "grammar"
    level: Literal["micro", "small", "long"] = "small"
    length: int | None = None
    path: str | None = None
    sample_by: Literal["document", "paragraph", "line"] = "document"
    column: str = "text"
    conditional: bool = False
    given_column: str | None = None
    dataset_name: str | None = None
    dataset_config: str | None = None
    streaming: bool = False
    held_out_share: float = HELD_OUT
    packing: Literal["eos_pad", "concat", "none"] | None = None
    long: Literal["drop", "split"] = "drop"
    tail: Literal["keep", "drop", "keep_half"] | None = None
    tokenizer: str = "auto"
    vocab_size: int | None = None
    min_count: int = 1
    cache_dir: str = ".cache/text"

    def __post_init__(self) -> None:
        if not 0 < self.held_out_share < 1:
            raise ValueError(f"data.held_out_share is {self.held_out_share}; give a share between 0 and 1, such as .1.")
        for name, least in (("length", 2), ("min_count", 1), ("vocab_size", 1)):
            if (value := getattr(self, name)) is not None:
                at_least(f"data.{name}", value, least)
        if self.conditional:
            self._of_pairs()

    def _of_pairs(self) -> None:
        if self.source == "grammar":
            raise ValueError(
                "data.conditional is true, and sentences of the grammar have nothing given; set data.source, as to e2e."
            )
        if self.source in ("parquet", "hub") and not self.given_column:
            raise ValueError(
                f"data.conditional is true, and no column of {self.source} says what is given; set data.given_column."
            )
        if self.packing not in (None, "eos_pad") or self.long != "drop":
            raise ValueError(
                f"data.packing is {self.packing} and data.long is {self.long}; pairs are rows of their own, padded and"
                " never split: leave both out."
            )


class Laid(NamedTuple):
    """ids [n, L] int64; valid [n, L] bool, the positions that count; known [n, L] bool, those that are given."""

    ids: np.ndarray
    valid: np.ndarray
    known: np.ndarray


class Unasked:
    """A source of sentences that are drawn for nothing in particular; where something is given these say what."""

    def given(self, seeds: Sequence[int]) -> Laid | None:
        """Rows of what is given to sentences that are drawn; None: nothing is."""
        return None

    def said(self, row: Words) -> Words:
        """The words of a row that are not given."""
        return row

    def faithful(self, rows: Sequence[Words]) -> list[table.Row]:
        """How well sentences 0 .. n - 1 say what was given to them."""
        return []


def at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}; give {least} or more.")


def spread(count: int, wanted: int) -> np.ndarray:
    """`wanted` of the numbers below count, from all over; all of them when there are no more."""
    return np.array(empirical.spread(range(count), min(count, wanted)), np.int64)


def digest(*parts: object) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def known_words(text: str, vocabulary: Vocabulary, name: str) -> str:
    """The text. Mistake: a word that is not in the vocabulary, which is called `name`."""
    if unknown := vocabulary.unknown(text):
        raise Mistake(f"The word {unknown[0]!r} is not in the {name}; leave it out or spell it so.")
    return text


def padded(ids: Sequence[int], length: int, text: str) -> list[int]:
    """A row of the ids of a text: EOS, then PAD. Mistake: too many."""
    if len(ids) >= length:
        raise Mistake(f"{text!r} has {len(ids)} words, a row holds {length - 1} and EOS; shorten it.")
    return [*ids, EOS] + [PAD] * (length - len(ids) - 1)
