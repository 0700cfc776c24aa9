"""What sentences come from: the grammar, which makes them by number, or a corpus, read, split and laid into windows.

`TextData` asks a source for vocabulary, entropy, rows, metrics, and not which of the two it is. `Known` is what a
checkpoint says of the text it was trained on, so that any other file can be evaluated with its vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import islice, pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from packages.text import corpora, empirical, table
from packages.text.bpe import Bpe, tokenizer
from packages.text.documents import HELD_OUT, Corpus, keys, split, unseen
from packages.text.fluency import Fluency
from packages.text.grammar import Grammar
from packages.text.rows import Words, fingerprints, sentence
from packages.text.token_cache import CachedWindows, cached
from packages.text.token_statistics import entropies
from packages.text.vocabulary import EOS, PAD, UNK, Tokens, Vocabulary
from packages.text.windows import Packing
from projects.text.calibration import LEAST_ENTROPY
from shared.training.errors import Mistake

STREAMS = {"train": 0, "val": 1, "test": 2}  # of the grammar, seeds of the world and not of the run
ENDLESS = 2**48  # sentences of a stream of the grammar
BLOCK = 4096  # sentences made at once
LENGTH, PIECES = 64, 4096  # tokens of a window and ids of a trained vocabulary, where nobody says
COUNTED = 5_000_000  # tokens at most that the statistics of a training part are counted from
REMEMBERED = 200_000  # documents whose keys a checkpoint can hold
COMPARED = 20_000  # sentences at most that stand for the held-out and for the training text in metrics
NOVELTY_WINDOW = 200_000  # training sentences that a novel one is not among
KINDS: dict[str, Any] = {"Vocabulary": Vocabulary, "Bpe": Bpe}


@dataclass
class Options:
    """The text of a run.

    source: grammar, made in memory; text, a file, folder or glob; e2e, lines `fields||text`; parquet; hub. level: of
    the grammar. length: tokens of a row (None: what the grammar's longest sentence needs, up to a multiple of 16; 64
    of a corpus). path, column, dataset_name, dataset_config, streaming, sample_by: see `corpora.Source`.
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


class Rows(NamedTuple):
    """ids [n, L] int64; valid [n, L] bool, the positions that count."""

    ids: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class Known:
    """The text that trained: what a checkpoint says of it beside the vocabulary.

    seen: keys of its groups and texts, which are never evaluated; None: too many, and all that the split gives to
    training counts as seen. counts [V], lengths [L + 1]: of its tokens and windows. entropy: nats per token.
    """

    name: str
    corpus: str  # hash of all its texts, held-out ones among them
    sha256: str  # of the training texts, the vocabulary and the packing
    seen: list[str] | None
    counts: list[int]
    lengths: list[int]
    entropy: float


class Made:
    """Sentences of a grammar: endless streams, each sentence by its number; padding is modelled."""

    estimated, whole, known = False, True, None
    joined = staticmethod(" ".join)

    def __init__(self, options: Options):
        if options.packing not in (None, "eos_pad"):
            raise ValueError(f"data.packing is {options.packing}; rows of the grammar are eos_pad, leave it out.")
        self.options, self.grammar = options, Grammar(options.level)
        self.vocabulary = Vocabulary(self.grammar.words)
        self._blocks = lru_cache(maxsize=4)(self._made)

    @cached_property
    def length(self) -> int:
        needed = self.grammar.max_words + 1
        length = self.options.length or -(-needed // 16) * 16
        if length < needed:
            raise ValueError(
                f"data.length is {length}, but sentences of {self.options.level} have up to {needed - 1} words and EOS;"
                f" give {needed} or more"
            )
        return length

    @property
    def judged(self) -> str:
        return "other sentences of the grammar"

    @property
    def sha256(self) -> str:
        return _digest("grammar", self.options.level, self.vocabulary.sha256, self.length)

    @property
    def entropy(self) -> float:
        return self.grammar.entropy().per_token

    def size(self) -> int:
        return ENDLESS

    def units(self) -> None:
        """Every position of every row counts."""

    def evaluated(self, stream: str, wanted: int) -> np.ndarray:
        return np.arange(wanted)

    def shares(self) -> np.ndarray:
        """Exact."""
        grammar, found = self.grammar, np.zeros(len(self.vocabulary))
        lengths = grammar.length_distribution()
        tokens = float(lengths @ np.arange(len(lengths))) + 1
        found[[*self.vocabulary.encode(grammar.words), EOS]] = grammar.unigram() * tokens / self.length
        found[PAD] = 1 - tokens / self.length
        return found

    def describe(self) -> dict[str, str]:
        return {
            "source": f"grammar {self.options.level}, made in memory, {len(self.vocabulary)} ids",
            "sentences": f"up to {self.grammar.max_words} words in rows of {self.length}, padding modelled",
            "entropy": f"{self.entropy:.4f} nats per word or EOS, exact",
            "vocabulary": self.vocabulary.sha256[:16],
            "sha256": self.sha256,
        }

    def row(self, text: str) -> list[int]:
        known = _known(text, self.vocabulary, f"lexicon of {self.options.level}")
        return _padded(self.vocabulary.encode(known), self.length, text)

    def take(self, stream: str, index: np.ndarray) -> Rows:
        """Words, EOS, PAD of the sentences of these numbers."""
        number, place = np.divmod(index, BLOCK)
        ids = np.empty((len(index), self.length), np.int64)
        for n in np.unique(number).tolist():
            ids[number == n] = self._blocks(STREAMS[stream], n)[place[number == n]]
        return Rows(ids, np.ones(ids.shape, bool))

    def _made(self, seed: int, number: int) -> np.ndarray:
        """A block of a stream: [BLOCK, L]. Many sentences at once cost a tenth of one batch after the other."""
        words = self.grammar.ids(seed, np.arange(number * BLOCK, (number + 1) * BLOCK))
        named = np.array([*self.vocabulary.encode(self.grammar.words), PAD])
        rows = np.full((BLOCK, self.length), PAD, np.int64)
        rows[:, : words.shape[1]] = named[words]
        rows[np.arange(BLOCK), (words < len(self.grammar.words)).sum(1)] = EOS
        return rows

    @cached_property
    def _seen(self) -> np.ndarray:
        return fingerprints(each.words for each in self.grammar.samples(STREAMS["train"], range(NOVELTY_WINDOW)))

    def metrics(self) -> dict[str, Fluency]:
        return table.metrics(self.grammar, self._seen, sync_on_compute=False)

    def floors(self, n: int) -> table.Floors:
        return table.floors_of(self.grammar, n, self._seen)


class Read:
    """Documents of a corpus. With a checkpoint (`known`, `vocabulary`) whatever did not train it is held out.

    base: training goes on from the checkpoint with this corpus, which is split as without one.
    """

    estimated, grammar = True, None

    def __init__(
        self, options: Options, known: Known | None = None, vocabulary: Tokens | None = None, base: bool = False
    ):
        self.options, self.known, self._given, self.base = options, known, vocabulary, base
        joins = options.source != "e2e" and options.sample_by == "document"
        kind = options.packing or ("concat" if joins else "eos_pad")
        self.length = options.length or LENGTH
        self.packing = Packing(kind, self.length, options.long, options.tail)
        self.whole = kind != "none"
        named = (options.source, options.path, options.sample_by, options.column, options.dataset_name)
        self.corpus = corpora.read(corpora.Source(*named, options.dataset_config, streaming=options.streaming))
        self.windows = lru_cache(self._windows)

    # --- what trains, what is held out, by which vocabulary

    @cached_property
    def training(self) -> Corpus:
        return split(self.corpus, self.options.held_out_share)[0]

    @cached_property
    def held_out(self) -> Corpus:
        """What did not train."""
        seen = self.facts.seen
        if seen is None:
            return split(self.corpus, self.options.held_out_share)[1]
        found = unseen(self.corpus, frozenset(seen))
        if not found.facts.documents:
            raise ValueError(
                f"all {self.corpus.facts.documents} documents of {self.corpus.name} were seen in training; evaluate"
                " others (data.path)"
            )
        return found

    @cached_property
    def vocabulary(self) -> Tokens:
        """That of the checkpoint, whatever the corpus is; else of the training part alone."""
        options = self.options
        kind = ("words" if options.source == "e2e" else "train") if options.tokenizer == "auto" else options.tokenizer
        if self._given is not None and kind in ("words", "train"):
            return self._given
        if kind == "words":
            return Vocabulary.of((document.text for document in self.training), options.min_count)
        size = options.vocab_size or (PIECES if kind == "train" else None)
        return tokenizer(kind, size, self.training, options.cache_dir)

    def joined(self, pieces: Sequence[str]) -> str:
        return self.vocabulary.joined(pieces)

    def _windows(self, stream: str) -> CachedWindows:
        corpus = self.training if stream == "train" else self.held_out  # of validation and test
        return cached(corpus, self.vocabulary, self.packing, self.options.cache_dir)

    @cached_property
    def facts(self) -> Known:
        """Of the text that trained, or is going to."""
        if self.known and not self.base:
            return self.known
        windows, before = self.windows("train"), (self.known.seen or []) if self.known else []
        many = self.training.identity is not None or self.training.facts.documents > REMEMBERED
        tokens, lengths = windows.tokens[:COUNTED], windows.lengths
        return Known(
            self.corpus.name,
            self.corpus.sha256,
            self.sha256,
            None if many else sorted({*before, *keys(self.training)}),
            np.bincount(tokens, minlength=len(self.vocabulary)).tolist(),
            np.bincount(lengths, minlength=self.length + 1).tolist(),
            max(LEAST_ENTROPY, _pairs(windows, len(self.vocabulary))),
        )

    @cached_property
    def sha256(self) -> str:
        return _digest(self.training.sha256, self.vocabulary.sha256, self.packing)

    # --- what is asked of a source

    @property
    def entropy(self) -> float:
        return self.facts.entropy

    def size(self) -> int:
        """Rows that train."""
        return len(self.windows("train"))

    def units(self) -> np.ndarray | None:
        """Tokens of each of them; None: all positions count."""
        return None if self.whole else self.windows("train").lengths

    def evaluated(self, stream: str, wanted: int) -> np.ndarray:
        """Numbers of the held-out rows of a test, all; of a validation, `wanted` at most, from all over."""
        count = len(self.windows("test"))
        return np.arange(count) if stream == "test" else _spread(count, wanted)

    def take(self, stream: str, index: np.ndarray) -> Rows:
        if stream == "train" and self.known and not self.base and self.known.sha256 != self.sha256:
            raise ValueError(
                f"CKPT was trained on {self.known.name} ({self.known.sha256[:12]}), the data is {self.corpus.name}"
                f" ({self.sha256[:12]}); go on with the same text and packing, or adapt it to this one: make finetune"
            )
        return Rows(*self.windows(stream).take(index))

    def shares(self) -> np.ndarray:
        found = np.array(self.facts.counts, float)
        found /= found.sum()
        if self.packing.kind == "eos_pad":
            filled = self._mean_length() / self.length
            found *= filled
            found[PAD] += 1 - filled
        return found

    def _mean_length(self) -> float:
        lengths = np.array(self.facts.lengths, float)
        return float(lengths @ np.arange(len(lengths)) / lengths.sum())

    def lengths(self, seeds: Sequence[int]) -> np.ndarray:
        """Tokens of sentences to be drawn: by chance of each number, as often as in training."""
        shares = np.array(self.facts.lengths, float)
        steps = np.cumsum(shares / shares.sum())
        return np.array([np.searchsorted(steps, np.random.default_rng(seed).random(), side="right") for seed in seeds])

    def row(self, text: str) -> list[int]:
        """With concat the text over and over, as a window holds no padding."""
        vocabulary = self.vocabulary
        by_words = isinstance(vocabulary, Vocabulary)
        ids = vocabulary.encode(_known(text, vocabulary, "vocabulary") if by_words else text)
        row = _padded(ids, self.length, text)
        return np.resize([*ids, EOS], self.length).tolist() if self.packing.kind == "concat" else row

    def describe(self) -> dict[str, str]:
        """The training part only where its text is at hand."""
        trains = {} if self._foreign else {"training": f"{self.windows('train')}"}
        facts, vocabulary = self.facts, self.vocabulary
        kind = "words" if isinstance(vocabulary, Vocabulary) else "byte pairs"
        of = f"of {facts.name}, which trained CKPT; " if self.known else ""
        counts = np.array(facts.counts)
        return {
            "source": self.corpus.name + ("" if self.corpus.identity else f", {self._documents}"),
            **trains,
            "held out": self.judged,
            "vocabulary": f"{of}{len(vocabulary):,} {kind}, UNK {counts[UNK] / counts.sum():.2%} of training tokens,"
            f" {_unknown(self.windows('test')):.2%} of held-out ones; {vocabulary.sha256[:16]}",
            "entropy": f"{facts.entropy:.4f} nats per token, from pairs that trained (at least {LEAST_ENTROPY:g})",
            "sha256": self.sha256 if trains else _digest(self.held_out.sha256, vocabulary.sha256, self.packing),
        }

    @property
    def _documents(self) -> str:
        facts = self.corpus.facts
        return f"{facts.documents:,} documents in {facts.groups:,} groups, of which {self._parting}"

    @property
    def _parting(self) -> str:
        if self._foreign:
            left = self.corpus.facts.documents - self.held_out.facts.documents
            return f"{left:,} documents trained CKPT and are left out" if left else "nothing trained CKPT"
        return f"{self.options.held_out_share:.0%} are held out"

    @property
    def judged(self) -> str:
        """What evaluations look at."""
        return f"{self.windows('test')}"

    def _sentences(self, stream: str) -> list[Words]:
        """As words, from all over a stream; the same that `sentence` sees in drawn rows."""
        count = len(self.windows(stream))
        rows, valid = self.take(stream, _spread(count, COMPARED))
        return [sentence(self.vocabulary.words(row[some])) for row, some in zip(rows, valid)]

    @property
    def _foreign(self) -> bool:
        """Whether the text that trained is not at hand."""
        return self.known is not None and not self.base and self.known.corpus != self.corpus.sha256

    @cached_property
    def _true(self) -> tuple[list[Words], list[Words]]:
        """Sentences that drawn ones are compared with, and as true ones for the floor: held out and training; halves of
        what is held out where the training text is not at hand."""
        held = self._sentences("test")
        return (held[::2], held[1::2]) if self._foreign else (held, self._sentences("train"))

    def metrics(self) -> dict[str, Fluency]:
        held, true = self._true
        new = self._foreign or self.packing.kind == "concat"  # any window of joined documents is new
        return empirical.against(held, None if new else fingerprints(true), sync_on_compute=False)

    def floors(self, n: int) -> table.Floors:
        held, true = self._true
        return empirical.floors(true, held, self.metrics(), n, self.length)


Source = Made | Read


def opened(options: Options, checkpoint: Mapping[str, Any] | None = None, base: bool = False) -> Source:
    """The source of a run, or of a checkpoint that is evaluated (or, base, goes on training) with these options.

    Mistake: the checkpoint has another vocabulary.
    """
    told = checkpoint or {}
    said, corpus = told.get("vocabulary"), told.get("corpus")
    if options.source == "grammar":
        source: Source = Made(options)
    else:
        vocabulary = KINDS[said["kind"]].parsed(said["content"]) if said and corpus else None
        source = Read(options, Known(**corpus) if corpus else None, vocabulary, base)
    if said and said["sha256"] != (here := source.vocabulary.sha256):
        raise Mistake(
            f"CKPT was trained on vocabulary {said['sha256'][:12]} of {said['count']} ids, the data has {here[:12]}"
            f" of {len(source.vocabulary)}; give it the data it was trained on (its run's config names them)."
        )
    return source


def told(source: Source) -> dict[str, Any]:
    """What a checkpoint says, for `opened`."""
    vocabulary = source.vocabulary
    said = {"sha256": vocabulary.sha256, "count": len(vocabulary)}
    kept = {"kind": type(vocabulary).__name__, "content": vocabulary.content}
    return {"vocabulary": said | kept, **({"corpus": asdict(source.facts)} if isinstance(source, Read) else {})}


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _spread(count: int, wanted: int) -> np.ndarray:
    """`wanted` of the numbers below count, from all over; all of them when there are no more."""
    return np.linspace(0, count, min(count, wanted), endpoint=False).astype(np.int64)


def _pairs(windows: CachedWindows, size: int) -> float:
    """Nats per token that the one before it leaves, from the first documents."""
    ends = windows.offsets
    last = max(1, int(np.searchsorted(ends, COUNTED)))
    documents = (windows.tokens[start:end] for start, end in islice(pairwise(ends), last))
    bare = (ids[:-1] if len(ids) and ids[-1] == EOS else ids for ids in documents)
    return entropies(bare, size)[1]


def _unknown(windows: CachedWindows) -> float:
    return float((windows.tokens[:COUNTED] == UNK).mean())


def _known(text: str, vocabulary: Vocabulary, name: str) -> str:
    if unknown := vocabulary.unknown(text):
        raise ValueError(f"the word {unknown[0]!r} is not in the {name}; leave it out or spell it so")
    return text


def _padded(ids: Sequence[int], length: int, text: str) -> list[int]:
    if len(ids) >= length:
        raise ValueError(f"{text!r} has {len(ids)} words, a row holds {length - 1} and EOS; shorten it")
    return [*ids, EOS] + [PAD] * (length - len(ids) - 1)
