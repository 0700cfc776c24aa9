"""Which layers a line becomes, in which order, and how they merge."""

import pytest
import yaml

from shared.training.errors import Mistake
from shared.training.layers import arrange, flag_values
from tests.cli.conftest import NANO, write
from tests.cli.tiny.module import OtherModule, TinyModule

BASE, SIZE = "configs/tiny/base.yaml", "configs/tiny/nano.yaml"


def files(*argv, verb="fit"):
    return [str(file) for file in arrange("tiny", verb, argv).files]


def test_layers_come_base_size_hardware_local_flags(desk):
    write(desk / "configs/local.yaml", "run: {root: elsewhere}\n")
    layers = arrange("tiny", "fit", [f"--config={BASE}", "--config", SIZE, "--optim.lr", "1", "-c", "later.yaml"])
    assert [str(f) for f in layers.files] == [BASE, SIZE, "configs/hardware/cpu.yaml", "configs/local.yaml"]
    assert layers.flags == ("--optim.lr", "1", "-c", "later.yaml"), "what follows the head of the line stays in place"
    assert layers.arguments[-4:] == ["--optim.lr", "1", "-c", "later.yaml"]
    assert any("local.yaml is used" in note for note in layers.notes)


def test_a_given_hardware_profile_is_not_detected_again(desk):
    layers = arrange("tiny", "fit", ["--config", BASE, "--config", "configs/hardware/h200.yaml"])
    assert [str(f) for f in layers.files] == [BASE, "configs/hardware/h200.yaml"]
    assert layers.notes == ()


@pytest.mark.parametrize(
    ("paths", "stage", "size"),
    [
        (["base", "nano"], None, "nano"),
        (["base", "compat/test"], None, "compat/test"),
        (["base", "nano", "codes/base", "codes/nano"], "codes", "nano"),
        (["base", "codes/base"], "codes", "base"),
        (["base"], None, "base"),
    ],
)
def test_project_stage_and_size_are_read_off_the_paths(desk, paths, stage, size):
    write(desk / "configs/tiny/compat/test.yaml", "")
    write(desk / "configs/tiny/codes/base.yaml", "")
    write(desk / "configs/tiny/codes/nano.yaml", "")
    layers = arrange("tiny", "fit", [f"--config=configs/tiny/{path}.yaml" for path in paths])
    assert (layers.project, layers.stage, layers.size) == ("tiny", stage, size)


def test_an_overlay_lies_over_the_size_and_is_none(desk, run):
    write(desk / "configs/tiny/longer.yaml", "# overlay: make train ARGS=...\ntrainer: {max_steps: 400}\n")
    line = [*NANO, "--config=configs/tiny/longer.yaml"]
    assert arrange("tiny", "fit", line).size == "nano"
    assert run("config", *line).cli.plan.updates == 400
    said = run("config", "--config=configs/tiny/longr.yaml").err
    assert "Sizes in configs/tiny: nano" in said and "longer" not in said
    write(desk / "configs/tiny/longer.yaml", "trainer: {max_steps: 400}\n# overlay\n")
    assert arrange("tiny", "fit", line).size == "longer", "what opens otherwise is a size"


def test_flags_are_read_in_both_spellings():
    line = ["--a.b", "1", "--c=2", "--d", "--e", "-1"]
    assert list(flag_values(line)) == [("a.b", "1"), ("c", "2"), ("d", None), ("e", "-1")]


# what the parser makes of the layers


def test_a_later_layer_wins_key_by_key(desk, run):
    write(desk / SIZE, "optim:\n  lr: 0.5\nmodel:\n  eval: {views: 3}\n")
    config = run("config", *NANO, "--model.eval.stats", "true", "--optim.floor=0.2").cli.config
    assert (config.optim.lr, config.optim.floor) == (0.5, 0.2)
    assert (config.model.eval.views, config.model.eval.stats) == (3, True), "a flag kept the rest of its dataclass"
    assert config.trainer.max_steps == 4, "base.yaml is still there"


def test_the_last_flag_wins(run):
    assert run("config", *NANO, "--optim.lr=0.5", "--optim.lr=0.25").cli.config.optim.lr == 0.25


def test_a_config_among_the_flags_is_applied_in_its_place(desk, run):
    write(desk / "mine.yaml", "optim: {lr: 0.5, floor: 0.5}\n")
    config = run("config", *NANO, "--optim.lr=0.1", "--config=mine.yaml", "--optim.floor=0.1").cli.config
    assert (config.optim.lr, config.optim.floor) == (0.5, 0.1)


def test_every_group_has_its_flags(run):
    flags = ["--ema.decay=0.9", "--data.tasks=[a,b]", "--model.eval.views=72", "--checkpoint.every=7", "--run.root=r"]
    flags += ["--snapshots.count=3", "--logging.every=5", "--randomness.mode=sample", "--hardware.compile=blocks"]
    flags += ["--seed_everything=3", "--trainer.gradient_clip_val=1.0"]
    config = run("config", *NANO, *flags).cli.config
    assert (config.ema.decay, config.data.tasks, config.model.eval.views) == (0.9, ["a", "b"], 72)
    assert (config.checkpoint.every, config.run.root, config.snapshots.count) == (7, "r", 3)
    assert (config.logging.every, config.randomness.mode, config.hardware.compile) == (5, "sample", "blocks")
    assert (config.seed_everything, config.trainer.gradient_clip_val) == (3, 1.0)


def test_a_class_is_overridden_in_part_by_a_later_file(desk, run):
    strategy = "lightning.pytorch.strategies.DDPStrategy"
    first = {"class_path": strategy, "init_args": {"find_unused_parameters": True, "static_graph": True}}
    write(desk / BASE, yaml.safe_dump({"trainer": {"max_steps": 4, "strategy": first}}))
    write(desk / SIZE, yaml.safe_dump({"trainer": {"strategy": {"init_args": {"static_graph": False}}}}))
    found = run("config", *NANO).cli.config.trainer.strategy
    assert found.class_path == strategy
    assert found.init_args.static_graph is False


def test_callbacks_are_appended_across_files(desk, run):
    timer = "lightning.pytorch.callbacks.RichProgressBar"
    monitor = "lightning.pytorch.callbacks.LearningRateMonitor"
    write(desk / BASE, yaml.safe_dump({"trainer": {"max_steps": 4, "callbacks+": [{"class_path": timer}]}}))
    write(desk / SIZE, yaml.safe_dump({"trainer": {"callbacks+": [{"class_path": monitor}]}}))
    assert [c.class_path for c in run("config", *NANO).cli.config.trainer.callbacks] == [timer, monitor]


def test_a_project_with_stages_names_its_class(desk, run):
    both = (TinyModule, OtherModule)
    name = f"{OtherModule.__module__}.OtherModule"
    write(desk / SIZE, yaml.safe_dump({"model": {"class_path": name, "init_args": {"width": 12}}}))
    built = run("config", *NANO, "--model.extra.views=5", module=both).cli
    assert type(built.model) is OtherModule
    assert (built.model.width, built.config.model.init_args.extra.views) == (12, 5)


def test_a_class_of_no_stage_is_refused(desk, run):
    write(desk / SIZE, yaml.safe_dump({"model": {"class_path": "lightning.pytorch.demos.boring_classes.BoringModel"}}))
    said = run("config", *NANO, module=(TinyModule, OtherModule))
    assert said.code == 2 and "BoringModel" in said.err and "OtherModule" in said.err


def test_the_printed_config_is_a_layer_that_gives_the_same(desk, run):
    first = run("config", *NANO, "--ema.decay=0.5", "--data.tasks=[x]").cli
    full = write(desk / "full.yaml", first.parser.dump(first.config, skip_unset=False, skip_validation=True))
    again = run("config", "--config", str(full), "--config=configs/hardware/cpu.yaml").cli
    assert again.parser.dump(again.config) == first.parser.dump(first.config)


# a stored run as base layer


def test_an_evaluation_reads_the_configuration_of_its_run(trained, run):
    write(trained / "config.yaml", (trained / "config.yaml").read_text().replace("views: 8", "views: 5"))
    assert run("test", f"--ckpt_path={trained}").cli.config.model.eval.views == 5
    assert run("test", *NANO).cli.config.model.eval.views == 5, "the newest run of the size, not the size's files"
    assert run("test", f"--ckpt_path={trained}/checkpoints/last.ckpt").cli.config.model.eval.views == 5
    assert run("test", *NANO, "--model.eval.views=3").cli.config.model.eval.views == 3, "a flag still wins"


def test_an_evaluation_takes_the_hardware_of_this_machine(trained, run):
    stored = yaml.safe_load((trained / "config.yaml").read_text())
    stored["trainer"] |= {"accelerator": "gpu", "devices": 3}
    write(trained / "config.yaml", yaml.safe_dump(stored))
    said = run("test", f"--ckpt_path={trained}")
    assert said.code == 0 and said.cli.config.trainer.accelerator == "cpu"


def test_a_resumed_run_keeps_its_own_configuration(trained, run):
    said = run("fit", *NANO[:2], "--run.resume=true", "--run.name=001", "--trainer.max_steps=6", "--optim.floor=0.3")
    assert said.code == 0, said.err
    assert said.cli.config.optim.floor == 0.3
    assert "trainer.max_steps: 4 -> 6" in said.out and "optim.floor: 0.1 -> 0.3" in said.out


def test_a_file_may_ask_to_resume(trained, run, desk):
    write(desk / "configs/local.yaml", "run: {resume: true, name: '001'}\ntrainer: {max_steps: 6}\n")
    said = run("fit", *NANO)
    assert "run         runs/tiny/nano/001, continued from last.ckpt" in said.out
    assert said.cli.trainer.global_step == 6


def test_training_from_a_checkpoint_needs_a_configuration(trained, run):
    said = run("fit", f"--ckpt_path={trained}")
    assert said.code == 2 and "No --config is given" in said.err


def test_layers_that_are_missing_or_broken_are_refused(desk):
    with pytest.raises(Mistake, match=r"nmao\.yaml does not exist.*Did you mean `nano`"):
        arrange("tiny", "fit", [f"--config={BASE}", "--config=configs/tiny/nmao.yaml"])
    write(desk / SIZE, "model:\n  width: 8\n  width: 4\n")
    with pytest.raises(Mistake, match=r"nano\.yaml:3: the key `model.width` is given twice, first on line 2"):
        arrange("tiny", "fit", [f"--config={BASE}", f"--config={SIZE}"])
    write(desk / SIZE, "- a\n")
    with pytest.raises(Mistake, match="a config is a mapping"):
        arrange("tiny", "fit", [f"--config={BASE}", f"--config={SIZE}"])
