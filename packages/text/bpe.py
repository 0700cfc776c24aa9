"""Byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2) by the library `tokenizers`: another `Vocabulary`.

Bytes have no unknowns: `decode(encode(s)) == s` for every string, and a text that holds "[EOS]" gets no EOS. Trained
here, the specials are ids 0 .. 4; a tokenizer from elsewhere keeps its ids, moved up by five, behind ours. A larger
vocabulary is never cut down to a smaller one. Libraries are imported when a vocabulary is trained or loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Self

from packages.files import put
from packages.text.documents import Corpus
from packages.text.vocabulary import SPECIALS, UNK, inside, without_specials

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.json"
SMALLEST = len(SPECIALS) + 256  # ids: the specials and every byte
MIN_FREQUENCY = 2  # of a pair of pieces that is merged
AT_ONCE = 256  # texts given to the library's threads together


class Bpe:
    """A trained tokenizer. tokenizer: of the library; its own truncation, padding and template are switched off."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # the name of a special in a text is text
        ours = all(tokenizer.id_to_token(id) == name for id, name in enumerate(SPECIALS))
        self._shift = 0 if ours else len(SPECIALS)
        self._size = max(tokenizer.get_vocab().values()) + 1 + self._shift
        self._unknown = None if ours else tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "")

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """Pieces learned from texts; fewer than `vocab_size` when the texts hold no more pairs that occur twice."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        if vocab_size < SMALLEST:
            raise ValueError(
                f"vocab_size is {vocab_size}; bytes and specials alone are {SMALLEST}, ask for that or more"
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=MIN_FREQUENCY,
            special_tokens=list(SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def parsed(cls, content: str) -> Self:
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_str(content))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """path: a tokenizer.json or its folder. ValueError: no such thing."""
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        try:
            return cls.parsed(file.read_text("utf-8"))
        except Exception as error:  # the library raises bare Exceptions
            raise ValueError(f"{file} is no tokenizer ({error}); give a {FILE}, or a folder that holds one") from error

    @property
    def content(self) -> str:
        """What `save` writes and `parsed` reads."""
        return self._tokenizer.to_str()

    def save(self, path: Path | str) -> Path:
        return put(Path(path), self.content.encode())

    def __reduce__(self) -> tuple:
        return type(self), (self._tokenizer,)

    def __len__(self) -> int:
        return self._size

    @property
    def sha256(self) -> str:
        """Of the pieces, merges and settings; a checkpoint stores it."""
        return hashlib.sha256(self.content.encode()).hexdigest()

    def encode(self, text: str | Sequence[str]) -> list[int]:
        """Ids of the pieces of a text, or of words joined by spaces. Nothing is put in, nothing is cut off."""
        return next(self.encode_all([text if isinstance(text, str) else " ".join(text)]))

    def encode_all(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """The ids of each text, by all threads of the library."""
        rest = iter(texts)
        while some := list(islice(rest, AT_ONCE)):
            for found in self._tokenizer.encode_batch_fast(some, add_special_tokens=False):
                yield self._moved(found.ids)

    def _moved(self, ids: list[int]) -> list[int]:
        if not self._shift:
            return ids
        return [UNK if id == self._unknown else id + self._shift for id in ids]

    def words(self, ids: Iterable[int]) -> list[str]:
        """The piece of each id as the library writes it (a space is the letter G with a dot); specials by name."""
        return [SPECIALS[id] if id < len(SPECIALS) else self._piece(id) for id in inside(ids, len(self))]

    def _piece(self, id: int) -> str:
        return self._tokenizer.id_to_token(id - self._shift) or f"[{id}]"

    def joined(self, pieces: Sequence[str]) -> str:
        """The text of pieces as `words` gives them, specials shown."""
        runs = groupby(pieces, SPECIALS.__contains__)
        return "".join("".join(run) if special else self._tokenizer.decoder.decode(list(run)) for special, run in runs)

    def decode(self, ids: Iterable[int], clean: bool = False) -> str:
        """The text of ids. clean: leave the specials out, which are shown otherwise."""
        ids = inside(without_specials(ids) if clean else ids, len(self))
        return "".join(self._text(special, list(run)) for special, run in groupby(ids, lambda id: id < len(SPECIALS)))

    def _text(self, special: bool, ids: list[int]) -> str:
        if special:
            return "".join(self.words(ids))
        return self._tokenizer.decode([id - self._shift for id in ids], skip_special_tokens=False)


def tokenizer(name: str, vocab_size: int | None, corpus: Corpus, cache_dir: Path | str) -> Bpe:
    """What `data.tokenizer` names.

    name: train (on `corpus`, which must be the training part alone), the path of a tokenizer.json or its folder, or a
    hub id. vocab_size: ids at most; None: as many as the tokenizer has (it cannot be None to train).
    ValueError: a tokenizer of more ids than asked for.
    """
    if name == "train":
        return _trained(corpus, vocab_size, Path(cache_dir))
    found = Bpe.load(name if Path(name).exists() else _from_hub(name))
    if vocab_size is not None and len(found) > vocab_size:
        raise ValueError(
            f"the tokenizer {name} has {len(found)} ids and {vocab_size} were asked for; a larger vocabulary is never "
            f"truncated to UNK: ask for {len(found)}, or train one of your size (train)"
        )
    return found


def _trained(corpus: Corpus, vocab_size: int | None, cache_dir: Path) -> Bpe:
    """From the cache, whose key is the hash of the corpus and the size."""
    if vocab_size is None:
        raise ValueError("a tokenizer is to be trained without a size; set vocab_size, such as 4096")
    file = cache_dir / f"bpe-{corpus.sha256[:16]}-{vocab_size}" / FILE
    if not file.exists():
        Bpe.train((document.text for document in corpus), vocab_size).save(file)
    return Bpe.load(file)


def _from_hub(name: str) -> str:
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(name, FILE)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise ValueError(
            f"the tokenizer {name!r} is neither a file or folder here nor to be had from the hub ({first}); "
            f"give the path of a {FILE}, or train"
        ) from error
