"""Blocks over [time, space]: every `time_every`-th looks back along time at its own place, the others across space.

Causal in time, full in space (factorised attention, Ho et al. 2022), so a rollout keeps a cache in the time layers
only. Knows axes, not frames or pictures. Legend: B batch, T moments, S places, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from shared.networks.attention import Attention
from shared.networks.backends import KeysValues
from shared.networks.blocks import Block
from shared.networks.cache import KVCache
from shared.networks.initial import initialise
from shared.networks.rotary import Rotary, Rotation


class SpaceTime(nn.Module):
    """`depth` blocks over x [B, T, S, D]; block i reads along time if i % time_every == time_every - 1, else space.

    window: moments a time layer sees, itself included (None: all). theta: of the rotary index of the moment. Other
    keywords go to every `Block`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int,
        *,
        time_every: int = 4,
        window: int | None = None,
        theta: float = 10_000.0,
        **block: Any,
    ):
        super().__init__()
        self.in_time = [i % time_every == time_every - 1 for i in range(depth)]
        self.window = window
        self.rotary = Rotary((width // heads,), theta)
        self.blocks = nn.ModuleList(
            Block(width, heads, causal=along, window=window if along else None, **block) for along in self.in_time
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        initialise(self, len(self.blocks))

    def cache(self, batch: int, places: int, capacity: int | None = None, **options: Any) -> KVCache:
        """An empty past for `batch` rows of `places` places; capacity: moments kept (None: what the window can see)."""
        if capacity is None and self.window is None:
            raise ValueError("time layers without a window see everything; say the capacity of the cache in moments")
        kept = capacity if capacity is not None else max(1, (self.window or 1) - 1)
        attention: Attention = next(b.attention for b, along in zip(self.blocks, self.in_time) if along)  # type: ignore
        heads = attention.k.out_features // attention.head_dim
        return KVCache(sum(self.in_time), batch * places, heads, kept, attention.head_dim, **options)

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None = None,
        cache: KVCache | None = None,
        space_rotation: Rotation | None = None,
    ) -> Tensor:
        """x [B, T, S, D] -> the same; with a cache, x are the moments after its past, and they join it.

        condition [B, T, D]: one per moment (modulated blocks). space_rotation: angles of the places, [S, K/2].
        """
        start = 0 if cache is None else cache.length
        moments = torch.arange(start, start + x.shape[1], device=x.device)
        time_rotation = self.rotary.rotation(moments.unsqueeze(-1))
        layer = 0
        for block, along in zip(self.blocks, self.in_time):
            if along:
                x = self._along_time(block, x, condition, time_rotation, cache, layer)
                layer += 1
            else:
                x = block(x, None if condition is None else condition.unsqueeze(2), rotation=space_rotation)
        if cache is not None:
            cache.advance(len(moments))
        return x

    def _along_time(
        self,
        block: nn.Module,
        x: Tensor,
        condition: Tensor | None,
        rotation: Rotation,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        x_BSTD = x.transpose(1, 2)
        condition = None if condition is None else condition.unsqueeze(1)
        if cache is None:
            return block(x_BSTD, condition, rotation=rotation).transpose(1, 2)
        kept: list[KeysValues] = []
        past = tuple(part.unflatten(0, x_BSTD.shape[:2]) for part in cache.view(layer))
        out = block(x_BSTD, condition, rotation=rotation, prefix=past, keep=kept)
        keys, values = kept[0]
        cache.append(keys.flatten(0, 1), values.flatten(0, 1), layer)
        return out.transpose(1, 2)
