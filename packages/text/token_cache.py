"""Tokenised corpora on disk: one folder per corpus, vocabulary and packing, whole or not there.

    windows = cached(training, vocabulary, Packing("concat", 128), ".cache/text")

Built under a temporary name and renamed: an interrupted build is never taken for a whole one, and of two builders at
once the second takes what the first has finished. Files are mapped into memory, not read.
"""

import hashlib
import json
import shutil
import uuid
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from packages.text.documents import Corpus
from packages.text.vocabulary import Tokens
from packages.text.windows import PAIRS, Cut, Packing, Windows, cut, ended, paired

FORMAT = 1  # of the files; another number is another folder
FACTS, TOKENS, OFFSETS, SPANS, GIVEN = "facts.json", "tokens.bin", "offsets.npy", "spans.npy", "given.npy"


class CachedWindows(Windows):
    """Windows over the files of a folder. Pickled as the folder's name, so workers map the files themselves.

    ValueError: a folder that is no whole cache.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            facts = json.loads((folder / FACTS).read_text())
            tokens = np.memmap(folder / TOKENS, facts["type"], "r")
            packing = Packing(**facts["packing"])
            offsets, spans, *given = (np.load(folder / name, mmap_mode="r") for name in arrays(packing))
            if len(tokens) != offsets[-1]:
                raise ValueError(f"{len(tokens)} tokens of {offsets[-1]}")
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"the token cache {folder} is damaged ({error}); remove it, and it is built anew"
            ) from error
        found = Cut(spans, facts["dropped"], facts["split"], facts["lost"])
        super().__init__(tokens, offsets, found, packing, *given)

    def __reduce__(self) -> tuple:
        return type(self), (self.folder,)


def cached(corpus: Corpus, vocabulary: Tokens, packing: Packing, cache_dir: Path | str) -> CachedWindows:
    """The windows of a corpus, built if they are not there. ValueError: no window comes of it."""
    folder = Path(cache_dir) / name(corpus, vocabulary, packing)
    if not folder.is_dir():
        _build(corpus, vocabulary, packing, folder)
    return CachedWindows(folder)


def name(corpus: Corpus, vocabulary: Tokens, packing: Packing) -> str:
    """ "concat-128-" and 16 digits of the hash of all that the files depend on."""
    parts = (FORMAT, corpus.sha256, vocabulary.sha256, packing)
    return f"{packing.kind}-{packing.length}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


def arrays(packing: Packing) -> list[str]:
    """The names of what is kept beside the tokens."""
    return [OFFSETS, SPANS, *([GIVEN] if packing.kind == PAIRS else [])]


def _build(corpus: Corpus, vocabulary: Tokens, packing: Packing, folder: Path) -> None:
    temporary = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    try:
        _fill(temporary, corpus, vocabulary, packing)
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another builder was first, and its files are the same
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sequences(corpus: Corpus, vocabulary: Tokens, packing: Packing) -> Iterator[tuple[int, Sequence[int]]]:
    """How many tokens of a document are given, and its ids."""
    texts = vocabulary.encode_all(document.text for document in corpus)
    if packing.kind != PAIRS:
        return ((0, ids) for ids in texts)
    given = vocabulary.encode_all(document.given for document in corpus)
    return ((len(first) + 1, paired(first, ids)) for first, ids in zip(given, texts))


def _fill(folder: Path, corpus: Corpus, vocabulary: Tokens, packing: Packing) -> None:
    ends, given = array("q", [0]), array("q")
    with (folder / TOKENS).open("wb") as file:
        for known, ids in _sequences(corpus, vocabulary, packing):
            part = ended(ids, packing, len(vocabulary))
            file.write(part.tobytes())
            ends.append(ends[-1] + len(part))
            given.append(known)
    offsets = np.array(ends)
    found = cut(offsets, packing)
    for name, values in zip(arrays(packing), (offsets, found.spans, np.array(given))):
        np.save(folder / name, values)
    facts = {
        "type": part.dtype.name,
        "packing": asdict(packing),
        "dropped": found.dropped,
        "split": found.split,
        "lost": found.lost,
        "corpus": corpus.name,
        "corpus_sha256": corpus.sha256,
        "vocabulary_sha256": vocabulary.sha256,
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=2))
