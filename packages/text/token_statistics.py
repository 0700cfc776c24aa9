"""What a corpus looks like through a vocabulary: lengths, chunks, frequent and rare tokens, entropies, speed, budget.

    found = statistics((document.text for document in corpus), vocabulary, length=64, parameters=10_201_272)

Entropies are of words + EOS, in nats, with the bias of counting taken out to first order (Miller 1955, Madow): K kinds
seen in N places add (K - 1) / 2N. Knows texts and ids, no formats.
"""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from packages.text.vocabulary import BOS, EOS, UNK, Tokens

CHUNKS = (32, 48, 64, 128)  # window lengths for which chunks are counted
SHOWN = 20  # tokens at the top and at the bottom
TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022
REPEATS = 1.5  # what this house adds to it
AT_ONCE = 256  # texts
BINS = 40  # of a histogram, at most


@dataclass(frozen=True)
class Spread:
    """How a length is distributed over documents."""

    edges: tuple[int, ...]  # of a histogram: equally wide, or growing by a factor when lengths differ much
    counts: tuple[int, ...]
    mean: float
    median: float
    sd: float
    min: int
    max: int
    p25: float
    p75: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Chunk:
    """What windows of one length make of the documents."""

    length: int
    shorter: float  # share of documents with fewer tokens
    per_document: float  # whole windows, mean


@dataclass(frozen=True)
class Budget:
    """What `1.5 x 20 x parameters` tokens are."""

    parameters: int
    tokens: int
    length: int  # of a window
    examples: int  # windows
    documents: int  # at as many whole windows as a document has on average, at least one


@dataclass(frozen=True)
class Statistics:
    """Of one corpus. Counts are of texts as given; specials are counted in `tokens` only where the text became one."""

    documents: int
    words: int  # between white space
    characters: int
    tokens: int  # without EOS
    kinds: int  # of tokens that occur
    vocabulary: int
    token_length: Spread
    character_length: Spread
    chunks: tuple[Chunk, ...]
    top: tuple[tuple[str, int], ...]  # (token, count), most frequent first
    bottom: tuple[tuple[str, int], ...]  # the rarest of those that occur, rarest first
    ranks: tuple[tuple[int, int], ...]  # (rank, count), the ranks growing by a factor
    unknown: float  # share of UNK
    unigram_entropy: float  # nats per token, words + EOS
    bigram_entropy: float  # of a token when the one before it is known
    budget: Budget | None
    tokens_per_second: float
    milliseconds_per_document: float


@dataclass(frozen=True)
class _Counted:
    """One walk through the texts."""

    ids: list[np.ndarray]  # of each document
    characters: np.ndarray  # [D]
    words: int
    seconds: float  # of tokenising


def statistics(texts: Iterable[str], vocabulary: Tokens, length: int = 64, parameters: int | None = None) -> Statistics:
    """Walks the texts once. length: of a window, for the budget. parameters: of a model; None: no budget.

    ValueError: no text.
    """
    seen = _counted(texts, vocabulary)
    tokens = np.array([len(ids) for ids in seen.ids])
    counts = np.bincount(np.concatenate(seen.ids), minlength=len(vocabulary))
    order = np.lexsort((np.arange(len(counts)), -counts))[: (counts > 0).sum()]
    chunks = tuple(_chunk(tokens, size) for size in sorted({*CHUNKS, length}))
    total = int(tokens.sum())
    unigram, bigram = entropies(seen.ids, len(vocabulary))
    return Statistics(
        documents=len(tokens),
        words=seen.words,
        characters=int(seen.characters.sum()),
        tokens=total,
        kinds=len(order),
        vocabulary=len(vocabulary),
        token_length=_spread(tokens),
        character_length=_spread(seen.characters),
        chunks=chunks,
        top=_named(order[:SHOWN], counts, vocabulary),
        bottom=_named(order[::-1][:SHOWN], counts, vocabulary),
        ranks=_ranks(counts[order]),
        unknown=float(counts[UNK] / total),
        unigram_entropy=unigram,
        bigram_entropy=bigram,
        budget=None if parameters is None else _budget(parameters, next(c for c in chunks if c.length == length)),
        tokens_per_second=total / seen.seconds,
        milliseconds_per_document=1000 * seen.seconds / len(tokens),
    )


def _counted(texts: Iterable[str], vocabulary: Tokens) -> _Counted:
    rest, words, seconds = iter(texts), 0, 0.0
    ids: list[np.ndarray] = []
    characters: list[int] = []
    while some := list(islice(rest, AT_ONCE)):
        start = time.perf_counter()
        found = list(vocabulary.encode_all(some))
        seconds += time.perf_counter() - start
        ids += [np.array(each, np.int32) for each in found]
        characters += map(len, some)
        words += sum(len(text.split()) for text in some)
    if not any(map(len, ids)):
        raise ValueError("there is no text to count; look at what the path and the split leave of it")
    return _Counted(ids, np.array(characters), words, seconds)


def entropy(counts: np.ndarray) -> float:
    """Nats, from counts of kinds, with the correction of Miller and Madow."""
    seen = counts[counts > 0]
    share = seen / seen.sum()
    return float(-(share * np.log(share)).sum() + (len(seen) - 1) / (2 * seen.sum()))


def entropies(documents: Iterable[Sequence[int] | np.ndarray], size: int) -> tuple[float, float]:
    """(unigram, bigram-conditional) nats per token, of words + EOS, the first after BOS. documents: ids; size: V."""
    row = np.concatenate([np.array([BOS, *ids, EOS], np.int32) for ids in documents])
    inside = row[1:] != BOS
    previous, following = row[:-1][inside].astype(np.int64), row[1:][inside]
    _, pairs = np.unique(previous * size + following, return_counts=True)
    return entropy(np.bincount(following)), entropy(pairs) - entropy(np.bincount(previous))


def _spread(lengths: np.ndarray) -> Spread:
    low, high = int(lengths.min()), int(lengths.max())
    edges = _edges(low, high)
    parts = {f"p{q}": float(np.percentile(lengths, q)) for q in (25, 75, 90, 95, 99)}
    return Spread(
        edges=tuple(edges.tolist()),
        counts=tuple(np.histogram(lengths, edges)[0].tolist()),
        mean=float(lengths.mean()),
        median=float(np.median(lengths)),
        sd=float(lengths.std()),
        min=low,
        max=high,
        **parts,
    )


def _edges(low: int, high: int) -> np.ndarray:
    """Of at most BINS bins that hold low .. high."""
    if high > 10 * max(low, BINS):
        edges = np.unique(np.geomspace(max(low, 1), high + 1, BINS + 1).astype(int))
        edges[0] = low
        return edges
    width = (high - low) // BINS + 1
    return np.arange(low, high + width + 1, width)


def _chunk(lengths: np.ndarray, size: int) -> Chunk:
    return Chunk(size, float((lengths < size).mean()), float((lengths // size).mean()))


def _named(ids: np.ndarray, counts: np.ndarray, vocabulary: Tokens) -> tuple[tuple[str, int], ...]:
    return tuple(zip(vocabulary.words(ids), counts[ids].tolist()))


def _ranks(counts: np.ndarray) -> tuple[tuple[int, int], ...]:
    ranks = np.unique(np.geomspace(1, len(counts), BINS).astype(int))
    return tuple(zip(ranks.tolist(), counts[ranks - 1].tolist()))


def _budget(parameters: int, chunk: Chunk) -> Budget:
    tokens = math.ceil(REPEATS * TOKENS_PER_PARAMETER * parameters)
    examples = math.ceil(tokens / chunk.length)
    return Budget(parameters, tokens, chunk.length, examples, math.ceil(examples / max(chunk.per_document, 1)))
