"""Keys and values of a stream that grows: written once per step, read by every later one (Shazeer 2019).

A static buffer per layer, used as a ring: beyond `capacity` the oldest positions are overwritten, which for single
steps is attention with a window of capacity + 1. Keys lie turned at their absolute positions, so nothing is recomputed
when the window moves. Knows positions in order, not what a position holds.
Legend: B batch, P kept past, T new positions, G key-value heads, K head width.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from shared.networks.backends import KeysValues


class KVCache:
    """The past of `layers` attentions: `block(x, prefix=cache.view(l), keep=kept)`, `append` per layer, `advance` per
    step.

    heads: key-value heads. ring: False makes running over `capacity` an error.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        capacity: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        ring: bool = True,
    ):
        self.capacity, self.ring = capacity, ring
        self.length = 0  # positions seen so far, also those overwritten
        self._store = torch.zeros(2, layers, batch, capacity, heads, head_dim, dtype=dtype, device=device)
        self._peeking = False

    @property
    def bytes(self) -> int:
        """Memory the buffers hold."""
        return self._store.numel() * self._store.element_size()

    def view(self, layer: int) -> KeysValues:
        """Keys and values [B, P, G, K] of the kept past, oldest first (no copy until the ring is full)."""
        past = self._store[:, layer, :, : self.length]
        first = self.length % self.capacity
        if self.length > self.capacity and first:
            past = torch.cat((past[:, :, first:], past[:, :, :first]), dim=2)
        return past[0], past[1]

    @torch.no_grad()
    def append(self, k: Tensor, v: Tensor, layer: int) -> None:
        """Write the T newest positions [B, T, G, K] of one layer; inside `peek` nothing is written."""
        if self._peeking:
            return
        steps = k.shape[1]
        if self.length + steps > self.capacity and not self.ring:
            raise ValueError(
                f"{self.length} positions and {steps} more exceed the capacity {self.capacity}; "
                "make it larger or a ring"
            )
        kept = min(steps, self.capacity)
        place = torch.arange(self.length + steps - kept, self.length + steps, device=self._store.device) % self.capacity
        for store, new in zip(self._store[:, layer], (k, v)):
            store.index_copy_(1, place, new[:, steps - kept :].to(store.dtype))

    def advance(self, steps: int) -> None:
        """All layers have appended `steps` positions: they now belong to the past."""
        if not self._peeking:
            self.length += steps

    def reset(self) -> None:
        """Forget everything; the memory stays."""
        self.length = 0

    @contextmanager
    def peek(self) -> Iterator["KVCache"]:
        """A transient pass: the past is read, `append` and `advance` leave it as it is."""
        before, self._peeking = self._peeking, True
        try:
            yield self
        finally:
            self._peeking = before
