"""Every wrong way of the earlier system is seen to fail where the line's own way does not."""

from functools import partial

import pytest
import torch
import yaml

from packages.text.fluency import SpecialShare
from packages.text.vocabulary import EOS, PAD, UNK
from projects.text.compat import Compat, Placed
from projects.text.diagnostics import alone
from projects.text.encoder import Encoder
from projects.text.module import Embedding
from projects.text.resolution import BayesDecoder, scales
from projects.text.rounding import Rows
from projects.text.sampling import Sampling
from shared.processes import Gaussian, VariancePreserving, square_root
from shared.sampling import renoise, rounded, sample, uniform_grid
from shared.training.errors import Mistake
from shared.training.pretrained import description, rebuild
from tests.lines import ROOT
from tests.text.trunks import batch_of, text_module


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def placed(**sizes) -> Placed:
    """A table in training mode whose LayerNorm does something."""
    torch.manual_seed(0)
    rows = Placed(**{"count": 40, "width": 16, "length": 7, "norm": "free", **sizes})
    with torch.no_grad():
        rows.scale.weight.uniform_(0.5, 1.5)
        rows.scale.bias.normal_(std=0.1)
    return rows


class Says:
    """In place of the network: it believes this x0 at every time."""

    training = False

    def __init__(self, network, x0):
        self.network, self.x0 = network, x0

    def __call__(self, x, t, belief, *valid):
        return self.x0

    def believe(self, out, *temperature):
        return out

    def logits(self, out):
        return out @ self.network.rows.rows.T


def said(module, x0, **options):
    """The walk of a module whose network believes x0, and its belief at the first time."""
    walk = module.objective.walk(module, Sampling(**options), len(x0), generator(5))
    walk.speaker.network = Says(module.network, x0)
    return walk, walk.denoise(walk.x, torch.ones(len(x0)))


def test_without_a_wrong_way_the_table_the_walk_and_the_text_are_the_lines_own():
    module, compat = text_module(), Compat()
    assert type(module.network.rows) is Rows and compat.facts() == {} and compat.clamp(module.network.rows) is None
    assert compat.joined(str.upper) == str.upper
    walk, belief = said(module, module.network.rows(batch_of(module, 3).ids), clamp="nearest", clamp_start=0.0)
    assert type(walk.step.func.__self__) is Gaussian
    assert torch.equal(belief, module.network.rows(batch_of(module, 3).ids))


# --- stride


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
@pytest.mark.parametrize(("stride", "kept"), [("exact", 1.0), ("adjacent", 0.1)])
def test_an_adjacent_stride_leaves_a_perfect_belief_in_the_noise(kind, stride, kept):
    """How much of x0 is in x_s, as a share of what the schedule says."""
    module = text_module(compat=Compat(stride=stride))
    x0 = module.network.rows(batch_of(module, 64).ids)
    walk, _ = said(module, x0, kind=kind, steps=16)
    signal = []

    def watch(t, x, belief):
        signal.append(float((x * x0).mean() / x0.square().mean()))

    sample(walk.denoise, walk.step, walk.x, walk.grid, watch)
    share = signal[7] / float(module.process.schedule.alpha(walk.grid[8]))
    assert share == pytest.approx(1, abs=0.05) if stride == "exact" else share < kept


@pytest.mark.parametrize("kind", ["heun", "multistep", "recorrupt", "switched"])
def test_a_stride_is_refused_where_no_posterior_is_stepped_by(kind):
    with pytest.raises(Mistake, match=f"sampling.kind {kind}, which does not step by a posterior; take ddpm or ddim"):
        text_module(compat=Compat(stride="adjacent")).walked([0], Sampling(kind=kind, steps=2))


# --- clamp


def test_a_clamp_in_raw_rows_injects_signal_of_another_size():
    x0s = {}
    for space in ("x0", "raw_rows"):
        module = text_module(compat=Compat(clamp_space=space))
        assert float(module.network.rows.rms) == 1
        x0 = module.network.rows(batch_of(module, 4).ids)
        _, x0s[space] = said(module, x0, clamp="nearest", clamp_metric="cosine", clamp_start=0.0)
        assert torch.equal(x0s["x0"], x0)
    rms = float(x0s["raw_rows"].detach().square().mean().sqrt())
    assert 0.2 < rms < 0.4  # the stored weights start at .3
    assert torch.equal(module.network.rows.nearest(x0s["raw_rows"], "cosine"), batch_of(module, 4).ids)


def test_a_dot_clamp_is_moved_by_the_lengths_of_rows_and_a_cosine_clamp_is_not():
    longer = torch.rand(60, 1, generator=generator(1)).mul(3).exp()
    beliefs = torch.randn(8, 16, 16, generator=generator(2))

    def words(compat: Compat, stretch: torch.Tensor) -> torch.Tensor:
        module = text_module(embedding=Embedding(norm="free"), compat=compat)
        with torch.no_grad():
            module.network.rows.weight.mul_(stretch)
        _, moved = said(module, beliefs, clamp="nearest", clamp_metric="cosine", clamp_start=0.0)
        return module.network.rows.nearest(moved, "cosine")

    right, wrong = Compat(), Compat(clamp_metric="dot")
    assert torch.equal(words(right, longer), words(right, torch.ones(())))
    assert (words(wrong, longer) != words(wrong, torch.ones(()))).float().mean() > 0.5


def test_a_memoryless_walk_with_a_hard_clamp_prefers_the_commonest_word_and_the_posterior_draws_the_truth():
    """No context and every belief exact: words should come in their shares. In 4 steps; in 64 the two are alike."""
    torch.manual_seed(0)
    rows, shares = Rows(20, 16), torch.softmax(torch.linspace(1.5, -1.5, 20), 0)
    process, decoder = Gaussian(VariancePreserving(square_root()), eta=1.0), BayesDecoder(rows, shares)

    def exact(x, t):
        return torch.softmax(decoder.logits(x, process.schedule.alpha(t), process.schedule.sigma(t)), -1) @ rows.rows

    def commonest(denoise, step):
        x = process.prior(torch.empty(64, 16, 16), generator(1))
        ids = rows.nearest(sample(denoise, partial(step, rng=generator(2)), x, uniform_grid(4)))
        return float((ids == 0).float().mean())

    assert commonest(exact, process.step) == pytest.approx(float(shares[0]), abs=0.05)
    assert commonest(rounded(exact, rows.rows), renoise(process)) > 3 * float(shares[0])


# --- x0


def test_a_placed_x0_differs_between_two_looks_in_training_and_rows_do_not():
    ids = torch.arange(28).view(4, 7)
    wrong, right = placed(), Rows(40, 16)
    assert not torch.equal(wrong(ids), wrong(ids)) and torch.equal(right(ids), right(ids))
    assert torch.equal(wrong.eval()(ids), wrong(ids))
    calm = placed(dropout=0.0)
    assert torch.equal(calm(ids), calm(ids))


def test_a_placed_x0_says_where_a_token_stands():
    rows = placed().eval()
    x0 = rows(torch.full((1, 7), 3))
    assert (x0[0, 1:] - x0[0, :1]).norm(dim=-1).min() > 1
    assert torch.equal(rows(torch.arange(9))[7:], rows(torch.tensor([7, 8] + [0] * 5))[:2])  # place 7 is place 0


def test_what_x_t_says_of_a_placed_token_is_its_likelihood_there():
    rows, x_t = placed().eval(), torch.randn(3, 7, 16, generator=generator())
    alpha, sigma = scales(torch.tensor([2.0, 0.0, -3.0]))
    x0 = torch.stack([rows(torch.full((7,), token)) for token in range(40)], 1)  # [L, V, e]
    log_p = -(x_t.unsqueeze(2) - alpha.view(3, 1, 1, 1) * x0).square().sum(-1) / (2 * sigma.view(3, 1, 1).square())
    found = rows.bias(x_t, alpha, sigma)
    torch.testing.assert_close(found.log_softmax(-1), log_p.log_softmax(-1), rtol=1e-4, atol=1e-4)
    ids = torch.arange(35).view(5, 7)
    assert torch.equal(rows.nearest(rows(ids)), ids)
    assert float(rows.rms) == pytest.approx(float(x0.detach().square().mean().sqrt()), rel=0.05)


def test_the_copier_of_a_placed_table_believes_in_x0_at_its_place():
    rows, ids = placed().eval(), torch.arange(35).view(5, 7)
    schedule, t = VariancePreserving(square_root()), torch.full((5,), 0.01)
    x0 = rows(ids)
    belief, logits = alone(BayesDecoder(rows, torch.full((40,), 1 / 40)), schedule)(schedule.alpha(t[:1]) * x0, t)
    assert torch.equal(logits.argmax(-1), ids)
    torch.testing.assert_close(belief, x0, rtol=1e-3, atol=1e-3)


def test_a_clamp_of_a_placed_belief_is_an_x0_at_its_place():
    compat = Compat(x0="placed", clamp_metric="dot")
    module = text_module(objective="diffusion_lm", embedding=Embedding(norm="free"), compat=compat)
    rows, beliefs = module.network.rows, torch.randn(3, 16, 16, generator=generator(2))
    _, moved = said(module, beliefs, clamp="nearest", clamp_start=0.0)
    assert torch.equal(moved, rows((beliefs @ rows.rows.T).argmax(-1)))
    _, early = said(module, beliefs, clamp="nearest", clamp_start=0.5)
    assert torch.equal(early, beliefs)


def test_a_placed_x0_is_refused_where_beliefs_are_rows():
    with pytest.raises(Mistake, match="x0 is placed, and this objective believes in plain rows; take diffusion_lm"):
        text_module(compat=Compat(x0="placed")).walked([0])


def test_a_placed_table_is_made_again_from_what_a_file_says():
    module = text_module(compat=Compat(x0="placed", x0_dropout=0.2))
    again = rebuild(description(module.network)).rows
    assert isinstance(again, Placed) and again.dropout.p == 0.2
    again.load_state_dict(module.network.rows.state_dict())
    ids = batch_of(module).ids
    assert torch.equal(again.eval()(ids), module.network.rows(ids))


# --- shapes

SHAPES = {  # e, V, D, depth, heads, L: as the header of earlier_bert.yaml says
    "tiny": (96, 15_000, 128, 1, 2, 32, 1_804_824),
    "small": (128, 22_000, 160, 2, 2, 48, 3_654_416),
    "medium": (128, 30_000, 256, 3, 4, 64, 6_543_920),
    "large": (128, 30_000, 768, 12, 12, 64, 90_410_288),
}


def shaped(recipe: str, rows, **sizes) -> Encoder:
    """The trunk of a recipe on the meta device, other sizes than its own where they are given."""
    own = yaml.safe_load((ROOT / f"configs/text/{recipe}.yaml").read_text())["model"]["network"]
    own = {name: value for name, value in own.items() if name != "kind"} | sizes
    with torch.device("meta"):
        return Encoder(schedule=VariancePreserving(square_root()), rows=rows(), hears=False, prediction="x0", **own)


def count(*parts) -> int:
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


@pytest.mark.parametrize("size", SHAPES)
def test_the_shapes_of_the_earlier_bert_have_the_parameters_that_its_header_says(size):
    e, v, width, depth, heads, length, parameters = SHAPES[size]
    sizes = {"width": width, "depth": depth, "heads": heads, "hidden": 4 * width, "length": length}
    network = shaped("earlier_bert", lambda: Placed(v, e, length), **sizes)
    assert count(network) == parameters
    assert f"{parameters:,}" in (ROOT / "configs/text/earlier_bert.yaml").read_text()


def test_the_earlier_bart_has_the_parameters_of_its_encoder():
    network = shaped("earlier_bart", lambda: Rows(15_000, 384), length=64)
    assert count(network.rows, network.place, network.norm, network.blocks) == 11_478_144
    assert count(network) == 11_478_144 + count(network.level) + 15_000


# --- specials


def test_text_without_specials_hides_unknown_words_and_metrics_see_them_all_the_same():
    wrong, right = text_module(compat=Compat(specials="skipped")), text_module()
    ids = torch.tensor([[10, UNK, UNK, 12, EOS, PAD]])
    words, honest = wrong.words(ids)[0], right.words(ids)[0]
    assert right.spoken(honest).count("[UNK]") == 2
    assert wrong.spoken(words) == f"{words[0]} {words[3]}"
    share = SpecialShare()
    share.update([words[:4]])
    assert words == honest and share.compute().value == 0.5


# --- what is said


def test_a_report_names_the_wrong_ways():
    assert Compat(stride="adjacent", clamp_metric="dot").facts() == {"compat": "stride adjacent, clamp_metric dot"}


def test_a_dropout_of_one_is_refused():
    with pytest.raises(ValueError, match=r"model\.compat\.x0_dropout is 1\.0; it is a probability below 1"):
        Compat(x0_dropout=1.0)
