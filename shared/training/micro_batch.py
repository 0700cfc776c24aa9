"""`data.micro_batch: auto` on CUDA: the largest micro-batch that fits, found by trying, once per kind of run.

`largest` is the search, a pure function of a test. `settle` runs it on the card: real batches, forward and backward,
within 85 % of the memory, less what the optimizer and the average will take. Rank 0 decides and leaves the answer in
`.cache/micro_batch.json`, where the other ranks, and the next run, read it. Knows cards; not what is learnt.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from shared.training import hardware
from shared.training.console import say
from shared.training.errors import Mistake
from shared.training.plan import MOMENT, WEIGHT, Plan, batches
from shared.training.runs import rank

SHARE = 0.85  # of a card's memory
SECONDS = 30.0  # after which the search makes do with what it has
PATIENCE = 120.0  # seconds that another rank waits for rank 0
TABLE = "micro_batch"


def largest(share: int, fits: Callable[[int], bool], seconds: float = SECONDS) -> int:
    """The largest divisor of `share` that fits, tried upwards by about doubling until one does not.

    fits(m) may raise torch.cuda.OutOfMemoryError, which means no. Raises Mistake when not even 1 fits.
    """
    found, end = 0, time.monotonic() + seconds
    for m in _doubling(share):
        if found and time.monotonic() > end:
            break
        if not _tried(fits, m):
            break
        found = m
    if not found:
        raise Mistake(
            "Not even one sample fits on the card. Choose a smaller size, a larger card, or blocks that recompute"
            " their activations."
        )
    return found


def _doubling(share: int) -> list[int]:
    """Divisors of `share` up to itself, each the largest within half of the next."""
    chosen = [share]
    while chosen[-1] > 1:
        chosen.append(max(m for m in range(1, chosen[-1] // 2 + 1) if share % m == 0))
    return chosen[::-1]


def _tried(fits: Callable[[int], bool], m: int) -> bool:
    try:
        return fits(m)
    except torch.cuda.OutOfMemoryError:
        return False


def settle(plan: Plan, module: Any, datamodule: Any, config: Mapping[str, Any]) -> Plan:
    """The plan with the micro-batch that fits this card; as it is where nothing is to be found out.

    Call it when the network is built and before there is a Trainer. The module is on the CPU again afterwards.
    """
    data, trainer = config["data"], config["trainer"]
    asked = data.get("micro_batch") == "auto" and trainer.get("accelerator") in ("gpu", "cuda")
    if not asked or plan.batch_size is None or not torch.cuda.is_available():
        return plan
    share = plan.batch_size // plan.world
    name = key(plan, config)
    if rank() == 0:
        measure = lambda: largest(share, lambda m: _fits(plan, module, datamodule, share // m))  # noqa: E731
        micro = hardware.remembered(TABLE, name, measure)
        say(f"micro-batch {micro} of {share} (auto, .cache/{TABLE}.json)")
    else:
        micro = awaited(name)
    datamodule.micro_batch = micro
    return replace(plan, micro_batch=micro, accumulate=share // micro)


def key(plan: Plan, config: Mapping[str, Any]) -> str:
    """What the answer depends on: another project, size, card, world, precision, torch or model is another question."""
    parts = {name: config.get(name) for name in ("model", "data", "ema", "optim", "lora")}
    shape = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    kind = (plan.project, plan.stage, plan.size, plan.device, plan.world, plan.precision, plan.compile)
    return ", ".join(map(str, (*kind, torch.__version__, shape)))


def awaited(name: str, patience: float = PATIENCE, pause: float = 0.2) -> int:
    """What rank 0 finds, once it has found it."""
    end = time.monotonic() + patience
    while (found := hardware.recalled(TABLE).get(name)) is None:
        if time.monotonic() > end:
            raise Mistake(f"Rank 0 has found no micro-batch in {patience:.0f} s. Set data.micro_batch to a number.")
        time.sleep(pause)
    return int(found)


def _fits(plan: Plan, module: Any, datamodule: Any, accumulate: int) -> bool:
    """One step on a real micro-batch stays within the share of memory that the optimizer's state leaves."""
    device = torch.device("cuda", torch.cuda.current_device())
    batch = next(batches(datamodule, plan.world, accumulate))
    later = MOMENT * plan.moments + WEIGHT * plan.averaged
    torch.cuda.reset_peak_memory_stats(device)
    try:
        module.to(device).train()
        with torch.autocast("cuda", torch.bfloat16, enabled=plan.precision.startswith("bf16")):
            loss = module.training_step(batch.to(device), 0)["loss"]
        loss.backward()
        used = torch.cuda.max_memory_allocated(device)
    finally:
        module.zero_grad(set_to_none=True)
        module.to("cpu")
        torch.cuda.empty_cache()
    return used + later <= SHARE * torch.cuda.get_device_properties(device).total_memory
