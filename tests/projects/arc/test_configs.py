"""The lists of nano and nano-demos obey their rules, and nothing in the code knows them."""

from hashlib import sha256
from pathlib import Path

import pytest
import yaml

from packages.arc.families import family
from packages.arc.sources import Source, read_questions
from packages.arc.subsets import read_ids, within
from packages.arc.tasks import digest
from projects.arc.data import ArcData, Augment, HoldoutOptions
from projects.arc.demos import Conditioning

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def nano() -> dict:
    return yaml.safe_load((ROOT / "configs/arc/nano.yaml").read_text())


def test_the_nano_tasks_are_what_their_comments_say(nano):
    training = read_questions(Source("arc1", "training"))
    tasks = training.select(nano["data"]["tasks"])
    assert len(tasks) == 24 and tasks.num_queries == 26 and tasks.num_demos == 83
    in_a_family = [training[id] for id in nano["data"]["tasks"][:16]]
    others = [training[id] for id in nano["data"]["tasks"][16:]]
    assert all(family(task.demos) and task.side <= 8 for task in in_a_family)
    assert all(not family(task.demos) and task.side <= 7 and len(task.demos) >= 3 for task in others)


def test_no_evaluation_task_is_in_the_embedded_default(nano):
    assert not set(nano["data"]["tasks"]) & set(read_questions(Source("arc1", "evaluation")).ids)
    assert nano["data"]["split"] == "training" and nano["data"]["train_sets"] == ["training:demos"]


def test_no_code_names_a_task_of_the_nano_list(nano):
    sources = [file.read_text() for room in ("packages", "shared", "projects") for file in (ROOT / room).rglob("*.py")]
    named = {id for id in nano["data"]["tasks"] if any(id in text for text in sources)}
    assert named <= {"74dd1130"}  # the example of `packages.arc.sources --show`


@pytest.fixture(scope="module")
def unseen() -> tuple[str, ...]:
    return read_ids(ROOT / "configs/arc/unseen.txt")


def test_every_second_small_task_is_unseen(unseen):
    small = within(read_questions(Source("arc1", "training")), 6).ids
    assert set(unseen) == set(sorted(small, key=lambda id: sha256(id.encode()).hexdigest())[::2])


def test_nano_demos_trains_on_no_task_that_it_is_judged_on(unseen, monkeypatch):
    monkeypatch.chdir(ROOT)
    said = yaml.safe_load((ROOT / "configs/arc/nano-demos.yaml").read_text())["data"]
    data = ArcData(
        **{**said, "augment": Augment(**said["augment"]), "holdout": HoldoutOptions(**said["holdout"])}, overlap="drop"
    )
    data.conditioning = Conditioning("demos")
    pool = data.training_pool()
    assert data.evaluated.ids == unseen and not set(unseen) & set(pool.ids)
    inputs = {digest(pair.input) for task in pool for pair in task.demos}
    assert not inputs & {digest(query) for task in data.evaluated for query in task.queries}
