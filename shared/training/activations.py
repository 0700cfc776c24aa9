"""What a training step keeps for its backward, counted on the meta device: every byte by its shape, nothing computed.

The step runs once on tensors without storage while `saved_tensors_hooks` notes what autograd keeps. Under a half
precision the casts of autocast, which has no meta device, are done here by its own short list. What a compiler fuses or
recomputes is not known here, so a compiled step keeps less. Knows modules and batches; not the Trainer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import stateless
from torch.overrides import TorchFunctionMode

META = torch.device("meta")
# what autocast computes in half precision, and what in full, of the functions that networks of the house call
HALF = {F.linear, F.scaled_dot_product_attention, F.conv1d, F.conv2d, F.conv3d, torch.matmul, torch.bmm, torch.einsum}
HALF |= {Tensor.matmul, Tensor.__matmul__}
FULL = {F.rms_norm, F.layer_norm, F.cross_entropy, F.softmax, Tensor.softmax, F.mse_loss}


def saved_bytes(module: Any, batch: Any, precision: str) -> int | None:
    """Bytes that `module.training_step(batch)` keeps until its backward; None for a step that needs real numbers.

    Parameters, buffers and the batch are not counted; a tensor that is kept twice counts once.
    """
    own = {name: _bare(value) for name, value in (*module.named_parameters(), *module.named_buffers())}
    there = batch.to(META)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage._cdata] = storage
        return x

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    try:
        with _on_meta(module, own), _Cast(precision), hooks:
            loss = module.training_step(there, 0)["loss"]  # noqa: F841 (the graph must live until it is counted)
    except Exception:  # any step may ask for what only real tensors have; the plan then says that it does not know
        return None
    given = {value.untyped_storage()._cdata for value in own.values()}
    return sum(storage.nbytes() for number, storage in kept.items() if number not in given)


class _Cast(TorchFunctionMode):
    """Autocast for meta tensors; each weight is cast once."""

    def __init__(self, precision: str):
        super().__init__()
        self.half = precision.startswith(("bf16", "16"))
        self.casts: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, dtype = kwargs or {}, self._dtype(function)
        if dtype is not None:
            args = [self._cast(value, dtype) for value in args]
            kwargs = {name: self._cast(value, dtype) for name, value in kwargs.items()}
        return function(*args, **kwargs)

    def _dtype(self, function: Any) -> torch.dtype | None:
        if not self.half:
            return None
        return torch.bfloat16 if function in HALF else torch.float32 if function in FULL else None

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not isinstance(value, nn.Parameter):
            return value.to(dtype)
        return self.casts.setdefault(id(value), (value, value.to(dtype)))[1]


def _bare(value: Tensor) -> Tensor:
    """The shape of a parameter or buffer, without storage."""
    there = value.detach().to(META)
    return nn.Parameter(there, value.requires_grad) if isinstance(value, nn.Parameter) else there


@contextmanager
def _on_meta(module: Any, own: dict[str, Tensor]) -> Iterator[None]:
    """The module with `own` in place of its tensors, believing that it lives on the meta device."""
    device = module._device
    module._device = META
    try:
        with stateless._reparametrize_module(module, own):
            yield
    finally:
        module._device = device
