"""No hidden output reaches training, filtering, sizes or selection: replace them all, and only the score changes."""

import json
from pathlib import Path

import pytest
import torch

from packages.arc.sources import export
from projects.arc.data import ArcData, HoldoutOptions
from projects.arc.pairs import Augment
from projects.arc.solving import EvalOptions
from tests.projects.arc.conftest import TASKS, arc_batches, arc_module

SENTINELS = {"a colour": [[7]], "31 x 31": [[7] * 31] * 31, "no grid at all": "hidden"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A folder of official files: TASKS to train on, their queries to answer, and their true hidden outputs."""
    folder = tmp_path_factory.mktemp("plain") / "tasks"
    export("arc1", folder.parent / "all")
    for id in TASKS:
        visible, hidden = (
            json.loads(next((folder.parent / "all" / part).rglob(f"{id}.json")).read_text())
            for part in ("questions", "answers")
        )
        tests = [{**asked, **said} for asked, said in zip(visible["test"], hidden["test"], strict=True)]
        _write(folder, id, {"train": visible["train"], "test": tests})
    return folder


def _write(folder: Path, id: str, raw: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{id}.json").write_text(json.dumps(raw))


def _with(plain: Path, folder: Path, change) -> Path:
    """A copy of the folder, of the same name, with `change(task)` done to every task."""
    for file in plain.glob("*.json"):
        raw = json.loads(file.read_text())
        change(raw)
        _write(folder / plain.name, file.stem, raw)
    return folder / plain.name


def _data(folder: Path) -> ArcData:
    return ArcData(
        dataset=str(folder),
        layout="tasks",
        split="training",
        train_sets=["training:demos"],
        max_size=10,
        augment=Augment(colour="cycle", translate=False),
        holdout=HoldoutOptions(share=0.5),
        batch_size=8,
    )


def _trace(folder: Path, monkeypatch, task: str) -> dict:
    """Everything a run does before scoring: pools, batches, three updates, held-out pairs, sizes, answers."""
    monkeypatch.setattr("projects.arc.module.ArcModule.global_rank", 0)
    data = _data(folder)
    module = arc_module(data, task=task).train()
    order, pairs = arc_batches(data)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    losses = []
    for update in range(3):
        loss = module.training_step(pairs.build(order.shares(update)[0]), 0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    module.eval().on_save_checkpoint(stored := {})
    options = EvalOptions(num_steps=2, views=4)
    answered = module.solver(options).all(data.queries())
    return {
        "describe": data.describe(),
        "ids": data.task_ids,
        "losses": losses,
        "checkpoint": stored,
        "weights": [p.detach().numpy().tobytes() for p in module.parameters()],
        "held": [(e.row, e.pair.output.tobytes()) for e in data.held()],
        "samples": [(sample.text, sample.image.tolist()) for sample in module.sample(list(range(4)))],
        "answers": [(a.sizes, [x.grid.tobytes() for x in a.attempts]) for a in answered],
    }


@pytest.mark.parametrize(("sentinel", "task"), [*((sentinel, "rows") for sentinel in SENTINELS), ("a colour", "both")])
def test_hidden_outputs_change_nothing_before_the_score(plain, tmp_path, monkeypatch, sentinel, task):
    def hide(raw):
        raw["test"] = [{"input": test["input"], "output": SENTINELS[sentinel]} for test in raw["test"]]

    other = _with(plain, tmp_path, hide)
    assert _trace(plain, monkeypatch, task) == _trace(other, monkeypatch, task)


@pytest.mark.parametrize("task", ["rows", "both"])
def test_the_trace_would_notice_a_leak(plain, tmp_path, monkeypatch, task):
    """The same comparison does fail when one visible output changes."""

    def show(raw):
        raw["train"][0]["output"] = [[7] * len(row) for row in raw["train"][0]["output"]]

    assert _trace(plain, monkeypatch, task) != _trace(_with(plain, tmp_path, show), monkeypatch, task)
