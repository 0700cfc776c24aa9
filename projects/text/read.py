"""Documents of a corpus as a source of rows: read, split, tokenised, laid into windows.

Whatever trained is never evaluated: a checkpoint says by `Known` what that was, so any other file can be read with its
vocabulary, and every document of it that is new is held out. Formats, splits and windows are those of `packages/text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from packages.text import corpora, counted, empirical, table
from packages.text.bpe import tokenizer
from packages.text.documents import Corpus, keys, split, unseen
from packages.text.fluency import Fluency
from packages.text.rows import Words, fingerprints, sentence
from packages.text.token_cache import CachedWindows, cached
from packages.text.token_statistics import entropies
from packages.text.vocabulary import EOS, PAD, SPECIALS, UNK, Tokens, Vocabulary
from packages.text.windows import Packing
from projects.text.calibration import LEAST_ENTROPY
from projects.text.options import Laid, Options, Unasked, digest, known_words, padded, spread

LENGTH, PIECES = 64, 4096  # tokens of a window and ids of a trained vocabulary, where nobody says
COUNTED = 5_000_000  # tokens at most that the statistics of a training part are counted from
REMEMBERED = 200_000  # documents whose keys a checkpoint can hold
COMPARED = 20_000  # sentences at most that stand for the held-out and for the training text in metrics


@dataclass(frozen=True)
class Known:
    """The text that trained: what a checkpoint says of it beside the vocabulary.

    seen: keys of its groups and texts, which are never evaluated; None: too many, and all that the split gives to
    training counts as seen. counts [V], lengths [L + 1]: of its tokens and windows. entropy: nats per token. given:
    tokens of a window, on average, that are given; they are not in counts.
    """

    name: str
    corpus: str  # hash of all its texts, held-out ones among them
    sha256: str  # of the training texts, the vocabulary and the packing
    seen: list[str] | None
    counts: list[int]
    lengths: list[int]
    entropy: float
    given: float = 0.0


class Read(Unasked):
    """Documents of a corpus. With a checkpoint (`known`, `vocabulary`) whatever did not train it is held out.

    base: training goes on from the checkpoint with this corpus, which is split as without one.
    """

    estimated, grammar = True, None

    def __init__(
        self, options: Options, known: Known | None = None, vocabulary: Tokens | None = None, base: bool = False
    ):
        self.options, self.known, self._given, self.base = options, known, vocabulary, base
        self.length = options.length or LENGTH
        self.packing = Packing(self._kind(), self.length, options.long, options.tail)
        self.whole, self.even = self.packing.kind != "none", self.packing.kind in ("eos_pad", "concat")
        self.corpus = corpora.read(self._named())
        self.windows = lru_cache(self._windows)

    def _kind(self) -> str:
        joins = self.options.source != "e2e" and self.options.sample_by == "document"
        return self.options.packing or ("concat" if joins else "eos_pad")

    def _named(self) -> corpora.Source:
        names = ("source", "path", "sample_by", "column", "dataset_name", "dataset_config", "streaming")
        return corpora.Source(**{name: getattr(self.options, name) for name in names})

    # --- what trains, what is held out, by which vocabulary

    @cached_property
    def _sides(self) -> tuple[Corpus, Corpus]:
        return split(self.corpus, self.options.held_out_share)

    @property
    def training(self) -> Corpus:
        return self._sides[0]

    @cached_property
    def held_out(self) -> Corpus:
        """What did not train."""
        seen = self.facts.seen
        if seen is None:
            return self._sides[1]
        found = unseen(self.corpus, frozenset(seen))
        if not found.facts.documents:
            raise ValueError(
                f"all {self.corpus.facts.documents} documents of {self.corpus.name} were seen in training; evaluate"
                " others (data.path)"
            )
        return found

    @cached_property
    def vocabulary(self) -> Tokens:
        """That of the checkpoint, whatever the corpus is; else of the training part alone. ValueError: of more ids than
        are asked for."""
        found, wanted = self._vocabulary(), self.options.vocab_size
        if wanted is not None and len(found) > wanted:
            raise ValueError(
                f"the vocabulary has {len(found)} ids and data.vocab_size is {wanted}; a larger vocabulary is never"
                f" truncated to UNK: ask for {len(found)}, or count rarer words out (data.min_count)"
            )
        return found

    def _vocabulary(self) -> Tokens:
        options = self.options
        kind = ("words" if options.source == "e2e" else "train") if options.tokenizer == "auto" else options.tokenizer
        if self._given is not None and kind in ("words", "train"):
            return self._given
        if kind == "words":
            found = Vocabulary.of((document.text for document in self._spelt), options.min_count)
            if len(found) == len(SPECIALS):
                raise ValueError(
                    f"no word of {self.training.name} occurs {options.min_count} times, so the vocabulary is empty; set"
                    " a lower data.min_count"
                )
            return found
        size = options.vocab_size or (PIECES if kind == "train" else None)
        return tokenizer(kind, size, self._spelt, options.cache_dir)

    @property
    def _spelt(self) -> Corpus:
        """What a vocabulary is counted from."""
        return self.training

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
        tokens, lengths = np.concatenate([*windows.texts(COUNTED)]), windows.lengths
        return Known(
            self.corpus.name,
            self.corpus.sha256,
            self.sha256,
            None if many else sorted({*before, *keys(self.training)}),
            np.bincount(tokens, minlength=len(self.vocabulary)).tolist(),
            np.bincount(lengths, minlength=self.length + 1).tolist(),
            max(LEAST_ENTROPY, _pairs(windows, len(self.vocabulary))),
            float(windows.known_tokens(range(len(windows))).mean()),
        )

    @cached_property
    def sha256(self) -> str:
        return digest(self.training.sha256, self.vocabulary.sha256, self.packing)

    # --- what is asked of a source

    @property
    def padding(self) -> str:
        return {
            "eos_pad": "behind EOS, modelled and counted",
            "concat": "none, windows of joined documents",
            "none": "not counted; lengths are drawn from those of training",
            "pairs": "behind the second EOS, modelled and counted; what is given is not counted",
        }[self.packing.kind]

    @property
    def entropy(self) -> float:
        return self.facts.entropy

    def size(self) -> int:
        """Rows that train."""
        return len(self.windows("train"))

    def units(self) -> np.ndarray | None:
        """Tokens of each of them; None: all positions count."""
        return None if self.even else self.windows("train").lengths

    def evaluated(self, stream: str, wanted: int) -> np.ndarray:
        """Numbers of the held-out rows of a test, all; of a validation, `wanted` at most, from all over."""
        count = len(self.windows("test"))
        return np.arange(count) if stream == "test" else spread(count, wanted)

    def take(self, stream: str, index: np.ndarray) -> Laid:
        """Rows by their numbers. ValueError: training rows for a checkpoint that was trained on others."""
        if stream == "train" and self.known and not self.base and self.known.sha256 != self.sha256:
            raise ValueError(
                f"CKPT was trained on {self.known.name} ({self.known.sha256[:12]}), the data is {self.corpus.name}"
                f" ({self.sha256[:12]}); go on with the same text and packing, or adapt it to this one: make finetune"
            )
        windows = self.windows(stream)
        return Laid(*windows.take(index), windows.known(index))

    def shares(self) -> np.ndarray:
        found = np.array(self.facts.counts, float)
        found /= found.sum()
        if self.whole and self.packing.kind != "concat":
            given = self.facts.given
            filled = (self._mean_length() - given) / (self.length - given)
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
        ids = vocabulary.encode(known_words(text, vocabulary, "vocabulary") if by_words else text)
        row = padded(ids, self.length, text)
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
            "sha256": self.sha256 if trains else digest(self.held_out.sha256, vocabulary.sha256, self.packing),
        }

    @property
    def _documents(self) -> str:
        facts = self.corpus.facts
        return f"{facts.documents:,} documents in {facts.groups:,} {self.grouped}, of which {self._parting}"

    @property
    def grouped(self) -> str:
        """What no split cuts."""
        if self.options.source == "e2e":
            return "field sets"
        return "articles" if self.options.sample_by == "document" else "groups of neighbours"

    @property
    def _parting(self) -> str:
        side = self.corpus if self._foreign else self._sides[1]
        left = side.facts.documents - self.held_out.facts.documents
        if self._foreign:
            return f"{left:,} documents trained CKPT and are left out" if left else "nothing trained CKPT"
        held = f"{side.facts.groups:,} are held out"
        return f"{held}, without {left:,} documents whose text trains" if left else held

    @property
    def judged(self) -> str:
        """What evaluations look at."""
        return f"{self.windows('test')}; {self.tokens_per_word:.3f} tokens per word"

    @cached_property
    def tokens_per_word(self) -> float:
        """Of the held-out text, ends of documents among both: nats per token times this are nats per word, whatever the
        vocabulary."""
        ends = self.packing.kind != "none"
        words = sum(len(document.text.split()) + ends for document in self.held_out)
        return sum(map(len, self.windows("test").texts())) / words

    @cached_property
    def counted(self) -> dict[str, float]:
        """Nats per token of the held-out text by counting alone; of pairs where the training text is at hand."""
        windows, counts = self.windows("test"), np.array(self.facts.counts)
        found = {"unigram": counted.unigram(counts, np.concatenate([*windows.texts(COUNTED)]))}
        if not self._foreign:
            training = self.windows("train").texts(COUNTED)
            found["bigram"] = counted.bigram(training, windows.texts(COUNTED), len(counts))
        return found

    def _sentences(self, stream: str) -> list[Words]:
        """As words, from all over a stream; the same that `sentence` sees in drawn rows."""
        count = len(self.windows(stream))
        rows, valid, known = self.take(stream, spread(count, COMPARED))
        return [sentence(self.vocabulary.words(row[some])) for row, some in zip(rows, valid & ~known)]

    @property
    def _foreign(self) -> bool:
        """Whether the text that trained is not at hand."""
        return self.known is not None and not self.base and self.known.corpus != self.corpus.sha256

    @cached_property
    def _true(self) -> tuple[list[Words], list[Words]]:
        """Sentences that drawn ones are compared with, and as true ones for the floor: held out and training; halves of
        what is held out where the training text is not at hand."""
        held = self._sentences("test")
        return (held[::2], held[1::2] or held) if self._foreign else (held, self._sentences("train"))

    def metrics(self) -> dict[str, Fluency]:
        """Windows of joined documents have no lengths of their own, and every one of them is new."""
        (held, true), joined = self._true, self.packing.kind == "concat"
        seen = None if joined or self._foreign else fingerprints(true)
        return empirical.against(held, seen, not joined, sync_on_compute=False)

    def floors(self, n: int) -> table.Floors:
        held, true = self._true
        return empirical.floors(true, held, self.metrics(), n, self.length)


def _pairs(windows: CachedWindows, size: int) -> float:
    """Nats per token that the one before it leaves, from the first documents."""
    bare = (ids[:-1] if len(ids) and ids[-1] == EOS else ids for ids in windows.texts(COUNTED))
    return entropies(bare, size)[1]


def _unknown(windows: CachedWindows) -> float:
    return float((windows.tokens[:COUNTED] == UNK).mean())
