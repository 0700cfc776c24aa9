"""The grid line's traps 16-22 at K = 10: the numbers of its schedules, its keep rate, its levels, its randomness."""

import math
import time
from functools import partial

import pytest
import torch

from shared.processes import Absorbing, Hybrid, PerSegment, Uniform, cosine, draws, squared, with_floor
from shared.sampling import sample, uniform_grid
from tests.laws.cases import generator
from tests.laws.measures import DRAWS, rare

K = 10
PACKED = squared(cosine(0.008))
COMPAT = with_floor(PACKED, 0.02)
PROCESSES = {
    "uniform": Uniform(K, PACKED),
    "coupled": Uniform(K, PACKED, joint="coupled"),
    "compat": Uniform(K, COMPAT),
    "hybrid": Hybrid(K, K, PACKED, 0.2),
    "absorbing": Absorbing(K, PACKED, num_classes=K),
}
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def level(index: int) -> torch.Tensor:
    return torch.tensor([(index + 1) / 128], dtype=torch.float64)


def test_survival_has_the_values_of_the_earlier_table():
    table = {0: 0.999557, 1: 0.998824, 31: 0.850072, 63: 0.503967, 95: 0.161387, 126: 0.020145, 127: 0.02}
    for index, value in table.items():
        assert COMPAT(level(index)).item() == pytest.approx(value, abs=6e-7), index
    every = COMPAT((torch.arange(128, dtype=torch.float64) + 1) / 128)
    beta = 1 - every / torch.cat([torch.ones(1, dtype=torch.float64), every[:-1]])
    assert beta[0].item() == pytest.approx(4.43e-4, rel=2e-3) and beta[127].item() == pytest.approx(7.21e-3, rel=2e-3)
    assert beta.argmax() == 116 and beta.max().item() == pytest.approx(0.0809, abs=6e-5)
    snr = (every / (1 - every)).log()
    assert snr[0].item() == pytest.approx(7.72, abs=6e-3) and snr[127].item() == pytest.approx(-3.89, abs=6e-3)


def test_nothing_is_lost_at_zero_and_all_at_one():
    for dtype in (torch.float32, torch.float64):
        ends = torch.tensor([0.0, 1.0], dtype=dtype)
        assert PACKED(ends).tolist() == [1.0, 0.0] and COMPAT(ends)[0] == 1
        assert COMPAT(ends)[1].item() == pytest.approx(0.02, abs=1e-7)
    assert (PACKED(torch.linspace(0, 1, 1001, dtype=torch.float64)).diff() < 0).all()


@pytest.mark.parametrize("t", [0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_keep_rate_follows_survival_within_five_sigma(t):
    process = PROCESSES["compat"]
    x0 = torch.randint(0, K, (DRAWS,), generator=generator(1))
    clock = torch.full((DRAWS,), t)
    kept = (process.corrupt(x0, process.draw(x0, generator(2)), clock) == x0).double().mean().item()
    alpha = COMPAT(clock[:1]).item()
    rate = alpha + (1 - alpha) / K
    assert abs(kept - rate) < 5 * math.sqrt(rate * (1 - rate) / DRAWS)


def test_noise_is_flat_over_the_ten_ids_and_never_the_mask():
    for process in (PROCESSES["uniform"], PROCESSES["compat"]):
        for ids in (process.prior(torch.empty(DRAWS), generator(3)), process.draw(torch.empty(DRAWS), generator(4)).r):
            assert ids.dtype == torch.int64 and ids.min() >= 0 and ids.max() <= 9
            rare(torch.bincount(ids, minlength=K).double(), torch.full((K,), 0.1, dtype=torch.float64))


def test_posterior_is_brute_force_over_all_paths():
    """K = 4, T = 6: one-step matrices multiplied out, Bayes by summing over x0; and two strides are one."""
    process, steps = Uniform(4, COMPAT), 6
    alpha = COMPAT(torch.arange(steps + 1, dtype=torch.float64) / steps)
    jumps = [r * torch.eye(4, dtype=torch.float64) + (1 - r) / 4 for r in alpha[1:] / alpha[:-1]]

    def between(s: int, t: int) -> torch.Tensor:
        product = torch.eye(4, dtype=torch.float64)
        for jump in jumps[s:t]:
            product = product @ jump
        return product

    belief = torch.randn(4, 4, generator=generator(5), dtype=torch.float64)
    p = belief.softmax(-1)
    for t, s in ((6, 4), (6, 1), (3, 2), (5, 0)):
        found = process.posterior(
            torch.arange(4), belief, *(torch.full((4,), v / steps, dtype=torch.float64) for v in (t, s))
        )
        for y in range(4):
            joint = between(0, s) * between(s, t)[:, y]  # [x0, x_s] given x_t = y, up to its sum
            wanted = p[y] @ (joint / joint.sum(1, keepdim=True))
            assert (found[y] - wanted).abs().max() < 1e-12


def test_two_strides_are_one_when_the_belief_is_sure():
    process = PROCESSES["uniform"]
    x0, y = torch.arange(K), torch.full((K,), 3)
    t, u, s = (torch.full((K,), v, dtype=torch.float64) for v in (0.8, 0.5, 0.2))
    sure = process.certain(x0, torch.float64)
    direct = process.posterior(y, sure, t, s)
    via = torch.zeros_like(direct)
    for middle in range(K):
        weight = process.posterior(y, sure, t, u)[:, middle, None]
        via += weight * process.posterior(torch.full((K,), middle), sure, u, s)
    assert (direct - via).abs().max() < 1e-12


@every_process
@pytest.mark.parametrize("steps", [1, 2, 7, 64])
def test_a_sure_belief_is_returned_exactly(process, steps):
    x0 = torch.randint(0, K, (400,), generator=generator(6))
    start = process.prior(x0, generator(7))
    found = sample(
        lambda x, t: process.certain(x0), partial(process.step, rng=generator(8)), start, uniform_grid(steps)
    )
    assert torch.equal(found, x0)


@pytest.mark.parametrize("steps", [1, 2, 32, 128])
def test_the_first_level_asked_is_one_and_the_last_step_ends_at_zero(steps):
    asked = []

    def denoise(x, t):
        asked.append(t.clone())
        return torch.zeros(len(x), K)

    def step(x, belief, t, s):
        asked.append(s)
        return x

    sample(denoise, step, torch.zeros(3, dtype=torch.int64), uniform_grid(steps))
    assert len(asked) == 2 * steps and (asked[0] == 1).all() and (asked[-1] == 0).all()
    trained = torch.cat(asked[::2])
    assert (trained > 0).all() and (trained <= 1).all()  # t in (0, 1] is what training draws


@every_process
def test_a_packed_view_draws_its_own_numbers(process):
    """Segments of 3, 5 and 2 cells packed together walk as each would alone."""
    lengths = [3, 5, 2]
    belief = torch.randn(10, K, generator=generator(9))

    def walk(keys, cells):
        rng = PerSegment([generator(k) for k in keys], [lengths[k] for k in keys])
        x = process.prior(belief[cells, 0], rng)
        return sample(lambda x, t: belief[cells], partial(process.step, rng=rng), x, uniform_grid(4))

    together = walk([0, 1, 2], slice(0, 10)).split(lengths)
    for key, start in enumerate((0, 3, 8)):
        assert torch.equal(walk([key], slice(start, start + lengths[key])), together[key])


def test_packed_cells_with_a_time_each_equal_padded_rows():
    process = PROCESSES["uniform"]
    x_t = torch.randint(0, K, (4, 6), generator=generator(10))
    belief = torch.randn(4, 6, K, generator=generator(11))
    t, s = torch.tensor([0.9, 0.5, 0.3, 1.0]), torch.tensor([0.5, 0.1, 0.0, 0.2])
    dense = process.posterior(x_t, belief, t, s)
    packed = process.posterior(x_t.flatten(), belief.flatten(0, 1), t.repeat_interleave(6), s.repeat_interleave(6))
    assert torch.equal(dense.flatten(0, 1), packed)


def test_temperature_and_top_p_shape_the_belief_of_a_step_only():
    belief = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    cold, nucleus = Uniform(4, PACKED, temperature=0.5), Uniform(4, PACKED, top_p=0.8, final="sample")
    assert torch.equal(cold.sharpened(belief), belief * 2)
    assert nucleus.sharpened(belief).isfinite().tolist() == [[True, True, False, False]]
    x, one, zero = torch.zeros(DRAWS, dtype=torch.int64), torch.ones(DRAWS), torch.zeros(DRAWS)
    drawn = nucleus.step(x, belief.expand(DRAWS, -1), one, zero, generator(12))
    share = belief.softmax(-1)[0, :2] / belief.softmax(-1)[0, :2].sum()
    rare(torch.bincount(drawn, minlength=4).double(), torch.cat([share, torch.zeros(2, dtype=torch.float64)]))
    plain = Uniform(4, PACKED).posterior(x[:1], belief, one[:1], zero[:1])
    assert torch.equal(cold.posterior(x[:1], belief, one[:1], zero[:1]), plain)


def test_mistakes_are_named():
    process, x = PROCESSES["uniform"], torch.zeros(2, 3, dtype=torch.int64)
    noise, t = process.draw(x, generator()), torch.full((2,), 0.5)
    logits = torch.zeros(2, 3, K)
    mistakes = {
        r"ids reach from 0 to 10; the process wants 0\.\.9": lambda: process.corrupt(
            x.index_fill(1, x[0, :1], 10), noise, t
        ),
        "ids have dtype torch.uint8": lambda: process.corrupt(x.byte(), noise, t),
        "belief has 11 classes, the process 10": lambda: process.posterior(x, torch.zeros(2, 3, 11), t, t / 2),
        r"t must lie in \[0, 1\], got 1.5": lambda: process.corrupt(x, noise, t + 1),
        r"t must lie in \[0, 1\], got nan": lambda: process.corrupt(x, noise, t * torch.nan),
        "t has dtype torch.bfloat16": lambda: process.corrupt(x, noise, t.bfloat16()),
        r"t \[3\] does not fit data \[2, 3\]": lambda: process.corrupt(x, noise, torch.full((3,), 0.5)),
        "a step goes from t down to s, got t=0.5 and s=0.75": lambda: process.posterior(x, logits, t, t * 1.5),
        "alpha is 1 at t=": lambda: process.posterior(x, logits, t * 1e-9, t * 0),
        "3 generators for 3 rows met a draw of shape": lambda: process.draw(x, [generator()] * 3),
        "joint='both'": lambda: Uniform(K, PACKED, joint="both"),
        "mask_id 11": lambda: Hybrid(K, 11, PACKED, 0.2),
    }
    for sentence, mistake in mistakes.items():
        with pytest.raises(ValueError, match=sentence):
            mistake()


def test_a_posterior_step_keeps_up_with_packed_cells():
    """2,500 cells must cost far less than the network that believes them."""
    process, n = PROCESSES["uniform"], 2500
    x, belief = torch.zeros(n, dtype=torch.int64), torch.randn(n, K)
    t, s = torch.full((n,), 0.5), torch.full((n,), 0.4)
    rng, best = generator(), math.inf
    for _ in range(20):
        start = time.process_time()
        process.step(x, belief, t, s, rng)
        best = min(best, time.process_time() - start)
    assert best < 5e-3, f"{best * 1e3:.2f} ms"


def test_uniform_draws_use_the_list_of_generators():
    both = draws.uniform((2, 3), [generator(1), generator(2)])
    assert torch.equal(both[1], draws.uniform((1, 3), generator(2))[0])
