"""Each family is found from demos and rearranges a query; the size rule tries its laws in order."""

import numpy as np
import pytest

from packages.arc import sizes
from packages.arc.families import family
from packages.arc.tasks import Pair, as_grid
from packages.arc.views import turn

A, B = as_grid([[1, 2, 3], [4, 5, 6]]), as_grid([[0, 7, 1], [8, 9, 2]])
MADE = {
    "symmetry": lambda grid: turn(grid, 5),
    "recolour": lambda grid: np.array([0, 2, 3, 4, 5, 6, 7, 8, 9, 1], np.uint8)[turn(grid, 2)],
    "shift": lambda grid: np.pad(grid, ((0, 0), (1, 0)))[:, :-1],
    "mosaic": lambda grid: np.block([[grid, grid[:, ::-1]], [grid[::-1], grid]]),
    "scale": lambda grid: grid.repeat(3, 0).repeat(3, 1),
    "crop": lambda grid: grid[:1, 1:],
}


@pytest.mark.parametrize("kind", MADE)
def test_a_family_is_found_and_solves_a_new_query(kind):
    query, make = as_grid([[5, 0, 9], [1, 3, 2]]), MADE[kind]
    found = family([Pair(grid, make(grid)) for grid in (A, B)])
    assert found is not None and found.kind == kind and np.array_equal(found.solve(query), make(query))


def test_one_demo_that_does_not_fit_ends_the_family():
    assert family([Pair(A, turn(A, 5)), Pair(B, turn(B, 6))]) is None


def test_a_table_that_merges_colours_is_no_recolouring():
    assert family([Pair([[1, 2, 3]], [[5, 5, 3]])]) is None


def test_a_query_the_rearrangement_cannot_take_has_no_answer():
    crop = family(
        [Pair(as_grid(np.arange(9).reshape(3, 3)), [[8]]), Pair(as_grid(np.arange(9)[::-1].reshape(3, 3)), [[0]])]
    )
    assert crop.kind == "crop" and crop.solve(as_grid([[1, 2]])) is None
    turned = family([Pair([[1, 2], [3, 4]], [[1, 2, 3, 1], [3, 4, 4, 2]])])
    assert turned.kind == "mosaic" and turned.solve(as_grid([[1, 2]])) is None
    scale = family([Pair([[1, 2]], np.array([[1, 2]]).repeat(4, 0).repeat(4, 1))])
    assert scale.solve(as_grid([[1] * 8])) is None


def size(*pairs, query, **options):
    demos = [Pair(np.zeros(before, int), np.zeros(after, int)) for before, after in pairs]
    return sizes.rule(demos, as_grid(np.zeros(query, int)), **options)


def test_the_size_rule_tries_same_constant_ratio_swapped():
    assert size(((2, 3), (2, 3)), ((4, 4), (4, 4)), query=(5, 6)) == (5, 6)
    assert size(((2, 3), (1, 1)), ((4, 4), (1, 1)), query=(5, 6)) == (1, 1)
    assert size(((2, 3), (4, 1)), ((4, 6), (8, 2)), query=(5, 9)) == (10, 3)
    assert size(((2, 3), (3, 2)), ((4, 5), (5, 4)), query=(5, 6)) == (6, 5)
    assert size(((2, 3), (3, 2)), ((4, 5), (5, 4)), query=(5, 6), swap=False) is None


def test_the_first_law_that_fits_decides():
    assert size(((2, 2), (2, 2)), query=(5, 6)) == (5, 6)  # same before constant
    assert size(((2, 2), (4, 4)), query=(5, 6)) == (4, 4)  # constant before ratio


def test_a_size_that_is_no_whole_number_or_above_30_is_none():
    assert size(((2, 3), (4, 1)), ((4, 6), (8, 2)), query=(5, 8)) is None
    assert size(((2, 3), (4, 1)), ((4, 6), (8, 2)), query=(16, 9)) is None
    assert size(((2, 3), (4, 1)), ((4, 6), (9, 2)), query=(2, 3)) is None
