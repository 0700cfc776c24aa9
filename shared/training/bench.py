"""Speed, measured in pairs: `python -m shared.training.bench [project] [--mode loop|throughput|memory|attention]`.

Variants take turns, so that a busy machine slows all of them; medians and p95 are over the repeats. Results are printed
and kept in runs/bench/. What is measured of a project stands in `bench_loop.py` (a verb of its command line); what
needs none, packed attention against padded, is here.
"""

import argparse
import platform
import runpy
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch

from shared.networks import Block, Layout
from shared.networks.packed import pad
from shared.training import catalogue, hardware, plan, runs
from shared.training.errors import Mistake, told

if TYPE_CHECKING:
    from shared.training.cli import PalimpsestCLI

FOLDER = Path("runs/bench")
REPEATS = 5
OF_A_PROJECT = ("loop", "throughput", "memory")


@dataclass
class BenchOptions:
    """mode: loop, throughput or memory. seconds: about how long all repeats take."""

    mode: str = "loop"
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.mode not in OF_A_PROJECT:
            raise ValueError(f"bench.mode is {self.mode}; wanted one of {', '.join(OF_A_PROJECT)}.")


def bench(cli: "PalimpsestCLI") -> None:
    """speed of the training loop, measured in pairs"""
    from shared.training.bench_loop import MODES  # it imports the callbacks, which import the verbs

    options: BenchOptions = cli.options.bench
    found = MODES[options.mode](cli, options.seconds)
    if runs.rank() == 0:
        store(found, f"{cli.plan.project}-{cli.plan.size}-{options.mode}")


def attention(segments: int = 64, longest: int = 900, share: float = 0.18, width: int = 128) -> dict[str, Any]:
    """Forward and backward of two blocks over packed segments, and over the same segments padded to the longest."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.gamma(2.0, share * longest / 2, segments).astype(int), 1, longest)
    torch.manual_seed(0)
    blocks = [Block(width, 4), Block(width, 4)]
    layout = Layout.of(lengths)
    x = torch.randn(layout.tokens, width)
    rows, _ = pad(x, layout)
    rows = torch.nn.functional.pad(rows, (0, 0, 0, longest - rows.shape[1]))
    mask = torch.arange(longest) < torch.from_numpy(lengths)[:, None]

    def packed() -> float:
        return _timed(lambda: _through(blocks, x, layout=layout))

    def padded() -> float:
        return _timed(lambda: _through(blocks, rows, mask=mask)[mask])

    found = take_turns({"packed": packed, "padded": padded})
    ratio = median(b / a for a, b in zip(found["packed"]["all"], found["padded"]["all"]))
    with torch.no_grad():
        far = (_through(blocks, x, layout=layout) - _through(blocks, rows, mask=mask)[mask]).abs().max().item()
    facts = {"real_share": float(lengths.mean() / longest), "segments": segments, "longest": longest, "width": width}
    return {**facts, "ms": found, "ratio": ratio, "largest_difference": far, "goal": "ratio >= 4 (moonshot 6)"}


def _through(blocks: list[Block], x: torch.Tensor, **given: Any) -> torch.Tensor:
    for block in blocks:
        x = block(x, **given)
    return x


def _timed(forward: Callable[[], torch.Tensor]) -> float:
    """Milliseconds of a forward and its backward."""
    start = time.perf_counter()
    forward().square().mean().backward()
    return 1000 * (time.perf_counter() - start)


def take_turns(variants: Mapping[str, Callable[[], float]], repeats: int | None = None) -> dict[str, dict[str, Any]]:
    """Every variant once, again and again, the order turned round each time; the first round only warms up."""
    values: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range((repeats or REPEATS) + 1):
        for name in list(variants)[:: -1 if turn % 2 else 1]:
            value = variants[name]()
            if turn:
                values[name].append(value)
    return {name: spread(each) for name, each in values.items()}


def spread(values: list[float]) -> dict[str, Any]:
    """Median, the value 95 % stay below, and all of them."""
    ordered = sorted(values)
    return {"median": median(ordered), "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], "all": values}


def paired(found: Mapping[str, Mapping[str, Any]], name: str, beside: str) -> list[float]:
    """Differences between two variants, turn by turn."""
    return [a - b for a, b in zip(found[name]["all"], found[beside]["all"])]


def store(content: Mapping[str, Any], what: str) -> Path:
    """Print the numbers, and keep them beside the machine's in runs/bench/<utc>-<what>.json."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    versions = {"python": platform.python_version(), "torch": torch.__version__, "lightning": lightning.__version__}
    machine = {"device": hardware.device_name(device), "gemm_tflops": hardware.gemm_tflops(device)}
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{what}.json"
    runs.write_json(path, {"what": what, "git": plan.git_state(), "machine": machine, "versions": versions, **content})
    for name, value in content.items():
        print(f"{name:<22} {_short(value)}")
    print(f"{'written':<22} {path}")
    return path


def _short(value: Any) -> str:
    if isinstance(value, dict) and "median" in value:
        return f"{value['median']:.4g} (p95 {value['p95']:.4g})"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(part)}" for name, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv: list[str]) -> None:
    """Measure one project or all of them, in one mode or in each that applies."""
    parser = argparse.ArgumentParser(prog="python -m shared.training.bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("project", nargs="?", default="all")
    parser.add_argument("--mode", choices=[*OF_A_PROJECT, "attention"])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--size", default="nano")
    parser.add_argument("--hw")
    given = parser.parse_args(argv)
    modes = [given.mode] if given.mode else [*OF_A_PROJECT, *(["attention"] if given.project == "all" else [])]
    for mode in modes:
        if mode == "attention":
            store(attention(), "attention")
        else:
            for package, line in _command_lines(given, mode):
                sys.argv = [package, *line]
                runpy.run_module(package, run_name="__main__", alter_sys=True)


def _command_lines(given: argparse.Namespace, mode: str) -> list[tuple[str, list[str]]]:
    """(package, arguments) of every project asked for that has the size."""
    names = catalogue.projects(Path("."))
    packages = {name: "shared.training.template" if name == "template" else f"projects.{name}" for name in names}
    wanted = packages if given.project == "all" else {given.project: packages.get(given.project)}
    found = []
    for name, package in wanted.items():
        files = [Path("configs", name, f"{part}.yaml") for part in ("base", given.size)]
        files += [Path("configs/hardware", f"{given.hw}.yaml")] if given.hw else []
        if package is None or not files[1].exists():
            raise Mistake(f"There is no {files[1]}; choose a project of {', '.join(packages)} and one of its sizes.")
        configs = [f"--config={file}" for file in files if file.exists()]
        found.append((package, ["bench", *configs, f"--bench.mode={mode}", f"--bench.seconds={given.seconds:g}"]))
    return found


if __name__ == "__main__":
    with told():
        main(sys.argv[1:])
