"""What can be asked of a run on the command line, and the short names of flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from projects.text import calibration
from projects.text.pictures import SHOWN, Moments
from projects.text.resolution import BayesDecoder
from projects.text.sampling import Walk
from shared.processes import Gaussian
from shared.training.errors import Mistake

CALLED = {
    "--run": "--ckpt_path",
    "--checkpoint": "--ckpt_path",
    "--num-samples": "--sampling.count",
    "--num-steps": "--sampling.steps",
}
OF_A_VERB = {
    "denoise": {"--from": "--denoise.start", "--text": "--denoise.text", "--shown": "--denoise.shown"},
    "goals": {"--vs": "--goals.vs", "--num-samples": "--goals.samples"},
}
LAYERS = ["--config=configs/text/base.yaml", "--config=configs/text/nano.yaml"]
WITHOUT_A_RUN = ("calibrate", "schedules", "statistics")  # these need data and sizes only


def spelled(argv: Sequence[str]) -> list[str]:
    """The command line with full names for its short ones; what needs no run is asked of nano, if nothing is named.

    `bench` of a run is `goals`; without one it is the house's, of speed.
    """
    verb = argv[0] if argv else ""
    if verb == "bench" and any(flag.partition("=")[0] in ("--run", "--checkpoint", "--ckpt_path") for flag in argv):
        argv = [verb := "goals", *argv[1:]]
    names = {**CALLED, **OF_A_VERB.get(verb, {})}
    parts = [flag.partition("=") for flag in argv]
    line = ["".join((names.get(name, name), equals, value)) for name, equals, value in parts]
    named = any(flag.startswith(("--config", "--ckpt_path")) for flag in line)
    return line if named or verb not in WITHOUT_A_RUN else [verb, *LAYERS, *line[1:]]


def calibrate(cli: Any) -> None:
    """R^2, entropy, SNR*, where the warp stands and how much of t lies in the window; calibration.json of a run"""
    data, rows = cli.model.data, cli.model.network.rows
    folder = cli.layers.run and cli.layers.run.folder
    calibration.calibrate(data.entropy, len(data.vocabulary), rows.radius**2, folder, data.source.estimated)


def schedules(cli: Any) -> None:
    """cosine, square root and the warp side by side, as tables; schedules.png of a run"""
    require_noise(cli.model, "schedules")
    data, network, run = cli.model.data, cli.model.network, cli.layers.run
    decoder = BayesDecoder(network.rows, torch.from_numpy(data.shares()))
    own = cli.model.process.schedule if cli.checkpoint else None
    calibration.schedules_table(data.entropy, decoder, own, run and run.folder / "samples" / "schedules.png")


@dataclass
class DenoiseOptions:
    """text: a sentence that is corrupted to time `start`, where the walk begins; without it the walk is from noise.

    shown: moments of the table. walks: sentences that walk beside the one shown, for the statistics.
    """

    text: str | None = None
    start: float = 0.5
    shown: int = SHOWN
    walks: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.start < 1:
            raise ValueError(f"denoise.start is {self.start}; a time between 0, data, and 1, noise, is wanted.")


def denoise(cli: Any) -> None:
    """one walk from noise, or from a sentence (--text, --from t), moment by moment: CKPT=<run>"""
    if cli.checkpoint is None:
        raise Mistake("denoise walks with the weights of a run and none is named; give --run runs/text/<size>/<run>.")
    module, options = cli.model, cli.options.denoise
    moments = Moments(module)
    with cli.drawing():
        through = moments.through if options.text is None else begun(module, options, moments)
        drawn = module.walked(list(range(options.walks)), through=through)
    said = module.words(drawn.ids[:1])[0]
    print("\n".join(moments.table(options.shown)))
    print(f"in the end: {module.spoken(said)}")
    score, radius = float(drawn.score[0].sum()), module.network.rows.radius
    print(f"log-probability of the tokens {score:.2f}, length of a row {radius:.2f}")


def require_noise(module: Any, what: str) -> None:
    """Raises Mistake for a twin, whose rows are not noised."""
    if not isinstance(module.process, Gaussian):
        objective = type(module.objective).__name__.lower()
        raise Mistake(
            f"{what} asks for noise on rows, and the objective here is {objective}, which has none; name a run of"
            " cross_entropy, diffusion_lm or elbo."
        )


def begun(module: Any, options: DenoiseOptions, moments: Moments) -> Any:
    """A walk whose first stride ends at the sentence of the options, corrupted to their time."""
    require_noise(module, "denoise --text")
    x0 = module.network.rows(module.data.row(options.text).to(module.device))

    def through(walk: Walk) -> Walk:
        at = torch.full((len(walk.x),), options.start, device=walk.x.device)
        rng = module.randomness.sample("denoise", module.device)
        x_t = module.process.corrupt(x0.expand_as(walk.x), module.process.draw(walk.x, rng), at)

        def step(x: Tensor, belief: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return x_t if float(t[0]) == 1 else walk.step(x, belief, t, s)

        grid = torch.cat([walk.grid[:1], options.start * walk.grid])
        return moments.through(walk._replace(step=step, grid=grid))

    return through
