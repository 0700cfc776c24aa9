"""`make finetune PROJECT=arc`: all tasks together, or test-time training of each task on its own (Akyurek et al. 2024).

`per_task` starts from the base for every task, learns its demos in all views, and keeps what was learnt in a file; a
run that was stopped goes on with the first task that has none. Every task is an ordinary fit of Lightning's. Answers
are looked at when all is learnt (`evaluate.score`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from packages.arc import score as scoring
from projects.arc import adapters
from projects.arc.evaluate import Evaluation, score
from projects.arc.solving import Answered
from shared.training import adapting, checkpoints, layout, pretrained, randomness
from shared.training.averaging import Averaging
from shared.training.callbacks import Checkpoints
from shared.training.errors import Mistake
from shared.training.gradients import Gradients
from shared.training.interrupts import Interrupts
from shared.training.loggers import CsvLogger
from shared.training.logs import WriteLogs, duration
from shared.training.runs import Run, write_json

if TYPE_CHECKING:
    from shared.training.cli import PalimpsestCLI

EXACT = "val/grid_exact@1"  # of the demo held out: a task that answers it is done


@dataclass
class FinetuneOptions:
    """Config group `finetune`.

    tasks_mode: joint = all tasks in one fit of trainer.max_steps updates; per_task = one after another, each from the
    base. updates: of each task. rows: also learn the rows alone, for the table.
    """

    tasks_mode: Literal["joint", "per_task"] = "joint"
    updates: int = 256
    rows: bool = False


def finetune(cli: PalimpsestCLI) -> None:
    """adapt a checkpoint to tasks, jointly or each on its own: CKPT=<run>"""
    if cli.options.finetune.tasks_mode == "joint":
        return cli.fit()
    if cli.options.finetune.rows and not cli.model.conditioning.has_rows:
        raise Mistake("finetune.rows learns rows, and demos tell this network its tasks; leave finetune.rows at false.")
    if cli.plan.world > 1:
        raise Mistake(f"per_task learns on one device, this run has {cli.plan.world}. Set trainer.devices to 1.")
    run = cli._open_run()
    trainer, adapted = cli._trainer(run), PerTask(cli, run)
    run.say(
        f"per task    may be stopped; to go on with the next task: --run.resume true --run.name {run.name} (RESUME=1)"
    )
    kinds = ["rows", adapters.FOLDER] if cli.options.finetune.rows else [adapters.FOLDER]
    for kind in kinds:
        adapted.all(kind)
    adapted.keep(trainer)
    trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    adapted.tell(kinds)
    run.note(finished={"update": cli.plan.as_dict()["updates"], "seconds": time.monotonic() - adapted.began})
    return cli._farewell(run)


class Quiet(Run):
    """A run in a run: its lines stay in its own train.log."""

    def say(self, line: str, *, console: bool = True) -> None:
        super().say(line, console=False)


class PerTask:
    """The tasks of a run, one after another."""

    def __init__(self, cli: PalimpsestCLI, run: Run):
        self.cli, self.run, self.module, self.data = cli, run, cli.model, cli.datamodule
        assert cli.checkpoint is not None
        self.base = checkpoints.fingerprint(checkpoints.plain(checkpoints.read(cli.checkpoint)["state_dict"]))
        self.start = {name: value.clone() for name, value in adapters.learning(self.module.network).items()}
        self.began = time.monotonic()
        self.module.per_task = {"base": self.base}
        self.module.weights_from = str(run.checkpoints / "final.ckpt")

    def all(self, kind: str) -> None:
        """Every task that has no whole file yet. kind: `rows`, or what the run is asked to tune."""
        ids = self.data.evaluated.ids
        left = [id for id in ids if adapters.read(self._file(kind, id), self.base) is None]
        began = time.monotonic()
        for done, id in enumerate(left):
            facts = self.one(kind, id)
            rest = (time.monotonic() - began) / (done + 1) * (len(left) - done - 1)
            said = "  ".join(f"{name} {value:.4g}" for name, value in facts.items())
            self.run.say(f"{kind:<11} {ids.index(id) + 1}/{len(ids)} {id}  {said}  eta {duration(rest)}")

    def one(self, kind: str, id: str) -> dict[str, float]:
        """Learn one task from the base, and write its file."""
        began, network = time.monotonic(), self.module.network
        self._restart()
        frozen = [p for name, p in network.named_parameters() if p.requires_grad and "tasks." not in name]
        for parameter in frozen:
            parameter.requires_grad_(kind != "rows")
        averaging, trainer = self._fit(kind, id)
        with averaging.swapped(self.module):
            tensors = adapters.learnt(self.module, id)
        for parameter in frozen:
            parameter.requires_grad_(True)
        self._restart()
        held = {"held out": float(trainer.callback_metrics[EXACT])} if EXACT in trainer.callback_metrics else {}
        facts = {"updates": float(trainer.global_step), **held, "seconds": time.monotonic() - began}
        adapters.write(self._file(kind, id), tensors, self.base, facts)
        return facts

    def _fit(self, kind: str, id: str) -> tuple[Averaging, Trainer]:
        cli, data, options = self.cli, self.data.only(id), self.cli.options
        quiet = Quiet(self.run.folder / "tasks" / id / kind, self.run.project, self.run.stage, self.run.size, id)
        quiet.folder.mkdir(parents=True, exist_ok=True)
        logs, averaging = WriteLogs(quiet, options.logging, Interrupts()), Averaging(options.ema)
        around: list[Callback] = [averaging, Gradients(quiet, logs), logs]
        if data.pools.held:
            around.append(EarlyStopping(EXACT, mode="max", stopping_threshold=0.99, patience=options.finetune.updates))
        matrices = kind != "rows" and options.lora.tune != "rows"  # muon is for these
        self.module.optim_recipe = options.optim if matrices else replace(options.optim, kind="adamw")
        randomness.seed_rank(cli.config.seed_everything, 0)
        trainer = cli.instantiate_trainer(
            callbacks=around,
            logger=CsvLogger(quiet),
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            strategy="auto",
            **cli.plan.trainer_settings() | ({} if data.pools.held else {"limit_val_batches": 0}),
            max_steps=options.finetune.updates,
        )
        trainer.fit(self.module, datamodule=data)
        return averaging, trainer

    @torch.no_grad()
    def _restart(self) -> None:
        for name, parameter in self.module.network.named_parameters():
            if name in self.start:
                parameter.copy_(self.start[name])

    def _file(self, kind: str, id: str) -> Path:
        return self.run.folder / kind / f"{id}.safetensors"

    # --- what comes of it

    def keep(self, trainer: Trainer) -> None:
        """checkpoints/final.ckpt, as far as all tasks share it: with the files beside it, it is evaluated as any."""
        writer = next(callback for callback in trainer.callbacks if isinstance(callback, Checkpoints))  # type: ignore[attr-defined]
        origin = {**writer.origin, **pretrained.origin(self.module), "updates": self.cli.options.finetune.updates}
        origin["incomplete"] = f"{adapters.FOLDER}/ beside it holds what every task learnt"
        content = {"state_dict": adapting.own(self.module, self.module.state_dict()), "palimpsest": origin}
        self.module.on_save_checkpoint(content)
        temporary = self.run.checkpoints / "writing.tmp"
        torch.save(content, temporary)
        checkpoints.settle(temporary, self.run.checkpoints / "final.ckpt")

    def tell(self, kinds: list[str]) -> None:
        """Test grids solved by the base, by rows alone and by all that was learnt, per task."""
        queries, module = self.data.queries(), self.module.eval()
        with torch.no_grad():
            states = {"before": module.solver().all(queries)}
            for kind in kinds:
                states[kind] = adapters.answered(module, self.run.folder / kind, self.base, queries)
        states["after"] = states.pop(adapters.FOLDER)
        solved = {name: self._solved(found) for name, found in states.items()}
        if not any(known for _, known in solved["after"].values()):
            return  # no solutions: there is a submission
        lines = []
        for id in self.data.evaluated.ids:
            content = adapters.read(self._file(adapters.FOLDER, id), self.base)
            seconds = f"{content[1]['seconds']:.0f}" if content else "-"
            lines.append([id, *("/".join(map(str, each[id])) for each in solved.values()), seconds])
        sums = [
            f"{sum(right == known > 0 for right, known in each.values())} of {len(lines)}" for each in solved.values()
        ]
        write_json(self.run.folder / "adapted.json", {"columns": list(solved), "tasks": lines})
        for line in layout.markdown(["task", *solved, "seconds"], [*lines, ["tasks solved", *sums, ""]]):
            self.run.say(line)

    def _solved(self, found: list[Answered]) -> dict[str, tuple[int, int]]:
        """task -> (solved, known) of its test grids."""
        evaluation = Evaluation(self.data, self.module.eval_options, self.module.size_options, found)
        status = scoring.score(evaluation.tasks, score(self.data), evaluation.attempts).status
        return {id: (said.count("solved"), len(said) - said.count("unknown")) for id, said in status.items()}
