"""How varied sentences are, from nothing but the sentences: distinct ones, n-grams, entropy, self-BLEU.

These do not add up over ranks as counts do: each rank keeps 64-bit names of what it saw, and they are put together.
All depend on the number of sentences; a comparison is fair at equal numbers only.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from packages.text.bleu import against_others
from packages.text.fluency import Fluency, Measured, measured
from packages.text.rows import Words, fingerprint, grams


class Gathering(Fluency):
    """States are lists of int64 vectors, concatenated over ranks."""

    def gather(self, *states: str) -> None:
        for name in states:
            self.add_state(name, [], dist_reduce_fx="cat")

    def put(self, **values: Sequence[int] | np.ndarray) -> None:
        for name, vector in values.items():
            getattr(self, name).append(torch.as_tensor(vector, dtype=torch.int64, device=self.device))

    def gathered(self, name: str) -> np.ndarray:
        """[sum] int64 of this rank's vectors, or of all ranks' while torchmetrics computes."""
        state = getattr(self, name)
        parts = [state] if isinstance(state, Tensor) else state
        return np.concatenate([np.zeros(0, np.int64), *(part.cpu().numpy() for part in parts)])

    @property
    def dtype(self) -> torch.dtype:
        """Of the empty vector that torchmetrics sends for a rank without rows; the ranks must agree."""
        return torch.int64


class Counts(Gathering):
    """A value of how often each distinct thing occurs; things by their 64-bit names."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.gather("names", "times")

    @abstractmethod
    def things(self, words: Words) -> Iterable[Words]: ...

    @abstractmethod
    def value(self, counts: np.ndarray) -> float:
        """counts: [distinct], not empty."""

    def see(self, sentences: list[Words]) -> None:
        found = Counter(thing for words in sentences for thing in self.things(words))
        names = np.fromiter(map(fingerprint, found), np.uint64)
        self.put(names=names.view(np.int64), times=[*found.values()])

    def compute(self) -> Measured:
        _, place = np.unique(self.gathered("names"), return_inverse=True)
        counts = np.bincount(place, self.gathered("times"))
        return measured(self.value(counts) if len(counts) else np.nan, int(counts.sum()))


class UniqueShare(Counts):
    """Distinct sentences / sentences."""

    def things(self, words: Words) -> Iterable[Words]:
        return [tuple(words)]

    def value(self, counts: np.ndarray) -> float:
        return len(counts) / counts.sum()


class DistinctN(UniqueShare):
    """Distinct n-grams / n-grams over all sentences (Li et al. 2016). It falls with the number of sentences."""

    of = "n-grams"

    def __init__(self, n: int = 2, **kwargs: Any):
        super().__init__(**kwargs)
        self.order = n

    def things(self, words: Words) -> Iterable[Words]:
        return grams(words, self.order)


class UnigramEntropy(Counts):
    """-sum share ln share over the words of all sentences together, without EOS; nats. Biased down by about
    (distinct words - 1) / 2n."""

    unit, of = "nats", "words"

    def things(self, words: Words) -> Iterable[Words]:
        return grams(words, 1)

    def value(self, counts: np.ndarray) -> float:
        shares = counts / counts.sum()
        return float(-(shares * np.log(shares)).sum()) + 0.0


class SelfBLEU(Gathering):
    """Mean BLEU of each sentence against all others as references (Zhu et al. 2018), exact, in [0, 1]; 1: no variety.

    `bleu.against_others` says how. It rises with the number of sentences. Empty sentences are left out; nan below two.
    """

    def __init__(self, n: int = 4, **kwargs: Any):
        super().__init__(**kwargs)
        self.order = n
        self.gather("names", "lengths")

    def see(self, sentences: list[Words]) -> None:
        names = np.fromiter((fingerprint([word]) for words in sentences for word in words), np.uint64)
        self.put(names=names.view(np.int64), lengths=[len(words) for words in sentences if words])

    def compute(self) -> Measured:
        lengths, names = self.gathered("lengths"), self.gathered("names")
        if len(lengths) < 2:
            return measured(np.nan, len(lengths))
        _, words = np.unique(names, return_inverse=True)
        return measured(against_others(words, lengths, self.order).mean(), len(lengths))
