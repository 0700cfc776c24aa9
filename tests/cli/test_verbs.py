"""Verbs beside training and evaluating: sampling, fine-tuning's layers, and what a project brings of its own."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.training import samples
from shared.training.errors import Mistake
from shared.training.layers import arrange
from shared.training.samples import Sample, SamplingOptions
from shared.training.verbs import Verb
from tests.cli.conftest import NANO, write
from tests.cli.tiny.module import TinyModule


class DrawingModule(TinyModule):
    """Its sample is its number and a weight, so that the files show who drew."""

    def sample(self, seeds):
        assert not self.training and not torch.is_grad_enabled()
        weight = self.network.layers[0].weight.flatten()[0]
        return [Sample(f"number {seed}", data={"weight": weight}) for seed in seeds]


DrawingModule.__module__ = TinyModule.__module__  # a project is the folder its module lives in


@dataclass
class Walk(SamplingOptions):
    scale: float = 1.0


@dataclass
class Shout:
    times: int = 1


def shout(cli):
    """say the project's name, loudly"""
    print(cli.layers.project.upper() * cli.options.shout.times, cli.model.network.layers[0].weight.sum().item())


OWN = {"shout": Verb(shout, Shout)}


def test_sample_draws_with_the_averaged_weights_into_the_runs_samples(trained, run):
    said = run("sample", f"--ckpt_path={trained}", "--sampling.count=3", "--sampling.first=5", module=DrawingModule)
    (folder,) = (trained / "samples").glob("sample-*")
    assert said.code == 0 and str(folder) in said.out
    assert (folder / "samples.txt").read_text() == "--- 5\nnumber 5\n--- 6\nnumber 6\n--- 7\nnumber 7\n"
    stored = torch.load(trained / "checkpoints/final.ckpt", weights_only=True)["state_dict"]
    assert np.load(folder / "samples.npz")["weight"].tolist() == [float(stored["network.layers.0.weight"][0, 0])] * 3


def test_a_module_without_samples_is_told_so(trained, run):
    said = run("sample", f"--ckpt_path={trained}")
    assert (said.code, said.err) == (
        2,
        "TinyModule has no `sample(seeds)`, so it cannot draw; add it to the module.\n",
    )


def test_every_kind_of_sample_has_its_file(tmp_path):
    image, video = torch.zeros(4, 6, 3, dtype=torch.uint8), torch.zeros(3, 4, 6, 3, dtype=torch.uint8)
    drawn = [Sample(image=image + n, video=video + 90 * n, data={"x": torch.ones(2 + n)}) for n in range(2)]
    files = {path.name for path in samples.write(drawn, tmp_path)}
    assert files == {"000.png", "001.png", "samples.png", "000.gif", "001.gif", "samples.npz"}
    assert {name: value.shape for name, value in np.load(tmp_path / "samples.npz").items()} == {
        "x.0": (2,),
        "x.1": (3,),
    }
    assert samples.sheet([image, image + 1]).shape == (8, 20, 3)


def test_a_kill_while_samples_are_written_leaves_no_half_of_one(tmp_path, monkeypatch):
    drawn = [Sample("text", torch.zeros(4, 6, 3, dtype=torch.uint8), torch.zeros(3, 4, 6, 3, dtype=torch.uint8))]
    drawn[0].data = {"x": torch.ones(2)}
    seen = []

    def watched(temporary, path):
        """The file is at another name until it is whole."""
        seen.append(Path(path).name)
        assert not Path(path).exists() and Path(temporary).stat().st_size
        rename(temporary, path)

    rename = os.replace
    monkeypatch.setattr("shared.training.tables.os.replace", watched)
    samples.write(drawn, tmp_path)
    assert sorted(seen) == ["000.gif", "000.png", "samples.npz", "samples.txt"]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"count": 0}, {"first": -1}])
def test_sampling_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="it must be at least"):
        SamplingOptions(**wrong)


# what a project brings


def test_a_projects_verb_gets_the_built_command_line_and_flags_of_its_own(run):
    said = run("shout", *NANO, "--shout.times=2", verbs=OWN)
    assert said.code == 0 and said.out.splitlines()[-1].startswith("TINYTINY ")


def test_a_projects_verb_has_the_weights_of_the_checkpoint_that_is_named(trained, run):
    said = run("shout", f"--ckpt_path={trained}", verbs=OWN)
    stored = torch.load(trained / "checkpoints/final.ckpt", weights_only=True)["state_dict"]
    assert float(said.out.split()[-1]) == float(stored["network.layers.0.weight"].sum())


def test_the_flags_of_a_verb_belong_to_it_alone(run):
    assert run("config", *NANO, "--shout.times=2", verbs=OWN).code == 2


def test_a_projects_group_stands_in_for_ours_and_reaches_module_and_data(run):
    done = run("config", *NANO, "--sampling.scale=3", "--sampling.steps=4", groups={"sampling": Walk}).cli
    assert done.model.sampling == done.datamodule.sampling == Walk(steps=4, scale=3)


def test_help_lists_the_verbs_of_the_house_and_of_the_project(run):
    page = run("help", verbs=OWN).out
    assert "shout        say the project's name, loudly" in page and "  fit  " in page


# fine-tuning: the base run's configuration, then the adapters' layer, then flags


@pytest.fixture
def adapters(desk) -> Path:
    return write(desk / "configs/tiny/lora.yaml", "trainer: {max_steps: 3}\noptim: {lr: 0.5}\n")


def test_finetune_lays_the_adapters_over_the_runs_own_configuration(trained, adapters):
    layers = arrange("tiny", "finetune", [f"--ckpt_path={trained}", "--optim.lr=0.1"])
    names = [str(trained / "config.yaml"), "configs/hardware/cpu.yaml", "configs/tiny/lora.yaml"]
    assert [str(file) for file in layers.files] == names
    assert (layers.size, layers.run) == ("nano-lora", None)


def test_finetune_of_a_loose_file_takes_the_layers_that_are_given(trained, adapters, desk):
    (desk / "loose.ckpt").write_bytes((trained / "checkpoints/final.ckpt").read_bytes())
    layers = arrange("tiny", "finetune", [*NANO, "--ckpt_path=loose.ckpt"])
    assert [file.name for file in layers.files] == ["base.yaml", "nano.yaml", "cpu.yaml", "lora.yaml"]
    assert layers.size == "nano-lora"


def test_finetune_of_merged_adapters_is_named_as_the_first(trained, adapters, desk):
    write(desk / "merged/config.json", json.dumps({"project": "tiny", "size": "nano-lora"}))
    write(desk / "merged/config.yaml", (trained / "config.yaml").read_text())
    assert arrange("tiny", "finetune", ["--ckpt_path=merged"]).size == "nano-lora"


def test_finetune_opens_a_run_of_its_own_and_counts_its_updates_anew(trained, adapters, run):
    said = run("finetune", f"--ckpt_path={trained}")
    assert said.code == 0 and "update 3/3" in said.out.replace(",", "")
    assert Path("runs/tiny/nano-lora/001/checkpoints/final.ckpt").exists()


def test_finetune_without_a_checkpoint_says_what_is_missing(desk):
    with pytest.raises(Mistake, match="finetune starts from a checkpoint and none is named"):
        arrange("tiny", "finetune", NANO)


def test_finetune_without_an_adapters_layer_says_what_is_missing(trained):
    with pytest.raises(Mistake, match=r"configs/tiny/lora.yaml does not exist, so tiny has no adapters yet"):
        arrange("tiny", "finetune", [f"--ckpt_path={trained}"])


def test_a_module_without_answers_is_told_so_and_nothing_is_written(trained, run, monkeypatch):
    monkeypatch.delattr(TinyModule, "predict_step")
    before = (trained / "train.log").read_bytes()
    said = run("predict", f"--ckpt_path={trained}")
    assert (said.code, said.err) == (2, "TinyModule has no `predict_step`, so it cannot answer; use test or sample.\n")
    assert said.out == "", "told before the plan"
    assert (trained / "train.log").read_bytes() == before
