"""The stride law for the schedules of this line, the earlier system's stride that breaks it, and the last step."""

from itertools import pairwise

import pytest
import torch

from projects.text.calibration import schedules
from projects.text.compat import Adjacent
from shared.processes import Gaussian, VariancePreserving, square_root
from shared.sampling import sample, uniform_grid
from tests.laws.strides import snr_along

ENTROPY, RADIUS_SQUARED = 2.0, 32.0
SCHEDULES = schedules(ENTROPY, RADIUS_SQUARED)


def missing_db(process: Gaussian, steps: int, index: int) -> float:
    """By how much the SNR that a walk of so many of 2000 times has at i = index lies below the claimed one."""
    visited = torch.linspace(1999, 0, steps, dtype=torch.float64).round()
    visited = visited[visited >= index]
    assert visited[-1] == index
    had, claimed = snr_along(process, (visited + 1) / 2000)
    return float(20 * torch.log10(claimed[-1] / had[-1]))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_stride_law_holds_at_every_number_of_steps(name, eta):
    process = Gaussian(SCHEDULES[name], eta)
    for steps in (1, 5, 20, 200, *[1999] * (name == "warp" and eta == 1)):
        had, claimed = snr_along(process, torch.linspace(1, 5e-4, steps + 1, dtype=torch.float64))
        torch.testing.assert_close(had, claimed, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("steps", "index", "db"), [(20, 105, 34.0), (200, 100, 16.8), (1000, 500, 3.7)])
def test_the_adjacent_stride_falls_behind_what_it_claims(steps, index, db):
    schedule = VariancePreserving(square_root())
    assert missing_db(Adjacent(schedule), steps, index) == pytest.approx(db, abs=0.2)
    assert missing_db(Gaussian(schedule, 1.0), steps, index) == pytest.approx(0, abs=1e-6)


def test_the_adjacent_stride_is_right_where_every_time_is_visited():
    assert missing_db(Adjacent(VariancePreserving(square_root())), 2000, 1500) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_last_step_is_the_belief_without_noise(name):
    process = Gaussian(SCHEDULES[name], 1.0)
    x_t, belief = torch.randn(2, 5, 7, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([1e-3, 0.01, 0.3, 0.9, 1.0])
    assert torch.equal(process.step(x_t, belief, t, 0 * t, torch.Generator()), belief)
    mean, std = process.moments(x_t, belief, t, 0 * t)
    assert std.eq(0).all() and mean.isfinite().all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_ends_at_finite_levels_and_exact_data(name):
    schedule = SCHEDULES[name]
    for dtype in (torch.float32, torch.float64):
        ends = torch.tensor([0.0, 1.0], dtype=dtype)
        assert schedule.alpha(ends)[0] == 1 and schedule.sigma(ends)[0] == 0
        assert -20 < schedule.log_snr(ends)[1] < -9


def test_the_floor_of_the_square_root_is_the_cap_of_its_paper():
    """1 - min(1 - A_i/A_(i-1), .999) of the last of 2000 steps (Li et al. 2022), A of t = i/2000."""
    t = torch.arange(2001, dtype=torch.float64) / 2000
    kept = 1 - (t + 1e-4).sqrt()
    betas = (1 - kept[1:] / kept[:-1]).clamp(max=0.999)
    last = SCHEDULES["square root"].alpha(torch.ones((), dtype=torch.float64)).square()
    assert float(last) == pytest.approx(float((1 - betas).prod()), rel=1e-3)


def test_a_walk_of_float32_over_the_warp_is_finite():
    process = Gaussian(SCHEDULES["warp"], 1.0)
    rng, levels = torch.Generator().manual_seed(0), []
    x = process.prior(torch.zeros(3, 4, 8), rng)

    def step(x_t, belief, t, s):
        levels.append((float(t[0]), float(s[0])))
        return process.step(x_t, belief, t, s, rng)

    found = sample(lambda x, t: 0.9 * x, step, x, uniform_grid(64))
    assert found.isfinite().all() and levels == [(float(t), float(s)) for t, s in pairwise(uniform_grid(64))]
