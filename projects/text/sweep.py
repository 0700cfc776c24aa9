"""Which way back, in how many steps: every kind of walk times every number of steps, on the weights of one run.

    python -m projects.text bench --run runs/text/nano/001 --what sampler [--num-samples 500] [--full]

All cells draw sentences of the same numbers, so they start from the same noise. The table is printed and kept in the
run as sampler.md; sampler.json keeps every cell with the weights and options it was measured of, so the same command
goes on where it was stopped. Knows a module only by what it walks and measures.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from statistics import mean
from typing import Any, NamedTuple, get_args, get_type_hints

from packages.text.table import Floors, Row
from projects.text import evaluate, goals, kept
from projects.text.commands import require_noise, require_run
from projects.text.kept import Kept
from projects.text.sampling import Sampling
from shared.training import checkpoints, layout, report
from shared.training.report import Metric
from shared.training.tables import replace_text

KINDS = get_args(get_type_hints(Sampling)["kind"])
STEPS, MANY = (4, 8, 16, 32, 64), 256
SAMPLES, SEEDS = (500, 2000), (1, 3)  # of a plain sweep and of a full one
SHOWN = {
    "parse": "parse rate",
    "unigram_kl_excess": "unigram KL",
    "bigram_kl_excess": "bigram KL",
    "length_tv_excess": "length TV",
    "distinct_2_off": "distinct-2",
}
HEAD = ["kind", "steps", "calls", *SHOWN.values(), "tokens/s"]
BESIDE = "divergences in nats, lengths and distinct-2 as they stand to the true sampler's"
OF_A_CELL = ("kind", "steps", "count", "first")  # options of a walk that the cell says itself
RULE = "of those whose interval reaches the highest parse rate, the lowest bigram KL"


@dataclass
class SamplerOptions:
    """samples: sentences of a cell (None: 500, full 2,000). full: three seeds, and 256 steps too. kinds, steps: of the
    table."""

    samples: int | None = None
    full: bool = False
    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    steps: list[int] = field(default_factory=lambda: list(STEPS))

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise ValueError(f"sampler.kinds has {unknown[0]}; wanted some of {', '.join(KINDS)}.")
        self.samples = SAMPLES[self.full] if self.samples is None else self.samples
        if least := [n for n in (self.samples, *self.steps) if n < 1]:
            raise ValueError(f"sampler.samples and sampler.steps count from 1, and {least[0]} is given.")

    def walks(self) -> Iterator[Walked]:
        """The cells, few steps first."""
        steps = [*self.steps, *([MANY] if self.full and MANY not in self.steps else [])]
        for count in steps:
            yield from (Walked(kind, count, seed) for kind in self.kinds for seed in range(SEEDS[self.full]))


class Walked(NamedTuple):
    """One cell: a way, its steps, and which of the seeds, counted from that of the run."""

    kind: str
    steps: int
    seed: int

    @property
    def calls(self) -> int:
        """Of the network, per sentence: Heun looks twice at every step but the last."""
        return 2 * self.steps - 1 if self.kind == "heun" else self.steps


Table = dict[Walked, dict[str, Metric]]


def sampler(cli: Any) -> None:
    """kinds of walk times steps on one run: CKPT=<run> [--sampler.full true]; `bench --what sampler` says the same"""
    require_run(cli, "sampler walks")
    require_noise(cli.model, "sampler")
    folder, options = cli.run_of_weights().folder, cli.options.sampler
    with cli.drawing():
        sweep = Sweep(cli.model, options, Kept(folder / "sampler.json"))
        table = by_seed([(walked, sweep.cell(walked)) for walked in sweep.walks])
    rows = [line(walked, metrics) for walked, metrics in table.items()]
    cells = f"{options.samples:,} sentences a cell, {SEEDS[options.full]} seed(s); {BESIDE}"
    said = ["", cells, "", *winners(table)]
    print("\n".join(["", *layout.plain(HEAD, rows), *said]))
    replace_text(folder / "sampler.md", "\n".join([*layout.markdown(HEAD, rows), *said]) + "\n")
    print(f"\nwritten     {folder / 'sampler.md'}, sampler.json")


class Sweep:
    """Measures the cells that are not kept, and says by the pace so far what is left."""

    def __init__(self, module: Any, options: SamplerOptions, cells: Kept):
        self.module, self.options, self.kept, self.walks = module, options, cells, list(options.walks())
        same = {name: value for name, value in asdict(module.sampling).items() if name not in OF_A_CELL}
        data = module.data.describe()["sha256"]
        self.of = {"weights": checkpoints.fingerprint(module.state_dict()), "data": data, "options": same}
        self.seconds, self.calls = 0.0, 0
        known = len(self.walks) - len(self.missing())
        print(f"sampler     {len(self.walks)} cells of {options.samples:,} sentences, {known} of them are kept")

    def key(self, walked: Walked) -> dict[str, Any]:
        """What a cell is measured of."""
        seed, samples = self.module.randomness.seed + walked.seed, self.options.samples
        return {**self.of, "kind": walked.kind, "steps": walked.steps, "seed": seed, "samples": samples}

    def missing(self) -> list[Walked]:
        return [walked for walked in self.walks if self.kept.find(self.key(walked)) is None]

    def cell(self, walked: Walked) -> dict[str, Metric]:
        """The metrics of SHOWN that there are, and tokens_per_s."""
        key = self.key(walked)
        if (cell := self.kept.find(key)) is None:
            start = time.perf_counter()
            cell = self.kept.add(key, self.measured(walked))
            self.seconds += time.perf_counter() - start
            self.calls += walked.calls
            print(self.progress(walked, kept.metrics(cell)), flush=True)
        return kept.metrics(cell)

    def measured(self, walked: Walked) -> list[Metric]:
        module, randomness = self.module, self.module.randomness
        floors, start = self.floors, time.perf_counter()
        module.randomness = replace(randomness, seed=randomness.seed + walked.seed)
        rows = goals.drawn(module, replace(module.sampling, kind=walked.kind, steps=walked.steps), self.options.samples)
        seconds, module.randomness = time.perf_counter() - start, randomness
        tokens, found = len(rows) * module.network.length, goals.measured(module, rows, floors)
        return [*(found[name] for name in SHOWN if name in found), Metric("tokens_per_s", tokens / seconds, tokens)]

    @cached_property
    def floors(self) -> Floors:
        """Of as many sentences as a cell has."""
        return self.module.data.source.floors(self.options.samples)

    def progress(self, walked: Walked, metrics: Mapping[str, Metric]) -> str:
        said = [f"{name} {cell(metrics[key])}" for key, name in SHOWN.items() if key in metrics]
        left = self.seconds / self.calls * sum(each.calls for each in self.missing()) / 60
        done = f"{self.walks.index(walked) + 1:>4}/{len(self.walks)}"
        return f"{done}  {walked.kind} {walked.steps}: {', '.join(said)}; about {left:.1f} min left"


def by_seed(found: Iterable[tuple[Walked, Mapping[str, Metric]]]) -> Table:
    """Cells that differ in their seed alone as one: means, and the interval of all their sentences."""
    groups: dict[Walked, list[Mapping[str, Metric]]] = {}
    for walked, metrics in found:
        groups.setdefault(walked._replace(seed=0), []).append(metrics)
    return {
        walked: {name: pooled([metrics[name] for metrics in seeds]) for name in seeds[0]}
        for walked, seeds in groups.items()
    }


def pooled(seeds: Sequence[Metric]) -> Metric:
    value, n = mean(each.value for each in seeds), sum(each.n for each in seeds)
    return evaluate.metric(Row(seeds[0].name, value, n, "", "", seeds[0].floors))


def line(walked: Walked, metrics: Mapping[str, Metric]) -> list[str]:
    """A row of the table."""
    said = [cell(metrics.get(name)) for name in SHOWN]
    return [walked.kind, str(walked.steps), str(walked.calls), *said, f"{metrics['tokens_per_s'].value:,.0f}"]


def cell(metric: Metric | None) -> str:
    """A value with its interval; one that counts from the true sampler's with its sign."""
    if metric is None:
        return "-"
    if metric.low is None:
        return f"{metric.value:+.4f}"
    return f"{metric.value:.3f} ({report.span(asdict(metric))})"


# --- the winner


def winner(table: Table) -> Walked:
    """By RULE; where no grammar says what parses, by the bigram KL alone."""
    best = max((metrics["parse"].value for metrics in table.values() if "parse" in metrics), default=0.0)
    equal = [walked for walked, metrics in table.items() if "parse" not in metrics or metrics["parse"].high >= best]
    return min(equal, key=lambda walked: table[walked]["bigram_kl_excess"].value)


def winners(table: Table) -> Iterator[str]:
    """Lines: of every number of steps, and of all cells."""
    yield f"winners, {RULE}"
    for steps in dict.fromkeys(walked.steps for walked in table):
        of_them = winner({walked: metrics for walked, metrics in table.items() if walked.steps == steps})
        yield f"{steps} steps: {of_them.kind}"
    yield f"winner of all: {winner(table).kind}, {winner(table).steps} steps"
