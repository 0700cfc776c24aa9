"""Pools, views and batches: what trains, how often, and that the batch is a function of the update alone."""

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from packages.arc.sources import Source, export, read_questions
from packages.arc.views import View
from projects.arc.data import HoldoutOptions
from projects.arc.evaluate import Evaluation
from projects.arc.packing import GridStore, blank, weave
from projects.arc.pairs import Augment, Grids, PairBatches
from projects.arc.solving import EvalOptions
from shared.training.batches import Share
from shared.training.errors import Mistake
from tests.projects.arc.conftest import TASKS, arc_batches, arc_data, arc_module


def grids_of(batch: Grids) -> list[tuple[np.ndarray, np.ndarray]]:
    """(input, output) of every example as arrays, from its packed cells."""
    found = []
    for cells in (batch.question.cells, batch.answer):
        parts = zip(*(x.split(cells.lengths.tolist()) for x in (cells.colour, cells.row, cells.col)))
        found.append([_grid(*part) for part in parts])
    return list(zip(*found))


def _grid(colour, row, col):
    grid = np.full((int(row.max()) + 1, int(col.max()) + 1), 99)
    grid[row, col] = colour
    return grid


def test_a_batch_shows_each_pair_in_the_view_it_tells(data):
    order, pairs = arc_batches(data)
    share = order.shares(3)[0]
    batch = pairs.build(share)
    seen, _ = pairs.draw(share)
    for n, (drawn_in, drawn_out) in enumerate(grids_of(batch)):
        view, pair = seen.view(n), data.examples()[share.index[n]].pair
        assert np.array_equal(drawn_in, view.apply(pair.input)) and np.array_equal(drawn_out, view.apply(pair.output))
        assert batch.question.d4[n] == view.d4 and tuple(batch.question.colours[n].tolist()) == view.colours
        height, width = drawn_out.shape
        assert batch.size[n] == (height - 1) * data.max_size + width - 1


def test_translation_moves_both_grids_together_inside_the_side():
    data = arc_data(augment=Augment(colour="none", d4=False, translate=True))
    order, pairs = arc_batches(data)
    share = order.shares(0)[0]
    batch, (_, shift) = pairs.build(share), pairs.draw(share)
    assert shift.max() > 0
    for cells in (batch.question.cells, batch.answer):
        for n in range(8):
            mine = cells.segment == n
            assert (int(cells.row[mine].min()), int(cells.col[mine].min())) == tuple(shift[n])
            assert max(int(cells.row[mine].max()), int(cells.col[mine].max())) < data.max_size


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_together_see_the_batch_of_one_process(data, world):
    whole, pairs = arc_batches(data)
    alone = pairs.build(whole.shares(5)[0])
    parts = [pairs.build(arc_batches(data, world=world, rank=r)[0].shares(5)[0]) for r in range(world)]
    rows, grids = np.concatenate([part.share.row for part in parts]), grids_of(alone)
    assert sorted(rows) == list(range(8))
    for row, drawn in zip(rows, [drawn for part in parts for drawn in grids_of(part)], strict=True):
        assert all(map(np.array_equal, grids[row], drawn))
    assert torch.equal(alone.question.d4[rows], torch.cat([part.question.d4 for part in parts]))
    assert torch.equal(alone.size[rows], torch.cat([part.size for part in parts]))
    again = arc_batches(data)[1].build(whole.shares(5)[0])
    assert torch.equal(alone.question.colours, again.question.colours)


def test_views_are_drawn_uniformly(data):
    order, pairs = arc_batches(data)
    drawn = [pairs.draw(order.shares(u)[0])[0] for u in range(300)]
    counts = Counter((int(d), int(c[1])) for seen in drawn for d, c in zip(seen.d4, seen.colours))
    expected = 2400 / 72
    assert len(counts) == 72
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 120  # chi-square, 71 degrees, p about 2e-4


def test_every_pair_is_seen_once_a_pass(data):
    order, _ = arc_batches(data)
    size = len(data.examples())
    seen = np.concatenate([order.shares(u)[0].index for u in range(size)])
    assert Counter(seen[: 8 * size].tolist()) == dict.fromkeys(range(size), 8)


def test_evaluated_pairs_weigh_what_was_asked_and_are_drawn_as_often():
    data = arc_data(
        split="evaluation",
        tasks=["00576224", *TASKS],
        train_sets=["training:demos", "evaluation:demos"],
        eval_weight=10.0,
    )
    weights = {data.task_ids[e.row]: e.weight for e in data.examples()}
    assert weights["00576224"] == 10.0 and {weights[id] for id in TASKS} == {1.0}
    order, _ = arc_batches(data)
    times = Counter(np.concatenate([order.shares(u)[0].index for u in range(200)]).tolist())
    drawn = {weight: [times[n] for n, e in enumerate(data.examples()) if e.weight == weight] for weight in (1.0, 10.0)}
    assert np.mean(drawn[10.0]) / np.mean(drawn[1.0]) == pytest.approx(10, rel=0.05)


def test_the_rows_follow_the_sorted_ids(data):
    assert data.task_ids == tuple(sorted(TASKS))
    by_row = {e.row: e.pair for e in data.examples()}
    source = read_questions(Source("arc1", "training"))
    for row, id in enumerate(data.task_ids):
        assert any(np.array_equal(by_row[row].output, pair.output) for pair in source[id].demos)


def test_held_out_pairs_never_train_and_are_all_that_validates():
    data = arc_data(holdout=HoldoutOptions(share=1.0))
    held = data.held()
    trained = {(e.row, e.pair.input.tobytes(), e.pair.output.tobytes()) for e in data.examples()}
    assert held and not trained & {(e.row, e.pair.input.tobytes(), e.pair.output.tobytes()) for e in held}
    assert not arc_data().held()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": ["nosuch"]}, "unknown task 'nosuch'"),
        ({"train_sets": ["training"]}, "<split>:demos, <split>:revealed, <split>:others or invented:<number>"),
        ({"tasks": ["007bbfb7"], "max_size": 5}, "set --data.max_size=9"),
        ({"dataset": "arc9"}, "unknown dataset"),
        ({"train_sets": ["training:revealed"]}, "it is evaluated"),
        ({"train_sets": ["evaluation:demos"], "tasks": None}, "has no pair in data.train_sets"),
        ({"subset": "training-hard"}, "pass data.subset_file"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(options, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")) as refusal:
        _ = arc_data(**options).task_ids
    assert "\n" not in str(refusal.value)


COLUMN, ROW, FULL = [[1]] * 30, [[2] * 30], [[3] * 30] * 30
EDGES = {  # one demo, both extremes of size, rows and columns, three queries
    "a": {"train": [{"input": [[1]], "output": FULL}], "test": [{"input": [[1]], "output": FULL}]},
    "b": {
        "train": [{"input": ROW, "output": COLUMN}, {"input": FULL, "output": [[6]]}],
        "test": [{"input": x, "output": y} for x, y in ((COLUMN, ROW), (ROW, COLUMN), (FULL, [[6]]))],
    },
}


FOLDERS = ["tasks", "tasks without outputs", "questions and answers apart", "kaggle", "kaggle without solutions"]


def folders(home: Path) -> dict[str, Path]:
    """The same tasks in every layout that a folder may have, with and without answers."""
    for split in ("training", "evaluation"):
        (home / "tasks" / split).mkdir(parents=True)
        for id, raw in EDGES.items():
            (home / "tasks" / split / f"{id}{split[0]}.json").write_text(json.dumps(raw))
    for layout in ("tasks", "kaggle"):
        export(str(home / "tasks"), home / "exported" / layout, layout)
    shutil.copytree(home / "exported/kaggle", home / "asked", ignore=shutil.ignore_patterns("*solutions*"))
    return {
        "tasks": home / "tasks",
        "tasks without outputs": home / "exported/tasks/questions",
        "questions and answers apart": home / "exported/tasks",
        "kaggle": home / "exported/kaggle",
        "kaggle without solutions": home / "asked",
    }


@pytest.mark.parametrize("name", FOLDERS)
def test_extreme_grids_of_any_folder_are_trained_on_and_answered(tmp_path, monkeypatch, name):
    monkeypatch.setattr("projects.arc.module.ArcModule.global_rank", 0)
    data = arc_data(
        dataset=str(folders(tmp_path)[name]),
        split="evaluation",
        train_sets=["training:revealed", "evaluation:demos"],
        tasks=None,
        max_size=30,
        overlap="allow",
    )
    revealed = 4 if "without" not in name else 0
    assert len(data.examples()) == 6 + revealed and data.task_ids == ("ae", "at", "be", "bt")
    module, (order, pairs) = arc_module(data), arc_batches(data)
    step = module.train().training_step(pairs.build(order.shares(0)[0]), 0)
    assert step["loss"].isfinite()
    module.eval_options = EvalOptions(num_steps=2, views=2)
    module.eval()
    answered = module.solver().all(data.queries())
    assert [one.query.name for one in answered] == ["ae#0", "be#0", "be#1", "be#2"]
    assert all(len(one.attempts) == 2 and max(a.grid.shape) <= 30 for one in answered for a in one.attempts)
    found = Evaluation(data, module.eval_options, module.size_options)
    found.add(answered)
    results = found.results(tmp_path)
    assert json.loads((tmp_path / "submission.json").read_text()).keys() == {"ae", "be"}
    assert bool(results.metrics) == (revealed > 0) and ("nothing scored" in results.headline) == (revealed == 0)


def test_a_store_gives_back_its_grids():
    grids = [np.arange(6, dtype=np.uint8).reshape(2, 3), np.array([[7]], np.uint8), np.ones((4, 1), np.uint8)]
    cells = GridStore(grids).cells(np.array([2, 0, 0]))
    assert cells.lengths.tolist() == [4, 6, 6]
    assert cells.colour.tolist() == [1] * 4 + list(range(6)) * 2
    assert cells.segment.tolist() == [0] * 4 + [1] * 6 + [2] * 6
    assert cells.row.tolist() == [0, 1, 2, 3, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]


def test_blank_cells_run_row_by_row():
    cells = blank(np.array([[2, 3], [1, 1]]), "cpu")
    assert cells.row.tolist() == [0, 0, 0, 1, 1, 1, 0] and cells.col.tolist() == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("first", [0, 2, np.array([1, 0, 3])])
def test_weaving_puts_the_first_tokens_of_a_segment_before_its_second(first):
    second = np.array([2, 0, 1])
    order, place = weave(first, second)
    counts = np.broadcast_to(first, 3)
    a = [f"a{b}.{i}" for b in range(3) for i in range(counts[b])]
    b = [f"b{s}.{i}" for s in range(3) for i in range(second[s])]
    woven = [(a + b)[i] for i in order]
    expected = [w for s in range(3) for w in [x for x in a + b if x[1:].startswith(f"{s}.")]]
    assert woven == expected and [woven[p] for p in place] == b


def test_a_view_of_a_pair_can_be_undone():
    """The packed view and the view of one grid are one map."""
    data = arc_data(augment=Augment(colour="permute", translate=False))
    order, pairs = arc_batches(data)
    share = order.shares(1)[0]
    seen, _ = pairs.draw(share)
    for n, (_, output) in enumerate(grids_of(pairs.build(share))):
        view: View = seen.view(n)
        assert np.array_equal(view.invert(output), data.examples()[share.index[n]].pair.output)


def test_evaluation_batches_are_the_pairs_as_they_are(data):
    pairs = PairBatches(data.examples(), data.max_size, None, data.randomness)
    for (drawn, _), e in zip(grids_of(pairs.build(Share.of([4, 1]))), (data.examples()[i] for i in (4, 1))):
        assert np.array_equal(drawn, e.pair.input)


def test_a_budget_of_cells_holds_whatever_the_grids_and_two_ranks_share_it():
    data = arc_data(batch_size=None, batch_units=400)
    whole, pairs = arc_batches(data)
    sizes = set()
    for update in range(20):
        batch = pairs.build(whole.shares(update)[0])
        parts = [pairs.build(arc_batches(data, world=2, rank=r)[0].shares(update)[0]) for r in range(2)]
        assert 250 < batch.num_units == batch.global_units <= 400
        assert sum(part.num_units for part in parts) == batch.num_units
        sizes.add(batch.num_samples)
    assert len(sizes) > 1


def test_validating_on_nothing_is_said():
    data = arc_data()
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn="validate"))
    with pytest.raises(Mistake, match="No demo pair is held out to validate on"):
        data.val_dataloader()


def test_pairs_that_the_checkpoint_was_trained_on_are_not_called_held_out():
    apart, trained = (arc_data(holdout=HoldoutOptions(share=1.0)) for _ in range(2))
    apart.require_unseen(apart.fingerprint()["pool"])
    trained.require_unseen(arc_data().fingerprint()["pool"])
    count = len(apart.pools.held)
    assert count > 0 and apart.describe()["held out"] == f"{count} demo pairs"
    assert f"{count} of them trained by CKPT" in trained.describe()["held out"]
