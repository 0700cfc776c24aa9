"""The line `arc` adapted to tasks its checkpoint has never met, through the command line."""

import json
import os
from pathlib import Path

import pytest
import torch

from shared.training import cli, pretrained
from tests.lines import wiring

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

ROOT = Path(__file__).parents[2]
LAYERS = [f"--config=configs/{name}.yaml" for name in ("arc/base", "arc/nano", "hardware/cpu")]
SMALL = ["--trainer.max_steps=4", "--snapshots.every=4", "--snapshots.count=2", "--checkpoint.every=2",
         "--logging.every=1", "--model.width=32", "--model.heads=2", "--model.eval.views=8",
         "--model.eval.num_steps=2"]  # fmt: skip
KNOWN, NEW = ["25ff71a9", "d037b0a7"], ["3c9b0459", "6150a2bd"]


def run(*arguments: str) -> None:
    before = os.getcwd()
    os.chdir(ROOT)
    try:
        given = wiring("arc")
        cli.main(given.module, given.data, list(arguments), verbs=given.verbs, groups=given.groups)
    finally:
        os.chdir(before)


def tasks(*ids: str) -> str:
    return f"--data.tasks=[{','.join(ids)}]"


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> Path:
    """A run of two tasks, fine-tuned on one of them and a new one."""
    root = tmp_path_factory.mktemp("runs")
    where = [f"--run.root={root}", "--run.name=a"]
    run("fit", *LAYERS, *SMALL, *where, tasks(*KNOWN))
    base = root / "arc/nano/a"
    run("finetune", LAYERS[-1], *SMALL, *where, f"--ckpt_path={base}", tasks(KNOWN[1], NEW[0]))
    return root / "arc/nano-lora/a"


def test_the_rows_of_the_checkpoint_stay_and_a_new_task_gets_one_after_them(adapted):
    stored = torch.load(adapted / "checkpoints/final.ckpt", weights_only=True)
    assert (stored["tasks"]["side"], stored["tasks"]["ids"]) == (10, [*KNOWN, NEW[0]])
    assert stored["palimpsest"]["lora"]["options"]["train_rows"] == [{"embedding": "tasks", "rows": [2, 1]}]
    assert stored["state_dict"]["network.tasks.token_adapter.trainable_tokens_delta.default"].shape == (2, 32)
    assert not any("base_layer" in name for name in stored["state_dict"])


def test_adapted_answers_are_those_of_the_adapters_that_were_exported_and_of_the_merged(adapted, tmp_path):
    first = json.loads((adapted / "submission.json").read_text())
    for name, more in (("adapters", []), ("merged", ["--export.merge=true"])):
        run("export", f"--ckpt_path={adapted}", f"--export.out={tmp_path / name}", *more)
        assert json.loads((tmp_path / name / "tasks.json").read_text())["ids"] == [*KNOWN, NEW[0]]
        run("test", LAYERS[-1], f"--ckpt_path={tmp_path / name}", f"--run.root={tmp_path}", f"--run.name={name}")
        again = tmp_path / "arc/nano-lora/evaluated" / name
        assert json.loads((again / "submission.json").read_text()) == first
    network, process = pretrained.load_for_sampling(tmp_path / "merged")
    assert network.tasks.num_embeddings == 3 and process.num_classes == 10


@pytest.mark.parametrize(
    ("verb", "ids", "words"),
    [
        ("finetune", ["1f85a75f"], "task 1f85a75f needs side 30, CKPT was built for max_size 10"),
        ("test", [NEW[1]], f"task {NEW[1]} has no row in the checkpoint"),
    ],
)
def test_what_a_checkpoint_cannot_take_on_is_said(adapted, capsys, verb, ids, words):
    base = adapted.parents[1] / "nano/a"
    with pytest.raises(SystemExit) as ended:
        run(verb, LAYERS[-1], f"--ckpt_path={base}", tasks(*ids), f"--run.root={adapted.parents[2]}")
    told = capsys.readouterr().err
    assert ended.value.code == 2 and words in told and len(told.splitlines()) == 1
