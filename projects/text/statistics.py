"""The verb `statistics`: what a text is made of, or what a grammar knows of itself and what its floors reach."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from packages.text import token_report, token_statistics
from packages.text.grammar import Grammar
from packages.text.table import Floors, Value
from shared.training import layout


@dataclass
class StatisticsOptions:
    """count: sentences of each sampler that a grammar's metrics are measured on. out: where the files go (None: the
    samples/ of a run, else runs/text/statistics/<name>).
    """

    count: int = 2000
    out: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"statistics.count is {self.count}; sentences are counted, give 1 or more.")


def statistics(cli: Any) -> None:
    """lengths, tokens, entropies and budget of a text; of a grammar, its exact figures and all metrics of the floors"""
    source, options = cli.model.data.source, cli.options.statistics
    if source.grammar is not None:
        print("\n".join([*exact(source.grammar), "", *layout.plain(*floors(source.floors(options.count)))]))
        return
    texts = (document.text for document in source.corpus)
    found = token_statistics.statistics(texts, source.vocabulary, source.length, cli.plan.parameters)
    run, apart = cli.layers.run, Path(cli.options.run.root, "text/statistics", re.sub(r"\W+", "-", source.corpus.name))
    folder = Path(options.out) if options.out else run.samples if run else apart
    print("\n" + token_report.as_markdown(found))
    print(f"written     {', '.join(map(str, token_report.write(found, folder)))}")


def exact(grammar: Grammar) -> Iterator[str]:
    """What a grammar knows of itself."""
    entropy, lengths = grammar.entropy(), grammar.length_distribution()
    mean = float(lengths @ np.arange(len(lengths)))
    unigram = grammar.unigram()
    alone = -float(unigram[unigram > 0] @ np.log(unigram[unigram > 0]))
    shortest = lengths.nonzero()[0][0]
    yield f"words       {len(grammar.words)}; a sentence has {shortest} to {grammar.max_words}, on average {mean:.2f}"
    yield f"entropy     {entropy.per_sentence:.3f} nats per sentence, {entropy.per_token:.4f} per word or EOS, exact"
    yield f"            {alone:.4f} of a word or EOS alone; perplexity {math.exp(entropy.per_token):.3f}"


def floors(found: Floors) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of all metrics of the samplers that learn nothing."""
    rows = [
        [name, *(said(each.get(name)) for each in found.values()), unit, f"{n:,} {of}"]
        for name, (value, n, unit, of) in found["true"].items()
        if not math.isnan(value)
    ]
    return ["metric", *found, "unit", "n (true)"], rows


def said(value: Value | None) -> str:
    return "-" if value is None or math.isnan(value.value) else f"{value.value:.4f}"
