"""Laws of the loop: a run that was killed and taken up again leaves the files of one that was not, and no evaluation,
picture or log changes what is learned."""

import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector

from shared.training import checkpoints
from shared.training.callbacks import Options, build
from shared.training.checkpoints import CheckpointOptions
from shared.training.ema import EMA, EmaOptions
from shared.training.errors import Mistake
from shared.training.interrupts import Interrupts
from shared.training.optim import Plateau, Recipe
from shared.training.runs import Run
from shared.training.tables import read_table
from tests.shared.training.loop import Hook, Killed, Setting, die_at, train

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def home() -> Path:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def whole(home):
    """Uninterrupted runs, by micro-batches per update."""
    return {k: train(home, f"whole-{k}", Setting(accumulate=k, snapshots=6))[0] for k in (1, 2)}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def content(run: Run, name: str) -> dict:
    """A checkpoint without what was read off a clock."""
    file = checkpoints.read(run.checkpoints / f"{name}.ckpt")
    for rank in file["palimpsest"]["ranks"]:
        del rank["logs"]["seconds"]
    return file


def assert_same_run(one: Run, other: Run) -> None:
    assert (one.folder / "metrics.csv").read_text() == (other.folder / "metrics.csv").read_text()
    for name in ("last", "best", "halfway", "final"):
        a, b = content(one, name), content(other, name)
        assert [key for key in a if not same(a[key], b.get(key))] == [], name


MOMENTS = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end", "on_validation_batch_end")


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 12), st.sampled_from(MOMENTS), st.sampled_from([1, 2]), st.sampled_from([3, 4, 5]))
@example(9, "on_train_batch_end", 1, 5)  # last.ckpt is of an update that is also validated
@example(5, "on_validation_batch_end", 2, 5)
def test_killed_at_any_moment_and_resumed_is_bitwise_the_uninterrupted_run(
    home, whole, update, moment, accumulate, every
):
    name = f"killed-{len(list(home.rglob('manifest.json')))}"
    files = CheckpointOptions(every=every, monitor="val/error")
    setting = Setting(accumulate=accumulate, snapshots=6, checkpoint=files)
    try:
        run, _ = train(home, name, replace(setting, extra=die_at(update, moment)))
    except Killed:
        run, _ = train(home, name, setting, resume=True)
    assert_same_run(whole[accumulate], run)


def rates(run: Run) -> list[float]:
    return list(read_table(run.folder / "metrics.csv")["optim/lr"].values())


def test_a_plateau_halves_the_rate_at_validations_that_do_not_improve_also_after_a_kill(home):
    recipe = Recipe(lr=0.3, shape="plateau", plateau=Plateau("val/error", patience=0))
    setting = Setting(20, recipe=recipe, validate_every=2, log_every=1, checkpoint=CheckpointOptions(every=2))
    straight, _ = train(home, "plateau", setting)
    table = read_table(straight.folder / "metrics.csv")
    rate, best, falls = 0.3, float("inf"), []
    for update, now in table["optim/lr"].items():
        assert now == pytest.approx(rate)
        if (error := table["val/error"].get(update)) is not None:
            falls += [update] if error >= best * (1 - 1e-4) else []
            rate, best = (rate, error) if error < best * (1 - 1e-4) else (rate / 2, best)
    assert falls[0] < 20
    with pytest.raises(Killed):
        train(home, "plateau-killed", replace(setting, extra=die_at(falls[0], "on_validation_batch_end")))
    again, _ = train(home, "plateau-killed", setting, resume=True)
    assert rates(again) == rates(straight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["on_train_batch_start", "on_validation_batch_start"])
def test_a_signal_writes_last_and_loses_nothing(home, whole, number, moment, capsys):
    name = f"signalled-{number}-{moment}"
    wish = Hook(moment, lambda trainer: os.kill(os.getpid(), number) if trainer.global_step == 5 else None)
    with pytest.raises(SystemExit) as left:
        train(home, name, Setting(snapshots=6, extra=[wish]))
    assert left.value.code == 128 + number
    assert f"--run.resume true --run.name {name}" in capsys.readouterr().out
    folder = home / "toy/nano" / name
    update = 5 if "validation" in moment else 6
    assert checkpoints.read(folder / "checkpoints/last.ckpt")["palimpsest"]["updates"] == update
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run, _ = train(home, name, Setting(snapshots=6), resume=True)
    assert_same_run(whole[1], run)


def test_a_second_signal_is_not_ours():
    interrupts = Interrupts()
    interrupts.catch()
    signalled()
    assert interrupts.requested == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        signalled()


def signalled(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_during_the_last_validation_lets_the_run_finish(home):
    run, _ = train(home, "late-signal", Setting(updates=5, extra=[Hook("on_validation_start", lambda _: signalled())]))
    assert run.finished
    assert (run.checkpoints / "final.ckpt").exists()


def test_snapshots_leave_the_run_bitwise_unchanged(home, whole):
    run, _ = train(home, "without-pictures", Setting())
    assert_same_run(whole[1], run)
    assert [f.name for f in sorted((whole[1].samples).iterdir())] == ["12", "6"]
    assert not run.samples.exists()


def test_more_updates_than_planned_go_on_from_the_end(home):
    train(home, "longer", Setting(updates=6))
    with pytest.raises(Mistake, match="has made all its 6 updates"):
        train(home, "longer", Setting(updates=6), resume=True)
    run, _ = train(home, "longer", Setting(updates=8), resume=True)
    assert run.manifest["finished"]["update"] == 8
    assert checkpoints.read(run.checkpoints / "final.ckpt")["palimpsest"]["updates"] == 8


def test_checkpoints_hold_average_raw_and_origin_and_load_without_pickle(whole):
    for name, update in (("halfway", 6), ("final", 12), ("last", 12)):
        file = checkpoints.read(whole[1].checkpoints / f"{name}.ckpt")
        origin = file["palimpsest"]
        assert (origin["updates"], origin["project"], origin["git"]) == (update, "toy", "abc")
        assert origin["config"] == {"seed_everything": 7}
        assert origin["samples"] == 8 * update
        shadow = file["averaging_state"]["shadow"]
        assert all(torch.equal(file["state_dict"][key], shadow[key]) for key in shadow)
        assert not torch.equal(file["state_dict"]["network.0.weight"], file["current_model_state"]["network.0.weight"])


def test_the_average_is_stored_once_in_a_file(whole):
    file = checkpoints.read(whole[1].checkpoints / "last.ckpt")
    for name, shadow in file["averaging_state"]["shadow"].items():
        assert file["state_dict"][name].data_ptr() == shadow.data_ptr()


def test_killed_during_the_last_validation_the_run_is_not_finished(home):
    whole, _ = train(home, "to-ten", Setting(updates=10))
    with pytest.raises(Killed):
        train(home, "almost", Setting(updates=10, extra=die_at(10, "on_validation_batch_end")))
    run, _ = train(home, "almost", Setting(updates=10), resume=True)
    assert_same_run(whole, run)


def test_a_resumed_run_remembers_the_best_so_far(home):
    """The error falls, so by mode max the first validation is the best and stays it."""
    options = CheckpointOptions(every=4, monitor="val/error", mode="max")
    with pytest.raises(Killed):
        train(home, "first-is-best", Setting(checkpoint=options, extra=die_at(9)))
    run, _ = train(home, "first-is-best", Setting(checkpoint=options), resume=True)
    assert checkpoints.read(run.checkpoints / "best.ckpt")["palimpsest"]["updates"] == 5


def test_final_is_written_before_the_last_pictures(home, monkeypatch):
    def fail(*_):
        raise RuntimeError("no ink")

    monkeypatch.setattr("tests.shared.training.loop.Module.draw", fail)
    with pytest.raises(RuntimeError, match="no ink"):
        train(home, "no-ink", Setting(updates=4, snapshots=4))
    assert checkpoints.read(home / "toy/nano/no-ink/checkpoints/final.ckpt")["palimpsest"]["updates"] == 4


def test_best_is_the_best_validation(whole):
    lines = (whole[1].folder / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("val/error")
    rows = [line.split(",") for line in lines[1:]]
    best = min((float(row[column]), int(row[0])) for row in rows if row[column])
    assert checkpoints.read(whole[1].checkpoints / "best.ckpt")["palimpsest"]["updates"] == best[1]


def test_only_named_files_are_kept_and_nothing_temporary(home, whole):
    assert sorted(f.name for f in whole[1].checkpoints.iterdir()) == [
        "best.ckpt",
        "final.ckpt",
        "halfway.ckpt",
        "last.ckpt",
    ]
    options = CheckpointOptions(every=100, keep_every=2)
    run, _ = train(home, "kept", Setting(updates=4, validate_every=None, checkpoint=options))
    names = sorted(f.stem for f in run.checkpoints.iterdir())
    assert names == ["final", "halfway", "last", "update-2", "update-4"]


def test_monitor_that_validation_does_not_give_is_a_mistake(home):
    options = CheckpointOptions(monitor="val/accuracy")
    with pytest.raises(Mistake, match=r"checkpoint.monitor is val/accuracy, but validation gave val/error, val/rows"):
        train(home, "wrong-monitor", Setting(checkpoint=options))


def test_unwritable_disk_is_a_mistake_and_the_earlier_file_is_whole(home, monkeypatch):
    def full(temporary, target, copies=()):
        if target.name == "last.ckpt" and target.exists():
            raise OSError(28, "No space left on device")
        settle(temporary, target, copies)

    settle = checkpoints.settle
    monkeypatch.setattr("shared.training.callbacks.settle", full)
    with pytest.raises(Mistake, match="No space left on device"):
        train(home, "full")
    assert checkpoints.read(home / "toy/nano/full/checkpoints/last.ckpt")["palimpsest"]["updates"] == 4
    assert not (home / "toy/nano/full/checkpoints/writing.tmp").exists()


def test_nan_stops_before_the_weights_move_and_saves_the_batch(home):
    with pytest.raises(Mistake, match=r"update 7 is not finite \(network.0.bias") as mistake:
        train(home, "poisoned", Setting(poison=7, accumulate=2))
    assert "nonfinite-7.pt" in str(mistake.value)
    folder = home / "toy/nano/poisoned"
    found = torch.load(folder / "nonfinite-7.pt", weights_only=True)
    assert [len(batch["x"]) for batch in found["ranks"][0]["batches"]] == [4, 4]
    assert found["ranks"][0]["shares"][0]["update"] == 6
    assert found["randomness"] == {"seed": 7, "mode": "rank"}
    assert all(value.isfinite().all() for value in found["state_dict"].values())
    assert checkpoints.read(folder / "checkpoints/last.ckpt")["palimpsest"]["updates"] == 4


def test_a_held_optimizer_reports_the_first_faulty_update_at_the_next_reading(home):
    """The CUDA path, by hand: two faulty norms, read later, name the first."""
    run, module = train(home, "held", Setting(updates=2))
    gradients = next(c for c in module.trainer.callbacks if type(c).__name__ == "Gradients")
    for update, norm in ((8, 1.0), (9, float("nan")), (10, 2.0), (11, float("inf"))):
        gradients._hold_still(module.optimizers().optimizer, torch.tensor(norm), update)
    assert module.optimizers().optimizer.found_inf.item() == 1
    with pytest.raises(Mistake, match="update 9 is not finite"):
        gradients.check(module.trainer, module)
    assert (run.folder / "nonfinite-9.pt").exists()


def test_clipping_is_lightnings_and_the_logged_norm_is_of_before(home):
    _, clipped = train(home, "clipped", Setting(clip=0.01))
    _, free = train(home, "free", Setting(clip=None))
    assert clipped.seen[0] == free.seen[0]
    assert clipped.seen[5] != free.seen[5]
    norms = [(home / f"toy/nano/{name}/metrics.csv").read_text().splitlines()[1] for name in ("clipped", "free")]
    assert all(float(line.split(",")[1]) > 0.1 for line in norms)


def test_evaluation_sees_the_average_and_training_its_raw_weights(home):
    seen = {}

    def note(where):
        return Hook(where, lambda t: seen.setdefault(where, t.lightning_module.network[0].weight.detach().clone()))

    extra = [note("on_train_batch_end"), note("on_validation_batch_start"), note("on_validation_end")]
    _, module = train(home, "lent", Setting(validate_every=1, snapshots=1, updates=2, extra=extra, test=True))
    final = checkpoints.read(home / "toy/nano/lent/checkpoints/final.ckpt")
    # extra callbacks run before ours: at on_validation_end the loan is not over yet
    assert torch.equal(seen["on_validation_batch_start"], seen["on_validation_end"])
    assert not torch.equal(seen["on_train_batch_end"], seen["on_validation_batch_start"])
    assert torch.equal(module.drawn_with[-1], final["state_dict"]["network.0.weight"])
    assert torch.equal(module.tested_with, final["state_dict"]["network.0.weight"])
    assert torch.equal(module.network[0].weight, final["current_model_state"]["network.0.weight"])


def test_an_exception_in_validation_gives_the_raw_weights_back(home):
    def fail(trainer):
        raise RuntimeError("in the middle")

    extra = [Hook("on_validation_batch_end", fail)]
    held = []
    extra.append(Hook("on_train_batch_end", lambda t: held.append(t.lightning_module)))
    with pytest.raises(RuntimeError, match="in the middle"):
        train(home, "failing", Setting(extra=extra, checkpoint=CheckpointOptions(every=5)))
    raw = checkpoints.read(home / "toy/nano/failing/checkpoints/last.ckpt")["current_model_state"]
    assert torch.equal(held[0].network[0].weight, raw["network.0.weight"])


def test_the_average_counts_updates_not_micro_batches(home):
    decay = EmaOptions(decay=0.5, warmup="none")
    run, module = train(home, "halves", Setting(updates=2, accumulate=2, ema=decay, validate_every=None))
    file = checkpoints.read(run.checkpoints / "final.ckpt")
    assert file["averaging_state"]["updates"] == 2
    assert isinstance(EMA(module.named_parameters(), decay), EMA)


def test_without_average_the_file_holds_raw_weights_only(home):
    off = EmaOptions(enabled=False)
    run, module = train(home, "raw", Setting(updates=2, ema=off, validate_every=None))
    file = checkpoints.read(run.checkpoints / "final.ckpt")
    assert "averaging_state" not in file
    assert torch.equal(file["state_dict"]["network.0.weight"], module.network[0].weight)


def test_checkpoints_come_last_and_the_private_hooks_of_lightning_still_exist(whole):
    assert [type(c).__name__ for c in build(whole[1], Options())] == [
        "NoneLeftWaiting", "RankSeeds", "WriteReport", "Averaging", "Gradients", "WriteLogs", "Snapshots",
        "Checkpoints",
    ]  # fmt: skip
    for name in ("_broadcast_sigterm_tensor", "_should_check_val_fx"):
        assert callable(getattr(_TrainingEpochLoop, name))
    assert callable(_CheckpointConnector.dump_checkpoint)
