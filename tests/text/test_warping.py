"""Warps: quantiles and levels, what they follow, and that they change how often a level is met and nothing else."""

import pytest
import torch

from projects.text.module import Warp
from projects.text.resolution import span
from projects.text.warping import SCALE, Affine, Fitted, Gumbel, Monotone, Relay
from shared.networks import initialise
from shared.processes import Warped
from shared.training import checkpoints
from shared.training.pretrained import load_for_sampling
from tests.lines import ROOT, Line, built

LOW, HIGH = span(32)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def followed() -> Monotone:
    """Has seen losses that rise from .2 to 4 nats round gamma = 2."""
    warp = Monotone(LOW, HIGH)
    level = torch.linspace(LOW, HIGH, 2000, dtype=torch.float64)
    warp.calibrate(level, 0.2 + 3.8 * torch.sigmoid(-(level + 2) / 0.8))
    return warp


def relay(handed: bool) -> Relay:
    warp = Relay(Gumbel(2.0, LOW, HIGH), Monotone(LOW, HIGH))
    if handed:
        warp.hand_over()
    return warp


WARPS = {
    "gumbel": lambda: Gumbel(2.0, LOW, HIGH),
    "gumbel-wide": lambda: Gumbel(-1.0, LOW, HIGH, scale=8.0),
    "fitted": lambda: Fitted(2.0, LOW, HIGH),
    "flat": lambda: Monotone(LOW, HIGH),
    "monotone": followed,
    "affine": Affine,
    "relay-first": lambda: relay(False),
    "relay-second": lambda: relay(True),
}


@pytest.fixture(params=WARPS)
def warp(request):
    return WARPS[request.param]()


def test_levels_fall_from_the_clean_end_to_the_noisy_one(warp):
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    level = warp.log_snr(t).detach()
    assert (level.diff() < 0).all()
    low, high = (-6.0, 3.0) if isinstance(warp, Affine) else (LOW, HIGH)
    assert float(level[0]) == pytest.approx(high, abs=1e-6) and float(level[-1]) == pytest.approx(low, abs=1e-6)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_time_to_level_to_time_is_the_identity(warp, dtype, error):
    t = torch.linspace(0, 1, 501, dtype=dtype)
    found = warp.quantile(warp.log_snr(t).detach())
    assert found.dtype == dtype and (found - t).abs().max() <= error


def test_the_density_is_how_often_a_level_is_met(warp):
    level = torch.linspace(-5.9, 2.9, 41, dtype=torch.float64)
    h = 1e-5
    slope = (warp.quantile(level - h) - warp.quantile(level + h)) / (2 * h)
    torch.testing.assert_close(warp.density(level), slope, rtol=1e-4, atol=1e-6)


def test_a_warp_is_a_schedule_with_exact_ends(warp):
    schedule = Warped(warp)
    t = torch.linspace(0, 1, 101)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert alpha[0] == 1 and sigma[0] == 0 and schedule.log_snr(t)[0] == torch.inf
    assert (alpha.diff() < 0).all() and schedule.log_snr(t)[1:].isfinite().all()


def test_a_warp_does_not_hear_autocast(warp):
    t = torch.linspace(0, 1, 101)
    exact, density = warp.log_snr(t), warp.density(warp.log_snr(t).detach())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(warp.log_snr(t), exact) and exact.dtype == torch.float32
        assert torch.equal(warp.density(exact.detach()), density) and density.isfinite().all()


def losses(level: torch.Tensor) -> torch.Tensor:
    return torch.exp(-(level + 2).square())


def test_a_weighted_mean_does_not_depend_on_the_warp():
    """The mean of loss/density over uniform t is the loss summed over all levels: 1e5 draws, 3 standard errors."""
    for name in ("gumbel", "flat", "monotone", "relay-second"):
        warp = WARPS[name]()
        level = warp.log_snr(torch.rand(100_000, generator=generator(), dtype=torch.float64))
        values = losses(level) / warp.density(level)
        error = values.std() / len(values) ** 0.5
        assert abs(values.mean() - torch.pi**0.5) < 3 * error and error < 0.02


def test_no_level_starves_where_the_loss_is_followed():
    level = torch.linspace(LOW, HIGH, 997, dtype=torch.float64)
    warp = followed()
    assert warp.density(level).min() >= 0.1 / (HIGH - LOW) * (1 - 1e-9)
    assert warp.density(level).max() > 3 / (HIGH - LOW)


def test_gumbel_stands_at_its_location():
    """A share 1/e of the walk is cleaner than SNR*; untruncated, ln t and gamma belong together by the formula."""
    warp = Gumbel(2.0, -30.0, 30.0)
    t = torch.tensor([0.01, 0.367879, 0.9], dtype=torch.float64)
    torch.testing.assert_close(-warp.log_snr(t), 2 - SCALE * (-t.log()).log(), rtol=1e-9, atol=1e-9)
    assert float(warp.log_snr(t)[1]) == pytest.approx(-2, abs=1e-5)


def test_gumbel_is_exact_at_levels_that_no_float_can_count():
    """F(-13.3) is exp(-7e7), yet t = 0 lies there."""
    assert float(Gumbel(2.0, LOW, HIGH).log_snr(torch.zeros(()))) == pytest.approx(13.3)


def test_a_fitted_gumbel_finds_the_curve_of_the_loss():
    truth, warp = Gumbel(1.7, LOW, HIGH, scale=1.1), Fitted(0.5, LOW, HIGH)
    level = torch.linspace(LOW, HIGH, 3000, dtype=torch.float64)
    for _ in range(600):
        warp.calibrate(level, 3 * truth.quantile(level))
    assert float(warp.location) == pytest.approx(1.7, abs=0.05) and float(warp.scale) == pytest.approx(1.1, abs=0.05)


def test_a_relay_starts_the_second_from_the_first():
    warp = relay(False)
    t = torch.linspace(0.1, 0.9, 50, dtype=torch.float64)
    before = warp.log_snr(t)
    warp.hand_over()
    bin_width = (HIGH - LOW) / 64
    assert (warp.log_snr(t) - before).abs().max() < 2 * bin_width and not torch.equal(warp.log_snr(t), before)


def test_a_relay_hears_losses_before_it_hands_over():
    warp = relay(False)
    level = torch.linspace(LOW, HIGH, 2000, dtype=torch.float64)
    first = warp.log_snr(torch.tensor(0.5))
    for _ in range(500):
        warp.calibrate(level, (level < 4).double())
    assert warp.log_snr(torch.tensor(0.5)) == first
    warp.hand_over()
    assert float(warp.log_snr(torch.tensor(0.5))) == pytest.approx(4, abs=0.5)


@pytest.mark.parametrize("name", WARPS)
def test_a_warp_is_saved_with_its_owner(name):
    warp, other = WARPS[name](), WARPS[name]()
    with torch.no_grad():
        for value in other.state_dict().values():
            value.zero_() if value.is_floating_point() else value.fill_(False)
    other.load_state_dict(warp.state_dict())
    t = torch.linspace(0, 1, 20)
    assert torch.equal(other.log_snr(t), warp.log_snr(t))


def test_every_parameter_of_affine_learns():
    warp = Affine()
    warp.log_snr(torch.rand(50, generator=generator())).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in warp.parameters())


def test_a_location_outside_the_levels_is_refused():
    with pytest.raises(ValueError, match="want -location in"):
        Gumbel(20.0, LOW, HIGH)


# --- begun anew, and learnt where others read them


@pytest.mark.parametrize("name", WARPS)
def test_a_warp_that_was_built_without_memory_begins_as_any_other(name):
    with torch.device("meta"):
        warp = WARPS[name]()
    warp = warp.to_empty(device="cpu")
    for value in [*warp.parameters(), *warp.buffers()]:
        value.detach().fill_(1)
    initialise(warp, 1)
    fresh = WARPS[{"monotone": "flat", "relay-second": "relay-first"}.get(name, name)]().state_dict()
    assert all(torch.equal(value, fresh[part]) for part, value in warp.state_dict().items())


def test_a_fitted_gumbel_that_takes_over_begins_as_the_first():
    warp, t = Relay(Gumbel(2.0, LOW, HIGH, scale=1.2), Fitted(0.5, LOW, HIGH)), torch.linspace(0, 1, 50)
    before = warp.log_snr(t)
    warp.hand_over()
    curve, wanted = warp.second.curve, Fitted(2.0, LOW, HIGH, scale=1.2).curve
    assert torch.equal(warp.log_snr(t), before) and torch.equal(curve.edges, wanted.edges)


def test_a_warp_that_follows_as_a_gumbel_stays_one():
    warp = Warp(location=2.0, follow=0.0, follow_as="gumbel").built(1.3, 32.0)
    warp.hand_over()
    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    level = torch.linspace(LOW, HIGH, 3000, dtype=torch.float64)
    for _ in range(600):
        warp.calibrate(level, Gumbel(3.5, LOW, HIGH).quantile(level))
    assert float(warp.second.location) == pytest.approx(3.5, abs=0.1)
    found = Gumbel(float(warp.second.location), LOW, HIGH, float(warp.second.scale))
    assert torch.allclose(warp.log_snr(t), found.log_snr(t))


@pytest.fixture(scope="module", params=["monotone", "gumbel"])
def followed_run(request, tmp_path_factory):
    """A run of eight updates whose warp follows from the third on."""
    line, root = Line("text"), tmp_path_factory.mktemp(request.param)
    flags = ["--model.warp.follow=0.25", f"--model.warp.follow_as={request.param}", "--run.test_after_fit=false"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        line.run(*line.fit(root, "a", *flags))
        yield line.folder(root) / "a"


def test_a_walk_from_a_file_visits_the_levels_that_were_learnt(followed_run):
    """By every way in: the command line's, and that of a file alone."""
    stored = checkpoints.read(followed_run)["state_dict"]
    t = torch.linspace(0.01, 0.99, 50)
    module = built("text", [f"--ckpt_path={followed_run}"], "sample", "sample").model
    _, process = load_for_sampling(followed_run)
    learnt = module.network.warp.second
    assert all(torch.equal(value, stored[f"network.warp.second.{name}"]) for name, value in learnt.state_dict().items())
    for walked in (module.process, process):
        assert torch.equal(walked.schedule.log_snr(t), learnt.log_snr(t))
    assert (learnt.log_snr(t) - module.network.warp.first.log_snr(t)).abs().max() > 0.01
