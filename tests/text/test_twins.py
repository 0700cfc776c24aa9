"""Twins: the same trunk with another idea of what is unknown; what each may see, learns from and says."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from packages.text.vocabulary import MASK
from projects.text import commands
from projects.text.module import SelfConditioning, Warp
from projects.text.network import Denoiser
from projects.text.pictures import Moments
from projects.text.rounding import Rows
from projects.text.twins import Clean, trunk
from shared.processes import Warped
from shared.training.batches import Share
from shared.training.errors import Mistake
from shared.training.pretrained import description, rebuild
from tests.text.test_network import LADDER, PLANNED
from tests.text.trunks import batch_of, padded, text_module

TWINS = ("autoregressive", "masked")
ALL = (*TWINS, "cross_entropy", "diffusion_lm", "elbo")


def loss_of(module, batch, seed=3):
    t = torch.linspace(0.2, 0.8, len(batch.ids))
    return module.objective.loss(module, batch, t, [torch.Generator().manual_seed(seed + n) for n in range(len(t))])


@pytest.fixture(scope="module", params=TWINS)
def module(request):
    return text_module(objective=request.param)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", LADDER)
def test_a_twin_counts_as_the_model_but_for_what_it_does_not_use(name, causal):
    (count, dim, length), (width, depth, heads, hidden, level), parameters = LADDER[name]
    with torch.device("meta"):
        sizes = {"width": width, "depth": depth, "heads": heads, "hidden": hidden, "level": level}
        made = Denoiser(rows=Rows(count, dim), length=length, **sizes, **trunk(causal))
    found = sum(p.numel() for p in made.parameters())
    assert found == parameters - dim * width
    assert abs(found / parameters - 1) < 0.01 and abs(found / PLANNED[name] - 1) < 0.015


@pytest.mark.parametrize("objective", ALL)
def test_every_parameter_learns(objective):
    module = text_module(objective=objective)
    module.randomness = replace(module.randomness, seed=1)
    module.training_step(batch_of(module), 0)["loss"].backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_without_beliefs_nothing_is_built_that_hears_them():
    module = text_module(self_conditioning=SelfConditioning(0.0))
    assert module.network.belief is None and module.believed(8) == 0


def test_the_causal_twin_cannot_see_the_future():
    module = text_module(objective="autoregressive")
    ids, place = batch_of(module).ids, 5
    other = ids.clone()
    other[:, place] = (ids[:, place] + 7) % 60
    one, changed = (module.objective.logits(module, module.network.rows(each)) for each in (ids, other))
    assert torch.equal(one[:, : place + 1], changed[:, : place + 1])
    assert not torch.isclose(one[:, place + 1 :], changed[:, place + 1 :]).all(-1).any()


def test_the_masked_twin_sees_both_sides_and_not_what_is_hidden():
    module = text_module(objective="masked")
    ids = batch_of(module).ids
    hidden = torch.zeros_like(ids, dtype=torch.bool).index_fill(1, torch.tensor(5), True)
    other = torch.where(hidden, 17, ids)
    rows = module.network.rows
    seen = [module.objective.logits(module, rows(torch.where(hidden, MASK, each)))[:, 5] for each in (ids, other)]
    assert torch.equal(*seen)
    for place in (0, -1):
        moved = ids.clone()
        moved[:, place] = (moved[:, place] + 7) % 60
        changed = module.objective.logits(module, rows(torch.where(hidden, MASK, moved)))[:, 5]
        assert not torch.isclose(changed, seen[0]).all(-1).any()


def test_only_hidden_words_carry_loss_and_it_is_weighted_by_one_over_t():
    module = text_module(objective="masked")
    batch, t = batch_of(module), torch.full((8,), 0.25)
    noise = module.process.draw(batch.ids, torch.Generator().manual_seed(0))
    hidden = module.process.corrupt(batch.ids, noise, t) == MASK
    found = module.objective.loss(module, batch, t, torch.Generator().manual_seed(0))
    ce, _ = module.objective.judged(module, batch, hidden)
    torch.testing.assert_close(found.total, ce * hidden.sum(1) / 0.25)
    assert 0.1 < float(hidden.float().mean()) < 0.4


def test_mask_is_never_said():
    module = text_module(objective="masked")
    logits = module.objective.logits(module, module.network.rows(batch_of(module).ids))
    assert (logits[..., MASK] == -torch.inf).all() and logits[..., MASK + 1 :].isfinite().all()


def test_what_stands_in_padding_changes_no_loss_by_a_bit(module):
    batch = batch_of(module)
    one, other = (loss_of(module, padded(batch, fill)) for fill in (0, 17))
    assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("total", "ce", "accuracy"))


@pytest.mark.parametrize("objective", ALL)
def test_every_token_of_a_ragged_batch_weighs_the_same(objective):
    """The loss of the whole is that of its sentences alone, summed and divided by tokens."""
    module = text_module(objective=objective, self_conditioning=SelfConditioning(0.0))
    batch, t = padded(batch_of(module)), torch.linspace(0.2, 0.8, 8)

    def total(rows):
        rng = [torch.Generator().manual_seed(n) for n in rows]
        return module.objective.loss(module, batch.of(torch.tensor(rows)), t[rows], rng).total

    alone = torch.cat([total([n]) for n in range(8)])
    torch.testing.assert_close(total(list(range(8))), alone, rtol=1e-4, atol=1e-4)
    assert len(set(batch.counted.sum(1).tolist())) > 2


@pytest.mark.parametrize("objective", ALL)
def test_accumulation_and_ranks_change_no_loss(objective):
    module = text_module(objective=objective, self_conditioning=SelfConditioning(0.0))
    module.randomness = replace(module.randomness, mode="sample")

    def step(share: Share) -> float:
        return float(module.training_step(module.data.sentences("train", share), 0)["loss"].detach())

    whole = Share.of(range(8))
    cut = [replace(whole, micro=n, index=whole.index[rows], position=whole.position[rows], row=rows, shards=4)
           for n, rows in enumerate(whole.row.reshape(4, -1))]  # fmt: skip
    assert sum(map(step, cut)) / 4 == pytest.approx(step(whole), rel=1e-5)


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_bf16_leaves_rows_logits_and_losses_in_float32(module):
    with torch.autocast("cpu", torch.bfloat16):
        losses = loss_of(module, batch_of(module))
        logits = module.objective.logits(module, module.network.rows(batch_of(module).ids))
    assert losses.total.dtype == losses.ce.dtype == logits.dtype == torch.float32
    assert losses.total.isfinite().all()


def test_a_walk_says_every_word_and_keeps_what_it_said(module):
    seen = []

    def through(walk):
        def step(*given):
            x = walk.step(*given)
            seen.append(walk.speaker.words()[0].clone())
            return x

        return walk._replace(step=step)

    drawn = module.walked([0, 1, 2], replace(module.sampling, steps=8), through)
    assert not (drawn.ids == MASK).any() and torch.equal(seen[-1], drawn.ids)
    for before, after in pairwise(seen):
        assert torch.equal(before[before != MASK], after[before != MASK])
    assert len(seen) == (module.network.length if module.objective.exact else 8)


def test_order_of_the_samples_is_nothing_to_them(module):
    seeds, flat = [4, 17, 2, 9], replace(module.sampling, logit_temperature=10.0)
    drawn, again = module.walked(seeds, flat), module.walked(seeds[::-1], flat)
    assert torch.equal(drawn.ids, again.ids.flip(0)) and len({tuple(row) for row in drawn.ids.tolist()}) == 4
    assert torch.allclose(drawn.score, again.score.flip(0), atol=1e-4)


def test_a_score_is_that_of_the_moment_at_which_a_word_was_said(module):
    found, rows = torch.full((3, module.network.length), torch.nan), module.network.rows

    def through(walk):
        def step(x, belief, t, s):
            after = walk.step(x, belief, t, s)
            said = (rows.nearest(x) == MASK) & (rows.nearest(after) != MASK)
            likely = belief.log_softmax(-1).gather(-1, rows.nearest(after).unsqueeze(-1)).squeeze(-1)
            found[said] = likely[said]
            return after

        return walk._replace(step=step)

    drawn = module.walked([0, 1, 2], replace(module.sampling, steps=8), through)
    torch.testing.assert_close(drawn.score, found)


def test_scores_of_the_causal_twin_are_its_likelihood():
    module = text_module(objective="autoregressive")
    drawn = module.walked([0, 1, 2])
    batch = replace(batch_of(module, 3), ids=drawn.ids)
    nats = module.objective.nats(module, batch, torch.Generator(), 1)
    torch.testing.assert_close(-drawn.score.sum(1), nats, rtol=1e-4, atol=1e-3)


def test_the_causal_twin_draws_words_as_it_believes_them():
    """First words of many walks, against the belief with nothing before them."""
    module = text_module(objective="autoregressive")
    rows, count = module.network.rows, 4000
    walk = module.objective.walk(module, module.sampling, count, torch.Generator().manual_seed(0))
    with torch.no_grad():
        t, s = torch.ones(count), torch.full((count,), 1 - 1 / module.network.length)
        x = walk.step(walk.x, walk.denoise(walk.x, t), t, s)
        belief = torch.softmax(module.objective.logits(module, walk.x)[0, 0], -1)
    found = torch.bincount(rows.nearest(x)[:, 0], minlength=60) / count
    assert (rows.nearest(x)[:, 1:] == MASK).all()
    assert (found - belief).abs().max() < 5 * 0.5 / count**0.5


def test_a_walk_can_be_looked_at(module, tmp_path):
    moments = Moments(module)
    module.walked([0, 1], replace(module.sampling, steps=4), moments.through)
    text = "\n".join(moments.table(4))
    assert "[MASK] [MASK]" in text and "SNR off" not in text
    module.snapshots = type("", (), {"count": 2})
    assert {path.name for path in module.draw(tmp_path, 0)} == {"samples.txt", "trajectory.md"}


def test_it_is_told_how_a_twin_walks():
    kinds = {name: text_module(objective=name).told() for name in ALL}
    assert [kinds[name].kind for name in ALL] == ["autoregressive", "masked", "ddpm", "ddpm", "ddpm"]
    assert [kinds[name].steps for name in ALL] == [16, 64, 64, 64, 64]


@pytest.mark.parametrize("options", [*({"objective": name} for name in ALL), {"warp": Warp(follow=0.1)}], ids=str)
def test_it_can_be_made_again_from_what_its_file_says(options):
    """As an export is: network and process, without the module."""
    module = text_module(**options)
    said = {name: getattr(module, name) and description(getattr(module, name)) for name in ("network", "process")}
    network, process = (rebuild(json.loads(json.dumps(said[name]))) for name in ("network", "process"))
    network.load_state_dict(module.network.state_dict())
    x, t = module.network.rows(batch_of(module).ids), torch.full((8,), 0.5)
    assert torch.equal(network(x, t), module.network(x, t)) and type(process) is type(module.process)


@pytest.mark.parametrize("objective", TWINS)
def test_what_asks_for_noise_is_refused_of_a_twin(objective):
    module = text_module(objective=objective)
    with pytest.raises(Mistake, match=f"denoise --text asks for noise on rows, and the objective here is {objective}"):
        commands.begun(module, commands.DenoiseOptions(text="a boy sleeps ."), Moments(module))


# --- a warp that follows


class Trainer:
    max_steps, world_size, global_rank = 20, 1, 0


def following(after):
    module = text_module(warp=Warp(follow=after), self_conditioning=SelfConditioning(0.0))
    module._trainer = Trainer()
    return module


def updates(module, numbers, cut=1):
    for update in numbers:
        whole = replace(Share.of(range(8)), update=update, shards=cut)
        for n, rows in enumerate(whole.row.reshape(cut, -1)):
            part = replace(whole, micro=n, index=whole.index[rows], position=whole.position[rows], row=rows)
            module.training_step(module.data.sentences("train", part), 0)


def test_a_warp_follows_the_loss_after_a_share_of_the_updates_and_not_before():
    module = following(0.1)
    warp, before = module.network.warp, module.network.warp.second.loss.clone()
    updates(module, [0])
    assert not warp.handed and not torch.equal(warp.second.loss, before)
    updates(module, [1])
    assert warp.handed and module.state_dict()["network.warp.handed"]


def test_a_warp_is_frozen_in_evaluation():
    module = following(0.0)
    before = {name: value.clone() for name, value in module.network.warp.state_dict().items()}
    loss_of(module, batch_of(module))
    module.validation_step(batch_of(module), 0)
    assert all(torch.equal(value, before[name]) for name, value in module.network.warp.state_dict().items())


def test_micro_batches_move_a_warp_as_their_update_in_one():
    found = []
    for cut in (1, 2):
        module = following(0.0)
        module.randomness = replace(module.randomness, mode="sample")
        updates(module, range(3), cut)
        found.append(module.network.warp.second.edges)
    torch.testing.assert_close(*found)


def test_a_warp_hears_losses_and_gives_them_no_gradient():
    module = following(0.1)
    updates(module, [0])
    assert not any(part.requires_grad for pair in module.heard for part in pair)


def test_the_same_run_without_following_has_a_gumbel():
    module = text_module()
    assert type(module.network.warp).__name__ == "Gumbel" and isinstance(module.process.schedule, Warped)
    assert isinstance(text_module(objective="masked").network.schedule, Clean)
