"""Corruptions whose noise is named, and their schedules; see the module of each name."""

from shared.processes.categorical import Absorbing, Hybrid, Redraw, Uniform
from shared.processes.draws import PerSegment, Process
from shared.processes.gaussian import Dpm2m, Gaussian, Heun
from shared.processes.interpolation import Bridge, BridgeNoise, Nested, counts, interpolate
from shared.processes.schedules import (
    Linear,
    PiecewiseCdf,
    Shifted,
    VariancePreserving,
    Warped,
    at_least,
    cosine,
    discrete,
    expand,
    linear,
    log_linear,
    rooted,
    square_root,
    squared,
    time_of,
    with_floor,
)

__all__ = [
    "Absorbing",
    "Bridge",
    "BridgeNoise",
    "Dpm2m",
    "Gaussian",
    "Heun",
    "Hybrid",
    "Linear",
    "Nested",
    "PerSegment",
    "PiecewiseCdf",
    "Process",
    "Redraw",
    "Shifted",
    "Uniform",
    "VariancePreserving",
    "Warped",
    "at_least",
    "cosine",
    "counts",
    "discrete",
    "expand",
    "interpolate",
    "linear",
    "log_linear",
    "rooted",
    "square_root",
    "squared",
    "time_of",
    "with_floor",
]
