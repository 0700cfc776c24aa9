"""Checks on two ranks; the tests that read them are in test_two.py."""

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch._dynamo.backends.debugging import aot_eager
from torch.distributed.device_mesh import init_device_mesh
from torchmetrics import MeanMetric

from shared import objectives
from shared.networks import Block
from shared.processes.schedules import PiecewiseCdf
from shared.training import callbacks, cli, parallel
from shared.training.batches import Phase, StatelessBatches, evaluation_shards
from shared.training.checkpoints import CheckpointOptions
from shared.training.console import quieten
from shared.training.errors import Mistake
from shared.training.template.data import TemplateData
from shared.training.template.module import TemplateModule
from tests.distributed import adapted, arc
from tests.distributed.facts import facts, weights
from tests.distributed.group import check, main
from tests.distributed.project import WIDTH, Setting, train
from tests.distributed.settings import MUON, copy_of_third, fits, halfway, template
from tests.shared.training.loop import Hook

NAN = float("nan")


def rank() -> int:
    return dist.get_rank()


def fit(name: str):
    """A check that makes the fit of that name."""

    def made(folder: Path) -> Any:
        return facts(train(folder, "run", fits()[name]))

    made.__name__ = name
    return check(made)


for each in fits():
    fit(each)


@check
def one_rank_draws_its_own_noise(folder: Path) -> Any:
    return facts(train(folder, "run", Setting(updates=2, mode="rank", dropout=0.5)))["seen"]


@check
def a_branch_on_one_rank(folder: Path) -> Any:
    return facts(train(folder, "run", Setting(updates=3, hide_on=1)))


@check
def phases(folder: Path) -> Any:
    plan = [Phase("short", 2, 4, 0.75), Phase("long", None, 6, 0.25)]
    batches = StatelessBatches(20, seed=1, phases=plan, lengths=list(range(1, 21)), world=2, rank=rank())
    return [batches.shares(u)[0].phase for u in range(50)]


@check
def nothing_for_one_rank_to_validate(folder: Path) -> Any:
    return facts(train(folder, "run", Setting(held_out=1, validate_every=2), raises=Mistake))


@check
def a_metric_of_seven(folder: Path) -> Any:
    values, metric = torch.arange(7.0) ** 2, MeanMetric()
    for i in evaluation_shards(7, rank(), 2):
        metric.update(values[i])
    return metric.compute().item()


def pairs() -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(6, 4, generator=rng) for _ in range(2)]


@check
def contrast(folder: Path) -> Any:
    """Loss and gradients of info_nce on this rank's half."""
    a, b = (x.chunk(2)[rank()].clone().requires_grad_() for x in pairs())
    loss = objectives.info_nce(a, b, temperature=0.5)
    loss.sum().backward()
    return [loss.tolist(), a.grad.tolist(), b.grad.tolist()]


def calibrate(mine: slice) -> list[float]:
    """Where a schedule puts its bins after three updates that saw this part of the losses."""
    cdf = PiecewiseCdf(-5.0, 5.0, bins=8)
    level, loss = torch.linspace(-5, 5, 24), torch.linspace(2, 1, 24) ** 4
    for update in range(3):
        cdf.calibrate(level[mine], loss[mine] + update)
    return cdf.edges.tolist()


@check
def calibrated(folder: Path) -> Any:
    return calibrate(slice(rank(), None, 2))


@check
def counted_by_the_corruption(folder: Path) -> Any:
    return objectives.global_mean(torch.tensor(3.0 + rank()), torch.tensor(1 + 4 * rank())).item()


@check
def files_of_each_rank(folder: Path) -> Any:
    """Each rank is given a folder of its own, so that what it writes can be told apart."""
    mine = folder / f"rank{rank()}"
    setting = Setting(validate_every=2, snapshots=2, log_every=2, checkpoint=CheckpointOptions(2, "val/error"))
    train(mine, "run", setting)
    return sorted(str(file.relative_to(mine)) for file in mine.rglob("*") if file.is_file())


@check
def nobody_names_the_run(folder: Path) -> Any:
    for _ in range(2):
        train(folder, None, Setting(updates=1))  # type: ignore[arg-type]
    return sorted(path.name for path in (folder / "toy/nano").iterdir())


@check
def nan_on_one_rank(folder: Path) -> Any:
    def spoil(module, update, loss):
        return loss * NAN if update == 3 and rank() == 1 else loss

    return facts(train(folder, "run", Setting(spoil=spoil), raises=Mistake))


@check
def a_full_disk(folder: Path) -> Any:
    settle, callbacks.settle = callbacks.settle, _refuse
    try:
        return facts(train(folder, "run", Setting(checkpoint=CheckpointOptions(every=2)), raises=Mistake))
    finally:
        callbacks.settle = settle


def _refuse(*_: Any) -> None:
    raise OSError(28, "No space left on device")


@check
def sigterm_to_rank_0(folder: Path) -> Any:
    def fault(module, update):
        if update == 3 and rank() == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    start = time.perf_counter()
    outcome = train(folder, "run", Setting(updates=50, log_every=5, fault=fault), raises=SystemExit)
    return {**facts(outcome), "seconds": time.perf_counter() - start}


@check
def an_exception_in_validation(folder: Path) -> Any:
    before: list[list[float]] = []

    def fail(module):
        raise RuntimeError("in validation")

    def note(trainer):
        before.append([x for p in trainer.lightning_module.parameters() for x in p.detach().flatten().tolist()])

    setting = Setting(validate_every=3, at_validation=fail, extra=[Hook("on_validation_start", note)])
    outcome = train(folder, "run", setting, raises=RuntimeError)
    return {"before": before[0], "after": weights(outcome), "average": facts(outcome)["average"][0]}


# --- one network over both ranks


def whole_and_cut(folder: Path, **more: Any) -> Any:
    return [facts(train(folder, name, Setting(shard=name == "cut", **more))) for name in ("whole", "cut")]


@check
def cut(folder: Path) -> Any:
    def glance(trainer):
        with torch.no_grad(), parallel.together(trainer.lightning_module):
            trainer.lightning_module.network(torch.zeros(1, WIDTH), torch.zeros(1))

    looking = [Hook("on_train_batch_end", glance)]
    return whole_and_cut(folder, updates=3, clip=0.05, validate_every=2, snapshots=2, extra=looking)


@check
def cut_and_compiled(folder: Path) -> Any:
    """By the path of inductor without its C++, which takes a minute."""
    with patch.object(torch.nn.Module, "compile", _quickly):
        setting = Setting(validate_every=5, shard=True, compile="blocks")
        return {**facts(train(folder, "run", setting)), "graphs": len(compiled)}


compiled: list[Any] = []  # graphs


def _quickly(module: torch.nn.Module, **_: Any) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return aot_eager(graph, inputs)

    module._compiled_call_impl = torch.compile(module._call_impl, backend=backend)


@check
def cut_with_muon(folder: Path) -> Any:
    return whole_and_cut(folder, updates=3, recipe=MUON)


@check
def cut_and_accumulated(folder: Path) -> Any:
    return facts(train(folder, "run", Setting(updates=3, accumulate=4, shard=True)))


@check
def cut_and_resumed(folder: Path) -> Any:
    """Six updates; then from the third again, from a file that a cut network and one that a whole network has left."""
    for name in ("whole", "cut"):
        train(folder, name, halfway(shard=name == "cut"))
    if rank() == 0:
        for name in ("whole", "cut"):
            copy_of_third(folder, name, f"{name}-again")
    dist.barrier()
    return [facts(train(folder, f"{name}-again", halfway(shard=True), resume=True)) for name in ("whole", "cut")]


@check
def cut_and_nan(folder: Path) -> Any:
    def spoil(module, update, loss):
        return loss * NAN if update == 3 and rank() == 1 else loss

    return facts(train(folder, "run", Setting(spoil=spoil, shard=True), raises=Mistake))


class Shared(torch.nn.Module):
    """A weight of a member that is also the network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
        self.own = torch.nn.Linear(2, 2)
        self.own.weight = self.gates[0].weight

    def training_step(self) -> None: ...


@check
def not_cut(folder: Path) -> Any:
    scalar, mesh = torch.nn.Linear(2, 2), init_device_mesh("cpu", (2,))
    scalar.register_parameter("gate", torch.nn.Parameter(torch.ones(())))
    return {"scalar": _refused(scalar, mesh), "shared": _refused(Shared(), mesh)}


def _refused(network: torch.nn.Module, mesh: Any) -> Any:
    try:
        parallel.cut(network, mesh)
    except Mistake as mistake:
        return str(mistake)


# --- whole projects


@check
def template_on_two(folder: Path) -> Any:
    cli.main(TemplateModule, TemplateData, template(folder, 2))


@check
def adapters(folder: Path) -> Any:
    """On whole copies, and on a network that is cut."""
    return [adapted.finetune(folder, "whole", 2), adapted.finetune(folder, "cut", 2, hardware__shard=True)]


@check
def grids(folder: Path) -> Any:
    arc.evaluate(folder, "ranks", 2)
    arc.evaluate(folder, "raw-cut", 2, hardware__shard=True, checkpoint__weights="raw")


@check
def cut_grids(folder: Path) -> Any:
    """arc learns, with pictures and an evaluation on the way, and goes on from its own file and from a whole one's."""
    watched = {"hardware__shard": True, "snapshots__every": 1, "run__test_after_fit": True}
    arc.learn(folder, "cut", 2, **watched)
    if rank() == 0:
        shutil.copytree(folder / "arc/nano/cut", folder / "arc/nano/cut-again")
    dist.barrier()
    arc.learn(folder, "cut-again", 2, hardware__shard=True, trainer__max_steps=4, run__resume=True)


@check
def cut_rows(folder: Path) -> Any:
    return arc.adapt(folder, folder.parent / "grids/arc/nano/alone", "cut", 2, hardware__shard=True)


@check
def entered_by_the_back_door(folder: Path) -> Any:
    with patch.object(Block, "entries", ()):
        try:
            arc.learn(folder, "run", 2, hardware__shard=True)
        except SystemExit as left:
            return str(left.__cause__)


if __name__ == "__main__":
    quieten()
    main()
