"""What the benchmarks of the line claim about correctness, at a size that takes a second; speed is theirs to say."""

from packages.arc.sources import Source, read_questions
from projects.arc import bench_module as bench


def test_an_exact_belief_keeps_every_marginal_of_every_walk():
    found = bench.oracle(cells=20_000, strides=(4, 16))
    assert found["marginals"] == 3 + 15 and 1 < found["largest_sigma"] < 4


def test_the_tasks_to_be_overfitted_are_eight_and_small():
    tasks = read_questions(Source("arc1", "training")).select(bench.smallest(8))
    assert len(tasks) == 8 and max(task.side for task in tasks) <= 10


def test_a_size_is_timed_over_the_pool_it_trains_on(monkeypatch):
    monkeypatch.setattr("projects.arc.module.ArcModule.global_rank", 0)
    found = bench.step("test", updates=1)
    assert found["size"] == "test" and found["perf/tflops"] > 0
    assert abs(found["examples_per_s"] * found["ms_per_update"] / 1000 - 16) < 1e-6
    assert bench.vote("test")["grids"] == 2
