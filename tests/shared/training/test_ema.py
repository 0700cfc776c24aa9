"""Laws of averaged weights: closed forms, buffers untouched, and the live module always gets its own weights back."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from shared.training.ema import EMA, EmaOptions, gamma, reconstruct

CONSTANT = EmaOptions(decay=0.9, warmup="none")


def walk(ema, parameter, updates, seed=0):
    """Random values of `parameter`, one an update; returns them [updates, ...]."""
    rng, seen = torch.Generator().manual_seed(seed), []
    for _ in range(updates):
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype))
        seen.append(parameter.detach().clone())
        ema.update()
    return torch.stack(seen)


def one(dtype=torch.float64, options=CONSTANT):
    parameter = nn.Parameter(torch.full((3,), 2.0, dtype=dtype))
    return EMA([("p", parameter)], options), parameter


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("steps", torch.tensor([11, 1000, 31999]))


def perturb(module, seed=0):
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=rng))


def bits(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- the rule


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_fifty_updates_have_the_closed_form(dtype, tolerance):
    ema, parameter = one(dtype)
    seen = walk(ema, parameter, 50).double()
    weights = 0.1 * 0.9 ** torch.arange(49, -1, -1, dtype=torch.float64)
    expected = 2.0 * 0.9**50 + (weights[:, None] * seen).sum(0)
    assert (ema.shadow["p"].double() - expected).abs().max() <= tolerance


def test_it_is_the_formula_of_torch():
    network = nn.Linear(4, 3)
    theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    ours = EMA(network.named_parameters(), EmaOptions(decay=0.9, warmup="none", start=1))  # theirs copies the first
    for seed in range(20):
        perturb(network, seed)
        theirs.update_parameters(network)
        ours.update()
    assert all(torch.allclose(ours.shadow[n], p, atol=1e-6) for n, p in theirs.module.named_parameters())


@pytest.mark.parametrize(
    "options, expected",
    [
        (EmaOptions(decay=0.9, warmup="ratio"), {1: 2 / 11, 10: 11 / 20, 80: 81 / 90, 81: 0.9, 10**6: 0.9}),
        (EmaOptions(True, 0.9995, "ramp", 0.99, 2000), {1000: 0.99475, 2000: 0.9995, 5000: 0.9995}),
        (EmaOptions(decay=0.9, warmup="none", start=3), {1: 0.0, 3: 0.0, 4: 0.9}),
    ],
)
def test_the_decay_warms_up(options, expected):
    assert {n: options.decay_at(n) for n in expected} == pytest.approx(expected)


def test_up_to_start_the_average_is_the_parameters():
    ema, parameter = one(options=EmaOptions(decay=0.9, warmup="none", start=5))
    walk(ema, parameter, 5)
    assert torch.equal(ema.shadow["p"], parameter.detach())
    last = parameter.detach().clone()
    new = walk(ema, parameter, 1, seed=9)[0]
    assert torch.allclose(ema.shadow["p"], 0.9 * last + 0.1 * new)


def test_constant_parameters_stay_what_they_are():
    ema, parameter = one(torch.float32, EmaOptions(power=[0.05]))
    for _ in range(100):
        ema.update()
    assert torch.equal(ema.shadow["p"], parameter.detach()) and torch.equal(ema.tracks[0.05]["p"], parameter.detach())


def test_averaging_every_fourth_update_keeps_the_horizon():
    ema, parameter = one(options=EmaOptions(decay=0.9, warmup="none", every=4))
    seen = walk(ema, parameter, 8)
    d = 0.9**4
    assert torch.allclose(
        ema.shadow["p"], d * (d * torch.full((3,), 2.0).double() + (1 - d) * seen[3]) + (1 - d) * seen[7]
    )


def test_the_horizon_in_samples_is_kept_only_when_asked():
    assert EmaOptions(decay=0.99, scale_with_batch=True).scaled(2.0).decay == pytest.approx(0.99**2)
    assert EmaOptions(decay=0.99).scaled(2.0) == EmaOptions(decay=0.99)


# --- what is averaged


def test_shadows_are_float32_or_wider_whatever_the_parameters_are():
    for dtype, shadow in [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        ema, parameter = one(dtype, EmaOptions(decay=0.999, warmup="none"))
        with torch.no_grad():
            parameter.add_(0.5)
        ema.update()
        assert ema.shadow["p"].dtype == shadow
        assert ema.shadow["p"][0].item() == pytest.approx(2.0005, abs=1e-6)  # bfloat16 cannot hold it


def test_frozen_weights_buffers_and_second_names_of_a_storage_are_not_averaged():
    network = Network()
    shared = [("again", nn.Parameter(network.embed.weight.data))]  # another Parameter over the same memory
    assert set(EMA([*network.named_parameters(), *shared]).shadow) == {"embed.weight", "norm.weight", "norm.bias"}


def test_buffers_keep_their_live_values_through_200_updates_and_in_the_swapped_module():
    network = Network()
    ema = EMA(network.named_parameters())
    for _ in range(200):
        ema.update()
    network.norm.num_batches_tracked.fill_(31999)
    with ema.swapped(network):
        assert network.steps.tolist() == [11, 1000, 31999] and network.norm.num_batches_tracked.item() == 31999


def test_equal_parameters_give_bitwise_equal_averages():
    (a, p), (b, q) = one(torch.float32), one(torch.float32)
    walk(a, p, 30), walk(b, q, 30)
    assert torch.equal(a.shadow["p"], b.shadow["p"])


# --- lending the averages


def trained():
    network = Network()
    ema = EMA(network.named_parameters(), CONSTANT)
    perturb(network)
    ema.update()
    return network, ema


@pytest.mark.parametrize("ending", [None, RuntimeError, KeyboardInterrupt])
def test_raw_weights_come_back_bitwise_however_it_ends(ending):
    network, ema = trained()
    before, places = bits(network), [p.data_ptr() for p in network.parameters()]
    try:
        with ema.swapped(network):
            assert torch.equal(network.head.weight, ema.shadow["embed.weight"])
            assert not torch.equal(network.head.weight, before["head.weight"])
            if ending:
                raise ending
    except (RuntimeError, KeyboardInterrupt):
        pass
    assert same(bits(network), before) and places == [p.data_ptr() for p in network.parameters()]


def test_training_goes_on_after_a_swap_in_inference_mode():
    network, ema = trained()
    before = bits(network)
    with torch.inference_mode(), ema.swapped(network):
        network.head(torch.ones(1, 4))
    assert same(bits(network), before)
    network.head(torch.ones(1, 4)).sum().backward()
    ema.update()
    with ema.swapped(network):
        pass


def test_an_update_inside_a_swap_is_refused_and_a_swap_inside_a_swap_is_not():
    network, ema = trained()
    before = bits(network)
    with ema.swapped(network):
        with ema.swapped(network):
            assert torch.equal(network.head.weight, ema.shadow["embed.weight"])
        with pytest.raises(RuntimeError, match="leave `swapped` before the next update"):
            ema.update()
    assert same(bits(network), before)


def test_after_average_touches_the_lent_copy_only():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = nn.Embedding(5, 4)

        def after_average(self, network):
            network.weight.copy_(nn.functional.normalize(network.weight, dim=-1))

    module = Module()
    ema = EMA(module.named_parameters(), CONSTANT)
    before, shadow = bits(module), ema.shadow["network.weight"].clone()
    with ema.swapped(module):
        assert torch.allclose(module.network.weight.norm(dim=-1), torch.ones(5))
    assert same(bits(module), before) and torch.equal(ema.shadow["network.weight"], shadow)


def test_another_module_is_refused():
    network, ema = trained()
    with pytest.raises(ValueError, match=r"embed\.weight is averaged but not among"), ema.swapped(network.norm):
        pass


# --- going on


def test_a_stored_average_goes_on_bitwise():
    options = EmaOptions(decay=0.9, power=[0.1, 0.05], start=2)
    (whole, p), (first, q) = one(torch.float32, options), one(torch.float32, options)
    walk(whole, p, 20, seed=1), walk(first, q, 20, seed=1)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    resumed, r = one(torch.float32, options)
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    walk(whole, p, 20, seed=2), walk(resumed, r, 20, seed=2)
    assert resumed.updates == 40 and torch.equal(resumed.shadow["p"], whole.shadow["p"])
    assert all(torch.equal(resumed.tracks[std]["p"], whole.tracks[std]["p"]) for std in (0.05, 0.1))


def test_the_average_of_another_network_is_refused():
    state = EMA(nn.Linear(2, 3).named_parameters()).state_dict()
    with pytest.raises(ValueError, match="of another network"):
        EMA(nn.Linear(3, 3).named_parameters()).load_state_dict(state)
    with pytest.raises(ValueError, match=r"set ema\.power"):
        EMA(nn.Linear(2, 3).named_parameters(), EmaOptions(power=[0.1])).load_state_dict(state)


@pytest.mark.parametrize("wrong", [{"decay": 1.5}, {"decay": 1.0}, {"every": 0}, {"start": -1}, {"power": [0.3]}])
def test_values_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=f"ema.{next(iter(wrong))} "):
        EmaOptions(**wrong)


# --- power-function tracks


def power_average(seen, std):
    """The definition: update j weighs in proportion to j^(g+1) - (j-1)^(g+1)."""
    j = torch.arange(len(seen) + 1, dtype=torch.float64) / len(seen)
    return ((j ** (gamma(std) + 1)).diff()[:, None] * seen).sum(0)


def test_widths_have_the_exponents_of_the_paper():
    assert [gamma(0.05), gamma(0.10)] == pytest.approx([16.972, 6.937], abs=1e-3)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.25])
def test_the_profile_of_a_track_has_its_relative_width(std):
    x = np.linspace(0, 1, 200_001)
    weight = x ** gamma(std) / (x ** gamma(std)).sum()
    assert np.sqrt((weight * x**2).sum() - (weight * x).sum() ** 2) == pytest.approx(std, rel=1e-3)


@pytest.mark.parametrize("every", [1, 5])
def test_a_track_is_the_weighted_mean_it_stands_for(every):
    ema, parameter = one(options=EmaOptions(power=[0.05, 0.1], every=every))
    seen = walk(ema, parameter, 60)
    for std in (0.05, 0.1):
        expected = power_average(seen[every - 1 :: every], std)
        assert (ema.tracks[std]["p"] - expected).abs().max() < 1e-12


def smooth_run(updates=400, snapshots_every=50):
    """Parameters on a smooth path, their snapshots, and the path."""
    ema, parameter = one(options=EmaOptions(power=[0.05, 0.1]))
    path = torch.stack([torch.linspace(0, c, updates).double().sin() for c in (2.0, 5.0, 9.0)], -1)
    taken = []
    for n, value in enumerate(path, start=1):
        parameter.data.copy_(value)
        ema.update()
        if n % snapshots_every == 0:
            taken += [copy.deepcopy(ema.snapshot(std)) for std in (0.05, 0.1)]
    return path, taken


def test_a_stored_width_is_reconstructed_exactly(tmp_path):
    path, taken = smooth_run()
    for i, snapshot in enumerate(taken):
        torch.save(snapshot, tmp_path / f"{i}.pt")
    again = reconstruct(sorted(tmp_path.iterdir()), 0.1)["p"]
    assert (again - taken[-1]["shadow"]["p"]).abs().max() < 1e-6
    middle = reconstruct(sorted(tmp_path.iterdir()), 0.05, updates=200)["p"]
    assert (middle - power_average(path[:200], 0.05)).abs().max() < 1e-6


@pytest.mark.parametrize("std", [0.06, 0.075, 0.15])
def test_any_width_between_is_reconstructed_closely(std):
    path, taken = smooth_run()
    expected = power_average(path, std)
    nearest = min((power_average(path, s) - expected).abs().max() for s in (0.05, 0.1))
    assert (reconstruct(taken, std)["p"] - expected).abs().max() < 0.1 * nearest
