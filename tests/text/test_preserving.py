"""Schedules of papers in place of a warp: their levels, and that all that asks for a warp stands its absence."""

import math
from dataclasses import replace

import pytest
import torch

from projects.text.module import Warp
from projects.text.warping import preserving
from shared.processes import Gaussian, Warped
from shared.training.pretrained import description, rebuild
from tests.text.trunks import batch_of, text_module

KINDS = ("square_root", "cosine")


def test_the_square_root_begins_as_in_the_paper_and_ends_at_its_cap():
    first, last = torch.tensor([1 / 2000, 1.0], dtype=torch.float64)
    normalised, plain = preserving("square_root"), preserving("square_root", normalised=False)
    assert float(normalised.sigma(first)) == pytest.approx(0.1210, abs=5e-5)
    assert float(plain.sigma(first)) ** 2 == pytest.approx(math.sqrt((1 / 2000 + 1e-4) / (1 + 1e-4)))
    assert (
        float(plain.sigma(torch.zeros(()))) == pytest.approx(0.1, rel=1e-3) and normalised.sigma(torch.zeros(())) == 0
    )
    assert float(normalised.alpha(last)) ** 2 == pytest.approx(2.02e-7)
    assert float(preserving("cosine").alpha(last)) ** 2 == pytest.approx(1e-8)
    assert preserving("square_root", 0.008).sigma(first) < normalised.sigma(first)


@pytest.mark.parametrize("kind", KINDS)
def test_some_noise_is_left_to_float32_wherever_training_looks(kind):
    """A bias that is divided by no noise is nan, and a run ends of it."""
    schedule, t = preserving(kind), torch.tensor([2.0**-24, 1e-6, 1e-4])
    assert (schedule.sigma(t) > 1e-3).all() and (schedule.log_snr(t) < 13.5).all()
    assert schedule.sigma(torch.zeros(1)) == 0 and schedule.alpha(torch.zeros(1)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_is_made_again_from_what_a_file_says(kind):
    t = torch.linspace(0, 1, 9)
    made = preserving(kind, 0.01)
    assert torch.equal(rebuild(description(made)).alpha(t), made.alpha(t))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_without_a_warp_learns_is_measured_and_walks(kind):
    module = text_module(warp=Warp(kind=kind))
    assert module.network.warp is None and isinstance(module.process, Gaussian)
    batch = batch_of(module, 4)
    assert module.training_step(batch, 0)["loss"].isfinite()
    assert module.objective.nats(module, batch, torch.Generator().manual_seed(0), 4).isfinite().all()
    for grid in ("warp", "log_snr"):
        for walk in ("ddpm", "multistep", "heun", "switched"):
            drawn = module.walked([0, 1], replace(module.sampling, kind=walk, grid=grid, steps=4))
            assert drawn.score.isfinite().all()


def test_a_warp_is_still_what_is_built_unless_another_is_named():
    assert isinstance(Warp().schedule(2.0, 16.0), Warped) and not isinstance(Warp("cosine").schedule(2.0, 16.0), Warped)


@pytest.mark.parametrize("wrong", [{"kind": "cosine", "follow": 0.1}, {"kind": "cosine", "normalised": False}])
def test_what_a_schedule_cannot_do_is_refused(wrong):
    with pytest.raises(ValueError, match=r"model\.warp\."):
        Warp(**wrong)
