"""Denoising skill: 0 for who knows no language, however excellent the earlier table finds him."""

import math

import pytest
import torch

from projects.text.diagnostics import ROWS, SURE, Noised, alone, band, skill, table
from projects.text.resolution import BayesDecoder, location, span
from projects.text.rounding import Rows
from projects.text.warping import Gumbel
from shared.processes import Gaussian, VariancePreserving, Warped, square_root
from shared.training.layout import plain

SIZE, WIDTH = 300, 48
ROOT = VariancePreserving(square_root())
WARP = Warped(Gumbel(location(2.0, WIDTH), *span(WIDTH)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def shares():
    zipf = 1 / torch.arange(1, SIZE + 1)
    return zipf / zipf.sum()


@pytest.fixture(scope="module")
def decoder(shares):
    torch.manual_seed(0)
    return BayesDecoder(Rows(SIZE, WIDTH).requires_grad_(False), shares)


@pytest.fixture(scope="module")
def ids(shares):
    return torch.multinomial(shares, 32 * 16, replacement=True, generator=generator()).view(32, 16)


def sure(ids):
    """Logits of who is."""
    return torch.nn.functional.one_hot(ids, SIZE).float()


def copier(decoder, shares, schedule):
    """Bayes' rule for one token, written once more: p(v | x_t) from p(v) and N(x_t; alpha E_v, sigma^2) in float64."""
    rows = decoder.rows.rows.double()

    def believe(x_t, t):
        alpha, sigma = (x.double().view(-1, 1, 1) for x in (schedule.alpha(t), schedule.sigma(t)))
        far = torch.cdist(x_t.double(), alpha * rows).square()
        p = torch.softmax(shares.double().log() - far / (2 * sigma.square()), -1)
        return (p @ rows).float(), p

    return believe


@pytest.mark.parametrize("schedule", [ROOT, WARP], ids=["square root", "warp"])
def test_the_copier_has_no_skill_at_any_level_and_is_called_excellent(decoder, shares, ids, schedule):
    process = Gaussian(schedule)
    found = Noised(process, decoder, ids, generator(1)).rows(copier(decoder, shares, schedule))
    measured = [level for level in found if level.skill is not None]
    assert len(measured) >= 4 and all(abs(level.skill) <= 0.01 for level in measured)
    assert all(abs(level.accuracy - level.bayes) <= 0.001 for level in found)
    assert "Excellent" in {band(level.cosine, level.magnitude) for level in measured}


def test_the_copier_of_the_report_is_that_copier(decoder, shares, ids):
    x_t = torch.randn(32, 16, WIDTH, generator=generator())
    t = torch.linspace(0.3, 1, 32)
    (belief, said), (wanted, right) = (each(x_t, t) for each in (alone(decoder, ROOT), copier(decoder, shares, ROOT)))
    assert torch.equal(said.argmax(-1), right.argmax(-1))
    torch.testing.assert_close(belief, wanted, rtol=1e-3, atol=1e-3)


def test_who_knows_the_answer_has_skill_one_and_the_nearest_row_less_than_none(decoder, ids):
    x0 = decoder.rows(ids)
    process = Gaussian(ROOT)
    knows = Noised(process, decoder, ids, generator(1)).rows(lambda x, t: (x0, sure(ids)))
    assert {level.skill for level in knows} == {None, 1.0} and all(level.cosine > 0.999 for level in knows)
    near = Noised(process, decoder, ids, generator(1)).rows(lambda x, t: (x, sure(decoder.rows.nearest(x))))
    assert min(level.skill for level in near if level.skill is not None) < -0.05


def test_skill_cannot_be_moved_by_scale_and_bands_can(decoder, ids):
    process, honest = Gaussian(ROOT), alone(decoder, ROOT)

    def loud(x_t, t):
        belief, said = honest(x_t, t)
        return 1.5 * belief, said

    plainly, loudly = (Noised(process, decoder, ids, generator(1)).rows(each) for each in (honest, loud))
    assert [level.skill for level in plainly] == [level.skill for level in loudly]
    assert band(plainly[0].cosine, plainly[0].magnitude) == "Excellent" != band(loudly[0].cosine, loudly[0].magnitude)


def test_what_stands_outside_is_not_measured(decoder, ids):
    valid = torch.arange(16) < torch.arange(1, 33).clamp(max=16).unsqueeze(1)
    other = torch.where(valid, ids, (ids + 7) % SIZE)
    honest = alone(decoder, ROOT)
    first, second = (Noised(Gaussian(ROOT), decoder, x, generator(1), valid).rows(honest) for x in (ids, other))
    assert first == second and first != Noised(Gaussian(ROOT), decoder, ids, generator(1)).rows(honest)


def test_every_row_is_noised_and_lies_where_the_square_root_has_it(decoder, ids):
    seen = []

    def believe(x_t, t):
        seen.append(float((x_t - decoder.rows(ids)).square().mean()))
        return x_t, sure(ids)

    found = Noised(Gaussian(ROOT), decoder, ids, generator(1)).rows(believe)
    at = {level.index: level for level in found}
    assert set(at) == {*ROWS, None} and seen == sorted(seen) and seen[0] > 0.01
    assert all(at[i].t == pytest.approx((i + 1) / 2000, abs=1e-6) for i in ROWS)
    assert at[None].log_snr == pytest.approx(math.log(2 * math.log(SIZE) / WIDTH), abs=1e-4)


def test_a_warp_is_asked_at_the_same_levels_where_it_has_them(decoder, ids):
    by = {}
    for name, schedule in (("root", ROOT), ("warp", WARP)):
        found = Noised(Gaussian(schedule), decoder, ids, generator(1)).rows(alone(decoder, schedule))
        by[name] = {level.index: level for level in found}
    assert set(by["warp"]) < set(by["root"]) and {None, 1000, 1500, 1900} <= set(by["warp"])
    for index, level in by["warp"].items():
        assert level.log_snr == pytest.approx(by["root"][index].log_snr, abs=0.01)
        assert level.accuracy == pytest.approx(by["root"][index].accuracy, abs=0.01)


@pytest.mark.parametrize(
    ("accuracy", "bayes", "wanted"),
    [(0.7, 0.7, 0), (1, 0.2, 1), (0.6, 0.2, 0.5), (0.1, 0.55, -1), (1, SURE + 1e-3, None)],
)
def test_skill_is_the_share_that_context_adds(accuracy, bayes, wanted):
    assert skill(accuracy, bayes) == (wanted if wanted is None else pytest.approx(wanted))


@pytest.mark.parametrize(
    ("cosine", "magnitude", "late", "early"),
    [
        (0.9, 1.0, "Excellent", "Excellent"),
        (0.8, 1.0, "Good", "Excellent"),
        (0.9, 1.15, "Good", "Excellent"),
        (0.9, 1.39, "Good", "Good"),
        (0.9, 1.5, "Fair", "Fair"),
        (0.55, 1.0, "Fair", "Fair"),
        (0.5, 1.0, "Poor", "Poor"),
    ],
)
def test_bands_are_those_of_the_earlier_system(cosine, magnitude, late, early):
    assert (band(cosine, magnitude), band(cosine, magnitude, "early")) == (late, early)


def test_the_table_says_what_it_leaves_out_and_what_bands_cannot_see(decoder, ids):
    text = "\n".join(table(Noised(Gaussian(WARP), decoder, ids, generator(1)).rows(alone(decoder, WARP))))
    assert "no t as clean as i = 0, 1, 5, 10" in text and "Bands see cosine and magnitude only" in text
    lines = [*table(Noised(Gaussian(ROOT), decoder, ids, generator(1)).rows(alone(decoder, ROOT)), "early", plain)]
    assert len(lines) == 1 + len(ROWS) + 1 + 2 and [line.split()[0] for line in lines[1:3]] == ["0", "1"]
    (star,) = [line for line in lines if line.startswith("SNR*")]
    assert star.split()[-2] == "0.000"
