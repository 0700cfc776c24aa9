"""Benchmarks take turns, count what they say, and leave a file that says on what machine."""

import json

import pytest

from shared.training import bench
from shared.training.bench import attention, paired, spread, take_turns
from tests.cli.conftest import NANO, desk, run  # noqa: F401 (fixtures)


def test_variants_take_turns_and_the_first_round_is_not_counted():
    order = []

    def variant(name, value):
        return lambda: order.append(name) or value

    found = take_turns({"a": variant("a", 1.0), "b": variant("b", 3.0)}, repeats=3)
    assert "".join(order) == "abbaabba"
    assert found["a"]["all"] == [1.0] * 3 and paired(found, "b", "a") == [2.0] * 3


def test_a_spread_is_median_and_p95():
    assert spread([3.0, 1.0, 2.0])["median"] == 2.0
    assert spread([float(i) for i in range(100)])["p95"] == 95.0


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(bench, "REPEATS", 1)
    monkeypatch.setattr("shared.training.bench_loop.REPEATS", 1)
    monkeypatch.setattr("shared.training.bench_loop.WARM", 2)


@pytest.mark.parametrize("mode", bench.OF_A_PROJECT)
def test_every_mode_measures_a_project_and_stores_what_it_found(run, desk, short, mode):  # noqa: F811
    said = run("bench", *NANO, f"--bench.mode={mode}", "--bench.seconds=0.1")
    assert said.code == 0, said.err
    (file,) = (desk / "runs/bench").glob("*.json")
    found = json.loads(file.read_text())
    assert found["what"] == f"tiny-nano-{mode}" and found["machine"]["gemm_tflops"] > 0
    assert {"torch", "lightning", "python"} <= set(found["versions"])
    if mode == "loop":
        assert set(found["ms_per_update"]) == {"bare", "lightning", "ours", "ema", "ema_three"}
        assert all(each["median"] > 0 for each in found["ms_per_update"].values())
    if mode == "throughput":
        assert found["samples_per_s"]["median"] > 0 and found["tflops"]["median"] > 0
    assert not (desk / "runs/tiny").exists(), "what is measured leaves no run"


def test_an_unknown_mode_is_a_sentence(run):  # noqa: F811
    said = run("bench", *NANO, "--bench.mode=lop")
    assert said.code == 2 and "loop, throughput, memory" in said.err


def test_packed_and_padded_attention_agree(monkeypatch):
    monkeypatch.setattr(bench, "REPEATS", 1)
    found = attention(segments=6, longest=40, width=64)
    assert found["largest_difference"] < 1e-4
    assert 0 < found["real_share"] < 0.4 and found["ratio"] > 0
