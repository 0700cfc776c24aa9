"""Losses against their formulas, padding and sharding that change nothing, and two processes that agree with one."""

import math

import pytest
import torch
import torch.nn.functional as F

from shared.objectives import (
    Normalizer,
    by_level,
    cross_entropy,
    entropy_floor,
    fused_linear_cross_entropy,
    global_mean,
    huber,
    info_nce,
    kl,
    row_mean,
    segment_mean,
    share,
    squared_error,
    vlb,
)
from shared.processes import Absorbing, Hybrid, PiecewiseCdf, Uniform, cosine, linear, squared, with_floor
from shared.sampling import uniform_grid


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def ragged(rows: int = 5, length: int = 37) -> torch.Tensor:
    """A mask with another count in every row, one cell in the last but one, none in the last."""
    counts = torch.linspace(length, 0, rows).long().unsqueeze(1)
    counts[-2] = 1
    return torch.arange(length) < counts


LOSSES = {
    "cross_entropy": lambda x, y, where: cross_entropy(x, y.argmax(-1), where),
    "smoothed": lambda x, y, where: cross_entropy(x, y.argmax(-1), where, 0.1),
    "squared_error": squared_error,
    "huber": lambda x, y, where: huber(x, y, where, 0.5),
    "kl": lambda x, y, where: kl(x.softmax(-1), y.softmax(-1), where),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


@every_loss
def test_a_row_is_the_mean_of_its_counted_cells_and_an_empty_row_is_zero(loss):
    x, y, where = noise(5, 37, 6), noise(5, 37, 6, seed=1), ragged()
    found = loss(x, y, where)
    assert found.shape == (5,) and found.dtype == torch.float32 and found[-1] == 0
    for b in range(4):
        alone = loss(x[b, where[b]][None], y[b, where[b]][None], None)
        assert torch.allclose(found[b], alone[0], atol=1e-6)


@every_loss
def test_masked_cells_and_rows_change_nothing_bitwise(loss):
    x, y, where = noise(5, 37, 6), noise(5, 37, 6, seed=1), ragged()
    wide = [F.pad(v, (0, 0, 0, 30, 0, 2), value=fill) for v, fill in ((x, 7.0), (y, -3.0))]
    padded = loss(*wide, F.pad(where, (0, 30, 0, 2)))
    assert torch.equal(padded[:5], loss(x, y, where)) and (padded[5:] == 0).all()
    x.requires_grad_(), wide[0].requires_grad_()
    loss(x, y, where).sum().backward()
    loss(wide[0], wide[1], F.pad(where, (0, 30, 0, 2))).sum().backward()
    assert torch.equal(wide[0].grad[:5, :37], x.grad) and (wide[0].grad[:, 37:] == 0).all()


@every_loss
def test_half_precision_is_computed_in_float32(loss):
    x, y = noise(2, 8, 6).bfloat16(), noise(2, 8, 6, seed=1).bfloat16()
    assert torch.equal(loss(x, y, None), loss(x.float(), y.float(), None)) or loss is LOSSES["kl"]
    assert loss(x, y, None).dtype == torch.float32


def test_targets_outside_need_not_be_classes():
    logits, target = noise(2, 4, 3), torch.tensor([[0, 1, 10, 10], [2, 10, 10, 10]])
    assert cross_entropy(logits, target, target < 3).isfinite().all()


def test_losses_have_their_formulas():
    x, y = noise(3, 4), noise(3, 4, seed=1)
    assert torch.allclose(squared_error(x, y), (x - y).square().mean(1))
    d = (x - y).abs()
    assert torch.allclose(huber(x, y, delta=0.5), torch.where(d < 0.5, d**2 / 2, 0.5 * (d - 0.25)).mean(1))
    p, q = x.softmax(-1), y.softmax(-1)
    assert torch.allclose(kl(p, q), (p * (p.log() - q.log())).sum(-1), atol=1e-6)
    sure = F.one_hot(torch.tensor([1, 0, 2]), 4).float()
    assert torch.allclose(kl(sure, q), -q[torch.arange(3), torch.tensor([1, 0, 2])].log())


def test_kl_of_impossible_classes_has_a_finite_gradient():
    logits = torch.tensor([[[0.0, -torch.inf, 1.0]]], requires_grad=True)
    kl(torch.tensor([[[0.5, 0.0, 0.5]]]), logits.softmax(-1)).sum().backward()
    assert logits.grad.isfinite().all()


def test_smoothing_cannot_fall_below_its_entropy_floor():
    logits = torch.full((1, 5), math.log(0.1 / 5))
    logits[0, 2] = math.log(0.9 + 0.1 / 5)
    best = cross_entropy(logits[None], torch.tensor([[2]]), label_smoothing=0.1).item()
    assert best == pytest.approx(entropy_floor(5, 0.1), abs=1e-6)
    assert cross_entropy(logits[None] + noise(1, 1, 5), torch.tensor([[2]]), label_smoothing=0.1).item() > best
    assert entropy_floor(5, 0.0) == 0


# --- sums and means


def test_packed_and_padded_rows_have_the_same_mean():
    values, where = noise(5, 37), ragged()
    segment = torch.arange(5).unsqueeze(1).expand(5, 37)[where]
    packed = torch.cat([values[where], noise(9)])
    filled = torch.cat([segment, torch.full((9,), -1)])
    found = segment_mean(packed, filled.int(), 5)
    assert torch.allclose(found, row_mean(values, where), atol=1e-6) and found[-1] == 0
    assert torch.equal(found, segment_mean(values[where], segment, 5))


def test_levels_hold_every_sample_once():
    t = torch.tensor([0.0, 0.2, 1 / 3, 0.5, 0.7, 1.0])
    found = by_level(torch.arange(6.0).requires_grad_(), t)
    assert {k: (s.item(), n.item()) for k, (s, n) in found.items()} == {"low": (1, 2), "mid": (5, 2), "high": (9, 2)}
    assert not any(s.requires_grad for s, _ in found.values())
    assert list(by_level(t, t, 5)) == [f"level_{i}" for i in range(5)]
    assert sum(n for _, n in by_level(noise(4, 7), torch.rand(4, 7, generator=generator())).values()) == 28


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_shares_average_to_the_global_mean_however_ragged(ranks, micro):
    values = noise(50)
    cuts = torch.linspace(0, 50, ranks * micro + 1).pow(1.3).div(50**0.3).long().tolist()
    parts = [share(values[a:b], 50, ranks * micro) for a, b in zip(cuts, [*cuts[1:-1], 50])]
    assert torch.allclose(torch.stack(parts).mean(), values.mean(), atol=1e-6)


def test_five_updates_are_the_same_at_any_accumulation():
    def train(micro):
        torch.manual_seed(0)
        net = torch.nn.Linear(4, 3)
        for update in range(5):
            x, y, where = (
                noise(8, 6, 4, seed=update),
                torch.randint(3, (8, 6), generator=generator(update)),
                ragged(8, 6),
            )
            for rows in torch.arange(8).chunk(micro):
                loss = share(cross_entropy(net(x[rows]), y[rows], where[rows]), 8, micro)
                (loss / micro).backward()  # as the trainer does
            for parameter in net.parameters():
                parameter.data -= 0.5 * parameter.grad
                parameter.grad = None
        return net.weight.detach()

    for micro in (2, 4):
        assert (train(micro) - train(1)).abs().max() <= 1e-6


def test_global_mean_of_one_process_is_the_mean_and_nothing_counted_is_zero():
    assert global_mean(torch.tensor(6.0), torch.tensor(4)).item() == 1.5
    assert global_mean(torch.tensor(0.0), torch.tensor(0)).item() == 0


def test_normalizer_divides_by_the_running_rms_and_freezes_in_eval():
    normalizer, scale = Normalizer(0.9), 40.0
    first = normalizer(torch.tensor([scale, scale]))
    assert torch.allclose(first, torch.ones(2))  # bias-corrected from the first update
    for _ in range(200):
        normalizer(torch.tensor(2.0))
    assert normalizer.rms.item() == pytest.approx(2, rel=1e-3)
    copy = Normalizer(0.9).eval()
    assert copy(torch.tensor(5.0)) == 5
    copy.load_state_dict(normalizer.state_dict())
    before = copy.rms.clone()
    assert copy(torch.tensor(8.0)).item() == pytest.approx(4, rel=1e-3) and copy.rms == before
    loss = torch.tensor(3.0, requires_grad=True)
    normalizer(loss).backward()
    assert loss.grad.item() == pytest.approx(1 / normalizer.rms.item())


# --- linear and contrastive


@pytest.mark.parametrize("chunk", [7, 64, 4096])
def test_fused_cross_entropy_equals_the_plain_one(chunk):
    hidden, weight, target = noise(50, 16), noise(100, 16, seed=1), torch.randint(100, (50,), generator=generator())
    where = torch.arange(50) % 3 > 0
    grads = []
    for fused in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if fused:
            loss = fused_linear_cross_entropy(h, w, target.masked_fill(~where, 999), where, chunk)
        else:
            loss = F.cross_entropy(h @ w.T, target, reduction="none") * where
        (loss * torch.arange(50)).sum().backward()
        grads.append((loss.detach(), h.grad, w.grad))
    for ours, plain in zip(*grads):
        assert (ours - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_fused_cross_entropy_never_holds_all_logits():
    hidden, weight = noise(512, 8).requires_grad_(), noise(256, 8, seed=1).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        fused_linear_cross_entropy(hidden, weight, torch.zeros(512, dtype=torch.int64), chunk=64).sum().backward()
    assert max(saved, default=0) <= 64 * 256


def test_info_nce_is_the_cross_entropy_of_finding_the_partner():
    a, b = noise(6, 8), noise(6, 8, seed=1)
    cosines = F.cosine_similarity(a[:, None], b[None], dim=-1) / 0.2
    assert torch.allclose(info_nce(a, b, 0.2), -cosines.log_softmax(1).diagonal(), atol=1e-5)
    assert info_nce(a, a, 0.05).mean() < info_nce(a, b, 0.05).mean()


# --- the bound


def exact_belief(process, data):
    """Bayes' belief of one cell with distribution `data` [K], as logits for any x_t, t."""

    def denoise(x, t):
        a = process.alpha(t)[:, None, None]
        pi = process.stationary(a.dtype, a.device)[x].unsqueeze(-1)
        same = F.one_hot(x, process.num_states)[..., : process.num_classes]
        return (data * (a * same + (1 - a) * pi)).log()

    return denoise


@pytest.mark.parametrize(
    "process",
    [Uniform(3, squared(cosine(0.008))), Hybrid(3, 3, linear, 0.3), Absorbing(3, linear, num_classes=3)],
    ids=["uniform", "hybrid", "absorbing"],
)
def test_the_bound_of_an_exact_belief_is_the_entropy(process):
    """One-cell data: a fine walk costs the entropy, a coarse or a wrong one more."""
    data = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    entropy = -(data * data.log2()).sum().item()
    x0 = torch.multinomial(data, 8_000, replacement=True, generator=generator()).view(-1, 1)
    bits = [
        vlb(process, exact_belief(process, p), x0, uniform_grid(n).double(), generator(1)).mean().item()
        for n, p in ((48, data), (2, data), (48, data.flip(0)))
    ]
    assert bits[0] == pytest.approx(entropy, abs=0.03)
    assert bits[1] > entropy - 0.01 and bits[2] > bits[0] + 0.1


def test_the_bound_pays_for_what_is_left_of_the_data_at_one():
    process = Uniform(4, with_floor(linear, 0.3))
    x0, grid = torch.arange(4).view(4, 1), uniform_grid(8).double()
    found = vlb(process, lambda x, t: process.certain(x0), x0, grid, generator())
    left = process.marginal(x0[:1], grid[:1])
    assert torch.allclose(found, (left * (left * 4).log2()).sum().expand(4), atol=1e-6) and found[0] > 0.1


# --- two processes


def as_one_rank(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    rows = slice(4 * rank, 4 * rank + 4)
    a, b = (noise(8, 5, seed=s)[rows].requires_grad_() for s in (0, 1))
    info_nce(a, b, 0.3).mean().backward()
    normalizer, cdf = Normalizer(), PiecewiseCdf(-5.0, 5.0, bins=8)
    normalizer(noise(8, seed=2)[rows])
    cdf.calibrate(noise(8, seed=3)[rows] * 2, noise(8, seed=4)[rows].abs())
    count = torch.tensor([3, 9])[rank]
    part = global_mean(torch.tensor([10.0, 2.0])[rank], count)
    kept = {"a": a.grad, "b": b.grad, "rms": normalizer.rms, "edges": cdf.edges, "part": part, "count": count}
    torch.save(kept, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_agree_with_one_process(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(as_one_rank, (port, str(tmp_path)), nprocs=2, start_method="spawn")
    ranks = [torch.load(tmp_path / f"{r}.pt") for r in range(2)]
    a, b = (noise(8, 5, seed=s).requires_grad_() for s in (0, 1))
    info_nce(a, b, 0.3).mean().backward()
    for name, grad in (("a", a.grad), ("b", b.grad)):  # DDP averages over ranks
        assert (torch.cat([r[name] for r in ranks]) / 2 - grad).abs().max() <= 1e-6
    normalizer, cdf = Normalizer(), PiecewiseCdf(-5.0, 5.0, bins=8)
    normalizer(noise(8, seed=2))
    cdf.calibrate(noise(8, seed=3) * 2, noise(8, seed=4).abs())
    assert all(torch.allclose(r["rms"], normalizer.rms) and torch.allclose(r["edges"], cdf.edges) for r in ranks)
    assert sum(r["part"] for r in ranks).item() / 2 == pytest.approx(12 / 12)
    assert [r["count"].item() for r in ranks] == [3, 9]  # the caller's count is left alone
