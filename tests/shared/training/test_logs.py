"""Laws of the log: a mean is over what was counted, one host read per interval, lines say what rows say."""

import math
from types import SimpleNamespace

import pytest
import torch

from shared.training.logs import Reducer, Sums, duration, progress_line, short
from shared.training.tables import read_table
from shared.training.throughput import Stopwatch
from tests.shared.training.loop import Setting, train

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
CPU = torch.device("cpu")


def alone(reduce=lambda flat: flat, world=1):
    strategy = SimpleNamespace(root_device=CPU, reduce=lambda flat, reduce_op: reduce(flat))
    return SimpleNamespace(world_size=world, strategy=strategy)


def test_pairs_are_weighed_by_their_counts_and_plain_values_equally():
    sums = Sums()
    sums.add({"pair": (torch.tensor(6.0), torch.tensor(3)), "plain": torch.tensor(1.0)})
    sums.add({"pair": (torch.tensor(1.0), torch.tensor(1)), "plain": torch.tensor(4.0)})
    sums.add({"pair": (torch.tensor(0.0), torch.tensor(0))})
    means, extra = Reducer().means(alone(), sums, [7.0])
    assert means == {"pair": 7 / 4, "plain": 2.5}
    assert extra == [7.0]


def test_nothing_counted_is_left_out():
    sums = Sums()
    sums.add({"empty": (torch.tensor(0.0), torch.tensor(0))})
    assert Reducer().means(alone(), sums)[0] == {}
    assert Reducer().means(alone(), Sums(), [1.0]) == ({}, [1.0])


def test_the_host_reads_once_and_ranks_meet_once():
    meetings = []
    sums = Sums()
    sums.add({f"name{i}": torch.tensor(float(i)) for i in range(30)})
    Reducer().means(alone(lambda flat: meetings.append(len(flat)) or flat), sums)
    assert meetings == [61]


def test_adding_launches_nothing_and_keeps_no_graph():
    sums, x = Sums(), torch.ones((), requires_grad=True)
    sums.add({"a": x * 2, "b": (x * 3, torch.tensor(2))})
    assert not any(value.requires_grad for parts in sums.values.values() for value in parts)


def test_a_name_that_only_the_other_rank_has_is_agreed_and_counted(monkeypatch):
    """Two ranks in one process: the other brings `b` with sum 10 of 4; we bring `a` with sum 6 of 3."""
    other = Sums()
    other.add({"b": (torch.tensor(10.0), torch.tensor(4))})
    ours = Sums()
    ours.add({"a": (torch.tensor(6.0), torch.tensor(3))})
    reducer = Reducer()

    def meet(flat):
        unseen = torch.tensor([float(not reducer.names)])
        return flat + torch.cat([other.totals(reducer.names, CPU), unseen.double()])

    def gather(lists, mine):
        lists[:] = [mine, ["b"]]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    assert reducer.means(alone(meet, world=2), ours)[0] == {"a": 2.0, "b": 2.5}
    assert reducer.names == ["a", "b"]


def test_sums_survive_a_file_and_add_up_in_the_same_order():
    whole, first = Sums(), Sums()
    values = [torch.rand(()) for _ in range(7)]
    for i, value in enumerate(values):
        whole.add({"a": value, "b": (value, torch.tensor(i))})
        if i < 3:
            first.add({"a": value, "b": (value, torch.tensor(i))})
    second = Sums.restored([first.state()])
    for i, value in enumerate(values[3:], 3):
        second.add({"a": value, "b": (value, torch.tensor(i))})
    assert torch.equal(whole.totals(["a", "b"], CPU), second.totals(["a", "b"], CPU))


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_the_logged_loss_is_the_mean_over_the_global_batch(tmp_path, accumulate):
    run, module = train(tmp_path, "a", Setting(accumulate=accumulate, validate_every=None))
    table = read_table(run.folder / "metrics.csv")
    assert list(table["update"]) == [3, 6, 9, 12]
    per_update = torch.tensor(module.seen).view(12, accumulate).mean(1)
    for loss, expected in zip(table["train/loss"].values(), per_update.view(4, 3).mean(1).tolist()):
        assert math.isclose(loss, expected, rel_tol=1e-6)
    # "pair" counts samples, so it is the same mean from other numbers
    assert table["train/pair"] == pytest.approx(table["train/loss"], rel=1e-6)


def test_validation_is_averaged_over_the_whole_loader(tmp_path):
    run, module = train(tmp_path, "a", Setting(updates=5, validate_every=5))
    table = read_table(run.folder / "metrics.csv")
    assert table["val/rows"] == {5: 2.0}  # plain: mean of batches of 3 and 1
    assert module.trainer.callback_metrics["val/error"].item() == pytest.approx(table["val/error"][5], rel=1e-8)


def test_learning_rate_is_the_one_the_update_used(tmp_path):
    run, _ = train(tmp_path, "a", Setting(updates=3, log_every=1, validate_every=None))
    assert read_table(run.folder / "metrics.csv")["optim/lr"] == {1: 0.01, 2: 0.0099, 3: 0.0098}


def test_logging_interval_does_not_change_what_is_learned(tmp_path):
    _, often = train(tmp_path, "a", Setting(log_every=1))
    _, seldom = train(tmp_path, "b", Setting(log_every=50))
    assert often.seen == seldom.seen


def test_train_log_holds_what_the_console_showed(tmp_path, capsys):
    run, _ = train(tmp_path, "a")
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("update", "validation"))]
    assert (run.folder / "train.log").read_text().splitlines() == shown
    assert [line.split("  ")[0] for line in shown[:3]] == ["update 3/12", "validation at 5", "update 6/12"]


def test_a_progress_line_shows_loss_first_and_real_pace():
    row = {"optim/lr": 2.9e-4, "train/loss": 0.43125, "optim/grad_norm": 1.0, "train/ce_low": 0.1201}
    perf = {"perf/units_per_s": 41234.0, "perf/samples_per_s": 10.0}
    assert progress_line(1200, 96000, row, perf) == (
        "update 1,200/96,000  loss 0.4313  ce_low 0.1201  lr 2.9e-04  41.2k units/s"
    )
    assert [duration(s) for s in (5, 72, 4321)] == ["5s", "1m12s", "1h12m"]
    assert [short(n) for n in (12.34, 4.12e4, 3e6)] == ["12.3", "41.2k", "3.0M"]


def test_pace_counts_real_units_and_leaves_pauses_out(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    watch = Stopwatch(CPU, seconds=100.0)
    for _ in range(4):
        watch.fetch_starts()
        clock.now += 0.5
        watch.fetch_ends()
        watch.batch_starts()
        clock.now += 1.5
        watch.batch_ends(SimpleNamespace(num_samples=3, num_units=5), update_done=True)
    clock.now += 50.0
    watch.pause()
    perf = watch.read(watch.counts)
    assert (perf["perf/samples_per_s"], perf["perf/units_per_s"], perf["perf/updates_per_s"]) == (1.5, 2.5, 0.5)
    assert (perf["perf/wait_fraction"], perf["perf/step_ms_p50"], perf["seconds"]) == (0.25, 1500.0, 158.0)
    assert watch.counts.units == 0
