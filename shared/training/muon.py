"""Muon (Jordan et al. 2024) for hidden matrices, AdamW for everything else, in one optimizer: one step is one update.

The momentum of a matrix is replaced by the nearest semi-orthogonal matrix (five Newton-Schulz iterations, float32),
scaled so that an entry moves about as far as under AdamW (0.2 sqrt(longer side), Liu et al. 2025): both share learning
rates. Matrices of one shape are iterated together; those cut over ranks are made whole, and every rank iterates all.
Knows groups of parameters; the caller says which are hidden.
"""

from typing import Any

import torch
from torch import Tensor

from shared.training.shards import cut_like, own, whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic that lifts singular values from near 0 to about 1 fastest
ITERATIONS = 5
MOMENTUM = 0.95
RMS = 0.2  # of an AdamW step with usual betas, in units of the learning rate


def orthogonalised(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: [S, a, b] with singular values moved to about 1."""
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalised(matrices.mT).mT
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class MuonAdamW(torch.optim.AdamW):
    """Fused AdamW; groups with `orthogonal=True` (matrices only) take Muon's step instead.

    An overflow that a gradient scaler or a check of the gradients reports in `found_inf` leaves everything as it was.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float):
        for group in groups:
            if group.setdefault("orthogonal", False) and any(p.ndim != 2 for p in group["params"]):
                raise ValueError("Muon moves matrices; a group with orthogonal=True has a parameter of another shape.")
        super().__init__(groups, lr, betas, eps, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        everything = self.param_groups
        try:
            self.param_groups = [group for group in everything if not group["orthogonal"]]
            super().step()
        finally:
            self.param_groups = everything
        for group in everything:
            if group["orthogonal"]:
                self._move(group)
        return loss

    def _move(self, group: dict[str, Any]) -> None:
        shapes: dict[torch.Size, list[Tensor]] = {}
        for p in group["params"]:
            if p.grad is not None:
                shapes.setdefault(p.shape, []).append(p)
        for matrices in shapes.values():
            self._move_alike(matrices, group["lr"], group["weight_decay"])

    def _move_alike(self, matrices: list[Tensor], lr: float, decay: float) -> None:
        """Nesterov momentum, orthogonalised; decoupled decay; all matrices of one shape at once."""
        gradients = torch.stack([whole(p.grad) for p in matrices]).float()  # type: ignore[arg-type]
        momenta = [self._momentum(p) for p in matrices]
        before = torch.stack([whole(momentum) for momentum in momenta])
        after = before.lerp(gradients, 1 - MOMENTUM)
        moves = orthogonalised(gradients.lerp_(after, MOMENTUM))
        held = getattr(self, "found_inf", None)
        if held is not None:
            after, moves = torch.where(held > 0, before, after), torch.where(held > 0, 0.0, moves)
        parts = [own(p) for p in matrices]
        torch._foreach_copy_([own(m) for m in momenta], [own(cut_like(a, m)) for a, m in zip(after.unbind(), momenta)])
        keep = 1 - lr * decay
        torch._foreach_mul_(parts, keep if held is None else torch.where(held > 0, 1.0, keep))
        steps = [own(cut_like(move.to(p.dtype), p)) for move, p in zip(moves.unbind(), matrices)]
        torch._foreach_add_(parts, steps, alpha=-lr * RMS * max(matrices[0].shape) ** 0.5)

    def _momentum(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum" not in state:
            state["step"] = torch.zeros(())  # not used; AdamW looks for it when a state is loaded
            state["momentum"] = torch.zeros_like(p, dtype=torch.float32)
        return state["momentum"]
