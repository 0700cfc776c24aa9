"""The table of projects says what the heads of the configs say, and README.md shows that table."""

import subprocess
from pathlib import Path

import pytest

from shared.training import catalogue, layout
from shared.training.errors import Mistake
from tests.cli.conftest import write

ROOT = Path(__file__).parents[2]


def committed() -> list[str]:
    """The projects that belong to the house: one that was made a minute ago is in no README yet."""
    files = subprocess.run(["git", "ls-files", "projects"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    return [name for name in catalogue.projects(ROOT) if name == "template" or f"projects/{name}/__main__.py" in files]


def test_readme_shows_the_table_of_projects():
    table = layout.markdown(catalogue.HEAD, catalogue.rows(ROOT, committed()))
    text = (ROOT / "README.md").read_text()
    assert layout.inserted(text, "projects", table) == text, "type: python -m shared.training.catalogue --write"


def test_every_size_of_the_house_states_its_parameters_and_promise():
    for row in catalogue.rows(ROOT, committed()):
        said = dict(zip(catalogue.HEAD, row))
        assert int(said["parameters"].replace(",", "")) > 0 and said["promise"] != "-", row


@pytest.fixture
def house(tmp_path):
    write(tmp_path / "projects/words/__main__.py", "")
    home = tmp_path / "configs/words"
    write(home / "base.yaml", "# promise: none of its own\n")
    write(home / "smol.yaml", "# make train\n# parameters: 20\n# promise: half; cost: 2 h, 1 GPU\nx: 1\n# cost: 9\n")
    write(home / "nano.yaml", "# promise and cost: not measured\n")
    write(home / "lora.yaml", "")
    write(home / "longer.yaml", "# overlay: make train ARGS=...\n# parameters: 3\n")
    write(home / "compat/test.yaml", "# cost: 1 h\n# promise: all: a; b\n")
    write(home / "teach/base.yaml", "")
    write(home / "teach/nano.yaml", "# parameters: 7\n")
    write(tmp_path / "configs/template/nano.yaml", "")
    write(tmp_path / "README.md", "before\n<!-- projects -->\nold | rows\n<!-- /projects -->\nafter\n")
    return tmp_path


def test_every_project_stage_and_size_has_a_row_with_what_its_config_opens_with(house):
    assert catalogue.rows(house) == [
        ["template", "-", "nano", "-", "-", "-"],
        ["words", "-", "nano", "-", "not measured", "-"],
        ["words", "-", "smol", "20", "half", "2 h, 1 GPU"],
        ["words", "-", "compat/test", "-", "all: a; b", "1 h"],
        ["words", "teach", "nano", "7", "-", "-"],
    ]


def test_write_changes_the_marked_place_and_nothing_else(house, capsys):
    catalogue.main(["--write"], house)
    text = (house / "README.md").read_text()
    assert text.startswith("before\n<!-- projects -->\n| project |") and text.endswith("|\n<!-- /projects -->\nafter\n")
    assert "old" not in text and "written" in capsys.readouterr().out
    catalogue.main(["--write"], house)
    assert (house / "README.md").read_text() == text and "unchanged" in capsys.readouterr().out


def test_a_file_without_a_marked_place_is_left_alone_and_told_so(house):
    (house / "README.md").write_text("nothing here\n")
    with pytest.raises(Mistake, match="no place for the table"):
        catalogue.main(["--write"], house)
    assert (house / "README.md").read_text() == "nothing here\n"


def test_columns_of_the_printed_table_line_up():
    assert layout.plain(["a", "b"], [["long", "x"], ["s", ""]]) == ["a     b", "long  x", "s"]
    assert layout.markdown(["a"], [["x|y"]]) == ["| a |", "|---|", "| x\\|y |"]
