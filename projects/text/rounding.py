"""The embedding table E: tokens as rows, nearest rows as tokens, and what x_t says of a token by itself.

One object serves target, clamp, head and sampler, so they cannot stand in different spaces. A table learnt with the
model is Li et al. 2022 (Diffusion-LM), the sphere Dieleman et al. 2022 (CDCD), the bias Gulrajani and Hashimoto 2023
(Plaid). x0 is E[w] and nothing else: no position, no dropout. Knows no vocabulary and no schedule.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.processes.schedules import spread
from shared.sampling import closeness


class Rows(nn.Embedding):
    """E [V, e]. norm: sphere = rows of length `radius`; layernorm = the same, each row centred first; free = as learnt.

    radius None: sqrt(width), so that a coordinate has rms 1; free rows begin there. Norms hold at use, so no update and
    no average breaks them.
    """

    def __init__(
        self,
        count: int,
        width: int,
        norm: Literal["sphere", "layernorm", "free"] = "sphere",
        radius: float | None = None,
        device=None,
    ):
        if norm not in ("sphere", "layernorm", "free"):
            raise ValueError(f"norm {norm!r} is unknown; choose sphere, layernorm or free")
        super().__init__(count, width, device=device)
        self.norm, self.radius = norm, math.sqrt(width) if radius is None else radius
        self.settle(0)

    def settle(self, depth: int) -> None:
        """Where a norm holds, the stored length is a learning rate and nothing else: any start does."""
        if self.norm == "free":
            nn.init.normal_(self.weight, std=self.radius / math.sqrt(self.embedding_dim))

    @torch.no_grad()
    def start_from(self, table: Tensor) -> float:
        """Begin at rows that were learnt elsewhere [V, d]; another width is cut to its principal components.

        Returns the share of their variance that is left.
        """
        table = table.to(self.weight)
        if table.shape[1] == self.embedding_dim:
            self.weight.copy_(table)
            return 1.0
        left, size, _ = torch.linalg.svd(table - table.mean(0), full_matrices=False)
        self.weight.copy_((left * size)[:, : self.embedding_dim])
        power = size.square().cumsum(0)
        return float(power[self.embedding_dim - 1] / power[-1])

    @property
    def rows(self) -> Tensor:
        """E, float32 [V, e]."""
        raw = self.weight.float()
        if self.norm == "free":
            return raw
        return self.radius * F.normalize(raw if self.norm == "sphere" else raw - raw.mean(-1, keepdim=True), dim=-1)

    def forward(self, ids: Tensor) -> Tensor:
        """x0 float32 [..., e] of ids [...]."""
        return F.embedding(ids, self.rows)

    @property
    def radius_squared(self) -> float | Tensor:
        """Mean squared length of a row: a number where the norm holds it, read off the table (0-dim) if free."""
        return self.rows.detach().square().sum(-1).mean() if self.norm == "free" else self.radius**2

    @property
    def rms(self) -> float | Tensor:
        """Of a coordinate of x0."""
        return (self.radius_squared / self.embedding_dim) ** 0.5

    def nearest(self, x: Tensor, metric: Literal["l2", "cosine"] = "l2") -> Tensor:
        """Ids [...] of the rows closest to x [..., e]."""
        with torch.autocast(x.device.type, enabled=False):
            return closeness(x.float(), self.rows, metric).argmax(-1)

    def mean(self, shares: Tensor) -> Tensor:
        """x0 [..., e] as it is believed with these shares [..., V] of the tokens."""
        return shares @ self.rows

    def bias(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """ln p(x_t | token) [..., V] up to what all tokens share: alpha/sigma^2 (x_t.E_v - alpha |E_v|^2 / 2), float32.

        alpha, sigma > 0 have leading dims of x_t [..., e]. Lengths that the norm makes equal are left out: at high SNR
        they would only add their rounding errors.
        """
        with torch.autocast(x_t.device.type, enabled=False):
            rows, alpha, sigma = self.rows, spread(alpha.float(), x_t), spread(sigma.float(), x_t)
            match = x_t.float() @ rows.T
            if self.norm == "free":
                match = match - alpha * rows.square().sum(-1) / 2
            return alpha / sigma.square() * match
