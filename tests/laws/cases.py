"""Every process with every schedule, as the laws see them. A case builds from a namespace: broken code fits in."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import shared.processes as sound

K = 5
START = 7.0  # a bridge of the cases starts this far from its data


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Case:
    """kind: ids, real, bridge or nested. `build(ns, x0)` makes the process; laws draw data by `data(shape)`."""

    name: str
    kind: str
    build: Callable[[Any, Tensor], Any]
    exact_start: bool = True  # alpha(0) = 1
    mask: int = K - 1  # an id that data never has

    def data(self, shape, seed: int = 0) -> Tensor:
        if self.kind == "ids":
            ids = torch.randint(0, K - 1, shape, generator=generator(seed))
            return ids + (ids >= self.mask)
        return torch.randn(shape, generator=generator(seed), dtype=torch.float64)

    def process(self, x0: Tensor, ns=sound):
        return self.build(ns, x0)

    def draw(self, process, x0: Tensor, rng):
        return process.draw(x0, rng, start=x0 + START) if self.kind == "bridge" else process.draw(x0, rng)

    def prior(self, process, x0: Tensor, rng) -> Tensor:
        return process.prior(x0 + START if self.kind == "bridge" else x0, rng)

    def sure(self, process, x0: Tensor) -> Tensor:
        """A belief that is certain of x0."""
        return process.certain(x0, torch.float64) if self.kind == "ids" else x0


def calibrated(ns):
    cdf = ns.PiecewiseCdf(-9.0, 9.0, bins=16)
    level = torch.linspace(-9, 9, 400, dtype=torch.float64)
    cdf.calibrate(level, torch.sigmoid(2 - level))
    return cdf


SURVIVAL = {
    "linear": lambda ns: ns.linear,
    "cosine": lambda ns: ns.squared(ns.cosine(0.008)),
    "floor": lambda ns: ns.with_floor(ns.squared(ns.cosine(0.008)), 0.02),
    "log_linear": lambda ns: ns.log_linear(),
    "square_root": lambda ns: ns.squared(ns.square_root()),
}
SCHEDULES = {
    "cosine": lambda ns: ns.VariancePreserving(ns.cosine()),
    "cosine_offset": lambda ns: ns.VariancePreserving(ns.cosine(0.008)),
    "square_root": lambda ns: ns.VariancePreserving(ns.square_root()),
    "square_root_compat": lambda ns: ns.VariancePreserving(ns.square_root(from_zero=False)),
    "log_linear": lambda ns: ns.VariancePreserving(ns.log_linear()),
    "linear": lambda ns: ns.Linear(),
    "shifted": lambda ns: ns.Shifted(ns.Linear(), 3.0),
    "shifted_cosine": lambda ns: ns.Shifted(ns.VariancePreserving(ns.cosine()), 2.0),
    "warped": lambda ns: ns.Warped(calibrated(ns)),
}


def _uniform(joint, fn, ns, x0):
    return ns.Uniform(K, fn(ns), joint=joint)


def _hybrid(joint, fn, ns, x0):
    return ns.Hybrid(K - 1, K - 1, fn(ns), 0.3, joint=joint)


def _absorbing(fn, ns, x0):
    return ns.Absorbing(K - 1, fn(ns))


def _gaussian(eta, schedule, ns, x0):
    return ns.Gaussian(schedule(ns), eta)


def _bridge(eta, ns, x0):
    return ns.Bridge(0.4, eta)


def _nested(kind, ns, x0):
    length = x0.shape[1]
    inner = torch.stack([torch.randperm(length - 2, generator=generator(b)) + 2 for b in range(len(x0))])
    ends = torch.tensor([0, 1]).expand(len(x0), -1)
    return ns.Nested(torch.cat([ends[:, :1], inner, ends[:, 1:]], 1), ns.counts(kind, length, 2))


def _all_cases():
    for name, fn in SURVIVAL.items():
        for joint in ("markov", "coupled"):
            yield Case(f"uniform-{joint}-{name}", "ids", partial(_uniform, joint, fn))
        yield Case(f"hybrid-markov-{name}", "ids", partial(_hybrid, "markov", fn))
        yield Case(f"absorbing-{name}", "ids", partial(_absorbing, fn))
    yield Case("hybrid-coupled-cosine", "ids", partial(_hybrid, "coupled", SURVIVAL["cosine"]))
    yield Case("hybrid-inside", "ids", lambda ns, x0: ns.Hybrid(K, 1, ns.linear, 0.3), mask=1)
    yield Case("absorbing-inside", "ids", lambda ns, x0: ns.Absorbing(1, ns.linear, K), mask=1)
    for name, schedule in SCHEDULES.items():
        for eta in (0.0, 1.0) if name != "cosine" else (0.0, 0.5, 1.0):
            yield Case(f"gaussian-{name}-eta{eta}", "real", partial(_gaussian, eta, schedule), "compat" not in name)
    for eta in (0.0, 1.0):
        yield Case(f"bridge-eta{eta}", "bridge", partial(_bridge, eta))
    for kind in ("geometric", "linear", "doubling"):
        yield Case(f"nested-{kind}", "nested", partial(_nested, kind))


CASES = list(_all_cases())


def only(*kinds: str, without: str | None = None) -> list[Case]:
    return [c for c in CASES if c.kind in kinds and (without is None or without not in c.name)]


def named(name: str) -> Case:
    return next(c for c in CASES if c.name == name)
