"""The trunk of Diffusion-LM (Li et al. 2022), and of the earlier system: torch's post-norm encoder layers, learned
positions, the noise level added once at the input. `Denoiser` is what the line trains; this is what it is compared to.

Weights start as torch starts them, as theirs did. Knows no corpus and no sampler.
Legend: B batch, L length, E embedding width, D model width, V vocabulary.
"""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.text.network import Network, Prediction
from projects.text.rounding import Rows
from shared.networks import LevelEmbedding, flops, initialise
from shared.processes.schedules import Schedule
from shared.training.errors import Mistake


class Encoder(Network):
    """Linear-Tanh-Linear up and down where E is not D.

    level: sinusoids of the log-SNR; level_hidden: between its matrices. level_into: it is added to the stream [D], or
    to x_t [E]. places: rows of the table of positions (None: length; 0: x0 brings its own, and its norm). dropout: on
    the stream's start and in the layers. The rest as in `Denoiser`.
    """

    def __init__(
        self,
        schedule: Schedule,
        rows: Rows,
        length: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        level: int,
        level_hidden: int = 512,
        level_into: Literal["stream", "rows"] = "stream",
        places: int | None = None,
        dropout: float = 0.0,
        head: str = "tied",
        logit_bias: bool = True,
        causal: bool = False,
        hears: bool = True,
        prediction: Prediction = "logits",
    ):
        super().__init__(schedule, rows, length, head, logit_bias, prediction)
        dim, self.causal, self.level_into = rows.embedding_dim, causal, level_into
        self.up, self.down = bridge(dim, width, width), bridge(width, width, self.read)
        self.belief = nn.Linear(dim, width, bias=False) if hears else None
        told = width if level_into == "stream" else dim
        self.level = LevelEmbedding(told, features=level, of="log_snr", bias=True, hidden=level_hidden)
        places = length if places is None else places
        if 0 < places < length:
            raise Mistake(
                f"model.network.places is {places}, a row has {length} tokens; give {length} or more, or none."
            )
        self.place = nn.Embedding(places, width) if places else None
        self.norm = nn.LayerNorm(width) if places else None
        self.dropout = nn.Dropout(dropout)
        gelu = partial(F.gelu)  # which torch does not know, so it takes no shortcut that adapters are not asked in
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, hidden, dropout, gelu, batch_first=True) for _ in range(depth)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the weights anew, from the global generator."""
        initialise(self, len(self.blocks))

    def settle(self, depth: int) -> None:
        for part in (*self.blocks.modules(), *self.up.modules(), *self.down.modules()):
            if isinstance(part, nn.MultiheadAttention):
                part._reset_parameters()
            elif isinstance(part, nn.Linear):
                part.reset_parameters()
        super().settle(depth)

    def forward(self, x: Tensor, t: Tensor, belief: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """As `Denoiser.forward`."""
        with torch.autocast(x.device.type, enabled=False):
            alpha_B, sigma_B, _ = self.scales(x, t)
            level_B1K = self.level(self.schedule.log_snr(t)).unsqueeze(1)
        x_BLD = self.up(x + level_B1K) if self.level_into == "rows" else self.up(x) + level_B1K
        x_BLD = self.dropout(self.placed(self.hearing(x_BLD, belief)))
        future_LL, hidden_BL = self.future(x), None if valid is None else ~valid
        for block in self.blocks:
            x_BLD = block(x_BLD, future_LL, hidden_BL)
        return self.named(self.down(x_BLD), x, alpha_B, sigma_B)

    def placed(self, x_BLD: Tensor) -> Tensor:
        """The stream told its places."""
        if self.place is None or self.norm is None:
            return x_BLD
        return self.norm(x_BLD + self.place(torch.arange(x_BLD.shape[1], device=x_BLD.device)))

    def future(self, x: Tensor) -> Tensor | None:
        """bool [L, L], True where a causal trunk does not look."""
        length = x.shape[1]
        return torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1) if self.causal else None

    def trunk_flops(self, samples: int, tokens: int) -> int:
        width = self.blocks[0].linear1.in_features
        inside = sum(flops.matrices(block, tokens) for block in self.blocks)  # all but queries, keys and values
        attention = len(self.blocks) * (6 * tokens * width**2 + 4 * tokens * self.length * width)
        ends = sum(flops.matrices(part, tokens) for part in (self.up, self.down, self.belief) if part is not None)
        return inside + attention + ends + flops.matrices(self.level, samples)


def bridge(first: int, middle: int, last: int) -> nn.Module:
    """Linear-Tanh-Linear between two widths, nothing between equal ones."""
    if first == last:
        return nn.Identity()
    return nn.Sequential(nn.Linear(first, middle), nn.Tanh(), nn.Linear(middle, last))
