"""Token statistics as files: all numbers as JSON, tables as Markdown, lengths and ranks as a picture.

    write(statistics(texts, vocabulary), run / "samples")        # token_statistics.{json,md,png}

matplotlib is imported when the picture is made; it draws without a display. Counts nothing itself.
"""

import io
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from packages.files import put
from packages.text.token_statistics import REPEATS, TOKENS_PER_PARAMETER, Spread, Statistics


def write(found: Statistics, folder: Path | str) -> list[Path]:
    """token_statistics.json, .md and .png in a folder."""
    content = {
        "json": json.dumps(asdict(found), indent=2, ensure_ascii=False).encode(),
        "md": as_markdown(found).encode(),
        "png": _picture(found),
    }
    return [put(Path(folder) / f"token_statistics.{kind}", each) for kind, each in content.items()]


def as_markdown(found: Statistics) -> str:
    """The tables of a report, which a terminal shows as well."""
    head = (
        f"{found.documents:,} documents, {found.words:,} words, {found.characters:,} characters; {found.tokens:,} "
        f"tokens of {found.kinds:,} kinds in a vocabulary of {found.vocabulary:,}; UNK {found.unknown:.3%}.\n\n"
        f"Entropy (words + EOS, Miller-Madow): unigram {found.unigram_entropy:.3f} nats per token, bigram-conditional "
        f"{found.bigram_entropy:.3f}. Tokenised at {found.tokens_per_second:,.0f} tokens/s, "
        f"{found.milliseconds_per_document:.3f} ms per document."
    )
    parts = ["# Token statistics", head, _lengths_table(found), _chunks_table(found), *_budget_lines(found)]
    return "\n\n".join([*parts, _tokens_table(found)]) + "\n"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _lengths_table(found: Statistics) -> str:
    names = ("mean", "median", "sd", "min", "max", "p25", "p75", "p90", "p95", "p99")
    spreads = {"tokens": found.token_length, "characters": found.character_length}
    return _table(
        ("length in", *names),
        ((what, *(f"{getattr(spread, name):,.1f}" for name in names)) for what, spread in spreads.items()),
    )


def _chunks_table(found: Statistics) -> str:
    rows = ((str(c.length), f"{c.shorter:.1%}", f"{c.per_document:.1f}") for c in found.chunks)
    return _table(("window L", "documents shorter", "whole windows per document"), rows)


def _budget_lines(found: Statistics) -> list[str]:
    if (budget := found.budget) is None:
        return []
    return [
        f"Budget of {budget.parameters:,} parameters: {REPEATS} x {TOKENS_PER_PARAMETER} x parameters = "
        f"{budget.tokens:,} tokens = {budget.examples:,} windows of {budget.length} = {budget.documents:,} documents "
        f"like these ({budget.documents / found.documents:,.1f} times this corpus)."
    ]


def _tokens_table(found: Statistics) -> str:
    rows = ((_quoted(a), f"{n:,}", _quoted(b), f"{m:,}") for (a, n), (b, m) in zip(found.top, found.bottom))
    return _table(("most frequent", "count", "rarest", "count"), rows)


def _quoted(token: str) -> str:
    return f"`{token}`".replace("|", "\\|")


def _picture(found: Statistics) -> bytes:
    """Left: how long documents are; right: how often the token of each rank occurs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_lengths(left, found.token_length)
    right.loglog(*zip(*found.ranks), color="#0074D9")
    right.set(title=f"{found.kinds:,} kinds of {found.tokens:,} tokens", xlabel="rank", ylabel="count")
    pixels = io.BytesIO()
    figure.savefig(pixels, format="png", dpi=110, facecolor="white")
    return pixels.getvalue()


def _draw_lengths(axes: Any, spread: Spread) -> None:
    axes.stairs(spread.counts, spread.edges, fill=True, color="#7FDBFF", edgecolor="#0074D9")
    for value, name in ((spread.median, "median"), (spread.p95, "95 %"), (spread.p99, "99 %")):
        axes.axvline(value, color="#FF4136", linewidth=1)
        axes.text(
            value,
            0.98,
            f" {name} {value:,.0f}",
            transform=axes.get_xaxis_transform(),
            rotation=90,
            va="top",
            fontsize=8,
        )
    if len(set(np.diff(spread.edges))) > 1:
        axes.set_xscale("log")
    axes.set(title=f"{sum(spread.counts):,} documents", xlabel="length in tokens", ylabel="documents")
