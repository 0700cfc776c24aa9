"""Where adapters begin to look: the directions in which the inputs of a layer vary most (EVA, Paischer et al. 2024).

Exact, from second moments over the batches given; every layer keeps the rank it was asked for. Knows layers by name and
what runs through them; not adapters, not data.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from shared.training.errors import Mistake


@torch.no_grad()
def directions(network: nn.Module, names: Sequence[str], rank: int, feed: Callable[[], None]) -> dict[str, Tensor]:
    """Up to `rank` orthonormal rows [<= rank, inputs] per linear layer, the strongest first.

    feed: runs batches through the network. Raises Mistake where a layer sees none of them.
    """
    moments: dict[str, Tensor] = {}
    layers = {name: network.get_submodule(name) for name in names}
    hooks = [layer.register_forward_pre_hook(partial(_add, moments, name)) for name, layer in layers.items()]
    try:
        feed()
    finally:
        for hook in hooks:
            hook.remove()
    if unseen := [name for name in names if name not in moments]:
        raise Mistake(
            f"lora.init eva: no training step runs {unseen[0]}. Leave it out by lora.exclude, or choose another init."
        )
    return {name: torch.linalg.eigh(m).eigenvectors.T.flip(0)[:rank].float() for name, m in moments.items()}


def _add(moments: dict[str, Tensor], name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    x = inputs[0].detach().flatten(0, -2).double()
    moments[name] = moments.get(name, 0) + x.T @ x
