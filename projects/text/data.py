"""Sentences as batches of ids: where they come from, how they are laid into rows of one length, which of them train.

The grammar (`packages/text`) is the default source: its training sentences are one endless stream, each made by its
number where it is needed, and nothing is kept or shuffled. Validation and test are streams of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Literal

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from packages.text.grammar import Grammar
from packages.text.vocabulary import EOS, PAD, Vocabulary
from shared.training.batches import Batch, ResidentBatches, Share, StatelessBatches, evaluation_shards, loader, placed
from shared.training.errors import Mistake
from shared.training.randomness import Randomness

STREAMS = {"train": 0, "val": 1, "test": 2}  # seeds of the world, not of the run: every run sees the same sentences
ENDLESS = 2**48  # sentences of a stream
BLOCK = 4096  # sentences made at once
AT_ONCE = 256  # sentences of one step of an evaluation


@dataclass
class Sentences(Batch):
    """B rows of L tokens. num_units: the positions that are modelled; where padding is, it counts among them."""

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

    @property
    def mask(self) -> Tensor | None:
        """What attention may see, None for everything."""
        return None if self.full else self.valid


class TextData(LightningDataModule):
    """The line `text`.

    level: of the grammar, micro, small or long. length: tokens of a row (None: what the longest sentence needs, up to a
    multiple of 16). batch_size: sentences per update, all ranks. held_out: sentences of a validation and of a test.
    """

    randomness = Randomness()

    def __init__(
        self,
        source: Literal["grammar"] = "grammar",
        level: Literal["micro", "small", "long"] = "small",
        length: int | None = None,
        batch_size: int = 96,
        micro_batch: int | Literal["auto"] = "auto",
        held_out: int = 1000,
    ):
        super().__init__()
        self.source, self.level, self.asked_length = source, level, length
        self.batch_size, self.micro_batch, self.held_out = batch_size, micro_batch, held_out
        self._blocks = lru_cache(maxsize=4)(self._made)

    @cached_property
    def grammar(self) -> Grammar:
        return Grammar(self.level)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.grammar.words)

    @cached_property
    def length(self) -> int:
        """Tokens of a row."""
        needed = self.grammar.max_words + 1
        length = self.asked_length or -(-needed // 16) * 16
        if length < needed:
            raise ValueError(
                f"data.length is {length}, but sentences of {self.level} have up to {needed - 1} words and EOS; give"
                f" {needed} or more"
            )
        return length

    @property
    def entropy(self) -> float:
        """Nats per token, EOS among them."""
        return self.grammar.entropy().per_token

    def shares(self) -> np.ndarray:
        """[V] expected share of every id among the positions of a row, exact."""
        grammar, found = self.grammar, np.zeros(len(self.vocabulary))
        lengths = grammar.length_distribution()
        tokens = float(lengths @ np.arange(len(lengths))) + 1
        found[[*self.vocabulary.encode(grammar.words), EOS]] = grammar.unigram() * tokens / self.length
        found[PAD] = 1 - tokens / self.length
        return found

    def describe(self) -> dict[str, str]:
        grammar = self.grammar
        return {
            "source": f"grammar {self.level}, made in memory, {len(self.vocabulary)} ids",
            "sentences": f"up to {grammar.max_words} words in rows of {self.length}, padding modelled",
            "entropy": f"{self.entropy:.4f} nats per word or EOS, exact",
            "vocabulary": self.vocabulary.sha256[:16],
        }

    def train_dataloader(self) -> ResidentBatches:
        place = placed(self.trainer)
        order = StatelessBatches(ENDLESS, seed=self.randomness.seed, batch_size=self.batch_size, shuffle=False, **place)
        return ResidentBatches(order, partial(self.sentences, "train"))

    def val_dataloader(self) -> DataLoader:
        return self._shards("val")

    def test_dataloader(self) -> DataLoader:
        return self._shards("test")

    def _shards(self, stream: str) -> DataLoader:
        """This rank's part of the first `held_out` sentences."""
        mine = np.asarray(evaluation_shards(self.held_out, self.trainer.global_rank, self.trainer.world_size))
        shares = [Share.of(mine[first : first + AT_ONCE]) for first in range(0, len(mine), AT_ONCE)]
        return loader(shares, partial(self.sentences, stream))  # type: ignore[arg-type]

    def sentences(self, stream: str, share: Share) -> Sentences:
        """The sentences of a share, each by its number."""
        ids = torch.from_numpy(self.rows(STREAMS[stream], share.index))
        everywhere = torch.ones_like(ids, dtype=torch.bool)
        share = replace(share, global_units=share.global_samples * self.length)
        return Sentences(share, ids.numel(), ids, everywhere, ~everywhere, torch.from_numpy(share.index))

    def row(self, text: str) -> Tensor:
        """Ids [L] of a sentence. Mistake: a word that is unknown, or too many of them."""
        if unknown := self.vocabulary.unknown(text):
            raise Mistake(
                f"The word {unknown[0]!r} is not in the lexicon of {self.level}; leave it out or spell it so."
            )
        ids = [*self.vocabulary.encode(text), EOS]
        if len(ids) > self.length:
            raise Mistake(f"{text!r} has {len(ids) - 1} words, a row holds {self.length - 1} and EOS; shorten it.")
        return torch.tensor(ids + [PAD] * (self.length - len(ids)))

    def rows(self, seed: int, index: np.ndarray) -> np.ndarray:
        """Sentences of a stream as int64 [n, L]: words, EOS, PAD."""
        number, place = np.divmod(index, BLOCK)
        table = np.empty((len(index), self.length), np.int64)
        for n in np.unique(number).tolist():
            table[number == n] = self._blocks(seed, n)[place[number == n]]
        return table

    def _made(self, seed: int, number: int) -> np.ndarray:
        """A block of a stream: [BLOCK, L]. Many sentences at once cost a tenth of one batch after the other."""
        words = self.grammar.ids(seed, np.arange(number * BLOCK, (number + 1) * BLOCK))
        named = np.array([*self.vocabulary.encode(self.grammar.words), PAD])
        table = np.full((BLOCK, self.length), PAD, np.int64)
        table[:, : words.shape[1]] = named[words]
        table[np.arange(BLOCK), (words < len(self.grammar.words)).sum(1)] = EOS
        return table
