"""What a denoiser adds at each level of noise: skill above the reader without context, beside the earlier table.

Cosine and magnitude are what the earlier system looked at; a copier that knows no language looks excellent there, and
has skill 0. Levels are the earlier rows i of 2000, t = (i + 1)/2000 on the square-root schedule; another schedule is
asked where it has the same log-SNR. Knows a network only as `believe`: x_t, t -> x0 as it is believed, and its tokens.
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

Believe = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # x_t [B, L, e], t [B] -> x0 [B, L, e], ids [B, L]

STEPS = 2000
ROWS = (0, 1, 5, 10, 50, 100, 500, 1000, 1500, 1900)
SURE = 0.98  # where the reader without context reads more than this, skill says nothing
REACHED = 0.1  # nats of log-SNR by which a level may be missed
EXCELLENT = {"late": ("Excellent", 0.85, 0.9, 1.1), "early": ("Excellent", 0.7, 0.8, 1.2)}
LOWER = (("Good", 0.6, 0.6, 1.4), ("Fair", 0.5, 0.0, math.inf))  # name, least cosine, magnitude between
HEAD = ["i", "t", "log SNR", "noise %", "cosine", "magnitude", "mse", "improvement"]
HEAD += ["accuracy", "bayes", "skill", "band"]
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
    """One row, means over valid tokens. index: i of 2000; None at SNR*. improvement: of mse, by the belief over x_t."""

    index: int | None
    t: float
    log_snr: float
    cosine: float
    magnitude: float
    mse: float
    improvement: float
    accuracy: float
    bayes: float

    @property
    def skill(self) -> float | None:
        return skill(self.accuracy, self.bayes)

    def cells(self, bands: str) -> list[str]:
        """In the order of HEAD."""
        noise = 100 / (1 + math.exp(self.log_snr))
        numbers = (self.cosine, self.magnitude, self.mse, self.improvement, self.accuracy, self.bayes)
        known = "-" if self.skill is None else f"{self.skill:.3f}"
        first = ["SNR*" if self.index is None else str(self.index), f"{self.t:.4f}", f"{self.log_snr:.2f}"]
        return [*first, f"{noise:.1f}", *(f"{x:.3f}" for x in numbers), known, band(self.cosine, self.magnitude, bands)]


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
        return torch.softmax(logits, -1) @ decoder.rows.rows, logits.argmax(-1)

    return believe


@torch.no_grad()
def by_timestep(
    believe: Believe, process: Gaussian, decoder: BayesDecoder, ids: Tensor, rng: Rng, valid: Tensor | None = None
) -> list[Level]:
    """The rows, cleanest first, of sentences [B, L], all on one path of noise; without levels that no t reaches."""
    x0, schedule, found = decoder.rows(ids), process.schedule, []
    noise = process.draw(x0, rng)
    where = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid
    for index, wanted in sorted(levels(decoder).items(), key=lambda item: -item[1]):
        t = time_of(schedule, torch.tensor(wanted, dtype=torch.float64)).float().to(x0.device).expand(len(ids))
        log_snr = float(schedule.log_snr(t)[0])
        if abs(log_snr - wanted) < REACHED:
            x_t = process.corrupt(x0, noise, t)
            belief, said = believe(x_t, t)
            lone = decoder(x_t, schedule.alpha(t), schedule.sigma(t))
            accuracy, bayes = (float((each == ids)[where].double().mean()) for each in (said, lone))
            near = _nearness(x0[where], x_t[where], belief[where])
            found.append(Level(index, float(t[0]), log_snr, **near, accuracy=accuracy, bayes=bayes))
    return found


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
    found: Sequence[Level], bands: Literal["late", "early"] = "late", layout: Callable[..., list[str]] = markdown
) -> Iterator[str]:
    """Lines of Markdown, or of another layout, and below them what bands cannot see."""
    yield from layout(HEAD, [level.cells(bands) for level in found])
    yield ""
    missing = [str(row) for row in ROWS if row not in {level.index for level in found}]
    if missing:
        yield f"This schedule has no t as clean as i = {', '.join(missing)}."
    yield FOOTNOTE
