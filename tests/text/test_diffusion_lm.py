"""Diffusion-LM: what its three terms are taken of, which weights each of them moves, and that the table stays apart."""

from dataclasses import replace

import pytest
import torch

from projects.text.diffusion_lm import Rounding
from projects.text.health import distances
from projects.text.module import Embedding, SelfConditioning, Warp
from shared.objectives import cross_entropy, squared_error
from tests.text.trunks import batch_of, padded, text_module

FIRST, SECOND = 0.5 / 2000, 1.5 / 2000  # t of i = 0 and 1
ENCODER = {"kind": "encoder", "width": 32, "depth": 2, "heads": 2, "hidden": 64, "level": 16, "level_hidden": 24}
TRUNKS = {"denoiser": {}, "encoder": ENCODER}


def dlm(norm="free", sizes=None, asleep=False, hears=0.5, **rounding):
    return text_module(
        objective="diffusion_lm", warp=Warp("square_root"), embedding=Embedding(norm=norm), asleep=asleep, sizes=sizes,
        self_conditioning=SelfConditioning(hears), rounding=Rounding(**rounding),
    )  # fmt: skip


def loss_of(module, batch, t, seed=3):
    rng = [torch.Generator().manual_seed(seed + n) for n in range(len(batch.ids))]
    return module.objective.loss(module, batch, torch.full((len(batch.ids),), t), rng)


class Deaf(torch.nn.Module):
    """In place of the trunk: it says one thing, whatever it is given."""

    belief, prediction = None, "x0"

    def __init__(self, network):
        super().__init__()
        self.inner, self.seen = network, []
        self.out = torch.nn.Parameter(torch.randn(8, network.length, network.rows.embedding_dim))

    def forward(self, x, t, belief=None, valid=None):
        self.seen.append((x, t))
        return self.out[: len(x)]

    def __getattr__(self, name):
        return super().__getattr__(name) if name in ("inner", "out") else getattr(self.inner, name)


@pytest.fixture
def deaf():
    """A module whose trunk is `Deaf`."""
    module = dlm()
    module.network = Deaf(module.network)
    return module


def start_of(module, ids, seed=3):
    """x_start of a batch, drawn as the loss draws it first."""
    x0 = module.network.rows(ids)
    noise = module.process.draw(x0, [torch.Generator().manual_seed(seed + n) for n in range(len(ids))])
    return x0 + module.process.schedule.sigma(torch.tensor(1 / 2000)) * noise


def test_the_cleanest_index_is_taken_to_the_rows_and_every_other_to_the_noised_rows(deaf):
    batch, out = batch_of(deaf), deaf.network.out
    x0, x_start = deaf.network.rows(batch.ids), start_of(deaf, batch.ids)
    first, second = (loss_of(deaf, batch, t).terms["mse"] for t in (FIRST, SECOND))
    torch.testing.assert_close(first, squared_error(out, x0))
    torch.testing.assert_close(second, squared_error(out, x_start))
    assert not torch.allclose(first, second, rtol=1e-4)


def test_times_are_those_of_a_table_of_steps_that_begins_at_one(deaf):
    for t, index in ((0.0, 0), (FIRST, 0), (0.5, 1000), (1 - 1e-7, 1999)):
        loss = loss_of(deaf, batch_of(deaf), t)
        assert torch.equal(loss.t, torch.full((8,), (index + 1) / 2000)) and torch.equal(
            deaf.network.seen[-1][1], loss.t
        )


def test_the_terms_are_of_the_noised_rows_and_their_plain_sum_is_the_loss(deaf):
    batch = batch_of(deaf)
    loss, x_start = loss_of(deaf, batch, 0.5), start_of(deaf, batch.ids)
    logits = x_start @ deaf.network.rows.rows.T + deaf.network.common
    torch.testing.assert_close(loss.terms["rounding"], cross_entropy(logits, batch.ids))
    left = float(deaf.process.schedule.alpha(torch.tensor(1 - 1 / 2000)))
    torch.testing.assert_close(loss.terms["prior"], (left * x_start).square().mean((1, 2)))
    assert 0 < left**2 < 1e-3
    torch.testing.assert_close(loss.total, sum(loss.terms.values()) * batch.ids.shape[1])


def test_x_t_is_noised_from_the_noised_rows(deaf):
    batch = batch_of(deaf)
    loss_of(deaf, batch, FIRST)
    x_t, alpha = deaf.network.seen[-1][0], deaf.process.schedule.alpha(torch.tensor(1 / 2000))
    sigma = deaf.process.schedule.sigma(torch.tensor(1 / 2000))
    off = (x_t - alpha * deaf.network.rows(batch.ids)).detach().std()
    assert float(off) == pytest.approx(float(((alpha * sigma) ** 2 + sigma**2).sqrt()), rel=0.05)


def gradients(module, term, t=0.5):
    """Sums of |gradient| of the table and of the trunk, of one term."""
    module.zero_grad()
    loss_of(module, batch_of(module), t).terms[term].sum().backward()
    own = ("rows.weight", "common")
    trunk = [p.grad for name, p in module.network.named_parameters() if not name.endswith(own) and p.grad is not None]
    rows = module.network.rows.weight.grad
    return 0.0 if rows is None else float(rows.abs().sum()), sum(float(grad.abs().sum()) for grad in trunk)


@pytest.mark.parametrize("kind", TRUNKS)
def test_rounding_moves_the_table_and_the_trunk_not_at_all(kind):
    rows, trunk = gradients(dlm(sizes=TRUNKS[kind]), "rounding")
    assert rows > 0 and trunk == 0


@pytest.mark.parametrize("kind", TRUNKS)
def test_rounding_of_the_belief_moves_both(kind):
    rows, trunk = gradients(dlm(sizes=TRUNKS[kind], input="x0_hat"), "rounding")
    assert rows > 0 and trunk > 0


def test_each_term_moves_the_table():
    assert all(gradients(dlm(), term)[0] > 0 for term in ("mse", "rounding", "prior"))
    assert gradients(dlm(), "mse")[1] > 0 and gradients(dlm(), "prior")[1] == 0


def test_a_detached_target_is_moved_by_nothing(deaf):
    """Where the belief hangs on nothing, the squared error reaches the table by its target alone."""
    assert gradients(deaf, "mse", 0.5)[0] > 0 and gradients(deaf, "mse", FIRST)[0] > 0
    deaf.rounding = Rounding(detach_target=True)
    assert gradients(deaf, "mse", 0.5)[0] == 0 and gradients(deaf, "mse", FIRST)[0] == 0
    assert gradients(dlm(detach_target=True), "mse")[0] > 0, "what the trunk is given still moves it"


def taught(module, terms=("total",)):
    """After 200 updates on random tokens with some terms of the loss: the mean distance of two rows over that before,
    and how badly noised rows are read."""
    rows, rng = module.network.rows, torch.Generator().manual_seed(0)
    before = float(distances(rows.rows).mean())
    optimiser = torch.optim.AdamW(module.network.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(200):
        batch = replace(batch_of(module), ids=torch.randint(60, (8, module.network.length), generator=rng))
        losses = module.objective.loss(module, batch, torch.rand(8, generator=rng), rng)
        optimiser.zero_grad()
        sum(({"total": losses.total} | losses.terms)[name].mean() for name in terms).backward()
        optimiser.step()
    noised = cross_entropy(start_of(module, batch.ids) @ rows.rows.T + module.network.common, batch.ids)
    return float(distances(rows.rows).mean()) / before, float(noised.detach().mean())


@pytest.mark.parametrize("norm", ["free", "sphere"])
def test_cross_entropy_on_random_tokens_brings_no_rows_together(norm):
    module = text_module(embedding=Embedding(norm=norm), self_conditioning=SelfConditioning(0.0))
    assert taught(module)[0] > 0.99
    if norm == "sphere":
        off = module.network.rows.rows.norm(dim=-1) / module.network.rows.radius - 1
        assert off.abs().max() < 1e-5


@pytest.mark.parametrize("norm", ["free", "sphere"])
def test_rounding_holds_apart_the_rows_that_the_squared_error_draws_together(norm):
    """On random tokens the table shrinks, but no further than it can be read; without rounding it collapses."""
    held, read = taught(dlm(norm, hears=0.0), ("mse", "rounding", "prior"))
    fallen, unread = taught(dlm(norm, hears=0.0), ("mse", "prior"))
    assert read < 0.1 and unread > 1 and held > 0.6 > fallen


@pytest.mark.parametrize("input", ["x_start", "x0_hat"])
def test_what_stands_in_padding_changes_no_term_by_a_bit(input):
    module = dlm(input=input)
    one, other = (loss_of(module, padded(batch_of(module), fill), 0.5) for fill in (0, 17))
    assert all(torch.equal(one.terms[name], other.terms[name]) for name in one.terms)
    assert torch.equal(one.total, other.total) and torch.equal(one.accuracy, other.accuracy)
    tokens = padded(batch_of(module)).counted.sum(1)
    torch.testing.assert_close(one.total, sum(one.terms.values()) * tokens)


def test_a_given_token_enters_clean_and_carries_no_loss(deaf):
    batch = batch_of(deaf)
    given = replace(batch, known=torch.zeros_like(batch.known).index_fill(1, torch.tensor([0, 3]), True))
    loss = loss_of(deaf, given, 0.5)
    rows = deaf.network.rows(batch.ids)
    assert torch.equal(deaf.network.seen[-1][0][:, [0, 3]], rows[:, [0, 3]])
    torch.testing.assert_close(loss.total, sum(loss.terms.values()) * (batch.ids.shape[1] - 2))


@pytest.mark.parametrize("kind", TRUNKS)
def test_it_is_trained_measured_walked_and_bounded_like_any_other(kind):
    module = dlm(sizes=TRUNKS[kind])
    batch = batch_of(module, 4)
    step = module.training_step(batch, 0)
    assert step["loss"].isfinite() and {"mse", "rounding", "prior", "ce"} <= step["logs"].keys()
    assert {"loss", "accuracy", "parse"} <= module.validation_step(batch, 0)["logs"].keys()
    nats = module.objective.nats(module, batch, torch.Generator().manual_seed(0), 4)
    assert nats.isfinite().all() and (nats > 0).all()
    for way in ("ddpm", "ddim", "multistep", "heun", "recorrupt", "switched"):
        drawn = module.walked([0, 1], replace(module.sampling, kind=way, steps=4, clamp="nearest", clamp_start=0.0))
        assert drawn.score.isfinite().all()


def test_a_walk_believes_x0_and_says_what_the_rows_read_there():
    module = dlm()
    x, t = torch.randn(2, module.network.length, module.network.rows.embedding_dim), torch.full((2,), 0.5)
    walk = module.objective.walk(module, replace(module.sampling, logit_temperature=2.0), 2, torch.Generator())
    belief = walk.denoise(x, t)
    assert torch.equal(belief, module.network(x, t, torch.zeros_like(x)))
    torch.testing.assert_close(walk.speaker.logits * 2, module.network.logits(belief))


def test_fewer_than_two_times_are_refused():
    with pytest.raises(ValueError, match=r"model\.rounding\.times is 1"):
        Rounding(times=1)
