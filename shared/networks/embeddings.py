"""What enters a network: noise levels as vectors, and tables of categories that can also read out.

Knows numbers and ids; not what they stand for.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.networks.initial import initialise

LOG_SNR_LIMIT = 20.0  # beyond it the data are clean (or gone) to float32; levels there are not told apart
FASTEST = 256.0  # radians over the whole range of levels: neighbours of a 128-step grid are two radians apart


class LevelEmbedding(nn.Module):
    """Noise level -> vector of about unit scale: sinusoids of log-spaced frequencies, then two matrices.

    of: "t" (in [0, 1]) or "log_snr" (cut to [-20, 20]). features F: sinusoids, even. F D + D^2 parameters, and 2 D with
    `bias`. hidden: between the matrices (None: D).
    Matrices start at 1/sqrt(fan-in), not 0.02: at 0.02 the level would be a tenth of the embeddings it is added to.
    """

    frequency: Tensor  # [F/2] radians over the range of levels

    def __init__(self, width: int, features: int = 64, of: str = "t", bias: bool = False, hidden: int | None = None):
        super().__init__()
        if features < 4 or features % 2 or of not in ("t", "log_snr"):
            raise ValueError(f"features must be even and at least 4, `of` t or log_snr, got {features} and {of!r}")
        self.of = of
        self.up = nn.Linear(features, hidden or width, bias=bias)
        self.out = nn.Linear(hidden or width, width, bias=bias)
        self.register_buffer("frequency", torch.empty(features // 2), persistent=False)
        self.reset_parameters()

    def settle(self, depth: int) -> None:
        count = len(self.frequency)
        self.frequency.copy_(FASTEST ** (torch.arange(count) / (count - 1)))
        for linear in (self.up, self.out):
            nn.init.normal_(linear.weight, std=1 / math.sqrt(linear.in_features))

    def reset_parameters(self, depth: int = 1) -> None:
        initialise(self, depth)

    def forward(self, level: Tensor) -> Tensor:
        """level [...] -> [..., D]."""
        level = level.float()
        if self.of == "log_snr":
            level = level.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT) / (2 * LOG_SNR_LIMIT) + 0.5
        angle = level.unsqueeze(-1) * self.frequency
        sinusoids = math.sqrt(2) * torch.cat((angle.cos(), angle.sin()), dim=-1)
        return self.out(F.silu(self.up(sinusoids.to(self.up.weight.dtype))))


class Embedding(nn.Module):
    """Categories -> vectors, and back: `logits` reads with the same table (tied output, Press & Wolf 2017).

    factor: width of the table when it is thinner than the network (ALBERT's factorisation; None: full). unit: rows are
    normalised to norm 1 wherever they are used.
    """

    def __init__(self, count: int, width: int, factor: int | None = None, unit: bool = False):
        super().__init__()
        self.unit = unit
        self.table = nn.Embedding(count, factor or width)
        self.up = nn.Linear(factor, width, bias=False) if factor else None
        self.reset_parameters()

    def reset_parameters(self, depth: int = 1) -> None:
        initialise(self, depth)

    @property
    def rows(self) -> Tensor:
        """The table [count, factor or width] as it is used."""
        return F.normalize(self.table.weight, dim=-1) if self.unit else self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] -> [..., width]."""
        rows = F.embedding(ids, self.rows)
        return rows if self.up is None else self.up(rows)

    def logits(self, x: Tensor) -> Tensor:
        """x [..., width] -> [..., count]."""
        if self.up is not None:
            x = x @ self.up.weight
        return x @ self.rows.T
