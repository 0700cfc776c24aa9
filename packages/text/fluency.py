"""How well sentences are made, measured against exact quantities of the grammar that made the data; what all metrics of
sentences share. How varied they are is in `variety.py`, all of them by name in `table.py`.

Torchmetrics classes: `update` takes rows of words, specials shown (`rows.sentence` says what of a row is the sentence),
states merge over ranks, `compute` gives `Measured(value, n)`. A value that nothing was measured for is nan. Plug-in
estimates have bias: the same metric on as many true sentences is its floor (`floors.py`). Knows no ids and no model.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from packages.text.dependencies import Dependency
from packages.text.rows import SPECIALS, Words, fingerprint, grams, sentence


class Measured(NamedTuple):
    """value: float64, n: int64, how many of the metric's `of` it was measured on; scalars, or one of each part."""

    value: Tensor
    n: Tensor


def measured(value: float, n: int) -> Measured:
    return Measured(torch.tensor(value, dtype=torch.float64), torch.tensor(n))


class Fluency(Metric):
    """What all share. unit: of the value; of: what n counts; parts: what each value adds to the metric's name."""

    full_state_update = False
    unit: ClassVar[str] = "share"
    of: ClassVar[str] = "sentences"
    parts: ClassVar[tuple[str, ...]] = ("",)

    def tally(self, *names: str, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.int64) -> None:
        """States that start at zero and add up over ranks."""
        for name in names:
            self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")

    def update(self, rows: Iterable[Words]) -> None:
        self.see([sentence(row) for row in rows])

    @abstractmethod
    def see(self, sentences: list[Words]) -> None: ...


class Share(Fluency):
    """Hits / cases."""

    hits: Tensor
    cases: Tensor

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.tally("hits", "cases")

    @abstractmethod
    def counted(self, sentences: list[Words]) -> tuple[int, int]:
        """(hits, cases)"""

    def see(self, sentences: list[Words]) -> None:
        hits, cases = self.counted(sentences)
        self.hits += hits
        self.cases += cases

    def compute(self) -> Measured:
        return Measured(self.hits.double() / self.cases, self.cases)


class Judge(Protocol):
    def parse(self, words: Sequence[str], /) -> Any: ...
    def log_prob(self, words: Sequence[str], /) -> float: ...


class ParseRate(Share):
    """Share of sentences the grammar derives."""

    def __init__(self, grammar: Judge, **kwargs: Any):
        super().__init__(**kwargs)
        self.grammar = grammar

    def counted(self, sentences: list[Words]) -> tuple[int, int]:
        return sum(self.grammar.parse(words) is not None for words in sentences), len(sentences)


class Novelty(Share):
    """Share of sentences that parse and do not stand among `seen`, their 64-bit names (`rows.fingerprints` of the first
    `novelty_window` training sentences). Without a grammar: share that does not stand there."""

    def __init__(self, seen: np.ndarray, grammar: Judge | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.seen, self.grammar = seen, grammar

    def counted(self, sentences: list[Words]) -> tuple[int, int]:
        new = [self._valid(words) and not self._known(fingerprint(words)) for words in sentences]
        return sum(new), len(new)

    def _valid(self, words: Words) -> bool:
        return self.grammar is None or self.grammar.parse(words) is not None

    def _known(self, name: int) -> bool:
        place = int(np.searchsorted(self.seen, np.uint64(name)))
        return place < len(self.seen) and int(self.seen[place]) == name


class SpecialShare(Share):
    """Share of the words of sentences that are specials: UNK, MASK, BOS, and PAD or EOS out of place."""

    of = "words"

    def counted(self, sentences: list[Words]) -> tuple[int, int]:
        special = [word in SPECIALS for words in sentences for word in words]
        return sum(special), len(special)


class RepeatRate(Share):
    """Share of places of n-grams whose n-gram stands at another place of the same sentence too: 1 for one word said
    over and over, which 1 - distinct/total would not reach."""

    of = "n-grams"

    def __init__(self, n: int = 3, **kwargs: Any):
        super().__init__(**kwargs)
        self.order = n

    def counted(self, sentences: list[Words]) -> tuple[int, int]:
        times = [count for words in sentences for count in Counter(grams(words, self.order)).values()]
        return sum(count for count in times if count > 1), sum(times)


class GrammarCrossEntropy(Fluency):
    """(sum of -log p) / (sum of words + 1) over the sentences of probability > 0, minus the grammar's entropy per
    token; nats per token (EOS is one). About 0 on true samples, below 0 for a sampler of only likely sentences."""

    unit, of = "nats/token", "parsed sentences"
    parsed: Tensor
    tokens: Tensor
    nats: Tensor

    def __init__(self, grammar: Judge, entropy: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.grammar, self.entropy = grammar, entropy
        self.tally("parsed", "tokens")
        self.tally("nats", dtype=torch.float64)

    def see(self, sentences: list[Words]) -> None:
        scored = [(self.grammar.log_prob(words), len(words) + 1) for words in sentences]
        likely = [(log_prob, tokens) for log_prob, tokens in scored if log_prob > -np.inf]
        self.parsed += len(likely)
        self.tokens += sum(tokens for _, tokens in likely)
        self.nats -= sum(log_prob for log_prob, _ in likely)

    def compute(self) -> Measured:
        return Measured(self.nats / self.tokens - self.entropy, self.parsed)


class NgramKL(Fluency):
    """KL(truth || q) in nats, q = (counts + .01 N truth) / (1.01 N); N all n-grams, those out of the lexicon included.

    truth: [W + 1] shares of `words`, then EOS (n = 1), or [W + 1] * n joint shares of runs, each axis `words` and then
    the border: BOS in all axes but the last, EOS in that. Never infinite (at most ln 101); not zero on true samples:
    (cells of truth - 1) / 2N on many independent n-grams, more where sentences repeat their words.
    """

    unit, of = "nats", "n-grams"
    smoothing = 0.01
    truth: Tensor
    counts: Tensor
    total: Tensor

    def __init__(self, words: Sequence[str], truth: np.ndarray, **kwargs: Any):
        super().__init__(**kwargs)
        self.order, self.border = truth.ndim, len(words)
        self.index = {word: place for place, word in enumerate(words)}
        self.register_buffer("truth", torch.as_tensor(truth, dtype=torch.float64), persistent=False)
        self.tally("total")
        self.tally("counts", shape=tuple(truth.shape))

    def see(self, sentences: list[Words]) -> None:
        runs = [run for words in sentences for run in grams(self._bordered(words), self.order)]
        known = np.array([run for run in runs if None not in run], np.int64).reshape(-1, self.order)
        cells = np.ravel_multi_index(tuple(known.T), self.counts.shape)
        found = torch.from_numpy(np.bincount(cells, minlength=self.counts.numel()))
        self.total += len(runs)
        self.counts += found.view(self.counts.shape).to(self.device)

    def _bordered(self, words: Words) -> list[int | None]:
        return [self.border] * (self.order - 1) + [self.index.get(word) for word in words] + [self.border]

    def compute(self) -> Measured:
        given = self.smoothing * self.total.double()
        q = (self.counts + given * self.truth) / (self.total + given)
        cells = self.truth > 0
        return Measured((self.truth * (self.truth / q).log())[cells].sum(), self.total)


class LengthTV(Fluency):
    """Total variation, sum |share - truth| / 2 over lengths in words, in [0, 1].

    truth: [max_words + 1] probability of each length; longer sentences have probability 0.
    """

    truth: Tensor
    counts: Tensor

    def __init__(self, truth: np.ndarray, **kwargs: Any):
        super().__init__(**kwargs)
        self.register_buffer("truth", torch.as_tensor([*truth, 0.0], dtype=torch.float64), persistent=False)
        self.tally("counts", shape=(len(truth) + 1,))

    def see(self, sentences: list[Words]) -> None:
        lengths = torch.tensor([len(words) for words in sentences], dtype=torch.int64).clamp(max=len(self.counts) - 1)
        self.counts += torch.bincount(lengths, minlength=len(self.counts)).to(self.device)

    def compute(self) -> Measured:
        n = self.counts.sum()
        return Measured((self.counts / n.double() - self.truth).abs().sum() / 2, n)


KINDS = ("subject-verb", "determiner-noun", "pronoun", "quotes", "brackets")
FAR = 16  # words: what is further apart is one group
DISTANCES = (*map(str, range(1, FAR + 1)), f">{FAR}")


class Agreement(Fluency):
    """Share of dependencies that are satisfied: of all, of each kind, of each kind at each distance in words.

    dependencies: `Grammar.dependencies`, what stands in a row of words, right or wrong. Those whose forms say nothing
    are no cases, and words in no piece of a sentence have none: n beside the true sampler's is part of the result.
    """

    of = "dependencies"
    parts = ("", *(f"/{kind}{part}" for kind in KINDS for part in ("", *(f"/{far}" for far in DISTANCES))))
    counts: Tensor  # [kinds, distances, wrong and right]

    def __init__(self, dependencies: Callable[[Words], Iterable[Dependency]], **kwargs: Any):
        super().__init__(**kwargs)
        self.dependencies = dependencies
        self.tally("counts", shape=(len(KINDS), len(DISTANCES), 2))

    def see(self, sentences: list[Words]) -> None:
        found = Counter(each for words in sentences for each in self.dependencies(words))
        for each, times in found.items():
            if each.satisfied is not None:
                self.counts[KINDS.index(each.kind), min(each.distance, FAR + 1) - 1, int(each.satisfied)] += times

    def compute(self) -> Measured:
        of_kinds = torch.cat([self.counts.sum(1, keepdim=True), self.counts], 1).flatten(0, 1)
        counts = torch.cat([self.counts.sum((0, 1))[None], of_kinds])  # [parts, 2]
        return Measured(counts[:, 1] / counts.sum(1).double(), counts.sum(1))
