"""Laws of the block: counts, start, conditions, checkpointing, meta device."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from shared.networks import (
    Block,
    Embedding,
    Head,
    Layout,
    LevelEmbedding,
    RMSNorm,
    Rotary,
    SpaceTime,
    hidden_width,
    initialise,
)

COUNTS = {64: 53_504, 128: 213_376, 256: 803_456, 384: 1_770_368, 512: 3_212_416, 768: 7_079_552, 1024: 12_650_624}


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("width", COUNTS)
def test_parameters_are_counted_before_they_exist(width):
    with torch.device("meta"):
        plain, modulated = Block(width, width // 64), Block(width, width // 64, modulated=True)
    assert count(plain) == COUNTS[width] == 4 * width**2 + 3 * width * hidden_width(width) + 2 * width + 128
    assert count(modulated) - count(plain) == 6 * width**2 + 6 * width


def test_hidden_width_rounds_up():
    assert (hidden_width(128), hidden_width(128, multiple=32), hidden_width(96, 4)) == (384, 352, 384)


@pytest.mark.parametrize("packed", [False, True])
def test_zero_gates_make_the_identity_bitwise_and_one_does_not(packed):
    x, layout = torch.randn(2, 5, 64), None
    if packed:
        x, layout = x.flatten(0, 1), Layout.of([5, 5])
    condition = torch.randn(2, 64)
    still, awake = (Block(64, 4, modulated=True, gate_init=gate)(x, condition, layout) for gate in (0.0, 1.0))
    assert torch.equal(still, x)
    assert (awake - x).abs().max() > 1e-3


def test_a_fresh_gate_of_one_is_the_plain_block():
    torch.manual_seed(0)
    plain, modulated = Block(64, 4), Block(64, 4, modulated=True, gate_init=1.0)
    modulated.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 5, 64)
    assert torch.equal(modulated(x, torch.randn(2, 64)), plain(x))


def test_conditions_reach_their_own_rows():
    """Packed per segment = dense per row = one condition per token."""
    block = Block(64, 4, modulated=True)
    nn.init.normal_(block.modulation.linear.weight, std=0.1)
    x, condition = torch.randn(2, 5, 64), torch.randn(2, 64)
    dense = block(x, condition)
    packed = block(x.flatten(0, 1), condition, Layout.of([5, 5]))
    each = block(x, condition[:, None].expand(-1, 5, -1))
    torch.testing.assert_close(packed.view_as(dense), dense, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(each, dense, atol=1e-5, rtol=1e-5)
    assert (block(x, condition.flip(0)) - dense).abs().max() > 1e-3


def test_blocks_say_what_is_missing():
    x, c = torch.zeros(1, 3, 64), torch.zeros(1, 64)
    with pytest.raises(ValueError, match="got no condition but was built with one"):
        Block(64, 4, modulated=True)(x)
    with pytest.raises(ValueError, match="got a condition but was built without one"):
        Block(64, 4)(x, c)
    with pytest.raises(ValueError, match="got no context but was built with one"):
        Block(64, 4, cross=32)(x)


def test_context_is_read():
    block = Block(64, 4, cross=32, modulated=True, gate_init=1.0)
    x, condition, context = torch.randn(2, 5, 64), torch.randn(2, 64), torch.randn(2, 7, 32, requires_grad=True)
    mask = torch.arange(7) < torch.tensor([[7], [3]])
    block(x, condition, context=context, context_mask=mask).sum().backward()
    assert ((context.grad.abs().sum(-1) > 0) == mask).all()


@pytest.mark.parametrize("packed", [False, True])
def test_checkpointing_recomputes_and_changes_nothing(packed):
    torch.manual_seed(0)
    plain = Block(64, 4)
    thrifty = Block(64, 4, checkpointing=True)
    thrifty.load_state_dict(plain.state_dict())
    x, layout = torch.randn(2, 40, 64), None
    if packed:
        x, layout = x.flatten(0, 1), Layout.of([40, 40])

    def run(block):
        saved, kept, inputs = [], [], x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
            out = block(inputs, layout=layout, keep=kept)
        out.square().sum().backward()
        assert len(kept) == 1
        return out, inputs.grad, sum(saved)

    (out, gradient, held), (out_, gradient_, held_) = run(plain), run(thrifty)
    assert torch.equal(out, out_) and torch.equal(gradient, gradient_)
    assert held_ < held / 4


def test_dropout_acts_on_branches_in_training_only():
    block = Block(64, 4, dropout=0.5)
    x = torch.randn(1, 5, 64)
    assert not torch.equal(block(x), block(x))
    assert torch.equal(block.eval()(x), block(x))


@pytest.mark.parametrize("backend", ["padded", "mask"])
def test_the_reference_block_compiles_whole(backend):
    """A graph break would raise; a second layout of the same shapes does not compile again."""
    torch.compiler.reset()
    block, rotary = Block(64, 4), Rotary((8, 8))
    graphs = CompileCounter()
    compiled = torch.compile(block, backend=graphs, fullgraph=True)
    for prefix_lengths in ([4, 0, 1], [1, 0, 4]):
        context = [part.detach() for part in block.attention.keys_values(torch.randn(5, 64))]
        x, layout = torch.randn(9, 64), Layout.of([2, 3, 4], prefix_lengths=prefix_lengths, backend=backend)
        options = {"layout": layout, "rotation": rotary.rotation(torch.randint(0, 5, (9, 2))), "prefix": context}
        torch.testing.assert_close(compiled(x, **options), block(x, **options))
    assert graphs.frame_count == 1 or backend == "padded"  # groups differ in shape


def test_every_branch_has_its_own_gate():
    """Closing the last gate silences the context, closing another one does not."""
    block = Block(64, 4, cross=32, modulated=True, gate_init=1.0)
    x, condition, context = torch.randn(2, 5, 64), torch.randn(2, 64), torch.randn(2, 7, 32)
    for branch, silent in ((0, False), (1, False), (2, True)):
        block.modulation.settle(1)
        block.modulation.linear.bias.data.view(3, 3, 64)[branch, 2] = 0.0
        out = block(x, condition, context=context)
        assert torch.equal(out, block(x, condition, context=context.flip(0))) == silent


class Network(nn.Module):
    def __init__(self, depth=8):
        super().__init__()
        self.embedding = Embedding(10, 64)
        self.level = LevelEmbedding(64, of="log_snr")
        self.rotary = Rotary((8, 8))
        self.blocks = nn.ModuleList(Block(64, 4, modulated=True, gate_init=0.5, cross=32) for _ in range(depth))
        self.space_time = SpaceTime(64, 4, 4)
        self.head = Head(64, 10)
        initialise(self, depth)

    def reset_parameters(self):
        initialise(self, len(self.blocks))


def check_start(network):
    block = network.blocks[0]
    assert block.attention.q.weight.std().item() == pytest.approx(0.02 * 0.88, rel=0.05)  # cut at two deviations
    for matrix in (block.attention.o, block.cross.o, block.mlp.down):
        assert matrix.weight.std().item() == pytest.approx(0.02 * 0.88 / 4, rel=0.05)  # sqrt(2 depth) = 4
    assert network.embedding.table.weight.std().item() == pytest.approx(0.3, rel=0.15)
    assert not network.head.weight.any() and not block.modulation.linear.weight.any()
    shift, scale, gate = block.modulation.linear.bias.view(3, 3, 64).unbind(1)
    assert not shift.any() and not scale.any() and (gate == 0.5).all()
    assert (block.mlp_norm.weight == 1).all()


def test_everything_starts_by_rule():
    check_start(Network())


def test_a_networks_own_rule_has_the_last_word():
    class Loud(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = Head(8, 8)

        def settle(self, depth):
            nn.init.ones_(self.head.weight)

    network = Loud()
    initialise(network, 1)
    assert (network.head.weight == 1).all()


def test_everything_builds_on_meta_and_materialises():
    torch.manual_seed(0)
    expected = Network()
    with torch.device("meta"):
        network = Network()
    assert all(p.is_meta for p in [*network.parameters(), *network.buffers()])
    network.to_empty(device="cpu")
    network.reset_parameters()
    check_start(network)
    for name, buffer in expected.named_buffers():
        assert torch.equal(network.get_buffer(name), buffer), name
    assert all(
        hasattr(m, "reset_parameters") for m in network.modules() if next(m.parameters(recurse=False), None) is not None
    )


def test_frequencies_are_not_saved():
    assert not [name for name in Network(1).state_dict() if "frequency" in name or "axis" in name]


def test_the_written_out_norm_is_torchs():
    x = torch.randn(5, 7, 16, dtype=torch.float64)
    norm = RMSNorm(16).double()
    torch.nn.init.normal_(norm.weight)
    assert torch.allclose(norm(x), torch.nn.functional.rms_norm(x, (16,), norm.weight, 1e-6), atol=1e-12)


def plain(x, weight, shift, scale):
    normed = torch.nn.functional.rms_norm(x, x.shape[-1:], weight, 1e-6)
    return normed if shift is None else normed * (1 + scale) + shift


def handed(told, dtype):
    """x, weight, shift, scale; told: the shape of the last two."""
    shapes = [(3, 5, 8), (8,)] if told is None else [(3, 5, 8), (8,), told, told]
    values = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    return values if told is not None else [*values, None, None]


def norm_of(x, weight, shift, scale):
    norm = RMSNorm(x.shape[-1]).to(weight.dtype)
    del norm.weight
    norm.weight = weight  # stays a leaf of the caller
    return norm(x, shift, scale)


@pytest.mark.parametrize("told", [None, (3, 1, 8), (3, 5, 8), (8,)])
def test_the_gradients_of_the_modulated_norm_are_those_of_its_formula(told):
    values = handed(told, torch.float64)
    assert torch.autograd.gradcheck(norm_of, values)
    assert torch.allclose(norm_of(*values), plain(*values), atol=1e-12)


@pytest.mark.parametrize("told", [None, (3, 1, 8)])
def test_the_modulated_norm_under_autocast_takes_a_half_condition_and_gives_its_gradients(told):
    values = handed(told, torch.float32)
    alive = [value for value in values if value is not None]
    half = [value if value is None else value.bfloat16() for value in values[2:]]
    target = torch.randn(3, 5, 8)
    got, wanted = [], []
    for function, grads in ((norm_of, got), (plain, wanted)):
        with torch.autocast("cpu", torch.bfloat16):
            out = function(*values[:2], *half)
        assert out.dtype == torch.float32
        grads += torch.autograd.grad((out * target).sum(), alive)
    for mine, theirs, value in zip(got, wanted, alive):
        tolerance = 1e-5 if value is values[0] or value is values[1] else 1e-2  # the last two pass through bfloat16
        assert mine.dtype == value.dtype and torch.allclose(mine, theirs, rtol=tolerance, atol=tolerance)


def test_a_second_derivative_of_the_norm_is_refused_not_wrong():
    x, *rest = handed((3, 1, 8), torch.float32)
    (grad,) = torch.autograd.grad(norm_of(x, *rest).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
