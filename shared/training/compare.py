"""`make compare RUNS="a b"`: two runs of one project side by side: what was set differently, and what came of it.

Prints the table and writes it with the curves to `runs/compare/<a>-vs-<b>.{md,html}`. Reads run folders only; a run
that was never evaluated is compared by its last validation.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy

from shared.training import layout, report, runs, webpage
from shared.training.errors import Mistake, told
from shared.training.tables import read_table, replace_text

Curve = list[tuple[float, float]]
AXES = ("updates", "samples", "hours")
PACES = {"samples_per_s": "samples per second", "step_ms_p50": "ms per update", "mfu": "MFU"}


def main(folders: Sequence[str]) -> None:
    """Print the comparison and write both files."""
    pair = _pair(folders)
    names = _names(pair)
    tables = {"Configuration": differences(pair, names), "Results": results(pair, names)}
    home = pair[0].folder.parent.parent.parent / "compare"
    for title, (head, rows) in tables.items():
        print("\n".join(["", title, *layout.plain(head, rows)] if rows else ["", f"{title}: no difference"]))
    home.mkdir(parents=True, exist_ok=True)
    path = home / f"{'-vs-'.join(name.replace('/', '-') for name in names)}.md"
    replace_text(path, "\n".join(_markdown(names, tables)) + "\n")
    replace_text(path.with_suffix(".html"), webpage.page(" / ".join(names), _page(names, tables, pair)))
    print(f"\nwritten     {path}, {path.with_suffix('.html').name}")


def _pair(folders: Sequence[str]) -> list[runs.Run]:
    if len(folders) != 2:
        raise Mistake(f'compare takes two runs, {len(folders)} are given: make compare RUNS="runs/... runs/...".')
    pair = [runs.reopen(folder) for folder in folders]
    (a, b), (project, other) = pair, (run.project for run in pair)
    if project != other:
        raise Mistake(
            f"{a.folder} is a run of {project}, {b.folder} one of {other}: their numbers mean different things."
            f" Give two runs of {project} or two of {other}."
        )
    return pair


def _names(pair: Sequence[runs.Run]) -> list[str]:
    """The shortest ends of the two paths that tell them apart: 001 and 002, or nano/001 and smol/001."""
    parts = [run.folder.absolute().parts for run in pair]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]).strip("/") for each in parts]
        if names[0] != names[1]:
            return names
    raise Mistake(f"{pair[0].folder} is named twice. Give two different runs.")


def differences(pair: Sequence[runs.Run], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """(head, rows): every key that differs, and code and data where they do."""
    texts = [runs.read_config(run.folder) for run in pair]
    rows = [[key, before, after] for key, before, after in runs.differing_leaves(*texts)]
    starts = [run.manifest["starts"][-1] for run in pair]
    for key in ("git", "data", "machine", "versions"):
        if starts[0].get(key) != starts[1].get(key):
            rows.append([f"({key})", *(_told(start.get(key)) for start in starts)])
    return ["key", *names], rows


def _told(fact: Any) -> str:
    if isinstance(fact, Mapping):
        return ", ".join(f"{key} {value}" for key, value in fact.items())
    return str(fact or "unknown")


def results(pair: Sequence[runs.Run], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """(head, rows): every metric of either run with its interval, then size, time and pace."""
    reports = [_report(run) for run in pair]
    metrics = [{m["name"]: m for m in content["metrics"]} for content in reports]
    every = dict.fromkeys([*metrics[0], *metrics[1]])
    rows = [[name, *(_measured(found.get(name)) for found in metrics)] for name in every]
    facts = [dict(report.facts(content)) for content in reports]
    kept = ("parameters", "updates", "training took", "peak memory", "seed")
    rows += [[name, *(each.get(name, "-") for each in facts)] for name in kept if any(name in each for each in facts)]
    speeds = [content["throughput"] for content in reports]
    known = {key: name for key, name in PACES.items() if any(key in speed for speed in speeds)}
    rows += [[name, *(report.number(speed.get(key)) for speed in speeds)] for key, name in known.items()]
    return ["", *names], rows


def _report(run: runs.Run) -> dict[str, Any]:
    path = run.folder / "report.json"
    return report.gather(run) | (runs.read_json(path) if path.exists() else {})


def _measured(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return "-"
    span = report.span(metric)
    return report.number(metric["value"]) + (f" ({span})" if span != "-" else "")


def curves(run: runs.Run, axis: str) -> dict[str, Curve]:
    """Losses and validation metrics over updates, samples seen, or hours of training."""
    table, perf = (read_table(run.folder / name) for name in ("metrics.csv", "perf.csv"))
    known, values = _scale(perf, axis)
    lines = {name: list(column.items()) for name, column in table.items() if name.startswith(("train/loss", "val/"))}
    return {
        name: [(float(numpy.interp(update, known, values)), value) for update, value in line]
        for name, line in lines.items()
    }


def _scale(perf: Mapping[str, Mapping[int, float]], axis: str) -> tuple[list[float], list[float]]:
    """(updates, what the axis counts by then), from 0."""
    updates = sorted(perf.get("update", {}))
    if axis == "updates":
        return [0.0, 1e12], [0.0, 1e12]
    if axis == "hours":
        return [0.0, *updates], [0.0, *(perf["seconds"][update] / 3600 for update in updates)]
    paces = [perf["perf/samples_per_s"][update] / perf["perf/updates_per_s"][update] for update in updates]
    seen = numpy.cumsum([(after - before) * pace for before, after, pace in zip([0, *updates], updates, paces)])
    return [0.0, *updates], [0.0, *seen.tolist()]


def _markdown(names: Sequence[str], tables: Mapping[str, tuple[list[str], list[list[str]]]]) -> Iterator[str]:
    yield f"# {names[0]} and {names[1]}"
    for title, (head, rows) in tables.items():
        yield f"\n## {title}\n"
        yield from layout.markdown(head, rows) if rows else ["No difference."]


def _page(
    names: Sequence[str], tables: Mapping[str, tuple[list[str], list[list[str]]]], pair: Sequence[runs.Run]
) -> Iterator[str]:
    yield webpage.heading(f"{names[0]} and {names[1]}")
    for title, (head, rows) in tables.items():
        yield webpage.section(title, webpage.table(head, rows) if rows else webpage.prose("No difference."))
    for axis in AXES:
        found = [curves(run, axis) for run in pair]
        every = dict.fromkeys([*found[0], *found[1]])
        panels = {title: {name: lines.get(title, []) for name, lines in zip(names, found)} for title in every}
        yield webpage.section(f"Over {axis}", webpage.curves(panels, axis))


if __name__ == "__main__":
    with told():
        main(sys.argv[1:])
