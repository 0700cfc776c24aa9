"""Laws of the cache: steps give what one pass gives, below, at and above the window; a peek leaves no trace."""

import pytest
import torch

from shared.networks import Attention, KVCache, SpaceTime

WINDOW, MOMENTS, PLACES = 4, 11, 3


def network(window=WINDOW, **options):
    torch.manual_seed(0)
    net = SpaceTime(32, 4, depth=6, time_every=2, window=window, kv_heads=2, **options)
    for weight in net.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.2)
    return net.eval()


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[1] * MOMENTS, [2] + [1] * 9, [4, 1, 4, 2], [9, 1, 1], [11]])
def test_prefill_and_steps_are_the_full_pass(chunks):
    net = network(modulated=True, gate_init=1.0).double()
    x, condition = torch.randn(2, MOMENTS, PLACES, 32).double(), torch.randn(2, MOMENTS, 32).double()
    full, cache = net(x, condition), net.cache(2, PLACES, dtype=torch.float64)
    parts = [net(a, c, cache) for a, c in zip(x.split(chunks, 1), condition.split(chunks, 1))]
    assert cache.length == MOMENTS and cache.capacity == WINDOW - 1
    assert (full - x).std() > 0.1
    torch.testing.assert_close(torch.cat(parts, 1), full, atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_bf16_steps_stay_near_the_full_pass():
    net = network().bfloat16()
    net.rotary.settle()
    x = torch.randn(2, MOMENTS, PLACES, 32).bfloat16()
    cache = net.cache(2, PLACES, dtype=torch.bfloat16)
    steps = torch.cat([net(part, cache=cache) for part in x.split(1, 1)], 1)
    assert (steps - net(x)).norm() / steps.norm() < 2e-2


@pytest.mark.parametrize("window", [2, WINDOW])
def test_time_layers_reach_as_far_as_their_windows(window):
    """Three time layers see 3 (window - 1) moments back, and never forward."""
    net = network(window)
    x = torch.randn(1, MOMENTS, PLACES, 32, requires_grad=True)
    reach = torch.autograd.grad(net(x)[0, 9].sum(), x)[0][0].abs().sum((1, 2)) > 0
    assert reach.tolist() == [max(0, 9 - 3 * (window - 1)) <= i <= 9 for i in range(MOMENTS)]


@torch.no_grad()
def test_a_peek_leaves_the_cache_bytes_alone():
    net = network()
    x, cache = torch.randn(2, MOMENTS, PLACES, 32), net.cache(2, PLACES)
    net(x[:, :6], cache=cache)
    before, length = cache._store.clone(), cache.length
    with cache.peek():
        first = net(x[:, 6:7], cache=cache)
        second = net(x[:, 6:7], cache=cache)
    assert torch.equal(cache._store, before) and cache.length == length and torch.equal(first, second)
    assert torch.equal(net(x[:, 6:7], cache=cache), first) and cache.length == length + 1


@torch.no_grad()
def test_the_ring_is_windowed_attention():
    """An attention without a window, over a ring of C positions, is an attention of window C + 1."""
    torch.manual_seed(0)
    plain, banded = Attention(32, 4, causal=True), Attention(32, 4, causal=True, window=6)
    banded.load_state_dict(plain.state_dict())
    x, cache, out = torch.randn(2, 17, 32), KVCache(1, 2, 4, 5, 8), []
    for step in x.split(1, 1):
        kept = []
        out.append(plain(step, prefix=cache.view(0), keep=kept))
        cache.append(*kept[0], layer=0)
        cache.advance(1)
    torch.testing.assert_close(torch.cat(out, 1), banded(x), atol=1e-5, rtol=1e-5)


def test_the_view_is_in_order_before_and_after_the_turn():
    cache = KVCache(2, 1, 1, 3, 1)
    for i in range(7):
        k = torch.full((1, 1, 1, 1), float(i))
        cache.append(k, -k, 1)
        cache.advance(1)
        keys, values = cache.view(1)
        assert keys.flatten().tolist() == [float(j) for j in range(max(0, i - 2), i + 1)]
        assert torch.equal(values, -keys)
    assert not cache.view(0)[0].any()
    cache.reset()
    assert cache.length == 0 and cache.view(1)[0].shape == (1, 0, 1, 1)


def test_without_a_ring_the_capacity_is_a_limit():
    cache = KVCache(1, 1, 1, 3, 1, ring=False)
    with pytest.raises(ValueError, match="0 positions and 4 more exceed the capacity 3"):
        cache.append(torch.zeros(1, 4, 1, 1), torch.zeros(1, 4, 1, 1), 0)


def test_bytes_are_those_of_the_buffers():
    assert KVCache(3, 2, 4, 5, 8, dtype=torch.bfloat16).bytes == 2 * 3 * 2 * 4 * 5 * 8 * 2


def test_a_cache_without_a_window_needs_a_capacity():
    with pytest.raises(ValueError, match="say the capacity"):
        network(window=None).cache(1, PLACES)
