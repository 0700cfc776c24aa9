"""Sentences as batches of ids: whose turn it is, on which rank. What they come from is `sources.py`.

Training is by number, so a run restarts anywhere: the grammar's stream is endless and never repeats, a corpus is
shuffled anew in every pass. Validation and test are other sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from packages.text.grammar import Grammar
from packages.text.vocabulary import Tokens
from projects.text import sources
from projects.text.made import ENDLESS, Made
from projects.text.options import Options, at_least, spread
from shared.training.batches import Batch, ResidentBatches, Share, StatelessBatches, evaluation_shards, loader, placed
from shared.training.randomness import Randomness

AT_ONCE, LOGITS = 256, 2**27  # sentences of one step of an evaluation, and numbers of all their logits, at most


@dataclass
class Sentences(Batch):
    """B rows of L tokens. num_units: the positions that are looked at; where padding is modelled, it is among them."""

    ids: Tensor  # [B, L] int64, 0..V-1
    valid: Tensor  # [B, L] bool, True where the position counts (loss, metrics, attention)
    known: Tensor  # [B, L] bool, True where the token is given; it enters clean at every t and carries no loss
    index: Tensor  # [B] int64, identity of the example
    full: bool = True  # every position counts, so attention needs no mask
    labels: Tensor | None = None  # [B, A] int64 attribute slots, -1 = absent

    @property
    def counted(self) -> Tensor:
        """bool [B, L], the positions that carry loss."""
        return self.valid & ~self.known

    def of(self, rows: Tensor) -> Sentences:
        """Some of its rows, by their places; share and units stay those of the whole."""
        labels = None if self.labels is None else self.labels[rows]
        parts = {name: getattr(self, name)[rows] for name in ("ids", "valid", "known", "index")}
        return replace(self, **parts, labels=labels)

    def kept(self, x: Tensor | None, x0: Tensor) -> Tensor | None:
        """x [b, L, e] of the first b samples, with the rows of x0 [B, L, e] where tokens are given; None stays None."""
        return None if x is None else torch.where(self.known[: len(x)].unsqueeze(-1), x0[: len(x)], x)

    @property
    def mask(self) -> Tensor | None:
        """What attention may see, None for everything."""
        return None if self.full else self.valid


class TextData(LightningDataModule):
    """The line `text`.

    batch_size: rows per update, all ranks. held_out: rows of a validation, sentences drawn in a test. The rest says
    what the text is.
    """

    randomness = Randomness()

    def __init__(
        self, batch_size: int = 96, micro_batch: int | Literal["auto"] = "auto", held_out: int = 1000, **text: Any
    ):
        super().__init__()
        at_least("data.held_out", held_out, 1)
        self.batch_size, self.micro_batch, self.held_out = batch_size, micro_batch, held_out
        self.options = Options(**text)
        self._checkpoint: tuple[Mapping[str, Any] | None, bool] = None, False

    def adopt(self, checkpoint: Mapping[str, Any] | None, base: bool = False) -> None:
        """Read with the vocabulary of a checkpoint, which is evaluated, or, base, trained further on this text."""
        self._checkpoint = checkpoint, base
        vars(self).pop("source", None)
        _ = self.source  # refused here

    @cached_property
    def source(self) -> sources.Source:
        return sources.opened(self.options, *self._checkpoint)

    @property
    def grammar(self) -> Grammar | None:
        """None: real text."""
        return self.source.grammar

    @property
    def vocabulary(self) -> Tokens:
        return self.source.vocabulary

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.source.length

    @property
    def entropy(self) -> float:
        """Nats per token, EOS among them: exact for the grammar, else estimated from the training text."""
        return self.source.entropy

    @property
    def at_once(self) -> int:
        """Sentences of one step of an evaluation."""
        return max(1, min(AT_ONCE, LOGITS // (self.length * len(self.vocabulary))))

    def shares(self) -> np.ndarray:
        """[V] expected share of every id among the positions of a row."""
        return self.source.shares()

    def describe(self) -> dict[str, str]:
        return self.source.describe()

    def told(self) -> dict[str, Any]:
        """What a checkpoint says of its text."""
        return sources.told(self.source)

    def row(self, text: str) -> Tensor:
        """Ids [L] of a sentence. Mistake: a word that is unknown, or too many of them."""
        return torch.tensor(self.source.row(text))

    def valid(self, seeds: Sequence[int]) -> Tensor | None:
        """bool [n, L] of sentences to be drawn; None where a row says itself where its sentence ends."""
        source = self.source
        if isinstance(source, Made) or source.whole:
            return None
        return torch.arange(self.length) < torch.from_numpy(source.lengths(seeds))[:, None]

    def given(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """What is given to sentences to be drawn: ids [n, L] and where they are, bool [n, L]; None: nothing."""
        laid = self.source.given(seeds)
        return laid and (torch.from_numpy(laid.ids), torch.from_numpy(laid.known))

    def measured(self, count: int) -> np.ndarray:
        """Numbers of the `count` held-out sentences at most, from all over a test, whose likelihood is measured."""
        index = self.source.evaluated("test", max(count, self.held_out))
        return index[spread(len(index), count)]

    def train_dataloader(self) -> ResidentBatches:
        size = self.source.size()
        order = StatelessBatches(
            size, seed=self.randomness.seed, batch_size=self.batch_size, lengths=self.source.units(),
            shuffle=size < ENDLESS, **placed(self.trainer),
        )  # fmt: skip
        return ResidentBatches(order, partial(self.sentences, "train"))

    def val_dataloader(self) -> DataLoader:
        return self._shards("val")

    def test_dataloader(self) -> DataLoader:
        return self._shards("test")

    def _shards(self, stream: str) -> DataLoader:
        """This rank's part of a stream."""
        index = self.source.evaluated(stream, self.held_out)
        mine = index[evaluation_shards(len(index), self.trainer.global_rank, self.trainer.world_size)]
        shares = [Share.of(mine[first : first + self.at_once]) for first in range(0, len(mine), self.at_once)]
        return loader(shares, partial(self.sentences, stream))  # type: ignore[arg-type]

    def sentences(self, stream: str, share: Share) -> Sentences:
        """The sentences of a share, each by its number."""
        ids, valid, known = (torch.from_numpy(part) for part in self.source.take(stream, share.index))
        if self.source.even:
            share = replace(share, global_units=share.global_samples * self.length)
        elif stream != "train":
            share = replace(share, global_units=int((valid & ~known).sum()))
        index = torch.from_numpy(share.index)
        return Sentences(share, int(valid.sum()), ids, valid, known, index, full=self.source.whole)
