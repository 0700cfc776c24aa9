"""Likelihood: a bound is one, and a tight one where the belief is exact; what is exact is the chain rule."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from packages.text.vocabulary import BOS, MASK
from projects.text import likelihood
from projects.text.bound import Elbo, Level
from projects.text.data import Sentences
from projects.text.likelihood import Likelihood, NLLBound
from projects.text.masked import Masked
from projects.text.objectives import CrossEntropy
from projects.text.resolution import BayesDecoder, span
from projects.text.rounding import Rows
from projects.text.warping import Affine, Gumbel
from shared.processes import Warped
from shared.training.batches import Share
from tests.text.trunks import batch_of, padded, text_module

SHARES = torch.tensor([0.0] * 5 + [0.6, 0.3, 0.1], dtype=torch.float64)  # of a language of one word
ENTROPY = float(torch.special.entr(SHARES).sum())
COUNT = 10_000


class Bayes(torch.nn.Module):
    """In place of the network: what can be known of one word, exactly. shares: what it takes them for."""

    def __init__(self, warp, shares=SHARES):
        super().__init__()
        torch.manual_seed(0)
        self.rows, self.warp, self.belief, self.length = Rows(8, 4), warp, None, 1
        self.schedule, self.decoder = Warped(warp), BayesDecoder(self.rows, shares)

    def forward(self, x, t, belief=None, valid=None):
        return self.decoder.logits(x, self.schedule.alpha(t), self.schedule.sigma(t))

    def logits(self, out):
        return out

    def believe(self, out):
        return torch.softmax(out, -1) @ self.rows.rows


class Told(Bayes):
    """The same where rows are clean and MASK says nothing."""

    def forward(self, x, t, belief=None, valid=None):
        return self.decoder.log_shares.expand(*x.shape[:2], -1)


def toy(network, objective, process=None):
    """A module as objectives ask for one, and sentences in proportion to the shares."""
    ids = torch.multinomial(SHARES, COUNT, replacement=True, generator=torch.Generator().manual_seed(1)).unsqueeze(1)
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    batch = Sentences(Share.of(range(COUNT)), COUNT, ids, everywhere, ~everywhere, torch.arange(COUNT))
    entropy = -SHARES.log()[ids].mean()  # of these sentences
    module = SimpleNamespace(network=network, process=process, objective=objective, earlier_belief=lambda *_: None)
    return module, batch, float(entropy)


def gumbel():
    return Gumbel(1.0, *span(4.0))


def nats(module, batch, levels):
    return module.objective.nats(module, batch, torch.Generator().manual_seed(2), levels)


def test_the_bound_of_an_exact_belief_is_the_entropy():
    module, batch, entropy = toy(Bayes(gumbel()), CrossEntropy())
    found = nats(module, batch, 64)
    error = float(found.std()) / math.sqrt(COUNT)
    assert -3 * error < float(found.mean()) - entropy < 0.02 and error < 0.01
    assert entropy == pytest.approx(ENTROPY, abs=0.02)


def test_a_walk_that_starts_before_the_signal_is_gone_pays_for_it():
    """By the divergence of x_1 from noise, less what x_1 says of the word: the bound stays one."""
    module, batch, entropy = toy(Bayes(Gumbel(0.0, -1.0, 13.3)), CrossEntropy())
    found = nats(module, batch, 64)
    assert 0.05 < float(found.mean()) - entropy < 2 * math.exp(-1)


@pytest.mark.parametrize("shares", [[0.2, 0.2, 0.6], [0.34, 0.33, 0.33]])
def test_the_bound_of_a_wrong_belief_lies_above_by_what_it_is_wrong(shares):
    """KL of the truth from what is believed: the cross-entropy, as a likelihood has it."""
    wrong = torch.tensor([0.0] * 5 + shares, dtype=torch.float64)
    module, batch, _ = toy(Bayes(gumbel(), wrong), CrossEntropy())
    truth = float(-wrong.log()[batch.ids].mean())
    assert float(nats(module, batch, 64).mean()) == pytest.approx(truth, abs=0.03)


def test_the_bound_does_not_depend_on_the_warp():
    found = [
        float(nats(*toy(Bayes(warp), CrossEntropy())[:2], 32).mean())
        for warp in (gumbel(), Gumbel(-2.0, *span(4.0), 3.0))
    ]
    assert found[0] == pytest.approx(found[1], abs=0.01)


def test_what_elbo_learns_from_is_the_bound():
    module, batch, entropy = toy(Bayes(Affine(math.log(4) - 5, math.log(4) + 6)), Elbo())
    rng, found = torch.Generator().manual_seed(3), []
    for _ in range(8):
        t = (torch.randperm(COUNT, generator=rng) + 0.5) / COUNT
        found.append(module.objective.loss(module, batch, t, rng).total.detach())
    losses = torch.cat(found)
    error = float(losses.std()) / math.sqrt(len(losses))
    assert -3 * error < float(losses.mean()) - entropy < 0.02 + 3 * error and error < 0.02


def test_the_masked_bound_of_an_exact_belief_is_the_entropy():
    network = Told(gumbel())
    module, batch, entropy = toy(network, Masked(), Masked().parts(None, network.rows)[0])
    assert float(nats(module, batch, 2).mean()) == pytest.approx(entropy, abs=1e-5)


class Pair(Bayes):
    """Of two words, 6 or 7 each, which are alike with .9: exactly what one is worth for the other."""

    def forward(self, x, t, belief=None, valid=None):
        other = self.rows.nearest(x).flip(1)
        share = torch.zeros(*other.shape, 8)
        for word in (6, 7):
            share[..., word] = torch.where(other == MASK, 0.5, torch.where(other == word, 0.9, 0.1))
        return share.log()


PAIRS = torch.tensor([[6, 6], [6, 7], [7, 6], [7, 7]])
SURPRISE = -torch.tensor([0.45, 0.05, 0.05, 0.45], dtype=torch.float64).log()


def pairs(count):
    """Every pair `count` times, and the module that knows them."""
    network, ids = Pair(gumbel()), PAIRS.repeat(count, 1)
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    batch = Sentences(Share.of(range(len(ids))), ids.numel(), ids, everywhere, ~everywhere, torch.arange(len(ids)))
    process = Masked().parts(None, network.rows)[0]
    return SimpleNamespace(network=network, process=process, objective=Masked()), batch


def test_the_masked_bound_of_two_words_is_the_chain_rule_in_either_order():
    """As often one word is hidden as two; with two levels, once each."""
    torch.testing.assert_close(nats(*pairs(1), 2), SURPRISE, rtol=1e-5, atol=1e-6)


def test_what_masked_learns_from_is_its_bound():
    """In the mean over t."""
    module, batch = pairs(10_000)
    rng = torch.Generator().manual_seed(5)
    t = (torch.randperm(len(batch.ids), generator=rng) + 0.5) / len(batch.ids)
    losses = module.objective.loss(module, batch, t, rng).total.double()
    error = float(losses.std()) / math.sqrt(len(losses))
    assert abs(float(losses.mean() - SURPRISE.mean())) < 3 * error and error < 0.05


def nats_of(module, batch, levels=8, seed=0):
    rng = [torch.Generator().manual_seed(100 * seed + n) for n in range(len(batch.ids))]
    return module.objective.nats(module, batch, rng, levels)


def test_the_autoregressive_twin_is_the_chain_rule_by_hand():
    module = text_module(objective="autoregressive")
    batch = batch_of(module, 2)
    network, found = module.network, torch.zeros(2, dtype=torch.float64)
    for n, sentence in enumerate(batch.ids.tolist()):
        for place, word in enumerate(sentence):
            before = network.rows(torch.tensor([[BOS, *sentence[:place]]]))
            found[n] -= network(before, torch.zeros(1))[0, -1].log_softmax(-1)[word].detach()
    torch.testing.assert_close(nats_of(module, batch).double(), found, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("objective", ["cross_entropy", "diffusion_lm", "elbo", "masked", "autoregressive"])
def test_what_stands_in_padding_or_is_given_costs_nothing(objective):
    module = text_module(objective=objective)
    batch = batch_of(module)
    one, other = (nats_of(module, padded(batch, fill)) for fill in (0, 17))
    assert torch.equal(one, other) and (one < nats_of(module, batch)).all()
    known = padded(batch)
    known.known[:] = True
    assert not nats_of(module, known).any()


@pytest.mark.parametrize("objective", ["cross_entropy", "masked"])
def test_the_bound_of_a_sentence_is_its_own(objective):
    module = text_module(objective=objective)
    batch = batch_of(module)
    alone = nats_of(module, batch.of(torch.tensor([0])))
    torch.testing.assert_close(nats_of(module, batch)[:1], alone, rtol=1e-4, atol=1e-4)


def test_two_halves_differ_by_the_error_of_the_draws():
    """The error that is told is the spread of what is told, over draws."""
    module, found = text_module(), []
    batch = batch_of(module, 16)
    for seed in range(12):
        module.randomness = type(module.randomness)(seed)
        gathered = NLLBound(Likelihood(sentences=1000, levels=8))
        gathered.add(module, batch)
        found.append({each.name: each for each in gathered.metrics()}["nats_per_token"])
    values = torch.tensor([each.value for each in found])
    told = torch.tensor([(each.high - each.low) / 2 / 1.96 for each in found])
    assert 0.5 < float(values.std() / told.square().mean().sqrt()) < 2


def test_a_gap_is_taken_over_the_truth_of_the_same_sentences():
    module = text_module(objective="autoregressive")
    gathered, batch = NLLBound(Likelihood(), chosen=np.arange(0, 8, 2)), batch_of(module, 8)
    gathered.add(module, batch)
    found = {each.name: each for each in gathered.metrics()}
    chosen = batch.of(torch.arange(0, 8, 2))
    tokens = float((chosen.ids != 0).sum())
    truth = -sum(module.data.grammar.log_prob(module.data.grammar.sample(0, n).words) for n in range(0, 8, 2)) / tokens
    nats = float(nats_of(module, chosen).sum()) / tokens
    assert found["nats_per_token"].value == pytest.approx(nats, rel=1e-6) and found["nats_per_token"].n == 4
    assert found["bound_gap"].value == pytest.approx(nats - truth, rel=1e-4)
    assert found["nats_per_token"].floors["true"] == pytest.approx(truth, rel=1e-6)
    assert found["bits_per_token"].value == pytest.approx(nats / math.log(2)) and found[
        "bound_gap"
    ].low == pytest.approx(nats - truth)


def test_without_a_grammar_nothing_is_said_of_the_truth_and_perplexity_is_per_word(monkeypatch):
    module = text_module(objective="autoregressive")
    monkeypatch.setattr(module, "data", SimpleNamespace(grammar=None, vocabulary=module.data.vocabulary))
    gathered = NLLBound(Likelihood(), tokens_per_word=1.5)
    gathered.add(module, batch_of(text_module(), 4))
    found = {each.name: each for each in gathered.metrics()}
    assert set(found) == {"nats_per_token", "bits_per_token", "perplexity"} and not found["perplexity"].floors
    assert found["perplexity"].value == pytest.approx(math.exp(1.5 * found["nats_per_token"].value))
    assert gathered.said() == [f"{found['nats_per_token'].value:.3f} nats per token"]


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_levels_of_the_bound_are_exact_where_floats_end():
    """At both ends the network is told finite levels, the noise is that of float64."""
    module = text_module()
    clean, noisy = likelihood.ends(module.network)
    radius = module.network.rows.radius**2
    assert clean == pytest.approx(math.log(12 * math.log(60) / radius)) and noisy == pytest.approx(
        math.log(0.002 / radius)
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert nats_of(module, batch_of(module, 2)).isfinite().all()
    assert nats_of(module, batch_of(module, 2)).dtype == torch.float64


def test_the_shape_of_the_warp_hears_the_square_and_its_ends_the_loss():
    t = torch.rand(50, generator=torch.Generator().manual_seed(0))

    def gradients(power, weigh):
        warp = Affine()
        level = Level(warp, t)
        loss = level.slope * torch.sigmoid(level.log_snr)
        level.weighs(loss if weigh else torch.full_like(loss, 0.5))  # a factor of 1
        (loss**power).sum().backward()
        return {name: value.grad for name, value in warp.named_parameters()}

    found, plain, square = gradients(1, True), gradients(1, False), gradients(2, False)
    for name, value in found.items():
        torch.testing.assert_close(value, (plain if name.startswith("gamma") else square)[name], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(plain["heights"], square["heights"])
