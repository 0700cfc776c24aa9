"""The earlier system's wrong ways by name, for its recipes and for the tests that must see them fail.

`Compat` gives the module its table, its walk and its spelling; with nothing switched on they are the line's own. Nobody
else knows of them, and metrics are never touched: they see what was really drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from packages.text.vocabulary import SPECIALS
from projects.text import sampling
from projects.text.rounding import Rows
from projects.text.sampling import Clamp, Sampling, Walk
from shared import sampling as house
from shared.processes import Gaussian
from shared.processes.draws import Rng
from shared.processes.schedules import Schedule, spread
from shared.sampling import Denoise
from shared.training.errors import Mistake
from shared.training.pretrained import build

if TYPE_CHECKING:
    from projects.text.network import Network

STRIDES = ("ddpm", "ddim")  # the walks that step by the process's own posterior


@dataclass
class Compat:
    """Config group `model.compat`: what the earlier system did wrong, each by itself; all of it is off by default.

    stride: adjacent = a walk moves by the posterior of one step of 2000, however far it says that it went. clamp_space:
    raw_rows = a clamp moves beliefs to the stored weights, where x0 is made of them and not they themselves.
    clamp_metric: dot = to the row of the largest product (None: as `sampling` says). x0: placed = rows and positions,
    summed and put through a LayerNorm, then dropped out with probability x0_dropout. specials: skipped = the text that
    is shown leaves them out.
    """

    stride: Literal["exact", "adjacent"] = "exact"
    clamp_space: Literal["x0", "raw_rows"] = "x0"
    clamp_metric: Literal["dot"] | None = None
    x0: Literal["rows", "placed"] = "rows"
    x0_dropout: float = 0.1
    specials: Literal["shown", "skipped"] = "shown"

    def __post_init__(self) -> None:
        if not 0 <= self.x0_dropout < 1:
            raise ValueError(f"model.compat.x0_dropout is {self.x0_dropout}; it is a probability below 1.")

    def table(self, length: int, **sizes: Any) -> Rows:
        """The table of rows of a network for so many places. sizes: arguments of `Rows`."""
        if self.x0 == "rows":
            return build(Rows, **sizes)
        return build(Placed, length=length, dropout=self.x0_dropout, **sizes)

    def walk(self, network: Network, process: Gaussian, options: Sampling, n: int, rng: Rng, star: float) -> Walk:
        """`sampling.walk`. Mistake: a network or a walk that a wrong way does not fit."""
        if self.x0 == "placed" and network.prediction != "x0":
            raise Mistake("model.compat.x0 is placed, and this objective believes in plain rows; take diffusion_lm.")
        if self.stride == "adjacent" and options.kind not in STRIDES:
            raise Mistake(
                f"model.compat.stride is adjacent and sampling.kind {options.kind}, which does not step by a posterior;"
                f" take {' or '.join(STRIDES)}, or leave stride exact."
            )
        if self.stride == "adjacent":
            process = Adjacent(process.schedule)
        if self.clamp_metric:
            options = replace(options, clamp_metric=self.clamp_metric)  # type: ignore[arg-type]
        return sampling.walk(network, process, options, n, rng, star, self.clamp(network.rows))

    def clamp(self, rows: Rows) -> Clamp | None:
        """What a clamp does with this table; None: what it does with any."""
        if self.clamp_space == "raw_rows":
            return partial(house.rounded, table=rows.weight)
        return partial(replaced, rows=rows) if isinstance(rows, Placed) else None

    def joined(self, joined: Callable[[Sequence[str]], str]) -> Callable[[Sequence[str]], str]:
        """The words of a row as the text that is shown, by the text of any words."""
        if self.specials == "shown":
            return joined
        return lambda words: joined([word for word in words if word not in SPECIALS])

    def facts(self) -> dict[str, str]:
        """What a report must say of these."""
        wrong = [f"{field.name} {getattr(self, field.name)}" for field in fields(self)
                 if getattr(self, field.name) != field.default]  # fmt: skip
        return {"compat": ", ".join(wrong)} if wrong else {}


class Adjacent(Gaussian):
    """Moves by the posterior of one step of `steps`, from t to t - 1/steps, and says that it has arrived at s.

    Right on a grid of all `steps` times; on a shorter one the signal stays behind what is claimed.
    """

    def __init__(self, schedule: Schedule, eta: float = 1.0, steps: int = 2000):
        super().__init__(schedule, eta)
        self.steps = steps

    def moments(self, x_t, belief, t, s, eta=1.0):
        return super().moments(x_t, belief, t, (t - 1 / self.steps).clamp(min=0), eta)


class Placed(Rows):
    """A table whose x0 is LayerNorm(E[w] + place), dropped out in training, and not E[w]: what BERT's trunk is fed.

    `rows` stays E, by which the head reads. What x_t says of a token by itself is read where x0 lies, place by place:
    token n of [..., n] stands at place n (modulo length).
    """

    def __init__(self, count: int, width: int, length: int, dropout: float = 0.1, **sizes: Any):
        super().__init__(count, width, **sizes)
        self.place, self.scale, self.dropout = nn.Embedding(length, width), nn.LayerNorm(width), nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        return self.dropout(self._placed(super().forward(ids), ids.shape[-1]))

    def _placed(self, rows: Tensor, count: int) -> Tensor:
        """x0 [..., count, e] of rows that stand at `count` places, without dropout."""
        with torch.autocast(rows.device.type, enabled=False):
            return self.scale(rows + self.place(torch.arange(count, device=rows.device) % self.place.num_embeddings))

    @property
    def radius_squared(self) -> Tensor:
        """As the LayerNorm sets it."""
        return self.embedding_dim * (self.scale.weight.square().mean() + self.scale.bias.square().mean()).detach()

    def nearest(self, x: Tensor, metric: Literal["l2"] = "l2") -> Tensor:
        """Ids [..., n] of the tokens whose x0 at their place is closest."""
        one = torch.ones((), device=x.device)
        return self.bias(x, one, one).argmax(-1)

    def everywhere(self, count: int) -> Tensor:
        """x0 [count, V, e] of every token at each of `count` places, without dropout."""
        return self._placed(self.rows.unsqueeze(1).expand(-1, count, -1), count).transpose(0, 1)

    def mean(self, shares: Tensor) -> Tensor:
        return torch.einsum("...nv,nve->...ne", shares, self.everywhere(shares.shape[-2]))

    def bias(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        with torch.autocast(x_t.device.type, enabled=False):
            (alpha, sigma), x0_NVE = (spread(s.float(), x_t) for s in (alpha, sigma)), self.everywhere(x_t.shape[-2])
            match = torch.einsum("...ne,nve->...nv", x_t.float(), x0_NVE) - alpha * x0_NVE.square().sum(-1) / 2
            return alpha / sigma.square() * match


def replaced(denoise: Denoise, rows: Rows, metric: str, start: float) -> Denoise:
    """The belief moved to the x0 of the row that is nearest to it, told its place again; acts where t <= start."""

    def belief(x: Tensor, t: Tensor) -> Tensor:
        found = denoise(x, t)
        ids = house.closeness(found, rows.rows, metric).argmax(-1)
        return torch.where(spread(t <= start, found), rows(ids), found)

    return belief
