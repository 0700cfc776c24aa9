"""The gradient's norm: taken once per update for clipping, for the log, and to stop a run that is no longer finite.

The norm is taken after all ranks' gradients have met, so every rank sees the same one and decides alike without a
collective of its own. On a CPU a non-finite norm stops before the optimizer moves. On CUDA with a fused optimizer it
sets the optimizer's `found_inf`, which holds the weights still from then on, and the host learns of it at the next
logging point. Knows the Trainer; does not know the network.
"""

import math
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from shared.training.errors import Mistake
from shared.training.logs import WriteLogs, of_every_rank
from shared.training.runs import Run
from shared.training.shards import whole
from shared.training.tables import replacing


class Gradients(Callback):
    """Clips to `trainer.gradient_clip_val`, logs optim/{grad_norm,param_norm,update_ratio}, stops when not finite."""

    def __init__(self, run: Run, logs: WriteLogs):
        self.run, self.logs = run, logs
        self.clip: float | None = None
        self.parameters: list[nn.Parameter] = []
        self.batches: list[Any] = []  # of the update in hand
        self.shares: dict[int, list[Any]] = {}  # which samples each update since the last check used
        self.stuck: Tensor | None = None  # CUDA: 1 once a norm was not finite
        self.first: Tensor | None = None  # CUDA: the first such update
        self.before: list[Tensor] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.parameters = list(pl_module.parameters())
        if trainer.gradient_clip_val is not None and trainer.gradient_clip_algorithm in (None, "norm"):
            # taken over from Lightning, which would compute the norm a second time
            self.clip, trainer.gradient_clip_val = trainer.gradient_clip_val, None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.batches = []
        self.batches.append(batch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        update = trainer.global_step + 1
        parameters = self._learning()
        norm = total_norm([p.grad for p in parameters if p.grad is not None])
        self.logs.train.add({"optim/grad_norm": norm})
        if _scaler(trainer) is None:  # a loss scaler meets infinities by design and skips them itself
            self._require_finite(trainer, pl_module, optimizer, norm, update)
        if self.clip:
            nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
        if update % self.logs.every == 0:
            self.before = [p.detach().clone() for p in parameters]

    def _learning(self) -> list[nn.Parameter]:
        return [p for p in self.parameters if p.grad is not None]

    def _require_finite(
        self, trainer: Trainer, module: LightningModule, optimizer: Any, norm: Tensor, update: int
    ) -> None:
        self.shares[update] = [getattr(batch, "share", None) for batch in self.batches]
        if norm.device.type == "cuda" and optimizer.defaults.get("fused"):
            self._hold_still(optimizer, norm, update)
        elif not math.isfinite(norm):
            self._stop(trainer, module, update)
        else:
            self.shares.clear()

    def _hold_still(self, optimizer: Any, norm: Tensor, update: int) -> None:
        """Sticky on the device: no host read here."""
        bad = (~norm.isfinite()).float()
        self.stuck = bad if self.stuck is None else torch.maximum(self.stuck, bad)
        here = torch.where(bad > 0, float(update), math.inf)
        self.first = here if self.first is None else torch.minimum(self.first, here)
        optimizer.found_inf = self.stuck

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        """Read the device's verdict; called where the host waits anyway and before a checkpoint is written."""
        if self.first is not None and math.isfinite(first := float(self.first)):
            self._stop(trainer, module, int(first))
        self.shares.clear()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.global_step % self.logs.every:
            return
        self.check(trainer, pl_module)
        if self.before is not None:
            self.logs.train.add(_movement(self.before, self._learning()))
            self.before = None

    def _stop(self, trainer: Trainer, module: LightningModule, update: int) -> None:
        path = self.run.folder / f"nonfinite-{update}.pt"
        ranks = of_every_rank(trainer, self._evidence(trainer, module, update))
        weights = {name: whole(value.detach()).cpu() for name, value in module.state_dict().items()}
        if trainer.is_global_zero:
            with replacing(path) as file:
                torch.save({"update": update, "ranks": ranks, "state_dict": weights, **_randomness(module)}, file)
        raise Mistake(
            f"The gradient of update {update} is not finite ({_names(ranks)}). The batch, its keys and the weights "
            f"before it are in {path}; last.ckpt is as it was. Lower optim.lr, or look at that batch."
        )

    def _evidence(self, trainer: Trainer, module: LightningModule, update: int) -> dict[str, Any]:
        """What this rank did in the faulty update; the batch itself while it is still in hand."""
        in_hand = update == trainer.global_step + 1
        gradients = ((name, p.grad) for name, p in module.named_parameters() if in_hand and p.grad is not None)
        return {
            "nonfinite": [name for name, gradient in gradients if not bool(whole(gradient).isfinite().all())],
            "shares": [plain(share) for share in self.shares.get(update, [])],
            "batches": [plain(batch) for batch in self.batches] if in_hand else [],
        }


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The norm of all of them, of every rank's part where they are cut."""
    return whole(nn.utils.get_total_norm(tensors))


def _movement(before: list[Tensor], after: list[nn.Parameter]) -> dict[str, Tensor]:
    size = total_norm(before)
    moved = total_norm(torch._foreach_sub([p.detach() for p in after], before))
    return {"optim/param_norm": size, "optim/update_ratio": moved / size}


def _scaler(trainer: Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _randomness(module: LightningModule) -> dict[str, Any]:
    keys = getattr(module, "randomness", None)
    return {"randomness": plain(keys)} if keys is not None else {}


def _names(ranks: list[Any]) -> str:
    names = sorted({name for rank in ranks for name in rank["nonfinite"]})
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "the host was told at a later logging point"


def plain(value: Any) -> Any:
    """Dataclasses, arrays and containers as dicts, lists, numbers, text and CPU tensors: no class is pickled."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if hasattr(value, "__array__"):
        return torch.as_tensor(value)
    return value if isinstance(value, int | float | str | bool | None) else repr(value)
