"""The kernels behind attention: dense SDPA, and four ways to keep packed segments apart (which one: `Layout.backend`).

All give the same numbers; "mask" is the reference the others are held to. On 2 CPU cores (4,110 tokens, 64 segments,
width 128) "padded" takes 30 ms forward and backward where "mask" takes 464. Knows queries, keys and values only.
Legend: B batch, L queries, N packed queries, M keys, P prefix keys, H query heads, G key-value heads, K head width.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.networks.packed import Group, Layout, visible

KeysValues = tuple[Tensor, Tensor]  # keys, values: [M, G, K] packed or [B, M, G, K] dense


def dense(
    q_BLHK: Tensor,
    k_BMGK: Tensor,
    v_BMGK: Tensor,
    mask_BM: Tensor | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention over dense rows -> [B, L, H, K]; B may be several axes. With more keys than queries these are the last.

    mask_BM: True = the key counts; a query that sees no key gets zeros.
    """
    rows = q_BLHK.shape[:-3]
    if mask_BM is not None and mask_BM.shape != k_BMGK.shape[:-2]:
        seen, wanted = tuple(mask_BM.shape), tuple(k_BMGK.shape[:-2])
        raise ValueError(f"the key mask has shape {seen}, the keys {wanted}; give one bool per key")
    q, k, v = (x.flatten(0, -4) for x in (q_BLHK, k_BMGK, v_BMGK))
    mask = None if mask_BM is None else mask_BM.flatten(0, -2)[:, None, None, :]
    mask, is_causal = _with_reach(mask, q, k, causal, window)
    return _sdpa(q, k, v, mask, dropout, is_causal).unflatten(0, rows)


def packed(
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGK: Tensor,
    layout: Layout,
    prefix: KeysValues | None = None,
    *,
    backend: str = "auto",
    causal: bool = False,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention inside the segments of `layout` -> [N, H, K]; the tail, if any, gets zeros.

    prefix: keys and values [P, G, K] of the earlier stream, seen by the queries of their segment before the own ones.
    """
    kind = layout.backend if backend == "auto" else backend
    if dropout and kind in ("varlen", "flex"):
        raise ValueError(
            f"attention back-end {kind} has no dropout, got {dropout}; set it to 0 or choose ATTENTION=padded"
        )
    real = layout.real
    keys, values = (_before(p, own[:real]) for p, own in zip(_prefix(prefix, layout), (k_NGK, v_NGK)))
    out = _PACKED[kind](q_NHK[:real], keys, values, layout, causal, window, dropout) if real else q_NHK[:0]
    return F.pad(out, (0, 0, 0, 0, 0, layout.tokens - real)) if layout.tokens > real else out


def _prefix(prefix: KeysValues | None, layout: Layout) -> tuple[Tensor | None, Tensor | None]:
    if (prefix is None) != (layout.prefix_tokens is None):
        there, asked = ("no", "a") if prefix is None else ("a", "no")
        raise ValueError(f"attention got {there} prefix, its layout was made for {asked} prefix; pass both or neither")
    if prefix is None or layout.prefix_tokens is None:
        return None, None
    count = layout.prefix_tokens
    if len(prefix[0]) < count:
        raise ValueError(
            f"the prefix has {len(prefix[0])} keys, prefix_lengths sum to {count}; pass the stream they describe"
        )
    return prefix[0][:count], prefix[1][:count]


def _before(prefix: Tensor | None, own: Tensor) -> Tensor:
    return own if prefix is None else torch.cat((prefix.to(own.dtype), own))


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, is_causal: bool = False) -> Tensor:
    """torch's attention on [B, L, H, K]; heads move to their place and back."""
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=is_causal,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)


def _with_reach(
    mask: Tensor | None, q: Tensor, k: Tensor, causal: bool, window: int | None
) -> tuple[Tensor | None, bool]:
    """Join causal and window into the mask [B, 1, 1, M]; plain causal attention over equal lengths needs none."""
    keys, queries = k.shape[1], q.shape[1]
    if window is None and (not causal or (mask is None and keys == queries)):
        return mask, causal
    place = torch.arange(keys, device=q.device)
    near = visible(place[keys - queries :, None], place, causal, window)
    return (near if mask is None else mask & near), False


def _by_mask(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, causal: bool, window: int | None, dropout: float
) -> Tensor:
    mask = layout.table("mask", causal, window)
    return _sdpa(q[None], k[None], v[None], mask, dropout)[0]


def _by_groups(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, causal: bool, window: int | None, dropout: float
) -> Tensor:
    """Gather all groups at once, attend per group, gather back: three copies of the tokens and no loop over
    segments."""
    table = layout.table("padded", causal, window)
    queries = q.index_select(0, table.query).split([g.rows * g.queries for g in table.groups])
    size = [g.rows * g.keys for g in table.groups]
    keys, values = k.index_select(0, table.key).split(size), v.index_select(0, table.key).split(size)
    out = [_one_group(*part, dropout) for part in zip(table.groups, queries, keys, values)]
    return torch.cat(out).index_select(0, table.back)


def _one_group(group: Group, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    q, k, v = (x.unflatten(0, (group.rows, -1)) for x in (q, k, v))
    return _sdpa(q, k, v, group.mask, dropout).flatten(0, 1)


def _by_offsets(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, causal: bool, window: int | None, dropout: float
) -> Tensor:
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"attention back-end varlen takes fp16 or bf16, got {q.dtype}; run under autocast or set ATTENTION=flex"
        )
    joint = layout.table("varlen")
    if joint.order is not None:
        k, v = k.index_select(0, joint.order), v.index_select(0, joint.order)
    attend, heads, reach = _varlen()
    if not heads and k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    options = {"enable_gqa": k.shape[1] != q.shape[1]} if heads else {}
    return attend(
        q, k, v, layout.offsets, joint.offsets, layout.max_length, joint.max_length, **options, **reach(causal, window)
    )


@functools.cache
def _varlen() -> tuple[Callable[..., Any], bool, Callable[[bool, int | None], dict[str, Any]]]:
    """torch's varlen_attn, whether it takes grouped heads, and how this torch spells causal and window (looked up
    once)."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters

    def reach(causal: bool, window: int | None) -> dict[str, Any]:
        if "window_size" in known:
            side = -1 if window is None else window - 1
            return {"window_size": (side, 0 if causal else side)}
        if window is not None:
            raise ValueError("this torch's varlen_attn has no window; set ATTENTION=flex or take torch >= 2.12")
        return {"is_causal": causal}

    return varlen_attn, "enable_gqa" in known, reach


def _by_flex(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, causal: bool, window: int | None, dropout: float
) -> Tensor:
    joint = layout.table("varlen")
    if joint.order is not None:
        k, v = k.index_select(0, joint.order), v.index_select(0, joint.order)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = _flex(q.device.type)(
        q, k, v, block_mask=layout.table("flex", causal, window), enable_gqa=q.shape[1] != k.shape[1]
    )
    return out[0].transpose(0, 1)


@functools.cache
def _flex(device: str) -> Callable[..., Any]:
    """FlexAttention, compiled where it is a kernel; on CPU its plain form, which is only a check."""
    from torch.nn.attention.flex_attention import flex_attention

    kernel: Callable[..., Any] = flex_attention
    return torch.compile(kernel) if device == "cuda" else kernel


_PACKED = {"padded": _by_groups, "mask": _by_mask, "varlen": _by_offsets, "flex": _by_flex}
