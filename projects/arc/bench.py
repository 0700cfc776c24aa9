"""Speed of the line, measured in pairs: `python -m projects.arc.bench packing|compat|views|vote72|...`.

packing: one training step over packed cells against the same step padded to 30 x 30, same weights, same logits. compat:
against a step of the earlier system's network of the same width and depth, its size pass included. views:
augmentation and collation. vote72: one 20 x 20 query under 72 views. Results are printed and kept in runs/arc/bench/.
What needs the whole module (oracle, overfit, fast_dev_run, step, vote) stands in `bench_module.py`.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from packages.arc.tasks import Task, as_grid
from projects.arc import bench_module
from projects.arc.data import ArcData, HoldoutOptions
from projects.arc.dense import DenseDenoiser
from projects.arc.module import Noise
from projects.arc.network import INPUT, OUTPUT, GridDenoiser
from projects.arc.packing import Cells
from projects.arc.pairs import Augment, Grids, PairBatches, Query
from projects.arc.size import SizeOptions
from projects.arc.solving import EvalOptions, Solver
from shared.training.batches import StatelessBatches
from shared.training.randomness import Randomness


def pool(batch_size: int) -> tuple[StatelessBatches, PairBatches, int]:
    """The arc1 training pool at full size: order of batches, their builder, number of tasks."""
    data = ArcData(overlap="drop", augment=Augment(), holdout=HoldoutOptions(share=0.0), batch_size=batch_size)
    examples = data.examples()
    order = StatelessBatches(len(examples), seed=0, batch_size=batch_size)
    return order, PairBatches(examples, data.max_size, data.augment, Randomness()), len(data.task_ids)


def network(rows: int, width: int = 128, depth: int = 2) -> GridDenoiser:
    torch.manual_seed(0)
    made = GridDenoiser(rows, 30, "permute", width, depth, width // 32)
    torch.nn.init.normal_(made.out.weight, std=0.1)
    return made


# --- packing


def packed_logits(net: GridDenoiser | DenseDenoiser, batch: Grids, t: Tensor) -> Tensor:
    prefix = net.prefix(batch.question)
    return net(prefix, net.frame(prefix, batch.answer), batch.answer, t)


def padded_logits(net: GridDenoiser, batch: Grids, t: Tensor) -> Tensor:
    """The same network over [B, 900] cells per grid with key masks: what most implementations compute."""
    question, answer = batch.question, batch.answer
    said_BTD = torch.cat(
        [net.tasks(question.task).unflatten(1, (net.task_tokens, -1)), net.view(question.d4, question.colours)], 1
    )
    read_BLD, read_mask, read_at = _dense(
        said_BTD, net.embed(question.cells, net.colour(question.cells.colour), INPUT), question.cells
    )
    body_BLD, body_mask, body_at = _dense(
        net.time(t)[:, None], net.embed(answer, net.colour(answer.colour), OUTPUT), answer
    )
    memory: list[Any] = []
    for block in net.blocks:
        read_BLD = block(read_BLD, rotation=net.rotary.rotation(read_at), mask=read_mask, keep=memory)
    both = torch.cat([read_mask, body_mask], 1)
    for block, seen in zip(net.blocks, memory):
        body_BLD = block(body_BLD, rotation=net.rotary.rotation(body_at), mask=both, prefix=seen)
    return net.out(net.norm(body_BLD[answer.segment, 1 + _place(answer)]))


def _place(cells: Cells) -> Tensor:
    """Where each cell lies in its own grid's row-major order."""
    start = torch.from_numpy(np.cumsum(cells.lengths) - cells.lengths)
    return torch.arange(len(cells.colour)) - start[cells.segment]


def _dense(before_BTD: Tensor, cells_ND: Tensor, cells: Cells) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and cells as rows padded to T + 900, with their mask and coordinates."""
    batch, before, width = before_BTD.shape
    place = _place(cells)
    x = torch.cat([before_BTD, before_BTD.new_zeros(batch, 900, width)], 1)
    x = x.index_put((cells.segment, before + place), cells_ND)
    mask = torch.zeros(x.shape[:2], dtype=torch.bool)
    mask[:, :before] = True
    mask[cells.segment, before + place] = True
    at = torch.zeros(*x.shape[:2], 2, dtype=torch.int64)
    at[cells.segment, before + place] = torch.stack([cells.row, cells.col], 1)
    return x, mask, at


def packing(batch_size: int = 16, pairs: int = 4) -> dict[str, Any]:
    """Ratio of a padded to a packed step (forward and backward), median of alternating pairs, and worst difference."""
    order, builder, rows = pool(batch_size)
    net, t = network(rows), torch.linspace(0.05, 1.0, batch_size)
    ratios, worst, share = [], 0.0, []
    for update in range(pairs + 1):
        batch = builder.build(order.shares(update)[0])
        (a, packed_s), (b, padded_s) = (_step(net, f, batch, t) for f in (packed_logits, padded_logits))
        worst = max(worst, float((a - b).abs().max()))
        cells = len(batch.answer.colour) + len(batch.question.cells.colour)
        share.append(cells / (1800 * batch_size))
        if update:  # the first pair warms up
            ratios.append(padded_s / packed_s)
    return {
        "ratio": median(ratios),
        "ratios": ratios,
        "largest_difference": worst,
        "real_share": float(np.mean(share)),
        "goal": "ratio >= 6, difference <= 1e-4",
    }


def compat(batch_size: int = 16, pairs: int = 3) -> dict[str, Any]:
    """Ratio of a step of the earlier system's network (without its dropout) to a packed one, median of pairs."""
    order, builder, rows = pool(batch_size)
    net, t = network(rows), torch.arange(1, batch_size + 1) / batch_size
    earlier, ratios = DenseDenoiser(rows, Noise(0.02).process().schedule, 128, 2, 4, 128, dropout=0.0), []
    for update in range(pairs + 1):
        batch = builder.build(order.shares(update)[0])
        (_, packed_s), (_, dense_s) = (_step(each, packed_logits, batch, t) for each in (net, earlier))
        ratios.append(dense_s / packed_s)
    return {"ratio": median(ratios[1:]), "ratios": ratios[1:], "goal": "none stated"}


def _step(net: nn.Module, logits_of: Callable[..., Tensor], batch: Grids, t: Tensor) -> tuple[Tensor, float]:
    net.zero_grad()
    start = time.perf_counter()
    logits = logits_of(net, batch, t)
    F.cross_entropy(logits, batch.answer.colour).backward()
    return logits.detach(), time.perf_counter() - start


# --- views


def views(batch_size: int = 192, repeats: int = 60) -> dict[str, Any]:
    """Examples augmented and collated per second on one core, median over batches."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    order, builder, _ = pool(batch_size)
    seconds = []
    for update in range(repeats):
        start = time.perf_counter()
        builder.build(order.shares(update)[0])
        seconds.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return {"examples_per_s": batch_size / median(seconds), "goal": "20,000"}


# --- vote72


def vote72(steps: int = 8) -> dict[str, Any]:
    """Seconds to answer one 20 x 20 query under 72 views with d = 128, L = 2."""
    rng = np.random.default_rng(0)
    grid = as_grid(rng.integers(0, 10, (20, 20)))
    demo = ArcData(split="training", train_sets=["training:demos"]).evaluated.tasks[0].demos
    query = Query(Task("made", demo, (grid,), "made"), 0, 0)
    options, size = EvalOptions(num_steps=steps, views=72, max_tokens=10**6), SizeOptions(mode="rule")
    solver = Solver(network(1).eval(), Noise().process(), options, size, Randomness())
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        solver.all([query])
        seconds.append(time.perf_counter() - start)
    return {"seconds": median(seconds), "goal": "5"}


BENCHES: dict[str, Callable[[], dict[str, Any]]] = {
    bench.__name__: bench
    for bench in (packing, compat, views, vote72, *(getattr(bench_module, name) for name in bench_module.NAMES))
}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in BENCHES]
    if unknown or not names:
        print(f"no benchmark {unknown[0] if unknown else ''!r}; wanted some of {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    folder = Path("runs/arc/bench")
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        found = BENCHES[name]()
        machine = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        (folder / f"{name}-{stamp}.json").write_text(
            json.dumps({**found, **machine, "torch": torch.__version__}, indent=1)
        )
        print(name, " ".join(f"{k}={_short(v)}" for k, v in found.items()))
    return 0


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + " ".join(_short(v) for v in value) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
