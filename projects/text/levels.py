"""What a test keeps of a denoiser level by level: the earlier table with its copier, even steps of the log-SNR for the
pictures, the numbers of the report, and the sentence of a headline where bands praise what says nothing.

The copier (`diagnostics.alone`) is the floor of all of it. Twins have no noise on rows, so there is nothing to ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from projects.text import diagnostics, resolution
from projects.text.diagnostics import Believe, Level, Noised, alone
from projects.text.likelihood import Heard
from projects.text.options import spread
from projects.text.resolution import BayesDecoder, Window
from shared.processes import Gaussian
from shared.processes.schedules import Schedule
from shared.training.batches import Share
from shared.training.layout import markdown
from shared.training.report import Metric

if TYPE_CHECKING:
    from projects.text.data import Sentences
    from projects.text.module import TextDiffusion

ASKED = 256  # sentences of which the rows are measured; a quarter of them at even steps
EVEN, BEYOND = 24, 3.5  # even steps of the log-SNR, and how many nats they reach out of the window
MOST = 0.5  # of the rows Excellent, or of the sentences parsed
LITTLE = 0.3  # of skill at SNR*
HEAD = ["log SNR", "t", "ce", "copier: ce", "density", "copier: density", "accuracy", "bayes", "skill"]


def few(module: TextDiffusion, stream: str, count: int) -> Sentences:
    """Sentences from all over a stream in one batch: `count`, or as many as there are or are evaluated at once."""
    data = module.data
    index = data.source.evaluated(stream, min(count, data.at_once))
    index = index[spread(len(index), min(count, data.at_once))]
    return data.sentences(stream, Share.of(index)).to(module.device)


def asked(module: TextDiffusion, batch: Sentences) -> tuple[Noised, Believe, Believe]:
    """The sentences, each on the same path of noise in any company; the network, which hears itself, and the copier."""
    network, heard = module.network, Heard(module.network, batch.mask, batch.known)

    def believe(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        out = heard(x_t, t)
        return network.believe(out), network.logits(out)

    decoder = BayesDecoder(network.rows, torch.from_numpy(module.data.shares()))
    rng = [module.randomness.sample(("levels", n), module.device) for n in batch.index.tolist()]
    noised = Noised(module.process, decoder, batch.ids, rng, batch.counted, batch.known)
    return noised, believe, alone(decoder, module.process.schedule)


def star(module: TextDiffusion, batch: Sentences) -> Level | None:
    """At SNR*, of the sentences of a batch; None without noise on rows, or where no t reaches it."""
    if not isinstance(module.process, Gaussian):
        return None
    noised, believe, _ = asked(module, batch)
    return noised.star(believe)


@dataclass(frozen=True)
class Levels:
    """mine, copier: the rows. even, lone: the same two at even steps of the log-SNR."""

    schedule: Schedule
    window: Window
    mine: Sequence[Level]
    copier: Sequence[Level]
    even: Sequence[Level]
    lone: Sequence[Level]

    @property
    def star(self) -> Level | None:
        return next((level for level in self.mine if level.index is None), None)

    @property
    def skill(self) -> float | None:
        return self.star and self.star.skill

    def metrics(self) -> list[Metric]:
        """Skill at SNR*; mean cosine and the share of Excellent over the rows."""
        whole = {"cosine_mean": cosine, "excellent_rows": excellent} if self.mine else {}
        floors = {name: {"copier": of(self.copier)} for name, of in whole.items()}
        return [
            *skilled(self.star),
            *(Metric(name, of(self.mine), self.mine[0].tokens, floors=floors[name]) for name, of in whole.items()),
        ]

    def said(self, parsed: float | None) -> list[str]:
        """For a headline, where most rows are Excellent all the same. parsed: share of sentences, if one can say."""
        empty = parsed < MOST if parsed is not None else self.skill is not None and self.skill < LITTLE
        if not self.mine or not empty or excellent(self.mine) < MOST:
            return []
        rows = f"{sum(level.band() == 'Excellent' for level in self.mine)} of {len(self.mine)} rows Excellent"
        facts = [] if parsed is None else [f"{parsed:.1%} of sentences parse"]
        facts += [] if self.skill is None else [f"skill at SNR* is {self.skill:.2f}"]
        return [f"mean cosine {cosine(self.mine):.2f} and {rows}, yet {' and '.join(facts)}"]

    def table(self) -> str:
        """The section of the report."""
        return "\n".join(diagnostics.table(self.mine, copier=self.copier))

    def text(self) -> str:
        """levels.md: the table, and window.png in numbers."""
        even = markdown(HEAD, map(cells, self.even, self.lone))
        said = "At even steps of the log-SNR, in nats per position, as in window.png:"
        return "\n".join([self.table(), "", said, "", *even, ""])


def cells(mine: Level, copier: Level) -> list[str]:
    """In the order of HEAD."""
    numbers = mine.ce, copier.ce, mine.density, copier.density, mine.accuracy, mine.bayes
    known = "-" if mine.skill is None else f"{mine.skill:.3f}"
    return [f"{mine.log_snr:.2f}", f"{mine.t:.4f}", *(f"{x:.3f}" for x in numbers), known]


def cosine(rows: Sequence[Level]) -> float:
    return sum(level.cosine for level in rows) / len(rows)


def excellent(rows: Sequence[Level]) -> float:
    return sum(level.band() == "Excellent" for level in rows) / len(rows)


def skilled(level: Level | None) -> list[Metric]:
    """Skill at SNR*, as reports and goals know it."""
    if level is None or level.skill is None:
        return []
    return [Metric("skill_at_star", level.skill, level.tokens, floors={"copier": 0.0})]


def measured(module: TextDiffusion) -> Levels | None:
    """Of held-out sentences of the test; None without noise on rows."""
    if not isinstance(module.process, Gaussian):
        return None
    rows, count = module.network.rows, min(ASKED, module.data.held_out)
    here = resolution.window(module.data.entropy, rows.num_embeddings, float(rows.radius_squared))
    noised, *believers = asked(module, few(module, "test", count))
    found = [noised.rows(each) for each in believers]
    less, *believers = asked(module, few(module, "test", -(-count // 4)))
    steps = torch.linspace(here.high + BEYOND, here.low - BEYOND, EVEN).tolist()
    even = [[level for step in steps if (level := less.at(step, each))] for each in believers]
    return Levels(module.process.schedule, here, *found, *even)


def decided(levels: Sequence[Level]) -> float:
    """Nats per position that the levels decide: the integral of the density (trapezoids)."""
    return sum((a.log_snr - b.log_snr) * (a.density + b.density) / 2 for a, b in pairwise(levels))
