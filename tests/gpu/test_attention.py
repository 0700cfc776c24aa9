"""The CUDA back-ends of packed attention against the reference, and the promise that none waits for the device."""

import numpy as np
import pytest
import torch

from shared.networks import Attention, Block, Layout, Rotary
from shared.networks.packed import choose

pytestmark = pytest.mark.gpu
REACH = [(False, None), (True, None), (False, 16), (True, 16)]
WIDTH = 128


def streams(dtype):
    generator = np.random.default_rng(0)
    own, ahead = generator.integers(0, 70, 40), generator.integers(0, 50, 40)
    torch.manual_seed(0)
    x, p = (torch.randn(int(n.sum()), WIDTH, device="cuda", dtype=dtype) for n in (own, ahead))
    return own, ahead, x.requires_grad_(), p.requires_grad_()


def run(backend, dtype, causal, window, kv_heads):
    own, ahead, x, p = streams(dtype)
    torch.manual_seed(0)
    layer = Attention(WIDTH, 4, kv_heads, causal=causal, window=window)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    layer.to("cuda", dtype)
    rotation = Rotary((32,)).cuda().rotation(torch.arange(len(x), device="cuda").unsqueeze(-1))
    out = layer(x, Layout.of(own, "cuda", ahead, backend), rotation, prefix=layer.keys_values(p))
    return out, *torch.autograd.grad(out.square().sum(), [x, p, layer.q.weight, layer.k.weight, layer.v.weight])


def far(got, wanted):
    return ((got.float() - wanted.float()).norm() / wanted.float().norm()).item()


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(("causal", "window"), REACH)
@pytest.mark.parametrize("backend", ["varlen", "flex", "padded"])
def test_backends_in_bf16_are_the_reference(backend, causal, window, kv_heads):
    wanted = run("mask", torch.float32, causal, window, kv_heads)
    assert all(far(a, b) < 2e-2 for a, b in zip(run(backend, torch.bfloat16, causal, window, kv_heads), wanted))


@pytest.mark.parametrize(("causal", "window"), REACH)
def test_flex_in_fp32_is_the_reference(causal, window):
    torch.backends.cuda.matmul.allow_tf32 = False
    wanted = run("mask", torch.float32, causal, window, 4)
    assert all(far(a, b) < 1e-4 for a, b in zip(run("flex", torch.float32, causal, window, 4), wanted))


def test_auto_chooses_by_precision():
    device = torch.device("cuda")
    assert choose("auto", device, torch.float32) == "flex"
    half = "varlen" if torch.cuda.get_device_capability() >= (8, 0) else "flex"
    assert choose("auto", device, torch.bfloat16) == half
    with torch.autocast("cuda", torch.bfloat16):
        assert choose("auto", device) == half


@pytest.mark.parametrize("backend", ["varlen", "padded"])
def test_no_layer_waits_for_the_device(backend):
    own, ahead, x, p = streams(torch.float32)
    block = Block(WIDTH, 4).cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            memory, sealed = [], Layout.of(ahead, "cuda", backend=backend)
            body = Layout.of(own, "cuda", ahead, backend)
            context = block(p, layout=sealed, keep=memory)
            out = block(x, layout=body, prefix=memory[0])
        (out.square().mean() + context.square().mean()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x.grad.isfinite().all()


def test_altering_a_segment_leaves_the_others_bitwise_alone():
    own, _, x, _ = streams(torch.bfloat16)
    layer, layout = Attention(WIDTH, 4).to("cuda", torch.bfloat16), Layout.of(own, "cuda", backend="varlen")
    changed = torch.where((layout.segment == 3).unsqueeze(1), 7.0, x.detach())
    others = layout.segment != 3
    with torch.no_grad():
        assert torch.equal(layer(x, layout)[others], layer(changed, layout)[others])


def test_compiled_is_eager():
    own, ahead, x, p = streams(torch.float32)
    block = Block(WIDTH, 4).cuda()
    compiled = torch.compile(block)
    with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
        layout = Layout.of(own, "cuda", ahead, "varlen")
        past = block.attention.keys_values(p)
        assert far(compiled(x, layout=layout, prefix=past), block(x, layout=layout, prefix=past)) < 2e-2
