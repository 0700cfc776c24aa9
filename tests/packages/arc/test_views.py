"""Views are exact: each has an inverse, the group closes, and the packed form is the same group on loose cells."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from packages.arc import views
from packages.arc.tasks import as_grid
from packages.arc.views import NUM_D4, Placement, View, Views

ODD = as_grid([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [9, 0, 3, 1, 1]])  # ten colours, no symmetry, H != W
GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 9))
)
VIEWS = st.builds(
    View,
    d4=st.integers(0, 7),
    colours=st.permutations(range(10)).map(tuple),
    offset=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    scale=st.integers(1, 4),
)


@pytest.mark.parametrize("d4", range(NUM_D4))
def test_every_symmetry_is_undone_by_its_inverse(d4):
    assert np.array_equal(views.turn(views.turn(ODD, d4), views.inverse_d4(d4)), ODD)
    assert View(d4=d4).invert_size(View(d4=d4).apply_size((3, 5))) == (3, 5)


def test_the_table_of_64_products_is_right_on_an_oblong_grid():
    for a, b in product(range(NUM_D4), repeat=2):
        assert np.array_equal(views.turn(views.turn(ODD, a), b), views.turn(ODD, views.then_d4(a, b))), (a, b)


def test_the_eight_symmetries_differ_and_four_swap_the_size():
    assert len({(t.shape, t.tobytes()) for t in (views.turn(ODD, d4) for d4 in range(NUM_D4))}) == 8
    assert [View(d4=d4).apply_size((3, 5)) for d4 in range(NUM_D4)] == [(3, 5)] * 4 + [(5, 3)] * 4


def test_the_names_say_what_the_symmetries_do():
    done = dict(zip(views.D4_NAMES, (views.turn(ODD, d4) for d4 in range(NUM_D4)), strict=True))
    assert np.array_equal(done["quarter turn"], np.rot90(ODD, -1)) and np.array_equal(
        done["half turn"], np.rot90(ODD, 2)
    )
    assert np.array_equal(done["three-quarter turn"], np.rot90(ODD)) and np.array_equal(done["transpose"], ODD.T)
    assert np.array_equal(done["mirror columns"], ODD[:, ::-1]) and np.array_equal(done["mirror rows"], ODD[::-1])
    assert np.array_equal(done["anti-transpose"], ODD[::-1, ::-1].T)


def test_a_hundred_random_colourings_are_undone_and_leave_black():
    seen = views.random_views(np.random.default_rng(0).random((100, 13)))
    back = views.inverse_colours(seen.colours)
    assert np.array_equal(np.take_along_axis(back, seen.colours, 1), np.tile(np.arange(10), (100, 1)))
    assert (seen.colours[:, 0] == 0).all() and len(np.unique(seen.colours, axis=0)) == 100


def test_black_moves_only_when_asked():
    seen = views.random_views(np.random.default_rng(0).random((100, 13)), black=True)
    assert (np.sort(seen.colours, 1) == np.arange(10)).all() and len(np.unique(seen.colours[:, 0])) == 10
    with pytest.raises(ValueError, match="black=True moves black by a permutation, got colours='cycle'"):
        views.random_views(np.zeros((1, 13)), "cycle", black=True)


@settings(max_examples=100, deadline=None)
@given(grid=GRIDS, view=VIEWS)
def test_a_composed_view_is_undone_in_cells_and_size(grid, view):
    seen = view.apply(grid)
    assert np.array_equal(view.invert(seen), grid)
    assert seen.shape == view.apply_size(grid.shape) and view.invert_size(seen.shape) == grid.shape


@settings(max_examples=100, deadline=None)
@given(grid=GRIDS, view=VIEWS)
def test_coordinates_and_table_say_what_apply_does(grid, view):
    row, col = view.cells(grid.shape)
    canvas = np.full((40, 40), 255, np.uint8)
    canvas[row, col] = np.array(view.colours)[grid.repeat(view.scale, 0).repeat(view.scale, 1).reshape(-1)]
    (dy, dx), seen = view.offset, view.apply(grid)
    assert np.array_equal(canvas[dy : dy + seen.shape[0], dx : dx + seen.shape[1]], seen)
    assert (canvas != 255).sum() == seen.size


def test_the_order_is_scale_then_symmetry_then_colours():
    grid = as_grid([[1, 2, 3]])
    seen = View(d4=4, colours=views.cycle(1), scale=2).apply(grid)
    assert seen.tolist() == [[2, 2], [2, 2], [3, 3], [3, 3], [4, 4], [4, 4]]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: View(d4=8), "d4 is 8, wanted 0..7"),
        (lambda: View(colours=(0,) * 10), "wanted a permutation of 0..9"),
        (lambda: View(scale=0), "scale is 0"),
        (lambda: View(scale=11).apply(ODD), "a 3x5 grid scaled by 11 exceeds 30 a side"),
        (lambda: View(scale=2).invert(ODD), "no upscaling by 2"),
        (lambda: View(scale=2).invert_size((3, 5)), "not divisible by scale 2"),
        (lambda: views.enumerated(73, "cycle"), "asked for 73 views; d4=True and colours='cycle' have 1 to 72"),
        (lambda: views.enumerated(9, "none"), "1 to 8"),
        (lambda: views.enumerated(0), f"1 to {8 * math.factorial(9)}"),
        (lambda: views.enumerated(2, "shift"), "colours 'shift', wanted one of permute, cycle, none"),
        (lambda: views.random_views(np.zeros((1, 13)), "shift"), "colours 'shift', wanted permute, cycle or none"),
    ],
)
def test_an_impossible_view_is_one_sentence(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# ---- sets of views ----


def labels(seen):
    return [(int(d4), *map(int, table)) for d4, table in zip(seen.d4, seen.colours)]


def test_72_views_are_distinct_start_with_the_identity_and_run_symmetries_first():
    seen = views.enumerated(72, "cycle")
    assert len(set(labels(seen))) == 72 and labels(seen)[0] == (0, *range(10))
    assert seen.d4.tolist() == list(range(8)) * 9
    assert (seen.colours[:, 1] - 1).tolist() == [shift for shift in range(9) for _ in range(8)]
    assert len({(v.shape, v.tobytes()) for v in (seen.view(n).apply(ODD) for n in range(72))}) == 72


def test_a_longer_enumeration_begins_with_the_shorter_and_repeats_nothing():
    long, short = labels(views.enumerated(2000)), labels(views.enumerated(72, "cycle"))
    assert long[:72] == short and len(set(long)) == 2000 and long == labels(views.enumerated(2000))


def test_without_symmetries_only_colours_vary():
    assert views.enumerated(9, "cycle", d4=False).d4.tolist() == [0] * 9
    assert views.enumerated(8, "none").colours.tolist() == [list(range(10))] * 8


@pytest.mark.parametrize(("colours", "number"), [("cycle", 72), ("none", 8)])
def test_random_views_are_uniform_over_the_group_identity_included(colours, number):
    drawn = 200 * number
    seen = views.random_views(torch.rand(drawn, 13, generator=torch.Generator().manual_seed(0)), colours)
    _, counts = np.unique(labels(seen), axis=0, return_counts=True)
    assert len(counts) == number and ((counts - 200) ** 2 / 200).sum() < number + 5 * math.sqrt(2 * number)


def test_permutations_send_every_colour_everywhere_equally_often():
    seen = views.random_views(np.random.default_rng(1).random((9000, 13)))
    counts = np.stack([np.bincount(seen.colours[:, c], minlength=10)[1:] for c in range(1, 10)])
    assert abs(counts - 1000).max() < 5 * math.sqrt(1000)


def test_torch_and_numpy_draw_the_same_views_from_the_same_numbers():
    uniform = np.random.default_rng(2).random((50, 13))
    for colours in ("permute", "cycle", "none"):
        one, other = views.random_views(uniform, colours), views.random_views(torch.from_numpy(uniform), colours)
        assert labels(one) == labels(other) and isinstance(other.d4, torch.Tensor)


def test_offsets_keep_both_grids_inside_and_reach_every_place():
    rng = np.random.default_rng(3)
    height, width = rng.integers(1, 11, 5000), rng.integers(1, 11, 5000)
    dy, dx = views.offsets(rng.random((5000, 13)), height, width, side=10)
    assert (dy >= 0).all() and (dx >= 0).all() and (dy + height <= 10).all() and (dx + width <= 10).all()
    assert set(dy[height == 1]) == set(range(10)) and set(dx[width == 10]) == {0}


# ---- the packed form ----


def packed(library, number=200):
    """Random grids and views, and the same cells end to end."""
    rng = np.random.default_rng(4)
    grids = [rng.integers(0, 10, rng.integers(1, 9, 2)).astype(np.uint8) for _ in range(number)]
    seen = views.random_views(rng.random((number, 13)))
    sizes = np.array([grid.shape for grid in grids])
    segment = np.repeat(np.arange(number), sizes.prod(1))
    cells = np.concatenate([grid.reshape(-1) for grid in grids])
    row, col = (np.concatenate(part) for part in zip(*(np.indices(grid.shape).reshape(2, -1) for grid in grids)))
    shift = rng.integers(0, 20, (number, 2))
    all = (
        cells,
        row.astype(np.int16),
        col.astype(np.int16),
        segment,
        sizes[:, 0],
        sizes[:, 1],
        seen.d4,
        seen.colours,
        shift,
    )
    return grids, seen, [torch.from_numpy(part) if library == "torch" else part for part in all]


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_packed_cells_equal_grids_one_by_one(library):
    grids, seen, (cells, row, col, segment, height, width, d4, colours, shift) = packed(library)
    row, col = Placement.of(height, width, d4, shift[:, 0], shift[:, 1]).spread(segment)(row, col)
    shown = views.recolour(cells, colours, segment)
    tall, wide = views.turned(height, width, d4)
    for n, grid in enumerate(grids):
        view, mine = seen.view(n), np.asarray(segment == n)
        canvas = np.full((30, 30), 255)
        canvas[np.asarray(row)[mine], np.asarray(col)[mine]] = np.asarray(shown)[mine]
        dy, dx = (int(s) for s in shift[n])
        assert np.array_equal(canvas[dy : dy + int(tall[n]), dx : dx + int(wide[n])], view.apply(grid))
        assert (canvas != 255).sum() == grid.size


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_packed_coordinates_are_undone(library):
    _, _, (_, row, col, segment, height, width, d4, _, shift) = packed(library)
    view = [part[segment] for part in (height, width, d4, shift[:, 0], shift[:, 1])]
    back = views.unplace(*views.place(row, col, *view), *view)
    assert bool((back[0] == row).all()) and bool((back[1] == col).all())


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_packed_arithmetic_keeps_the_integer_type_it_is_given(dtype):
    _, _, parts = packed("torch")
    _, row, col, segment, height, width, d4, _, _ = parts
    placement = Placement.of(height.to(dtype), width.to(dtype), d4.to(dtype)).spread(segment)
    assert {part.dtype for part in placement(row.to(dtype), col.to(dtype))} == {dtype}


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_packed_upscaling_equals_the_grid_upscaled(library):
    row, col = (part.reshape(-1) for part in np.indices(ODD.shape))
    if library == "torch":
        row, col = torch.from_numpy(row), torch.from_numpy(col)
    rows, cols = views.upscaled(row, col, 3)
    canvas = np.zeros((9, 15), np.uint8)
    canvas[np.asarray(rows), np.asarray(cols)] = ODD.reshape(-1).repeat(9)
    assert np.array_equal(canvas, View(scale=3).apply(ODD))


def test_a_view_tells_its_labels():
    seen = Views(np.array([5]), np.array([views.cycle(3)]))
    assert seen.view(0).labels == (5, (0, 4, 5, 6, 7, 8, 9, 1, 2, 3))
