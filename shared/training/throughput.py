"""How fast a run goes: samples, real units and FLOPs per second, the time of an update, the share spent waiting.

Times are taken between logging points, where the host reads the logs anyway, so measuring adds no device sync. The
time of single updates comes from the host clock on CPU and from recorded events on CUDA. Padding is never counted:
`num_units` of a batch are its real cells, tokens or points, and a module counts FLOPs from real lengths on the host.
Knows what one process could do (`Rates`); not which network it runs.
"""

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from shared.training import hardware

TRAINING_FACTOR = 3  # forward, and twice that for the backward


def training_flops(module: Any, batch: Any) -> int:
    """FLOPs of one training step on `batch`; 0 for a module that does not count them.

    `module.flops(batch)` counts the forward passes that have a backward, `module.extra_flops(batch)`, if there is one,
    those without (self-conditioning, a teacher). Recomputation is not counted.
    """
    if not hasattr(module, "flops"):
        return 0
    extra = module.extra_flops(batch) if hasattr(module, "extra_flops") else 0
    return TRAINING_FACTOR * module.flops(batch) + extra


@dataclass(frozen=True)
class Rates:
    """What one process could do, in TFLOP/s. peak: None where it is unknown or the precision is float32; gemm: one
    large matrix product, measured. processes: of the run."""

    peak: float | None = None
    gemm: float | None = None
    processes: int = 1

    @classmethod
    def of(cls, device: torch.device, precision: str, processes: int = 1) -> "Rates":
        """Of the device this process computes on."""
        name = hardware.device_name(device)
        return cls(hardware.peak_tflops(name, precision), hardware.gemm_tflops(device), processes)

    def perf(self, flops: float, seconds: float) -> dict[str, float]:
        """`perf/{tflops,mfu,gemm_share}` of one process, of `flops` that all did; what is not known is left out."""
        tflops = flops / max(seconds, 1e-9) / self.processes / 1e12
        shares = {"perf/mfu": self.peak, "perf/gemm_share": self.gemm}
        return {"perf/tflops": tflops, **{name: tflops / rate for name, rate in shares.items() if rate}}


class Counts(NamedTuple):
    """What was done over an interval. capacity: units that would have fitted into the same batches."""

    samples: float = 0
    units: float = 0
    flops: float = 0
    capacity: float = 0

    def after(self, module: Any, batch: Any) -> "Counts":
        """With one micro-batch more."""
        samples, units = getattr(batch, "num_samples", 0), getattr(batch, "num_units", 0)
        room = getattr(batch, "capacity", None) or 0
        return Counts(
            self.samples + samples,
            self.units + units,
            self.flops + training_flops(module, batch),
            self.capacity + room,
        )


class Mark(NamedTuple):
    """A moment: host seconds and, on CUDA, an event of the stream."""

    host: float
    event: Any = None

    @classmethod
    def now(cls, device: torch.device) -> "Mark":
        event = None
        if device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return cls(time.perf_counter(), event)

    def until(self, later: "Mark") -> float:
        """Seconds of work between two marks; with events, only after the later one has passed on the device."""
        return self.event.elapsed_time(later.event) / 1000 if self.event else later.host - self.host


class Stopwatch:
    """Collects marks and counts over one logging interval. Seconds spent outside updates (`pause`) are left out."""

    def __init__(self, device: torch.device, seconds: float = 0.0, rates: Rates | None = None, module: Any = None):
        self.device, self.rates, self.module = device, rates or Rates(), module
        self.seconds = seconds  # of training so far, earlier starts of the run included
        self._clear()
        self._resumed = time.perf_counter()

    def _clear(self) -> None:
        self._pairs: list[tuple[Mark, Mark]] = []
        self._first: Mark | None = None
        self.waited = self.busy = 0.0
        self.counts = Counts()

    def batch_starts(self) -> None:
        """A micro-batch has arrived."""
        mark = Mark.now(self.device)
        self.busy += mark.host - self._resumed
        self._resumed = mark.host
        self._first = self._first or mark

    def fetch_starts(self) -> None:
        self._fetching = time.perf_counter()

    def fetch_ends(self) -> None:
        self.waited += time.perf_counter() - self._fetching

    def batch_ends(self, batch: Any, *, update_done: bool) -> None:
        """Its step is over; `update_done` when the optimizer has moved."""
        self.counts = self.counts.after(self.module, batch)
        mark = Mark.now(self.device)
        self.busy += mark.host - self._resumed
        self._resumed = mark.host
        if update_done and self._first is not None:
            self._pairs.append((self._first, mark))
            self._first = None

    def pause(self) -> None:
        """Forget the time since the last mark: validation, pictures or a checkpoint took it, not the updates."""
        now = time.perf_counter()
        self.seconds += now - self._resumed
        self._resumed = now

    def read(self, done: Counts) -> dict[str, float]:
        """`perf/*` of the interval that ends here, and a fresh start. Call after the host has read the logs.

        done: by all ranks over the interval (by this rank: `self.counts`).
        """
        now = time.perf_counter()
        busy = max(self.busy + now - self._resumed, 1e-9)
        self._resumed = now
        self.seconds += busy
        steps = sorted(1000 * start.until(end) for start, end in self._pairs) or [0.0]
        perf = {
            "seconds": self.seconds,
            "perf/samples_per_s": done.samples / busy,
            "perf/units_per_s": done.units / busy,
            "perf/updates_per_s": len(self._pairs) / busy,
            "perf/step_ms_p50": steps[len(steps) // 2],
            "perf/step_ms_p95": steps[min(len(steps) - 1, int(0.95 * len(steps)))],
            "perf/wait_fraction": self.waited / busy,
        }
        if done.flops:
            perf |= self.rates.perf(done.flops, busy)
        if done.capacity:
            perf["perf/padding_fraction"] = 1 - done.units / done.capacity
        if self.device.type == "cuda":
            perf["perf/memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        self._clear()
        return perf
