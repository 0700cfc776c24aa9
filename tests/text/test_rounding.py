"""One table for target, clamp, head and sampler; its norms; the bias that it gives."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from projects.text.resolution import scales, span
from projects.text.rounding import Rows
from projects.text.warping import Gumbel
from shared.networks import initialise
from shared.objectives import cross_entropy
from shared.processes import Gaussian, Warped
from shared.sampling import closeness, rounded
from shared.training.optim import Recipe, groups

NORMS = ("sphere", "layernorm", "free")


@pytest.fixture(autouse=True)
def seeded():
    """Tables begin at random."""
    torch.manual_seed(0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(rows: Rows) -> Rows:
    """As updates leave them: elsewhere, and stored at different lengths."""
    with torch.no_grad():
        rows.weight.add_(torch.randn(rows.weight.shape, generator=generator(3)) * 0.5)
        rows.weight.mul_(torch.rand(len(rows.weight), 1, generator=generator(4)).mul(2).exp())
    return rows


@pytest.mark.parametrize("norm", NORMS)
def test_tokens_come_back_from_their_rows(norm):
    rows = moved(Rows(300, 32, norm))
    ids = torch.arange(300).view(20, 15)
    assert torch.equal(rows(ids), rows.rows[ids]) and torch.equal(rows.nearest(rows(ids)), ids)
    clamped = rounded(lambda x, t: x, rows.rows)(rows(ids), torch.zeros(20))
    assert torch.equal(clamped, rows(ids))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("radius", [None, 3.0])
def test_the_rms_of_x0_is_the_one_stated(norm, radius):
    rows = moved(Rows(3000, 32, norm, radius))
    found = float(rows.rows.detach().square().mean().sqrt())
    assert float(rows.rms) == pytest.approx(found, rel=1e-5)
    assert float(rows.radius_squared) == pytest.approx(32 * found**2, rel=1e-5)
    if norm != "free":
        assert float(rows.radius_squared) == (radius**2 if radius else pytest.approx(32))


@pytest.mark.parametrize("norm", ["sphere", "layernorm"])
def test_no_update_changes_a_norm(norm):
    rows = Rows(300, 32, norm)
    before = rows.rows.norm(dim=-1)
    torch.testing.assert_close(moved(rows).rows.norm(dim=-1), before, rtol=0, atol=1e-5)
    torch.testing.assert_close(before, torch.full((300,), math.sqrt(32)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("radius", [None, 2.0])
def test_the_spread_of_x_t_is_the_one_that_the_network_divides_by(radius):
    """sqrt(alpha^2 rms^2 + sigma^2), within 1 % at 20 levels."""
    rows = Rows(300, 32, radius=radius)
    process = Gaussian(Warped(Gumbel(2.0, *span(float(rows.radius_squared)))))
    t = torch.linspace(0, 1, 20)
    x0 = rows(torch.randint(300, (20, 4000), generator=generator()))
    x_t = process.corrupt(x0, process.draw(x0, generator(1)), t)
    wanted = (process.schedule.alpha(t).square() * rows.rms**2 + process.schedule.sigma(t).square()).sqrt()
    torch.testing.assert_close(x_t.square().mean((1, 2)).sqrt(), wanted, rtol=0.01, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_the_bias_is_the_likelihood_of_x_t(norm):
    """ln N(x_t; alpha E_v, sigma^2), up to one number per position."""
    rows = moved(Rows(50, 8, norm))
    alpha, sigma = scales(torch.tensor([2.0, 0.0, -3.0]))
    x_t = torch.randn(3, 6, 8, generator=generator())
    centre = alpha[:, None, None, None] * rows.rows  # [B, 1, V, e]
    log_p = -(x_t.unsqueeze(2) - centre).square().sum(-1) / (2 * sigma[:, None, None].square())
    found = rows.bias(x_t, alpha, sigma)
    torch.testing.assert_close(torch.log_softmax(found, -1), torch.log_softmax(log_p, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("log_snr", [-13.3, 0.0, 13.3])
def test_rows_and_bias_stay_float32_and_finite_under_autocast(log_snr):
    rows = Rows(300, 32)
    ids = torch.arange(300)
    alpha, sigma = scales(torch.tensor(log_snr).expand(300))
    x_t = alpha[:, None] * rows(ids) + sigma[:, None] * torch.randn(300, 32, generator=generator())
    exact = rows.bias(x_t, alpha, sigma)
    with torch.autocast("cpu", torch.bfloat16):
        found = rows.bias(x_t, alpha, sigma)
        assert rows(ids).dtype == found.dtype == torch.float32
        assert torch.equal(found, exact) and found.isfinite().all()
        assert torch.equal(rows.nearest(rows(ids)), ids)
    assert log_snr < 13 or torch.equal(found.argmax(-1), ids)


def test_a_row_is_the_same_twice_in_train_mode():
    rows = Rows(30, 8).train()
    ids = torch.arange(30)
    assert torch.equal(rows(ids), rows(ids))


def test_the_cosine_clamp_does_not_see_the_length_of_rows_and_the_dot_product_does():
    table = torch.randn(200, 16, generator=generator())
    longer = table * torch.rand(200, 1, generator=generator(1)).mul(3).exp()
    x = torch.randn(500, 16, generator=generator(2))

    def clamp(rows: Tensor, metric: str) -> Tensor:
        return closeness(x, rows, metric).argmax(-1)

    assert torch.equal(clamp(longer, "cosine"), clamp(table, "cosine"))
    assert (clamp(longer, "dot") != clamp(table, "dot")).float().mean() > 0.5


def by_name(logits: Tensor, rows: Rows, ids: Tensor) -> Tensor:
    return cross_entropy(logits, ids).mean()


def by_place(logits: Tensor, rows: Rows, ids: Tensor) -> Tensor:
    """The target moves with the belief."""
    return (torch.softmax(logits, -1) @ rows.rows - rows(ids)).square().mean()


def spread_kept(loss_of: Callable[[Tensor, Rows, Tensor], Tensor], detach: bool = False) -> float:
    """Mean distance between rows after 200 updates on random tokens, read by the bias alone, relative to the start."""
    torch.manual_seed(0)
    rows = Rows(60, 16)
    optimiser = torch.optim.Adam(rows.parameters(), lr=1e-2)
    before = float(torch.pdist(rows.rows).mean().detach())
    rng = generator()
    for _ in range(200):
        ids = torch.randint(60, (64, 1), generator=rng)
        x0 = rows(ids).detach() if detach else rows(ids)
        alpha, sigma = scales(torch.randn(64, generator=rng) - 1)
        x_t = alpha[:, None, None] * x0 + sigma[:, None, None] * torch.randn(x0.shape, generator=rng)
        loss = loss_of(rows.bias(x_t, alpha, sigma), rows, ids)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert rows.rows.norm(dim=-1).sub(4).abs().max() < 1e-5
    return float(torch.pdist(rows.rows).mean().detach()) / before


def test_rows_do_not_collapse_while_tokens_are_named():
    assert spread_kept(by_name) > 1.005 and spread_kept(by_name, detach=True) > 0.999


def test_the_probe_sees_rows_collapse_under_a_target_that_moves_with_them():
    assert spread_kept(by_place) < 0.99


@pytest.mark.parametrize("norm", NORMS)
def test_the_walk_that_starts_a_network_leaves_the_radius(norm):
    """`initialise` sets every embedding to .3."""
    rows = Rows(2000, 32, norm, radius=2.0)
    initialise(torch.nn.ModuleList([rows]), depth=1)
    assert float(rows.radius_squared) == pytest.approx(4, rel=0.02)


def test_rows_are_an_embedding_to_the_optimiser():
    """Not decayed and not orthogonalised, wherever they stand."""
    rows = Rows(30, 8)
    network = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([rows, torch.nn.Linear(8, 8)])})
    found = groups(network, Recipe(kind="muon", weight_decay=0.1))
    (group,) = [group for group in found if any(p is rows.weight for p in group["params"])]
    assert group["weight_decay"] == 0 and "adamw" in group["name"]


def test_rows_start_from_others_and_say_what_was_left_out():
    wide = torch.randn(300, 6, generator=generator()) @ torch.randn(6, 40, generator=generator(1))
    rows, few = Rows(300, 6, "free"), Rows(300, 3, "free")
    assert rows.start_from(wide) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(torch.pdist(rows.rows), torch.pdist(wide), rtol=1e-3, atol=1e-3)
    kept = few.start_from(wide)
    spread = wide.var(0).sum()
    assert 0.5 < kept < 0.95 and float(few.rows.detach().var(0).sum() / spread) == pytest.approx(kept, rel=1e-3)
    assert rows.start_from(wide[:, :6]) == 1 and torch.equal(rows.rows, wide[:, :6])


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="choose sphere, layernorm or free"):
        Rows(3, 2, "cube")  # type: ignore[arg-type]
