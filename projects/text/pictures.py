"""What a run shows of itself: sentences it draws, and one of them on its way from noise, as text."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from packages.text.rows import PAD, sentence
from projects.text.sampling import Sampling, Walk
from shared.training.logs import WriteLogs
from shared.training.runs import rehearsed
from shared.training.samples import Sample
from shared.training.snapshots import evaluating, untouched_generators
from shared.training.tables import replace_text

if TYPE_CHECKING:
    from projects.text.module import TextDiffusion

SHOWN = 16  # moments of a walk
OFF = 0.05  # of the expected standard deviation: more is said
HEAD = "   t     noise   std (wanted)  commonest | x_t, read by the nearest row\n" + " " * 39 + "| what is believed"


class FromTheStart(Callback):
    """The first snapshot, of the untrained network: what is drawn before update 1, into samples/0."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        first = trainer.global_step == 0 and pl_module.snapshots.every and not rehearsed(trainer)
        if not (first and trainer.is_global_zero):
            return
        folder = trainer.logger.run.samples / "0"  # type: ignore[union-attr]
        folder.mkdir(parents=True, exist_ok=True)
        with untouched_generators(), evaluating(pl_module):
            pl_module.draw(folder, 0)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WriteLogs):
                callback.pause()


@dataclass
class Spoken(Sample):
    """A drawn sentence. score: [L] log-probability of every token, good to three digits in any company."""

    score: Tensor = field(default_factory=lambda: torch.empty(0))


def spoken(row: Sequence[str], joined: Callable[[Sequence[str]], str] = " ".join) -> str:
    """A row as one line of text, specials shown; PAD behind the last other word is left out."""
    end = max((place for place, word in enumerate(row, 1) if word != PAD), default=0)
    return joined(row[:end]).replace("\n", "\\n")


def summary(rows: list[list[str]], grammar: Any = None) -> str:
    """How many parse, if a grammar says so, how many differ, entropy of the words in nats, share of the commonest."""
    sentences = [sentence(row) for row in rows]
    words = Counter(word for each in sentences for word in each) or Counter([PAD])
    share = np.array([*words.values()]) / words.total()
    (top, count), parsed = words.most_common(1)[0], ""
    if grammar:
        parsed = f"{sum(grammar.parse(each) is not None for each in sentences)} of {len(rows)} parse, "
    return (
        f"{parsed}{len(set(map(tuple, sentences)))} are distinct; entropy of the words"
        f" {-(share * np.log(share)).sum():.2f} nats, commonest {top} {count / words.total():.2f}"
    )


class Moment(NamedTuple):
    """A walk at one of its times: sentence 0, and statistics of all that walk with it."""

    t: float
    alpha: float
    sigma: float
    seen: str  # x_t, every position read by the nearest row
    said: str
    mean: float
    std: float
    wanted: float  # sqrt(alpha^2 rms^2 + sigma^2)
    common: float  # share of the commonest token believed
    clamped: bool  # whether what is believed is moved to a row

    def lines(self) -> Iterator[str]:
        """Two lines of the table, a third where the noise is not what the schedule says."""
        numbers = f"{self.t:.3f}  {self.sigma**2:6.1%}  {self.std:.3f} ({self.wanted:.3f})  {self.common:9.2f}"
        yield f"{numbers} | {self.seen}"
        yield f"{'clamped' if self.clamped else '':>{len(numbers)}} | {self.said}"
        if abs(self.std / self.wanted - 1) > OFF:
            yield f"      SNR off by {20 * math.log10(self.std / self.wanted):+.1f} dB"


class Moments:
    """Takes notes of a walk where the network is asked: `through(walk)` is the walk that is noted."""

    def __init__(self, module: TextDiffusion):
        self.module, self.seen = module, list[Moment]()

    def through(self, walk: Walk) -> Walk:
        def noted(x: Tensor, t: Tensor) -> Tensor:
            belief = walk.denoise(x, t)
            self.seen.append(self.moment(x, t, walk.speaker.words()[0]))
            return belief

        return walk._replace(denoise=noted)

    def moment(self, x: Tensor, t: Tensor, ids: Tensor) -> Moment:
        rows, schedule = self.module.network.rows, self.module.network.schedule
        alpha, sigma = float(schedule.alpha(t[:1])), float(schedule.sigma(t[:1]))
        seen, said = map(self.module.spoken, self.module.words(torch.stack([rows.nearest(x[0]), ids[0]])))
        wanted = math.sqrt(alpha**2 * float(rows.rms) ** 2 + sigma**2)
        common = float(torch.bincount(ids.flatten()).max() / ids.numel())
        mean, std = float(x.mean()), float(x.square().mean().sqrt())
        return Moment(
            float(t[0]), alpha, sigma, seen, said, mean, std, wanted, common, clamped(self.module.sampling, float(t[0]))
        )

    def table(self, count: int = SHOWN) -> list[str]:
        """About `count` moments, the first and the last among them."""
        chosen = dict.fromkeys(np.linspace(0, len(self.seen) - 1, min(count, len(self.seen))).round().astype(int))
        return [HEAD, *(line for n in chosen for line in self.seen[n].lines())]

    def write(self, folder: Path, row: Sequence[str]) -> Path:
        """trajectory.md: how the words of `row` came about."""
        lines = ["```", *self.table(), f"in the end: {self.module.spoken(row)}", "```"]
        replace_text(folder / "trajectory.md", "\n".join(lines) + "\n")
        return folder / "trajectory.md"


def clamped(options: Sampling, t: float) -> bool:
    """Whether the walk moves beliefs to rows at t."""
    return options.clamp == "nearest" and t <= 1 - options.clamp_start


def draw(module: TextDiffusion, folder: Path) -> list[Path]:
    """samples.txt: as many sentences as snapshots.count says, always of the same noise; trajectory.md: the way of 0."""
    moments = Moments(module)
    rows = module.words(module.walked(list(range(module.snapshots.count)), through=moments.through).ids)
    said = [module.data.source.said(row) for row in rows]
    lines = [summary(said, module.data.grammar), *(f"{n:3}  {module.spoken(row)}" for n, row in enumerate(rows))]
    replace_text(folder / "samples.txt", "\n".join(lines) + "\n")
    return [folder / "samples.txt", moments.write(folder, rows[0])]


def digest(network: nn.Module) -> str:
    """Names the weights that drew: 16 digits of the SHA-256 of all of them."""
    found = sha256()
    for value in network.state_dict().values():
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def write_lines(samples: list[Spoken], options: Sampling, network: nn.Module, path: Path) -> Path:
    """One JSON object a line."""
    how = {"steps": options.steps, "kind": options.kind, "weights": digest(network)}
    rows = [
        {"seed": seed, "text": each.text, "ids": each.data["ids"].tolist(),
         "score": [round(score, 3) for score in each.score.tolist()], **how}
        for seed, each in zip(options.seeds, samples)
    ]  # fmt: skip
    replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path
