"""Rates by hand: FLOPs of real lengths, shares of what the machine can do, and no guess where nothing is known."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from shared.training import hardware, throughput
from shared.training.logs import progress_line
from shared.training.tables import read_table
from shared.training.throughput import Counts, Rates, Stopwatch, training_flops
from tests.shared.training.loop import Module, Setting, train

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
CPU = torch.device("cpu")
PROFILES = Path(__file__).parents[3] / "configs/hardware"


class Counting:
    """2 FLOPs a unit forward."""

    def flops(self, batch):
        return 2 * batch.num_units


class Conditioned(Counting):
    """A pass without a backward over the first half."""

    def extra_flops(self, batch):
        return batch.num_units


def batch(samples=4, units=100, **more):
    return SimpleNamespace(num_samples=samples, num_units=units, **more)


def test_training_is_three_forwards_and_the_passes_without_a_backward_once():
    assert training_flops(Counting(), batch()) == 600
    assert training_flops(Conditioned(), batch()) == 700
    assert training_flops(object(), batch()) == 0


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA B200", 2250.0),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA GeForce RTX 3090", 71.2),
        ("NVIDIA GeForce RTX 9999", None),
        ("x86_64, 2 threads", None),
    ],
)
def test_the_peak_is_the_vendors_or_unknown(name, peak):
    assert hardware.peak_tflops(name, "bf16-mixed") == peak
    assert hardware.peak_tflops(name, "16-mixed") == peak
    assert hardware.peak_tflops(name, "32-true") is None


def test_mfu_is_the_share_of_one_cards_peak_that_one_process_reaches():
    perf = Rates(peak=100.0, gemm=50.0, processes=4).perf(flops=40e12, seconds=2.0)
    assert perf == {"perf/tflops": 5.0, "perf/mfu": 0.05, "perf/gemm_share": 0.1}


def test_what_is_not_known_is_left_out():
    assert Rates().perf(1e12, 1.0) == {"perf/tflops": 1.0}
    assert "perf/tflops" not in Stopwatch(CPU).read(Counts(samples=8, units=8))
    assert Rates.of(CPU, "bf16-mixed").peak is None


def test_padding_is_what_the_capacity_left_empty():
    watch = Stopwatch(CPU, module=Counting())
    for units in (60, 90):
        watch.batch_starts()
        watch.batch_ends(batch(units=units, capacity=100), update_done=True)
    perf = watch.read(watch.counts)
    assert perf["perf/padding_fraction"] == pytest.approx(0.25)
    watch.batch_starts()
    watch.batch_ends(batch(), update_done=True)
    assert "perf/padding_fraction" not in watch.read(watch.counts), "a batch without padding knows no capacity"


def test_the_line_tells_mfu_where_it_is_known():
    perf = {"perf/units_per_s": 41_234.0}
    assert "mfu" not in progress_line(1, 2, {"optim/lr": 1e-3}, perf)
    assert progress_line(1, 2, {"optim/lr": 1e-3}, perf | {"perf/mfu": 0.31}).endswith("41.2k units/s  mfu 31.0%")


def test_a_matrix_product_is_timed_once_per_machine(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    times = iter([1.5, 99.0])
    monkeypatch.setattr(hardware, "_measured_gemm", lambda device: next(times))
    assert [hardware.gemm_tflops(CPU), hardware.gemm_tflops(CPU)] == [1.5, 1.5]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1234)
    assert hardware.gemm_tflops(CPU) == 99.0, "other threads are another machine"


def test_a_torn_cache_is_measured_again(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/gemm.json").write_text('{"x": ')
    monkeypatch.setattr(hardware, "_measured_gemm", lambda device: 2.0)
    assert hardware.gemm_tflops(CPU) == 2.0


def test_the_measured_product_is_a_speed():
    assert 1e-3 < hardware._measured_gemm(CPU) < 1e3


def test_the_profiles_plan_with_the_peak_of_their_card():
    for profile, card in {"h200": "H200", "b200": "B200", "3x3090": "RTX 3090"}.items():
        planned = yaml.safe_load((PROFILES / f"{profile}.yaml").read_text())["hardware"]["peak_tflops"]
        assert planned == hardware.PEAKS[card]


def test_a_run_logs_its_flops_over_all_micro_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(Module, "flops", lambda self, batch: 10**6 * batch.num_samples, raising=False)
    monkeypatch.setattr(throughput.hardware, "gemm_tflops", lambda device: 2.0)
    run, _ = train(tmp_path, "counted", Setting(updates=6, accumulate=2, validate_every=None, log_every=3))
    perf = read_table(run.folder / "perf.csv")
    assert set(perf["perf/tflops"]) == {3, 6} and "perf/mfu" not in perf
    for update, rate in perf["perf/tflops"].items():
        assert rate * 1e12 == pytest.approx(3 * 10**6 * perf["perf/samples_per_s"][update], rel=1e-6)
        assert perf["perf/gemm_share"][update] == pytest.approx(rate / 2, rel=1e-6)
