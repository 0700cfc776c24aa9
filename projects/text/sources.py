"""What sentences come from: a grammar that makes them, or a corpus that is read. `TextData` does not ask which.

A checkpoint carries its vocabulary, and what it was trained on, so that it can be evaluated on any file of its kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from packages.text.bpe import Bpe
from packages.text.vocabulary import Vocabulary
from projects.text.made import Made
from projects.text.options import Options
from projects.text.pairs import Pairs
from projects.text.read import Known, Read
from shared.training.errors import Mistake

KINDS: dict[str, Any] = {"Vocabulary": Vocabulary, "Bpe": Bpe}
Source = Made | Read


def opened(options: Options, checkpoint: Mapping[str, Any] | None = None, base: bool = False) -> Source:
    """The source of a run, or of a checkpoint that is evaluated (or, base, goes on training) with these options.

    Mistake: the checkpoint has another vocabulary.
    """
    content = checkpoint or {}
    said, corpus = content.get("vocabulary"), content.get("corpus")
    if options.source == "grammar":
        source: Source = Made(options)
    else:
        vocabulary = KINDS[said["kind"]].parsed(said["content"]) if said and corpus else None
        reads = Pairs if options.conditional else Read
        source = reads(options, Known(**corpus) if corpus else None, vocabulary, base)
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
