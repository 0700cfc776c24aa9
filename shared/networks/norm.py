"""Root-mean-square norm (Zhang & Sennrich 2019), with the shift and scale of a condition where there is one.

For float32 on the CPU norm, shift and scale are one operation with a backward of its own, which keeps one tensor of x's
size where the formula keeps three: a text update at nano takes 5 to 8 % less. It has no second derivative.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shared.networks.conditioning import modulate

EPS = 1e-6


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight over the last dimension, then (1 + scale) and shift if they are given.

    Off the CPU and in half precision the norm is torch's own kernel.
    """

    def __init__(self, width: int):
        super().__init__(width, eps=EPS)

    def forward(self, x: Tensor, shift: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        if x.device.type != "cpu" or x.dtype.itemsize < 4:
            x = super().forward(x)
            return x if shift is None or scale is None else modulate(x, shift, scale)
        return _Normed.apply(x, self.weight if scale is None else self.weight * (1 + scale), shift)


class _Normed(torch.autograd.Function):
    """u gain + shift with u = x / rms(x); gain and shift broadcast over x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, shift: Tensor | None) -> Tensor:
        inverse = (x.square().mean(-1, keepdim=True) + EPS).rsqrt()
        unit = x * inverse
        ctx.save_for_backward(unit, inverse, gain)
        ctx.shift = None if shift is None else shift.shape
        return unit * gain if shift is None else torch.addcmul(shift, unit, gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (unit, inverse, gain) = grads, ctx.saved_tensors
        to_gain = (grad * unit).sum_to_size(gain.shape)
        to_shift = None if ctx.shift is None else grad.sum_to_size(ctx.shift)
        inner = grad * gain
        radial = (inner * unit).mean(-1, keepdim=True)
        return inner.addcmul_(unit, radial, value=-1).mul_(inverse), to_gain, to_shift
