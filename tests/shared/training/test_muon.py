"""Muon moves hidden matrices as torch's own does, AdamW the rest; together they are one optimizer that resumes."""

import copy

import pytest
import torch
from torch import nn

from shared.training.errors import Mistake
from shared.training.muon import MuonAdamW, orthogonalised
from shared.training.optim import Recipe, build, groups


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8, bias=False)) for _ in range(2))
        self.out = nn.Linear(8, 5)

    def forward(self, ids):
        x = self.table(ids)
        for block in self.blocks:
            x = x + block(x)
        return self.out(x)


RECIPE = Recipe(kind="muon", lr=1e-2, hidden_lr_scale=3.0, warmup=0, shape="constant", weight_decay=0.1)


def made(seed=0):
    torch.manual_seed(seed)
    network = Network()
    return network, build(network, RECIPE, 10)["optimizer"]


def learn(network, optimizer, steps, first=0):
    for n in range(first, first + steps):
        optimizer.zero_grad()
        ids = torch.randint(5, (16,), generator=torch.Generator().manual_seed(n))
        nn.functional.cross_entropy(network(ids), (ids + 1) % 5).backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(6, 6), (3, 9), (9, 3)])
def test_singular_values_go_to_about_one_and_the_singular_vectors_stay(shape):
    matrices = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert values.min() > 0.3 and values.max() < 1.25
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ orthogonalised(matrices) @ vh.mT
    assert torch.allclose(inner, torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1)), atol=1e-9)


def test_three_steps_are_those_of_torchs_muon_up_to_its_bfloat16():
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(6, 10)), nn.Parameter(torch.zeros(6, 10))
    theirs.data.copy_(ours.data)
    start = ours.detach().clone()
    one = MuonAdamW([{"params": [ours], "weight_decay": 0.1, "orthogonal": True}], 0.1, (0.9, 0.95), 1e-8)
    two = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for n in range(3):
        ours.grad = torch.randn(6, 10, generator=torch.Generator().manual_seed(n))
        theirs.grad = ours.grad.clone()
        one.step()
        two.step()
    assert (ours - theirs).norm() < 0.03 * (ours - start).norm()


def test_only_matrices_of_the_blocks_are_orthogonalised_and_the_rest_is_adamw():
    network, optimizer = made()
    reference, _ = made()
    plain = torch.optim.AdamW(groups(reference, Recipe(lr=1e-2, weight_decay=0.1)), 1e-2, (0.9, 0.95), 1e-8, fused=True)
    learn(network, optimizer, 1)
    learn(reference, plain, 1)
    same = {n for (n, a), b in zip(network.named_parameters(), reference.parameters()) if torch.equal(a, b)}
    hidden = {f"blocks.{b}.{i}.weight" for b in range(2) for i in range(2)}
    assert same == {name for name, _ in network.named_parameters()} - hidden
    rates = {g["name"]: g["lr"] for g in optimizer.param_groups}
    assert rates["default, muon, decay 0.1"] == pytest.approx(3e-2)


def test_a_resumed_optimizer_goes_on_bitwise():
    network, optimizer = made()
    learn(network, optimizer, 3)
    weights, state = copy.deepcopy(network.state_dict()), copy.deepcopy(optimizer.state_dict())
    learn(network, optimizer, 3, first=3)
    other, resumed = made(seed=1)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    learn(other, resumed, 3, first=3)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters()))


def test_an_overflow_moves_nothing():
    network, optimizer = made()
    learn(network, optimizer, 1)
    before = copy.deepcopy(network.state_dict())
    momenta = [v["momentum"].clone() for v in optimizer.state.values() if "momentum" in v]
    for p in network.parameters():
        p.grad = torch.full_like(p, torch.inf)
    optimizer.found_inf = torch.ones(())
    optimizer.grad_scale = None
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), network.state_dict().values()))
    after = [v["momentum"] for v in optimizer.state.values() if "momentum" in v]
    assert all(torch.equal(a, b) for a, b in zip(momenta, after))


def test_muon_without_a_hidden_matrix_and_for_vectors_is_refused():
    with pytest.raises(Mistake, match=r"no matrix matches optim.hidden"):
        groups(nn.Linear(3, 3), Recipe(kind="muon"))
    with pytest.raises(ValueError, match="parameter of another shape"):
        MuonAdamW([{"params": [nn.Parameter(torch.ones(3))], "orthogonal": True}], 0.1, (0.9, 0.95), 1e-8)
