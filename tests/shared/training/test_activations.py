"""What is counted on the meta device is what autograd really keeps; and the template's FLOPs are those torch counts."""

from types import SimpleNamespace

import lightning
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from shared.training import plan
from shared.training.activations import saved_bytes
from shared.training.template.data import TemplateData
from shared.training.template.module import TemplateModule


def template(width=64, depth=2):
    module = TemplateModule(width, depth)
    module.configure_model()
    return module, next(plan.batches(TemplateData(held_out=16)))


def really_kept(module, batch, autocast=False):
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    cast = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    with cast, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = module.training_step(batch, 0)["loss"]
    assert loss.requires_grad
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)


def test_the_meta_device_keeps_what_the_cpu_keeps():
    module, batch = template()
    kept = really_kept(module, batch)
    assert saved_bytes(module, batch, "32-true") == pytest.approx(kept, rel=0.01) and kept > 10**5


class Mixed(lightning.LightningModule):
    """Products and a loss, which autocast treats alike on the CPU and on CUDA (norms it does not)."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))

    def training_step(self, batch, _):
        x = self.network(batch.x)
        return {"loss": F.mse_loss(x @ x.T, torch.ones_like(x @ x.T))}


def test_half_precision_keeps_what_autocast_keeps():
    module, batch = Mixed(), SimpleNamespace(x=torch.randn(128, 64))
    batch.to = lambda device: SimpleNamespace(x=batch.x.to(device))
    half, full = (saved_bytes(module, batch, precision) for precision in ("bf16-mixed", "32-true"))
    assert half == pytest.approx(really_kept(module, batch, autocast=True), rel=0.1)
    assert half < 0.8 * full


def test_a_larger_batch_keeps_more():
    module, _ = template()
    small, large = (next(plan.batches(TemplateData(batch_size=n, held_out=16))) for n in (32, 64))
    assert saved_bytes(module, large, "32-true") == pytest.approx(2 * saved_bytes(module, small, "32-true"), rel=0.02)


def test_a_step_that_needs_numbers_is_not_guessed():
    class Asking(Mixed):
        def training_step(self, batch, i):
            return super().training_step(batch, i) if float(batch.x.sum()) else {}

    batch = SimpleNamespace(
        x=torch.randn(4, 64), to=lambda device: SimpleNamespace(x=torch.zeros(4, 64, device=device))
    )
    assert saved_bytes(Asking(), batch, "32-true") is None


def test_the_templates_flops_are_those_torch_counts(record_property):
    module, batch = template()
    with FlopCounterMode(display=False) as counter:
        module.denoise(batch.x0, torch.full((len(batch.x0),), 0.5))
    ratio = module.flops(batch) / counter.get_total_flops()
    record_property("print", f"template: FLOPs of a forward, ours over torch's: {ratio:.4f}")
    assert abs(ratio - 1) < 0.02
