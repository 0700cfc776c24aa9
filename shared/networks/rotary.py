"""Rotary positions (Su et al. 2021) on one, two or three axes: queries and keys turn, scores see differences only.

Every axis owns a share of the head's pairs; a position of zeros is the identity, so tokens without a place need no
special case. Knows positions as numbers (integers or fractions), not what they count.
Legend: A axes, H heads, K head width.
"""

import torch
from torch import Tensor, nn

Rotation = tuple[Tensor, Tensor]  # cos, sin, each [..., K/2] in float32 for heads of width K


class Rotary(nn.Module):
    """Angles for positions with `len(axes)` coordinates; `axes[a]` is the (even) number of head channels of axis a.

    `sum(axes)` must be the head width. `theta`: the slowest pair of an axis turns about once in 2 pi theta positions.
    """

    frequency: Tensor  # [K/2] radians per unit of position
    axis: Tensor  # [K/2] the coordinate each pair reads

    def __init__(self, axes: tuple[int, ...] = (16, 16), theta: float = 100.0):
        super().__init__()
        if not axes or any(width <= 0 or width % 2 for width in axes):
            raise ValueError(
                f"axes must be even channel counts, one per coordinate, got {tuple(axes)}; pairs are turned together"
            )
        self.axes, self.theta = tuple(axes), theta
        self.register_buffer("frequency", torch.empty(sum(axes) // 2), persistent=False)
        self.register_buffer("axis", torch.empty(sum(axes) // 2, dtype=torch.long), persistent=False)
        self.reset_parameters()

    def settle(self, depth: int = 1) -> None:
        pairs = [torch.arange(width // 2) / (width // 2) for width in self.axes]
        self.frequency.copy_(self.theta ** -torch.cat(pairs))
        self.axis.copy_(torch.tensor([a for a, width in enumerate(self.axes) for _ in range(width // 2)]))

    def reset_parameters(self) -> None:
        self.settle()

    def rotation(self, position: Tensor) -> Rotation:
        """position [..., A] -> (cos, sin), each [..., K/2] float32."""
        if position.shape[-1] != len(self.axes):
            raise ValueError(
                f"position has {position.shape[-1]} coordinates, Rotary(axes={self.axes}) wants {len(self.axes)}"
            )
        angle = position.float().index_select(-1, self.axis) * self.frequency
        return angle.cos(), angle.sin()

    forward = rotation


def rotate(x: Tensor, rotation: Rotation | None) -> Tensor:
    """Turn the pairs (i, i + K/2) of x [..., H, K] by the angles of `rotation` [..., K/2]; None leaves x alone."""
    if rotation is None:
        return x
    cos, sin = (part.unsqueeze(-2) for part in rotation)
    if 2 * cos.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"the rotation turns {2 * cos.shape[-1]} channels, the heads have {x.shape[-1]}; "
            "give Rotary axes that sum to the head width"
        )
    first, second = x.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    return x * torch.cat((cos, cos), dim=-1) + swapped * torch.cat((-sin, sin), dim=-1)
