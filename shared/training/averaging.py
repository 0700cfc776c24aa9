"""The average of the weights, tied to the training loop: moved after each update, lent to every evaluation.

The tensors' arithmetic is `ema.py`. Here: an average exists from the first fit on; validation, test and pictures run on
it and hand the raw weights back bitwise, also after an exception; checkpoints hold both. Knows no file.
"""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from shared.training.adapting import own
from shared.training.ema import EMA, EmaOptions
from shared.training.parallel import together


class Averaging(Callback):
    """Keeps the average of `module`'s parameters. With `ema.enabled` false every hook does nothing."""

    def __init__(self, options: EmaOptions):
        self.options = options
        self.ema: EMA | None = None
        self.updates = 0
        self._stored: dict[str, Any] | None = None
        self._lent: ExitStack | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.options.enabled:
            self.ema = EMA(pl_module.named_parameters(), self.options)
            if self._stored is not None:
                self.ema.load_state_dict(self._stored)
                self._stored = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.updates = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self.updates:  # once per update, not per micro-batch
            self.updates = trainer.global_step
            if self.ema is not None:
                self.ema.update()

    def swapped(self, module: LightningModule) -> AbstractContextManager[Any]:
        """Averaged weights inside, raw ones after; nothing to do where they are lent already or none are kept."""
        return nullcontext() if self.ema is None or self._lent is not None else self.ema.swapped(module)

    def _lend(self, module: LightningModule) -> None:
        if self._lent is None:
            self._lent = ExitStack()
            self._lent.enter_context(nullcontext() if self.ema is None else self.ema.swapped(module))
            self._lent.enter_context(together(module))

    def give_back(self) -> None:
        """End the loan, if there is one: the module has its raw weights again."""
        if self._lent is not None:
            lent, self._lent = self._lent, None
            lent.close()

    # each evaluation borrows; `on_*_end` runs after the epoch's own hooks, so metrics and results see the average
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lend(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lend(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lend(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.give_back()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.give_back()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.give_back()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """`state_dict` becomes the average (tied names and live buffers included); raw weights go beside it. Of an
        adapted module neither holds the frozen base.
        """
        checkpoint["state_dict"] = own(pl_module, checkpoint["state_dict"])
        if self.ema is None:
            return
        checkpoint["current_model_state"] = checkpoint["state_dict"]
        checkpoint["averaging_state"] = self.ema.state_dict()
        with self.swapped(pl_module):
            averaged = own(pl_module, trainer.strategy.lightning_module_state_dict())
            checkpoint["state_dict"] = {name: self._stored_once(name, value) for name, value in averaged.items()}

    def _stored_once(self, name: str, value: Tensor) -> Tensor:
        """A copy of an averaged tensor; the average's own where it is the same, so that a file holds it once."""
        assert self.ema is not None
        kept = self.ema.shadow.get(name)
        same = kept is not None and kept.dtype == value.dtype and torch.equal(kept, value)
        return kept if same and kept is not None else value.detach().clone()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Training goes on from the raw weights; every other verb keeps the average that Lightning has loaded."""
        if trainer.state.fn != "fit":
            return
        if "current_model_state" in checkpoint:
            pl_module.load_state_dict(checkpoint["current_model_state"], strict=pl_module.strict_loading)
        self._stored = checkpoint.get("averaging_state")
