"""Vocabularies of whole words, and the face every vocabulary has. Ids of the specials are fixed in the whole house.

A word is what stands between white space, so `decode(encode(s)) == s` for known words with single spaces between them.
No special is ever put into a text: whoever packs sentences adds EOS and PAD. `bpe.py` holds the vocabulary of pieces.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, Self

from packages.files import put

PAD, UNK, BOS, EOS, MASK = range(5)
SPECIALS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]", "[MASK]")


class Tokens(Protocol):
    """The face of a vocabulary, of words or of pieces of words. Ids are 0 .. len - 1, the specials first."""

    @property
    def sha256(self) -> str: ...
    def __len__(self) -> int: ...
    def encode(self, text: str | Sequence[str]) -> list[int]: ...
    def encode_all(self, texts: Iterable[str]) -> Iterator[list[int]]: ...
    def decode(self, ids: Iterable[int], clean: bool = False) -> str: ...
    def words(self, ids: Iterable[int]) -> list[str]: ...
    def joined(self, pieces: Sequence[str]) -> str: ...
    @property
    def content(self) -> str: ...
    def save(self, path: Path | str) -> Path: ...


class Vocabulary:
    """Whole words in a fixed order, after the specials.

    words: without the specials. ValueError: a word twice, with white space in it, or called like a special.
    """

    def __init__(self, words: Iterable[str]):
        self._words = (*SPECIALS, *words)
        self._ids = {word: id for id, word in enumerate(self._words)}
        if len(self._ids) != len(self._words):
            twice = next(word for word, count in Counter(self._words).items() if count > 1)
            raise ValueError(f"the word {twice!r} stands twice among the words or is a special; give each word once")
        if odd := [word for word in self._words if word.split() != [word]]:
            raise ValueError(f"the word {odd[0]!r} is empty or holds white space, which decoding would lose; split it")

    @classmethod
    def of(cls, texts: Iterable[str], min_count: int = 1) -> Self:
        """The words of texts that occur at least `min_count` times, the most frequent first, then by spelling."""
        counts = Counter(word for text in texts for word in text.split())
        return cls(sorted((w for w, n in counts.items() if n >= min_count), key=lambda word: (-counts[word], word)))

    def __len__(self) -> int:
        return len(self._words)

    @property
    def sha256(self) -> str:
        """Of all words in their order; a checkpoint stores it."""
        return hashlib.sha256("\n".join(self._words).encode()).hexdigest()

    def encode(self, text: str | Sequence[str]) -> list[int]:
        """Ids of the words of a text, UNK for a word that is not here; the name of a special is a word like others."""
        words = text.split() if isinstance(text, str) else text
        return [UNK if word in SPECIALS else self._ids.get(word, UNK) for word in words]

    def encode_all(self, texts: Iterable[str]) -> Iterator[list[int]]:
        return map(self.encode, texts)

    def unknown(self, text: str | Sequence[str]) -> list[str]:
        """The words of a text that are not here, in their order."""
        words = text.split() if isinstance(text, str) else text
        return [word for word, id in zip(words, self.encode(words)) if id == UNK]

    def words(self, ids: Iterable[int]) -> list[str]:
        """The word of each id; specials by name. ValueError: an id beyond the vocabulary."""
        return [self._words[id] for id in inside(ids, len(self))]

    def joined(self, pieces: Sequence[str]) -> str:
        """The text of words as `words` gives them, specials shown."""
        return " ".join(pieces)

    def decode(self, ids: Iterable[int], clean: bool = False) -> str:
        """The text of ids. clean: leave the specials out, which are shown otherwise."""
        return self.joined(self.words(without_specials(ids) if clean else ids))

    @property
    def content(self) -> str:
        """What `save` writes and `parsed` reads."""
        return json.dumps({"words": self._words[len(SPECIALS) :]}, ensure_ascii=False)

    def save(self, path: Path | str) -> Path:
        return put(Path(path), self.content.encode())

    @classmethod
    def parsed(cls, content: str) -> Self:
        return cls(json.loads(content)["words"])

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """ValueError: a file that is no vocabulary of words."""
        try:
            return cls.parsed(Path(path).read_text("utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path} is no vocabulary of words; wanted JSON {{"words": [...]}} as `save` writes'
            ) from error


def inside(ids: Iterable[int], size: int) -> list[int]:
    """The ids as plain ints. ValueError: one that a vocabulary of `size` does not have."""
    found = [int(id) for id in ids]
    if beyond := [id for id in found if not 0 <= id < size]:
        raise ValueError(
            f"id {beyond[0]} is not in a vocabulary of {size} ids; decode with the vocabulary that encoded"
        )
    return found


def without_specials(ids: Iterable[int]) -> list[int]:
    return [id for id in map(int, ids) if id not in range(len(SPECIALS))]
