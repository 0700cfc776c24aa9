"""The resolution law against the settings it was read from, and against a reader who knows no context."""

import math

import pytest
import torch

from projects.text.resolution import BayesDecoder, location, scales, snr_star, span, window
from projects.text.rounding import Rows
from shared.processes import VariancePreserving, Warped, cosine, square_root, time_of

EARLIER = VariancePreserving(square_root(1e-4, from_zero=False))  # un-normalised, as the settings below had it
# R^2, V, SNR* of ln V, alpha^2 there, index of 2000
SETTINGS = {
    "BART encoder output": (768, 50_265, 0.028, 0.027, 1891),
    "BART raw rows": (3.1, 50_265, 6.98, 0.87, 31),
    "384 wide": (384, 15_000, 0.050, 0.048, 1813),
    "384 wide, raw rows": (3.0, 15_000, 6.41, 0.86, 36),
    "Diffusion-LM, E2E": (16, 821, 0.84, 0.46, 591),
    "Diffusion-LM, ROC": (128, 11_043, 0.146, 0.127, 1524),
    "small grammar": (32, 300, 0.357, 0.263, 1086),
}


@pytest.fixture(autouse=True)
def seeded():
    """Tables begin at random."""
    torch.manual_seed(0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_law_gives_the_row_of_every_setting(setting):
    radius_squared, size, star, signal, index = SETTINGS[setting]
    snr = snr_star(math.log(size), radius_squared)
    assert snr == pytest.approx(star, rel=0.02)
    assert snr / (1 + snr) == pytest.approx(signal, rel=0.02)
    critical = 2000 * time_of(EARLIER, torch.tensor(snr, dtype=torch.float64).log())
    assert abs(float(critical) - index) <= 1


def test_a_reader_without_context_reads_at_the_star_and_not_below():
    decoder = BayesDecoder(Rows(300, 32), torch.full((300,), 1 / 300))
    levels = torch.tensor([0.0, math.log(snr_star(math.log(300), 32)), -3.0])
    sure, half, lost = decoder.accuracy(levels, 10_000, generator()).tolist()
    assert sure == pytest.approx(0.98, abs=0.01)
    assert half == pytest.approx(0.60, abs=0.05)
    assert lost == pytest.approx(0.06, abs=0.02)


@pytest.mark.parametrize("norm", ["sphere", "free"])
def test_nobody_reads_single_tokens_better_than_the_bayes_decoder(norm):
    """Neither without the shares of tokens nor by the nearest row; on the same x_t."""
    rows = Rows(100, 8, norm)
    shares = 1 / torch.arange(1, 101)
    decoder = BayesDecoder(rows, shares / shares.sum())
    ids = torch.multinomial(shares, 20_000, replacement=True, generator=generator())
    alpha, sigma = (x.expand(len(ids)) for x in scales(torch.tensor(-0.5)))
    x_t = alpha[:, None] * rows(ids) + sigma[:, None] * torch.randn(len(ids), 8, generator=generator(1))
    right = (decoder(x_t, alpha, sigma) == ids).float().mean()
    for other in (rows.bias(x_t, alpha, sigma).argmax(-1), rows.nearest(x_t)):
        assert right > (other == ids).float().mean() + 0.01


def test_what_never_occurs_is_never_said():
    decoder = BayesDecoder(Rows(20, 4), torch.cat([torch.zeros(10), torch.full((10,), 0.1)]))
    x_t, level = torch.randn(500, 4, generator=generator()), torch.full((500,), 0.7)
    assert decoder(x_t, level, level).min() >= 10


def test_the_location_is_the_one_that_langflow_released():
    assert location(3.41, 768) == pytest.approx(4.724, abs=5e-4)


def test_the_window_opens_where_context_decides_and_closes_where_it_is_not_needed():
    found = window(3.41, 50_265, 768)
    assert found.low == pytest.approx(-location(3.41, 768)) and found.high == pytest.approx(math.log(0.0282), abs=1e-3)


def test_uniform_time_spends_nine_tenths_outside_the_window_of_the_earlier_system():
    for schedule in (VariancePreserving(cosine(0.008)), VariancePreserving(square_root())):
        assert 0.91 <= 1 - window(3.41, 50_265, 768).share(schedule) <= 0.94


def test_the_share_of_the_window_is_counted_in_t():
    class Even:
        """A warp that meets all levels of [-8, 8] alike."""

        def log_snr(self, t):
            return 8 - 16 * t

    assert window(2.0, 300, 32).share(Warped(Even()), tail=0) == pytest.approx(math.log(math.log(300) / 2) / 16)


def test_the_span_of_levels_follows_the_radius():
    low, high = span(32)
    assert high == 13.3 and math.exp(low) * 32 == pytest.approx(0.002)


def test_shares_of_another_vocabulary_are_refused():
    with pytest.raises(ValueError, match="5 shares for 6 rows; give the share of every token"):
        BayesDecoder(Rows(6, 2), torch.ones(5))
