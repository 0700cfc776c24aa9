"""Benchmarks of the line that need its whole module: called by name through `bench.py`.

oracle: walks of an exact belief keep every marginal. overfit: a small network learns every pair of eight tasks.
fast_dev_run: one update, validation, picture and the imports before them. step, vote: a size of the ladder, smol on a
card and size test without one; random weights, for they are as fast as trained ones.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from packages.arc.sources import Source, read_questions
from projects.arc.data import ArcData, HoldoutOptions
from projects.arc.module import ArcModule, Noise
from projects.arc.network import NUM_COLOURS
from projects.arc.pairs import Augment, Grids, PairBatches
from projects.arc.solving import EvalOptions
from shared.sampling import sample, uniform_grid
from shared.training import hardware, optim
from shared.training.batches import Share
from shared.training.randomness import Randomness
from shared.training.throughput import Rates, training_flops

NAMES = ("oracle", "overfit", "fast_dev_run", "step", "vote")

# --- oracle


def oracle(cells: int = 100_000, strides: tuple[int, ...] = (4, 16, 32, 128)) -> dict[str, Any]:
    """Largest deviation, in standard deviations, of any colour's count at any step of a walk with the exact belief."""
    process, start = Noise().process(), time.perf_counter()
    p = torch.linspace(1, 3, NUM_COLOURS).softmax(0)  # of the data

    def believe(x: Tensor, t: Tensor) -> Tensor:
        """Bayes: what a cell was, of data p, when it is x at t."""
        return p.log() + process.marginal(x, t).log()  # uniform noise: q(x | x0) = q(x0 | x)

    def watch(t: Tensor, x: Tensor, belief: Tensor) -> None:
        a = float(process.alpha(next(times)))
        expected = a * p + (1 - a) / NUM_COLOURS
        counts = torch.bincount(x, minlength=NUM_COLOURS)
        if a < 1:  # the last step takes the likeliest colour
            sigma = (cells * expected * (1 - expected)).sqrt()
            furthest.append(float(((counts - cells * expected) / sigma).abs().max()))

    furthest: list[float] = []
    for steps in strides:
        rng = torch.Generator().manual_seed(steps)
        x = process.prior(torch.zeros(cells, dtype=torch.int64), rng)
        grid = uniform_grid(steps)
        times = iter(grid[1:])
        sample(believe, partial(process.step, rng=rng), x, grid, watch)
    seconds = time.perf_counter() - start
    return {"largest_sigma": max(furthest), "marginals": len(furthest), "seconds": seconds, "goal": "4 sigma, 10 s"}


# --- overfit


def smallest(count: int) -> list[str]:
    """The training tasks of arc1 with the fewest cells."""
    tasks = read_questions(Source("arc1", "training"))
    cells = {task.id: sum(grid.size for grid in task.known_grids()) for task in tasks}
    return sorted(cells, key=lambda id: (cells[id], id))[:count]


def overfit(keys: tuple[int, ...] = (0, 1, 2), limit: float = 90.0) -> dict[str, Any]:
    """Seconds until every demo of eight small tasks is drawn exactly from pure noise, for each key; without views."""
    data = ArcData(
        split="training",
        train_sets=["training:demos"],
        tasks=smallest(8),
        max_size=10,
        augment=Augment(d4=False, colour="none", translate=False),
        holdout=HoldoutOptions(share=0.0),
    )
    found = [_overfit(data, key, limit) for key in keys]
    seconds, exact = ([row[k] for row in found] for k in (0, 1))
    return {
        "seconds": seconds,
        "exact": exact,
        "parameters": found[0][2],
        "goal": "0.5 M, 1.0 in 90 s, 3 keys",
    }


def _overfit(data: ArcData, key: int, limit: float) -> tuple[float, float, int]:
    torch.manual_seed(key)
    module = ArcModule(width=96, depth=3, heads=3, task_tokens=1, mlp_multiple=32, condition_dropout=0.0)
    module.adopt(data, None)
    module.configure_model()
    examples = data.examples()
    pairs = PairBatches(examples, data.max_size, data.augment, Randomness(key))
    recipe = optim.Recipe(kind="muon", lr=2e-3, hidden_lr_scale=2.5, warmup=50, shape="constant")
    made = optim.build(module.train(), recipe, 10_000)
    whole, start, update, exact = Share.of(range(len(examples))), time.perf_counter(), 0, 0.0
    while exact < 1 and time.perf_counter() - start < limit:
        share = replace(whole, update=update)
        module.training_step(pairs.build(share), 0)["loss"].backward()
        made["optimizer"].step()
        made["optimizer"].zero_grad()
        made["lr_scheduler"]["scheduler"].step()
        update += 1
        if update % 50 == 0:
            exact = _exact(module.eval(), pairs.build(whole))
            module.train()
    return time.perf_counter() - start, exact, sum(p.numel() for p in module.parameters())


@torch.no_grad()
def _exact(module: ArcModule, batch: Grids) -> float:
    total, count = module.validation_step(batch, 0)["logs"]["grid_exact@1"]
    return float(total / count)


# --- a whole process


def fast_dev_run() -> dict[str, Any]:
    """Seconds and memory of one update with its validation and picture, imports included."""
    layers = [f"--config=configs/{name}.yaml" for name in ("arc/base", "arc/test", "hardware/cpu")]
    one = ["--trainer.max_steps=1", "--run.validate_every=1", "--snapshots.every=1"]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        line = [sys.executable, "-m", "projects.arc", "fit", *layers, *one, "--run.test_after_fit=false"]
        subprocess.run([*line, f"--run.root={root}"], check=True, stdout=subprocess.DEVNULL)
        pictures = len(list(Path(root).rglob("*.png")))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_gb": peak / 1e9, "pictures": pictures, "goal": "45 s, 2 GB"}


# --- sizes of the ladder


def ladder(size: str | None = None) -> tuple[str, ArcModule, ArcData, torch.device]:
    """A size over the arc1 pool, on the card if there is one, compiled there as its profile would."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = size or ("smol" if device.type == "cuda" else "test")
    said = yaml.safe_load(Path(f"configs/arc/{size}.yaml").read_text())["model"]
    data = ArcData(overlap="drop", batch_size=192 if device.type == "cuda" else 16)
    module = ArcModule(**{name: value for name, value in said.items() if name not in ("eval", "size")})
    module.adopt(data, None)
    module.configure_model()
    on_card = device.type == "cuda"
    hardware.apply(hardware.HardwareOptions(tf32=on_card, compile="blocks" if on_card else "none"), module.network)
    return size, module.to(device), data, device


def step(size: str | None = None, updates: int = 50) -> dict[str, Any]:
    """Examples per second of whole updates (batch, loss, backward, optimizer) without a Trainer, and their MFU."""
    size, module, data, device = ladder(size)
    examples = data.examples()
    order, pairs = data.order(examples), PairBatches(examples, data.max_size, data.augment, Randomness()).to(device)
    optimizer = optim.build(module.train(), optim.Recipe(warmup=1), 10_000)["optimizer"]
    warm = updates // 5
    flops, start = 0, 0.0
    for update in range(warm + updates):
        if update == warm:
            flops, start = 0, _now(device)
        batch = pairs.build(order.shares(update)[0], data.quantum(order, device))
        flops += training_flops(module, batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = module.training_step(batch, 0)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = _now(device) - start
    rates = Rates.of(device, "bf16-mixed" if device.type == "cuda" else "32-true").perf(flops, seconds)
    each = {"examples_per_s": updates * data.batch_size / seconds, "ms_per_update": 1000 * seconds / updates}  # type: ignore[operator]
    return {"size": size, **each, **rates, "goal": "smol on one H200: 14,100 examples/s, MFU 0.30"}


def vote(size: str | None = None) -> dict[str, Any]:
    """Seconds to answer evaluation grids: all 419, 72 views, 32 steps on a card; two, 8 views, 4 steps without one."""
    size, module, data, device = ladder(size)
    on_card = device.type == "cuda"
    options = EvalOptions(num_steps=4, views=8)
    if on_card:
        options = EvalOptions(num_steps=32, views=72, max_tokens=2**18)
    queries = data.queries()[: None if on_card else 2]
    start = _now(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=on_card):
        module.eval().solver(options).all(queries)
    seconds = _now(device) - start
    told = {"grids": len(queries), "views": options.views, "steps": options.num_steps, "seconds": seconds}
    return {"size": size, **told, "goal": "smol on one H200: 419 grids x 72 views x 32 steps in 60 s"}


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
