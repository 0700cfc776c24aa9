"""Adaptation: which row is whose, what learns and what stays, and test-time training that a kill does not undo."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from packages.arc.sources import Source, read_questions
from packages.arc.tasks import spelled
from projects.arc import adapters
from projects.arc.finetune import PerTask
from shared.training import adapting, cli, lora, pretrained
from shared.training.errors import Mistake
from shared.training.lora import LoraOptions
from tests.lines import wiring
from tests.projects.arc.conftest import TASKS, arc_batches, arc_data, arc_module

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

ROOT = Path(__file__).parents[3]
STORED = {
    "disjoint": ["74dd1130", "9dfd6313"],
    "overlapping": ["74dd1130", *TASKS[1:3]],
    "permuted": TASKS[::-1],
}


# --- whose row


def rows(stored: list[str], named: list[str] = TASKS) -> list[dict[str, int]]:
    """Task -> row as training and as evaluation see it, and as both do after the rows were stored and read again."""
    data, again = arc_data(tasks=named), arc_data(tasks=named)
    data.built_for(10, tuple(stored), extend=True)
    again.built_for(10, data.rows, extend=False)
    found = []
    for each in (data, again):
        of_pair = {example.pair.input.tobytes(): example.row for example in each.examples()}
        learnt = {task.id: of_pair[task.demos[0].input.tobytes()] for task in each.pools.training}
        found += [learnt, {query.task.id: query.row for query in each.queries()}]
    return found


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_a_task_is_asked_with_the_row_it_was_learnt_with(stored):
    learnt, asked, learnt_again, asked_again = rows(stored)
    assert learnt == asked == learnt_again == asked_again
    new = sorted(set(TASKS) - set(stored))
    ids = [*stored, *new]
    assert learnt == {id: ids.index(id) for id in TASKS}  # the checkpoint's order, then the others sorted
    assert rows(stored, TASKS[::-1]) == rows(stored)


def test_rows_do_not_depend_on_how_python_hashes():
    """Another process with a seed of its own (this one's is another) finds the same."""
    code = (
        "import json; from tests.projects.arc.test_finetune import STORED, rows;"
        "print(json.dumps([rows(stored) for stored in STORED.values()]))"
    )
    seeded = {**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True, env=seeded
    )
    assert hash("a") != int(
        subprocess.run([sys.executable, "-c", "print(hash('a'))"], env=seeded, text=True, capture_output=True).stdout
    )
    assert json.loads(told.stdout) == [rows(stored) for stored in STORED.values()]


def test_a_task_without_a_row_is_refused():
    data = arc_data()
    data.built_for(10, tuple(TASKS[1:]), extend=False)
    with pytest.raises(ValueError, match=f"task {TASKS[0]} has no row"):
        data.queries()


# --- which tasks


@pytest.mark.parametrize("split", ["training", "evaluation"])
@pytest.mark.parametrize("count", [1, 10, None])
def test_one_ten_or_all_tasks_of_either_split_learn_from_their_demos_alone(split, count):
    everyone = [task for task in read_questions(Source("arc1", split)) if task.side <= 10]
    ids = [task.id for task in everyone[:count]]
    asked = {"tasks": ids if count else None, "split": "auto" if count else split}
    data = arc_data(**asked, train_sets=["auto:demos"], overlap="drop")
    assert data.split == split and list(data.evaluated.ids) == list(data.task_ids) == ids
    assert {pair.origin for task in data.pools.training for pair in task.demos} == {"demo"}


def test_tasks_of_both_splits_at_once_are_refused():
    with pytest.raises(ValueError, match="tasks are of evaluation and training"):
        _ = arc_data(tasks=["00576224", "25ff71a9"], split="auto").split


def test_an_id_that_yaml_takes_for_a_number_is_that_id():
    assert [spelled(0o0576224), spelled(12422043), spelled("3b4c2228")] == ["00576224", "12422043", "3b4c2228"]


def test_a_task_alone_keeps_its_row_and_a_demo_to_learn_from(data):
    alone = data.only(TASKS[2])
    assert list(alone.evaluated.ids) == list(alone.task_ids) == [TASKS[2]]
    assert {example.row for example in alone.examples()} == {data.task_ids.index(TASKS[2])}
    assert list(data.evaluated.ids) == sorted(TASKS)


# --- adapters


@pytest.fixture
def adapted(data, tmp_path, monkeypatch):
    """A module on a base, adapted, after two updates; and the base's state."""
    monkeypatch.setattr("projects.arc.module.ArcModule.global_rank", 0)
    whole = arc_module(data)
    content = {"state_dict": whole.state_dict(), "palimpsest": {"project": "arc", **pretrained.origin(whole)}}
    torch.save(content, tmp_path / "base.ckpt")
    module = arc_module(data, seed=1)
    adapting.attach(module, LoraOptions(enabled=True, r=4), tmp_path / "base.ckpt")
    order, pairs = arc_batches(data)
    batch = pairs.build(order.shares(0)[0])
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        module.training_step(batch, 0)["loss"].backward()
        optimizer.step()
    return module, {name: value.clone() for name, value in whole.state_dict().items()}, batch


def logits(module, batch, t=0.5):
    with torch.no_grad():
        prefix = module.network.prefix(batch.question)
        frame = module.network.frame(prefix, batch.answer)
        return module.network(prefix, frame, batch.answer, torch.full((batch.answer.count,), t)), prefix.size_logits


def test_every_adapter_has_a_gradient_and_the_base_does_not_move(adapted):
    module, before, _ = adapted
    silent = [name for name, p in module.named_parameters() if p.requires_grad and not p.grad.any()]
    around = {name.split(".lora_")[0] for name, p in module.named_parameters() if ".lora_B." in name}
    assert not silent and len(around) == 2 * 7 + 1 and "network.size" in around
    after = {name.replace(".token_adapter", "").replace(".base_layer", ""): value
             for name, value in module.state_dict().items()}  # fmt: skip
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_merged_answers_are_the_unmerged(adapted):
    module, _, batch = adapted
    before = logits(module.eval(), batch)
    lora.merge(module.network)
    for one, other in zip(before, logits(module, batch), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_evaluation_sees_what_training_does(adapted):
    module, _, batch = adapted
    for one, other in zip(logits(module.train(), batch), logits(module.eval(), batch), strict=True):
        assert torch.equal(one, other)


def test_what_a_task_learnt_is_put_back_whatever_is_worn_in_between(adapted, tmp_path):
    module, _, batch = adapted
    mine, before = adapters.learnt(module, TASKS[0]), logits(module, batch)
    adapters.write(tmp_path / "one.safetensors", mine, "b" * 64, {"seconds": 1.0})
    with adapters.restored(module):
        adapters.wear(module, TASKS[0], {name: value + 1 for name, value in mine.items()})
        assert not torch.equal(before[0], logits(module, batch)[0])
        read, facts = adapters.read(tmp_path / "one.safetensors", "b" * 64)
        adapters.wear(module, TASKS[0], read)
        assert torch.equal(before[0], logits(module, batch)[0]) and facts == {"seconds": 1.0}
    with pytest.raises(Mistake, match="safetensors was trained on a base whose tensors have sha256 bbbbbb"):
        adapters.read(tmp_path / "one.safetensors", "c" * 64)


@pytest.mark.parametrize("adaptation", [LoraOptions(enabled=True, r=4), LoraOptions(enabled=True, tune="full")])
def test_a_network_told_its_tasks_by_demos_has_adapters_to_keep_and_no_row(tmp_path, adaptation):
    told = {"task": "demos", "width": 16}
    data = arc_data()
    whole = arc_module(data, **told)
    content = {"state_dict": whole.state_dict(), "palimpsest": {"project": "arc", **pretrained.origin(whole)}}
    torch.save(content, tmp_path / "base.ckpt")
    module = arc_module(data, seed=1, **told)
    adapting.attach(module, adaptation, tmp_path / "base.ckpt")
    mine, before = adapters.learnt(module, TASKS[0]), adapters.learning(module.network)
    assert mine and mine.keys() == before.keys() and all(torch.equal(mine[name], before[name]) for name in mine)
    adapters.wear(module, TASKS[1], {name: value + 1 for name, value in mine.items()})
    after = adapters.learning(module.network)
    assert all(torch.equal(after[name], mine[name] + 1) for name in mine)


# --- every task on its own, through the command line

LAYERS = [f"--config=configs/{name}.yaml" for name in ("arc/base", "arc/nano", "hardware/cpu")]
TINY = ["--model.width=32", "--model.heads=2", "--model.eval.views=2", "--model.eval.num_steps=2",
        "--snapshots.every=null", "--logging.every=1", "--data.batch_units=400"]  # fmt: skip
NEW = ["3c9b0459", "6150a2bd", "25ff71a9"]  # the last is known to the base
PER_TASK = ["--finetune.tasks_mode=per_task", "--finetune.updates=3", "--run.validate_every=2", "--lora.r=2"]


def run(*arguments: str) -> None:
    given = wiring("arc")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        cli.main(given.module, given.data, list(arguments), verbs=given.verbs, groups=given.groups)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Runs: a base of two tasks, and three tasks adapted on it one by one."""
    root = tmp_path_factory.mktemp("runs")
    few = [*TINY, "--trainer.max_steps=2", "--data.tasks=[25ff71a9,d037b0a7]", "--run.test_after_fit=false"]
    run("fit", *LAYERS, *few, f"--run.root={root}", "--run.name=a")
    run("finetune", *per_task(root, "whole", NEW, "--finetune.rows=true"))
    return root


def per_task(root: Path, name: str, tasks: list[str] = NEW, *more: str) -> list[str]:
    return [LAYERS[-1], f"--ckpt_path={root / 'arc/nano/a'}", *TINY, *PER_TASK, f"--data.tasks=[{','.join(tasks)}]",
            f"--run.root={root}", f"--run.name={name}", *more]  # fmt: skip


def files(folder: Path) -> dict[str, dict[str, list]]:
    return {file.name: {n: t.tolist() for n, t in load_file(file).items()} for file in folder.glob("*.safetensors")}


def test_a_file_holds_adapters_and_one_row_and_nothing_of_the_base(root):
    run_folder = root / "arc/nano-lora/whole"
    found = {file.stem: load_file(file) for file in (run_folder / "adapters").iterdir()}
    assert sorted(found) == sorted(NEW)
    for tensors in found.values():
        assert all(".lora_" in name or name == adapters.ROWS for name in tensors)
        assert len(tensors[adapters.ROWS]) == 1 and sum(".lora_B." in name for name in tensors) == 3 * 7 + 1
    assert sorted(json.loads((run_folder / "submission.json").read_text())) == sorted(NEW)
    assert {tuple(load_file(file)) for file in (run_folder / "rows").iterdir()} == {(adapters.ROWS,)}
    assert [line[0] for line in json.loads((run_folder / "adapted.json").read_text())["tasks"]] == sorted(NEW)


def test_evaluating_the_run_wears_every_task_its_own(root):
    folder = root / "arc/nano-lora/whole"
    before = {name: (folder / name).read_text() for name in ("submission.json", "answers.json")}
    run("test", f"--ckpt_path={folder}")
    assert {name: (folder / name).read_text() for name in before} == before
    moved = root / "arc/nano-lora/swapped"
    shutil.copytree(folder, moved)
    shutil.copy(moved / f"adapters/{NEW[0]}.safetensors", moved / f"adapters/{NEW[1]}.safetensors")
    run("test", f"--ckpt_path={moved}")
    again = {one["task"]: one for one in json.loads((moved / "answers.json").read_text())}
    first = {one["task"]: one for one in json.loads(before["answers.json"])}
    assert again[NEW[0]] == first[NEW[0]] and again[NEW[1]] != first[NEW[1]]


def test_rows_alone_are_not_asked_of_a_network_without_rows(root, capsys):
    few = [*TINY, "--trainer.max_steps=1", "--data.tasks=[25ff71a9,d037b0a7]", "--run.test_after_fit=false"]
    run("fit", *LAYERS, *few, f"--run.root={root}", "--run.name=told", "--model.task=demos")
    asked = [f"--ckpt_path={root / 'arc/nano/told'}", "--finetune.rows=true"]
    with pytest.raises(SystemExit):
        run("finetune", *per_task(root, "refused", NEW, *asked))
    assert "finetune.rows learns rows" in capsys.readouterr().err


@pytest.mark.parametrize(("verb", "why"), [("export", "adapters/ beside it holds"), ("sample", "sample cannot")])
def test_what_would_leave_the_adapters_out_is_refused(root, capsys, verb, why):
    with pytest.raises(SystemExit):
        run(verb, f"--ckpt_path={root}/arc/nano-lora/whole")
    assert why in capsys.readouterr().err


def test_a_run_killed_in_its_second_task_goes_on_with_it(root, monkeypatch):
    folder, one = root / "arc/nano-lora/killed", PerTask.one
    ids = sorted(NEW)

    def killed(self, kind, id):
        if id == ids[1]:
            raise SystemExit(137)
        return one(self, kind, id)

    monkeypatch.setattr(PerTask, "one", killed)
    with pytest.raises(SystemExit):
        run("finetune", *per_task(root, "killed"))
    first, torn = folder / f"adapters/{ids[0]}.safetensors", folder / f"adapters/{ids[1]}.safetensors"
    torn.write_bytes(first.read_bytes()[:-100])
    written, learnt = first.stat().st_mtime_ns, []

    def counted(self, kind, id):
        learnt.append(id)
        return one(self, kind, id)

    monkeypatch.setattr(PerTask, "one", counted)
    run("finetune", *per_task(root, "killed", NEW, "--run.resume=true"))
    assert learnt == ids[1:] and first.stat().st_mtime_ns == written
    assert files(folder / "adapters") == files(root / "arc/nano-lora/whole/adapters")
    with pytest.raises(SystemExit):  # nothing is left to do
        run("finetune", *per_task(root, "killed", NEW, "--run.resume=true"))


def test_adapters_of_another_base_are_refused(root, capsys):
    folder = root / "arc/nano-lora/foreign"
    shutil.copytree(root / "arc/nano-lora/whole", folder)
    path = folder / f"adapters/{NEW[0]}.safetensors"
    adapters.write(path, load_file(path), "f" * 64, {})
    with pytest.raises(SystemExit):
        run("test", f"--ckpt_path={folder}")
    assert "was trained on a base whose tensors have sha256 ffffffffffff" in capsys.readouterr().err


def test_a_task_wider_than_the_base_is_refused(root, capsys):
    with pytest.raises(SystemExit) as ended:
        run("finetune", *per_task(root, "wide", ["1f85a75f"]))
    said = "task 1f85a75f needs side 30, CKPT was built for max_size 10"
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_no_hidden_output_reaches_what_is_learnt(root, tmp_path):
    """The same demos beside other hidden outputs leave the same files."""
    (task,) = read_questions(Source("arc1", "training")).select(NEW[:1])
    demos = [{"input": pair.input.tolist(), "output": pair.output.tolist()} for pair in task.demos]
    for name, hidden in (("plain", [[1]]), ("hidden", [[7] * 5] * 5)):
        folder = tmp_path / name / "tasks/training"
        folder.mkdir(parents=True)
        tests = [{"input": query.tolist(), "output": hidden} for query in task.queries]
        (folder / f"{task.id}.json").write_text(json.dumps({"train": demos, "test": tests}))
        where = [f"--data.dataset={folder.parent}", "--data.split=training", "--data.train_sets=[training:demos]"]
        run("finetune", *per_task(root, name, NEW[:1], *where))
    plain, hidden = (files(root / f"arc/nano-lora/{name}/adapters") for name in ("plain", "hidden"))
    assert plain == hidden and len(plain) == 1
