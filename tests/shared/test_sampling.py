"""The loop, its grids, and every wrapper: what each adds, and that together they keep their order."""

from functools import partial

import pytest
import torch

from shared.processes import Absorbing, Gaussian, Linear, Nested, Uniform, VariancePreserving, cosine, counts, linear
from shared.sampling import (
    Counted,
    Trajectory,
    bounded,
    by_confidence,
    guided,
    karras_grid,
    own_probability,
    pinned,
    pyramid_grid,
    renoise,
    rounded,
    sample,
    self_conditioned,
    sequential_grid,
    switched,
    uniform_grid,
    warped_grid,
)

FLOW = Gaussian(Linear())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def bend(x, t):
    return torch.tanh(x) * (1 - t[:, None])


def keep(x, belief, t, s, *rng):
    return x


# --- the loop and its grids


@pytest.mark.parametrize("n", [1, 2, 7, 64, 128])
def test_every_grid_falls_from_one_to_zero(n):
    for grid in (
        uniform_grid(n),
        karras_grid(n),
        warped_grid(VariancePreserving(cosine()), n),
        warped_grid(Linear(), n),
    ):
        assert grid.shape == (n + 1,) and grid.dtype == torch.float32
        assert grid[0] == 1 and grid[-1] == 0 and (grid.diff() < 0).all()


def test_warped_grid_strides_equally_in_log_snr():
    for schedule in (VariancePreserving(cosine()), Linear()):
        inner = schedule.log_snr(warped_grid(schedule, 10)[1:-1].double())
        assert inner.diff().std() < 1e-3 * inner.diff().mean()


def test_karras_grid_is_the_papers():
    ramp = [(1 + i / 9 * (0.002 ** (1 / 7) - 1)) ** 7 for i in range(10)] + [0]
    assert torch.allclose(karras_grid(10), torch.tensor(ramp), atol=1e-6)


def test_columns_of_a_pyramid_fall_one_lag_after_the_other():
    grid = pyramid_grid(4, 3, lag=2)
    assert grid.shape == (9, 3)
    for column in range(3):
        assert torch.equal(grid[2 * column : 2 * column + 5, column], uniform_grid(4))
    assert torch.equal(sequential_grid(2, 2), torch.tensor([[1, 1], [0.5, 1], [0, 1], [0, 0.5], [0, 0]]))


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        (torch.linspace(0, 1, 5), r"grid must fall from 1 to 0, got 0.000 to 1.000; did you pass tau = 1 - t\?"),
        (torch.tensor([1.0, 0.2, 0.5, 0.0]), "grid must fall from 1 to 0"),
        (torch.tensor([1.0, torch.nan, 0.0])[[0, 1, 1]], "grid must fall"),
        (torch.tensor([1, 0]), "dtype torch.int64"),
        (torch.ones(1), "give floats of shape"),
    ],
)
def test_a_wrong_grid_is_refused(grid, sentence):
    with pytest.raises(ValueError, match=sentence):
        sample(bend, keep, noise(2, 3), grid)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="walk of 0 steps"):
        uniform_grid(0)


def test_times_have_the_shape_of_the_grid():
    seen = []
    sample(lambda x, t: seen.append(t) or x, keep, noise(2, 3, 4), uniform_grid(2))
    sample(lambda x, t: seen.append(t) or x, keep, noise(2, 3, 4), pyramid_grid(2, 3, 1))
    assert [tuple(t.shape) for t in seen] == [(2,)] * 2 + [(2, 3)] * 4


def test_no_gradient_and_no_training_mode():
    net = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="training mode"):
        sample(net, keep, noise(2, 3), uniform_grid(1))
    x = noise(2, 3).requires_grad_()
    assert not sample(lambda x, t: net(x), FLOW.step, x, uniform_grid(3)).requires_grad


def test_trajectory_keeps_what_was_walked():
    watch = Trajectory(every=2)
    end = sample(bend, FLOW.step, noise(2, 3), uniform_grid(5), watch)
    t, x, belief = watch.stacked()
    assert torch.equal(t[:, 0], uniform_grid(5)[[0, 2, 4]]) and torch.equal(x[-1], end)
    assert belief.shape == (3, 2, 3)


# --- wrappers of denoise


def test_no_guidance_is_the_network_itself():
    def null(x, t):
        raise AssertionError("null was called")

    assert guided(bend, null, 0.0) is bend


def test_guidance_leads_away_from_null():
    net = guided(lambda x, t: x + 1, lambda x, t: x, 2.0)
    assert torch.equal(net(torch.zeros(2), torch.ones(2)), torch.full((2,), 3.0))


def test_calls_are_counted_where_they_happen():
    net = Counted(bend)
    sample(guided(net, net, 0.5), FLOW.step, noise(2, 3), uniform_grid(4))
    assert net.calls == 8


def test_self_conditioning_begins_with_zeros_and_hands_the_belief_on():
    seen = []

    def net(x, t, previous):
        seen.append(previous.clone())
        return x + 1

    denoise = self_conditioned(net)
    for _ in range(2):  # a second walk starts anew
        x = noise(2, 3)
        watch = Trajectory()
        sample(denoise, FLOW.step, x, uniform_grid(3), watch)
        assert (seen[0] == 0).all() and torch.equal(torch.stack(seen[1:]), watch.stacked()[2][:-1])
        seen.clear()


def test_self_conditioning_forgets_only_rows_that_restart():
    denoise = self_conditioned(lambda x, t, previous: previous + 1)
    x = torch.zeros(2, 3)
    denoise(x, torch.tensor([0.9, 0.9]))
    assert denoise(x, torch.tensor([0.5, 1.0]))[:, 0].tolist() == [2, 1]


def test_self_conditioning_of_ids_has_classes():
    shapes = []
    denoise = self_conditioned(lambda x, t, p: shapes.append(p.shape) or p, num_classes=7)
    denoise(torch.zeros(2, 3, dtype=torch.int64), torch.ones(2))
    assert shapes == [(2, 3, 7)]


TABLE = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-1.0, -1.0]])


def test_rounding_finds_the_nearest_row_of_each_metric():
    at, t = torch.tensor([[0.6, 0.9]]), torch.ones(1)
    nearest = {metric: rounded(lambda x, t: x, TABLE, metric)(at, t) for metric in ("l2", "cosine", "dot")}
    assert torch.equal(nearest["l2"][0], TABLE[torch.cdist(at, TABLE).argmin()])
    assert torch.equal(nearest["cosine"][0], TABLE[1]) and torch.equal(nearest["dot"][0], TABLE[1])
    assert torch.equal(nearest["l2"][0], TABLE[0])
    with pytest.raises(ValueError, match="metric 'l1' is unknown"):
        rounded(lambda x, t: x, TABLE, "l1")(at, t)


def test_cosine_rounding_ignores_the_rows_lengths_and_dot_does_not():
    x, t = noise(50, 2), torch.ones(50)
    scales = torch.tensor([[1.0], [5.0], [0.2]])
    index = {
        metric: [
            torch.cdist(rounded(lambda x, t: x, table, metric)(x, t), table).argmin(-1)
            for table in (TABLE, TABLE * scales)
        ]
        for metric in ("cosine", "dot")
    }
    assert torch.equal(*index["cosine"]) and not torch.equal(*index["dot"])


def test_soft_rounding_is_the_mean_under_softmax_and_hard_in_the_limit():
    x, t = noise(5, 2), torch.ones(5)
    soft = rounded(lambda x, t: x, TABLE, soft=0.7)(x, t)
    weight = torch.softmax(-torch.cdist(x, TABLE).square() / 0.7, -1)
    assert torch.allclose(soft, weight @ TABLE, atol=1e-5)
    assert torch.allclose(
        rounded(lambda x, t: x, TABLE, soft=1e-4)(x, t), rounded(lambda x, t: x, TABLE)(x, t), atol=1e-4
    )


def test_rounding_starts_late_and_bounds_hold():
    x, t = noise(2, 2), torch.tensor([0.9, 0.3])
    late = rounded(lambda x, t: x, TABLE, start=0.5)(x, t)
    assert torch.equal(late[0], x[0]) and not torch.equal(late[1], x[1])
    assert bounded(lambda x, t: x * 9, -1, 1)(x, t).abs().max() <= 1


# --- wrappers of step


def test_pinned_cells_hold_after_every_step():
    known = torch.tensor([[True, False, False], [False, False, True]])
    value = noise(2, 3, 4, seed=5)
    watch = Trajectory()
    sample(lambda x, t: x * 0, pinned(FLOW.step, known, value), noise(2, 3, 4), uniform_grid(4), watch)
    for x in watch.x:
        assert torch.equal(x[known], value[known]) and not torch.equal(x[~known], value[~known])
    assert (watch.x[-1][~known] == 0).all()


def test_pinned_values_may_depend_on_the_level():
    path = noise(2, 3, seed=6)
    step = pinned(FLOW.step, torch.ones(2, 3, dtype=torch.bool), lambda s: FLOW.corrupt(path * 0, path, s))
    watch = Trajectory()
    sample(bend, step, noise(2, 3), uniform_grid(4), watch)
    assert all(torch.equal(x, path * s) for x, s in zip(watch.x, uniform_grid(4)[1:]))


def test_guided_inside_rounded_inside_pinned():
    """Composition: rounding sees the guided belief, pinning has the last word."""
    target = torch.tensor([[0.9, 0.1]])
    net = rounded(guided(lambda x, t: target, lambda x, t: -target, 1.0), TABLE)  # guided: 3 * target, nearest row 0
    pin = torch.tensor([[False, True]])
    found = sample(net, pinned(FLOW.step, pin, 42.0), noise(1, 2), uniform_grid(5))
    assert found.tolist() == [[1.0, 42.0]]


def test_rng_binds_before_or_after_wrapping():
    process, x = Gaussian(Linear(), eta=1.0), noise(2, 3)
    known = torch.zeros(2, 3, dtype=torch.bool)
    before = pinned(partial(process.step, rng=generator(1)), known, 0.0)
    after = partial(pinned(lambda x, b, t, s, r: process.step(x, b, t, s, r), known, 0.0))
    one = sample(bend, before, x, uniform_grid(3))
    rng = generator(1)
    two = sample(bend, lambda x, b, t, s: after(x, b, t, s, rng), x, uniform_grid(3))
    assert torch.equal(one, two)


def test_renoise_forgets_x_t():
    for process, belief in ((FLOW, noise(3, 4)), (Uniform(5, linear), noise(3, 4, 5))):
        t, s = torch.full((3,), 0.8), torch.full((3,), 0.4)
        starts = [process.prior(torch.zeros(3, 4), generator(seed)) for seed in (1, 2)]
        one, two = (renoise(process)(x, belief, t, s, generator(3)) for x in starts)
        assert torch.equal(one, two)
        end = renoise(process)(starts[0], belief, t, s * 0, generator(3))
        assert torch.equal(end, belief if process is FLOW else belief.argmax(-1))


def test_renoise_of_nested_frames_is_its_step():
    process = Nested(torch.tensor([[0, 2, 4, 3, 1]]), counts("linear", 5, 2))
    x, t = noise(1, 5, 2), torch.full((1,), 0.9)
    belief = noise(1, 5, 2, seed=1)
    assert torch.equal(renoise(process)(x, belief, t, t / 2, None), process.step(x, belief, t, t / 2))


def test_switched_changes_the_rule_at_its_level():
    step = switched(lambda x, b, t, s: x + 1, lambda x, b, t, s: x + 10, at=0.5)
    assert sample(bend, step, torch.zeros(2, 1), uniform_grid(5)).flatten().tolist() == [23, 23]


def test_confidence_keeps_the_surest_first():
    mask = 5
    process = Absorbing(mask, linear)
    logits = torch.zeros(1, 4, 6)
    logits[0, torch.arange(4), torch.tensor([1, 2, 3, 4])] = torch.tensor([1.0, 4.0, 2.0, 3.0])
    for is_open in (None, lambda x: x == mask):
        watch = Trajectory()
        step = by_confidence(partial(process.step, rng=generator()), per_step=1, is_open=is_open)
        process.final = "argmax"
        sample(lambda x, t: logits, step, process.prior(torch.zeros(1, 4), generator()), uniform_grid(4), watch)
        shown = [(x[0] != mask).nonzero().flatten().tolist() for x in watch.x]
        assert shown == [[1], [1, 3], [1, 2, 3], [0, 1, 2, 3]]
        assert watch.x[-1].tolist() == [[1, 2, 3, 4]]


def test_confidence_walks_uniform_noise_and_ends_with_the_belief():
    process = Uniform(5, linear)
    x0 = torch.randint(5, (3, 8), generator=generator(4))
    step = by_confidence(partial(process.step, rng=generator(5)), per_step=lambda t, s: torch.tensor([0, 1, 2]))
    for _ in range(2):
        watch = Trajectory()
        start = process.prior(x0, generator(6))
        sample(lambda x, t: process.certain(x0), step, start, uniform_grid(3), watch)
        fixed = [(x == start).logical_or(x == x0).all() for x in watch.x]
        assert all(fixed) and torch.equal(watch.x[-1], x0)
        assert ((watch.x[0] != start).sum(1) <= torch.tensor([0, 1, 2])).all()


def test_confidence_is_the_probability_of_the_drawn_id():
    belief = noise(2, 3, 5)
    choice = torch.tensor([[0, 1, 2], [4, 4, 0]])
    assert torch.allclose(own_probability(belief, choice)[1, 2], belief[1, 2].softmax(-1)[0])


def test_the_two_moons_are_found_with_more_steps():
    from shared.processes import __main__ as demo

    for process in (FLOW, Uniform(demo.BINS, linear, final="sample"), Absorbing(demo.BINS, linear, demo.BINS)):
        assert demo.cloud_error(process, 16) < 0.05 < 0.1 < demo.cloud_error(process, 1)
