"""What a run is built with, as printed, as written, and as a picture."""

import json
import math

import pytest
import torch

from packages.text.grammar import Grammar
from projects.text.calibration import FILE, SETTINGS, calibrate, compared, law, recommended_width, schedules
from projects.text.calibration import schedules_table as print_tables
from projects.text.resolution import BayesDecoder
from projects.text.rounding import Rows


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return BayesDecoder(Rows(300, 32), torch.full((300,), 1 / 300))


def test_the_file_says_what_was_calibrated(tmp_path, capsys):
    found = calibrate(3.41, 50_265, 768.0, tmp_path)
    written = json.loads((tmp_path / FILE).read_text())
    assert written["location"] == found.location == pytest.approx(4.724, abs=5e-4)
    assert written["radius_squared"] == 768 and written["vocabulary_size"] == 50_265 and written["entropy"] == 3.41
    assert math.exp(written["log_snr_star"]) == pytest.approx(0.0282, abs=1e-4)
    assert written["window"] == [pytest.approx(-4.724, abs=1e-3), written["log_snr_star"]]
    assert set(written["shares"]) == {"cosine", "square root", "linear", "warp"}
    said = capsys.readouterr().out
    assert "location 4.724" in said and f"warp {found.shares['warp']:.1%}" in said


def test_the_warp_meets_the_window_most_often():
    shares = calibrate(2.0, 300, 32.0).shares
    assert max(shares, key=shares.__getitem__) == "warp" and shares["warp"] > 0.5


def test_an_estimate_does_not_fall_below_two_nats_and_an_exact_entropy_does():
    assert calibrate(1.3, 300, 32.0, estimated=True).entropy == 2 and calibrate(1.3, 300, 32.0).entropy == 1.3


@pytest.mark.parametrize(("size", "width"), [(60, 16), (100, 16), (300, 32), (5_000, 64), (15_000, 128), (50_265, 128)])
def test_width_follows_the_vocabulary(size, width):
    assert recommended_width(size) == width


def test_the_table_of_settings_has_their_critical_rows():
    _, rows = law(SETTINGS)
    assert [row[-1] for row in rows] == ["1891", "31", "1813", "36", "591", "1524"]


def test_schedules_are_compared_at_the_same_t(decoder):
    head, rows = compared(schedules(2.0, 32.0), decoder)
    assert len(head) == 2 + 4 and [row[0] for row in rows[-2:]] == ["1500", "1900"]
    root = [row[3].split() for row in rows]
    assert root[0] == ["0.9854", "+4.21", "1.000"]  # sigma .1210, as the paper's first step
    bayes = [float(cell[-1]) for cell in root]
    assert bayes == sorted(bayes, reverse=True) and bayes[-1] < 0.1


def test_the_tables_are_printed_with_the_schedule_of_a_run_and_drawn(decoder, tmp_path, capsys):
    own = schedules(1.0, 32.0)["warp"]
    print_tables(2.0, decoder, own, tmp_path / "schedules.png")
    said = capsys.readouterr().out
    assert "this run" in said and "1086" in said and "window: log SNR -2.08 to -1.03" in said
    assert "own: alpha^2  log SNR  bayes" in said
    assert (tmp_path / "schedules.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("level", "width"), [("micro", 16), ("small", 32)])
def test_a_grammar_s_window_is_about_a_nat_wide(level, width):
    grammar = Grammar(level)
    size = len(grammar.words) + 5
    found = calibrate(grammar.entropy().per_token, size, float(width))
    assert found.recommended_width == width and 0.8 < found.window.high - found.window.low < 1.3
    assert found.shares["warp"] > 0.5
