"""The line text on two ranks: they share no sentence and no time, and 20 updates of theirs are those of one process."""

import pytest

from tests.distributed import adapted
from tests.distributed.facts import furthest
from tests.distributed.text_two import UPDATES, ragged, sentences

MADE = {"rows_of_the_grammar": sentences, "rows_of_a_file": ragged}


@pytest.fixture(scope="module")
def ranks(launch, tmp_path_factory):
    return launch("tests.distributed.text_two", 2, tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module", params=MADE)
def both(request, ranks, tmp_path_factory):
    """(folder of the run, what the steps of each rank saw) of one process with the whole batch, and of two ranks."""
    folder, name = tmp_path_factory.mktemp("one"), MADE[request.param].__name__
    alone, together = MADE[request.param](folder), ranks(request.param)
    home = ranks.folder / request.param
    return (folder / "text/nano" / name, [alone]), (home / "text/nano" / name, together)


def test_twenty_updates_on_two_ranks_equal_those_of_one_process(both):
    one, two = (run for run, _ in both)
    assert len(adapted.losses(one)) == UPDATES and furthest(adapted.losses(two), adapted.losses(one)) < 1e-5
    assert adapted.apart(adapted.stored(two), adapted.stored(one)) < 1e-4


def test_ranks_share_no_sentence_and_no_time_and_together_see_those_of_one_process(both):
    (_, [alone]), (_, together) = both
    for whole, first, second in zip(alone, *together, strict=True):
        for what in ("position", "t"):
            assert not set(first[what]) & set(second[what])
            assert sorted(first[what] + second[what]) == sorted(whole[what])
        assert first["tokens"] + second["tokens"] == whole["tokens"]


def test_ragged_ranks_have_other_numbers_of_tokens(ranks):
    assert any(one["tokens"] != other["tokens"] for one, other in zip(*ranks("rows_of_a_file")))
