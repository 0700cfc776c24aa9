"""The laws of every process, as functions that raise AssertionError: `law(case, ns)` for a case of cases.py.

The namespace is `shared.processes`, or a broken copy of it: test_laws_bite.py runs the same functions on both.
"""

from functools import partial

import torch
from torch import Tensor

import shared.processes as sound
from shared.sampling import pyramid_grid, sample, sequential_grid, uniform_grid
from tests.laws.cases import START, generator
from tests.laws.measures import PATHS, SHAPES, close, follows, four_errors, rare, rows, times

# --- limits -----------------------------------------------------------------------------------------------------------


def nothing_is_lost_at_zero(case, ns=sound):
    for shape in SHAPES.values():
        x0 = case.data(shape)
        process = case.process(x0, ns)
        noise = case.draw(process, x0, generator())
        for t in times(shape, case.kind):
            close(process.corrupt(x0, noise, torch.zeros_like(t)), x0)


def one_is_the_prior(case, ns=sound):
    x0 = rows(case)
    process = case.process(x0, ns)
    one = torch.ones(3, dtype=torch.float64)
    corrupted = process.corrupt(x0, case.draw(process, x0, generator(2)), one.expand(len(x0), -1))
    follows(case, process, corrupted, x0[0], one)
    drawn = case.prior(process, x0, generator(3))
    if case.kind == "ids":
        for cell in range(3):
            rare(torch.bincount(drawn[:, cell], minlength=process.num_states).double(),
                 process.stationary(torch.float64, drawn.device))  # fmt: skip
        alpha = process.alpha(one)
    elif case.kind == "real":
        four_errors(drawn, torch.zeros(3, dtype=torch.float64), process.schedule.sigma(one))
        alpha = process.schedule.alpha(one)
    else:
        close(drawn, x0 + START)
        return
    assert (alpha <= 0.03).all() and (alpha >= 0).all(), alpha


# --- the walk back ----------------------------------------------------------------------------------------------------


def steps_carry_the_marginal(case, ns=sound, pairs: int = 7):
    """20 random pairs s < t: an x_s stepped to from x_t with a sure belief is distributed as x_s (3 pairs a time)."""
    x0 = rows(case, PATHS)
    process = case.process(x0, ns)
    for seed in range(pairs):
        ends = torch.rand(2, 3, generator=generator(10 + seed), dtype=torch.float64).sort(0).values * 0.98 + 0.01
        s, t = (e.expand(len(x0), -1) for e in ends)
        x_t = process.corrupt(x0, case.draw(process, x0, generator(seed)), t)
        follows(case, process, process.step(x_t, case.sure(process, x0), t, s, generator(100 + seed)), x0[0], s[0])


def two_steps_are_one(case, ns=sound):
    x0 = rows(case, PATHS)
    process = case.process(x0, ns)
    for seed in range(3):
        ends = torch.rand(3, 3, generator=generator(20 + seed), dtype=torch.float64).sort(0).values * 0.98 + 0.01
        s, u, t = (e.expand(len(x0), -1) for e in ends)
        x_t = process.corrupt(x0, case.draw(process, x0, generator(seed)), t)
        belief, rng = case.sure(process, x0), generator(200 + seed)
        follows(case, process, process.step(process.step(x_t, belief, t, u, rng), belief, u, s, rng), x0[0], s[0])


def a_sure_belief_returns_x0(case, ns=sound):
    for shape in SHAPES.values():
        x0 = case.data(shape)
        process = case.process(x0, ns)
        belief = case.sure(process, x0)
        grids = [uniform_grid(n).double() for n in (1, 2, 7, 64)]
        if case.kind != "nested":
            grids += [pyramid_grid(4, shape[1], 2).double(), sequential_grid(2, shape[1]).double()]
        for grid in grids:
            start = case.prior(process, x0, generator(4))
            found = sample(lambda x, t, b=belief: b, partial(process.step, rng=generator(5)), start, grid)
            assert torch.equal(found, x0), f"{len(grid) - 1} steps"


def waiting_moves_nothing(case, ns=sound):
    for shape in SHAPES.values():
        x0, other = case.data(shape), case.data(shape, seed=9)
        process = case.process(x0, ns)
        for t in times(shape, case.kind):
            for end in (t, torch.zeros_like(t), torch.ones_like(t)):
                x_t = case.prior(process, x0, generator())
                assert torch.equal(process.step(x_t, case.sure(process, other), end, end, generator()), x_t)


# --- shapes, purity, randomness ---------------------------------------------------------------------------------------


def slices(noise, index):
    return noise[index] if isinstance(noise, Tensor) else type(noise)(*(n[index[: n.ndim]] for n in noise))


def time_belongs_to_rows_and_columns(case, ns=sound):
    """t [B] acts on rows and [B, T] on columns, also where B = T: each slice alone gives the same."""
    for shape in SHAPES.values():
        x0 = case.data(shape)
        process = case.process(x0, ns)
        noise = case.draw(process, x0, generator())
        by_row, *by_column = times(shape, case.kind)
        whole = process.corrupt(x0, noise, by_row)
        for b in range(shape[0]):
            row = (slice(b, b + 1),)
            close(process.corrupt(x0[row], slices(noise, row), by_row[row]), whole[row], 0)
        for t in by_column:
            whole = process.corrupt(x0, noise, t)
            for j in range(shape[1]):
                column = (slice(None), slice(j, j + 1))
                close(process.corrupt(x0[column], slices(noise, column), t[:, j]), whole[column], 0)


def corrupt_is_pure(case, ns=sound):
    x0 = case.data((4, 4, 2))
    process = case.process(x0, ns)
    noise = case.draw(process, x0, generator())
    parts = [noise] if isinstance(noise, Tensor) else list(noise)
    for t in times(x0.shape, case.kind):
        before = [v.clone() for v in (x0, t, *parts)]
        first = process.corrupt(x0, noise, t)
        assert all(torch.equal(a, b) for a, b in zip(before, (x0, t, *parts)))
        assert torch.equal(process.corrupt(x0, noise, t), first)


def a_sample_has_its_own_randomness(case, ns=sound):
    """With a list of generators row b is what generator b gives alone, in draw, prior and step."""
    x0 = case.data((3, 4, 2))
    process = case.process(x0, ns)
    belief = case.sure(process, case.data((3, 4, 2), seed=1))
    t, s = torch.full((3,), 0.6, dtype=torch.float64), torch.full((3,), 0.3, dtype=torch.float64)

    def path(rows, rng):
        own = process if case.kind != "nested" else ns.Nested(process.order[rows], process.counts)
        x_t = own.corrupt(x0[rows], case.draw(own, x0[rows], rng), t[rows])
        return own.step(x_t, belief[rows], t[rows], s[rows], rng), case.prior(own, x0[rows], rng)

    together = path(slice(0, 3), [generator(b) for b in range(3)])
    for b in range(3):
        alone = path(slice(b, b + 1), [generator(b)])
        assert all(torch.equal(a[0], w[b]) for a, w in zip(alone, together))
