"""Adapters through the command line: a killed fine-tuning that leaves no trace, an export that needs no Lightning, and
what is said when the base is not the base."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shared.training import cli, pretrained
from shared.training.template.data import TemplateData
from shared.training.template.module import TemplateModule

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

ROOT = Path(__file__).parents[2]
LAYERS = [f"--config=configs/{name}.yaml" for name in ("template/base", "template/nano", "hardware/cpu")]
SMALL = ["--trainer.max_steps=8", "--run.validate_every=4", "--snapshots.every=4", "--checkpoint.every=4",
         "--logging.every=1", "--data.held_out=64", "--sampling.steps=4"]  # fmt: skip
X, T = torch.tensor([[0.3, -1.0]]), torch.tensor([0.4])


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    monkeypatch.chdir(ROOT)


def run(*arguments: str) -> None:
    cli.main(TemplateModule, TemplateData, list(arguments))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A finished run."""
    before, root = os.getcwd(), tmp_path_factory.mktemp("runs")
    os.chdir(ROOT)
    run("fit", *LAYERS, *SMALL, f"--run.root={root}", "--run.name=base")
    os.chdir(before)
    return root / "template/nano/base"


def finetune(base: Path, name: str, *more: str) -> list[str]:
    where = [f"--ckpt_path={base}", f"--run.root={base.parents[2]}", f"--run.name={name}"]
    return ["finetune", "--config=configs/hardware/cpu.yaml", *SMALL, *where, *more]


@pytest.fixture(scope="module")
def adapted(base) -> Path:
    """A finished fine-tuning of it."""
    before = os.getcwd()
    os.chdir(ROOT)
    run(*finetune(base, "whole"))
    os.chdir(before)
    return base.parents[1] / "nano-lora/whole"


def killed(arguments: list[str], update: int) -> None:
    """Start the command in a process of its own and kill it, as hard as can be, once `update` is reported."""
    command = [sys.executable, "-m", "shared.training.template", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith(f"update {update}/"):
                process.kill()
                break
    assert process.returncode == -9


def test_a_fine_tuning_killed_at_update_6_and_resumed_is_bitwise_the_uninterrupted_one(base, adapted):
    killed(finetune(base, "killed"), 6)
    run(*finetune(base, "killed", "--run.resume=true"))
    again = adapted.parent / "killed"
    assert (adapted / "metrics.csv").read_text() == (again / "metrics.csv").read_text()
    assert (adapted / "checkpoints/last.ckpt").stat().st_size < (base / "checkpoints/last.ckpt").stat().st_size / 4


def test_what_was_adapted_is_evaluated_sampled_exported_and_merged(base, adapted, tmp_path, capsys):
    run("test", f"--ckpt_path={adapted}")
    assert f"| weights evaluated | {adapted}/checkpoints/final.ckpt |" in (adapted / "report.md").read_text()
    run("export", f"--ckpt_path={adapted}", f"--export.out={tmp_path / 'adapters'}")
    run("export", f"--ckpt_path={adapted}", f"--export.out={tmp_path / 'merged'}", "--export.merge=true")
    said = capsys.readouterr().out
    assert "% of the base's" in said and "merged      equals unmerged on random inputs" in said
    first, second = (pretrained.from_pretrained(tmp_path / name)(X, T) for name in ("adapters", "merged"))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)
    assert not torch.equal(first, pretrained.from_pretrained(base)(X, T))
    for folder in ("adapters", "merged"):
        run("sample", f"--ckpt_path={tmp_path / folder}", f"--run.root={tmp_path}", "--sampling.count=2")
    one, two = sorted((tmp_path / "template/nano-lora/loose").glob("*/samples/*/samples.png"))
    assert one.parents[2].name == "001" and two.parents[2].name == "002"


SAMPLES = """
import sys, torch
from shared.training.pretrained import load_for_sampling
from shared.sampling import sample, uniform_grid
network, process = load_for_sampling(sys.argv[1])
denoise = lambda x, t: process.x0_from_velocity(x, network(x, t), t)
x = process.prior(torch.zeros(2, 2), torch.Generator().manual_seed(0))
print(*sample(denoise, process.step, x, uniform_grid(4)).shape, "lightning" in sys.modules)
"""


def test_an_export_draws_two_samples_in_a_process_without_lightning(base, tmp_path):
    run("export", f"--ckpt_path={base}", f"--export.out={tmp_path / 'out'}")
    command = [sys.executable, "-c", SAMPLES, str(tmp_path / "out")]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "2 2 False\n"


def test_raw_weights_are_evaluated_when_they_are_asked_for(base):
    run("test", f"--ckpt_path={base}")
    averaged = (base / "report.json").read_text()
    run("test", f"--ckpt_path={base}", "--checkpoint.weights=raw")
    assert (base / "report.json").read_text() != averaged


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_base_that_changed_is_said_in_one_sentence(base, adapted, tmp_path, capsys):
    told = refused(capsys, "test", f"--ckpt_path={adapted}", f"--lora.base={base / 'checkpoints/halfway.ckpt'}")
    assert "is not the base that these adapters were trained on" in told and len(told.splitlines()) == 1


def test_fine_tuning_what_is_adapted_and_layers_that_are_not_there_are_said(base, adapted, capsys):
    assert "is itself adapted" in refused(capsys, *finetune(adapted, "again"))
    assert "lora.targets `attention` matches no linear layer" in refused(
        capsys, *finetune(base, "none", "--lora.targets=attention")
    )
    assert not (adapted.parent / "none").exists()
