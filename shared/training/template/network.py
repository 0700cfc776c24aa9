"""A residual MLP over points of the plane that is told the noise level. Knows no process and no data.

Shapes: B points, W width. W^2 + 72W + 2 + depth (8W^2 + 6W) parameters.
"""

from torch import Tensor, nn

from shared.networks import Head, LevelEmbedding, initialise


class Block(nn.Module):
    """x + MLP(norm(x)), W -> 4W -> W."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x_BW: Tensor) -> Tensor:
        return x_BW + self.down(nn.functional.gelu(self.up(self.norm(x_BW))))

    def settle(self, depth: int) -> None:
        """Unit variance through the block; each of `depth` blocks adds its share to the stream."""
        nn.init.normal_(self.up.weight, std=self.up.in_features**-0.5)
        nn.init.normal_(self.down.weight, std=(self.down.in_features * depth) ** -0.5)


class TemplateNetwork(nn.Module):
    """x_t [B, 2], t [B] -> what the process reads as a belief [B, 2]; zero at the start."""

    def __init__(self, width: int, depth: int):
        super().__init__()
        self.input = nn.Linear(2, width)
        self.level = LevelEmbedding(width, bias=True)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.output = Head(width, 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        initialise(self, len(self.blocks))

    def settle(self, depth: int) -> None:
        nn.init.normal_(self.input.weight)  # as visible as the level it is added to

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x_BW = self.input(x) + self.level(t)
        for block in self.blocks:
            x_BW = block(x_BW)
        return self.output(self.norm(x_BW))
