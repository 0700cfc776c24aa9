"""The table of measured results in a project's README, made from reports and never typed.

    python -m shared.training.results_table arc runs/arc/nano/001 runs/arc/nano/002    # take up runs, write the table
    python -m shared.training.results_table arc runs/arc/nano/003 --as four-tasks      # under a name of its own
    python -m shared.training.results_table arc                                        # write the table again

`results/goals.yaml` beside the README lists the goals; `results/measured.json` keeps the numbers of the runs that were
taken up, one entry per name (by default the run's size) and seed, and is committed with the table. Knows files only.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from shared.training import layout, report, runs
from shared.training.errors import Mistake, choices, nearest, told

HEAD = ("goal", "must", "moonshot", "measured", "command", "commit", "hardware", "seeds")
NOT_MEASURED = "not measured"
GOALS, MEASURED = Path("results/goals.yaml"), Path("results/measured.json")


def home(project: str, root: Path = Path(".")) -> Path:
    """The folder of a project's README."""
    return root / ("shared/training/template" if project == "template" else f"projects/{project}")


def entry(folder: str, project: str) -> tuple[str, str, dict[str, Any]]:
    """(size, seed, what is kept) of a run. Raises Mistake for a run of another project, or one never evaluated."""
    run = runs.reopen(folder)
    if run.project != project:
        raise Mistake(f"{run.folder} is a run of {run.project}, not of {project}. Give one of {project}.")
    path = run.folder / "report.json"
    said = runs.read_json(path) if path.exists() else {}
    if not said.get("headline"):
        raise Mistake(f"{run.folder} was not evaluated: make evaluate PROJECT={project} CKPT={run.folder} first.")
    first = said["starts"][0]
    kept = ("command", "parameters", "updates", "data", "data_fingerprint", "facts", "metrics")
    content = {
        **{key: said[key] for key in kept},
        "commit": first.get("git") or "unknown",
        "hardware": first["machine"]["device"],
        "versions": first["versions"],
        "training seconds": said["wall_clock_s"],
        "peak memory GB": said["peak_memory_gb"],
        **said["throughput"],
    }
    return run.size, str(said["seed"]), content


def rows(goals: Sequence[Mapping[str, Any]], results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """One row per goal (goal, must, moonshot, run, metric, command, hardware while it is not measured)."""
    return [_row(goal, results.get(str(goal.get("run")), {})) for goal in goals]


def _row(goal: Mapping[str, Any], seeds: Mapping[str, Any]) -> list[str]:
    wanted = [str(goal.get(key, "-")) for key in ("goal", "must", "moonshot")]
    command = f"`{goal['command']}`"
    if not seeds:
        return [*wanted, NOT_MEASURED, command, "-", str(goal.get("hardware", "-")), "-"]
    measured = f"**{value(goal, seeds)}**"
    origins = [", ".join(dict.fromkeys(str(each[key]) for each in seeds.values())) for key in ("commit", "hardware")]
    return [*wanted, measured, command, *origins, ", ".join(seeds)]


def value(goal: Mapping[str, Any], seeds: Mapping[str, Any]) -> str:
    """One seed: the value and its 95 % interval; several: their mean and range."""
    metrics = [metric(goal, each) for each in seeds.values()]
    values = [each["value"] for each in metrics]
    if len(values) == 1:
        span = report.span(metrics[0])
        return report.number(values[0]) + (f" ({span})" if span != "-" else "")
    mean = report.number(sum(values) / len(values))
    return f"{mean} ({report.number(min(values))} .. {report.number(max(values))} over {len(values)} seeds)"


def metric(goal: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The metric a goal names, or a number of the run such as `training seconds`."""
    name = goal["metric"]
    found = {each["name"]: each for each in result["metrics"]}
    found |= {
        key: {"value": number, "low": None, "high": None}
        for key, number in result.items()
        if isinstance(number, int | float)
    }
    if name not in found:
        raise Mistake(
            f"Goal `{goal['goal']}` names the metric `{name}`, but {goal['run']} has {choices(found)}."
            + nearest(name, found)
        )
    return found[name]


def table(folder: Path) -> list[str]:
    """The lines of the table, from the two files of a project's `results`."""
    goals, results = folder / GOALS, folder / MEASURED
    if not goals.exists():
        raise Mistake(f"{goals} does not exist: list the goals there (see {home('template') / GOALS}).")
    kept = runs.read_json(results) if results.exists() else {}
    return layout.markdown(HEAD, rows(yaml.safe_load(goals.read_text(encoding="utf-8")), kept))


def main(words: Sequence[str], root: Path = Path(".")) -> None:
    parser = argparse.ArgumentParser(prog="python -m shared.training.results_table", allow_abbrev=False)
    parser.add_argument("project")
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--as", dest="name", help="the name that the goals give these runs; default: their size")
    asked = parser.parse_args(words)
    folder = home(asked.project, root)
    path = folder / MEASURED
    kept = runs.read_json(path) if path.exists() else {}
    for run in asked.runs:
        name, seed, content = entry(run, asked.project)
        kept.setdefault(asked.name or name, {})[seed] = content
    if asked.runs:
        path.parent.mkdir(exist_ok=True)
        runs.write_json(path, kept)
    lines = table(folder)
    print("\n".join(lines))
    changed = layout.insert(folder / "README.md", "measured", lines)
    print(f"\n{'written' if changed else 'unchanged':<11} {folder / 'README.md'}")


if __name__ == "__main__":
    with told():
        main(sys.argv[1:])
