"""Categorical diffusion over answer grids, conditioned on a task row and the question: the LightningModule.

The training step reads like the algorithm box: draw a path, look at it at time t, believe, compare. What follows
training has its own files: `walking.py` (from the prior to an answer), `solving.py` (views, sizes, votes),
`evaluate.py` (scores and the report) and `pictures.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule
from torch import Tensor
from torch.nn import functional as F

from projects.arc import adapters, cost
from projects.arc.compat import Compat, Earlier, Own
from projects.arc.data import ArcData
from projects.arc.demos import Conditioning
from projects.arc.evaluate import Evaluation
from projects.arc.heldout import SolveHeld
from projects.arc.network import NUM_COLOURS, Frame, GridDenoiser, Prefix, Question
from projects.arc.objective import LossOptions, Objective, UnrollOptions, per_example
from projects.arc.open_prefix import OpenDenoiser
from projects.arc.packing import Cells, commonest
from projects.arc.pairs import Grids, Query
from projects.arc.pictures import draw_denoising, draw_noising, sample_of
from projects.arc.sampling import WalkOptions
from projects.arc.shapes import Shapes
from projects.arc.size import SizeOptions
from projects.arc.solving import Answered, EvalOptions, OneWalk, Solver
from projects.arc.walking import Denoiser, walk
from shared.objectives import by_level, segment_mean
from shared.processes import Absorbing, Hybrid, Uniform, cosine, squared, with_floor
from shared.processes.categorical import Categorical, Redraw
from shared.processes.draws import PerSegment
from shared.training import optim
from shared.training.errors import Mistake
from shared.training.lora import Rows
from shared.training.pretrained import build
from shared.training.randomness import Randomness, aside, key
from shared.training.report import Results
from shared.training.samples import Sample, SamplingOptions

COSINE_OFFSET = 0.008  # Nichol & Dhariwal 2021
VALIDATION_STEPS = 8


@dataclass
class SelfCondition:
    """Feeding an earlier belief back (Chen et al. 2023).

    at: same = the belief at the same (x_t, t); earlier = at t' drawn from (t, 1] on the same path, what the walk feeds.
    share: of the examples of every batch; 0 never.
    """

    at: Literal["same", "earlier"] = "earlier"
    share: float = 0.5


@dataclass
class Noise:
    """Survival falls as a squared cosine. floor: what is left of it at t = 1.

    kind: uniform = any of the ten colours; absorbing = a mask, id 10; hybrid = the mask, or with uniform_share any
    colour. joint: markov walks back by the exact posterior, coupled keeps the path's noise.
    """

    floor: float = 0.0
    joint: Literal["markov", "coupled"] = "markov"
    kind: Literal["uniform", "hybrid", "absorbing"] = "uniform"
    uniform_share: float = 0.2

    def process(self) -> Categorical:
        schedule = with_floor(squared(cosine(COSINE_OFFSET)), self.floor)
        common: dict[str, Any] = {"num_classes": NUM_COLOURS, "schedule": schedule, "joint": self.joint}
        if self.kind == "uniform":
            return build(Uniform, **common)
        if self.kind == "absorbing":
            return build(Absorbing, mask_id=NUM_COLOURS, **common)
        return build(Hybrid, mask_id=NUM_COLOURS, uniform_share=self.uniform_share, **common)


class ArcModule(LightningModule):
    """The line `arc`. Sizes are `GridDenoiser`'s; rows, largest side and colour views come from the data.

    condition_dropout: share of examples whose input colours are withheld. size_weight: of the size head's loss. task:
    what tells the network its task, a row learnt for it, its demos, or both; demo_cells, demo_order: how many cells of
    demos at most, and whether their order counts (see `demos.Conditioning`). deep_supervision: weight of the same
    cross-entropy read off the intermediate layers. prefix: sealed = the question is read once, without the answer; open
    = anew in every pass, together with it. compat: the earlier system in place of this one.
    """

    lora_targets = r"^blocks\.\d+\.(attention\.[qkvo]|mlp\.(gate|up|down))$|^size$|^size_head\.layers\.\d$"

    def __init__(
        self,
        width: int = 384,
        depth: int = 4,
        heads: int = 6,
        task_tokens: int = 4,
        mlp_multiple: int = 64,
        dropout: float = 0.0,
        embedding_std: float = 0.3,
        condition_dropout: float = 0.05,
        size_weight: float = 0.1,
        task: Literal["rows", "demos", "both"] = "rows",
        demo_cells: int = 6000,
        demo_order: bool = False,
        self_condition: SelfCondition = SelfCondition(),  # noqa: B008 (the parser copies it)
        noise: Noise = Noise(),  # noqa: B008
        loss: LossOptions = LossOptions(),  # noqa: B008
        unroll: UnrollOptions = UnrollOptions(),  # noqa: B008
        deep_supervision: float = 0.0,
        prefix: Literal["sealed", "open"] = "sealed",
        eval: EvalOptions = EvalOptions(),  # noqa: B008
        size: SizeOptions = SizeOptions(),  # noqa: B008
        compat: Compat | None = None,
    ):
        super().__init__()
        self.sizes = {
            "width": width,
            "depth": depth,
            "heads": heads,
            "task_tokens": task_tokens,
            "mlp_multiple": mlp_multiple,
            "dropout": dropout,
            "embedding_std": embedding_std,
            "mask": noise.kind != "uniform",
        }
        self.condition_dropout, self.size_weight, self.self_condition = condition_dropout, size_weight, self_condition
        if eval.guidance != 1.0 and not condition_dropout:
            raise ValueError("eval.guidance needs a network that met withheld inputs; set condition_dropout above 0")
        self.eval_options, self.size_options = eval, size
        self.conditioning = Conditioning(task, demo_cells, demo_order)
        self.process, self.recipe = noise.process(), Earlier(compat) if compat else Own()
        self.objective = Objective(self.process, loss, unroll, deep_supervision)
        if compat and (self.objective.refines or noise.kind != "uniform"):
            raise ValueError("model.compat learns uniform noise in one pass; drop unroll, deep_supervision, noise.kind")
        if compat and prefix == "open":
            raise ValueError("model.compat reads question and answer as one sequence anyway; drop model.prefix=open")
        self.kind, self.shapes = (OpenDenoiser if prefix == "open" else GridDenoiser), Shapes()
        self.optim_recipe, self.randomness, self.sampling = optim.Recipe(), Randomness(), SamplingOptions()
        self.weights_from = ""  # path, once a checkpoint is loaded
        self.network: GridDenoiser = None  # type: ignore[assignment]  # built by configure_model
        self.evaluation: Evaluation | None = None
        self.per_task: dict[str, str] | None = None  # each task has adapters of its own: {base: sha256}

    # --- what the network is built for

    def adopt(self, data: ArcData, checkpoint: Mapping[str, Any] | None, extend: bool = False) -> None:
        """Take from the checkpoint that will be loaded, or from the data, which task has which row, and the side."""
        data.conditioning = self.conditioning
        self.recipe.prepare(data)
        if said := (checkpoint or {}).get("tasks"):
            data.built_for(said["side"], tuple(said["ids"]), extend)
            data.require_unseen(said.get("pool", ()))
        self.data, self.augment = data, data.augment
        data.queries()  # an evaluated task without a row is refused before anything starts

    def extend(self, data: ArcData, checkpoint: Mapping[str, Any]) -> None:
        """As `adopt`, of a checkpoint that will be adapted: tasks it does not know get rows after its own."""
        self.adopt(data, checkpoint, extend=True)

    @property
    def task_ids(self) -> tuple[str, ...]:
        """In the order of the network's rows."""
        return self.data.rows or self.data.task_ids

    @property
    def lora_rows(self) -> list[Rows]:
        """An adapted module learns the rows of the tasks it trains on, known ones too."""
        if not self.conditioning.has_rows:
            return []
        rows = self.data.row_of(self.data.task_ids)
        return [Rows("tasks", [rows[id] for id in self.data.task_ids])]

    def configure_model(self) -> None:
        if self.network is None and isinstance(self.recipe, Earlier):
            self.network = self.recipe.network(self)
        elif self.network is None:
            colours = "permute" if self.augment.colour == "permute" else "cycle"
            told = self.conditioning
            rows, side = len(self.task_ids) if told.has_rows else 0, self.data.side
            sizes = {**self.sizes, "demos": True} if told.has_demos else self.sizes
            self.network = build(self.kind, rows=rows, side=side, colours=colours, **sizes)
            self.network.withheld.requires_grad_(self.condition_dropout > 0)  # what a step never reads does not learn:
            for part in (self.network.belief.weight, self.network.belief_gate):  # ranks wait for every gradient
                part.requires_grad_(self.self_condition.share > 0)

    @property
    def prefer(self) -> str:
        """Which checkpoint of a run is evaluated."""
        return self.eval_options.prefer

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.per_task = checkpoint.get("per_task")
        if not self.eval_options.ema and "current_model_state" in checkpoint:
            checkpoint["state_dict"] = checkpoint["current_model_state"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tasks"] = {"side": self.data.side, "ids": list(self.task_ids), **self.data.fingerprint()}
        if self.per_task:
            checkpoint["per_task"] = self.per_task

    def configure_callbacks(self) -> list[Callback]:
        return [SolveHeld(self.eval_options.during_fit)]

    def configure_optimizers(self) -> Any:
        return optim.build(self, self.optim_recipe, self.trainer.max_steps)

    # --- what it costs

    def flops(self, batch: Grids) -> int:
        """Of the forward passes of a training step that have a backward: the question once, the answer once."""
        asked, answers = batch.question.cells.lengths, batch.answer.lengths
        believed = int(answers[: self.recipe.believed(self, batch)].sum())
        first = cost.reading(self.network, asked) + cost.denoising(self.network, asked, answers, believed)
        later = self.objective.unroll.steps - 1  # states of an unrolled walk; each sees the belief of the one before
        return first + later * cost.denoising(self.network, asked, answers, int(answers.sum()))

    def extra_flops(self, batch: Grids) -> int:
        """Of the pass without a backward that gives the first examples their earlier belief."""
        count = self.recipe.believed(self, batch)
        asked, answers = batch.question.cells.lengths[:count], batch.answer.lengths[:count]
        return cost.denoising(self.network, asked, answers) if count else 0

    # --- training

    def training_step(self, batch: Grids, index: int) -> dict[str, Any]:
        x0, rng = batch.answer, self.path(batch)
        t = self.recipe.times(self, batch, rng)  # [B]
        noise = self.process.draw(x0.colour, rng)
        prefix = self.network.prefix(self.withheld(batch.question, rng))
        frame = self.network.frame(prefix, x0)
        if batch.question.quantum > 1:
            self.shapes.meet(frame.layout)
        belief = self.recipe.heard(self, batch, t, self.earlier_belief(prefix, batch, noise, t, rng))
        believe = partial(self.believe, prefix, frame, x0)
        loss, logits = self.objective.along(believe, x0, self.corrupted(x0, noise, t).colour, t, belief, rng)  # [B]
        size_loss = F.cross_entropy(prefix.size_logits.float(), batch.size, reduction="none")  # [B]
        total = self.recipe.total(self, batch, loss, self.size_weight * size_loss)
        return {"loss": total, "logs": self.logs(batch, logits.detach(), prefix.size_logits, size_loss, t)}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:
        return batch.to(device) if isinstance(batch, Grids) else batch  # queries stay on the host

    def path(self, batch: Grids) -> torch.Generator:
        """The randomness of this micro-batch."""
        given = batch.share
        return self.randomness.path(self.global_rank, given.update, given.micro, batch.answer.row.device)

    def withheld(self, question: Question, rng: torch.Generator) -> Question:
        """The question, the input's colours of some examples withheld."""
        if not self.condition_dropout:
            return question
        coin = torch.rand(question.task.shape, generator=rng, device=question.task.device)
        return replace(question, hidden=coin < self.condition_dropout)

    def corrupted(self, x0: Cells, noise: Redraw, t: Tensor) -> Cells:
        """x_t on the path of `noise`; t [B] per example."""
        return replace(x0, colour=self.process.corrupt(x0.colour, noise, t[x0.segment]))

    def earlier_belief(
        self, prefix: Prefix, batch: Grids, noise: Redraw, t: Tensor, rng: torch.Generator
    ) -> Tensor | None:
        """What the network believed a moment earlier on the path, of the first examples (batches are shuffled)."""
        count = self.recipe.believed(self, batch)
        if not count:
            return None
        some, before = batch.answer.first(count), t[:count]
        if self.self_condition.at == "earlier":
            before = before + (1 - before) * torch.rand(before.shape, generator=rng, device=t.device)
        n, given = len(some.colour), batch.share
        own = key("belief", self.randomness.seed, self.global_rank, given.update, given.micro)
        with torch.no_grad(), aside(own, t.device):  # dropout of the pass that learns stays what it is
            seen = prefix.first(count)
            x_t = self.corrupted(some, Redraw(noise.u[:n], noise.r[:n]), before)
            return self.network(seen, self.network.frame(seen, some), x_t, before).float().softmax(-1)

    def believe(self, prefix: Prefix, frame: Frame, places: Cells, x: Tensor, t: Tensor, *rest: Any) -> Tensor:
        """The network's belief, colours x [M] lying in the places of an answer."""
        return self.network(prefix, frame, replace(places, colour=x), t, *rest)

    def logs(self, batch: Grids, logits: Tensor, size_logits: Tensor, size_loss: Tensor, t: Tensor) -> dict[str, Any]:
        """Of the first state, and cross-entropy alone: comparable whatever is minimised."""
        answer = batch.answer
        loss = per_example(logits, answer)
        right = segment_mean((logits.argmax(-1) == answer.colour).float(), answer.segment, len(t))
        by_noise = by_level(loss, t)
        levels = {f"ce_{name}_noise": value for name, value in by_noise.items()}
        accuracies = {f"cell_acc_{name}_noise": value for name, value in by_level(right, t).items()}
        counts = {f"count_{name}_noise": count.float() * batch.shards for name, (_, count) in by_noise.items()}
        return {
            "ce": loss.mean(),
            "cell_acc": right.mean(),
            "grid_exact": (right == 1).float().mean(),
            "size_ce": size_loss.detach().mean(),
            "size_acc": (size_logits.argmax(-1) == batch.size).float().mean(),
            "majority_floor": commonest(answer, NUM_COLOURS).mean(),
            **levels,
            **accuracies,
            **counts,  # examples of an update
        }

    # --- held-out demo pairs

    def validation_step(self, batch: Grids, index: int) -> dict[str, Any]:
        """Pairs that no training saw: cross-entropy at evenly spread times, and whole grids walked in one view."""
        x0, device = batch.answer, batch.answer.row.device
        generators = [self.randomness.sample(int(i), device) for i in batch.share.index]
        t = (torch.arange(x0.count, device=device) + 0.5) / x0.count
        prefix = self.network.prefix(batch.question)
        rng = torch.Generator(device).manual_seed(0)
        x_t = self.corrupted(x0, self.process.draw(x0.colour, rng), t)
        loss = per_example(self.network(prefix, self.network.frame(prefix, x0), x_t, t), x0)
        streams = PerSegment(generators, x0.lengths.tolist())
        said, _ = walk(Denoiser(self.network, prefix, x0), x0, self.process, WalkOptions(VALIDATION_STEPS), streams)
        right = segment_mean((said == x0.colour).float(), x0.segment, x0.count)
        values = {
            "ce": loss,
            "cell_acc": right,
            "grid_exact@1": (right == 1).float(),
            "size_acc": (prefix.size_logits.argmax(-1) == batch.size).float(),
        }
        count = torch.tensor(float(x0.count), device=device)
        return {"logs": {name: (value.sum(), count) for name, value in values.items()}}

    # --- hidden test grids

    def solver(self, options: EvalOptions | None = None, size: SizeOptions | None = None) -> Solver:
        """What answers queries with the present weights."""
        colours = self.augment.colour
        return Solver(
            self.network, self.process, options or self.eval_options, size or self.size_options, self.randomness,
            colours, self.augment.d4, self.conditioning,
        )  # fmt: skip

    def on_test_start(self) -> None:
        self.evaluation = Evaluation(self.trainer.datamodule, self.eval_options, self.size_options)

    def test_step(self, batch: list[Query], index: int) -> None:
        assert self.evaluation is not None
        wanted = self.trainer.datamodule.evaluated.ids[: self.eval_options.limit]
        queries = [query for query in batch if query.task.id in wanted]
        self.evaluation.add(self.answered(queries))

    def answered(self, queries: list[Query]) -> list[Answered]:
        """By the present weights, or by each task's own adapters, which lie beside the checkpoint."""
        if self.per_task is None:
            return self.solver().all(queries, say=print)
        folder = Path(self.weights_from).parents[1] / adapters.FOLDER
        return adapters.answered(self, folder, self.per_task["base"], queries)

    def on_test_epoch_end(self) -> None:
        assert self.evaluation is not None
        self.evaluation.gather()

    def on_predict_start(self) -> None:
        self.on_test_start()

    def predict_step(self, batch: list[Query], index: int) -> None:
        self.test_step(batch, index)

    def on_predict_epoch_end(self) -> None:
        """A submission, and no look at any answer."""
        assert self.evaluation is not None
        self.evaluation.gather()
        if self.trainer.is_global_zero:
            run = self.trainer.logger.run
            files = self.evaluation.write_answers(run.folder)
            run.say(f"answered {len(self.evaluation.answered)} test grids, not scored: {files[0]}")

    def results(self, folder: Path) -> Results:
        """Score, submission and gallery of the last test, written into the run folder."""
        assert self.evaluation is not None
        return self.evaluation.results(folder, self.solver())

    # --- samples and pictures

    def sample(self, seeds: list[int]) -> list[Sample]:
        """Answers to the evaluated queries in turn, one walk in the identity view each; no answer is looked up."""
        if self.per_task is not None:
            raise Mistake("Every task of this run has adapters of its own: make evaluate wears them, sample cannot.")
        asked = self.data.queries()
        queries = [asked[seed % len(asked)] for seed in seeds]
        options = replace(self.eval_options, num_steps=self.sampling.steps)
        parts = self.network, self.process, options, self.size_options, self.randomness
        solver = OneWalk(*parts, conditioning=self.conditioning)
        return [sample_of(query, answer) for query, answer in zip(queries, solver.looked_at(queries, seeds))]

    def draw(self, folder: Path, update: int) -> list[Path]:
        """How answers are corrupted, and how the present weights walk back."""
        return [draw_noising(self, folder), draw_denoising(self, folder)]
