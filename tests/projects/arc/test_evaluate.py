"""Answers to queries: the same in any company, voted in the right frame, scored with honest denominators."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from packages.arc import score, vote
from packages.arc.sources import Source, export, read_answers
from packages.arc.tasks import Task, as_grid
from packages.arc.views import NUM_D4, Views
from projects.arc import ablate
from projects.arc import size as sizing
from projects.arc.data import HoldoutOptions
from projects.arc.evaluate import Evaluation
from projects.arc.heldout import during, held_queries
from projects.arc.module import Noise
from projects.arc.packing import Cells
from projects.arc.pairs import Query
from projects.arc.rescoring import costs
from projects.arc.size import SizeOptions
from projects.arc.solving import DuringFit, EvalOptions, Solver
from shared.training.errors import Mistake
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
        seen = Views(question.d4.numpy(), question.colours.numpy())
        tall, wide = self.answer.shape
        logits = torch.full((len(question.task), self.side**2), -20.0)
        for n, d4 in enumerate(question.d4.tolist()):
            height, width = (wide, tall) if d4 >= 4 else (tall, wide)
            logits[n, (height - 1) * self.side + width - 1] = 20.0
        self.views = [seen.view(v) for v in range(len(question.task))]
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


TRUTH = as_grid([[1, 2, 3, 4, 5], [6, 7, 8, 9, 0]])


def made_query() -> Query:
    return Query(Task("made", arc_data().evaluated.tasks[0].demos, (as_grid([[1, 2], [3, 4]]),), "made"), 0, 0)


def oracle(**options) -> Solver:
    """Draws every view of a 2 x 5 answer right."""
    given = EvalOptions(**{"num_steps": 2, "views": 72, **options})
    return Solver(Oracle(TRUTH, 10), Noise().process(), given, SizeOptions(mode="head"), Randomness(), "cycle")


def oracle_votes(**options) -> int:
    """Votes of 72 views for the right answer."""
    leader = oracle(**options).all([made_query()])[0].candidates[0]
    return leader.count if np.array_equal(leader.grid, TRUTH) else 0


def test_a_network_that_is_right_in_every_view_collects_every_vote():
    assert oracle_votes() == 72


def test_sizes_left_unswapped_lose_half_of_the_votes():
    with pytest.warns(UserWarning, match="unswapped"):
        assert oracle_votes(orientation="unswapped") == 36


def test_rescoring_prefers_the_truth_to_what_more_views_say():
    wrong, far = TRUTH.copy(), as_grid([[1, 2], [6, 7]])
    wrong[0, 0] = 9
    ballots = [vote.Ballot(grid) for grid, n in ((as_grid(wrong), 5), (far, 3), (TRUTH, 1)) for _ in range(n)]
    found = vote.poll(ballots, "poe", lambda grids: costs(oracle(), made_query(), grids))
    assert np.array_equal(found[0].grid, TRUTH) and found[0].cost < 1e-6 < found[1].cost
    assert np.array_equal(vote.poll(ballots)[0].grid, wrong)


def test_rescoring_hears_eight_views_at_three_times(module, data):
    query, asked = data.queries()[0], []
    forward = module.network.forward
    module.network.forward = lambda *a: asked.append(a[3]) or forward(*a)
    first = costs(solver(module), query, [as_grid([[1, 2]]), as_grid([[3]])])
    assert len(asked) == 6 and all(len(t) == 8 for t in asked)
    assert {round(float(t[0]), 2) for t in asked} == {0.25, 0.5, 0.75}
    assert costs(solver(module), query, [as_grid([[3]]), as_grid([[1, 2]])]) == first[::-1]
    assert costs(solver(module), query, [TRUTH]) == [0.0]


@pytest.mark.parametrize("rule", ["loglik", "poe"])
def test_every_vote_has_all_candidates(module, data, rule):
    plain = solver(module).all(data.queries()[:3])
    other = solver(module, vote=rule).all(data.queries()[:3])
    assert [sorted(one) for one in said(plain)] == [sorted(one) for one in said(other)]
    for one in other:
        order = [-c.loglik if rule == "loglik" else c.cost for c in one.candidates[:10]]
        assert order == sorted(order) and len(order) > 1


def test_an_early_exit_makes_fewer_walks_and_keeps_the_leader(module, data):
    (early,) = oracle(early_exit=True).all([made_query()])
    assert early.walks == 40 and early.candidates[0].count == 40  # 40 votes against 32 views left
    whole, some = (solver(module, views=72, num_steps=1, early_exit=e).all(data.queries()[:3]) for e in (False, True))
    for full, part in zip(whole, some):
        assert np.array_equal(full.candidates[0].grid, part.candidates[0].grid)
        counts = [c.count for c in part.candidates] + [0]
        assert full.walks == 72 and (part.walks == 72 or counts[0] - counts[1] > 72 - part.walks)
        assert part.walks < 72 or said([full]) == said([part])
    assert any(part.walks == 72 for part in some)


def test_queries_that_are_all_decided_are_walked_no_further(module, data):
    torch.nn.init.zeros_(module.network.out.weight)  # black in every view
    answered = solver(module, views=72, num_steps=1, early_exit=True).all(data.queries()[:3])
    assert [one.walks for one in answered] == [40] * 3 and not any(one.attempts[0].grid.any() for one in answered)


def test_every_block_of_an_early_exit_has_its_own_part_of_the_sizes(module, data, monkeypatch):
    shared = sizing.Sizes([((2, 2), 0.7), ((3, 1), 0.3)], None, (2, 2))
    monkeypatch.setattr(Solver, "sizes", lambda self, queries, *_: [shared] * len(queries))
    (whole,), (part,) = (solver(module, views=24, early_exit=e).all(data.queries()[:1]) for e in (False, True))
    assert part.walks == 24 and said([whole]) == said([part])
    assert sum(c.count for c in part.candidates if c.grid.shape == (3, 1)) == 7


def test_an_early_exit_counts_votes_only():
    with pytest.raises(ValueError, match=r"eval\.early_exit counts votes and eval.vote is poe"):
        EvalOptions(early_exit=True, vote="poe")


@torch.no_grad()
def test_a_size_read_in_the_identity_view_hears_no_other(module, data):
    queries, asked = data.queries()[:3], solver(module)
    prefix = asked.read(queries, asked.views())

    def believed(views: str) -> list:
        asked.size = SizeOptions(mode="head", views=views)
        return [one.candidates for one in asked.sizes(queries, prefix, torch.arange(8))]

    alone, together = believed("identity"), believed("all")
    prefix.size_logits.view(3, 8, -1)[:, 1:] = 0.0
    assert believed("identity") == alone and believed("all") != together


def test_held_out_pairs_are_asked_as_queries_and_hide_no_test_grid():
    data = arc_data(holdout=HoldoutOptions(share=1.0, min_demos=3))
    asked = held_queries(data, 2)
    hidden = [query.grid for query in data.queries()]
    assert len(asked) == 2 < len(data.pools.held)
    for query, answer in asked:
        pair = data.pools.held[query.task.id]
        assert np.array_equal(query.grid, pair.input) and np.array_equal(answer, pair.output)
        assert not any(np.array_equal(query.grid, grid) for grid in hidden)
        assert not any(np.array_equal(query.grid, demo.input) for demo in query.task.demos)


def test_solving_during_a_fit_is_the_evaluation_with_its_own_steps_and_views():
    given = EvalOptions(num_steps=8, views=72, sampler="renoise", stats=True, during_fit=DuringFit(5, 2, 3, 1))
    assert during(given) == replace(given, num_steps=3, views=1, stats=False)


def test_an_ablation_changes_one_thing_at_a_time_and_computes_no_evaluation_twice(module, data, monkeypatch):
    module.eval_options, made = EvalOptions(num_steps=1, views=2), []
    monkeypatch.setattr(ablate, "shares", lambda *a: made.append(a[-1]) or np.zeros(len({q.task.id for q in a[2]})))
    states = dict.fromkeys((False, True), module.state_dict())
    found = list(ablate.lines(module, data, states, 1))
    names = [line.variant.name for line in found]
    assert [n for n in names if n.startswith("sampler")] == [
        f"sampler {s}" for s in ("posterior", "coupled", "renoise", "confidence", "feedback")
    ]
    assert {f"steps {n}" for n in (1, 4, 8, 16, 32, 128)} | {f"views {n}" for n in (1, 8, 40, 72)} <= set(names)
    assert {"vote count", "vote loglik", "vote poe", "size rule+head", "size rule", "size head"} <= set(names)
    assert {"orientation correct", "orientation unswapped", "raw weights", "averaged weights"} <= set(names)
    assert names[-1] == "all three corrections undone together" and made[-1].options.sampler == "feedback"
    assert made[-1].options.orientation == "unswapped" and made[-1].size == SizeOptions("head", views="identity")
    assert len(made) == 22 and not any(a.same(b) for n, a in enumerate(made) for b in made[:n])
    assert [len(line.shares) for line in found if line.variant.name in ("as configured", "steps 128")] == [6, 1]


def test_the_heads_belief_is_averaged_in_the_frame_of_the_query():
    d4 = torch.arange(NUM_D4)
    logits = torch.full((8, 100), -5.0)
    for n in range(8):
        height, width = (5, 2) if n >= 4 else (2, 5)
        logits[n, (height - 1) * 10 + width - 1] = 5.0
    log_p = sizing.fused(logits, d4, 10)
    assert log_p[1, 4].exp() > 0.9
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


def test_sizes_that_are_hardly_believed_get_no_view():
    log_p = torch.full((10, 10), 1e-9)
    log_p[1, 1], log_p[2, 2], log_p[3, 3] = 0.8, 0.15, 0.05
    task = made_query().task
    decided = sizing.decide(task, task.queries[0], log_p.log(), SizeOptions(mode="head", top=3))
    assert [size for size, _ in decided.candidates] == [(2, 2), (3, 3)]


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
    attempts = score.from_submission(submission)
    said = {(one["task"], one["query"]): one for one in json.loads((tmp_path / "answers.json").read_text())}
    arrays = np.load(tmp_path / "attempts.npz")
    assert len(said) == len(evaluation.answered) and len(arrays) == 2 * len(said)
    for (id, n), one in said.items():
        assert one["input"] == data.evaluated[id].queries[n].tolist()
        assert sum(c["count"] for c in one["candidates"]) == 8 and set(one["sizes"]) == {"candidates", "rule", "head"}
        assert [a["grid"] for a in one["attempts"]] == [grid.tolist() for grid in attempts[id][n]]
        assert all(np.array_equal(arrays[f"{id}#{n}/{place}"], attempts[id][n][place - 1]) for place in (1, 2))
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


def test_a_mistake_in_the_answers_costs_the_score_and_not_the_submission(module, tmp_path):
    """Nothing looks at them before, so they are found wrong when all queries are answered."""
    demo = {"input": [[1]], "output": [[2]]}
    for name, outputs in (("shape", [[[1], [2, 3]]]), ("number", [[[1]], [[2]]])):
        folder = tmp_path / name
        folder.mkdir()
        challenges = {TASKS[0]: {"train": [demo, demo], "test": [{"input": [[3]]}]}}
        (folder / "arc-agi_training_challenges.json").write_text(json.dumps(challenges))
        (folder / "arc-agi_training_solutions.json").write_text(json.dumps({TASKS[0]: outputs}))
        data = arc_data(dataset=str(folder), tasks=None)
        found = Evaluation(data, EvalOptions(num_steps=1, views=1), SizeOptions())
        found.add(solver(module, num_steps=1, views=1).all(data.queries()))
        with pytest.raises(Mistake, match=r"^Nothing is scored: .*(row 2: 2 cells after rows of 1|wanted one each)$"):
            found.results(folder)
        assert list(json.loads((folder / "submission.json").read_text())) == [TASKS[0]]


@pytest.mark.parametrize("views", [1, 72])
def test_every_walk_of_every_query_draws_its_own_numbers(module, data, views):
    asked, queries = solver(module, views=views), data.queries()
    seeds = {asked.generator(query, walk).initial_seed() for query in queries for walk in range(asked.walks)}
    assert len(seeds) == len(queries) * max(views, 2)
