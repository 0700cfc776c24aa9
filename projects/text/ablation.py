"""What each part is worth: the quick run with one thing set otherwise at a time, every arm a run of its own.

    python -m projects.text bench --what ablation [--updates 700] [--seeds 1] [--only no-bias,elbo]

Arms are those of `results/arms.yaml`; each is trained by the house's own `fit` into runs/text/ablation/<arm>-<seed> and
measured as goals are. What is finished is read and not made again, so the same command goes on where it was stopped.
The table stands in runs/text/ablation/ablation.md, the numbers in ablation.json. Knows of an arm only what it sets.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import yaml

from packages.text.rows import Words
from packages.text.table import measure
from projects.text import goals, kept, levels
from projects.text.data import Sentences
from projects.text.goals import GoalsOptions
from projects.text.kept import Kept
from shared.training import checkpoints, layout, report, runs
from shared.training.errors import Mistake, choices, nearest
from shared.training.layers import arrange, flag_values
from shared.training.report import Metric
from shared.training.tables import replace_text

ARMS, BASE, SIZE = Path("projects/text/results/arms.yaml"), "base", "ablation"
WALKED = ("sampling.", "model.compat.stride")  # an arm that sets nothing else needs no training
SHOWN = {
    "parse": "parse rate",
    "bigram_kl_excess": "bigram KL",
    "bound_gap": "bound gap",
    "skill_at_star": "skill",
}
HEAD = ["arm", *(cell for name in SHOWN.values() for cell in (name, "to base")), "seconds"]
RESAMPLED, REPEATS = ("unigram_kl", "bigram_kl", "length_tv"), 100  # metrics that have no interval of their own
PARTS = 16  # of the sentences that skill is measured of


@dataclass
class AblationOptions:
    """updates: of every arm. seeds: runs of every arm, from seed 0. only: arms beside the base, by name, with commas
    between (empty: all). samples: sentences drawn of each; sentences, levels: of its bound."""

    updates: int = 700
    seeds: int = 1
    only: str = ""
    samples: int = 1000
    sentences: int = 500
    levels: int = 32

    def __post_init__(self) -> None:
        for name in ("updates", "seeds", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"ablation.{name} is {getattr(self, name)}; it must be 1 or more.")

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        """What each sets, the base first. Mistake: a name that is none."""
        known = yaml.safe_load(ARMS.read_text(encoding="utf-8"))
        wanted = [name for name in self.only.split(",") if name] or list(known)
        if unknown := [name for name in wanted if name not in known]:
            raise Mistake(
                f"ablation.only has {unknown[0]}, which is no arm; those are {choices(known)}."
                + nearest(unknown[0], known)
            )
        return {BASE: {}, **{name: known[name] for name in known if name in wanted}}


def ablation(cli: Any) -> None:
    """the quick run with one thing set otherwise at a time, as a table; `bench --what ablation` says the same"""
    if cli.checkpoint is not None:
        raise Mistake("ablation trains runs of its own; leave --run out.")
    table = Ablation(cli, cli.options.ablation)
    found = table.measured()
    rows = [line(name, seeds, found[BASE]) for name, seeds in found.items()]
    notes = ["", table.note, *table.failed]
    print("\n".join(["", *layout.plain(HEAD, rows), *notes]))
    replace_text(table.folder / "ablation.md", "\n".join([*layout.markdown(HEAD, rows), *notes]) + "\n")
    print(f"\nwritten     {table.folder / 'ablation.md'}, ablation.json")


class Ablation:
    """Arms as runs. cli: the command line of the base, whose layers every arm has too."""

    def __init__(self, cli: Any, options: AblationOptions):
        self.cli, self.options, self.arms = cli, options, options.arms
        self.folder = runs.size_folder(cli.options.run.root, cli.layers.project, cli.layers.stage, SIZE)
        runs.make_folder(self.folder)
        self.kept, self.failed = Kept(self.folder / "ablation.json"), list[str]()
        self.looked = {name: getattr(options, name) for name in ("samples", "sentences", "levels")}

    @property
    def note(self) -> str:
        spread = "over seeds, least to most" if self.options.seeds > 1 else "of the sentences of one seed, 95 %"
        return (
            f"{self.options.updates:,} updates, {self.options.seeds} seed(s), {self.options.samples:,} sentences each;"
            f" nats, bigram KL over the true sampler's; intervals {spread}; seconds of training"
        )

    def measured(self) -> dict[str, list[dict[str, Metric]]]:
        """Of every arm the metrics of each of its seeds that could be trained."""
        found: dict[str, list[dict[str, Metric]]] = {name: [] for name in self.arms}
        every = [(name, seed) for seed in range(self.options.seeds) for name in self.arms]
        start = time.perf_counter()
        for done, (name, seed) in enumerate(every, 1):
            if metrics := self.tried(name, seed):
                found[name].append(metrics)
            left = (time.perf_counter() - start) / done * (len(every) - done) / 60
            print(f"{done:>4}/{len(every)}  {name}-{seed}: {said(metrics)}; about {left:.0f} min left", flush=True)
        return found

    def tried(self, name: str, seed: int) -> dict[str, Metric]:
        """An arm; none of its metrics where it cannot be trained, which is said. Without the base there is no table."""
        try:
            return self.arm(name, seed)
        except Mistake as mistake:
            if name == BASE:
                raise
            self.failed.append(f"{name}-{seed}: {mistake}")
            print(self.failed[-1], flush=True)
            return {}

    def arm(self, name: str, seed: int) -> dict[str, Metric]:
        """One arm of one seed, trained and measured if it has not been."""
        set_here = self.arms[name]
        walked = bool(set_here) and all(key.startswith(WALKED) for key in set_here)
        run = self.trained(BASE, {}, seed) if walked else self.trained(name, set_here, seed)
        other = goals.opened(self.cli, run.folder, *(flags(set_here) if walked else []))
        of = {
            "arm": name, "seed": seed, "set": set_here, "weights": checkpoints.fingerprint(other.model.state_dict()),
            "sampling": asdict(other.model.sampling), **self.looked,
        }  # fmt: skip
        if (cell := self.kept.find(of)) is None:
            with other.drawing():
                metrics = [*sentences(other.model, self.options.samples)]
                metrics += [] if walked else likely(other.model, self.options)
            seconds = Metric("seconds", 0.0 if walked else run.manifest["finished"]["seconds"], self.options.updates)
            cell = self.kept.add(of, [*metrics, seconds])
        return kept.metrics(cell)

    def trained(self, name: str, set_here: Mapping[str, Any], seed: int) -> runs.Run:
        """The run of an arm: read if it is finished, taken up if it was stopped, refused if it had other settings."""
        own = [f"--config={file}" for file in self.cli.layers.files]
        given = [(key, value) for key, value in flag_values(self.cli.layers.flags) if not key.startswith("ablation.")]
        settings = {
            **dict(given), **set_here, "seed_everything": seed, "trainer.max_steps": self.options.updates,
            "run.name": f"{name}-{seed}", "run.test_after_fit": False,
        }  # fmt: skip
        layers = arrange(self.cli.layers.project, "fit", [*own, *flags(settings)])
        layers = replace(layers, size=SIZE, flags=(*layers.flags, "--run.resume=auto"))
        arm = type(self.cli)(type(self.cli.model), type(self.cli.datamodule), layers, "fit", groups=self.cli.own_groups)
        folder = self.folder / f"{name}-{seed}"
        if not self.finished(folder, arm):
            arm.act()
        return runs.reopen(folder)

    def finished(self, folder: Path, arm: Any) -> bool:
        """Whether the arm has made its updates. Mistake: the folder holds a run of other settings."""
        if not (folder / "manifest.json").exists():
            return False
        wanted = arm.parser.dump(arm.config, skip_unset=False, skip_validation=True)
        changed = runs.differing_leaves(runs.read_config(folder), wanted)
        other = [f"{key} {old}, now {new}" for key, old, new in changed if old != "(not set)"]
        if other:
            raise Mistake(
                f"{folder} was trained with other settings ({other[0]}); move it away, or set them as they were."
            )
        return runs.reopen(folder).finished


def flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings as flags of a command line."""
    return [f"--{key}={'null' if value is None else value}" for key, value in settings.items()]


# --- what is measured of an arm


def sentences(module: Any, count: int) -> Iterator[Metric]:
    """Of drawn sentences, those without an interval with one by resampling them."""
    rows = goals.drawn(module, module.sampling, count)
    found = goals.measured(module, rows)
    for name, half in resampled(module, rows).items():
        metric = found[f"{name}_excess"]
        found[metric.name] = replace(metric, low=metric.value - half, high=metric.value + half)
    yield from (found[name] for name in (*SHOWN, "unigram_kl_excess", "length_tv_excess") if name in found)


def resampled(module: Any, rows: Sequence[Words]) -> dict[str, float]:
    """Half the width of 95 % intervals, from the spread over sentences drawn again from these (Efron 1979)."""
    rng, values = np.random.default_rng(0), []
    metrics = {name: metric for name, metric in module.data.source.metrics().items() if name in RESAMPLED}
    for _ in range(REPEATS):
        for metric in metrics.values():
            metric.reset()
        again = measure([rows[n] for n in rng.integers(len(rows), size=len(rows))], metrics)
        values.append([value.value for value in again.values()])
    return dict(zip(metrics, (1.96 * np.std(values, axis=0)).tolist()))


def likely(module: Any, options: AblationOptions) -> Iterator[Metric]:
    """The bound over the true entropy, and skill where words are decided, within what its parts differ by."""
    bound = goals.likelihood(module, GoalsOptions(sentences=options.sentences, levels=options.levels))
    yield from (each for each in bound if each.name in SHOWN)
    batch = levels.few(module, "test", levels.ASKED)
    parts = [skilled(module, batch.of(rows)) for rows in torch.arange(len(batch.ids)).chunk(PARTS)]
    half = 1.96 * float(np.std([each.value for part in parts for each in part] or [0.0])) / len(parts) ** 0.5
    yield from (replace(each, low=each.value - half, high=each.value + half) for each in skilled(module, batch))


def skilled(module: Any, batch: Sentences) -> list[Metric]:
    """Skill at SNR*, if there is one."""
    return levels.skilled(levels.star(module, batch))


# --- the table


def line(name: str, seeds: Sequence[Mapping[str, Metric]], base: Sequence[Mapping[str, Metric]]) -> list[str]:
    """A row: every metric, and what it is more than the base's."""
    row = [name]
    for key in SHOWN:
        mine, theirs = ([metrics[key] for metrics in each if key in metrics] for each in (seeds, base))
        row.append(report.number(mean(each.value for each in mine)) if mine else "-")
        row.append(difference(mine, theirs) if name != BASE and mine and len(mine) == len(theirs) else "-")
    seconds = [metrics["seconds"].value for metrics in seeds]
    return [*row, f"{mean(seconds):.0f}" if any(seconds) else "-"]


def difference(arm: Sequence[Metric], base: Sequence[Metric]) -> str:
    """Of means, with the range over seeds; of one seed with a 95 % interval, if both are known to within one."""
    each = [a.value - b.value for a, b in zip(arm, base)]
    both, middle = [*arm, *base], mean(each)
    if len(each) > 1:
        low, high = min(each), max(each)
    elif all(metric.low is not None and metric.high is not None for metric in both):
        half = sum(((metric.high - metric.low) / 2) ** 2 for metric in both) ** 0.5  # type: ignore[operator]
        low, high = middle - half, middle + half
    else:
        return f"{middle:+.3f}"
    return f"{middle:+.3f} ({low:+.3f} .. {high:+.3f})"


def said(metrics: Mapping[str, Metric]) -> str:
    """For a line of progress."""
    known = [f"{name} {report.number(metrics[key].value)}" for key, name in SHOWN.items() if key in metrics]
    return ", ".join(known) or "failed"
