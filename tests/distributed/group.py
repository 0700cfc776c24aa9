"""What a process of a distributed test is: it makes its checks one after another and rank 0 writes what all ranks saw.

`python -m torch.distributed.run ... -m tests.distributed.<file> <folder>` runs `main`. A check returns facts, plain
values; <folder>/<check>.json lists those of each rank. What is right is said by the tests.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 30  # that one check may take
BROKE = "the check itself broke"
CHECKS: list[Callable[[Path], Any]] = []


def check(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    CHECKS.append(function)
    return function


def main() -> None:
    """Make all checks; each has a folder of its own, the same on all ranks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=SECONDS))
    root = Path(sys.argv[1])
    for each in CHECKS:
        folder = root / each.__name__
        folder.mkdir(exist_ok=True)
        start = time.perf_counter()
        facts = {"facts": _facts(each, folder), "seconds": time.perf_counter() - start}
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, facts)
        if dist.get_rank() == 0:
            (root / f"{each.__name__}.json").write_text(json.dumps(ranks))
    dist.destroy_process_group()


def _facts(each: Callable[[Path], Any], folder: Path) -> Any:
    try:
        return each(folder)
    except (Exception, SystemExit):
        return {BROKE: traceback.format_exc()}
