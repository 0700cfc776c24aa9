"""Attention with separate q, k, v, o matrices (adapters find them), normed queries and keys (Henry et al. 2020).

One module serves dense rows [B, L, D] and packed segments [N, D] with a `Layout`. Keys and values can be had apart,
so a stream computed once (a prefix, a cache) is read by later ones. Knows no positions, and no masks of its own but
causal and window.
Legend: B batch, L length, N packed tokens, P prefix tokens, D width, H heads, G key-value heads, K head width,
C context length, E context width.
"""

import torch
from torch import Tensor, nn

from shared.networks import backends
from shared.networks.backends import KeysValues
from shared.networks.initial import initialise, residual
from shared.networks.norm import RMSNorm
from shared.networks.packed import BACKENDS, Layout
from shared.networks.rotary import Rotation, rotate


class Attention(nn.Module):
    """Self-attention, dense or packed.

    kv_heads: groups that share keys and values (None: one per head). window: a query sees nothing `window` or more
    places away (None: everything). dropout: on the attention weights. backend: "auto" takes the layout's.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int | None = None,
        qk_norm: bool = True,
        causal: bool = False,
        window: int | None = None,
        dropout: float = 0.0,
        backend: str = "auto",
    ):
        super().__init__()
        kv_heads = kv_heads or heads
        _check(width, heads, kv_heads, backend)
        self.head_dim = width // heads
        self.causal, self.window, self.dropout, self.backend = causal, window, dropout, backend
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.q_norm = RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.reset_parameters()

    def settle(self, depth: int) -> None:
        residual(self.o, depth)

    def reset_parameters(self, depth: int = 1) -> None:
        initialise(self, depth)

    def queries(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """x [..., D] -> [..., H, K], normed and turned."""
        q = self.q(x).unflatten(-1, (-1, self.head_dim))
        return rotate(self.q_norm(q), rotation).to(q.dtype)

    def keys_values(self, x: Tensor, rotation: Rotation | None = None) -> KeysValues:
        """x [..., D] -> keys (normed and turned) and values, each [..., G, K]."""
        k = self.k(x).unflatten(-1, (-1, self.head_dim))
        v = self.v(x).unflatten(-1, (-1, self.head_dim))
        return rotate(self.k_norm(k), rotation).to(k.dtype), v

    def forward(
        self,
        x: Tensor,
        layout: Layout | None = None,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        prefix: KeysValues | None = None,
        keep: list[KeysValues] | None = None,
    ) -> Tensor:
        """x [B, L, D] (mask [B, P + L], True = key counts) or x [N, D] with its layout -> the same shape; B may be
        several axes.

        rotation: angles of x's own tokens. prefix: keys and values of an earlier stream, [B, P, G, K] or [P, G, K],
        which every query sees before its own. keep: a list that receives this stream's (keys, values).
        """
        q = self.queries(x, rotation)
        k, v = self.keys_values(x, rotation)
        if keep is not None:
            keep.append((k, v))
        return self.o(self._attend(q, k, v, layout, mask, prefix).flatten(-2))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout | None, mask: Tensor | None, prefix: KeysValues | None
    ) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if layout is None:
            if q.ndim < 4:
                raise ValueError("dense attention wants x [B, L, D], got [N, D]; a packed x needs its layout")
            if prefix is not None:
                k, v = (torch.cat((p.to(x.dtype), x), dim=-3) for p, x in zip(prefix, (k, v)))
            return backends.dense(q, k, v, mask, causal=self.causal, window=self.window, dropout=dropout)
        if q.ndim != 3 or len(q) != layout.tokens or mask is not None:
            raise ValueError(
                f"packed attention wants x [{layout.tokens}, D] and no mask, got {q.ndim - 1} axes and {len(q)} rows; "
                "make the layout from the lengths of this stream"
            )
        return backends.packed(
            q, k, v, layout, prefix, backend=self.backend, causal=self.causal, window=self.window, dropout=dropout
        )


class CrossAttention(nn.Module):
    """Queries from one sequence [B, L, D], keys and values from another [B, C, E]; a row whose context is empty gets
    zeros."""

    def __init__(self, width: int, context_width: int, heads: int, qk_norm: bool = True, dropout: float = 0.0):
        super().__init__()
        _check(width, heads, heads, "auto")
        self.head_dim, self.dropout = width // heads, dropout
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(context_width, width, bias=False)
        self.v = nn.Linear(context_width, width, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.q_norm = RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.reset_parameters()

    def settle(self, depth: int) -> None:
        residual(self.o, depth)

    def reset_parameters(self, depth: int = 1) -> None:
        initialise(self, depth)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        mask: Tensor | None = None,
        rotation: Rotation | None = None,
        context_rotation: Rotation | None = None,
    ) -> Tensor:
        """x [B, L, D], context [B, C, E], mask [B, C] (True = counts) -> [B, L, D]."""
        q, k, v = (
            linear(source).unflatten(-1, (-1, self.head_dim))
            for linear, source in ((self.q, x), (self.k, context), (self.v, context))
        )
        queries = rotate(self.q_norm(q), rotation).to(q.dtype)
        keys = rotate(self.k_norm(k), context_rotation).to(k.dtype)
        dropout = self.dropout if self.training else 0.0
        return self.o(backends.dense(queries, keys, v, mask, dropout=dropout).flatten(-2))


def _check(width: int, heads: int, kv_heads: int, backend: str) -> None:
    if width % heads or heads % kv_heads:
        raise ValueError(
            f"width {width} must divide into {heads} heads and these into {kv_heads} key-value heads; change one"
        )
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"attention back-end {backend!r} is unknown; choose auto, {', '.join(BACKENDS)}")
