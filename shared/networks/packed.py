"""Packed batches: segments of different lengths end to end, and the tables with which attention stays inside them.

A `Layout` is made once per micro-batch from lengths the host knows, so nothing waits for the device; all layers share
it. With `prefix_lengths` a query also sees the keys an earlier stream left for its segment (a context computed once,
read often). Back-ends: "padded" (length-sorted groups through SDPA: CPU and fallback), "varlen"
(torch.nn.attention.varlen), "flex" (FlexAttention), "mask" (one SDPA under a block mask: the reference). The
environment's ATTENTION=name forces one. Knows offsets and lengths; not what a token or a segment is.
Legend: S segments, N own tokens, M keys (prefix + own), g segments of a group, q and k its padded lengths.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

BACKENDS = ("padded", "mask", "varlen", "flex")
MAX_GROUPS = 4  # more groups save padding but pay for calls
_CUT_POINTS = 64  # candidate borders between groups
_TOKEN_COST = 8.0  # moving one padded token costs as much as this many scores
_CALL_COST = 2000.0  # one more group costs as much as this many scores

Lengths = Sequence[int] | np.ndarray


@dataclass(eq=False)
class Layout:
    """Where the segments of a packed stream begin and end, on the host and on the device."""

    lengths: np.ndarray  # [S] own tokens per segment (host)
    prefix_lengths: np.ndarray | None  # [S] prefix tokens per segment (host); None: the stream has no prefix
    tokens: int  # N, rows of the stream
    real: int  # rows that belong to a segment; those beyond are the tail
    prefix_tokens: int | None  # rows of the prefix stream
    max_length: int
    backend: str
    offsets: Tensor  # int32 [S + 1]
    segment: Tensor  # int32 [N], -1 in the tail
    position: Tensor  # int32 [N], place inside the segment from 0
    tables: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        lengths: Lengths,
        device: torch.device | str | None = None,
        prefix_lengths: Lengths | None = None,
        backend: str = "auto",
        tokens: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> "Layout":
        """Lay out segments of `lengths` (host integers; 0 is legal).

        tokens: rows of the stream if it has a tail of filler (its segment is -1, its attention output 0). dtype: what
        the attention will compute in, read by backend "auto" only; None: autocast's on this device, else the default.
        """
        own = _host(lengths, "lengths")
        prefix = None if prefix_lengths is None else _host(prefix_lengths, "prefix_lengths")
        if prefix is not None and len(prefix) != len(own):
            raise ValueError(
                f"{len(prefix)} prefix_lengths for {len(own)} lengths; every segment needs both (0 is legal)"
            )
        real = int(own.sum())
        tail = (real if tokens is None else tokens) - real
        if tail < 0:
            raise ValueError(f"lengths sum to {real}, more than tokens={tokens}; give at least the sum")
        device = torch.device("cpu" if device is None else device)
        segment, position = _places(own)
        layout = cls(
            lengths=own,
            prefix_lengths=prefix,
            tokens=real + tail,
            real=real,
            prefix_tokens=None if prefix is None else int(prefix.sum()),
            max_length=int(own.max(initial=0)),
            backend=choose(backend, device, dtype),
            offsets=_upload(_starts(own), device, torch.int32),
            segment=_upload(np.concatenate((segment, np.full(tail, -1))), device, torch.int32),
            position=_upload(np.concatenate((position, np.zeros(tail, np.int64))), device, torch.int32),
        )
        return layout.prepare()

    @property
    def count(self) -> int:
        """Segments S."""
        return len(self.lengths)

    @property
    def prefix(self) -> np.ndarray:
        """[S] prefix tokens per segment, zeros without a prefix."""
        return np.zeros_like(self.lengths) if self.prefix_lengths is None else self.prefix_lengths

    def spread(self, values: Tensor) -> Tensor:
        """One row per segment [S, ...] -> one row per token [N, ...] (the tail repeats segment 0)."""
        return values.index_select(0, self.segment.clamp(min=0))

    def prepare(self, causal: bool = False, window: int | None = None) -> "Layout":
        """Build now what the back-end needs; a compiled network asks for its causal or windowed tables before it
        runs."""
        self.table(self.backend, causal, window)
        return self

    def table(self, kind: str, causal: bool = False, window: int | None = None) -> Any:
        """What back-end `kind` needs on the device, built once: `Padded`, `Joint`, or masks over all tokens."""
        key = (kind, causal, window)
        if key not in self.tables:
            self.tables[key] = _BUILD[kind](self, causal, window)
        return self.tables[key]


def choose(backend: str, device: torch.device, dtype: torch.dtype | None = None) -> str:
    """Resolve "auto": CPU padded; CUDA varlen in fp16/bf16 on sm >= 8.0, else flex. The environment's ATTENTION
    wins."""
    backend = os.environ.get("ATTENTION", "") or backend
    if backend == "auto":
        backend = _automatic(device, dtype)
    if backend not in BACKENDS:
        raise ValueError(f"attention back-end {backend!r} is unknown; choose auto, {', '.join(BACKENDS)}")
    return backend


def _automatic(device: torch.device, dtype: torch.dtype | None) -> str:
    if device.type != "cuda":
        return "padded"
    if dtype is None:
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else torch.get_default_dtype()
    half = dtype in (torch.float16, torch.bfloat16)
    return "varlen" if half and torch.cuda.get_device_capability(device) >= (8, 0) else "flex"


def pack(parts: Sequence[Tensor], **layout: Any) -> tuple[Tensor, Layout]:
    """Rows of several segments [L_i, ...] -> (tokens [N, ...], Layout); keywords go to `Layout.of`."""
    return torch.cat(list(parts)), Layout.of([len(part) for part in parts], device=parts[0].device, **layout)


def unpack(tokens: Tensor, layout: Layout) -> list[Tensor]:
    """The segments of a packed stream [N, ...] as views [L_i, ...]; the tail is left out."""
    return list(tokens[: layout.real].split(layout.lengths.tolist()))


def pad(tokens: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Packed [N, ...] -> dense ([S, max_length, ...] with zeros, mask [S, max_length], True = real)."""
    mask = torch.arange(layout.max_length, device=tokens.device) < layout.offsets.diff().unsqueeze(1)
    dense = tokens.new_zeros(layout.count, layout.max_length, *tokens.shape[1:])
    row, place = layout.segment[: layout.real].long(), layout.position[: layout.real].long()
    return dense.index_put((row, place), tokens[: layout.real]), mask


def unpad(dense: Tensor, layout: Layout) -> Tensor:
    """Dense [S, max_length, ...] -> packed [N, ...], zeros in the tail: the inverse of `pad`."""
    row, place = layout.segment[: layout.real].long(), layout.position[: layout.real].long()
    return torch.cat((dense[row, place], dense.new_zeros(layout.tokens - layout.real, *dense.shape[2:])))


# ---- tables: index arithmetic on the host ----


def visible(query: Any, key: Any, causal: bool, window: int | None) -> Any:
    """Which keys a query sees by place (arrays or tensors that broadcast; prefix and own tokens are counted in one
    row).

    causal: none after it; window: none `window` or more places away.
    """
    distance = query - key
    seen = distance >= 0 if causal else distance == distance
    return seen if window is None else seen & (distance < window) & (-distance < window)


def _host(lengths: Lengths, name: str) -> np.ndarray:
    host = np.asarray(lengths)
    if host.ndim != 1 or (host.size and (host.dtype.kind not in "iu" or host.min() < 0)):
        raise ValueError(f"{name} must be a row of non-negative host integers, got {host.dtype} of shape {host.shape}")
    return host.astype(np.int64)


def _upload(array: np.ndarray, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype=dtype).to(device, non_blocking=True)


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], lengths.cumsum()))


def _places(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Segment and place of every token of a stream with these lengths."""
    segment = np.repeat(np.arange(len(lengths)), lengths)
    return segment, np.arange(len(segment)) - _starts(lengths)[segment]


class Joint(NamedTuple):
    """Keys of all segments in a row, prefix before own, for back-ends that know segments by offsets."""

    order: Tensor | None  # int64 [M] into cat(prefix, own); None: already in order
    offsets: Tensor  # int32 [S + 1]
    max_length: int


def _joint_index(layout: Layout) -> np.ndarray:
    """[M] into cat(prefix, own): the keys of segment 0 (prefix, own), of segment 1, ..."""
    own, prefix = layout.lengths, layout.prefix
    segment, place = _places(own + prefix)
    in_prefix = place < prefix[segment]
    of_prefix = _starts(prefix)[segment] + place
    of_own = prefix.sum() + _starts(own)[segment] + place - prefix[segment]
    return np.where(in_prefix, of_prefix, of_own)


def _build_joint(layout: Layout, causal: bool, window: int | None) -> Joint:
    device, total = layout.offsets.device, layout.lengths + layout.prefix
    index = None if layout.prefix_tokens is None else _upload(_joint_index(layout), device)
    return Joint(index, _upload(_starts(total), device, torch.int32), int(total.max(initial=0)))


def _build_mask(layout: Layout, causal: bool, window: int | None) -> Tensor:
    """bool [N, M], True = seen; keys in the order of cat(prefix, own)."""
    device = layout.offsets.device
    (q_segment, q_place), (k_segment, k_place) = _places(layout.lengths), _places(layout.lengths + layout.prefix)
    order = np.argsort(_joint_index(layout))
    q_place, k_segment, k_place = q_place + layout.prefix[q_segment], k_segment[order], k_place[order]
    q, k, q_at, k_at = (_upload(a, device) for a in (q_segment, k_segment, q_place, k_place))
    return (q[:, None] == k) & visible(q_at[:, None], k_at, causal, window)


def _build_flex(layout: Layout, causal: bool, window: int | None) -> Any:
    """FlexAttention's block mask over [N, M], keys in joint order so that its blocks lie near the diagonal."""
    from torch.nn.attention.flex_attention import create_block_mask

    device = layout.offsets.device
    (q_segment, q_place), (k_segment, k_place) = _places(layout.lengths), _places(layout.lengths + layout.prefix)
    q, k, q_at, k_at = (_upload(a, device) for a in (q_segment, k_segment, q_place + layout.prefix[q_segment], k_place))

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (q[i] == k[j]) & visible(q_at[i], k_at[j], causal, window)

    return create_block_mask(seen, None, None, len(q), len(k), device=device)


class Group(NamedTuple):
    """Segments of similar length padded to one shape. Padding repeats the segment's own last token: it touches no
    other."""

    rows: int  # g
    queries: int  # q
    keys: int  # k
    mask: Tensor | None  # bool [g, 1, 1 or q, k], True = seen; None: all


class Padded(NamedTuple):
    """Index tables of the padded back-end."""

    query: Tensor  # int64 [sum g q] into the own tokens
    key: Tensor  # int64 [sum g k] into cat(prefix, own)
    back: Tensor  # int64 [real] the row of the groups' outputs that holds each token
    groups: list[Group]


def _build_padded(layout: Layout, causal: bool, window: int | None) -> Padded:
    own, prefix, device = layout.lengths, layout.prefix, layout.offsets.device
    total, own_start, key_start = own + prefix, _starts(own), _starts(own + prefix)
    joint, back = _joint_index(layout), np.zeros(layout.real, np.int64)
    queries, keys, groups, base = [], [], [], 0
    for members in _groups(own, total):
        q, k = np.arange(own[members].max()), np.arange(total[members].max())
        o, t, p = (a[members, None] for a in (own, total, prefix))
        query = own_start[members, None] + np.minimum(q, o - 1)
        queries.append(query.ravel())
        keys.append(joint[key_start[members, None] + np.minimum(k, t - 1)].ravel())
        real = q < o
        back[query[real]] = base + np.flatnonzero(real)
        base += query.size
        groups.append(
            Group(len(members), len(q), len(k), _group_mask(np.minimum(q, o - 1) + p, k, t, causal, window, device))
        )
    empty = [np.zeros(0, np.int64)]
    query_, key_, back_ = (
        _upload(a, device) for a in (np.concatenate(queries or empty), np.concatenate(keys or empty), back)
    )
    return Padded(query_, key_, back_, groups)


def _group_mask(
    place: np.ndarray, k: np.ndarray, total: np.ndarray, causal: bool, window: int | None, device: Any
) -> Tensor | None:
    seen = (k < total)[:, None, None, :]
    if causal or window is not None:
        seen = seen & visible(place[:, None, :, None], k, causal, window)
    return None if seen.all() else _upload(seen, device)


def _groups(own: np.ndarray, total: np.ndarray, most: int = MAX_GROUPS) -> list[np.ndarray]:
    """At most `most` groups of the segments that ask, cut where padding costs least (exact over the candidate
    borders)."""
    order = np.lexsort((total, own))
    order = order[own[order] > 0]
    if not len(order):
        return []
    border = np.unique(np.linspace(0, len(order), min(len(order), _CUT_POINTS) + 1).astype(int))
    cost = _spans(own[order], total[order], border)
    best, choices = cost[0], []
    for _ in range(most - 1):
        through = best[:, None] + cost
        choices.append(through.argmin(axis=0))
        best = through.min(axis=0)
    ends = [len(border) - 1]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]))
    cuts = border[sorted({0, *ends})]
    return [order[a:b] for a, b in pairwise(cuts)]


def _spans(own: np.ndarray, total: np.ndarray, border: np.ndarray) -> np.ndarray:
    """cost[i, j] in scores of padding border[i]:border[j] (own lengths rise) to one shape; 0 if i = j, else inf."""
    parts = len(border) - 1
    tops = np.broadcast_to(np.maximum.reduceat(total, border[:-1]), (parts, parts))
    rows, q, k = border[1:] - border[:-1, None], own[border[1:] - 1], np.maximum.accumulate(np.triu(tops), axis=1)
    cost = np.full((parts + 1, parts + 1), np.inf)
    np.fill_diagonal(cost, 0.0)
    above = np.triu_indices(parts)
    cost[:-1, 1:][above] = (_CALL_COST + rows * (q * k + _TOKEN_COST * (q + 2 * k)))[above]
    return cost


_BUILD = {"padded": _build_padded, "mask": _build_mask, "varlen": _build_joint, "flex": _build_flex}
