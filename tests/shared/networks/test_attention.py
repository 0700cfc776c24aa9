"""Laws of dense attention, cross-attention and rotary positions."""

import pytest
import torch
from torch.nn import functional as F

from shared.networks import Attention, CrossAttention, Rotary
from shared.networks.rotary import rotate

WIDTH = 32


def large(layer):
    torch.manual_seed(0)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return layer


def test_attention_is_its_formula():
    layer = large(Attention(WIDTH, 4))
    x = torch.randn(2, 5, WIDTH)
    q, k, v = (linear(x).view(2, 5, 4, 8).transpose(1, 2) for linear in (layer.q, layer.k, layer.v))
    q, k = F.rms_norm(q, (8,), layer.q_norm.weight, 1e-6), F.rms_norm(k, (8,), layer.k_norm.weight, 1e-6)
    weights = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
    torch.testing.assert_close(layer(x), layer.o((weights @ v).transpose(1, 2).flatten(2)), atol=1e-5, rtol=1e-5)


def test_masked_keys_do_not_count():
    layer = large(Attention(WIDTH, 4))
    x = torch.randn(2, 5, WIDTH)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    torch.testing.assert_close(layer(x, mask=mask)[1, :2], layer(x[1:, :2])[0], atol=1e-5, rtol=1e-5)


def test_a_row_without_keys_gets_zeros_and_finite_gradients():
    layer = large(Attention(WIDTH, 4))
    x = torch.randn(2, 5, WIDTH, requires_grad=True)
    mask = torch.tensor([[True] * 5, [False] * 5])
    out = layer(x, mask=mask)
    out.sum().backward()
    assert torch.equal(out[1], torch.zeros(5, WIDTH)) and x.grad.isfinite().all()


@pytest.mark.parametrize("window", [None, 3])
def test_causal_attention_sees_the_past_within_its_window(window):
    layer = large(Attention(WIDTH, 4, causal=True, window=window))
    x = torch.randn(1, 8, WIDTH, requires_grad=True)
    reach = torch.autograd.grad(layer(x)[0, 5].sum(), x)[0][0].abs().sum(-1) > 0
    first = 0 if window is None else 5 - window + 1
    assert reach.tolist() == [first <= i <= 5 for i in range(8)]


def test_a_dense_prefix_comes_before_the_own_tokens():
    layer = large(Attention(WIDTH, 4, causal=True, window=4))
    x = torch.randn(2, 3, 9, WIDTH)  # two leading axes
    head = layer.keys_values(x[..., :5, :])
    torch.testing.assert_close(layer(x[..., 5:, :], prefix=head), layer(x)[..., 5:, :], atol=1e-5, rtol=1e-5)


def test_keep_receives_the_keys_and_values():
    layer, kept = large(Attention(WIDTH, 4, kv_heads=2)), []
    x = torch.randn(2, 5, WIDTH)
    layer(x, keep=kept)
    assert [part.shape for part in kept[0]] == [(2, 5, 2, 8)] * 2
    assert all(torch.equal(a, b) for a, b in zip(kept[0], layer.keys_values(x)))


def test_dropout_acts_in_training_only():
    layer = large(Attention(WIDTH, 4, dropout=0.5))
    x = torch.randn(2, 5, WIDTH)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_cross_attention_reads_only_what_the_mask_leaves():
    layer = large(CrossAttention(WIDTH, 12, 4))
    x, context = torch.randn(3, 5, WIDTH), torch.randn(3, 7, 12)
    mask = torch.arange(7) < torch.tensor([[7], [4], [0]])
    out = layer(x, context, mask)
    torch.testing.assert_close(out[1], layer(x[1:2], context[1:2, :4])[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(out[2], torch.zeros(5, WIDTH))


def test_matrices_are_separate_linears_for_adapters():
    for layer in (Attention(WIDTH, 4, kv_heads=2), CrossAttention(WIDTH, 12, 4)):
        assert all(type(getattr(layer, name)) is torch.nn.Linear for name in "qkvo")
        assert all(getattr(layer, name).bias is None for name in "qkvo")


def test_impossible_heads_are_refused():
    with pytest.raises(ValueError, match="width 32 must divide into 5 heads"):
        Attention(WIDTH, 5)
    with pytest.raises(ValueError, match="key-value heads"):
        Attention(WIDTH, 4, kv_heads=3)


@pytest.mark.parametrize("axes", [(8,), (4, 4), (2, 4, 2)])
def test_rotated_scores_depend_on_differences_only(axes):
    rotary = Rotary(axes, theta=50.0)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 3, 8, generator=generator)
    at_q, at_k, shift = torch.randint(0, 30, (3, 1, len(axes)), generator=generator)

    def score(move):
        return (rotate(q, rotary.rotation(at_q + move)) * rotate(k, rotary.rotation(at_k + move))).sum(-1)

    torch.testing.assert_close(score(0), score(shift), atol=1e-5, rtol=1e-4)
    elsewhere = (rotate(q, rotary.rotation(at_q + 1)) * rotate(k, rotary.rotation(at_k))).sum(-1)
    assert (score(0) - elsewhere).abs().max() > 1e-2


def test_axes_are_alike():
    """Swapping the coordinates swaps the halves of the angles: a transposed picture is the same picture."""
    rotary = Rotary((4, 4))
    there, back = (rotary.rotation(torch.tensor([[2.0, 5.0]])), rotary.rotation(torch.tensor([[5.0, 2.0]])))
    for a, b in zip(there, back):
        assert torch.equal(a, b.roll(2, -1)) and not torch.equal(a, b)


def test_position_zero_is_the_identity_bitwise():
    x = torch.randn(5, 4, 8)
    assert torch.equal(rotate(x, Rotary((4, 4)).rotation(torch.zeros(5, 2, dtype=torch.long))), x)


def test_rotations_keep_norms_and_take_fractions():
    x = torch.randn(5, 4, 8)
    turned = rotate(x, Rotary((8,)).rotation(torch.rand(5, 1)))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert not torch.allclose(turned, x, atol=1e-2)


def test_rotary_speaks_in_sentences():
    with pytest.raises(ValueError, match="even channel counts"):
        Rotary((3, 5))
    with pytest.raises(ValueError, match="position has 1 coordinates"):
        Rotary((4, 4)).rotation(torch.zeros(5, 1))
    with pytest.raises(ValueError, match="turns 8 channels, the heads have 16"):
        rotate(torch.zeros(5, 2, 16), Rotary((4, 4)).rotation(torch.zeros(5, 2)))
