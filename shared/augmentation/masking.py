"""Masking and deleting of ids: one by one (Devlin et al. 2019), in spans (Raffel et al. 2020), or out of the sequence.

Knows positions and one id that hides; not what an id means. `protect` [B, L] bool: positions that stay.
"""

import torch
from torch import Tensor

from shared.processes.draws import Rng, uniform


def chance(p: float | Tensor, shape: tuple[int, ...], rng: Rng, device: torch.device) -> Tensor:
    """Bool `shape`, True with probability p: a number, or one per row [B]."""
    p = torch.as_tensor(p, dtype=torch.float32, device=device)
    if p.ndim > 1 or (p.ndim == 1 and p.shape != shape[:1]):
        raise ValueError(f"p has shape {tuple(p.shape)} for {shape[0]} rows; give one number or one per row")
    return uniform(shape, rng, device=device) < p.view(-1, *[1] * (len(shape) - 1))


def mask_tokens(
    ids: Tensor, p: float | Tensor, mask_id: int, rng: Rng, protect: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Replace each of ids [B, L] by `mask_id` with probability p, a number or one per row [B].

    Returns ids and masked [B, L]. p = 0 changes nothing, p = 1 all but the protected.
    """
    masked = _spare(chance(p, tuple(ids.shape), rng, ids.device), protect)
    return ids.masked_fill(masked, mask_id), masked


def mask_spans(
    ids: Tensor, p: float | Tensor, mean_length: float, mask_id: int, rng: Rng, protect: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Replace runs of ids [B, L] by `mask_id`: a share p of positions (a number or [B]), in runs of mean `mean_length`.

    A two-state walk along the row in its stationary law: a run ends after each position with probability
    1 / mean_length and begins so often that every position is masked with probability p. Where p is too high for runs
    of that length, gaps have one position and runs grow longer.
    Returns ids and masked [B, L].
    """
    if mean_length < 1:
        raise ValueError(f"mean_length must be at least 1 position, got {mean_length}")
    p = torch.as_tensor(p, dtype=torch.float32, device=ids.device).expand(len(ids))
    stop = 1 / mean_length
    start = torch.where(p < 1, stop * p / (1 - p).clamp(min=1e-12), 1.0)
    too_often = start > 1  # runs of the wished length cannot cover that much: begin at once, end more seldom
    stop_row = torch.where(too_often | (p >= 1), (1 - p) / p.clamp(min=1e-12), stop)
    u = uniform(ids.shape, rng, device=ids.device)
    inside, columns = u[:, 0] < p, []
    for column in u.unbind(1)[1:]:
        columns.append(inside)
        inside = torch.where(inside, column >= stop_row, column < start)
    masked = _spare(torch.stack([*columns, inside], 1), protect)
    return ids.masked_fill(masked, mask_id), masked


def delete_tokens(
    ids: Tensor, p: float | Tensor, rng: Rng, protect: Tensor | None = None, pad_id: int = 0
) -> tuple[Tensor, Tensor]:
    """Take ids [B, L] out with probability p, a number or one per row [B]; the rest moves left, `pad_id` fills the end.

    Returns ids [B, L] and kept_index [B, L] int64: where each came from, -1 in the filling. Protect padding to keep it.
    """
    gone = _spare(chance(p, tuple(ids.shape), rng, ids.device), protect)
    order = gone.int().argsort(dim=1, stable=True)
    filled = gone.gather(1, order)
    return ids.gather(1, order).masked_fill(filled, pad_id), order.masked_fill(filled, -1)


def _spare(hit: Tensor, protect: Tensor | None) -> Tensor:
    return hit if protect is None else hit & ~protect
