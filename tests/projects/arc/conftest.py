"""A small module on real tasks, without a Trainer."""

import pytest
import torch

from projects.arc.data import ArcData, HoldoutOptions
from projects.arc.module import ArcModule
from projects.arc.pairs import Augment, PairBatches
from projects.arc.walking import Denoiser
from shared.training.batches import StatelessBatches

TASKS = ["25ff71a9", "3c9b0459", "6d0aefbc", "a416b8f3", "d037b0a7", "dae9d2b5"]


def arc_data(**options) -> ArcData:
    """The demos of a few small training tasks; options as in ArcData."""
    given = {
        "split": "training",
        "train_sets": ["training:demos"],
        "tasks": TASKS,
        "max_size": 10,
        "augment": Augment(colour="cycle", translate=False),
        "holdout": HoldoutOptions(share=0.0),
        "batch_size": 8,
    }
    return ArcData(**{**given, **options})


def arc_module(data: ArcData, seed: int = 0, **options) -> ArcModule:
    """A module for that data, its zero heads filled so that logits say something."""
    torch.manual_seed(seed)
    module = ArcModule(**{"width": 32, "depth": 2, "heads": 2, "task_tokens": 1, "mlp_multiple": 32, **options})
    module.adopt(data, None)
    module.configure_model()
    for head in (module.network.out, module.network.size):
        torch.nn.init.normal_(head.weight)
    return module


def arc_batches(data: ArcData, **options) -> tuple[StatelessBatches, PairBatches]:
    """The order of batches, and what builds them."""
    examples = data.examples()
    return data.order(examples, **options), data.pairs(examples, data.augment)


def believe(network, batch, t=0.7, belief=None):
    """Logits of the batch's answers at time t, the question read anew."""
    prefix = network.prefix(batch.question)
    times = torch.full((batch.num_samples,), t)
    return network(prefix, network.frame(prefix, batch.answer), batch.answer, times, belief)


def believed_twice(network, batch, t=0.7):
    """The same by way of a walk's denoiser, which keeps the prefix: first and second time it is asked."""
    denoise = Denoiser(network, network.prefix(batch.question), batch.answer)
    times = torch.full_like(batch.answer.colour, t, dtype=torch.float32)
    first = denoise(batch.answer.colour, times)
    denoise.previous = None
    return first, denoise(batch.answer.colour, times)


@pytest.fixture(scope="module")
def data() -> ArcData:
    return arc_data()


@pytest.fixture
def module(data) -> ArcModule:
    return arc_module(data).eval()


@pytest.fixture
def batch(data):
    order, pairs = arc_batches(data)
    return pairs.build(order.shares(0)[0])
