"""Laws of checkpoint files: whole or absent, chosen with a reason, refused with the names that differ; no Lightning."""

import subprocess
import sys

import pytest
import torch

from shared.training.checkpoints import CheckpointOptions, choose, read, require_same, settle
from shared.training.errors import Mistake
from tests.shared.training import loop

STATE = {"network.a": torch.zeros(2, 3), "network.b": torch.zeros(4)}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def give(run, *names, state=STATE):
    for name in names:
        torch.save({"state_dict": state, "palimpsest": {}}, run / f"checkpoints/{name}.ckpt")
    return run / f"checkpoints/{names[-1]}.ckpt"


def test_settle_replaces_all_names_at_once_and_leaves_nothing_temporary(run):
    folder = run / "checkpoints"
    (folder / "last.ckpt").write_text("old")
    (folder / "new.tmp").write_text("new")
    settle(folder / "new.tmp", folder / "last.ckpt", [folder / "final.ckpt"])
    assert {f.name: f.read_text() for f in folder.iterdir()} == {"last.ckpt": "new", "final.ckpt": "new"}
    (folder / "next.tmp").write_text("next")
    settle(folder / "next.tmp", folder / "last.ckpt")
    assert (folder / "final.ckpt").read_text() == "new"  # sharing a disk block is not sharing a fate


def test_settle_copies_where_links_are_not_allowed(run, monkeypatch):
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    (run / "a.tmp").write_text("x")
    settle(run / "a.tmp", run / "a", [run / "b"])
    assert (run / "b").read_text() == "x"


def test_final_falls_back_to_last_and_other_wishes_do_not(run):
    last = give(run, "last")
    assert choose(run) == last
    with pytest.raises(Mistake, match=r"no best.ckpt: .*checkpoint.monitor names a metric.*Prefer one of: last"):
        choose(run, "best")
    final = give(run, "final")
    assert choose(run) == final
    assert choose(run, "last") == last


def test_a_run_without_files_is_a_mistake(run):
    with pytest.raises(Mistake, match="stopped before its first checkpoint"):
        choose(run)


def test_another_architecture_is_refused_with_its_differences(run):
    path = give(run, "last")
    require_same(STATE, path)
    require_same({f"_orig_mod.{key}": value.to("meta") for key, value in STATE.items()}, path)
    with pytest.raises(
        Mistake, match=r"missing network.c; unexpected network.b; network.a is \[2, 3\], wanted \[2, 4\]"
    ):
        require_same({"network.a": torch.zeros(2, 4), "network.c": torch.zeros(1)}, path)


def test_at_most_eight_differences_are_named(run):
    path = give(run, "last")
    with pytest.raises(Mistake, match="and 4 more") as mistake:
        require_same({f"x{i}": torch.zeros(1) for i in range(10)}, path)
    assert str(mistake.value).count("missing") == 8


def test_a_foreign_or_missing_file_is_a_mistake(run):
    with pytest.raises(Mistake, match="does not exist"):
        read(run / "no.ckpt")
    torch.save({"state_dict": STATE}, run / "foreign.ckpt")
    with pytest.raises(Mistake, match="has no key `palimpsest`"):
        read(run / "foreign.ckpt")


@pytest.mark.parametrize(("mode", "better", "worse"), [("min", 0.9, 1.1), ("max", 1.1, 0.9)])
def test_better_is_strict_and_nan_never_is(mode, better, worse):
    options = CheckpointOptions(mode=mode)
    assert options.improves(better, 1.0)
    assert not options.improves(worse, 1.0)
    assert not options.improves(1.0, 1.0)
    assert options.improves(1.0, None)
    assert not options.improves(float("nan"), None)


@pytest.mark.parametrize("wrong", [{"every": 0}, {"keep_every": 0}])
def test_intervals_are_at_least_one_update(wrong):
    with pytest.raises(ValueError, match="counts updates between files"):
        CheckpointOptions(**wrong)


def test_files_are_read_without_lightning():
    code = "import sys, shared.training.checkpoints; print('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


class Settled(loop.Module):
    """It has a buffer that counts, and keeps its averaged output layer at norm 1."""

    def __init__(self, poison=None, recipe=None):
        super().__init__(poison, recipe)
        self.register_buffer("batches", torch.tensor(0))

    def training_step(self, batch, index):
        self.batches += 1
        return super().training_step(batch, index)

    def after_average(self, network):
        network[-1].weight /= network[-1].weight.norm()


def test_a_file_holds_the_average_as_evaluations_see_it_and_buffers_as_they_are(monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "Module", Settled)
    run, module = loop.train(tmp_path, "a", loop.Setting(updates=3, validate_every=None))
    stored = read(run.checkpoints / "final.ckpt")
    state, shadow, raw = stored["state_dict"], stored["averaging_state"]["shadow"], stored["current_model_state"]
    assert int(state["batches"]) == int(raw["batches"]) == 3
    assert float(state["network.3.weight"].norm()) == pytest.approx(1) != float(shadow["network.3.weight"].norm())
    assert torch.equal(state["network.0.weight"], shadow["network.0.weight"])
    assert torch.equal(raw["network.3.weight"], module.network[3].weight)
