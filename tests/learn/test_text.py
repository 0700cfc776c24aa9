"""A small trunk learns what words stand beside each other; words in any order teach nothing more."""

import torch

from projects.text.module import TextDiffusion
from projects.text.resolution import BayesDecoder
from shared.training import optim
from shared.training.batches import Share, StatelessBatches
from tests.text.trunks import text_module

UPDATES, BATCH = 150, 32
LOG_SNR = -1.7  # .57 of the tokens are read alone, padding among them


def trained(module: TextDiffusion) -> TextDiffusion:
    recipe = optim.Recipe(lr=4e-3, betas=(0.9, 0.99), weight_decay=0.0, warmup=10)
    made = optim.build(module, recipe, UPDATES)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    module.train()
    for update, share in zip(range(UPDATES), StatelessBatches(2**40, seed=0, batch_size=BATCH, shuffle=False)):
        loss = module.training_step(module.data.sentences("train", share), update)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return module.eval()


@torch.no_grad()
def read(module: TextDiffusion) -> tuple[float, float]:
    """Share of held-out tokens read at a level by the module, and by the reader without context."""
    batch = module.data.sentences("val", Share.of(range(128)))
    shares = torch.from_numpy(module.data.shares())
    t = module.network.warp.quantile(torch.full((128,), LOG_SNR))
    x0 = module.network.rows(batch.ids)
    x_t = module.process.corrupt(x0, module.process.draw(x0, torch.Generator().manual_seed(0)), t)
    schedule, decoder = module.process.schedule, BayesDecoder(module.network.rows, shares)
    said, alone = module.network(x_t, t).argmax(-1), decoder(x_t, schedule.alpha(t), schedule.sigma(t))
    return tuple(float((each == batch.ids).float().mean()) for each in (said, alone))  # type: ignore[return-value]


def small(kind: type[TextDiffusion] = TextDiffusion) -> TextDiffusion:
    module = text_module(asleep=True, sizes={"width": 48, "hidden": 128, "bias_ramp_updates": 50})
    module.__class__ = kind
    return module


def test_a_trunk_reads_more_than_its_words_say_alone():
    learnt, alone = read(trained(small()))
    assert learnt > alone + 0.06, (learnt, alone)


class Shuffled(TextDiffusion):
    """Trained on sentences whose words stand in any order."""

    def training_step(self, batch, index):
        order = torch.randperm(batch.ids.shape[1], generator=torch.Generator().manual_seed(index))
        batch.ids = batch.ids[:, order]
        return super().training_step(batch, index)


def test_words_in_any_order_teach_no_more_than_words_alone():
    learnt, alone = read(trained(small(Shuffled)))
    assert learnt < alone + 0.02, (learnt, alone)
