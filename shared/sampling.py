"""The walk back: grids of t, the one loop, and what may be wrapped round `denoise` or `step`.

Every rule beyond the loop is a wrapper: new behaviour wraps, it adds no flag. Ideas: one denoiser signature with plain
functions round it (Crowson, k-diffusion); guidance (Ho and Salimans 2022); self-conditioning (Chen et al. 2022);
clamping to a table (Li et al. 2022); confidence order (Chang et al. 2022, MaskGIT); pyramid grids (Chen et al. 2024,
Diffusion Forcing). Knows no process: the caller hands over the step of the process that trained, its generators bound
by functools.partial. A step made here passes a trailing rng through: bind it before or after wrapping.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.processes.schedules import Clock, hold, spread, time_of

Denoise = Callable[[Tensor, Tensor], Tensor]  # x, t -> belief
Step = Callable[..., Tensor]  # x, belief, t, s -> x


@torch.no_grad()
def sample(denoise: Denoise, step: Step, x: Tensor, grid: Tensor, watch: Callable | None = None) -> Tensor:
    """Walk x [B, ...] from t = 1 to 0 along grid [S+1] or [S+1, T]; both callables see t of shape [B] or [B, T].

    Where a column of the grid has equal neighbours it waits. `watch(t=, x=, belief=)` is called after each step.
    """
    check_grid(grid)
    if getattr(denoise, "training", False):
        raise ValueError("the network is in training mode: dropout would be sampled; call network.eval() first")
    times = grid.to(x.device).unsqueeze(1).expand(-1, len(x), *grid.shape[1:])
    for t, s in pairwise(times):
        belief = denoise(x, t)
        x = step(x, belief, t, s)
        if watch is not None:
            watch(t=t, x=x, belief=belief)
    return x


def check_grid(grid: Tensor) -> None:
    """Raise unless every column falls from 1 to 0 without rising."""
    if grid.ndim not in (1, 2) or len(grid) < 2 or not grid.is_floating_point():
        raise ValueError(
            f"grid has shape {list(grid.shape)} and dtype {grid.dtype}; give floats of shape [S+1] or [S+1, T]"
        )
    ends = bool((grid[0] == 1).all() and (grid[-1] == 0).all())
    if not ends or not bool((grid.diff(dim=0) <= 0).all()):
        first, last = grid[0].flatten()[0].item(), grid[-1].flatten()[0].item()
        raise ValueError(f"grid must fall from 1 to 0, got {first:.3f} to {last:.3f}; did you pass tau = 1 - t?")


# --- grids ------------------------------------------------------------------------------------------------------------


def uniform_grid(n: int) -> Tensor:
    """n equal steps: float32 [n+1] from 1 to 0."""
    return _steps(n).float()


def _steps(n: int) -> Tensor:
    if n < 1:
        raise ValueError(f"a walk of {n} steps was asked for; give at least 1")
    return torch.linspace(1, 0, n + 1, dtype=torch.float64)


def karras_grid(n: int, rho: float = 7.0, t_min: float = 2e-3) -> Tensor:
    """Strides that shrink towards the data (Karras et al. 2022, eq. 5, t for sigma); t_min is the last level asked."""
    if n == 1:
        return uniform_grid(1)
    ramp = torch.linspace(1, t_min ** (1 / rho), n, dtype=torch.float64)
    return torch.cat([ramp**rho, ramp.new_zeros(1)]).float()


def warped_grid(schedule, n: int, limit: float = 10.0) -> Tensor:
    """n strides of equal log-SNR, within +-limit or where the schedule ends; the first and last level are 1 and 0."""
    ends = schedule.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64)).clamp(-limit, limit)
    wanted = ends[0] + (ends[1] - ends[0]) * (1 - _steps(n))
    grid = time_of(schedule, wanted)
    grid[0], grid[-1] = 1.0, 0.0
    return grid.float()


def pyramid_grid(n: int, columns: int, lag: int) -> Tensor:
    """Column j falls in n steps, `lag` steps after column j - 1: float32 [n + lag (T-1) + 1, T] (Diffusion Forcing)."""
    _steps(n)
    start = lag * torch.arange(columns, dtype=torch.float64)
    rows = torch.arange(n + lag * (columns - 1) + 1, dtype=torch.float64).unsqueeze(1)
    return (1 - (rows - start) / n).clamp(0, 1).float()


def sequential_grid(n: int, columns: int) -> Tensor:
    """One column after the other, n steps each: [n T + 1, T]."""
    return pyramid_grid(n, columns, lag=n)


# --- wrappers of denoise ----------------------------------------------------------------------------------------------


def guided(net: Denoise, null: Denoise, w: float) -> Denoise:
    """belief + w (belief - null's belief); w = 0 is `net` itself and never calls `null`."""
    if w == 0:
        return net

    def denoise(x, t):
        belief = net(x, t)
        return belief + w * (belief - null(x, t))

    return denoise


def self_conditioned(net: Callable[[Tensor, Tensor, Tensor], Tensor], num_classes: int | None = None) -> Denoise:
    """net(x, t, previous belief). A walk begins with zeros: of the shape of x, or [..., num_classes] where given."""
    clock, memory = Clock(), dict[str, Tensor]()

    def denoise(x, t):
        shape = x.shape if num_classes is None else (*x.shape, num_classes)
        previous, restarted = memory.get("belief"), clock.restarted(t)
        if previous is None or previous.shape != shape:
            previous = torch.zeros(shape, device=x.device, dtype=t.dtype)
        memory["belief"] = net(x, t, previous.masked_fill(spread(restarted, previous), 0))
        return memory["belief"]

    return denoise


def rounded(
    net: Denoise,
    table: Tensor,
    metric: Literal["l2", "cosine", "dot"] = "l2",
    soft: float | None = None,
    start: float = 1.0,
) -> Denoise:
    """Belief [..., D] moved to the nearest row of table [V, D], or to the mean of rows under softmax(closeness/soft).

    start: acts where t <= start.
    """

    def denoise(x, t):
        belief = net(x, t)
        return torch.where(spread(t <= start, belief), _nearest(belief, table, metric, soft).to(belief.dtype), belief)

    return denoise


def _nearest(belief: Tensor, table: Tensor, metric: str, soft: float | None) -> Tensor:
    with torch.autocast(belief.device.type, enabled=False):
        rows = table.to(torch.promote_types(belief.dtype, torch.float32))
        near = closeness(belief.to(rows.dtype), rows, metric)
        return rows[near.argmax(-1)] if soft is None else torch.softmax(near / soft, -1) @ rows


def closeness(x: Tensor, table: Tensor, metric: str) -> Tensor:
    """[..., V], larger is nearer: minus squared distance (up to |x|^2), cosine, or dot product."""
    if metric == "cosine":
        x, table = F.normalize(x, dim=-1), F.normalize(table, dim=-1)
    if metric not in ("l2", "cosine", "dot"):
        raise ValueError(f"metric {metric!r} is unknown; choose l2, cosine or dot")
    dot = x @ table.T
    return 2 * dot - table.square().sum(-1) if metric == "l2" else dot


def bounded(net: Denoise, low: float, high: float) -> Denoise:
    """Belief cut to [low, high]."""
    return lambda x, t: net(x, t).clamp(low, high)


class Counted:
    """Counts the calls of a denoiser: `.calls`. Put it innermost, then guidance counts twice."""

    def __init__(self, net: Denoise):
        self.net, self.calls = net, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x, t)


# --- wrappers of step -------------------------------------------------------------------------------------------------


def pinned(step: Step, known: Tensor, value_at: Tensor | float | Callable[[Tensor], Tensor]) -> Step:
    """After every step x holds `value_at` (a value, or a function of s) where `known`, bool over leading dims of x."""

    def held(x, belief, t, s, *rng):
        x = step(x, belief, t, s, *rng)
        return torch.where(spread(known, x), value_at(s) if callable(value_at) else value_at, x)

    return held


def renoise(process) -> Step:
    """x0 from the belief, corrupted afresh to s: no memory of x_t (a diagnostic; some papers' sampler)."""

    def step(x, belief, t, s, rng):
        x0 = process.decide(belief, s, rng)
        return hold(x, process.corrupt(x0, process.draw(x0, rng), s), t, s)

    return step


def switched(first: Step, second: Step, at: float) -> Step:
    """`first` while t > at, then `second`."""

    def step(x, belief, t, s, *rng):
        late = spread(t <= at, x)
        return torch.where(late, second(x, belief, t, s, *rng), first(x, belief, t, s, *rng))

    return step


def own_probability(belief: Tensor, choice: Tensor) -> Tensor:
    """Probability that the belief [..., K] gives to the ids that were drawn [...]."""
    return torch.softmax(belief.float(), -1).gather(-1, choice.unsqueeze(-1)).squeeze(-1)


def by_confidence(
    step: Step,
    score: Callable[[Tensor, Tensor], Tensor] = own_probability,
    per_step: int | Callable[[Tensor, Tensor], Tensor] = 1,
    is_open: Callable[[Tensor], Tensor] | None = None,
) -> Step:
    """Of the cells still open, keep the surest of a full proposal and leave the others as they are (MaskGIT).

    The proposal is `step` walked to s = 0; score(belief, proposal) -> [B, ...]; per_step new cells, or a function of
    (t, s) giving that many per sample [B]; all that is left at s = 0. is_open(x) says which cells are open (x == mask);
    without it the cells kept so far are remembered until a new walk begins.
    """
    clock, memory = Clock(), dict[str, Tensor]()

    def surest_first(x, belief, t, s, *rng):
        restarted = clock.restarted(t)
        kept = memory.get("kept")
        if is_open is not None:
            kept = ~is_open(x)
        elif kept is None or kept.shape != x.shape:
            kept = torch.zeros_like(x, dtype=torch.bool)
        else:
            kept = kept & ~spread(restarted, x)
        proposal = step(x, belief, t, torch.zeros_like(s), *rng)
        number = per_step(t, s) if callable(per_step) else torch.full((len(x),), per_step, device=x.device)
        number = torch.where(s.reshape(len(x), -1).amax(1) == 0, x[0].numel(), number)
        chosen = _top(score(belief, proposal).masked_fill(kept, -torch.inf), number) & ~kept
        memory["kept"] = kept | chosen
        return torch.where(chosen, proposal, x)

    return surest_first


def _top(score: Tensor, number: Tensor) -> Tensor:
    """bool like score [B, ...]: the `number` [B] largest of each row; ties fall to the smaller index."""
    order = score.flatten(1).argsort(dim=1, descending=True, stable=True)
    return (order.argsort(1) < number.unsqueeze(1)).view(score.shape)


class Trajectory:
    """A `watch` that keeps t, x and belief of every `every`-th step on the CPU; `stacked()` gives [steps, B, ...]."""

    def __init__(self, every: int = 1):
        self.every, self.steps = every, 0
        self.t: list[Tensor] = []
        self.x: list[Tensor] = []
        self.belief: list[Tensor] = []

    def __call__(self, t: Tensor, x: Tensor, belief: Tensor) -> None:
        if self.steps % self.every == 0:
            for kept, value in ((self.t, t), (self.x, x), (self.belief, belief)):
                kept.append(value.detach().to("cpu", copy=True))
        self.steps += 1

    def stacked(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.stack(self.t), torch.stack(self.x), torch.stack(self.belief)
