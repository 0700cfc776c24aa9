"""The verbs, from the plan to the last line."""

import json
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from tests.cli.conftest import NANO, write
from tests.cli.tiny.module import AdoptingModule, TinyData

ADVERTS = ("Tip", "litlogger", "GPU available", "TPU", "Deprecat", "Seed set", "num_workers", "Warning", "usage:")
BARS = ("Epoch", "it/s")


def facts(text: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in text.splitlines() if len(line.split(maxsplit=1)) == 2)


def test_fit_prints_the_plan_trains_tests_and_says_what_comes_next(run):
    said = run("fit", *NANO)
    told = facts(said.out)
    assert told["plan"] == "tiny / nano"
    assert told["parameters"] == "20 (20 trainable, 20 averaged)"
    assert told["batch"] == "48 = 1 process x 24 x 2"
    assert told["run"] == "runs/tiny/nano/001"
    assert told["next"] == "make evaluate PROJECT=tiny CKPT=runs/tiny/nano/001"
    assert said.out.index("plan ") < said.out.index("run  ") < said.out.index("update 4/4") < said.out.index("next ")
    assert "\x1b" not in said.out, "plain text where no terminal is"
    assert said.err == ""


def test_a_run_holds_its_configuration_plan_and_command(trained):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 4 and config["ema"]["decay"] == 0.9999, "fully resolved"
    plan = json.loads((trained / "plan.json").read_text())
    assert (plan["updates"], plan["batch_size"], plan["accumulate"], plan["parameters"]) == (4, 48, 2, 20)
    command = json.loads((trained / "manifest.json").read_text())["starts"][0]["command"]
    assert command == "python -m tests.cli.tiny fit " + " ".join(NANO)


def test_an_update_is_an_optimizer_step_however_the_batch_is_split(run):
    trainer = run("fit", *NANO, "--data.micro_batch=8").cli.trainer
    assert (trainer.accumulate_grad_batches, trainer.global_step) == (6, 4)
    assert trainer.val_check_interval == 12


def test_config_builds_no_weights_and_runs_nothing(run, desk):
    said = run("config", *NANO)
    assert all(p.is_meta for p in said.cli.model.network.parameters())
    assert not (desk / "runs").exists()


def test_config_prints_the_keys_that_differ_from_their_defaults(run):
    said = run("config", *NANO, "--ema.decay=0.9", "--optim.lr=0.001")
    shown = yaml.safe_load(said.out.split("\n\n", 1)[1])
    assert shown["ema"] == {"decay": 0.9}
    assert "optim" not in shown, "0.001 is the default"


def test_config_plans_for_a_machine_that_is_not_here(run):
    told = facts(run("config", *NANO[:2], "--config=configs/hardware/3x3090.yaml").out)
    assert told["device"] == "3 x GPU, bf16-mixed"
    assert told["batch"] == "48 = 3 processes x 16 x 1"


def test_the_batch_scales_learning_rate_and_average(run):
    built = run("config", *NANO, "--optim.batch_ref=12", "--ema.scale_with_batch=true", "--ema.decay=0.5").cli
    assert built.model.optim_recipe.lr == 2e-3 and built.plan.learning_rate == 2e-3
    assert built.options.ema.decay == 0.5**4
    assert built.config.optim.lr == 1e-3, "the configuration keeps what was asked"


def test_module_and_data_know_the_seed(run):
    built = run("config", *NANO, "--seed_everything=7", "--randomness.mode=sample").cli
    assert built.model.randomness == built.datamodule.randomness
    assert (built.model.randomness.seed, built.model.randomness.mode) == (7, "sample")


def test_the_seed_decides_the_first_weights(run):
    def weights(seed):
        return next(
            run("fit", *NANO, "--trainer.fast_dev_run=true", f"--seed_everything={seed}").cli.model.parameters()
        )

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_evaluations_say_which_file_they_read(trained, run):
    for verb in ("validate", "test", "predict"):
        said = run(verb, *NANO)
        assert said.code == 0, said.err
        assert facts(said.out)["checkpoint"] == "runs/tiny/nano/001/checkpoints/final.ckpt"
    assert facts(run("test", f"--ckpt_path={trained}/checkpoints/halfway.ckpt").out)["checkpoint"].endswith(
        "halfway.ckpt"
    )
    chosen = run("test", f"--ckpt_path={trained}", "--checkpoint.prefer=halfway")
    assert facts(chosen.out)["checkpoint"].endswith("halfway.ckpt")


def test_an_evaluation_uses_the_weights_of_the_file(trained, run):
    stored = torch.load(trained / "checkpoints/final.ckpt", weights_only=True)["state_dict"]
    module = run("test", *NANO).cli.model
    assert all(torch.equal(module.state_dict()[name], value) for name, value in stored.items())


def test_the_score_after_training_is_the_score_of_the_final_file(run):
    after = run("fit", *NANO).out
    again = run("test", "--ckpt_path=runs/tiny/nano/001").out
    scores = [[line for line in text.splitlines() if line.startswith("error ")] for text in (after, again)]
    assert scores[0] == scores[1] != []


def test_a_loose_checkpoint_is_evaluated_under_the_given_layers(trained, run, desk):
    (trained / "checkpoints/final.ckpt").rename(desk / "loose.ckpt")
    said = run("test", *NANO, "--ckpt_path=loose.ckpt")
    assert said.code == 0 and facts(said.out)["checkpoint"] == "loose.ckpt"
    assert Path("runs/tiny/nano/evaluated/001").is_dir(), "apart from the runs that can be resumed"


def test_training_can_start_from_another_checkpoint(trained, run):
    said = run("fit", *NANO, f"--ckpt_path={trained}", "--trainer.max_steps=6", "--run.name=branch")
    assert said.code == 0, said.err
    assert "update 6/6" in said.out and "update 4/" not in said.out
    newest = run("test", *NANO)
    assert facts(newest.out)["checkpoint"] == "runs/tiny/nano/branch/checkpoints/final.ckpt", "not where it began"


def test_resume_goes_on_and_auto_starts_afresh_without_a_run(run):
    assert facts(run("fit", *NANO, "--run.resume=auto").out)["run"] == "runs/tiny/nano/001"
    longer = run("fit", *NANO, "--run.resume=true", "--run.name=001", "--trainer.max_steps=6")
    assert facts(longer.out)["run"] == "runs/tiny/nano/001, continued from last.ckpt"
    assert longer.cli.trainer.global_step == 6
    assert facts(run("fit", *NANO, "--run.resume=auto").out)["run"] == "runs/tiny/nano/002", "001 is finished"


def test_test_after_fit_can_be_left_out(run):
    said = run("fit", *NANO, "--run.test_after_fit=false")
    assert said.code == 0 and not any(line.startswith("error ") for line in said.out.splitlines())


def test_a_run_that_is_stopped_early_is_not_tested(run):
    said = run("fit", *NANO, "--trainer.max_time=00:00:00:00")
    assert said.code == 0 and not any(line.startswith("error ") for line in said.out.splitlines())


def test_fast_dev_run_of_every_verb_keeps_nothing(run, desk):
    for verb in ("fit", "validate", "test"):
        said = run(verb, *NANO, "--trainer.fast_dev_run=true")
        assert said.code == 0, said.err
    assert not (desk / "runs").exists()


def test_a_data_module_that_does_not_split_gets_no_micro_batch(run):
    class Whole(TinyData):
        def __init__(self, batch_size: int = 48):
            super().__init__(batch_size, width=4)
            del self.micro_batch

        train_dataloader = TinyData.val_dataloader

    built = run("config", *NANO, data=Whole).cli
    assert built.plan.accumulate == 1 and not hasattr(built.datamodule, "micro_batch")


def test_a_module_may_take_its_shape_from_the_data_or_from_the_checkpoint(run):
    made = run("fit", *NANO, "--data.tasks=[a,b,c]", module=AdoptingModule)
    assert made.code == 0 and len(made.cli.model.network.layers) == 3
    read = run("test", *NANO, "--data.tasks=[a]", module=AdoptingModule)
    assert read.code == 0 and len(read.cli.model.network.layers) == 3
    assert facts(read.out)["checkpoint"].endswith("halfway.ckpt"), "what the module prefers"
    last = run("test", *NANO, "--checkpoint.prefer=last", module=AdoptingModule)
    assert facts(last.out)["checkpoint"].endswith("last.ckpt"), "what the user prefers"


def test_a_real_process_says_nothing_but_our_own_lines(desk):
    """No adverts, no tips, no notices about deprecations."""
    command = [sys.executable, "-m", "tests.cli.tiny", "fit", *NANO]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stderr == ""
    assert not [advert for advert in ADVERTS + BARS if advert in done.stdout]


def test_what_local_yaml_says_of_the_root_holds_for_evaluations_too(run, desk):
    write(desk / "configs/local.yaml", "run: {root: elsewhere}\n")
    said = run("fit", *NANO)
    assert "configs/local.yaml is used" in said.out
    assert facts(said.out)["run"] == "elsewhere/tiny/nano/001"
    assert run("test", *NANO).code == 0, said.err


def test_several_nodes_are_told_how_to_launch_and_fewer_ranks_than_stated_are_refused(run, monkeypatch):
    told = run("config", *NANO[:2], "--config=configs/hardware/multinode.yaml").out
    assert [line.split()[1] for line in told.splitlines() if line.startswith("launch")] == ["torchrun", "srun"]
    monkeypatch.setenv("SLURM_NTASKS", "16")
    refused = run("fit", *NANO)
    assert refused.code == 2 and "SLURM has given 16 tasks" in refused.err
    assert not Path("runs").exists()
