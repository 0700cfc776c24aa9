"""What the line is measured by: goals beside what a run reaches, its floors and its twin.

    python -m projects.text bench --run runs/text/nano/001 --vs runs/text/nano/ar [--num-samples 10000]

`results/goals.yaml` says which metric counts, in which direction, and how far from the twin a moonshot may stay. The
table is printed and kept in the run as bench.md and bench.json. Knows a module only by what it walks and measures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from packages.text.fluency import ParseRate
from packages.text.rows import Words
from packages.text.table import Floors, Row, beside, measure
from projects.text import levels
from projects.text.evaluate import metric, standing
from projects.text.likelihood import Likelihood, NLLBound
from projects.text.options import Options
from shared.training import layout, report, runs
from shared.training.batches import Share
from shared.training.errors import Mistake
from shared.training.layers import arrange, flag_values
from shared.training.report import Metric
from shared.training.tables import replace_text

if TYPE_CHECKING:
    from projects.text.data import Sentences
    from projects.text.module import TextDiffusion
    from projects.text.sampling import Sampling

GOALS = Path("projects/text/results/goals.yaml")
HEAD = ["goal", "must", "moonshot", "measured", "floor", "twin", "pass"]
FEW = (8, 4)  # steps of short walks
TIMED = (256, 32)  # sentences and steps of the walk that is timed


@dataclass
class GoalsOptions:
    """vs: a run to stand beside, the autoregressive twin. samples: sentences drawn. sentences, levels: of the bound."""

    vs: str | None = None
    samples: int = 10_000
    sentences: int = 2000
    levels: int = 64


def goals(cli: Any) -> None:
    """goals, what a run reaches, its floors and its twin: CKPT=<run> [--goals.vs <run>]; `bench --run` says the same"""
    options: GoalsOptions = cli.options.goals
    if cli.checkpoint is None:
        raise Mistake("goals measures the weights of a run and none is named; give --run runs/text/<size>/<run>.")
    other = None if options.vs is None else twin(cli, options.vs)
    with cli.drawing():
        mine = {**core(cli.model, options), **more(cli.model, options)}
    beside: Mapping[str, Metric] = {}
    if other is not None:
        with other.drawing():
            beside = core(other.model, options)
        mine |= behind(mine, beside)
    rows = [judged(goal, mine, beside) for goal in of(cli.datamodule.options)]
    print("\n".join(layout.plain(HEAD, rows)))
    folder = cli.run_of_weights().folder
    replace_text(folder / "bench.md", "\n".join(layout.markdown(HEAD, rows)) + "\n")
    found = {name: [asdict(metric) for metric in metrics.values()] for name, metrics in (("run", mine), ("vs", beside))}
    runs.write_json(folder / "bench.json", {**asdict(options), **found})
    print(f"\nwritten     {folder / 'bench.md'}, bench.json")


def opened(cli: Any, folder: str | Path, *flags: str) -> Any:
    """The command line of another run, with flags of its own."""
    layers = arrange(cli.layers.project, cli.verb, [f"--ckpt_path={folder}", *flags])
    verbs = {cli.verb: cli.action}
    return type(cli)(type(cli.model), type(cli.datamodule), layers, cli.verb, verbs, cli.own_groups)


def twin(cli: Any, folder: str) -> Any:
    """The command line of another run. Raises Mistake where its data are not the same."""
    text = [f"--{name}={value}" for name, value in flag_values(cli.layers.flags) if name.startswith("data.")]
    other = opened(cli, folder, *text)
    for key, here in cli.datamodule.describe().items():
        if (there := other.datamodule.describe().get(key)) != here:
            raise Mistake(
                f"{folder} was trained on other data: its {key} is {there}, not {here}. Give one of the same."
            )
    return other


# --- what is measured


def drawn(module: TextDiffusion, options: Sampling, count: int) -> list[Words]:
    """Sentences 0 .. count - 1, as rows of words."""
    found: list[Words] = []
    for first in range(0, count, size := module.data.at_once):
        found += module.words(module.walked(list(range(first, min(first + size, count))), options).ids)
    return found


def held_out(module: TextDiffusion, count: int) -> Iterator[Sentences]:
    """Sentences from all over the test, `count` of them or all there are."""
    data = module.data
    index = data.measured(count)
    for first in range(0, len(index), size := data.at_once):
        yield data.sentences("test", Share.of(index[first : first + size])).to(module.device)


def core(module: TextDiffusion, options: GoalsOptions) -> dict[str, Metric]:
    """Metrics of drawn sentences, and the likelihood."""
    found = measured(module, drawn(module, module.sampling, options.samples))
    return {**found, **{metric.name: metric for metric in likelihood(module, options)}}


def likelihood(module: TextDiffusion, options: GoalsOptions) -> list[Metric]:
    """Of held-out sentences."""
    source, asked = module.data.source, Likelihood(options.sentences, options.levels)
    bound = NLLBound(asked, source.tokens_per_word, floors=source.counted)
    for batch in held_out(module, options.sentences):
        bound.add(module, batch)
    return bound.metrics()


def measured(module: TextDiffusion, rows: Sequence[Words], floors: Floors | None = None) -> dict[str, Metric]:
    """Every metric of the table by name, and those that goals are counted in. floors: of as many sentences."""
    source = module.data.source
    floors = source.floors(len(rows)) if floors is None else floors
    table = [*beside(measure(map(source.said, rows), source.metrics()), floors), *source.faithful(rows)]
    found: dict[str, Row] = {row.name: row for row in table}
    return {each.name: each for each in [*map(metric, found.values()), *standing(found)]}


def behind(mine: Mapping[str, Metric], twin: Mapping[str, Metric]) -> dict[str, Metric]:
    """How a run's likelihood stands to its twin's: nats per word over it, and the ratio of the perplexities."""
    own, other = mine["perplexity"], twin["perplexity"]
    gap = math.log(own.value / other.value)
    wide = math.hypot(*(math.log(each.high / each.value) for each in (own, other)))  # the draws of both

    def metric(name: str, said: Callable[[float], float]) -> Metric:
        return Metric(name, said(gap), own.n, said(gap - wide), said(gap + wide), {"twin": said(0.0)})

    found = [metric("nats_per_word_over_twin", float), metric("perplexity_over_twin", math.exp)]
    return {each.name: each for each in found}


def more(module: TextDiffusion, options: GoalsOptions) -> dict[str, Metric]:
    """What only some models have: short walks, their speed, skill where words are decided."""
    found = [metric for steps in FEW for metric in short(module, steps, options.samples)]
    found.append(speed(module))
    found += levels.skilled(levels.star(module, levels.few(module, "test", levels.ASKED)))
    return {metric.name: metric for metric in found}


def short(module: TextDiffusion, steps: int, count: int) -> Iterator[Metric]:
    """The parse rate of walks of few steps, if the model can take them and a grammar can say."""
    options = replace(module.sampling, steps=steps)
    if module.data.grammar and module.objective.told(options, module.network.length).steps == steps:
        parse = ParseRate(module.data.grammar, sync_on_compute=False)
        parse.update(drawn(module, options, count))
        yield Metric(f"parse_at_{steps}", float(parse.compute()[0]), count)


def speed(module: TextDiffusion) -> Metric:
    """Tokens per second of one walk of TIMED."""
    count, steps = TIMED
    start = time.perf_counter()
    ids = module.walked(list(range(count)), replace(module.sampling, steps=steps)).ids
    return Metric("sampled_tokens_per_s", ids.numel() / (time.perf_counter() - start), ids.numel())


# --- goals


def of(text: Options) -> list[Mapping[str, Any]]:
    """The goals that are meant for that text; those of a grammar for its level, or for any."""
    every = yaml.safe_load(GOALS.read_text(encoding="utf-8"))
    kind = "pairs" if text.conditional else text.source if text.source in ("grammar", "e2e") else "text"
    every = [goal for goal in every if goal.get("text", "grammar") == kind]
    return [goal for goal in every if goal.get("level", text.level) == text.level]


def judged(goal: Mapping[str, Any], found: Mapping[str, Metric], beside: Mapping[str, Metric]) -> list[str]:
    """One row of the table: must, moonshot, better (more, less or near, of 0), metric; twin: how far the moonshot lets
    the run stay behind the twin."""
    wanted = [str(goal.get(key, "-")) for key in ("goal", "must", "moonshot")]
    metric, other = found.get(goal["metric"]), beside.get(goal["metric"])
    twin = "-" if other is None else report.number(other.value)
    if metric is None:
        return [*wanted, "not measured", "-", twin, "-"]
    floors = ", ".join(f"{name} {report.number(value)}" for name, value in metric.floors.items()) or "-"
    span = report.span(metric.__dict__)
    value = report.number(metric.value) + (f" ({span})" if span != "-" else "")
    return [*wanted, value, floors, twin, verdict(goal, metric.value, None if other is None else other.value)]


def verdict(goal: Mapping[str, Any], value: float, twin: float | None) -> str:
    """moonshot, yes, or by how much it is missed."""

    def missing(wanted: float) -> float:
        distance = {"more": wanted - value, "less": value - wanted, "near": abs(value) - wanted}
        return distance[goal.get("better", "more")]

    far = [missing(goal["moonshot"])] if "moonshot" in goal else []
    if "twin" in goal and far:
        behind = goal["twin"] * (1 if goal.get("better") == "less" else -1)
        far.append(1.0 if twin is None else missing(twin + behind))
    if far and max(far) <= 0:
        return "moonshot"
    if "must" not in goal:
        return "no" if far else "-"
    return "yes" if missing(goal["must"]) <= 0 else f"no, by {report.number(missing(goal['must']))}"
