"""The official sets, read once a session, and small tasks made by hand."""

import json

import pytest

from packages.arc.sources import Source, export, read_answers, read_questions
from packages.arc.tasks import Pair, Task, TaskSet


class Official:
    """Questions and answers of the official sets, each read when first asked for."""

    def __init__(self):
        self.read = {}

    def questions(self, dataset, split):
        return self._once(read_questions, dataset, split)

    def answers(self, dataset, split):
        return self._once(read_answers, dataset, split)

    def _once(self, reader, dataset, split):
        key = (reader.__name__, dataset, split)
        if key not in self.read:
            self.read[key] = reader(Source(dataset, split))
        return self.read[key]


@pytest.fixture(scope="session")
def official():
    return Official()


@pytest.fixture(scope="session")
def files(tmp_path_factory, official):
    """The first forty tasks of both splits of arc1 as official files, outputs in place."""
    root = tmp_path_factory.mktemp("files")
    for split in ("training", "evaluation"):
        tasks, answers = official.questions("arc1", split), official.answers("arc1", split)
        (root / split).mkdir()
        for task in tasks.tasks[:40]:
            train = [{"input": pair.input.tolist(), "output": pair.output.tolist()} for pair in task.demos]
            test = [{"input": q.tolist(), "output": a.tolist()} for q, a in zip(task.queries, answers[task.id])]
            (root / split / f"{task.id}.json").write_text(json.dumps({"train": train, "test": test}))
    return root


@pytest.fixture(scope="session")
def exported(tmp_path_factory, files):
    """The same tasks with questions and answers apart."""
    folder = tmp_path_factory.mktemp("exported")
    export(str(files), folder)
    return folder


@pytest.fixture
def task():
    """Make a task: task("a", [(input, output), ...], [query, ...])."""

    def make(id, demos, queries=()):
        return Task(id, tuple(Pair(one, other) for one, other in demos), tuple(queries), "hand:training")

    return make


@pytest.fixture
def tasks():
    """Make a task set of the given tasks."""
    return lambda *found: TaskSet(tuple(found), "hand:training", "by hand")
