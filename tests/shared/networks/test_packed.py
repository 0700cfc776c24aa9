"""Laws of packed attention: the back-ends agree with the plain definition, and segments never meet."""

import numpy as np
import pytest
import torch

from shared.networks import Attention, Block, Layout, Rotary, backends, pack, pad, unpack, unpad
from shared.networks.packed import MAX_GROUPS, _groups, choose

OWN = np.array([3, 0, 9, 1, 14, 6, 2, 0])
PREFIX = np.array([2, 5, 0, 7, 3, 4, 0, 0])
REACH = [(False, None), (True, None), (False, 4), (True, 4)]
WIDTH = 32


def attention(**options):
    torch.manual_seed(0)
    layer = Attention(WIDTH, 4, **options)
    for weight in layer.parameters():  # large enough that scores differ and a wrong mask shows
        torch.nn.init.normal_(weight, std=0.4)
    return layer


def stream(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(int(lengths.sum()), WIDTH, generator=generator, requires_grad=True)
    return x, Rotary((4, 4)).rotation(torch.randint(0, 9, (len(x), 2), generator=generator))


def by_definition(layer, x, layout, rotation, prefix):
    """Segment by segment through dense attention: what all back-ends must give."""
    out, own, before = [], 0, 0
    for length, ahead in zip(layout.lengths, layout.prefix):
        rows = slice(own, own + length)
        part = None if prefix is None else tuple(p[None, before : before + ahead] for p in prefix)
        turned = tuple(r[rows] for r in rotation)
        out.append(layer(x[None, rows], rotation=turned, prefix=part)[0])
        own, before = own + length, before + ahead
    return torch.cat(out)


def run(layer, backend, with_prefix):
    x, rotation = stream(OWN, 1)
    p, p_rotation = stream(PREFIX, 2)
    prefix = layer.keys_values(p, p_rotation) if with_prefix else None
    layout = Layout.of(
        OWN, prefix_lengths=PREFIX if with_prefix else None, backend="mask" if backend == "definition" else backend
    )
    if backend == "definition":
        out = by_definition(layer, x, layout, rotation, prefix)
    else:
        out = layer(x, layout, rotation, prefix=prefix)
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    leaves = [x, *layer.parameters(), *([p] if with_prefix else [])]
    return out, torch.autograd.grad((out * probe).sum(), leaves)


@pytest.mark.parametrize("with_prefix", [False, True])
@pytest.mark.parametrize(("causal", "window"), REACH)
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("backend", ["mask", "padded"])
def test_backends_are_the_definition(backend, kv_heads, causal, window, with_prefix):
    layer = attention(kv_heads=kv_heads, causal=causal, window=window)
    out, gradients = run(layer, backend, with_prefix)
    expected, expected_gradients = run(layer, "definition", with_prefix)
    assert expected.std() > 0.3
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    for got, wanted in zip(gradients, expected_gradients):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("causal", "window"), REACH)
def test_flex_is_the_mask_backend(causal, window):
    layer = attention(causal=causal, window=window)
    (x, rotation), (p, p_rotation) = stream(OWN, 1), stream(PREFIX, 2)
    with torch.no_grad():
        prefix = layer.keys_values(p, p_rotation)
        outs = [layer(x, Layout.of(OWN, None, PREFIX, backend=b), rotation, prefix=prefix) for b in ("flex", "mask")]
    torch.testing.assert_close(*outs, atol=1e-5, rtol=1e-5)


def test_packed_is_dense_with_mask():
    layer = attention()
    x, _ = stream(OWN, 1)
    layout = Layout.of(OWN)
    dense, mask = pad(x, layout)
    torch.testing.assert_close(unpad(layer(dense, mask=mask), layout), layer(x, layout), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("backend", "value"), [("padded", 7.0), ("padded", float("nan")), ("mask", 7.0)])
def test_a_changed_segment_leaves_the_others_bitwise_alone(backend, value):
    layer, (x, _), (p, _) = attention(), stream(OWN, 1), stream(PREFIX, 2)
    layout = Layout.of(OWN, prefix_lengths=PREFIX, backend=backend)

    def forward(x, p):
        return layer(x, layout, prefix=layer.keys_values(p)).detach()

    changed, changed_prefix = x.detach().clone(), p.detach().clone()
    changed[12:13] = value  # segment 3
    changed_prefix[7:14] = value
    before, after = forward(x, p), forward(changed, changed_prefix)
    others = layout.segment != 3
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[~others], after[~others])


def test_permuting_segments_permutes_outputs():
    layer, (x, _) = attention(), stream(OWN, 1)
    order = torch.randperm(len(OWN), generator=torch.Generator().manual_seed(0)).tolist()
    parts = unpack(x, Layout.of(OWN))
    expected = unpack(layer(x, Layout.of(OWN)), Layout.of(OWN))
    shuffled, layout = pack([parts[i] for i in order])
    for got, i in zip(unpack(layer(shuffled, layout), layout), order):
        torch.testing.assert_close(got, expected[i], atol=1e-6, rtol=1e-6)


def test_cached_prefix_is_one_stream_with_a_sealed_prefix():
    """Two streams through two blocks = one dense sequence whose prefix rows see the prefix only."""
    torch.manual_seed(0)
    blocks = [Block(WIDTH, 4, hidden=48) for _ in range(2)]
    (x, _), (p, _) = stream(OWN, 1), stream(PREFIX, 2)
    prefix_layout, layout = Layout.of(PREFIX), Layout.of(OWN, prefix_lengths=PREFIX)
    memory, context, body = [], p, x
    for block in blocks:
        context = block(context, layout=prefix_layout, keep=memory)
    for block, kept in zip(blocks, memory):
        body = block(body, layout=layout, prefix=kept)

    for segment, (sealed, own) in enumerate(zip(unpack(p, prefix_layout), unpack(x, layout))):
        rows = sealed
        for block in blocks:
            rows, past = block(rows[None])[0] if len(rows) else rows, rows
            own = one_step(block, past, own)
        torch.testing.assert_close(unpack(body, layout)[segment], own, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(unpack(context, prefix_layout)[segment], rows, atol=1e-5, rtol=1e-5)


def one_step(block, past, own):
    """One block over [past, own] densely, rows of `own` only."""
    if not len(own):
        return own
    return block(torch.cat((past, own))[None])[0, len(past) :]


def test_the_prefix_never_sees_the_body():
    torch.manual_seed(0)
    block = Block(WIDTH, 4, hidden=48)
    (x, _), (p, _) = stream(OWN, 1), stream(PREFIX, 2)
    memory = []
    context = block(p, layout=Layout.of(PREFIX), keep=memory)
    body = block(x, layout=Layout.of(OWN, prefix_lengths=PREFIX), prefix=memory[0])
    assert torch.autograd.grad(context.sum(), x, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(body.sum(), p)[0].abs().sum() > 0  # the gradient does flow the other way


def test_the_tail_gets_zeros_and_changes_nothing():
    layer, (x, _) = attention(), stream(OWN, 1)
    longer = torch.cat((x, torch.full((5, WIDTH), 3.0)))
    layout = Layout.of(OWN, tokens=len(longer))
    out = layer(longer, layout)
    assert torch.equal(out[len(x) :], torch.zeros(5, WIDTH))
    assert torch.equal(out[: len(x)], layer(x, Layout.of(OWN)))
    assert layout.segment[len(x) :].tolist() == [-1] * 5


def test_nothing_asks_nothing_answers():
    layer = attention()
    for lengths in ([], [0, 0]):
        layout = Layout.of(np.array(lengths, int), prefix_lengths=np.array([3] * len(lengths), int))
        keys_values = layer.keys_values(torch.randn(3 * len(lengths), WIDTH))
        assert layer(torch.zeros(0, WIDTH), layout, prefix=keys_values).shape == (0, WIDTH)


def test_pack_and_unpack_are_inverse():
    parts = [torch.randn(n, 3) for n in (2, 0, 4)]
    tokens, layout = pack(parts)
    assert all(torch.equal(a, b) for a, b in zip(unpack(tokens, layout), parts))
    assert layout.segment.tolist() == [0, 0, 2, 2, 2, 2] and layout.position.tolist() == [0, 1, 0, 1, 2, 3]
    assert layout.offsets.tolist() == [0, 2, 2, 6] and layout.max_length == 4 and layout.segment.dtype == torch.int32
    dense, mask = pad(tokens, layout)
    assert dense.shape == (3, 4, 3) and mask.sum() == 6 and torch.equal(unpad(dense, layout), tokens)


def test_spread_repeats_each_segments_row():
    layout = Layout.of([2, 0, 3])
    assert layout.spread(torch.tensor([5.0, 6.0, 7.0])).tolist() == [5, 5, 7, 7, 7]


def test_groups_cover_every_asking_segment_once_at_least_cost():
    generator = np.random.default_rng(0)
    own = generator.integers(0, 60, 20)
    total = own + generator.integers(0, 60, 20)
    groups = _groups(own, total)
    assert 1 < len(groups) <= MAX_GROUPS
    assert sorted(np.concatenate(groups)) == sorted(np.flatnonzero(own))
    whole = own.max() * total.max() * (own > 0).sum()
    assert sum(own[g].max() * total[g].max() * len(g) for g in groups) < 0.65 * whole


def test_layouts_speak_in_sentences():
    layer = attention()
    with pytest.raises(ValueError, match="3 prefix_lengths for 2 lengths"):
        Layout.of([1, 2], prefix_lengths=[1, 2, 3])
    with pytest.raises(ValueError, match="non-negative host integers"):
        Layout.of([1.0, 2.0])
    with pytest.raises(ValueError, match="lengths sum to 3, more than tokens=2"):
        Layout.of([1, 2], tokens=2)
    with pytest.raises(ValueError, match=r"wants x \[3, D\]"):
        layer(torch.zeros(4, WIDTH), Layout.of([1, 2]))
    with pytest.raises(ValueError, match="no prefix, its layout was made for a prefix"):
        layer(torch.zeros(3, WIDTH), Layout.of([1, 2], prefix_lengths=[1, 1]))
    with pytest.raises(ValueError, match="the prefix has 1 keys, prefix_lengths sum to 2"):
        keys_values = layer.keys_values(torch.zeros(1, WIDTH))
        layer(torch.zeros(3, WIDTH), Layout.of([1, 2], prefix_lengths=[1, 1]), prefix=keys_values)
    with pytest.raises(ValueError, match="a packed x needs its layout"):
        layer(torch.zeros(3, WIDTH))


def test_the_environment_forces_a_backend(monkeypatch):
    cpu = torch.device("cpu")
    assert choose("auto", cpu) == "padded"
    monkeypatch.setenv("ATTENTION", "mask")
    assert choose("auto", cpu) == choose("padded", cpu) == "mask"
    monkeypatch.setenv("ATTENTION", "loop")
    with pytest.raises(ValueError, match="'loop' is unknown"):
        Layout.of([1])


def varlen_of_now(q, k, v, q_offsets, k_offsets, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False):
    """What varlen_attn promises since torch 2.12: the last query stands beside the last key."""
    assert enable_gqa == (q.shape[1] != k.shape[1])
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    out = torch.empty_like(q)
    before, after = (side if side >= 0 else 10**6 for side in window_size)
    for i, j, m, n in zip(q_offsets, q_offsets[1:], k_offsets, k_offsets[1:]):
        assert j - i <= max_q and n - m <= max_k
        distance = torch.arange(n - m - (j - i), n - m)[:, None] - torch.arange(n - m)
        seen = (distance <= before) & (-distance <= after)
        parts = (x.transpose(0, 1) for x in (q[i:j], k[m:n], v[m:n]))
        out[i:j] = torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=seen).transpose(0, 1)
    return out


def varlen_of_before(q, k, v, q_offsets, k_offsets, max_q, max_k, is_causal=False):
    """The older spelling: no window, no grouped heads."""
    return varlen_of_now(q, k, v, q_offsets, k_offsets, max_q, max_k, window_size=(-1, 0 if is_causal else -1))


@pytest.fixture(params=[varlen_of_now, varlen_of_before])
def varlen(request, monkeypatch):
    """The CUDA kernel replaced by its promise, under both of its signatures."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", request.param)
    backends._varlen.cache_clear()
    yield request.param
    backends._varlen.cache_clear()


@pytest.mark.parametrize(("causal", "window"), REACH)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_varlen_is_called_so_that_it_is_the_mask_backend(varlen, kv_heads, causal, window):
    layer = attention(kv_heads=kv_heads, causal=causal, window=window).bfloat16()
    x, p = (stream(lengths, 1)[0].bfloat16() for lengths in (OWN, PREFIX))
    prefix, layouts = layer.keys_values(p), [Layout.of(OWN, None, PREFIX, backend=b) for b in ("varlen", "mask")]
    if window and varlen is varlen_of_before:
        with pytest.raises(ValueError, match="has no window"):
            layer(x, layouts[0], prefix=prefix)
        return
    got, wanted = (layer(x, layout, prefix=prefix).float() for layout in layouts)
    assert (got - wanted).norm() / wanted.norm() < 2e-2


def test_varlen_refuses_what_it_cannot_do():
    layer = attention()
    with pytest.raises(ValueError, match="varlen takes fp16 or bf16"):
        layer(torch.zeros(3, WIDTH), Layout.of([1, 2], backend="varlen"))
    with pytest.raises(ValueError, match="varlen has no dropout"):
        attention(dropout=0.1)(torch.zeros(3, WIDTH), Layout.of([1, 2], backend="varlen"))
