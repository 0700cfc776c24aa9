"""Scores, submission and gallery of answered queries. `score` is the only reader of answers after training.

Knows what was answered and what was right; not how answers come about.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from packages.arc import draw, gallery, stats
from packages.arc import score as scoring
from packages.arc.score import Score
from packages.arc.sources import Source, read_answers
from packages.arc.tasks import AnswerKey, Grid, TaskSet
from projects.arc.data import ArcData
from projects.arc.rescoring import denoised
from projects.arc.size import SizeOptions
from projects.arc.solving import Answered, EvalOptions, Solver
from shared.training.errors import Mistake
from shared.training.report import Metric, Results
from shared.training.tables import replace_text, replacing

FLOORS = ("copy", "commonest_output", "rearrangement")
PASSES = ("pass@2", "pass@1", "pass@2_strict", "oracle")
NOISE = (1 / 6, 1 / 2, 5 / 6)  # middles of the three buckets of t
SHOWN = 5  # leading candidates in a histogram


def score(data: ArcData) -> AnswerKey:
    """The hidden outputs of what is evaluated; nothing that trains, filters or selects may ask. A mistake in them is
    seen here at last: `of` refuses a wrong number."""
    try:
        answers = read_answers(Source(data.dataset, data.split, data.layout))
        _ = [answers.of(task) for task in data.evaluated]
    except ValueError as wrong:
        raise Mistake(f"Nothing is scored: {wrong}") from wrong
    return answers


@dataclass
class Evaluation:
    """What was answered so far."""

    data: ArcData
    options: EvalOptions
    size: SizeOptions
    answered: list[Answered] = field(default_factory=list)

    def add(self, answered: list[Answered]) -> None:
        self.answered += answered

    def gather(self) -> None:
        """All ranks' answers, in order of task and query, on every rank."""
        if dist.is_available() and dist.is_initialized():
            parts: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self.answered)
            self.answered = [one for part in parts for one in part]
        self.answered.sort(key=lambda one: (one.query.task.id, one.query.index))

    @property
    def tasks(self) -> TaskSet:
        return self.data.evaluated.select(dict.fromkeys(one.query.task.id for one in self.answered))

    @property
    def attempts(self) -> scoring.Attempts:
        return self.by_query(lambda one: [a.grid for a in one.attempts])

    def by_query(self, grids: Any) -> dict[str, list[list[Grid]]]:
        """task id -> query -> `grids(answered)`."""
        found: dict[str, list[list[Grid]]] = {}
        for one in self.answered:
            found.setdefault(one.query.task.id, []).append(grids(one))
        return found

    def results(self, folder: Path, solver: Solver | None = None) -> Results:
        """Everything an evaluation leaves in the run folder, and its metrics; solver: measures known answers, too."""
        tasks, attempts = self.tasks, self.attempts
        written = self.write_answers(folder)  # first: a mistake in the answers costs no submission
        answers = score(self.data)
        candidates = self.by_query(lambda one: [c.grid for c in one.candidates])
        found = scoring.score(tasks, answers, attempts, candidates)
        files = [*written, *self.write_gallery(folder / "samples", found, answers)]
        rows = scoring.rows(tasks, answers, attempts, candidates)
        sections = [("Tasks", self.task_table(found, answers))]
        if self.options.stats:
            sections += [("Votes", self.histograms(answers)), ("Diagnostics", self.diagnostics(rows))]
            if solver and rows:
                sections.append(("Known answers, noised", self.noised(solver, answers)))
        return Results(self.headline(found), self.metrics(found, answers), sections, files, self.facts(found))

    # --- numbers

    def headline(self, found: Score) -> str:
        if not found.num_grids:
            return f"{self.data.evaluated.name} has no solutions: submission written, nothing scored"
        m = found.metrics
        floors = ", ".join(f"{name} {m[f'floor/{name}']:.3f}" for name in FLOORS)
        return (
            f"solved {len(found.solved_tasks)} of {found.num_tasks} tasks, "
            f"{found.num_solved} of {found.num_grids} hidden test grids "
            f"(pass@1 {m['pass@1']:.3f}, pass@2 {m['pass@2']:.3f}, floors: {floors})"
        )

    def metrics(self, found: Score, answers: AnswerKey) -> list[Metric]:
        """The score's metrics beside their floors; none where nothing is known."""
        if not found.num_grids:
            return []
        m, floors = found.metrics, {name: found.metrics[f"floor/{name}"] for name in FLOORS}
        low, high = found.interval or (None, None)
        span = {"pass@2": {"low": low, "high": high}}
        passes = [Metric(f"eval/{p}", m[p], found.num_tasks, floors=floors, **span.get(p, {})) for p in PASSES]
        size_floor = {"size rule": m["floor/size_rule"]}
        sizes = {"eval/size_acc": m["size_acc"], **self.size_accuracy(answers)}
        return [
            *passes,
            Metric("eval/grid_pass@2", m["grid_pass@2"], found.num_grids),
            *(Metric(name, value, found.num_grids, floors=size_floor) for name, value in sizes.items()),
            Metric("eval/cell_acc", m["cell_acc"], round(m["size_acc"] * found.num_grids)),
        ]

    def size_accuracy(self, answers: AnswerKey) -> dict[str, float]:
        """How often the rule and the head, each alone, and the two combined name the right size."""
        known = [(one, grid) for one in self.answered if (grid := _target(one, answers)) is not None]
        return {
            "eval/size_acc_rule": float(np.mean([one.sizes.rule == grid.shape for one, grid in known])),
            "eval/size_acc_head": float(np.mean([one.sizes.head == grid.shape for one, grid in known])),
            "eval/size_acc_combined": float(np.mean([one.sizes.candidates[0][0] == grid.shape for one, grid in known])),
        }

    def facts(self, found: Score) -> dict[str, str]:
        o, data = self.options, self.data
        return {
            "evaluated": f"{data.evaluated.name}, {data.evaluated.version}, sha256 {data.evaluated.sha256[:16]}",
            "denominators": f"{found.num_tasks} tasks, {found.num_grids} test grids with a known answer",
            "filter": f"max_size {data.max_size} on known grids, {len(self.answered)} queries asked",
            "weights": "averaged" if o.ema else "raw",
            "walk": f"{o.sampler}, {o.num_steps} steps, final {o.final}, temperature {o.temperature:g}, "
            f"guidance {o.guidance:g}",
            "vote": f"{o.vote} over {o.views} views, {sum(one.walks for one in self.answered)} walks, "
            f"orientation {o.orientation}, size {self.size.mode}",
        }

    # --- files

    def write_answers(self, folder: Path) -> list[Path]:
        """submission.json, answers.json (every candidate with its votes) and attempts.npz."""
        submission, answers, arrays = (folder / n for n in ("submission.json", "answers.json", "attempts.npz"))
        replace_text(submission, json.dumps(scoring.submission(self.tasks, self.attempts)))
        replace_text(answers, json.dumps([_spelled(one) for one in self.answered]))
        named = {f"{one.query.name}/{n}": a.grid for one in self.answered for n, a in enumerate(one.attempts, 1)}
        with replacing(arrays) as file:
            np.savez_compressed(file, **named)  # type: ignore[arg-type]
        return [submission, answers, arrays]

    def write_gallery(self, folder: Path, found: Score, answers: AnswerKey) -> list[Path]:
        """gallery.html, gallery.png, and a sheet for every solved task."""
        (folder / "solved").mkdir(parents=True, exist_ok=True)
        for old in (folder / "solved").glob("*.png"):
            old.unlink()
        gallery.write(self.entries(found, answers), folder, "gallery", self.headline(found))
        for id in found.solved_tasks:
            mine = [one for one in self.answered if one.query.task.id == id]
            sheet = draw.task_sheet(
                mine[0].query.task,
                [[a.grid for a in one.attempts] for one in mine],
                [_target(one, answers) for one in mine],
                [[c.count for c in one.candidates] for one in mine],
            )
            draw.save(sheet, folder / "solved" / f"{id}.png")
        return [folder / "gallery.png", folder / "gallery.html"]

    def entries(self, found: Score, answers: AnswerKey) -> list[gallery.Entry]:
        return [
            gallery.Entry(
                one.query.task,
                one.query.index,
                [a.grid for a in one.attempts],
                _target(one, answers),
                found.status[one.query.task.id][one.query.index],
                [c.count for c in one.candidates[:SHOWN]],
                _right(one, answers),
                one.strip,
            )
            for one in self.answered
        ]

    # --- text

    def task_table(self, found: Score, answers: AnswerKey) -> str:
        """One line per test grid: what became of it and how the views voted."""
        lines = ["| test grid | | votes, best first | right | size: rule / head |", "|---|---|---|---|---|"]
        for one in self.answered:
            state = found.status[one.query.task.id][one.query.index]
            votes = " ".join(str(c.count) for c in one.candidates[:SHOWN])
            rest = " ..." if len(one.candidates) > SHOWN else ""
            place = _right(one, answers)
            sizes = f"{_size(one.sizes.rule)} / {_size(one.sizes.head)}"
            lines.append(f"| {one.query.name} | {state} | {votes}{rest} | {_place(place)} | {sizes} |")
        return "\n".join(lines)

    def histograms(self, answers: AnswerKey) -> str:
        """Votes as bars of text, the right candidate marked."""
        lines = []
        for one in self.answered:
            right = _right(one, answers)
            lines.append(f"{one.query.name}")
            most = one.candidates[0].count
            for n, c in enumerate(one.candidates[:SHOWN]):
                bar = "#" * max(1, round(30 * c.count / most))
                lines.append(f"  {c.count:4d} {bar}{'  <- right' if n == right else ''}")
        return "```\n" + "\n".join(lines) + "\n```"

    def diagnostics(self, rows: Sequence[scoring.Row]) -> str:
        """How the walks went: early lock, change and certainty by step, copying, solved by area and shape."""
        lines = [self.early_lock(), *self.by_step()]
        edits = stats.editing(rows)
        lines.append(
            f"of {edits.grids} grids with the size of their input: {_percent(edits.copied)} copied it, "
            f"right among cells to change {_percent(edits.edit_accuracy)}, to keep {_percent(edits.keep_accuracy)}"
        )
        buckets = stats.breakdown(rows)
        lines.append("solved by cells and shape: " + ", ".join(f"{k} {a}/{b}" for k, (a, b) in buckets.items() if b))
        return "\n\n".join(lines)

    def noised(self, solver: Solver, answers: AnswerKey) -> str:
        """Cross-entropy and right cells of known answers by noise (identity view), area and shape."""
        known = [(one.query, grid) for one in self.answered if (grid := _target(one, answers)) is not None]
        values = [denoised(solver, query, [grid], solver.enumerated(1), NOISE)[0, :, :, 0] for query, grid in known]
        grids, found = [grid for _, grid in known], np.stack([value.numpy() for value in values])
        rows = {"all": (len(grids), found.mean(0)), **stats.bucket_means(grids, found)}
        lines = ["| answers | grids | CE: low noise | mid | high | right cells: low | mid | high |", "|---" * 8 + "|"]
        for name, (count, mean) in rows.items():
            lines.append(f"| {name} | {count} | " + " | ".join(f"{x:.3f}" for x in mean.reshape(-1)) + " |")
        return "\n".join(lines)

    def early_lock(self) -> str:
        locks = [
            stats.early_lock(one.trace[:, 0, v], one.trace[:, 1, v])
            for one in self.answered
            if one.trace is not None
            for v in range(one.trace.shape[2])
        ]
        steps = [step for step in locks if step is not None]
        mean = f", mean step {np.mean(steps) + 1:.1f} of {self.options.num_steps}" if steps else ""
        return f"early lock: {len(steps)} of {len(locks)} walks ({_percent(len(steps) / max(len(locks), 1))}){mean}"

    def by_step(self) -> list[str]:
        traces = [one.trace.mean(2) for one in self.answered if one.trace is not None]
        if not traces:
            return []
        mean = np.mean(traces, 0)
        rows = [f"| {n} | {c:.3f} | {p:.3f} | {h:.3f} |" for n, (c, p, h) in enumerate(mean, 1)]
        return ["\n".join(["| step | changed | top probability | entropy |", "|---|---|---|---|", *rows])]


def _target(one: Answered, answers: AnswerKey) -> Grid | None:
    return answers.of(one.query.task)[one.query.index]


def _right(one: Answered, answers: AnswerKey) -> int | None:
    """Place of the right candidate among all; None: not among them, or nothing known."""
    target = _target(one, answers)
    if target is None:
        return None
    return next((n for n, c in enumerate(one.candidates) if np.array_equal(c.grid, target)), None)


def _spelled(one: Answered) -> dict[str, Any]:
    """An answered query as JSON."""
    candidates = [
        {"grid": c.grid.tolist(), "count": c.count, "loglik": c.loglik, "cost": c.cost} for c in one.candidates
    ]
    attempts = [{"grid": a.grid.tolist(), "count": a.count, "fallback": a.fallback} for a in one.attempts]
    return {
        "task": one.query.task.id,
        "query": one.query.index,
        "input": one.query.grid.tolist(),
        "sizes": one.sizes._asdict(),
        "candidates": candidates,
        "attempts": attempts,
    }


def _size(size: tuple[int, int] | None) -> str:
    return f"{size[0]}x{size[1]}" if size else "-"


def _place(place: int | None) -> str:
    return "-" if place is None else f"#{place + 1}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
