"""Pairs of subject noun and verb that training never shows, to see whether words are put together anew.

Which pairs: those whose hash is small, so the set is fixed by its share, and a larger share contains a smaller one.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

import numpy as np

from packages.text.dependencies import Dependency

KIND = "subject-verb"


class HeldOut:
    """nouns, verbs: form -> dictionary form; a pair is held out in all its forms."""

    def __init__(self, words: Sequence[str], nouns: Mapping[str, str], verbs: Mapping[str, str], share: float) -> None:
        self.words, self.nouns, self.verbs, self.share = words, nouns, verbs, share
        held = np.array([[self.holds(first, second) for second in words] for first in words])
        self.table = np.pad(held, (0, 1))  # [W + 1, W + 1], of places in `words`; nothing with the end

    def holds(self, noun: str, verb: str) -> bool:
        """Whether the pair of forms is held out; a name or a copula never is."""
        if noun not in self.nouns or verb not in self.verbs:
            return False
        digest = blake2b(f"{self.nouns[noun]} {self.verbs[verb]}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.share * 2.0**64

    def shows(self, ids: np.ndarray, read: Callable[[list[str]], list[Dependency]]) -> np.ndarray:
        """[B], whether a row of ids [B, L] has a held-out pair as subject and verb.

        Only rows with such a noun somewhere before such a verb are read.
        """
        shown = np.triu(self.table[ids[:, :, None], ids[:, None, :]]).any((1, 2))
        for row in np.flatnonzero(shown):
            words = [self.words[n] for n in ids[row] if n < len(self.words)]
            shown[row] = any(self.holds(words[d.first], words[d.second]) for d in read(words) if d.kind == KIND)
        return shown
