"""Ways back: each by its definition, all by one process; a sample is its own; training and walk see one network."""

from dataclasses import replace

import pytest
import torch

from projects.text import sampling
from projects.text.sampling import Sampling
from shared.processes import Gaussian
from shared.sampling import sample
from tests.text.trunks import batch_of, text_module

KINDS = ("ddpm", "ddim", "multistep", "heun", "recorrupt", "switched")


@pytest.fixture(scope="module")
def module():
    return text_module()


def generators(count, seed=0):
    return [torch.Generator().manual_seed(seed + n) for n in range(count)]


def walk_of(module, count=3, **options) -> sampling.Walk:
    return module.objective.walk(module, Sampling(**{"steps": 4, **options}), count, generators(count))


class Oracle:
    """In place of the network: it knows x0."""

    def __init__(self, network, ids):
        self.network, self.ids, self.training = network, ids, False
        self.rows, self.length = network.rows, network.length
        self.logits, self.believe = network.logits, network.believe

    def __call__(self, x, t, belief=None, valid=None):
        return 1e4 * torch.nn.functional.one_hot(self.ids, self.rows.num_embeddings).float()


@pytest.mark.parametrize("steps", [1, 2, 7, 64])
@pytest.mark.parametrize("grid", ["warp", "log_snr"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_belief_walks_to_its_sentence_by_every_way(module, kind, grid, steps):
    ids = batch_of(module, 3).ids
    walk = sampling.walk(
        Oracle(module.network, ids), module.process, Sampling(steps=steps, kind=kind, grid=grid), 3, generators(3), 0.0
    )
    x = sample(walk.denoise, walk.step, walk.x, walk.grid)
    assert torch.allclose(x, module.network.rows(ids), atol=1e-4) and torch.equal(walk.speaker.words()[0], ids)


@pytest.mark.parametrize("grid", ["warp", "log_snr"])
def test_the_grid_falls_from_one_to_zero(module, grid):
    times = walk_of(module, grid=grid, steps=9).grid
    assert len(times) == 10 and times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()


def test_a_walk_starts_at_the_prior_of_the_process(module):
    x = walk_of(module, 400).x
    sigma = float(module.process.schedule.sigma(torch.ones(())))
    assert x.shape == (400, module.network.length, module.network.rows.embedding_dim)
    assert float(x.std()) == pytest.approx(sigma, rel=0.01) and abs(float(x.mean())) < 0.02
    assert torch.equal(walk_of(module, initial_noise_scale=2.0).x, 2 * walk_of(module).x)


def test_order_of_the_samples_is_nothing_to_them(module):
    seeds = [4, 17, 2, 9]
    drawn, again = module.walked(seeds), module.walked(seeds[::-1])
    assert torch.equal(drawn.ids, again.ids.flip(0))
    assert torch.allclose(drawn.score, again.score.flip(0), atol=1e-5)


def test_a_step_of_the_walk_sees_the_logits_of_training(module):
    """Same weights, same path, same belief heard: what the loss was taken of is what the walk believes."""
    batch, t = batch_of(module, 4), torch.full((4,), 0.6)
    x0 = module.network.rows(batch.ids)
    noise = module.process.draw(x0, torch.Generator().manual_seed(3))
    seen = []
    hook = module.network.register_forward_hook(lambda net, given, out: seen.append(out))
    loss = module.objective.loss(module, batch, t, torch.Generator().manual_seed(3))
    hook.remove()
    walk = walk_of(module, 4)
    walk.speaker.network = module.network
    x_t = module.process.corrupt(x0, noise, t)
    walk.denoise(x_t, t)
    assert torch.equal(walk.speaker.logits[2:], seen[-1][2:])  # the first half heard a belief
    walk.denoise(x_t, t * 0.999999)  # a memory of the first belief; the same level but for the clock
    assert torch.allclose(walk.speaker.logits[:2], seen[-1][:2], atol=1e-2)
    assert loss.ce.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_walk_carries_the_belief_of_the_step_before(module, kind):
    heard = []
    hook = module.network.register_forward_pre_hook(lambda net, given: heard.append(given[2].abs().sum() > 0))
    module.walked([0, 1], Sampling(steps=4, kind=kind))
    hook.remove()
    looks = 2 if kind == "heun" else 1  # each with a memory of its own; no second look at the end
    assert heard[:looks] == [False] * looks and all(heard[looks:]) and len(heard) == 4 * looks - (looks - 1)


def test_ddim_is_the_process_without_noise_and_ddpm_with_it(module):
    walk, flat = walk_of(module, kind="ddpm"), walk_of(module, kind="ddim")
    t, s, belief = torch.full((3,), 0.8), torch.full((3,), 0.5), module.network.rows(batch_of(module, 3).ids)
    mean, std = module.process.moments(walk.x, belief, t, s)
    assert torch.equal(flat.step(walk.x, belief, t, s), Gaussian(module.process.schedule).step(walk.x, belief, t, s))
    drawn = torch.stack([(walk.step(walk.x, belief, t, s) - mean) / std for _ in range(50)]).detach()
    assert abs(float(drawn.mean())) < 0.02 and float(drawn.std()) == pytest.approx(1, abs=0.02)


def test_recorrupt_forgets_where_it_was(module):
    walk = walk_of(module, kind="recorrupt")
    t, s, belief = torch.full((3,), 0.8), torch.full((3,), 0.5), module.network.rows(batch_of(module, 3).ids)
    one, other = (walk_of(module, kind="recorrupt").step(x, belief, t, s) for x in (walk.x, walk.x + 5))
    assert torch.equal(one, other)


def test_switched_is_ddpm_in_noise_and_forgets_where_words_are_decided(module):
    belief = module.network.rows(batch_of(module, 3).ids)
    for far, forgets in ((-0.5, False), (0.5, True)):
        t = module.network.warp.quantile(torch.full((3,), module.log_snr_star + far))
        walks = [walk_of(module, kind="switched") for _ in range(2)]
        one, other = (walk.step(walk.x + moved, belief, t, t / 2) for walk, moved in zip(walks, (0, 5)))
        assert torch.equal(one, other) == forgets


def test_score_temperature_one_changes_nothing_and_below_it_moves_away_from_the_noise(module):
    x, t = walk_of(module).x, torch.full((3,), 0.5)
    belief = walk_of(module).denoise(x, t)
    assert torch.equal(walk_of(module, score_temperature=1.0).denoise(x, t), belief)
    sharp = walk_of(module, score_temperature=0.9).denoise(x, t)
    eps, sharper = (module.process.eps_from_x0(x, each, t) for each in (belief, sharp))
    assert torch.allclose(sharper, eps / 0.9, atol=1e-4)


def test_logit_temperature_flattens_what_is_believed(module):
    x, t = walk_of(module).x, torch.full((3,), 0.5)
    walks = [walk_of(module, logit_temperature=temperature) for temperature in (1.0, 3.0)]
    for walk in walks:
        walk.denoise(x, t)
    assert torch.allclose(walks[1].speaker.logits, walks[0].speaker.logits / 3)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_a_clamp_is_the_nearest_row_and_acts_over_the_rest_of_the_walk(module, metric):
    walk = walk_of(module, clamp="nearest", clamp_metric=metric, clamp_start=0.7)
    early, late = (walk.denoise(walk.x, torch.full((3,), t)) for t in (0.31, 0.29))
    rows = module.network.rows
    assert torch.equal(late, rows.rows[rows.nearest(late, metric)])
    assert not torch.allclose(early, rows.rows[rows.nearest(early, metric)], atol=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, r"sampling\.steps is 0; it must be at least 1"),
        ({"logit_temperature": 0.0}, r"sampling\.logit_temperature is 0\.0; it must be above 0"),
        ({"clamp_start": 1.5}, r"sampling\.clamp_start is 1\.5; it is a share of the walk"),
    ],
)
def test_options_that_mean_nothing_are_refused_in_a_sentence(options, said):
    with pytest.raises(ValueError, match=said):
        Sampling(**options)


def test_last_words_are_the_likeliest_of_the_last_logits_and_their_probability(module):
    drawn = module.walked([3], replace(module.sampling, steps=4))
    assert drawn.ids.shape == drawn.score.shape == (1, module.network.length)
    assert (drawn.score <= 0).all() and drawn.ids.max() < module.network.rows.num_embeddings
