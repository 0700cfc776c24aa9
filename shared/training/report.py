"""What a run reports: metrics beside their floors, how they were measured, and the command that repeats them.

`write` reads the run folder (manifest, plan, config, tables) and what the module measured, and leaves `report.json` for
programs, `report.md` with `curves.png` for people, and `report.html`, one file to send. Knows files; the Trainer only
through `WriteReport`.
"""

import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from shared.training import layout, webpage
from shared.training.errors import told
from shared.training.logs import part
from shared.training.runs import Run, data_fingerprint, read_json, rehearsed, reopen, write_json
from shared.training.tables import read_table, replace_text, replacing


@dataclass(frozen=True)
class Metric:
    """One measured number. n: how many things it was measured on; low, high: its 95 % interval; floors: what a
    method without learning reaches on the same things, by name."""

    name: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    floors: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """What `module.results(folder)` gives. headline: the run's last result line; sections: (title, markdown);
    files: what it wrote into the folder, pictures among them; facts: denominators and settings worth stating."""

    headline: str
    metrics: list[Metric] = field(default_factory=list)
    sections: list[tuple[str, str]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)


def interval(values: Sequence[float], repeats: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of `values`, one per independent thing (Efron 1979, percentiles)."""
    numbers = numpy.asarray(values, dtype=float)
    draws = numpy.random.default_rng(seed).integers(len(numbers), size=(repeats, len(numbers)))
    low, high = numpy.quantile(numbers[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


class WriteReport(Callback):
    """Asks the module for its results when a test has ended, while it still holds the averaged weights."""

    def __init__(self, run: Run, *, at_fit_end: bool = False):
        self.run, self.at_fit_end = run, at_fit_end

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero and not rehearsed(trainer):
            results = pl_module.results(self.run.folder) if hasattr(pl_module, "results") else None
            write(self.run, results, getattr(pl_module, "weights_from", None), memory=_resident_gb())
            if results:
                self.run.say(results.headline)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.at_fit_end and trainer.is_global_zero and not rehearsed(trainer):
            write(self.run, memory=_resident_gb())


def write(run: Run, results: Results | None = None, weights: Any = None, memory: float | None = None) -> Path:
    """report.json, report.md with curves.png, and report.html of a run.

    weights: the file evaluated (None: the run's final average). memory: gigabytes that this process needed for it.
    """
    content, table = gather(run, results, weights, memory), read_table(run.folder / "metrics.csv")
    curves, given = run.folder / "curves.png", results.files if results else []
    drawn = [curves] if draw_curves(table, curves) else []
    content["files"] = [_inside(run, file) for file in [*drawn, *given]]
    content["sections"] = results.sections if results else []
    pictures = _pictures(run, given)
    write_json(run.folder / "report.json", content)
    shown = [_inside(run, file) for file in [*drawn, *pictures]]
    replace_text(run.folder / "report.md", "\n".join(markdown(content, shown)) + "\n")
    replace_text(run.folder / "report.html", webpage.page(title(content), page(run, content, table, pictures)))
    return run.folder / "report.md"


def again(folder: str) -> None:
    """`make report RUN=...`: the report of a run, killed ones too, from its files; what a test measured stays."""
    run = reopen(folder)
    path = run.folder / "report.json"
    said = read_json(path) if path.exists() else {}
    results = None
    if said.get("headline"):
        results = Results(
            said["headline"],
            [Metric(**metric) for metric in said["metrics"]],
            [(title, text) for title, text in said.get("sections", [])],
            [run.folder / file for file in said["files"] if file != "curves.png"],
            said["facts"],
        )
    path = write(run, results, said.get("weights"))
    print(f"written     {path}, {path.with_suffix('.html').name}, {path.with_suffix('.json').name}")


def gather(
    run: Run, results: Results | None = None, weights: Any = None, memory: float | None = None
) -> dict[str, Any]:
    """Everything report.json says, from the run's own files."""
    manifest, plan = run.manifest, _json_if_there(run.folder / "plan.json")
    config = _yaml_if_there(run.folder / "config.yaml")
    perf = read_table(run.folder / "perf.csv")
    return {
        "run": str(run.folder),
        "project": run.project,
        "stage": run.stage,
        "size": run.size,
        "headline": results.headline if results else None,
        "metrics": [asdict(metric) for metric in results.metrics] if results else _last_validation(run),
        "facts": results.facts if results else {},
        "weights": str(weights) if weights else "averaged weights at the end of training",
        "data": plan.get("data") or {},
        "data_fingerprint": data_fingerprint(plan.get("data") or {}),
        "seed": config.get("seed_everything"),
        "parameters": plan.get("parameters"),
        "trainable": plan.get("trainable"),
        "updates": manifest.get("finished", {}).get("update", max(perf["update"]) if perf else 0),
        "batch_size": plan.get("batch_size"),
        "throughput": _throughput(perf),
        "wall_clock_s": manifest.get("finished", {}).get("seconds", max(perf["seconds"].values()) if perf else None),
        "peak_memory_gb": _peak_memory(run, perf, memory),
        "command": manifest["starts"][0]["command"],
        "starts": manifest["starts"],
    }


def _throughput(perf: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """Medians over the logging intervals."""
    return {
        name.removeprefix("perf/"): median(column.values()) for name, column in perf.items() if name.startswith("perf/")
    }


def _last_validation(run: Run) -> list[dict[str, Any]]:
    table = read_table(run.folder / "metrics.csv")
    shown = {name: column for name, column in table.items() if name.startswith("val/") and not part(name)}
    return [asdict(Metric(name, column[max(column)], 0)) for name, column in shown.items()]


def _peak_memory(run: Run, perf: Mapping[str, Mapping[int, float]], memory: float | None) -> float | None:
    """Of the card where there is one, else of the process, the largest one that reported; None for a killed run."""
    if "perf/memory_gb" in perf:
        return max(perf["perf/memory_gb"].values())
    earlier = _json_if_there(run.folder / "report.json").get("peak_memory_gb")
    return max((each for each in (memory, earlier) if each is not None), default=None)


def _resident_gb() -> float:
    """Largest resident memory of this process so far (ru_maxrss counts kilobytes on Linux, bytes on macOS)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def panels(table: Mapping[str, Mapping[int, float]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Title -> lines by name: losses of training and validation in one, then every other validation metric."""
    kept = {name: column for name, column in table.items() if not part(name)}
    shown = {name: column for name, column in kept.items() if name.startswith(("train/loss", "val/"))}
    points = {name: [(float(update), value) for update, value in column.items()] for name, column in shown.items()}
    losses = {name: line for name, line in points.items() if name.endswith("/loss")}
    others = {name: {name: line} for name, line in points.items() if name not in losses}
    return {"loss": losses, **others} if "train/loss" in losses else {}


def draw_curves(table: Mapping[str, Mapping[int, float]], path: Path) -> bool:
    """The first six panels over updates; False when there is no row."""
    shown = dict(list(panels(table).items())[:6])
    if not shown:
        return False
    from matplotlib.figure import Figure  # half a second, and only reports need it

    figure = Figure(figsize=(4.2 * len(shown), 3), layout="constrained")
    for axes, (name, lines) in zip(numpy.atleast_1d(figure.subplots(1, len(shown))), shown.items()):
        for label, points in lines.items():
            axes.plot(*zip(*points), marker="." if len(points) < 20 else None, label=label)
        axes.set(title=name, xlabel="update")
        axes.grid(alpha=0.3)
        if name == "loss":
            axes.legend(frameon=False)
            values = [value for points in lines.values() for _, value in points]
            axes.set_yscale("log" if 0 < 10 * min(values) < max(values) else "linear")
    save_figure(figure, path, 110)
    return True


def save_figure(figure: Any, path: Path, dpi: int) -> Path:
    """A figure of matplotlib as PNG, whole or not there."""
    with replacing(path) as file:
        figure.savefig(file, dpi=dpi)
    return path


def title(content: Mapping[str, Any]) -> str:
    """arc nano: 001"""
    name = "-".join(filter(None, [content["project"], content["stage"]]))
    return f"{name} {content['size']}: {Path(content['run']).name}"


def _headline(content: Mapping[str, Any]) -> str:
    return content["headline"] or "Not evaluated yet; the numbers are the last validation's."


def markdown(content: Mapping[str, Any], pictures: Sequence[str]) -> Iterator[str]:
    """The lines of report.md."""
    yield f"# {title(content)}\n"
    yield f"**{content['headline']}**\n" if content["headline"] else _headline(content) + "\n"
    yield from layout.markdown(*metric_table(content["metrics"]))
    yield ""
    yield from (f"![{Path(picture).stem}]({picture})" for picture in pictures)
    for name, text in content["sections"]:
        yield f"\n## {name}\n\n{text}"
    yield "\n## To repeat it\n"
    yield f"```\n{content['command']}\n```\n"
    yield from layout.markdown(["", ""], facts(content))


def page(
    run: Run, content: Mapping[str, Any], table: Mapping[str, Mapping[int, float]], pictures: Sequence[Path]
) -> Iterator[str]:
    """The parts of report.html."""
    yield webpage.heading(title(content), _headline(content))
    yield webpage.table(*metric_table(content["metrics"]))
    yield webpage.section("Curves", webpage.curves(panels(table)))
    yield webpage.section("Pictures", webpage.pictures(pictures))
    for name, text in content["sections"]:
        yield webpage.section(name, webpage.prose(text))
    yield webpage.section("To repeat it", webpage.code(content["command"]))
    yield webpage.section("How it was measured", webpage.table(["", ""], facts(content)))
    config = run.folder / "config.yaml"
    if config.exists():
        yield webpage.folded("Configuration", webpage.code(config.read_text(encoding="utf-8")))


def metric_table(metrics: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(head, rows): each metric beside its interval and floors."""
    floors = list(dict.fromkeys(floor for metric in metrics for floor in metric["floors"]))
    head = ["metric", "value", "95 % interval", "n", *(f"floor: {floor}" for floor in floors)]
    rows = [
        [m["name"], f"**{number(m['value'])}**", span(m), f"{m['n'] or '-'}"]
        + [number(m["floors"].get(floor)) for floor in floors]
        for m in metrics
    ]
    return head, rows


def span(metric: Mapping[str, Any]) -> str:
    """0.4 .. 0.6"""
    low, high = metric["low"], metric["high"]
    return "-" if low is None or high is None else f"{number(low)} .. {number(high)}"


def facts(content: Mapping[str, Any]) -> list[list[str]]:
    """(name, value) rows of how it was measured."""
    first, speed = content["starts"][0], content["throughput"]
    stated = {
        **{f"data {key}": value for key, value in content["data"].items()},
        "data fingerprint": content["data_fingerprint"],
        "seed": content["seed"],
        "weights evaluated": content["weights"],
        **content["facts"],
        "parameters": _count(content["parameters"]),
        "updates": _count(content["updates"])
        + (f" of {content['batch_size']} samples" if content["batch_size"] else ""),
        "training took": f"{content['wall_clock_s']:.1f} s" if content["wall_clock_s"] else None,
        "throughput": _pace(speed) if speed else None,
        "peak memory": f"{content['peak_memory_gb']:.2f} GB" if content["peak_memory_gb"] else None,
        "machine": f"{first['machine']['device']}, {first['machine']['system']}",
        "versions": ", ".join(f"{key} {value}" for key, value in first["versions"].items()),
        "code": first.get("git"),
        "starts": _count(len(content["starts"])),
    }
    return [[name, str(value)] for name, value in stated.items() if value not in (None, "")]


def _pace(speed: Mapping[str, float]) -> str:
    parts = [f"{speed['samples_per_s']:,.0f} samples/s"]
    if speed["units_per_s"] not in (0, speed["samples_per_s"]):
        parts.append(f"{speed['units_per_s']:,.0f} units/s")
    parts += [f"{1000 * speed['tflops']:,.0f} GFLOP/s per process"] if "tflops" in speed else []
    shares = {"mfu": "of the card's peak (MFU)", "gemm_share": "of one matrix product's speed"}
    parts += [f"{speed[name]:.1%} {of}" for name, of in shares.items() if name in speed]
    waiting = f"{100 * speed['wait_fraction']:.0f} % waiting for data"
    parts += [f"update {speed['step_ms_p50']:.1f} ms (p95 {speed['step_ms_p95']:.1f})", waiting]
    return ", ".join(parts)


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"


def number(value: float | None) -> str:
    """Four significant digits, whole numbers whole."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if float(value).is_integer() or 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def _pictures(run: Run, files: Sequence[Path]) -> list[Path]:
    """Pictures to show: those given, and the newest snapshot's."""
    sets = sorted((f for f in run.samples.glob("*") if f.name.isdigit()), key=lambda f: int(f.name))
    newest = sorted(sets[-1].iterdir()) if sets else []
    return [file for file in dict.fromkeys([*files, *newest]) if file.suffix in webpage.IMAGES and file.exists()]


def _inside(run: Run, file: Path) -> str:
    return str(file.relative_to(run.folder)) if file.is_relative_to(run.folder) else str(file)


def _json_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _yaml_if_there(path: Path) -> dict[str, Any]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}


if __name__ == "__main__":
    with told():
        again(sys.argv[1])
