"""Pairs of subject noun and verb that training never shows, to see whether words are put together anew.

Which pairs: those whose hash is small, so the set is fixed by its share, and a larger share contains a smaller one.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

import numpy as np

from packages.text.dependencies import Dependency


class HeldOut:
    """lemmas: word -> dictionary form, of nouns and verbs; a pair is held out in all its forms."""

    def __init__(self, words: Sequence[str], lemmas: Mapping[str, str], share: float) -> None:
        self.words, self.lemmas, self.share = words, lemmas, share
        held = [[self.holds(noun, verb) for verb in words] for noun in words]
        self.table = np.pad(np.array(held), (0, 1))  # [W + 1, W + 1], of the words; nothing with the end

    def holds(self, noun: str, verb: str) -> bool:
        """Whether the pair of forms is held out; a name or a copula never is."""
        if not {noun, verb}.issubset(self.lemmas):
            return False
        digest = blake2b(f"{self.lemmas[noun]} {self.lemmas[verb]}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.share * 2.0**64

    def shows(self, ids: np.ndarray, read: Callable[[list[str]], list[Dependency]]) -> np.ndarray:
        """[B], whether a row of ids [B, L] has a held-out pair as subject and verb.

        Only rows with both words somewhere are read.
        """
        shown = self.table[ids[:, :, None], ids[:, None, :]].any((1, 2))
        for row in np.flatnonzero(shown):
            words = [self.words[n] for n in ids[row] if n < len(self.words)]
            shown[row] = self.among(words, read(words))
        return shown

    def among(self, words: Sequence[str], found: Sequence[Dependency]) -> bool:
        """Whether one of the words' dependencies is a held-out pair."""
        return any(self.holds(words[d.first], words[d.second]) for d in found if d.kind == "subject-verb")
