"""Diffusion over sentences in the space of a learnt table of rows: the LightningModule.

The training step asks its objective for a loss and divides by tokens. What surrounds it has its own files: `objectives`
(what is learnt), `sampling` (ways back), `evaluate` (metrics and floors), `pictures`, `commands`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning import Callback, LightningModule
from torch import Tensor

from packages.text.vocabulary import PAD
from projects.text import levels, resolution, watching
from projects.text.autoregressive import Autoregressive
from projects.text.bound import Elbo
from projects.text.calibration import recommended_width
from projects.text.compat import Compat
from projects.text.data import Sentences, TextData
from projects.text.diffusion_lm import DiffusionLM, Rounding
from projects.text.encoder import Encoder
from projects.text.evaluate import Evaluation
from projects.text.likelihood import Likelihood, NLLBound
from projects.text.masked import Masked
from projects.text.network import Denoiser, Network, Trunk
from projects.text.objectives import CrossEntropy, Losses, Objective
from projects.text.options import at_least
from projects.text.pictures import FromTheStart, Moments, Spoken, draw, spoken, write_lines
from projects.text.sampling import Given, Sampling, Walk
from projects.text.warping import Fitted, Gumbel, Monotone, Relay, preserving
from shared.objectives import share
from shared.processes import Warped
from shared.processes.schedules import Schedule
from shared.sampling import sample
from shared.training import optim
from shared.training.pretrained import build
from shared.training.randomness import Randomness
from shared.training.report import Results

TRUNKS: dict[str, type[Network]] = {"denoiser": Denoiser, "encoder": Encoder}
OBJECTIVES: dict[str, type[Objective]] = {
    "cross_entropy": CrossEntropy,
    "diffusion_lm": DiffusionLM,
    "elbo": Elbo,
    "masked": Masked,
    "autoregressive": Autoregressive,
}


@dataclass
class Embedding:
    """The table. dim: width of a row (None: as `calibrate` recommends for so many ids).

    norm: sphere and layernorm hold every row's length at radius (None: the root of dim), free learns it.
    """

    dim: int | None = None
    norm: Literal["sphere", "layernorm", "free"] = "sphere"
    radius: float | None = None

    def __post_init__(self) -> None:
        if self.dim is not None:
            at_least("model.embedding.dim", self.dim, 1)

    def width(self, count: int) -> int:
        return self.dim or recommended_width(count)


@dataclass
class Warp:
    """Where training looks along the noise. kind: of the schedule. gumbel = gamma = -log-SNR follows a Gumbel law;
    square_root, cosine = those of the papers, offset (None: 1e-4, .008) from their clean end.

    location: the law's middle (None: at SNR*, from the entropy of the data). scale: in nats. follow: the share of the
    updates after which the warp follows the loss of each level instead (None: never), follow_as: as any rising curve,
    or as the law of this kind that is nearest. The objective elbo learns its own. normalised: the square root begins
    without noise.
    """

    kind: Literal["gumbel", "square_root", "cosine"] = "gumbel"
    location: float | None = None
    scale: float = 0.85
    follow: float | None = None
    follow_as: Literal["monotone", "gumbel"] = "monotone"
    offset: float | None = None
    normalised: bool = True

    def __post_init__(self) -> None:
        if self.follow is not None and self.kind != "gumbel":
            raise ValueError(
                f"model.warp.follow is {self.follow} and model.warp.kind {self.kind}, which stays as it is; leave"
                " follow out, or take kind gumbel."
            )
        if self.kind == "cosine" and not self.normalised:
            raise ValueError("model.warp.kind is cosine and normalised false; square_root alone has two forms.")

    def schedule(self, entropy: float, radius_squared: float) -> Schedule:
        """For data of that entropy, and rows of that length."""
        if self.kind == "gumbel":
            return build(Warped, cdf=self.built(entropy, radius_squared))
        return preserving(self.kind, self.offset, self.normalised)

    def built(self, entropy: float, radius_squared: float) -> Gumbel | Relay:
        """The law as a warp."""
        middle = resolution.location(entropy, radius_squared) if self.location is None else self.location
        ends = dict(zip(("log_snr_min", "log_snr_max"), resolution.span(radius_squared)))
        law = {"location": middle, "scale": self.scale, **ends}
        if self.follow is None:
            return build(Gumbel, **law)
        second = build(Fitted, **law) if self.follow_as == "gumbel" else build(Monotone, **ends)
        return build(Relay, first=build(Gumbel, **law), second=second)


@dataclass
class SelfConditioning:
    """Feeding a belief back (Chen et al. 2022). probability: share of a batch's samples that hear one in training."""

    probability: float = 0.5


class Drawn(NamedTuple):
    """ids: [n, L]; score: [n, L] log-probability of each."""

    ids: Tensor
    score: Tensor

    def but(self, where: Tensor, ids: Tensor | int) -> Drawn:
        """The same with ids that were not drawn, where bool [n, L]."""
        return Drawn(self.ids.masked_fill(where, 0) + where * ids, self.score * ~where)


class TextDiffusion(LightningModule):
    """The line `text`. objective: what is learnt, by name."""

    lora_targets = r"^blocks\.\d+\.(attention\.[qkvo]|mlp\.(gate|up|down)|linear[12])$"

    def __init__(
        self,
        objective: Literal["cross_entropy", "diffusion_lm", "elbo", "masked", "autoregressive"] = "cross_entropy",
        embedding: Embedding = Embedding(),  # noqa: B008 (the parser copies it)
        network: Trunk = Trunk(),  # noqa: B008
        warp: Warp = Warp(),  # noqa: B008
        self_conditioning: SelfConditioning = SelfConditioning(),  # noqa: B008
        likelihood: Likelihood = Likelihood(),  # noqa: B008
        rounding: Rounding = Rounding(),  # noqa: B008
        compat: Compat = Compat(),  # noqa: B008
    ):
        super().__init__()
        self.objective: Objective = OBJECTIVES[objective]()
        self.embedding, self.trunk, self.warp, self.self_conditioning = embedding, network, warp, self_conditioning
        self.optim_recipe, self.randomness, self.sampling = optim.Recipe(), Randomness(), Sampling()
        self.network: Network = None  # type: ignore[assignment]  # built by configure_model
        self.evaluation: Evaluation | None = None
        self.likelihood, self.rounding, self.compat = likelihood, rounding, compat
        self.heard = list[tuple[Tensor, Tensor]]()

    # --- what the network is built for

    def adopt(self, data: TextData, checkpoint: Mapping[str, Any] | None) -> None:
        """Vocabulary, length and entropy come from the data; real text is read with the vocabulary of a checkpoint."""
        data.adopt(checkpoint)
        self.data = data

    def extend(self, data: TextData, checkpoint: Mapping[str, Any]) -> None:
        """Training goes on from a checkpoint, with its vocabulary, on text of its own."""
        data.adopt(checkpoint, base=True)
        self.data = data

    def configure_model(self) -> None:
        if self.network is not None:
            return
        table, count = self.embedding, len(self.data.vocabulary)
        size = {"count": count, "width": table.width(count), "norm": table.norm, "radius": table.radius}
        rows = self.compat.table(self.data.length, **size)
        self.process, special = self.objective.parts(self, rows)
        made_by, sizes = TRUNKS[self.trunk.kind], asdict(self.trunk)
        takes = inspect.signature(made_by).parameters
        own = {name: value for name, value in sizes.items() if name in takes}
        self.network = build(made_by, rows=rows, length=self.data.length, **{**own, **special})

    @property
    def log_snr_star(self) -> float:
        """Where words are decided: SNR* of the data's entropy."""
        return -resolution.location(self.data.entropy, float(self.network.rows.radius_squared))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(self.data.told())

    def configure_callbacks(self) -> list[Callback]:
        return [FromTheStart(), watching.CollapseWatch()]

    def configure_optimizers(self) -> Any:
        return optim.build(self, self.optim_recipe, self.trainer.max_steps)

    # --- what it costs

    def flops(self, batch: Sentences) -> int:
        """Of the forward pass that has a backward."""
        return self.network.flops(len(batch.ids), batch.num_units)

    def extra_flops(self, batch: Sentences) -> int:
        """Of the pass without a backward that gives the first samples their belief."""
        heard = self.believed(len(batch.ids))
        return self.network.flops(heard, batch.num_units * heard // len(batch.ids))

    # --- training

    def training_step(self, batch: Sentences, index: int) -> dict[str, Any]:
        self.network.ramp.fill_(min(1.0, (batch.share.update + 1) / self.trunk.bias_ramp_updates))
        t = self.randomness.times(batch.share, device=self.device)
        rng = self.randomness.rng(batch.share, self.global_rank, self.device)
        losses = self.objective.loss(self, batch, t, rng)
        self.follow(losses, batch)
        return {"loss": share(losses.total, batch.global_units, batch.shards), "logs": losses.logs()}

    def follow(self, losses: Losses, batch: Sentences) -> None:
        """A warp that follows hears the losses of an update as one, however many micro-batches it has."""
        warp = self.network.warp
        if not isinstance(warp, Relay) or losses.t is None:
            return
        share = batch.share
        self.heard = [*(self.heard if share.micro else []), (warp.log_snr(losses.t), losses.ce.detach())]
        if len(self.heard) < share.shards // self.trainer.world_size:
            return
        warp.calibrate(*map(torch.cat, zip(*self.heard)))
        if share.update + 1 >= self.warp.follow * self.trainer.max_steps:
            warp.hand_over()

    def believed(self, samples: int) -> int:
        """How many samples of a batch hear a belief: the first ones, batches are in no order."""
        return round(self.self_conditioning.probability * samples) if self.network.belief is not None else 0

    @torch.no_grad()
    def earlier_belief(self, x_t: Tensor, t: Tensor, valid: Tensor | None) -> Tensor | None:
        """What the network believes of the first samples when it has heard nothing, [b, L, E]."""
        n = self.believed(len(x_t))
        if not n:
            return None
        out = self.network(x_t[:n], t[:n], None, None if valid is None else valid[:n])
        return self.network.believe(out)

    # --- evaluation

    def validation_step(self, batch: Sentences, index: int) -> dict[str, Any]:
        """Cross-entropy on fixed paths, a few short walks, and with the first batch the state of the whole."""
        return {"logs": watching.validated(self, batch, self.on_fixed_paths(batch), index)}

    def on_fixed_paths(self, batch: Sentences) -> Losses:
        """The losses of held-out sentences, the same whenever they are asked for."""
        paths = [self.randomness.sample(("noise", seed), self.device) for seed in batch.share.index.tolist()]
        return self.objective.loss(self, batch, self.randomness.times(batch.share, device=self.device), paths)

    def on_test_start(self) -> None:
        source, chosen = self.data.source, self.data.measured(self.likelihood.sentences)
        self.evaluation = Evaluation(
            self.data, NLLBound(self.likelihood, source.tokens_per_word, chosen, source.counted)
        )

    def test_step(self, batch: Sentences, index: int) -> None:
        """Cross-entropy and likelihood of held-out rows; a sentence drawn for the first `held_out` of their numbers."""
        assert self.evaluation is not None
        self.evaluation.bound.add(self, batch)
        self.evaluation.losses += self.on_fixed_paths(batch).ce.tolist()
        if seeds := [seed for seed in batch.share.index.tolist() if seed < self.data.held_out]:
            moments = Moments(self) if seeds[0] == 0 else None
            drawn = self.walked(seeds, through=moments and moments.through)
            self.evaluation.add(self.words(drawn.ids), moments)

    def on_test_epoch_end(self) -> None:
        """Every rank measures the same levels, as they all hold parts of a network that is cut."""
        assert self.evaluation is not None
        self.evaluation.levels = levels.measured(self)
        self.evaluation.gather(self.trainer)

    def results(self, folder: Path) -> Results:
        """Metrics beside those of the true, the unigram and the bigram sampler."""
        assert self.evaluation is not None
        found = self.evaluation.results(folder, self.told(), self.network.rows)
        return replace(found, facts=found.facts | self.compat.facts())

    # --- sentences

    @torch.no_grad()
    def walked(
        self, seeds: list[int], options: Sampling | None = None, through: Callable[[Walk], Walk] | None = None
    ) -> Drawn:
        """One row per seed, the same in any company. through: gives the walk that is walked for the one it gets."""
        rng = [self.randomness.sample(seed, self.device) for seed in seeds]
        walk = self.objective.walk(self, options or self.sampling, len(seeds), rng)
        walk = through(walk) if through else walk
        valid, given = self.data.valid(seeds), self.data.given(seeds)
        if given is not None:
            ids, known = (part.to(self.device) for part in given)
            walk = Given(known, self.network.rows(ids)).through(walk)
        walk.speaker.valid = None if valid is None else valid.to(self.device)
        sample(walk.denoise, walk.step, walk.x, walk.grid)
        drawn = Drawn(*(part.cpu() for part in walk.speaker.words()))
        drawn = drawn if valid is None else drawn.but(~valid, PAD)
        return drawn if given is None else drawn.but(given[1], given[0])

    def told(self) -> Sampling:
        """How sentences are drawn, as the objective takes the options."""
        return self.objective.told(self.sampling, self.network.length)

    def words(self, ids: Tensor) -> list[list[str]]:
        return [self.data.vocabulary.words(row) for row in ids.tolist()]

    def sample(self, seeds: list[int]) -> list[Spoken]:
        size = self.data.at_once
        drawn = [self.walked(seeds[first : first + size]) for first in range(0, len(seeds), size)]
        rows = [(text, each.ids[n], each.score[n]) for each in drawn for n, text in enumerate(self.words(each.ids))]
        return [Spoken(text=self.spoken(text), data={"ids": ids}, score=score) for text, ids, score in rows]

    def spoken(self, row: Sequence[str]) -> str:
        """The words of a row as text."""
        return spoken(row, self.compat.joined(self.data.source.joined))

    def show(self, samples: list[Spoken], folder: Path) -> list[Path]:
        """The sentences printed; samples.jsonl: ids, text, log-probability of every token, how they were drawn."""
        print(*(f"{seed:<12}{sample.text}" for seed, sample in enumerate(samples, self.sampling.first)), sep="\n")
        return [write_lines(samples, self.told(), self.network, folder / "samples.jsonl")]

    def draw(self, folder: Path, update: int) -> list[Path]:
        """Sentences of the present weights, and one walk."""
        return draw(self, folder)
