"""Demos as a condition: what is shown of a task and how, what is never shown, and what follows for the network."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from packages.arc.subsets import Holdout
from packages.arc.tasks import Pair, Task, TaskSet, as_grid
from projects.arc.data import ArcData, HoldoutOptions
from projects.arc.demos import Conditioning, cells_of, content
from projects.arc.module import SelfCondition
from projects.arc.network import DEMO_INPUT, DEMO_OUTPUT, INPUT, MAX_DEMOS, NO_ROW, GridDenoiser
from projects.arc.pairs import Augment, Query
from projects.arc.solving import EvalOptions
from shared.training.batches import Share
from tests.projects.arc.conftest import arc_batches, arc_data, arc_module, believe, believed_twice

UNKNOWN = ["46442a0e", "7fe24cdd"]


def told(data: ArcData, task="demos", **options):
    """The data and a module for it, each of its own."""
    return data, arc_module(data, task=task, **options).eval()


@pytest.fixture(scope="module")
def made():
    return told(arc_data())


@pytest.fixture
def data(made):
    return made[0]


@pytest.fixture
def module(made):
    return made[1]


@pytest.fixture
def batch(data):
    order, pairs = arc_batches(data)
    return pairs.build(order.shares(0)[0])


def same_questions(a, b) -> bool:
    parts = [[q.cells.colour, q.cells.row, q.cells.col, q.marks.role, q.marks.pair, q.task] for q in (a, b)]
    return all(torch.equal(x, y) for x, y in zip(*parts))


def contents(pairs) -> list[bytes]:
    return sorted(map(content, pairs))


def drawn_pairs(drawn: dict[int, dict[int, np.ndarray]]) -> list[Pair]:
    """The demos of `shown`."""
    return [Pair(*(as_grid(two[role]) for role in (DEMO_INPUT, DEMO_OUTPUT))) for n, two in drawn.items() if n]


def viewed(view, pairs) -> list[Pair]:
    return [Pair(view.apply(pair.input), view.apply(pair.output)) for pair in pairs]


def shown(question, n: int) -> dict[int, dict[int, np.ndarray]]:
    """What question n shows as number -> role -> grid, from its packed cells."""
    cells, marks, found = question.cells, question.marks, {}
    for number, role in {(int(p), int(r)) for p, r in zip(marks.pair, marks.role)}:
        mine = (cells.segment == n) & (marks.pair == number) & (marks.role == role)
        if mine.any():
            row, col = cells.row[mine], cells.col[mine]
            grid = np.full((int(row.max()) + 1, int(col.max()) + 1), 99)
            grid[row, col] = cells.colour[mine]
            found.setdefault(number, {})[role] = grid
    return found


def with_tasks(tasks, **options) -> ArcData:
    """Data that trains on just these tasks."""
    data = arc_data(**options)
    data.pools = Holdout(TaskSet(tuple(tasks), "made", "made"), {})
    return data


def size_logits(module, question) -> torch.Tensor:
    return module.network.prefix(question).size_logits


# ---- what is shown


def test_every_other_demo_is_shown_in_the_view_of_the_question(data):
    order, pairs = arc_batches(data)
    share = order.shares(3)[0]
    (seen, _), question, examples = pairs.draw(share), pairs.build(share).question, data.examples()
    for n, index in enumerate(share.index):
        view, example = seen.view(n), examples[index]
        drawn = shown(question, n)
        others = [d for d in data.pools.training[data.task_ids[example.row]].demos if d is not example.pair]
        assert np.array_equal(drawn[0][INPUT], view.apply(example.pair.input))
        assert others and contents(drawn_pairs(drawn)) == contents(viewed(view, others))


def test_a_pair_is_not_among_the_demos_it_is_predicted_from(data):
    """Another output of the predicted pair changes no question about it; it does change those about its neighbours."""
    task = data.pools.training["6d0aefbc"]
    first = task.demos[0]
    other = replace(task, demos=(Pair(first.input, as_grid(9 - first.output)), *task.demos[1:]))
    batches = []
    for each in (task, other):
        changed = with_tasks([each])
        arc_module(changed, task="demos")
        pairs = changed.pairs(changed.examples(), data.augment)
        batches.append([pairs.build(Share.of([n])) for n in range(len(task.demos))])
    own, neighbour = list(zip(*batches))[:2]
    assert same_questions(*(batch.question for batch in own)) and not torch.equal(*(b.answer.colour for b in own))
    assert not same_questions(*(batch.question for batch in neighbour))


def test_neither_a_demo_equal_to_the_pair_nor_a_revealed_one_is_shown():
    grids = [as_grid(np.full((2, 2), n)) for n in range(6)]
    twice, single = (Pair(grids[n], grids[n + 1]) for n in (0, 2))
    again, revealed = Pair(grids[0].copy(), grids[1].copy()), Pair(grids[4], grids[5], "revealed")
    data = with_tasks([Task("t", (twice, again, single, revealed), (), "made")])
    arc_module(data, task="demos")
    assert [e.demos for e in data.examples()] == [(single,), (single,), (twice, again), (twice, again, single)]


def test_held_out_pairs_are_no_demos_and_see_only_demos_that_train():
    data, _ = told(arc_data(holdout=HoldoutOptions(share=1.0)))
    held = {content(e.pair) for e in data.held()}
    trained = {content(pair) for task in data.pools.training for pair in task.demos}
    assert held and all(e.demos for e in data.held())
    assert not held & {content(demo) for e in data.examples() for demo in e.demos}
    assert {content(demo) for e in data.held() for demo in e.demos} <= trained


def test_a_query_is_shown_all_demos_of_its_task(data, module):
    solver, query = module.solver(EvalOptions(views=8)), data.queries()[0]
    seen, asked = solver.views(), []
    solver.network = replace_prefix(module.network, asked)
    solver.read([query], seen)
    for n in range(8):
        drawn, view = shown(asked[0], n), seen.view(n)
        assert np.array_equal(drawn[0][INPUT], view.apply(query.grid))
        assert contents(drawn_pairs(drawn)) == contents(viewed(view, query.task.demos))


def replace_prefix(network, asked: list):
    """The network, its questions kept in `asked`."""

    class Listening:
        out = network.out

        @staticmethod
        def prefix(question):
            asked.append(question)
            return network.prefix(question)

    return Listening()


def test_a_batch_with_demos_is_a_function_of_key_update_rank_and_world(data):
    whole, pairs = arc_batches(data)
    alone = pairs.build(whole.shares(5)[0]).question
    again = arc_batches(data)[1].build(whole.shares(5)[0]).question
    assert same_questions(alone, again)
    assert not same_questions(alone, pairs.build(replace(whole.shares(5)[0], update=6)).question)
    shares = [arc_batches(data, world=2, rank=r)[0].shares(5)[0] for r in range(2)]
    parts = [pairs.build(share).question for share in shares]
    row = np.concatenate([share.row for share in shares]).argsort()
    for of in (lambda q: q.marks.role, lambda q: q.marks.pair, lambda q: q.cells.colour):
        apart = [cells for q in parts for cells in of(q).split(q.cells.lengths.tolist())]
        assert torch.equal(of(alone), torch.cat([apart[i] for i in row]))


# ---- in which order


def read(module, task: Task) -> torch.Tensor:
    solver = module.solver(EvalOptions(views=8))
    return solver.read([Query(task, 0, NO_ROW)], solver.views()).size_logits


@pytest.mark.parametrize("order", [False, True])
def test_the_order_of_demos_counts_only_if_it_should(order):
    data, module = told(arc_data(), demo_order=order)
    task = data.evaluated["d037b0a7"]
    turned = replace(task, demos=task.demos[::-1])
    assert torch.equal(read(module, task), read(module, turned)) == (not order)


def test_numbers_of_demos_are_all_drawn_in_training_and_those_of_a_question_differ(data):
    order, pairs = arc_batches(data)
    counts: Counter[int] = Counter()
    for update in range(60):
        share = order.shares(update)[0]
        question = pairs.tell(share)[1]
        numbers = question.number[::2]
        assert len({*zip(question.question[::2], numbers)}) == len(numbers)
        assert (question.number[::2] == question.number[1::2]).all()
        counts.update(numbers.tolist())
    expected = sum(counts.values()) / MAX_DEMOS
    assert sorted(counts) == list(range(1, MAX_DEMOS + 1))
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 30  # chi-square, 9 degrees, p about 4e-4


# ---- how much


def pairs_of(sides) -> list[Pair]:
    return [Pair(*(as_grid(np.full((side, side), n % 10)) for _ in range(2))) for n, side in enumerate(sides)]


def test_the_cap_drops_whole_demos_the_largest_last_in_an_evaluation():
    pairs = pairs_of([3, 5, 1, 4])  # 18, 50, 2, 32 cells
    for cap, kept in ((102, {3, 5, 1, 4}), (101, {3, 5, 4}), (99, {5, 4}), (50, {5}), (49, set())):
        demos = Conditioning("demos", cap).demos([pairs])
        found = demos.show(np.array([0, 0]))
        assert {int(side) for side in found.size[:, 0]} == kept
        assert len(found.question) == 4 * len(kept) and len(demos.which) - demos.left_out == len(kept)


def test_the_cap_drops_whole_demos_at_random_in_training():
    demos = Conditioning("demos", 70).demos([pairs_of([3, 5, 1, 4]), pairs_of([2])])
    asked, rng = np.array([0, 1, 0]), np.random.default_rng(0)
    seen = Counter()
    for _ in range(50):
        found = demos.show(asked, rng.random((3, demos.uniforms)))
        cells = np.bincount(found.question, found.cells.lengths, 3)
        assert cells.max() <= 70 and cells[1] == 8
        seen.update(found.size[found.question == 0, 0].tolist())
    assert set(seen) == {1, 3, 4, 5} and max(seen.values()) < 100


def test_no_more_than_ten_demos_are_shown():
    for ordered in (False, True):
        demos = Conditioning("demos", 6000, ordered).demos([pairs_of([1] * 13)])
        for uniform in (None, np.random.default_rng(0).random((1, demos.uniforms))):
            assert sorted(demos.show(np.array([0]), uniform).number[::2]) == list(range(1, MAX_DEMOS + 1))


def test_a_budget_counts_the_cells_of_demos():
    data, module = told(arc_data(batch_size=None, batch_units=900))
    order, pairs = arc_batches(data)
    for update in range(5):
        batch = pairs.build(order.shares(update)[0])
        assert 500 < batch.num_units == batch.global_units <= 900
        assert batch.num_units == len(batch.question.cells.colour) + len(batch.answer.colour)
    solver, queries = module.solver(EvalOptions(views=8, max_tokens=4000)), data.queries()
    for chunk in solver.chunks(queries):
        cells = sum(2 * q.grid.size + sum(map(cells_of, q.task.demos)) for q in chunk)
        assert len(chunk) == 1 or 8 * cells < 4000


def test_flops_of_a_training_step_with_demos_are_counted_exactly(monkeypatch):
    """Against torch's count, of grids of one size, so that nothing is padded."""
    monkeypatch.setattr("projects.arc.module.ArcModule.global_rank", 0)
    rng = np.random.default_rng(0)
    grids = [[as_grid(rng.integers(0, 10, (4, 6))) for _ in range(2)] for _ in range(18)]
    tasks = [Task(f"t{n}", tuple(Pair(*pair) for pair in grids[3 * n : 3 * n + 3]), (), "made") for n in range(6)]
    data = with_tasks(tasks, augment=Augment(d4=False, colour="cycle", translate=False))
    module = arc_module(data, task="both", width=64, depth=3).to("meta")
    batch = data.pairs(data.examples(), data.augment).build(Share.of(range(18))).to("meta")
    with FlopCounterMode(display=False) as counter:
        module.training_step(batch, 0)
    assert counter.get_total_flops() == module.flops(batch) + module.extra_flops(batch)
    assert batch.num_units == 18 * 6 * 24


# ---- what the network makes of it


def test_size_logits_do_not_change_with_the_answer(data, module):
    pairs = data.pairs(data.examples())
    small, large = (pairs.build(Share.of([0, 1, 2])) for _ in range(2))
    large.answer = pairs.build(Share.of([9, 10, 11])).answer
    first, second = module.network.prefix(small.question), module.network.prefix(large.question)
    assert torch.equal(first.size_logits, second.size_logits)
    assert not torch.equal(believe(module.network, small), believe(module.network, large)[: len(small.answer.colour)])


def test_a_kept_prefix_gives_the_logits_of_a_fresh_one_and_of_the_masked_reference(module, batch, monkeypatch):
    first, second = believed_twice(module.network, batch)
    assert torch.equal(first, second)
    monkeypatch.setenv("ATTENTION", "mask")
    assert torch.allclose(first, believe(module.network, batch), atol=1e-4)


def test_the_belief_depends_on_colours_roles_and_numbers_of_demos(module, batch):
    before = believe(module.network, batch)
    cells, marks = batch.question.cells, batch.question.marks
    demo = marks.role != INPUT
    others = (
        {"cells": replace(cells, colour=torch.where(demo, 9 - cells.colour, cells.colour))},
        {"marks": replace(marks, role=torch.where(demo, DEMO_INPUT + DEMO_OUTPUT - marks.role, marks.role))},
        {"marks": replace(marks, pair=torch.where(demo, 1, marks.pair))},
    )
    for other in others:
        after = believe(module.network, replace(batch, question=replace(batch.question, **other)))
        assert not torch.allclose(before, after, atol=1e-4)


def test_withheld_inputs_leave_the_demos_visible(module, batch):
    hidden = torch.ones(batch.num_samples, dtype=torch.bool)
    cells, inputs = batch.question.cells, batch.question.marks.role == INPUT
    question = replace(batch.question, hidden=hidden)
    for mine, equal in ((inputs, True), (~inputs, False)):
        other = replace(question, cells=replace(cells, colour=torch.where(mine, 9 - cells.colour, cells.colour)))
        assert torch.equal(size_logits(module, question), size_logits(module, other)) == equal


def test_parameters_of_the_ways_to_be_told_a_task():
    counts = {}
    with torch.device("meta"):
        for name, rows, demos in (("rows", 24, False), ("demos", 0, True), ("both", 24, True)):
            network = GridDenoiser(rows, 10, "cycle", 128, 3, 4, 1, 32, demos=demos)
            counts[name] = sum(p.numel() for p in network.parameters())
    added = (2 + 1 + MAX_DEMOS) * 128  # two roles, numbers of pairs
    assert counts == {"rows": 676_033, "demos": 676_033 - 24 * 128 + added, "both": 676_033 + added + 128}


def test_every_parameter_learns(monkeypatch):
    monkeypatch.setattr("projects.arc.module.ArcModule.global_rank", 0)
    data, module = told(arc_data(), "both", condition_dropout=0.5)
    order, pairs = arc_batches(data)
    for update in range(4):
        module.train().training_step(pairs.build(order.shares(update)[0]), 0)["loss"].backward()
    assert not [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]


# ---- rows beside demos


def test_rows_are_withheld_for_a_fifth_of_the_examples_and_never_in_an_evaluation():
    data, module = told(arc_data(), "both")
    order, pairs = arc_batches(data)
    rows = np.concatenate([pairs.tell(order.shares(u)[0])[0] for u in range(150)])
    assert abs((rows == NO_ROW).mean() - 0.2) < 5 * (0.2 * 0.8 / len(rows)) ** 0.5
    examples = data.examples()
    still = data.pairs(examples).build(Share.of(range(len(examples)))).question
    assert still.task.tolist() == [e.row for e in examples]
    gone = replace(still, task=torch.full_like(still.task, NO_ROW))
    before = size_logits(module, still), size_logits(module, gone)
    torch.nn.init.normal_(module.network.tasks.weight)
    after = size_logits(module, still), size_logits(module, gone)
    assert torch.equal(before[1], after[1]) and not torch.equal(before[0], after[0])


@pytest.mark.parametrize("task", ["demos", "both"])
def test_a_task_the_checkpoint_does_not_know_is_answered_from_its_demos(task):
    known, stored = arc_data(), {}
    arc_module(known, task=task).on_save_checkpoint(stored)
    new = arc_data(tasks=[*UNKNOWN, "3c9b0459"])
    module = arc_module(known, task=task).eval()
    module.adopt(new, stored)
    rows = {query.task.id: query.row for query in new.queries()}
    assert rows == {**dict.fromkeys(UNKNOWN, NO_ROW), "3c9b0459": stored["tasks"]["ids"].index("3c9b0459")}
    answered = module.solver(EvalOptions(num_steps=1, views=2)).all(new.queries())
    assert [len(one.attempts) for one in answered] == [2] * len(answered)


def test_a_task_the_checkpoint_does_not_know_is_refused_without_demos():
    stored: dict = {}
    arc_module(arc_data()).on_save_checkpoint(stored)
    with pytest.raises(ValueError, match=r"task 46442a0e has no row .* fine-tune on it .* model.task=demos") as refusal:
        arc_module(arc_data()).adopt(arc_data(tasks=UNKNOWN), stored)
    assert "\n" not in str(refusal.value)


def test_tasks_that_are_evaluated_need_no_pair_in_training():
    """`others` are the tasks of a split that are not evaluated, with their test pairs."""
    options = {"tasks": None, "max_size": 5, "train_sets": ["training:others"], "overlap": "allow"}
    data, _ = told(arc_data(**options, limit=3))
    asked = set(data.evaluated.ids)
    assert len(asked) == 3 and len(data.task_ids) == 22 and not asked & set(data.task_ids)
    assert any(e.pair.origin == "revealed" for e in data.examples())
    assert {query.row for query in data.queries()} == {NO_ROW}
    with pytest.raises(ValueError, match=r"is evaluated but .* model\.task=demos"):
        arc_module(arc_data(**options, limit=3))


# ---- learning from demos


def painted(colour: int, rng: np.random.Generator) -> Task:
    """Whatever the input, the output is one cell of the task's colour."""
    pairs = [Pair(as_grid(rng.integers(0, 10, (2, 2))), as_grid([[colour]])) for _ in range(3)]
    return Task(f"paint{colour}", tuple(pairs), (), "made")


def test_a_task_never_seen_is_answered_from_its_demos(monkeypatch):
    """Trained on the colours 1 to 6 under cyclic shifts; the colours 7 to 9 are new tasks, seen unshifted."""
    monkeypatch.setattr("projects.arc.module.ArcModule.global_rank", 0)
    rng = np.random.default_rng(0)
    tasks = [painted(colour, rng) for colour in range(1, 10)]
    data, other = with_tasks(tasks[:6], batch_size=16), with_tasks(tasks[6:])
    module = arc_module(data, task="demos", self_condition=SelfCondition(share=0.0)).train()
    other.conditioning = module.conditioning
    torch.nn.init.zeros_(module.network.out.weight)
    order, pairs = arc_batches(data)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for update in range(60):
        optimizer.zero_grad()
        module.training_step(pairs.build(order.shares(update)[0]), 0)["loss"].backward()
        optimizer.step()
    batch = other.pairs(other.examples()).build(Share.of(range(9)))
    noise = replace(batch.answer, colour=(batch.answer.colour + 3) % 10)
    prefix = module.eval().network.prefix(batch.question)
    belief = module.network(prefix, module.network.frame(prefix, noise), noise, torch.ones(9))
    assert (belief.argmax(-1) == batch.answer.colour).all()
