"""Pairs as a source of rows: the first text of a pair is given, the second is learnt (Gong et al. 2023, DiffuSeq).

A row is what is given, EOS, the text, EOS, PAD. Sentences are drawn for what was given to held-out texts, each group of
them in turn. Whether they say it is measured by `packages/text/control.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from packages.text import corpora, table
from packages.text.control import Asked, faithful
from packages.text.documents import Corpus, Document, with_given
from packages.text.rows import EOS, Words, sentence
from packages.text.windows import PAIRS
from projects.text.options import Laid
from projects.text.read import Read
from shared.training.errors import Mistake


class Pairs(Read):
    """`Read` of documents that were written for something, which is given."""

    def _kind(self) -> str:
        return PAIRS

    def _named(self) -> corpora.Source:
        named = super()._named()
        lines = "pairs" if named.source == "text" else named.source
        return replace(named, source=lines, given=self.options.given_column)

    @property
    def grouped(self) -> str:
        return "field sets" if self.options.source == "e2e" else "groups that are given the same"

    @property
    def _spelt(self) -> Corpus:
        return with_given(self.training)

    def units(self) -> np.ndarray:
        """Tokens of each row that are not given, padding among them."""
        return self.length - self.windows("train").known_tokens(range(self.size()))

    @cached_property
    def _asked(self) -> Asked:
        """What sentences are drawn for: groups that have a row in the test."""
        return Asked(self._whole(self.held_out, "test"), () if self._foreign else self.training)

    @cached_property
    def _first(self) -> np.ndarray:
        """The number of a row of each group, in their order."""
        groups = {document.group: n for n, document in reversed([*enumerate(self._whole(self.held_out, "test"))])}
        return np.array([groups[group[0].group] for group in self._asked.groups])

    def _whole(self, corpus: Corpus, stream: str) -> list[Document]:
        """The documents that have a row, in the order of the rows."""
        documents, windows = list(corpus), self.windows(stream)
        return [documents[n] for n in windows.document(range(len(windows)))]

    def given(self, seeds: Sequence[int]) -> Laid:
        return self.take("test", self._first[np.asarray(seeds) % len(self._first)])

    def said(self, row: Words) -> Words:
        """Behind the first EOS, which ends what is given."""
        return row[row.index(EOS) + 1 :]

    def faithful(self, rows: Sequence[Words]) -> list[table.Row]:
        return faithful([self.joined(sentence(self.said(row))).split() for row in rows], self._asked)

    def row(self, text: str) -> list[int]:
        raise Mistake(f"{text!r} cannot be a row: rows here are pairs, and what is given is that of a held-out text.")
