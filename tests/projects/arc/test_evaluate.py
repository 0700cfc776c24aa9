"""Answers to queries: the same in any company, voted in the right frame, scored with honest denominators."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from packages.arc.sources import Source, export, read_answers
from packages.arc.tasks import Task, as_grid
from packages.arc.views import NUM_D4, enumerated
from projects.arc import size as sizing
from projects.arc.data import Query
from projects.arc.evaluate import Evaluation
from projects.arc.packing import Cells
from projects.arc.size import SizeOptions
from projects.arc.solving import EvalOptions, Solver
from shared.training.randomness import Randomness
from tests.projects.arc.conftest import TASKS, arc_data


def solver(module, **options) -> Solver:
    given = EvalOptions(**{"num_steps": 3, "views": 8, **options})
    return Solver(module.network, module.process, given, SizeOptions(), Randomness(), "cycle")


def said(answered) -> list:
    return [[(c.grid.tobytes(), c.count) for c in one.candidates] for one in answered]


def test_an_answer_is_the_same_in_any_company(module, data):
    queries = data.queries()
    together = solver(module).all(queries)
    alone = [one for query in reversed(queries) for one in solver(module).all([query])]
    cut = solver(module, max_tokens=300).all(queries)
    assert said(together) == said(alone[::-1]) == said(cut)


def test_another_seed_gives_other_walks(module, data):
    queries = data.queries()
    other = solver(module)
    other.randomness = Randomness(seed=1)
    assert said(solver(module).all(queries)) != said(other.all(queries))


def test_one_view_is_two_walks_of_the_identity(module, data):
    one = solver(module, views=1)
    assert one.walks == 2 and (one.views().d4 == 0).all()
    answered = one.all(data.queries())
    assert all(sum(c.count for c in a.candidates) == 2 and len(a.attempts) == 2 for a in answered)


class Oracle(torch.nn.Module):
    """A network that knows one answer and draws it in the frame of whatever view it is asked in."""

    def __init__(self, answer: np.ndarray, side: int):
        super().__init__()
        self.answer, self.side = torch.from_numpy(answer.astype(np.int64)), side
        self.out = torch.nn.Linear(1, 1)

    def prefix(self, question):
        views = enumerated(72, "cycle")
        tall, wide = self.answer.shape
        logits = torch.full((len(question.task), self.side**2), -20.0)
        for n, d4 in enumerate(question.d4.tolist()):
            height, width = (wide, tall) if d4 >= 4 else (tall, wide)
            logits[n, (height - 1) * self.side + width - 1] = 20.0
        self.views = [views.view(v % 72) for v in range(len(question.task))]
        return type("Read", (), {"size_logits": logits})()

    def frame(self, prefix, answer: Cells):
        return None

    def forward(self, prefix, frame, answer: Cells, t, belief=None):
        logits = torch.full((len(answer.colour), 10), -20.0)
        for n, view in enumerate(self.views):
            mine = answer.segment == n
            seen = torch.from_numpy(view.apply(as_grid(self.answer.numpy())).astype(np.int64))
            inside = (answer.row < seen.shape[0]) & (answer.col < seen.shape[1])
            cells = torch.nonzero(mine & inside)[:, 0]
            logits[cells, seen[answer.row[cells], answer.col[cells]]] = 20.0
        return logits


def oracle_votes(**options) -> int:
    """Votes of 72 views for a 2 x 5 answer whose every view is drawn right."""
    answer = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 0]], np.uint8)
    task = Task("made", arc_data().evaluated.tasks[0].demos, (as_grid([[1, 2], [3, 4]]),), "made")
    given = EvalOptions(num_steps=2, views=72, **options)
    process = arc_module_process()
    answering = Solver(Oracle(answer, 10), process, given, SizeOptions(mode="head"), Randomness(), "cycle")
    leader = answering.all([Query(task, 0, 0)])[0].candidates[0]
    return leader.count if np.array_equal(leader.grid, answer) else 0


def arc_module_process():
    from projects.arc.module import Noise

    return Noise().process()


def test_a_network_that_is_right_in_every_view_collects_every_vote():
    assert oracle_votes() == 72


def test_sizes_left_unswapped_lose_half_of_the_votes():
    with pytest.warns(UserWarning, match="unswapped"):
        assert oracle_votes(orientation="unswapped") == 36


def test_the_heads_belief_is_averaged_in_the_frame_of_the_query():
    d4 = torch.arange(NUM_D4)
    logits = torch.full((8, 100), -5.0)
    for n in range(8):
        height, width = (5, 2) if n >= 4 else (2, 5)
        logits[n, (height - 1) * 10 + width - 1] = 5.0
    log_p = sizing.fused(logits, d4, 10)
    assert divmod(int(log_p.argmax()), 10) == (1, 4)
    assert torch.isclose(log_p.exp().sum(), torch.ones(()))


@pytest.mark.parametrize(
    ("mode", "seen", "expected"),
    [("rule+head", 0.9, (3, 3)), ("rule+head", 0.0005, (2, 2)), ("rule", 0.0005, (3, 3)), ("head", 0.9, (2, 2))],
)
def test_the_rule_counts_unless_the_head_finds_it_impossible(mode, seen, expected):
    task = Task("made", arc_data().evaluated["3c9b0459"].demos, (as_grid([[1] * 3] * 3),), "made")  # same size
    log_p = torch.full((10, 10), 1e-6)
    log_p[1, 1], log_p[2, 2] = 0.95, seen
    decided = sizing.decide(task, task.queries[0], (log_p / log_p.sum()).log(), SizeOptions(mode=mode, top=1))
    assert decided.candidates[0][0] == expected and decided.rule == (3, 3) and decided.head == (2, 2)


def test_two_sizes_share_the_views_in_proportion():
    shared = sizing.shared_out([((2, 2), 0.74), ((3, 3), 0.25)], 8)
    assert shared[0] == (2, 2) and shared.count((3, 3)) == 2
    assert sizing.shared_out([((2, 2), 0.89), ((3, 3), 0.101)], 5).count((3, 3)) == 1
    assert sizing.shared_out([((2, 2), 0.6), ((3, 3), 0.4)], 1) == [(2, 2)]


@pytest.fixture
def evaluation(module, data):
    found = Evaluation(data, EvalOptions(num_steps=3, views=8, stats=True), SizeOptions())
    found.add(solver(module, stats=True).all(data.queries()))
    found.gather()
    return found


def test_an_evaluation_leaves_a_valid_submission_and_a_gallery(evaluation, tmp_path, data):
    results = evaluation.results(tmp_path)
    submission = json.loads((tmp_path / "submission.json").read_text())
    assert {id: len(queries) for id, queries in submission.items()} == {t.id: len(t.queries) for t in data.evaluated}
    for queries in submission.values():
        for query in queries:
            first, second = (as_grid(query[f"attempt_{n}"]) for n in (1, 2))
            assert not np.array_equal(first, second)
    assert all(file.stat().st_size > 0 for file in results.files)
    assert "7 hidden test grids" in results.headline or "of 8 hidden" in results.headline
    assert {"Tasks", "Votes", "Diagnostics"} == {title for title, _ in results.sections}
    assert any(line.startswith("early lock") for line in dict(results.sections)["Diagnostics"].splitlines())


def test_right_attempts_score_and_the_denominators_are_stated(evaluation, tmp_path):
    answers = read_answers(Source("arc1", "training"))
    for one in evaluation.answered[:3]:
        right = answers[one.query.task.id][one.query.index]
        one.attempts = [type(one.attempts[0])(as_grid(right.tolist()), 8), one.attempts[1]]
    results = evaluation.results(tmp_path)
    grids = {m.name: m for m in results.metrics}["eval/grid_pass@2"]
    assert grids.n == len(evaluation.answered) and grids.value >= 3 / grids.n
    assert results.facts["denominators"].startswith(f"{len(TASKS)} tasks")
    assert sorted(p.stem for p in (tmp_path / "samples" / "solved").glob("*.png"))


def test_without_solutions_a_submission_is_written_and_nothing_is_scored(module, tmp_path):
    export("arc1", tmp_path / "all")
    folder = tmp_path / "tasks"
    folder.mkdir()
    for id in TASKS[:2]:
        source: Path = next((tmp_path / "all" / "questions").rglob(f"{id}.json"))
        (folder / source.name).write_text(source.read_text())
    data = arc_data(dataset=str(folder), tasks=None)
    found = Evaluation(data, EvalOptions(num_steps=2, views=1), SizeOptions())
    found.add(solver(module, num_steps=2, views=1).all(data.queries()))
    results = found.results(tmp_path)
    assert "nothing scored" in results.headline and not results.metrics
    assert (tmp_path / "submission.json").exists()
