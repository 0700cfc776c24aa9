"""The step: what counts in a loss, who hears a belief, what is kept, refused and said."""

import json
from dataclasses import replace

import pytest
import torch

from packages.text.vocabulary import EOS, MASK, PAD
from projects.text.data import Sentences, TextData
from projects.text.module import SelfConditioning, TextDiffusion
from projects.text.pictures import Moments, spoken, summary
from shared.training.batches import Share
from shared.training.ema import EMA, EmaOptions
from shared.training.errors import Mistake
from tests.text.trunks import batch_of, padded, text_module


@pytest.fixture(scope="module")
def module():
    return text_module()


def loss_of(module, batch, seed=3):
    t = torch.linspace(0.2, 0.8, len(batch.ids))
    return module.objective.loss(module, batch, t, [torch.Generator().manual_seed(seed + n) for n in range(len(t))])


def test_what_stands_in_padding_changes_no_loss_by_a_bit(module):
    batch = batch_of(module)
    one, other = (loss_of(module, padded(batch, fill)) for fill in (PAD, 17))
    assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("total", "ce", "accuracy"))


def test_padding_that_is_modelled_is_learnt(module):
    batch = batch_of(module)
    changed = replace(batch, ids=torch.where(batch.ids == PAD, 17, batch.ids))
    assert not torch.allclose(loss_of(module, batch).total, loss_of(module, changed).total)


def test_a_given_token_enters_clean_at_every_level_and_carries_no_loss(module):
    batch = batch_of(module)
    given = replace(batch, known=torch.zeros_like(batch.known).index_fill(1, torch.tensor([0, 3]), True))
    seen = []
    hook = module.network.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0]))
    loss = loss_of(module, given)
    hook.remove()
    rows = module.network.rows(batch.ids)
    assert all(torch.equal(x[:, [0, 3]], rows[: len(x), [0, 3]]) for x in seen)
    assert not torch.isclose(seen[-1][:, 1], rows[:, 1]).all()
    assert torch.allclose(loss.total, loss.ce * (batch.ids.shape[1] - 2))


def test_every_token_of_a_ragged_batch_weighs_the_same(module):
    """The loss of the whole is the mean over tokens, however it is cut into micro-batches and ranks."""
    batch = padded(batch_of(module))
    whole = loss_of(module, batch)
    tokens = batch.counted.sum(1)
    assert torch.allclose(whole.total.sum() / tokens.sum(), (whole.ce * tokens).sum() / tokens.sum())
    assert len(set(tokens.tolist())) > 2
    parts = [whole.total[:3].sum() * 2 / tokens.sum(), whole.total[3:].sum() * 2 / tokens.sum()]
    assert torch.allclose(sum(parts) / 2, whole.total.sum() / tokens.sum())


@pytest.mark.parametrize("shards", [2, 4])
def test_accumulation_and_ranks_change_no_loss(shards):
    """Sums of the parts, as DDP and accumulation take their mean, against the batch in one."""

    module = text_module(self_conditioning=SelfConditioning(0.0))
    module.randomness = replace(module.randomness, mode="sample")

    def step(share: Share) -> float:
        return float(module.training_step(module.data.sentences("train", share), 0)["loss"].detach())

    whole = Share.of(range(8))
    cut = [replace(whole, micro=n, index=whole.index[rows], position=whole.position[rows], row=rows, shards=shards)
           for n, rows in enumerate(whole.row.reshape(shards, -1))]  # fmt: skip
    assert sum(map(step, cut)) / shards == pytest.approx(step(whole), rel=1e-5)


@pytest.mark.parametrize(("probability", "heard"), [(0.0, 0), (0.5, 4), (0.3, 2), (1.0, 8)])
def test_exactly_a_share_of_the_samples_hears_a_belief(probability, heard):
    module = text_module(self_conditioning=SelfConditioning(probability))
    calls = []
    hook = module.network.register_forward_pre_hook(
        lambda net, given: calls.append((len(given[0]), given[2], torch.is_grad_enabled()))
    )
    module.training_step(batch_of(module), 0)
    hook.remove()
    *first, (count, belief, _) = calls
    assert count == 8 and (0 if belief is None else len(belief)) == heard
    assert [(n, b, grad) for n, b, grad in first] == ([(heard, None, False)] if heard else [])


def test_the_first_pass_gives_no_gradient(module):
    belief = module.earlier_belief(*states_of(module), None)
    assert not belief.requires_grad


def states_of(module, count=4):
    return torch.randn(count, module.network.length, module.network.rows.embedding_dim), torch.full((count,), 0.5)


@pytest.mark.parametrize("cut", ["input", "head"])
def test_the_table_learns_from_the_noised_rows_and_from_what_reads_them(cut, module):
    """Either way alone reaches it."""
    module.zero_grad()
    x0 = module.network.rows(batch_of(module).ids)
    x_t = module.process.corrupt(x0, module.process.draw(x0, torch.Generator().manual_seed(0)), torch.full((8,), 0.5))
    if cut == "head":
        module.network.input(x_t).square().mean().backward()
    else:
        module.network(x_t.detach(), torch.full((8,), 0.5)).square().mean().backward()
    assert module.network.rows.weight.grad.abs().sum() > 0


def test_an_average_of_tables_has_rows_of_the_radius_and_gives_the_raw_one_back(module):
    network, before = module.network, module.network.rows.weight.detach().clone()
    ema = EMA(module.named_parameters(), EmaOptions(decay=0.5, warmup="none"))
    with torch.no_grad():
        network.rows.weight.add_(torch.randn(before.shape, generator=torch.Generator().manual_seed(0)))
    raw = network.rows.weight.detach().clone()
    ema.update()
    assert sum("rows" in name for name in ema.shadow) == 1  # head and input share it
    with ema.swapped(module):
        assert torch.allclose(network.rows.weight, (before + raw) / 2)
        assert torch.allclose(network.rows.rows.norm(dim=-1), torch.tensor(network.rows.radius))
    assert torch.equal(network.rows.weight, raw)
    with torch.no_grad():
        network.rows.weight.copy_(before)


def test_the_bias_grows_over_the_first_updates_and_is_kept():
    module = text_module(sizes={"bias_ramp_updates": 4})
    ramps = []
    for update in (0, 1, 3, 9):
        batch = batch_of(module)
        module.training_step(replace(batch, share=replace(batch.share, update=update)), 0)
        ramps.append(float(module.state_dict()["network.ramp"]))
    assert ramps == [0.25, 0.5, 1.0, 1.0]


def test_specials_are_seen_by_every_metric(module):
    words = module.words(torch.tensor([[10, MASK, 12, EOS, PAD], [10, EOS, PAD, 11, PAD]]))
    assert words[0][1] == "[MASK]" and spoken(words[0]).endswith("[EOS]")
    assert spoken(words[1]).count("[PAD]") == 1
    said = summary(words, module.data.grammar)
    assert said.startswith("0 of 2 parse, 2 are distinct")


def test_a_checkpoint_of_another_vocabulary_is_refused(module):
    stored = {}
    module.on_save_checkpoint(stored)
    with pytest.raises(
        Mistake, match=r"CKPT was trained on vocabulary \w{12} of 60 ids, the data has \w{12} of 300; give"
    ):
        TextDiffusion().adopt(TextData(level="small"), stored)
    TextDiffusion().adopt(TextData(level="micro"), stored)


def test_times_of_training_come_near_every_level_of_every_grid(module):
    """The walk asks only levels that training draws, at any number of steps."""
    drawn = (
        torch.cat([module.randomness.times(replace(Share.of(range(96)), update=update)) for update in range(20)])
        .sort()
        .values
    )
    for steps in (1, 8, 64, 256):
        for kind in ("warp", "log_snr"):
            options = replace(module.sampling, steps=steps, grid=kind)
            asked = module.objective.walk(module, options, 1, torch.Generator()).grid[:-1]
            assert (asked[:, None] - drawn).abs().min(1).values.max() < 0.01


def test_the_noise_of_a_walk_is_the_noise_of_its_schedule(module):
    """A perfect belief keeps the standard deviation that the table of `denoise` expects."""
    moments = Moments(module)
    ids = batch_of(module, 64).ids

    class Oracle:
        training, logits, believe = False, module.network.logits, module.network.believe

        def __call__(self, x, t, belief):
            return 1e4 * torch.nn.functional.one_hot(ids, 60).float()

    def through(walk):
        walk.speaker.network = Oracle()
        return moments.through(walk)

    module.walked(list(range(64)), replace(module.sampling, steps=16), through)
    assert len(moments.seen) == 16
    assert all(abs(each.std / each.wanted - 1) < 0.05 for each in moments.seen)
    assert not any("SNR off" in line for line in moments.table())
    assert any("SNR off by +" in line for line in moments.seen[0]._replace(std=1.2).lines())


def test_samples_are_text_ids_and_scores_and_one_line_each(module, tmp_path):
    module.sampling = replace(module.sampling, steps=2, count=2)
    drawn = module.sample([0, 1])
    (file,) = module.show(drawn, tmp_path)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["seed"] for line in lines] == [0, 1] and lines[0]["steps"] == 2
    assert lines[1]["ids"] == drawn[1].data["ids"].tolist() and lines[1]["text"] == drawn[1].text


def test_a_batch_counts_flops_of_its_beliefs_apart(module):
    batch = batch_of(module)
    assert isinstance(batch, Sentences) and 0 < module.extra_flops(batch) < module.flops(batch)
    assert module.extra_flops(batch) == pytest.approx(module.flops(batch) / 2, rel=0.05)
