"""How fast a run goes: samples and real units per second, the time of an update, the share spent waiting for data.

Times are taken between logging points, where the host reads the logs anyway, so measuring adds no device sync. The
time of single updates comes from the host clock on CPU and from recorded events on CUDA. Padding is never counted:
`num_units` of a batch are its real cells, tokens or points. Knows nothing of floating point operations.
"""

import time
from typing import Any, NamedTuple

import torch


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

    def __init__(self, device: torch.device, seconds: float = 0.0):
        self.device = device
        self.seconds = seconds  # of training so far, earlier starts of the run included
        self._clear()
        self._resumed = time.perf_counter()

    def _clear(self) -> None:
        self._pairs: list[tuple[Mark, Mark]] = []
        self._first: Mark | None = None
        self.waited = self.busy = 0.0
        self.samples = self.units = 0

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
        self.samples += getattr(batch, "num_samples", 0)
        self.units += getattr(batch, "num_units", 0)
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

    def read(self, samples: float, units: float) -> dict[str, float]:
        """`perf/*` of the interval that ends here, and a fresh start. Call after the host has read the logs.

        samples, units: of all ranks over the interval (this rank's are `self.samples` and `self.units`).
        """
        now = time.perf_counter()
        busy = max(self.busy + now - self._resumed, 1e-9)
        self._resumed = now
        self.seconds += busy
        steps = sorted(1000 * start.until(end) for start, end in self._pairs) or [0.0]
        perf = {
            "seconds": self.seconds,
            "perf/samples_per_s": samples / busy,
            "perf/units_per_s": units / busy,
            "perf/updates_per_s": len(self._pairs) / busy,
            "perf/step_ms_p50": steps[len(steps) // 2],
            "perf/step_ms_p95": steps[min(len(steps) - 1, int(0.95 * len(steps)))],
            "perf/wait_fraction": self.waited / busy,
        }
        if self.device.type == "cuda":
            perf["perf/memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        self._clear()
        return perf
