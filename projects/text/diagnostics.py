"""What a denoiser adds at each level of noise: skill above the reader without context, beside the earlier table.

Cosine and magnitude are what the earlier system looked at; a copier that knows no language looks excellent there, and
has skill 0. Levels are the earlier rows i of 2000, t = (i + 1)/2000 on the square-root schedule; another schedule is
asked where it has the same log-SNR. Knows a network only as `believe`: x_t, t -> x0 as it is believed, and the logits
of its tokens; what a run keeps of it all is in `levels.py`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.text.resolution import BayesDecoder, snr_star
from shared.processes import Gaussian, VariancePreserving, square_root, time_of
from shared.processes.draws import Rng
from shared.processes.schedules import Schedule
from shared.training.layout import markdown

Believe = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # x_t [B, L, e], t [B] -> x0 [B, L, e], logits [B, L, V]

STEPS = 2000
ROWS = (0, 1, 5, 10, 50, 100, 500, 1000, 1500, 1900)
SURE = 0.98  # where the reader without context reads more than this, skill says nothing
REACHED = 0.1  # nats of log-SNR by which a level may be missed
EXCELLENT = {"late": ("Excellent", 0.85, 0.9, 1.1), "early": ("Excellent", 0.7, 0.8, 1.2)}
LOWER = (("Good", 0.6, 0.6, 1.4), ("Fair", 0.5, 0.0, math.inf))  # name, least cosine, magnitude between
HEAD = ["i", "t", "log SNR", "noise %", "cosine", "magnitude", "mse", "improvement"]
HEAD += ["accuracy", "bayes", "skill", "band"]
BESIDE = ["copier: cosine", "magnitude", "band"]
FOOTNOTE = (
    "Bands see cosine and magnitude only: a copier that reads every token alone, with no language at all, is Excellent "
    "wherever bayes is high. Skill, (accuracy - bayes)/(1 - bayes), is what a denoiser knows beyond it; left out where "
    f"bayes > {SURE}."
)


def skill(accuracy: float, bayes: float) -> float | None:
    """Share of what the reader without context misses that is read all the same; None where it misses too little."""
    return None if bayes > SURE else (accuracy - bayes) / (1 - bayes)


def band(cosine: float, magnitude: float, kind: str = "late") -> str:
    """The earlier system's word for a row. kind: its late thresholds, or its early ones."""
    for name, least, low, high in (EXCELLENT[kind], *LOWER):
        if cosine > least and low < magnitude < high:
            return name
    return "Poor"


@dataclass(frozen=True)
class Level:
    """One row, means over the `tokens` that count. index: i of 2000; None elsewhere. improvement: of mse, by the belief
    over x_t. density: nats of a token that a nat of log-SNR decides here, 1/2 SNR |x0 - belief|^2; its integral over
    the walk is the bound (Guo et al. 2005; Kingma et al. 2021)."""

    index: int | None
    t: float
    log_snr: float
    cosine: float
    magnitude: float
    mse: float
    improvement: float
    ce: float
    density: float
    accuracy: float
    bayes: float
    tokens: int

    @property
    def skill(self) -> float | None:
        return skill(self.accuracy, self.bayes)

    def cells(self, bands: str) -> list[str]:
        """In the order of HEAD."""
        noise = 100 / (1 + math.exp(self.log_snr))
        numbers = (self.cosine, self.magnitude, self.mse, self.improvement, self.accuracy, self.bayes)
        known = "-" if self.skill is None else f"{self.skill:.3f}"
        first = ["SNR*" if self.index is None else str(self.index), f"{self.t:.4f}", f"{self.log_snr:.2f}"]
        return [*first, f"{noise:.1f}", *(f"{x:.3f}" for x in numbers), known, self.band(bands)]

    def band(self, bands: str = "late") -> str:
        return band(self.cosine, self.magnitude, bands)

    def beside(self, bands: str) -> list[str]:
        """In the order of BESIDE, of the copier."""
        return [f"{self.cosine:.3f}", f"{self.magnitude:.3f}", self.band(bands)]


def levels(decoder: BayesDecoder) -> dict[int | None, float]:
    """log-SNR of the earlier rows, and under None of SNR* of the decoder's table."""
    t = (torch.tensor(ROWS, dtype=torch.float64) + 1) / STEPS
    earlier = VariancePreserving(square_root()).log_snr(t).tolist()
    size, reach = decoder.rows.num_embeddings, float(decoder.rows.radius_squared)
    return {**dict(zip(ROWS, earlier)), None: math.log(snr_star(math.log(size), reach))}


def alone(decoder: BayesDecoder, schedule: Schedule) -> Believe:
    """The copier: every token by itself, as well as that can be done; its belief is the mean of the rows."""

    def believe(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        logits = decoder.logits(x_t, schedule.alpha(t), schedule.sigma(t))
        return decoder.rows.mean(torch.softmax(logits, -1)), logits

    return believe


class Noised:
    """Sentences [B, L] on one path of noise each, of whom any believer can be asked at any level.

    where: bool [B, L], positions that count (None: all). known: those that are given, and enter clean (None: none).
    """

    def __init__(
        self,
        process: Gaussian,
        decoder: BayesDecoder,
        ids: Tensor,
        rng: Rng,
        where: Tensor | None = None,
        known: Tensor | None = None,
    ):
        self.process, self.decoder, self.ids, self.known = process, decoder, ids, known
        self.x0 = decoder.rows(ids)
        self.noise = process.draw(self.x0, rng)
        self.where = torch.ones_like(ids, dtype=torch.bool) if where is None else where

    @torch.no_grad()
    def at(self, log_snr: float, believe: Believe, index: int | None = None) -> Level | None:
        """None where no t comes as near as REACHED."""
        schedule, where = self.process.schedule, self.where
        wanted = torch.tensor(log_snr, dtype=torch.float64, device=self.x0.device)
        t = time_of(schedule, wanted).float().expand(len(self.ids))
        reached = float(schedule.log_snr(t)[0])
        if abs(reached - log_snr) >= REACHED:
            return None
        x_t = self.process.corrupt(self.x0, self.noise, t)
        if self.known is not None:
            x_t = torch.where(self.known.unsqueeze(-1), self.x0, x_t)
        belief, logits = believe(x_t, t)
        lone = self.decoder(x_t, schedule.alpha(t), schedule.sigma(t))
        right, bayes = (float((said == self.ids)[where].double().mean()) for said in (logits.argmax(-1), lone))
        near = _nearness(self.x0[where], x_t[where], belief[where])
        density = math.exp(reached) / 2 * near["mse"] * self.x0.shape[-1]
        ce, n = float(F.cross_entropy(logits[where].double(), self.ids[where])), int(where.sum())
        return Level(index, float(t[0]), reached, **near, ce=ce, density=density, accuracy=right, bayes=bayes, tokens=n)

    def rows(self, believe: Believe) -> list[Level]:
        """The earlier rows and that of SNR*, cleanest first, without levels that no t reaches."""
        asked = sorted(levels(self.decoder).items(), key=lambda item: -item[1])
        return [level for index, wanted in asked if (level := self.at(wanted, believe, index))]

    def star(self, believe: Believe) -> Level | None:
        """At SNR* alone."""
        return self.at(levels(self.decoder)[None], believe)


def _nearness(x0: Tensor, x_t: Tensor, belief: Tensor) -> dict[str, float]:
    """What Level says of a belief [N, e], means over its tokens."""
    mse, before = (float((x.double() - x0).square().mean()) for x in (belief, x_t))
    return {
        "cosine": float(F.cosine_similarity(belief, x0, dim=-1).mean()),
        "magnitude": float(belief.norm(dim=-1).mean() / x0.norm(dim=-1).mean()),
        "mse": mse,
        "improvement": (before - mse) / before,
    }


def table(
    found: Sequence[Level],
    bands: Literal["late", "early"] = "late",
    layout: Callable[..., list[str]] = markdown,
    copier: Sequence[Level] = (),
) -> Iterator[str]:
    """Lines of Markdown, or of another layout, and below them what bands cannot see. copier: the same rows of `alone`,
    to stand beside."""
    rows = [level.cells(bands) for level in found]
    if copier:
        rows = [[*row, *level.beside(bands)] for row, level in zip(rows, copier, strict=True)]
    yield from layout([*HEAD, *(BESIDE if copier else [])], rows)
    yield ""
    missing = [str(row) for row in ROWS if row not in {level.index for level in found}]
    if missing:
        yield f"This schedule has no t as clean as i = {', '.join(missing)}."
    yield FOOTNOTE
