"""Losses per sample, and the sums that make them exact over ranks and micro-batches.

Losses return one float32 (float64 stays float64) number per sample, [B]; nothing is reduced over the batch here.
`where` is a bool mask [B, ...], True = counts; a row with nothing to count gives 0. Row means are summed in float64, so
masked rows and columns change nothing. Knows no network and no recipe: weights and mixes belong to the projects.
"""

import math
from itertools import pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# --- losses -----------------------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, target: Tensor, where: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats over the counted cells of each sample. logits [B, ..., K], target int64 [B, ...]."""
    logits = _exact(logits)
    if where is not None:
        target = target.masked_fill(~where, 0)  # what stands outside need not be a class
    loss = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none", label_smoothing=label_smoothing)
    return row_mean(loss.view(target.shape), where)


def entropy_floor(num_classes: int, label_smoothing: float) -> float:
    """The least value that a smoothed cross-entropy can take: the entropy of its target, in nats."""
    off = label_smoothing / num_classes
    on = 1 - label_smoothing + off
    return -sum(share * math.log(share) for share in [on] + [off] * (num_classes - 1) if share > 0)


def squared_error(x: Tensor, y: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean of (x - y)^2 over the counted entries of each sample; `where` may lack trailing dims of x."""
    return row_mean((_exact(x) - _exact(y)).square(), where)


def huber(x: Tensor, y: Tensor, where: Tensor | None = None, delta: float = 1.0) -> Tensor:
    """Mean Huber loss: d^2/2 up to delta, then delta (|d| - delta/2)."""
    return row_mean(F.huber_loss(_exact(x), _exact(y), reduction="none", delta=delta), where)


def kl(p: Tensor, q: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean of KL(p || q) in nats over the counted cells; p, q probabilities [B, ..., K], p = 0 gives 0."""
    p = _exact(p)
    q = torch.where(p > 0, _exact(q), 1)  # no 0/0 in the gradient
    return row_mean((torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1), where)


def info_nce(a: Tensor, b: Tensor, temperature: float = 0.05) -> Tensor:
    """Contrastive loss of a_i [B, D] to its partner b_i among all b, by cosine (van den Oord et al. 2018) -> [B].

    With a process group the partners of all ranks (equal B) are negatives too, and gradients flow back to their ranks.
    """
    a, b = F.normalize(_exact(a), dim=-1), F.normalize(_exact(b), dim=-1)
    own = torch.arange(len(a), device=a.device) + (dist.get_rank() * len(a) if _ranks() > 1 else 0)
    everyone = _Gather.apply(b) if _ranks() > 1 else b
    return F.cross_entropy(a @ everyone.T / temperature, own, reduction="none")


class _Gather(torch.autograd.Function):
    """All ranks' rows in rank order; the gradient of a row is the sum over the ranks that used it."""

    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x) for _ in range(_ranks())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, *grads):
        total = grads[0].contiguous()
        dist.all_reduce(total)
        return total.chunk(_ranks())[dist.get_rank()]


def fused_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, where: Tensor | None = None, chunk: int = 4096
) -> Tensor:
    """Cross-entropy of logits hidden [M, D] @ weight [K, D].T per row -> [M], 0 where masked.

    Rows go through in chunks that are computed again in the backward pass: never more than [chunk, K] logits exist.
    """
    target = target if where is None else target.masked_fill(~where, 0)
    rows = zip(hidden.split(chunk), target.split(chunk))
    loss = torch.cat([checkpoint(_linear_cross_entropy, h, weight, y, use_reentrant=False) for h, y in rows])
    return loss if where is None else torch.where(where, loss, 0)


def _linear_cross_entropy(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(_exact(hidden @ weight.T), target, reduction="none")


@torch.no_grad()
def vlb(process, denoise, x0: Tensor, grid: Tensor, rng, where: Tensor | None = None) -> Tensor:
    """Bits per counted unit of the variational bound along `grid` [S+1], for a process of ids -> [B].

    Sum over the strides of KL(posterior of x0 || posterior of the belief), one draw of x_t each, plus KL(x_1 || prior).
    With the grid fine enough it upper-bounds the negative log-likelihood (Austin et al. 2021, eq. 1).
    """
    times = grid.to(x0.device).unsqueeze(1).expand(-1, len(x0))
    sure = process.certain(x0, times.dtype)
    total = kl(process.marginal(x0, times[0]), process.stationary(times.dtype, x0.device), where)
    for t, s in pairwise(times):
        x_t = process.corrupt(x0, process.draw(x0, rng), t)
        truth, belief = (process.posterior(x_t, b, t, s) for b in (sure, denoise(x_t, t)))
        total = total + kl(truth, belief, where)
    return total / math.log(2)


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


# --- means and sums ---------------------------------------------------------------------------------------------------


def row_mean(values: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean of values [B, ...] over each row's counted entries -> [B]; `where` may lack trailing dims of values."""
    if where is None:
        return values.flatten(1).mean(1, dtype=torch.float64).to(values.dtype) if values.ndim > 1 else values
    where = where.reshape(where.shape + (1,) * (values.ndim - where.ndim)).expand(values.shape)
    total = torch.where(where, values, 0).reshape(len(values), -1).sum(1, dtype=torch.float64)
    return (total / where.reshape(len(values), -1).sum(1).clamp(min=1)).to(values.dtype)


def segment_mean(values: Tensor, segment: Tensor, count: int) -> Tensor:
    """Mean of packed values [N] over each of `count` segments [N] -> [count]; rows of segment -1 are ignored."""
    slot = torch.where(segment < 0, count, segment).long()
    total = values.new_zeros(count + 1).index_add(0, slot, values)
    number = values.new_zeros(count + 1).index_add(0, slot, torch.ones_like(values))
    return (total / number.clamp(min=1))[:count]


def by_level(loss: Tensor, t: Tensor, buckets: int = 3) -> dict[str, tuple[Tensor, Tensor]]:
    """Sum and count of loss per equal bucket of t (same shape): low, mid, high for three, else level_0, level_1, ..."""
    names = ("low", "mid", "high") if buckets == 3 else [f"level_{i}" for i in range(buckets)]
    index = (t * buckets).long().clamp(max=buckets - 1)
    loss = loss.detach()
    return {name: (torch.where(index == i, loss, 0).sum(), (index == i).sum()) for i, name in enumerate(names)}


def share(values: Tensor, count: int | Tensor, shards: int) -> Tensor:
    """This shard's part of a global mean: sum * shards / count, count over the whole update, shards = world * micro.

    The mean over ranks (DDP) and over micro-batches (1/k) of these parts is exactly the mean over the global batch.
    """
    return values.sum() * (shards / count)


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """This rank's part of sum / count over all ranks, for counts that only the corruption decides.

    One all-reduce of the count, no host sync; the mean over ranks of these parts (DDP) is the global mean of this
    micro-batch. Nothing to count gives 0.
    """
    count = count.detach().to(total.dtype, copy=True)
    if _ranks() > 1:
        dist.all_reduce(count)
    return total * _ranks() / count.clamp(min=1)


class Normalizer(torch.nn.Module):
    """Divides a loss term by its running root mean square, so that terms of unlike scale can be added.

    One per term. The mean square is over ranks and over updates (decay, bias-corrected), kept in buffers: saved with
    the module, frozen in eval. Until the first update it divides by 1.
    """

    square: Tensor
    mass: Tensor

    def __init__(self, decay: float = 0.99, eps: float = 1e-8):
        super().__init__()
        self.decay, self.eps = decay, eps
        self.register_buffer("square", torch.zeros((), dtype=torch.float32))
        self.register_buffer("mass", torch.zeros((), dtype=torch.float32))

    @property
    def rms(self) -> Tensor:
        return torch.where(self.mass > 0, (self.square / self.mass.clamp(min=self.eps)).sqrt(), 1.0)

    def forward(self, loss: Tensor) -> Tensor:
        """loss of any shape / rms; in training the rms first takes this loss in."""
        if self.training:
            self._take(loss.detach().float())
        return loss / self.rms.clamp(min=self.eps)

    @torch.no_grad()
    def _take(self, loss: Tensor) -> None:
        total = loss.square().sum()
        seen = torch.stack([total, torch.full_like(total, loss.numel())])
        if _ranks() > 1:
            dist.all_reduce(seen)
        self.square.lerp_(seen[0] / seen[1], 1 - self.decay)
        self.mass.lerp_(torch.ones_like(self.mass), 1 - self.decay)
