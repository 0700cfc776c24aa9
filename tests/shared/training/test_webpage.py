"""Laws of the page: it is whole by itself, small whatever it is given, and shows the values it was given."""

import io
import re
from html.parser import HTMLParser

import numpy
import pytest
from PIL import Image

from shared.training import report, svg, webpage
from tests.shared.training.loop import Setting, train

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

MEGABYTE = 10**6
FETCHING = {"src", "href", "srcset", "action", "data", "poster"}
EMPTY = {"meta", "img", "path", "circle", "polyline"}


class Whole(HTMLParser):
    """Collects what a page would fetch, and whether its tags close."""

    def __init__(self, page: str):
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.fetched += [value for name, value in attributes if name in FETCHING and not value.startswith("data:")]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in EMPTY or self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def noisy_run(tmp_path_factory):
    """A run with two pictures of noise, 4 MB each, which nothing can pack well, and an address among its facts."""
    run, _ = train(tmp_path_factory.mktemp("runs"), "a", Setting(test=True))
    folder = run.samples / "12"
    folder.mkdir(parents=True)
    for name in ("one", "two"):
        noise = numpy.random.default_rng(0).integers(256, size=(1200, 1200, 3), dtype=numpy.uint8)
        Image.fromarray(noise).save(folder / f"{name}.png")
    results = report.Results(
        "error 0.5 <b>",
        [report.Metric("error | squared", 0.5, 4, 0.4, 0.6, {"mean": 1.0})],
        [("Tasks", "See [there](https://example.org/x).\n\n| a | b |\n|---|---|\n| `x` | **1** |\n\n- one\n- two")],
        facts={"source": "https://example.org/data"},
    )
    report.write(run, results)
    return run


def test_the_report_is_one_file_of_at_most_a_megabyte(noisy_run):
    page = (noisy_run.folder / "report.html").read_text()
    assert len(page.encode()) <= MEGABYTE
    assert page.count("data:image/jpeg;base64,") == 2


def test_the_report_fetches_nothing_and_names_no_address(noisy_run):
    page = (noisy_run.folder / "report.html").read_text()
    assert Whole(page).fetched == [] and Whole(page).open == []
    assert not re.search(r"://|url\(|@import|<script|<link", page)
    assert "https://example.org/data" in "".join(Whole(page).words), "a reader still sees it"


def test_the_report_shows_numbers_tables_curves_and_the_command(noisy_run):
    words = " ".join(Whole((noisy_run.folder / "report.html").read_text()).words)
    for wanted in ("error 0.5 <b>", "0.4\xa0..\xa00.6", "floor: mean", "make train", "there", "val/error 0."):
        assert wanted in words


def test_a_killed_run_has_a_page_too(tmp_path):
    run, _ = train(tmp_path, "a", Setting(updates=4, test_after_fit=False))
    (run.folder / "report.html").unlink()
    report.again(str(run.folder))
    assert "Not evaluated yet" in (run.folder / "report.html").read_text()


def test_a_small_picture_is_kept_byte_for_byte_and_a_large_one_fits(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(numpy.random.default_rng(0).integers(256, size=(300, 300), dtype=numpy.uint8)).save(path)
    assert webpage.within(path, 10**6) == ("png", path.read_bytes())
    kind, data = webpage.within(path, 9_000)
    assert kind == "jpeg" and len(data) <= 9_000
    assert Image.open(io.BytesIO(data)).size[0] < 300


def test_a_chart_puts_values_where_they_belong():
    drawn = svg.chart({"a": [(0, 0.0), (10, 1.0)]}, "update")
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in re.findall(r'points="([^"]+)"', drawn)[0].split()[:2])
    assert (x0, y0) == (svg.LEFT, svg.HEIGHT - svg.BOTTOM) and (x1, y1) == (svg.WIDTH - svg.RIGHT, svg.TOP)


@pytest.mark.parametrize("line", [[], [(1, 2.0)], [(0, 0.0), (1, 0.0)], [(0, 1e-9), (5, float("nan")), (9, 1e9)]])
def test_a_chart_of_any_line_is_drawn(line):
    drawn = svg.chart({"a": line}, "update")
    assert "nan" not in drawn and "inf" not in drawn and Whole(drawn).open == []


def test_a_long_line_is_thinned_and_keeps_its_last_point():
    drawn = svg.chart({"a": [(n, float(n)) for n in range(100_000)]}, "update")
    assert len(drawn) < 10_000 and f"{svg.WIDTH - svg.RIGHT:.1f},{svg.TOP:.1f}" in drawn


def test_ticks_are_round_and_inside():
    assert svg.Axis([0.013, 0.097], 0, 1).ticks() == pytest.approx([0.02, 0.04, 0.06, 0.08])
    assert svg.Axis([0.02, 3.0], 0, 1, log=True).ticks() == pytest.approx([0.1, 1.0])
