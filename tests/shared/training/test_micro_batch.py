"""The search for a micro-batch, with a card made up for the purpose."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.training import hardware, micro_batch
from shared.training.errors import Mistake
from shared.training.hardware import Machine
from shared.training.micro_batch import awaited, key, largest, settle
from shared.training.plan import resolve

CONFIG = {
    "trainer": {"accelerator": "gpu", "devices": 1, "max_steps": 10},
    "data": {"batch_size": 96, "micro_batch": "auto"},
}


class Card:
    """Has room for `room` samples, and says no as a card does."""

    def __init__(self, room):
        self.room, self.tried = room, []

    def fits(self, m):
        self.tried.append(m)
        if m > self.room:
            raise torch.cuda.OutOfMemoryError(f"CUDA out of memory at {m}")
        return True


@given(share=st.integers(1, 2000), room=st.integers(1, 2000))
def test_what_is_found_fits_and_divides_the_share(share, room):
    card = Card(room)
    found = largest(share, card.fits)
    assert found <= room and share % found == 0
    assert card.tried == sorted(card.tried), "it never tries less after it has tried more"
    assert len([m for m in card.tried if m > room]) <= 1, "it stops at the first that does not fit"


@pytest.mark.parametrize(
    ("share", "room", "found"), [(64, 10**6, 64), (64, 33, 32), (96, 50, 48), (9, 8, 3), (7, 6, 1), (1, 1, 1)]
)
def test_the_search_doubles_up_to_the_whole_share(share, room, found):
    assert largest(share, Card(room).fits) == found


def test_a_test_that_says_no_counts_like_a_card_that_is_full():
    assert largest(64, lambda m: m <= 16) == 16


def test_other_errors_of_the_step_are_not_taken_for_a_full_card():
    def broken(m):
        raise RuntimeError("a bug in the step")

    with pytest.raises(RuntimeError, match="a bug"):
        largest(8, broken)


def test_a_card_without_room_for_one_sample_is_a_mistake():
    with pytest.raises(Mistake, match="Not even one sample fits"):
        largest(64, Card(0).fits)


def test_the_search_ends_when_its_time_is_over():
    card = Card(10**6)
    assert largest(4096, card.fits, seconds=-1) == 1 and card.tried == [1]


def test_without_a_card_nothing_is_tried():
    plan = resolve(CONFIG, Machine())
    assert settle(plan, None, None, CONFIG) is plan


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A machine whose card holds 20 samples."""
    monkeypatch.chdir(tmp_path)
    made = Card(20)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        micro_batch, "_fits", lambda plan, module, data, accumulate: made.fits(plan.batch_size // accumulate)
    )
    return made


class Data:
    micro_batch = None


def test_the_plan_gets_what_fits_and_the_data_module_is_told(card):
    data = Data()
    plan = settle(resolve(CONFIG, Machine()), None, data, CONFIG)
    assert (plan.micro_batch, plan.accumulate, data.micro_batch) == (12, 8, 12)
    assert plan.world * plan.micro_batch * plan.accumulate == plan.batch_size


def test_the_answer_is_remembered_for_the_same_kind_of_run_only(card):
    plan = resolve(CONFIG, Machine())
    settle(plan, None, Data(), CONFIG)
    before = list(card.tried)
    settle(plan, None, Data(), CONFIG)
    assert card.tried == before
    settle(replace(plan, precision="bf16-mixed"), None, Data(), CONFIG)
    assert card.tried != before


def test_the_key_tells_every_kind_of_run_apart():
    plan = resolve(CONFIG, Machine())
    others = [
        replace(plan, **change)
        for change in (
            {"project": "arc"}, {"stage": "a"}, {"size": "smol"}, {"device": "1 x H200"}, {"world": 3},
            {"precision": "bf16-mixed"}, {"compile": "blocks"},
        )
    ]  # fmt: skip
    keys = [key(each, CONFIG) for each in (plan, *others)] + [key(plan, {**CONFIG, "model": {"width": 8}})]
    assert len(set(keys)) == len(keys)


def test_the_other_ranks_read_what_rank_0_found(card, monkeypatch):
    plan = resolve(CONFIG, Machine())
    settle(plan, None, Data(), CONFIG)
    card.tried.clear()
    monkeypatch.setattr(micro_batch, "rank", lambda: 1)
    assert settle(plan, None, Data(), CONFIG).micro_batch == 12 and not card.tried


def test_a_rank_that_waits_in_vain_says_so(card):
    hardware.CACHE.mkdir()
    (hardware.CACHE / "micro_batch.json").write_text(json.dumps({"another run": 8}))
    with pytest.raises(Mistake, match=r"Set data\.micro_batch to a number"):
        awaited("this run", patience=0, pause=0)


def test_a_given_number_is_not_searched_for(card):
    given_ = {**CONFIG, "data": {"batch_size": 96, "micro_batch": 8}}
    plan = resolve(given_, Machine())
    assert settle(plan, None, Data(), given_) is plan and not card.tried
