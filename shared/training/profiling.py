"""Where the time of an update goes: `make profile PROJECT=` runs 5 updates, 3 to warm up, 3 under torch's profiler.

The whole loop is looked at, callbacks included, in a run folder set apart: `profile/summary.md` (parts of an update,
waits of the host for the device, operations by their own time) and `profile/trace.json` (for chrome://tracing or
Perfetto). Knows the Trainer and the names it gives to its spans; not what the operations compute.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from shared.training import hardware, layout
from shared.training.tables import replace_text

if TYPE_CHECKING:
    from shared.training.cli import PalimpsestCLI

WAIT, WARM, ACTIVE = 5, 3, 3
ROWS = 25
FETCH = "fetch a batch"
SYNCS = ("aten::_local_scalar_dense", "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
PARTS = {  # the end or a part of a span's name -> what a reader calls it; the first that fits
    ".training_step": "forward",
    ".backward": "backward",
    "Optimizer.step#": "optimizer",
    "zero_grad": "optimizer",
    FETCH: "data",
    "[Callback]": "callbacks",
}
PART = ("part", "ms per update", "share")
WORK = ("forward", "backward", "optimizer")


def run(cli: "PalimpsestCLI") -> None:
    """where the time of an update goes"""
    home = cli._open_run(apart="/profiled")
    watch = ProfileUpdates(home.folder / "profile", f"{cli.plan.project} / {cli.plan.size}")
    cli.config_init.trainer.callbacks = [*(cli.config_init.trainer.callbacks or []), watch]
    settings = {"max_steps": WAIT + WARM + ACTIVE, "limit_val_batches": 0, "profiler": Spans()}
    trainer = cli._trainer(home, **settings, accumulate_grad_batches=cli.plan.accumulate)
    trainer.fit(cli.model, datamodule=cli.datamodule)
    home.say("\n".join(watch.lines))
    home.say(f"written     {watch.folder}: summary.md, trace.json")


class Spans(Profiler):
    """Lightning's spans as torch's profiler sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[str, list[record_function]] = defaultdict(list)

    def start(self, action_name: str) -> None:
        span = record_function(action_name)
        span.__enter__()
        self.open[action_name].append(span)

    def stop(self, action_name: str) -> None:
        if self.open[action_name]:
            self.open[action_name].pop().__exit__(None, None, None)


class Unwatched(Profiler):
    """Notes nothing, and costs a tenth of Lightning's own way of noting nothing, which it takes 100 times an update."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nullcontext()

    def start(self, action_name: str) -> None: ...

    def stop(self, action_name: str) -> None: ...

    def profile(self, action_name: str) -> Any:
        return self.nothing


class ProfileUpdates(Callback):
    """Steps torch's profiler at the end of every update and writes both files once the training is over."""

    def __init__(self, folder: Path, what: str):
        self.folder, self.what, self.summary = folder, what, ""
        self.lines: list[str] = []  # for the terminal
        self.updates = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.device = pl_module.device
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
        self.profiler = profile(activities=kinds, schedule=schedule(wait=WAIT, warmup=WARM, active=ACTIVE))
        self.profiler.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.updates:
            return  # a micro-batch of an update that goes on
        self.updates = trainer.global_step
        if self.updates == 1:
            _mark_fetches(trainer)
        if self.updates == WAIT + WARM + ACTIVE and self.device.type == "cuda":
            torch.cuda.synchronize()
        self.profiler.step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.profiler.export_chrome_trace(str(self.folder / "trace.json"))
        spent, waits = figures(self.profiler)
        self.lines = [*_lines(spent, waits, self.what, self.device, layout.plain)]
        told = "\n".join(_lines(spent, waits, f"# {self.what}", self.device, layout.markdown))
        self.summary = f"{told}\n\n## {ROWS} operations by their own time\n\n```\n{self._operations()}\n```\n"
        replace_text(self.folder / "summary.md", self.summary)

    def _operations(self) -> str:
        own = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        return self.profiler.key_averages().table(sort_by=own, row_limit=ROWS, max_name_column_width=60)


def _mark_fetches(trainer: Trainer) -> None:
    """A span around every fetch, beside the clock that the log keeps of it."""
    fetcher: Any = trainer.fit_loop._data_fetcher
    clocks, spans = (fetcher._start_profiler, fetcher._stop_profiler), Spans()

    def start() -> None:
        clocks[0]()
        spans.start(FETCH)

    def stop() -> None:
        spans.stop(FETCH)
        clocks[1]()

    fetcher._start_profiler, fetcher._stop_profiler = start, stop


class Span(NamedTuple):
    """A named stretch of host time, in microseconds."""

    name: str
    start: float
    end: float


def parts(spans: Iterable[Span], begin: float, end: float) -> dict[str, float]:
    """Milliseconds between `begin` and `end` by part; a span counts without the spans inside it, the rest is the
    loop's own. Spans of one thread, so they nest."""
    spent: dict[str, float] = defaultdict(float)
    around: list[Span] = [Span("", begin, end)]
    spent["loop"] = end - begin
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        while span.start >= around[-1].end and len(around) > 1:
            around.pop()
        if span.start < begin or span.end > end:
            continue
        spent[_part(around[-1].name)] -= span.end - span.start
        spent[_part(span.name)] += span.end - span.start
        around.append(span)
    return {name: us / 1000 for name, us in spent.items()}


def _part(name: str) -> str:
    return next((part for mark, part in PARTS.items() if mark in name), "loop")


def figures(profiler: profile) -> tuple[dict[str, float], Counter[str]]:
    """(milliseconds of an update by part, reads of the host by name) of the updates looked at."""
    events = [event for event in profiler.events() or [] if event.device_type == DeviceType.CPU]
    steps = [event for event in events if event.name.startswith("ProfilerStep")]
    begin, end = min(e.time_range.start for e in steps), max(e.time_range.end for e in steps)
    spans = [
        Span(event.name, event.time_range.start, event.time_range.end)
        for event in events
        if event.thread == steps[0].thread and event.is_user_annotation and event not in steps
    ]
    spent = {name: ms / ACTIVE for name, ms in parts(spans, begin, end).items()}
    return spent, Counter(event.name for event in events if event.name in SYNCS)


def _lines(
    spent: Mapping[str, float],
    waits: Mapping[str, int],
    what: str,
    device: torch.device,
    table: Callable[[layout.Row, Iterable[layout.Row]], list[str]],
) -> Iterator[str]:
    total = sum(spent.values())
    work = sum(spent.get(name, 0.0) for name in WORK)
    yield f"{what}: an update takes {total:.2f} ms on {hardware.device_name(device)}, {work / total:.0%} of it work\n"
    yield "Work is forward, backward and optimizer; host time, looked at by a profiler that slows small operations.\n"
    shares = sorted(spent.items(), key=lambda item: -item[1])
    yield from table(PART, [(name, f"{ms:.3f}", f"{ms / total:.1%}") for name, ms in shares])
    told = ", ".join(f"{name} {count / ACTIVE:.1f}" for name, count in waits.items()) or "none"
    yield f"\nReads of a number by the host, per update: {told}."
