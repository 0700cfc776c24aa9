"""Schedule, width, radius and vocabulary chosen together: what the resolution law says of them, as tables and a file.

`schedules_table` sets this run beside the settings that the law was read from, and schedules beside each other;
`calibrate` gives the figures that a run is built with. Entropies come from outside: exact (a grammar) or estimated.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from projects.text.diagnostics import ROWS, STEPS
from projects.text.resolution import BayesDecoder, Window, location, snr_star, span, window
from projects.text.warping import SCALE, Gumbel, preserving
from shared.processes import VariancePreserving, Warped, at_least, linear, rooted, square_root, time_of
from shared.processes.schedules import Schedule
from shared.training.layout import plain
from shared.training.report import save_figure
from shared.training.tables import replace_text

FILE = "calibration.json"
LEAST_ENTROPY = 2.0  # nats per token; an estimate from bigrams may fall below what any model will reach
WIDTHS = {100: 16, 1_000: 32, 5_000: 64}  # largest vocabulary: e
WIDEST = 128
SHOWN = (-8.0, 6.0)  # log-SNR in the picture
TOKENS = 2000  # drawn for each accuracy that a table shows
SETTINGS = {  # R^2, V that others chose
    "BART-base encoder output, rms 1": (768, 50_265),
    "BART raw token rows, rms .063": (3.1, 50_265),
    "384 wide, rms 1": (384, 15_000),
    "384 wide, raw rows, rms .089": (3.0, 15_000),
    "Diffusion-LM, E2E": (16, 821),
    "Diffusion-LM, ROC": (128, 11_043),
}


@dataclass(frozen=True)
class Calibration:
    """What `calibration.json` holds. log-SNR throughout, but for location (gamma). shares: of t in the window."""

    vocabulary_size: int
    radius_squared: float
    entropy: float  # nats per token
    log_snr_star: float
    window: Window
    location: float
    scale: float
    log_snr_min: float
    log_snr_max: float
    shares: dict[str, float]
    recommended_width: int


def recommended_width(vocabulary_size: int) -> int:
    """e that tells so many rows apart without making language needless."""
    return next((width for largest, width in WIDTHS.items() if vocabulary_size <= largest), WIDEST)


def schedules(entropy: float, radius_squared: float) -> dict[str, Schedule]:
    """By name."""
    return {
        "cosine": preserving("cosine"),
        "square root": preserving("square_root"),
        "linear": VariancePreserving(rooted(at_least(linear, 1e-8))),
        "warp": Warped(Gumbel(location(entropy, radius_squared), *span(radius_squared))),
    }


def calibrate(
    entropy: float, vocabulary_size: int, radius_squared: float, folder: Path | None = None, estimated: bool = False
) -> Calibration:
    """Print the figures and write folder/calibration.json. estimated: the entropy is no exact one, so at least 2."""
    entropy = max(entropy, LEAST_ENTROPY) if estimated else entropy
    here = window(entropy, vocabulary_size, radius_squared)
    low, high = span(radius_squared)
    found = Calibration(
        vocabulary_size,
        radius_squared,
        entropy,
        here.high,
        here,
        location(entropy, radius_squared),
        SCALE,
        low,
        high,
        {name: here.share(schedule) for name, schedule in schedules(entropy, radius_squared).items()},
        recommended_width(vocabulary_size),
    )
    print("\n".join(_said(found)))
    if folder is not None:
        replace_text(folder / FILE, json.dumps(asdict(found), indent=1) + "\n")
    return found


def _said(found: Calibration) -> Iterator[str]:
    low, high = found.window
    yield f"V {found.vocabulary_size}, R^2 {found.radius_squared:g}, H {found.entropy:.3f} nats per token"
    yield f"log SNR* {found.log_snr_star:.3f} (ln V), {low:.3f} (H): the window is {high - low:.2f} nats wide"
    yield f"warp: gamma at location {found.location:.3f}, scale {found.scale:g}"
    yield f"log SNR from {found.log_snr_min:.2f} to {found.log_snr_max:.2f}"
    yield "share of t in the window: " + ", ".join(f"{name} {share:.1%}" for name, share in found.shares.items())
    yield f"recommended width: {found.recommended_width}"


def schedules_table(
    entropy: float, decoder: BayesDecoder, own: Schedule | None = None, picture: Path | None = None, seed: int = 0
) -> None:
    """Print the law's rows, this run's last; then the schedules at the earlier rows i; then their shares of t.

    own: the schedule of a trained run, as one more. picture: a PNG of the same.
    """
    size, reach = decoder.rows.num_embeddings, float(decoder.rows.radius_squared)
    named = {**schedules(entropy, reach), **({} if own is None else {"own": own})}
    print("\n".join(plain(*law({**SETTINGS, "this run": (reach, size)}))), end="\n\n")
    print("\n".join(plain(*compared(named, decoder, seed))), end="\n\n")
    here = window(entropy, size, reach)
    rows = [[name, f"{here.share(each):.1%}", f"{here.share(each, 0):.1%}"] for name, each in named.items()]
    print(f"window: log SNR {here.low:.2f} to {here.high:.2f}")
    print("\n".join(plain(["schedule", "share of t in the window and its tails", "without tails"], rows)))
    if picture is not None:
        draw(named, decoder, here, picture, seed)


def law(settings: Mapping[str, tuple[float, int]]) -> tuple[list[str], list[list[str]]]:
    """(head, rows): where on the square-root schedule, un-normalised as they had it, tokens can be read alone."""
    head = ["setting", "R^2", "V", "SNR*", "alpha^2", f"i of {STEPS}"]
    return head, [[name, f"{reach:g}", f"{size:,}", *_star(reach, size)] for name, (reach, size) in settings.items()]


def _star(radius_squared: float, vocabulary_size: int) -> list[str]:
    snr = snr_star(math.log(vocabulary_size), radius_squared)
    earlier = VariancePreserving(square_root(from_zero=False))
    index = STEPS * float(time_of(earlier, torch.tensor(snr, dtype=torch.float64).log()))
    return [f"{snr:.3g}", f"{snr / (1 + snr):.3g}", f"{int(index)}"]


def compared(named: Mapping[str, Schedule], decoder: BayesDecoder, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """(head, rows): signal, level, and what the reader without context reads, of each schedule at the same t."""
    t = (torch.tensor(ROWS, dtype=torch.float64) + 1) / STEPS
    columns = []
    for schedule in named.values():
        log_snr, signal = schedule.log_snr(t), schedule.alpha(t).square()
        bayes = decoder.accuracy(log_snr.float(), TOKENS, torch.Generator().manual_seed(seed))
        columns.append([f"{x:.4f}  {y:+.2f}  {z:.3f}" for x, y, z in zip(signal, log_snr, bayes)])
    head = ["i", "t", *(f"{name}: alpha^2  log SNR  bayes" for name in named)]
    return head, [[str(row), f"{at:.4f}", *cells] for row, at, cells in zip(ROWS, t.tolist(), zip(*columns))]


def draw(named: Mapping[str, Schedule], decoder: BayesDecoder, here: Window, path: Path, seed: int = 0) -> Path:
    """log-SNR over t of each schedule, and what is read without context over log-SNR; the window is shaded in both."""
    from matplotlib.figure import Figure  # half a second, and only pictures need it

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    over_t, over_level = figure.subplots(1, 2, sharey=True)
    t = torch.linspace(0, 1, 201, dtype=torch.float64)[1:]
    for name, schedule in named.items():
        over_t.plot(t, schedule.log_snr(t).clamp(*SHOWN), label=name)
    level = torch.linspace(*SHOWN, 40)
    over_level.plot(decoder.accuracy(level, TOKENS, torch.Generator().manual_seed(seed)), level, color="black")
    for axes, label in ((over_t, "t"), (over_level, "bayes: share read without context")):
        axes.axhspan(here.low, here.high, alpha=0.2, label="window")
        axes.set(xlabel=label, ylim=SHOWN)
        axes.grid(alpha=0.3)
    over_t.set_ylabel("log SNR")
    over_t.legend(frameon=False)
    return save_figure(figure, path, 110)
