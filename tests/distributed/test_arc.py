"""The line arc on two ranks: each has examples, times, views and noise of its own; together they are one process."""

import numpy as np
import pytest

from tests.distributed import adapted
from tests.distributed.arc_two import UPDATES, fit
from tests.distributed.facts import furthest


@pytest.fixture(scope="module")
def ranks(launch, tmp_path_factory):
    return launch("tests.distributed.arc_two", 2, tmp_path_factory.mktemp("arc"))


@pytest.fixture(scope="module")
def one(tmp_path_factory, at_home):
    """The folder of one process that saw the whole batch, and what its steps saw."""
    folder = tmp_path_factory.mktemp("one")
    return folder / "arc/nano/run", fit(folder, 1)


def test_five_updates_on_two_ranks_equal_those_of_one_process(ranks, one):
    run, two = one[0], ranks.folder / "learnt/arc/nano/run"
    assert ranks("learnt") and len(adapted.losses(run)) == UPDATES
    assert furthest(adapted.losses(two), adapted.losses(run)) < 1e-5
    assert adapted.apart(adapted.stored(two), adapted.stored(run)) < 1e-4


def test_both_ranks_together_see_the_pairs_times_and_views_of_one_process(ranks, one):
    for update, whole in enumerate(one[1]):
        parts = [rank[update] for rank in ranks("learnt")]
        assert {part["update"] for part in parts} == {whole["update"]}
        together = {p: x for part in parts for p, *x in zip(part["position"], part["t"], part["views"])}
        assert together == {p: x for p, *x in zip(whole["position"], whole["t"], whole["views"])}
        assert sum(part["cells"] for part in parts) == whole["cells"]


def test_ranks_share_no_pair_no_time_and_no_noise(ranks):
    for first, second in zip(*ranks("learnt")):
        assert not set(first["position"]) & set(second["position"]) and not set(first["t"]) & set(second["t"])
        assert first["views"] != second["views"]
        assert len(set(first["noise"]) & set(second["noise"])) < 0.01 * len(first["noise"])


def test_ranks_have_equal_cells_though_not_equal_counts_of_pairs(ranks):
    cells = np.array([[step["cells"] for step in rank] for rank in ranks("learnt")])
    assert (abs(cells[0] - cells[1]) / cells.mean(0)).max() < 0.1
    assert any(len(a["position"]) != len(b["position"]) for a, b in zip(*ranks("learnt")))
