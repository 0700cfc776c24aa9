"""The pre-norm block of the house: RMSNorm, attention, SwiGLU (Shazeer 2020), no biases, optional adaLN and context.

Knows shapes and gates; not what the tokens are, nor where they stand (rotations are made by the network, once for all
blocks).
Legend: B batch, L length, N packed tokens, S segments, D width, H hidden width, K condition width, C context length,
E context width.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from shared.networks.attention import Attention, CrossAttention
from shared.networks.backends import KeysValues
from shared.networks.conditioning import Modulation
from shared.networks.initial import initialise, residual
from shared.networks.norm import RMSNorm
from shared.networks.packed import Layout
from shared.networks.rotary import Rotation


def hidden_width(width: int, ratio: float = 8 / 3, multiple: int = 64) -> int:
    """Width of the SwiGLU: ratio * width, rounded up to a multiple."""
    return -int(-ratio * width // multiple) * multiple


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x): 3 D H parameters."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.reset_parameters()

    def settle(self, depth: int) -> None:
        residual(self.down, depth)

    def reset_parameters(self, depth: int = 1) -> None:
        initialise(self, depth)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Head(nn.Linear):
    """A read-out that starts at zero, so the first beliefs are uniform and the first gradients its own."""

    def settle(self, depth: int) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def reset_parameters(self) -> None:
        self.settle(1)


class Block(nn.Module):
    """x + attention(norm x), [+ cross-attention(norm x, context)], + SwiGLU(norm x); each branch gated when
    `modulated`.

    hidden: width of the SwiGLU (None: mlp_ratio * width up to mlp_multiple). modulated: a condition shifts, scales
    and gates the branches; condition_width: of that condition (None: width); gate_init: the gates' start, 0 for long
    runs (the block is the identity), 1 for short ones. cross: width of a context to read (None: none). dropout: on the
    branches' outputs. checkpointing: activations are recomputed in backward.
    """

    entries = ("keys_values",)  # methods beside `forward` by which a network may enter

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        hidden: int | None = None,
        mlp_ratio: float = 8 / 3,
        mlp_multiple: int = 64,
        modulated: bool = False,
        gate_init: float = 0.0,
        condition_width: int | None = None,
        cross: int | None = None,
        qk_norm: bool = True,
        causal: bool = False,
        window: int | None = None,
        dropout: float = 0.0,
        backend: str = "auto",
        checkpointing: bool = False,
    ):
        super().__init__()
        self.dropout, self.checkpointing = dropout, checkpointing
        self.attention_norm = RMSNorm(width)
        self.attention = Attention(width, heads, kv_heads, qk_norm, causal, window, backend=backend)
        self.cross_norm = RMSNorm(width) if cross else None
        self.cross = CrossAttention(width, cross, heads, qk_norm) if cross else None
        self.mlp_norm = RMSNorm(width)
        self.mlp = SwiGLU(width, hidden or hidden_width(width, mlp_ratio, mlp_multiple))
        self.modulation = Modulation(width, 3 if cross else 2, gate_init, condition_width) if modulated else None

    def reset_parameters(self, depth: int = 1) -> None:
        initialise(self, depth)

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None = None,
        layout: Layout | None = None,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        prefix: KeysValues | None = None,
        keep: list[KeysValues] | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """x [..., L, D] or packed [N, D] with its layout -> the same shape.

        condition (modulated blocks): [B, K], or as many axes as a dense x to broadcast; for packed x one row per
        segment [S, K]. mask, rotation, prefix, keep: see `Attention.forward`. context [B, C, E] and context_mask
        [B, C]: what `cross` reads.
        """
        self._require(condition, context)
        if condition is not None and layout is None and condition.ndim < x.ndim:
            condition = condition.unsqueeze(-2)
        inputs = (x, condition, layout, rotation, mask, prefix, context, context_mask)
        if self.checkpointing and self.training:
            x, kept = checkpoint(self._branches, *inputs, use_reentrant=False)
        else:
            x, kept = self._branches(*inputs)
        if keep is not None:
            keep.append(kept)
        return x

    def keys_values(self, x: Tensor, rotation: Rotation | None = None) -> KeysValues:
        """What `keep` receives for x, when nothing else of the block is wanted: its attention's [..., G, K] each."""
        return self.attention.keys_values(self.attention_norm(x), rotation)

    def _require(self, condition: Tensor | None, context: Tensor | None) -> None:
        for given, wanted, name in ((condition, self.modulation, "condition"), (context, self.cross, "context")):
            if (given is None) != (wanted is None):
                seen, made = ("no", "with") if given is None else ("a", "without")
                raise ValueError(
                    f"the block got {seen} {name} but was built {made} one; build it to match (modulated, cross)"
                )

    def _branches(
        self,
        x: Tensor,
        condition: Tensor | None,
        layout: Layout | None,
        rotation: Rotation | None,
        mask: Tensor | None,
        prefix: KeysValues | None,
        context: Tensor | None,
        context_mask: Tensor | None,
    ) -> tuple[Tensor, KeysValues]:
        kept: list[KeysValues] = []
        parts: list[Any] = [None] * 3
        if self.modulation is not None and condition is not None:
            parts = self.modulation(condition, layout)
        x = self._add(
            x, self.attention(_normed(self.attention_norm, x, parts[0]), layout, rotation, mask, prefix, kept), parts[0]
        )
        if self.cross is not None and self.cross_norm is not None and context is not None:
            x = self._add(x, self.cross(_normed(self.cross_norm, x, parts[2]), context, context_mask), parts[2])
        x = self._add(x, self.mlp(_normed(self.mlp_norm, x, parts[1])), parts[1])
        return x, kept[0]

    def _add(self, x: Tensor, branch: Tensor, part: Any) -> Tensor:
        branch = F.dropout(branch, self.dropout, self.training) if self.dropout else branch
        return x + (branch if part is None else part[2] * branch)


def _normed(norm: nn.Module, x: Tensor, part: Any) -> Tensor:
    return norm(x) if part is None else norm(x, part[0], part[1])
