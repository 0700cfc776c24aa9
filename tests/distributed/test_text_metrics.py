"""Metrics of sentences on two ranks: together they are one process, also when one of them has no sentence."""

import pytest

from tests.distributed.text_metrics import ROWS, measured


@pytest.fixture(scope="module")
def ranks(launch, tmp_path_factory):
    return launch("tests.distributed.text_metrics", 2, tmp_path_factory.mktemp("text"))


def assert_one_process(found):
    expected = measured(ROWS)
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name] == pytest.approx(expected[name], rel=1e-12), name


@pytest.mark.parametrize("check", ["shares", "one_has_nothing", "never_updated"])
def test_both_ranks_know_the_values_of_one_process(ranks, check):
    for found in ranks(check):
        assert_one_process(found)


def test_one_rank_can_measure_alone(ranks):
    found, nothing = ranks("alone")
    assert_one_process(found)
    assert nothing == {}
