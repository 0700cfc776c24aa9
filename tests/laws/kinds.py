"""The laws of one kind of process each (ids, Gaussian, schedules, interpolation); used like those of laws.py."""

import math
from itertools import pairwise

import torch
from torch import Tensor

import shared.processes as sound
from tests.laws.cases import generator
from tests.laws.measures import DRAWS, SHAPES, close, near, order_of, rare, times

# --- categories -------------------------------------------------------------------------------------------------------


def transition(process, t: float) -> Tensor:
    """Q_t [x0, x_t] of survival a_t, as a full matrix over the states."""
    a = process.alpha(torch.tensor(t, dtype=torch.float64))
    pi = process.stationary(torch.float64, a.device)
    return a * torch.eye(process.num_states, dtype=torch.float64) + (1 - a) * pi.expand(process.num_states, -1)


def posterior_is_bayes_by_matrices(case, ns=sound):
    """posterior = sum over x0 of p(x0) Q_s[x0, x_s] Q_{t|s}[x_s, x_t] / Q_t[x0, x_t], and sums to 1."""
    process = case.process(torch.zeros(1, 1), ns)
    belief = torch.randn(process.num_states, process.num_classes, generator=generator(6), dtype=torch.float64)
    p = process._over_states(process.probabilities(belief))
    for t, s in ((0.9, 0.2), (0.5, 0.45), (1.0, 0.7), (0.3, 0.0), (0.01, 0.002)):
        q_t, q_s = transition(process, t), transition(process, s)
        stride = torch.linalg.solve(q_s, q_t)  # Q_t = Q_s Q_{t|s}
        here = torch.arange(process.num_states)
        clock = [torch.full((len(here),), x, dtype=torch.float64) for x in (t, s)]
        found = process.posterior(here, belief, *clock)
        close(found.sum(-1), torch.ones_like(found.sum(-1)))
        for y in here:
            weight = torch.where(p[y] > 0, p[y] / q_t[:, y], 0)
            if not weight.isfinite().all():
                continue  # an x_t that this belief cannot have produced
            close(found[y], (weight @ q_s) * stride[:, y], 1e-10)


def draws_follow_the_posterior(case, ns=sound):
    """For an unsure belief, too: markov draws x_s from `posterior`."""
    x0 = torch.zeros(DRAWS, dtype=torch.int64)
    process = case.process(x0, ns)
    belief = torch.randn(1, process.num_classes, generator=generator(7), dtype=torch.float64).expand(DRAWS, -1)
    t, s = (torch.full((DRAWS,), x, dtype=torch.float64) for x in (0.7, 0.4))
    for y in range(process.num_states):
        x_s = process.step(torch.full_like(x0, y), belief, t, s, generator(y))
        rare(torch.bincount(x_s, minlength=process.num_states).double(),
             process.posterior(torch.full_like(x0[:1], y), belief[:1], t[:1], s[:1])[0])  # fmt: skip


def masks_are_nested(case, ns=sound):
    """Along one path what is masked at s is masked at t > s, shown cells are x0, and no step masks a shown cell."""
    x0 = case.data((200, 10))
    process = case.process(x0, ns)
    noise = case.draw(process, x0, generator())
    levels = torch.linspace(0, 1, 9, dtype=torch.float64)
    path = torch.stack([process.corrupt(x0, noise, t.expand(200)) for t in levels])
    masked = path == process.mask_id
    assert (masked[:-1] <= masked[1:]).all() and masked[-1].sum() >= masked[0].sum()
    assert (path[~masked] == x0.expand_as(path)[~masked]).all()
    belief = torch.zeros(200, 10, process.num_classes, dtype=torch.float64)
    x_s = process.step(path[5], belief, levels[5].expand(200), levels[2].expand(200), generator(1))
    assert torch.equal(x_s[~masked[5]], x0[~masked[5]]) and (x_s[masked[5]] != process.mask_id).any()


# --- Gaussian ---------------------------------------------------------------------------------------------------------


def strides_compose(case, ns=sound):
    """Mean and variance of x_s through (t -> s) and through (t -> u -> s) are those of x_s, to 1e-10; any eta."""
    x0 = case.data((1, 3))
    process = case.process(x0, ns)
    for seed in range(10):
        s, u, t = (torch.rand(3, generator=generator(seed), dtype=torch.float64).sort().values * 0.98 + 0.01).unsqueeze(
            1
        )
        for path in ((t, s), (t, u, s)):
            mean, var = process.schedule.alpha(t) * x0, process.schedule.sigma(t) ** 2
            for now, then in pairwise(path):
                beyond = process.moments(mean + 1, x0, now, then, process.eta)[0]
                following, std = process.moments(mean, x0, now, then, process.eta)
                mean, var = following, (beyond - following) ** 2 * var + std**2
            close(mean, process.schedule.alpha(s) * x0, 1e-10)
            close(var.expand_as(x0), (process.schedule.sigma(s) ** 2).expand_as(x0), 1e-10)


def without_noise_linear_is_euler(case, ns=sound):
    process = ns.Gaussian(ns.Linear())
    x, belief = case.data((4, 4, 2)), case.data((4, 4, 2), 1)
    for t in times(x.shape, case.kind):
        s = t * 0.7
        pad = (slice(None),) * t.ndim + (None,) * (3 - t.ndim)
        velocity = (x - belief) / t[pad]
        close(process.step(x, belief, t, s), x + (s - t)[pad] * velocity)


def full_variance_is_ddpm(case, ns=sound):
    """eta = 1: variance (1 - A_s)/(1 - A_t) (1 - A_t/A_s), A = alpha^2 (Ho et al. 2020, eq. 7)."""
    process = case.process(torch.zeros(1), ns)
    t = torch.linspace(0.05, 0.99, 30, dtype=torch.float64)
    s = t * 0.6
    x = torch.zeros(30, dtype=torch.float64)
    a_t, a_s = (process.schedule.alpha(v).square() for v in (t, s))
    std = process.moments(x, x, t, s, 1.0)[1]
    close(std**2, (1 - a_s) / (1 - a_t) * (1 - a_t / a_s))
    close(process.moments(x, x, t, s, 0.3)[1], 0.3 * std)


def identities_agree(case, ns=sound):
    """x0, eps and velocity are recovered from each other and x_t, for t of [B] and [B, T]."""
    for shape in SHAPES.values():
        x0, eps = case.data(shape), case.data(shape, 1)
        process = case.process(x0, ns)
        for t in times(shape, case.kind):
            x_t = process.corrupt(x0, eps, t)
            v = process.velocity_from_x0(x_t, x0, t)
            for found, wanted in (
                (process.x0_from_eps(x_t, eps, t), x0), (process.eps_from_x0(x_t, x0, t), eps),
                (process.x0_from_velocity(x_t, v, t), x0), (process.eps_from_velocity(x_t, v, t), eps),
                (process.velocity_from_eps(x_t, eps, t), v),
            ):  # fmt: skip
                close(found, wanted, 1e-10)
            a, b = process.schedule.velocity(t)
            pad = (slice(None),) * t.ndim + (None,) * (len(shape) - t.ndim)
            close(v, a[pad] * x0 + b[pad] * eps, 1e-10)


# --- schedules --------------------------------------------------------------------------------------------------------


def schedule_is_consistent(case, ns=sound):
    schedule = case.process(torch.zeros(1), ns).schedule
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    inner = t[10:-10]
    assert (alpha.diff() < 0).all() and alpha[-1] <= 0.03 and alpha[-1] >= 0
    assert not case.exact_start or (alpha[0] == 1 and sigma[0] == 0)
    if "linear-eta" not in case.name and "shifted-" not in case.name:
        close(sigma**2, 1 - alpha**2)
    close(schedule.log_snr(inner), 2 * (schedule.alpha(inner).log() - schedule.sigma(inner).log()), 1e-10)
    a, b = schedule.velocity(t)
    close(alpha * b - sigma * a, torch.ones_like(t))
    for value, slope in ((schedule.alpha, schedule.d_alpha), (schedule.log_snr, schedule.d_log_snr)):
        h = 1e-5  # Warped bends at its knots: compare where both sides agree
        left, right = (value(inner) - value(inner - h)) / h, (value(inner + h) - value(inner)) / h
        smooth = (left - right).abs() < 1e-2 * (1 + left.abs())
        assert smooth.float().mean() > 0.9
        centre = ((left + right) / 2)[smooth]
        close(slope(inner)[smooth] / (1 + centre.abs()), centre / (1 + centre.abs()), 1e-3)


def float32_is_finite_inside(case, ns=sound):
    schedule = case.process(torch.zeros(1), ns).schedule
    t = torch.linspace(0, 1, 1001)[1:-1]
    for value in (schedule.alpha(t), schedule.sigma(t), schedule.log_snr(t)):
        assert value.isfinite().all() and value.dtype == torch.float32
    assert not case.exact_start or schedule.alpha(torch.zeros(7)).eq(1).all()


def weights_are_finite(case, ns=sound):
    process = case.process(torch.zeros(1), ns)
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    kinds = ("x0", "eps", "velocity", "min_snr", "sigmoid")
    values = [process.elbo_weight(t)] if case.kind == "ids" else [process.weight(t, kind) for kind in kinds]
    for weight in values:
        assert weight.isfinite().all() and (weight >= 0).all() and (weight > 0).float().mean() > 0.99


def weights_translate_errors(case, ns=sound):
    """weight(kind) * |x0 - belief|^2 is the squared error of what the network would have predicted."""
    x0, eps, belief = (case.data((6, 4), seed) for seed in range(3))
    process = case.process(x0, ns)
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    x_t = process.corrupt(x0, eps, t)
    error = (x0 - belief).square().sum(1)
    wrong_eps, wrong_v = process.eps_from_x0(x_t, belief, t), process.velocity_from_x0(x_t, belief, t)
    close((process.weight(t, "eps") * error).log(), (eps - wrong_eps).square().sum(1).log(), 1e-9)
    v = process.velocity_from_x0(x_t, x0, t)
    close((process.weight(t, "velocity") * error).log(), (v - wrong_v).square().sum(1).log(), 1e-9)
    snr = process.schedule.log_snr(t).exp()
    close(process.weight(t, "min_snr", gamma=2.0), snr.clamp(max=2.0))
    close(process.weight(t, "sigmoid", bias=-1.0), snr * torch.sigmoid(-1.0 - snr.log()), 1e-9)


def functions_have_their_published_values(case, ns=sound):
    """Against the formulas of the papers, written once more in plain Python."""
    t = torch.linspace(0, 1, 51, dtype=torch.float64)

    def cos2(u, o):
        return (math.cos(math.pi / 2 * (u + o) / (1 + o)) / math.cos(math.pi / 2 * o / (1 + o))) ** 2

    def root(u, o):
        return (math.sqrt(u + o) - math.sqrt(o)) / (math.sqrt(1 + o) - math.sqrt(o))

    published = (
        (ns.linear, lambda u: 1 - u),
        (ns.squared(ns.cosine(0.008)), lambda u: cos2(u, 0.008)),
        (ns.with_floor(ns.squared(ns.cosine(0.008)), 0.02), lambda u: 0.02 + 0.98 * cos2(u, 0.008)),
        (ns.squared(ns.square_root(1e-3)), lambda u: 1 - root(u, 1e-3)),
        (ns.squared(ns.square_root(1e-3, False)), lambda u: 1 - math.sqrt(u + 1e-3) / math.sqrt(1 + 1e-3)),
        (ns.log_linear(1e-2), lambda u: 1 - 0.99 * u),
        (ns.at_least(ns.linear, 0.3), lambda u: max(1 - u, 0.3)),
        (ns.rooted(ns.linear), lambda u: math.sqrt(1 - u)),
        (ns.discrete(ns.linear, 4), lambda u: 1 - round(4 * u) / 4),
    )
    for fn, formula in published:
        close(fn(t), torch.tensor([formula(float(u)) for u in t], dtype=torch.float64))


def warp_follows_the_loss(case, ns=sound):
    """t is a quantile: between two levels of t the loss rises alike, but for the flat share; and back again."""
    cdf = ns.PiecewiseCdf(-8.0, 8.0, bins=64, uniform=0.1)
    level = torch.linspace(-8, 8, 6401, dtype=torch.float64)
    close(cdf.log_snr(torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)),
          torch.tensor([8.0, 4.0, -8.0], dtype=torch.float64))  # fmt: skip
    cdf.calibrate(level, torch.sigmoid(-level))
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    close(cdf.quantile(cdf.log_snr(t)), t, 1e-9)
    wanted = 0.9 * torch.sigmoid(-cdf.log_snr(t)) + 0.1 * (8 - cdf.log_snr(t)) / 16
    close(t, wanted, 5e-3)
    inner = level[50::100]  # off the knots
    close(cdf.density(inner), (cdf.quantile(inner - 1e-4) - cdf.quantile(inner + 1e-4)) / 2e-4, 1e-9)
    other = ns.PiecewiseCdf(-8.0, 8.0, bins=64, uniform=0.0)
    other.start_from(cdf)
    close(other.quantile(level), cdf.quantile(level), 5e-3)


def level_to_time_is_the_inverse(case, ns=sound):
    schedule = case.process(torch.zeros(1), ns).schedule
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    close(ns.time_of(schedule, schedule.log_snr(t)), t, 1e-9)
    beyond = torch.tensor([-1e9, 1e9], dtype=torch.float64)
    close(ns.time_of(schedule, beyond).round(), torch.tensor([1.0, 0.0], dtype=torch.float64), 0)


def elbo_weight_has_its_value(case, ns=sound):
    """1/t for survival 1 - t (Sahoo et al. 2024); -a'/(1 - a) for the squared cosine."""
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    close(ns.Absorbing(4, ns.linear).elbo_weight(t), 1 / t, 1e-9)
    half = math.pi / 2 * t
    close(ns.Uniform(4, ns.squared(ns.cosine())).elbo_weight(t), math.pi * half.cos() / half.sin(), 1e-7)


# --- interpolation ----------------------------------------------------------------------------------------------------


def anchors_come_back(case, ns=sound):
    """Anchors bit for bit, a straight line reproduced, every frame an anchor is the identity; linear and cubic."""
    index = torch.tensor([[0, 2, 3, 9], [0, 1, 8, 9]])
    values = torch.randn(2, 4, 3, generator=generator())
    for kind in ("linear", "cubic"):
        path = ns.interpolate(values, index, 10, kind)
        assert torch.equal(path.gather(1, index[..., None].expand(-1, -1, 3)), values)
        close(ns.interpolate(index[..., None].double(), index, 10, kind).squeeze(-1),
              torch.arange(10, dtype=torch.float64).expand(2, -1))  # fmt: skip
        every = torch.arange(10).expand(2, -1)
        frames = torch.randn(2, 10, 3, generator=generator())
        assert torch.equal(ns.interpolate(frames, every, 10, kind), frames)
    between = ns.interpolate(values.double(), index, 10)[0, 5]
    close(between, values[0, 2].double() * 2 / 3 + values[0, 3].double() / 3)


def cubic_is_smooth_and_natural(case, ns=sound):
    """Against the natural spline of three points solved by hand, and continuous slopes at inner anchors."""
    path = ns.interpolate(torch.tensor([[[0.0], [1.0], [0.0]]]).double(), torch.tensor([[0, 10, 20]]), 21, "cubic")[
        0, :, 0
    ]
    u = torch.arange(11, dtype=torch.float64) / 10
    close(path[:11], 1.5 * u - 0.5 * u**3)
    close(path, path.flip(0))


def levels_are_nested(case, ns=sound):
    """Kept frames of t are kept at s < t, counts are exact, D_t(D_s(x)) = D_t(x), steps re-corrupt along the path."""
    x0 = case.data((3, 20, 2))
    process = case.process(x0, ns)
    order = process.draw(x0)
    levels = torch.linspace(0, 1, 7, dtype=torch.float64)
    kept = torch.stack([process.kept(order, t.expand(3)) for t in levels])
    assert (kept[1:] <= kept[:-1]).all() and kept[0].all() and kept[:, :, [0, -1]].all()
    wanted = torch.stack([process.counts(t.expand(3)) for t in levels])
    assert torch.equal(kept.sum(-1), wanted) and (wanted[-1] == 2).all() and (wanted.diff(dim=0) <= 0).all()
    for s, t in pairwise(levels):
        s, t = s.expand(3), t.expand(3)
        x_s, x_t = process.corrupt(x0, order, s), process.corrupt(x0, order, t)
        close(process.corrupt(x_s, order, t), x_t)
        close(process.step(x_t, x0, t, s), x_s, 0)
        index = [row.nonzero().flatten() for row in process.kept(order, t)]
        for b, anchors in enumerate(index):
            close(ns.interpolate(x0[b : b + 1, anchors], anchors[None], 20)[0], x_t[b])


def counts_have_their_values(case, ns=sound):
    def at_ninths(kind):
        return ns.counts(kind, 128, 8)(torch.arange(9, dtype=torch.float64) / 8).tolist()

    assert at_ninths("geometric") == [128, 91, 64, 45, 32, 23, 16, 11, 8]
    assert at_ninths("linear") == [128, 113, 98, 83, 68, 53, 38, 23, 8]
    assert at_ninths("doubling") == [128, 64, 64, 32, 32, 16, 16, 8, 8]


def a_quiet_bridge_contracts(case, ns=sound):
    """eta = 0: x_s - belief = (s/t)(x_t - belief), no draw needed; gain 0 removes the wobble."""
    x0, belief = case.data((3, 4, 2)), case.data((3, 4, 2), 1)
    bridge = ns.Bridge(0.4, 0.0)
    t, s = torch.full((3,), 0.8, dtype=torch.float64), torch.full((3,), 0.2, dtype=torch.float64)
    quiet = bridge.draw(x0, generator(), start=belief, gain=x0.new_zeros(3))
    close(bridge.corrupt(x0, quiet, t), 0.2 * x0 + 0.8 * belief)
    close(bridge.step(x0, belief, t, s, generator()) - belief, 0.25 * (x0 - belief))


def choices_are_proportional(case, ns=sound):
    """Weights need not sum to one, zeros are never drawn, a list of generators gives each row its own."""
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 4.0, 0.0], dtype=torch.float64)
    drawn = ns.draws.choose(weights.expand(DRAWS, -1), generator())
    rare(torch.bincount(drawn, minlength=6).double(), weights / weights.sum())
    both = ns.draws.choose(weights.expand(2, 3, -1), [generator(1), generator(2)])
    assert torch.equal(both[1], ns.draws.choose(weights.expand(1, 3, -1), generator(2))[0])


def final_step_is_the_argmax(case, ns=sound):
    x = torch.zeros(500, dtype=torch.int64)
    process = case.process(x, ns)
    belief = torch.randn(500, process.num_classes, generator=generator(), dtype=torch.float64)
    belief[:, case.mask :][:, :1] = -9.0  # where the mask is a class, it is not the argmax
    x_t = process.prior(x, generator())
    t, zero = torch.full((500,), 0.5, dtype=torch.float64), torch.zeros(500, dtype=torch.float64)
    found = process.step(x_t, belief, t, zero, generator())
    assert torch.equal(found, belief.argmax(-1))
    process.final = "sample"
    found = process.step(x_t, belief, t, zero, generator())
    agree = torch.softmax(belief, -1).amax(-1)
    assert ((found == belief.argmax(-1)).double().sum() - agree.sum()).abs() < 4 * (agree * (1 - agree)).sum().sqrt()


# --- second-order steps -----------------------------------------------------------------------------------------------


def heun_averages_two_slopes(case, ns=sound):
    """One long step, written out: in t on the linear path, in sigma/alpha (of x/alpha) for edm."""
    x, t, s = case.data((4, 3)), torch.full((4,), 0.8, dtype=torch.float64), torch.full((4,), 0.3, dtype=torch.float64)

    def net(x, t):
        return torch.tanh(x) * t[:, None]

    def heun(x, now, then, slope):
        first = slope(x, now)
        return x + (then - now) / 2 * (first + slope(x + (then - now) * first, then))

    flow = ns.Gaussian(ns.Linear())
    wanted = heun(x, 0.8, 0.3, lambda x, u: (x - net(x, torch.full_like(t, u))) / u)
    close(ns.Heun(flow, net, "flow")(x, net(x, t), t, s), wanted)
    process = ns.Gaussian(ns.VariancePreserving(ns.cosine()))
    (a_t, s_t), (a_s, s_s) = ((process.schedule.alpha(v)[0], process.schedule.sigma(v)[0]) for v in (t, s))
    levels = {(s_t / a_t).item(): (t, a_t), (s_s / a_s).item(): (s, a_s)}

    def slope(x, u):
        clock, alpha = levels[u.item()]
        return (x - net(x * alpha, clock)) / u

    wanted = a_s * heun(x / a_t, s_t / a_t, s_s / a_s, slope)
    close(ns.Heun(process, net, "edm")(x, net(x, t), t, s), wanted)


def heun_is_of_second_order(case, ns=sound):
    process = ns.Gaussian(ns.Linear())
    near(order_of(lambda net: process.step, process.schedule), 1, 0.25)
    for kind in ("mean", "edm", "flow"):
        near(order_of(lambda net, kind=kind: ns.Heun(process, net, kind), process.schedule), 2, 0.25)


def two_beliefs_are_of_second_order(case, ns=sound):
    process = ns.Gaussian(ns.VariancePreserving(ns.cosine()))
    near(order_of(lambda net: ns.Dpm2m(process), process.schedule), 2, 0.35)
