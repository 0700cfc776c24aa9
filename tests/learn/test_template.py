"""The template learns its moons in seconds, and states how far it is from what no learning reaches."""

import math

import pytest
import torch
from lightning import Trainer

from shared.training import optim
from shared.training.ema import EMA, EmaOptions
from shared.training.template.data import TemplateData, distance_to_moons, moons, sliced_w2
from shared.training.template.module import TemplateModule

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def floor(points: int) -> float:
    """Data to data, mean of five draws."""
    held_out = moons(points, "test")
    return sum(sliced_w2(moons(points, f"floor {i}"), held_out).item() for i in range(5)) / 5
