"""Tensors that are cut over ranks (torch's DTensor): made whole, and cut like another. Knows no network, no Trainer."""

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself or, for one that is cut, all of it; then it is a collective: every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """This rank's part, sharing memory with the cut tensor; a whole tensor is its own part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cut_like(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor, cut as `other` is if that has its shape; every rank must hold all of it."""
    if not isinstance(other, DTensor) or isinstance(tensor, DTensor) or tensor.shape != other.shape:
        return tensor
    mesh, there = other.device_mesh, tensor.to(other.device)
    return distribute_tensor(there, mesh, other.placements, src_data_rank=None)
