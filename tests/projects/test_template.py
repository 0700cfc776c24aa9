"""What only the template says of itself: its moons, how far a cloud is from them, and its pictures."""

import pytest
import torch

from shared.training.template.data import distance_to_moons, measured, moons, sliced_w2
from shared.training.template.module import draw_clouds


def test_fresh_points_lie_on_a_moon_and_the_middle_does_not():
    assert measured(moons(500, "a"), moons(500, "b"))[1] > 0.99
    assert distance_to_moons(torch.tensor([[0.0, 0.0], [2.0, 2.0]])).min() > 0.2


def test_a_cloud_is_as_far_from_its_copy_as_the_copy_was_moved():
    cloud = moons(500, "a")
    assert sliced_w2(cloud, cloud) == 0
    assert sliced_w2(cloud, cloud + torch.tensor([0.0, 1.0])) == pytest.approx(0.5**0.5, abs=1e-3)


def test_any_number_of_clouds_has_its_picture(tmp_path):
    assert draw_clouds({"alone": moons(9, "a")}, tmp_path / "one.png").stat().st_size > 1000
