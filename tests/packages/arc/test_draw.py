"""Pictures need no display, show ten colours and hatch what lies outside; the gallery is one page that parses."""

import io
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from packages.arc import draw, gallery
from packages.arc.tasks import as_grid

TEN = as_grid(np.arange(10).reshape(2, 5))


def pixels(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba", dpi=100)
    width, height = figure.canvas.get_width_height()
    return np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)[..., :3]


def count(image, code):
    return int((image == [int(code[i : i + 2], 16) for i in (1, 3, 5)]).all(-1).sum())


def drawn(grid, side=None):
    """A picture of one grid without the legend, and its pixels."""
    figure, axes = draw.sheet(1, 1, "")
    figure.legends.clear()
    draw.draw_grid(axes[0, 0], grid, side)
    return figure, pixels(figure)


def test_all_ten_official_colours_are_drawn():
    _, image = drawn(TEN)
    areas = [count(image, code) for code in draw.COLOURS]
    assert min(areas) > 100
    assert " ".join(draw.COLOURS) == ("#000000 #0074D9 #FF4136 #2ECC40 #FFDC00 #AAAAAA #F012BE #FF851B #7FDBFF #870C25")


def test_the_legend_names_the_ten_colours_and_what_lies_outside():
    from matplotlib.colors import to_hex

    (legend,) = draw.sheet(1, 1, "")[0].legends
    said = [text.get_text() for text in legend.get_texts()]
    assert said == [f"{number} {name}" for number, name in enumerate(draw.NAMES)] + ["outside"]
    faces = [to_hex(patch.get_facecolor()).upper() for patch in legend.get_patches()]
    assert faces == [*draw.COLOURS, "#FFFFFF"] and legend.get_patches()[-1].get_hatch()


def test_cells_have_lines_between_them():
    _, image = drawn(as_grid([[1] * 5] * 5))
    blue = (image == [0x00, 0x74, 0xD9]).all(-1)
    runs = (np.diff(blue.astype(int), axis=1) == 1).sum(1)
    assert runs.max() == 5 and (runs == 5).sum() > 60


def test_what_lies_outside_is_hatched_and_what_lies_inside_is_not():
    def hatches(made):
        return [patch.get_bbox().bounds for patch in made[0].axes[0].patches if patch.get_hatch()]

    assert hatches(drawn(TEN)) == []
    assert hatches(drawn(TEN, 5)) == [(0, 0, 5, 5)]
    assert hatches(drawn(as_grid([[3]]), (2, 4))) == [(0, 0, 4, 2)]
    assert hatches(drawn(np.array([[1, 10], [2, 3]]))) == [(1, 0, 1, 1)]


def test_a_cell_on_a_canvas_of_four_covers_a_quarter():
    alone, beside = (count(drawn(as_grid([[2]]), side)[1], draw.COLOURS[2]) for side in (1, 2))
    assert beside / alone == pytest.approx(0.25, rel=0.05)


def test_a_canvas_too_small_is_refused():
    with pytest.raises(ValueError, match="a 2x5 grid does not fit a canvas of 4x4"):
        drawn(TEN, 4)


def test_nothing_needs_a_display_and_matplotlib_waits_to_be_used():
    code = (
        "import sys; from packages.arc import draw, gallery; assert 'matplotlib' not in sys.modules;"
        "f, a = draw.sheet(1, 1, ''); draw.draw_grid(a[0, 0], draw.np.ones((2, 2), int));"
        "f.savefig('/dev/null', format='png');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": ""})


@pytest.fixture
def shown(task):
    return task("ab12", [(TEN, TEN.T), ([[1]], [[2]])], [TEN, as_grid([[3]])])


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_a_task_sheet_shows_demos_queries_attempts_targets_and_votes(shown):
    attempts = [[TEN, TEN.T], [as_grid([[3]])]]
    said = titles(draw.task_sheet(shown, attempts, [TEN.T, None], [(5, 1)]))
    assert said.count("query 1  2x5") == said.count("query 2  1x1") == said.count("votes") == 1
    assert "attempt 1 wrong" in said and "attempt 2 right" in said and "attempt 1" in said
    assert "target  5x2" in said and "demo 2  1x1" in said


def test_a_noising_strip_states_time_alpha_and_the_wrong_fraction():
    row = draw.Noising(TEN, (0, 1), [TEN, (TEN + (TEN < 5)) % 10], (1.0, 0.0))
    assert titles(draw.noising([row])) == ["t=0  α=1.00\nwrong 0%", "t=1  α=0.00\nwrong 50%"]


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_a_denoising_sheet_takes_any_number_of_steps(steps):
    belief = np.eye(10)[TEN] * 0.9 + 0.01
    walk = draw.Walk(TEN.T, np.linspace(1, 0.1, steps), [TEN] * steps, [belief] * steps, TEN, TEN, "ab12")
    said = titles(draw.denoising([walk]))
    assert said.count("belief  91% sure") == min(steps, 6) and "target: right" in said and "confidence 91%" in said
    assert sum(title.startswith("x  t=") for title in said) == min(steps, 6)


def test_pairs_stand_in_a_row_of_pixels_with_a_rule_before_the_last():
    small, large = np.full((1, 1), 2), np.full((3, 2), 4)
    row = draw.pairs([(small, large), (large, small)], cell=4)
    assert row.shape == (3 * 4 + 1 + 8, 5 + 9 + 9 + 5 + 4 * 4 + 2 * 8, 3)
    assert count(row, draw.COLOURS[2]) == 2 * 3 * 3 and count(row, draw.COLOURS[4]) == 2 * 6 * 9
    assert count(row[0:1], "#7F7F7F") == 1
    assert count(draw.pairs([(small, large)], cell=4)[0:1], "#7F7F7F") == 0


def test_save_makes_the_folder(tmp_path, shown):
    file = draw.save(draw.task_sheet(shown), tmp_path / "samples" / "solved" / "ab12.png")
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_task_as_text_colours_every_cell(shown):
    text = draw.as_text(shown)
    assert text.count("\x1b[48;2;") == 2 * 10 + 2 + 10 + 1 and "demo 1: 2x5 -> 5x2" in text


# ---- gallery ----


class Page(HTMLParser):
    """Checks that tags close and collects what the page would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.loads = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.loads += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def entries(shown):
    return [
        gallery.Entry(shown, 1, [as_grid([[1]])], as_grid([[2]]), "failed", (3, 1)),
        gallery.Entry(shown, 0, [TEN.T, TEN], TEN.T, "solved", (70, 2), 0, [TEN.T] * 4),
        gallery.Entry(shown, 1, [as_grid([[1]])], as_grid([[1]]), "near-miss"),
    ]


def test_the_page_parses_loads_nothing_and_runs_nothing(entries):
    page = Page(gallery.page(entries, "nano <1>", "pass@2 & more"))
    assert page.open == [] and page.loads and all(link.startswith("data:image/png;base64,") for link in page.loads)
    assert "script" not in {tag for tag, _ in page.tags}


def test_solved_entries_come_first_and_filters_name_every_status(entries):
    page = Page(gallery.page(entries))
    assert [attributes["class"] for tag, attributes in page.tags if tag == "section"] == [
        "solved",
        "near-miss",
        "failed",
    ]
    assert [a["id"] for tag, a in page.tags if tag == "input"] == ["all", "solved", "near-miss", "failed"]
    assert "#near-miss:checked ~ main section:not(.near-miss) { display: none }" in gallery.page(entries)


def test_unknown_answers_get_a_filter_of_their_own(shown):
    page = Page(gallery.page([gallery.Entry(shown, 0, [TEN])]))
    assert [a["id"] for tag, a in page.tags if tag == "input"][-1] == "unknown"


def test_a_thumbnail_is_the_grid_in_its_colours():
    from PIL import Image

    image = np.asarray(Image.open(io.BytesIO(gallery.png(TEN, 6))).convert("RGB"))
    assert image.shape == (13, 31, 3) and np.array_equal(image[3::6, 3::6][:2, :5], draw.rgb()[TEN])
    assert (image[::6] == 0x55).all() and (image[:, ::6] == 0x55).all()


def test_the_gallery_writes_both_files_and_draws_at_most_24(tmp_path, entries):
    gallery.write(entries, tmp_path / "samples", "nano")
    assert (tmp_path / "samples" / "gallery.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "samples" / "gallery.html").read_text().count("<section") == 3
    assert titles(gallery.picture(entries * 3, limit=2)).count("ab12#0") == 2
    assert gallery.picture([], limit=2)._suptitle.get_text().startswith("0 of 0")
