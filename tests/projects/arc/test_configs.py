"""Sizes have the parameters of a formula; the lists of nano and nano-demos obey their rules, and no code knows them."""

import math
import re
from hashlib import sha256

import pytest
import torch
import yaml

from packages.arc.families import family
from packages.arc.sources import Source, read_questions
from packages.arc.subsets import read_ids, within
from packages.arc.tasks import digest
from projects.arc.data import ArcData, HoldoutOptions
from projects.arc.demos import Conditioning
from projects.arc.network import GridDenoiser
from projects.arc.pairs import Augment
from tests.lines import CPU, ROOT, RUNGS, Rung, built

ARC2 = "configs/arc/arc2.yaml"
NAMES = ("nano", "toiny", "smol", "smol-deep", "mediom", "lorge", "huoge", "giont", "test")
SIZES = [rung for rung in RUNGS if str(rung) in {f"arc/{name}" for name in NAMES}]


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    monkeypatch.chdir(ROOT)


def formula(d: int, layers: int, heads: int, m: int, rows: int, side: int, colours: int, multiple: int) -> int:
    """Parameters of `GridDenoiser`: blocks, final norm, embeddings, time, belief and its gate, heads."""
    f = math.ceil(8 * d / 3 / multiple) * multiple
    blocks = layers * (4 * d * d + 3 * d * f + 2 * d + 2 * d // heads)
    tables = 10 + 1 + 2 + side + m * rows + 8 + colours + 1  # colour, withheld, role, place, task, D4, colours, size
    return blocks + d + tables * d + 256 * d + d * d + 10 * d + 1 + 10 * d + side * side * d


def stated(rung: Rung) -> dict:
    """What the file of a size says."""
    return yaml.safe_load(rung.files[-1].read_text())


def count(size: dict, rows: int) -> int:
    """Of the network for that many tasks, on the meta device, held against the formula."""
    named = {k: v for k, v in size["model"].items() if k not in ("eval", "size")}
    model = {"task_tokens": 4, "mlp_multiple": 64} | named
    side, colour = size["data"]["max_size"] if rows == 24 else 30, "cycle" if rows == 24 else "permute"
    with torch.device("meta"):
        network = GridDenoiser(rows, side, colour, **model)
    shape = (model[key] for key in ("width", "depth", "heads", "task_tokens"))
    found = sum(p.numel() for p in network.parameters())
    assert found == formula(*shape, rows, side, 9 if rows == 24 else 18, model["mlp_multiple"])
    return found


@pytest.mark.parametrize("rung", SIZES, ids=str)
def test_every_size_has_the_parameters_of_the_formula_and_of_the_heads_of_the_configs(rung):
    said = re.search(r"# parameters: ([\d,]+)", rung.files[-1].read_text())
    rows = 24 if str(rung) == "arc/nano" else 800
    assert f"{count(stated(rung), rows):,}" == said[1]
    of_arc2 = dict(re.findall(r"(\S+) ([\d,]+\d)", (ROOT / ARC2).read_text().partition("# parameters")[2]))
    if rows == 800:
        assert f"{count(stated(rung), 1120):,}" == of_arc2[str(rung).removeprefix("arc/")]


def test_the_sizes_train_as_long_and_as_fast_as_planned():
    """12.3 million pairs, warm-up over 2,000 updates; the larger the network, the lower the peak."""
    rates = {str(rung).removeprefix("arc/"): stated(rung)["optim"]["lr"] for rung in SIZES}
    assert rates == {
        "nano": 2e-3, "toiny": 1.2e-3, "smol": 1e-3, "smol-deep": 1e-3, "mediom": 7e-4, "lorge": 5e-4,
        "huoge": 3.5e-4, "giont": 2e-4, "test": 1e-3,
    }  # fmt: skip
    (rows,) = {str(stated(rung)["optim"].get("groups")) for rung in SIZES if str(rung) != "arc/nano"}
    assert "'lr_scale': 10.0" in rows
    base = yaml.safe_load((ROOT / "configs/arc/base.yaml").read_text())
    assert base["data"]["batch_size"] * base["trainer"]["max_steps"] == 12_288_000
    assert base["optim"]["warmup"] == 2000


def test_the_overlay_of_arc2_changes_the_source_and_nothing_of_the_size():
    smol = next(rung for rung in SIZES if str(rung) == "arc/smol")
    cli = built("arc", [*smol.line, f"--config={ARC2}", CPU])
    data = cli.datamodule
    assert cli.layers.size == "smol" and data.evaluated.name == "arc2:evaluation" and data.evaluated.num_queries == 167
    assert {e.weight for e in data.examples()} == {1.0, 10.0}
    assert cli.plan.parameters == count(stated(smol), 1120)


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
