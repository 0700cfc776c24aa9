"""Three ranks against one process. The batch of 24 splits over 1, 2 and 3."""

import pytest

from tests.distributed.facts import Alone, furthest, losses, spread


@pytest.fixture(scope="module")
def ranks(launch, tmp_path_factory):
    return launch("tests.distributed.three", 3, tmp_path_factory.mktemp("three"))


@pytest.fixture(scope="module")
def one(tmp_path_factory, at_home):
    return Alone(tmp_path_factory.mktemp("one"))


def test_three_ranks_learn_what_one_process_learns(ranks, one):
    for rank in ranks("k1"):
        assert furthest(rank["weights"], one("k1")["weights"]) < 1e-6


def test_three_ranks_see_the_global_batches_of_one_process(ranks, one):
    assert spread(ranks("k1"), "position") == spread([one("k1")], "position")


def test_the_times_of_three_ranks_are_those_of_one_process(ranks, one):
    assert spread(ranks("k1"), "t") == spread([one("k1")], "t")


def test_seven_samples_on_three_ranks_give_the_mean_of_one_process(ranks, one):
    seen = ranks("evaluated")
    assert sorted(i for rank in seen for i in rank["validated"]) == [100 + i for i in range(7)]
    for rank in seen:
        assert rank["metrics"]["val/error"] == pytest.approx(one("evaluated")["metrics"]["val/error"], abs=1e-6)


def test_a_network_cut_over_three_ranks_learns_what_one_process_learns(ranks, one):
    for rank in ranks("cut"):
        assert furthest(rank["weights"], one("k1")["weights"]) < 1e-6


def test_three_ranks_have_the_loss_curve_of_one_process(ranks, one, record_property):
    assert ranks("template_on_three") == [None] * 3
    difference = furthest(losses(ranks.folder / "template_on_three"), losses(one.template()))
    record_property("print", f"template, 50 updates, W = 3 against 1: losses differ by at most {difference:.1e}")
    assert difference < 1e-5
