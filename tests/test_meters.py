"""The meters of the house stay below their limits, and each meter sees what it is there to see."""

from pathlib import Path

import pytest

from shared.training import meters, scaffold

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def house() -> meters.Meters:
    return meters.measure(ROOT)


def test_the_meters_are_printed(house, record_property):
    record_property("print", house.table())
    assert len(house.table().splitlines()) == 8


def test_half_of_the_functions_have_at_most_12_lines(house):
    assert house.median <= 12


def test_nine_functions_in_ten_have_at_most_50_lines(house):
    assert house.p90 <= 50


def test_no_file_has_more_than_600_lines(house):
    assert house.longest_file.lines <= 600, house.longest_file


def test_no_eight_lines_stand_in_two_projects(house):
    assert house.duplicates == []


def test_a_new_project_costs_at_most_350_lines_of_code(house):
    assert 0 < house.template <= 350


TEMPLATE_LINES = 175  # of Python, in its package


def test_the_package_of_the_template_stays_small():
    python = meters.sources(ROOT, meters.TEMPLATE)
    assert 0 < sum(map(meters.code_lines, python)) <= TEMPLATE_LINES
    assert all(meters.code_lines(path) <= 30 for path in ROOT.glob("configs/template/*.yaml"))


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def body(lines: int, prefix: str = "x") -> str:
    return "".join(f"    {prefix}{number} = {number}\n" for number in range(lines))


def test_lengths_count_from_def_to_last_line(tmp_path):
    write(tmp_path, "shared/a.py", "".join(f"def f{n}():\n{body(n)}\n\n" for n in range(1, 11)))
    found = meters.measure(tmp_path)
    assert (found.median, found.p90, found.longest_function.lines) == (6.5, 10, 11)
    assert found.longest_function.name == "shared/a.py:73 f10"


def test_files_of_tests_are_measured_and_their_functions_are_not(tmp_path):
    write(tmp_path, "tests/test_a.py", f"def f():\n{body(700)}")
    found = meters.measure(tmp_path)
    assert (found.longest_file.lines, found.functions) == (701, [])


@pytest.mark.parametrize(("lines", "pairs"), [(meters.BLOCK, 1), (meters.BLOCK - 1, 0)])
def test_a_block_is_written_twice_from_eight_lines_on(tmp_path, lines, pairs):
    write(tmp_path, "projects/a/one.py", f"import os\ndef f():\n{body(3, 'y')}# comment\n{body(lines)}")
    write(tmp_path, "projects/b/two.py", f"import os\ndef g():\n{body(lines)}")
    assert len(meters.duplicates(tmp_path)) == pairs


def test_what_two_projects_have_from_the_template_is_no_copy_of_one_another(tmp_path):
    text = f"class Template:\n{body(9)}"
    write(tmp_path, "shared/training/template/a.py", text)
    for name in ("spirals", "ring_world"):
        write(tmp_path, f"projects/{name}/a.py", scaffold.renamed(text, name))
    assert meters.duplicates(tmp_path) == []
    for name in ("spirals", "ring_world"):
        write(tmp_path, f"projects/{name}/b.py", body(9, "y"))
    assert len(meters.duplicates(tmp_path)) == 2


def test_lines_of_code_leave_out_blanks_comments_and_docstrings(tmp_path):
    python = write(tmp_path, "a.py", '"""What\nit is."""\n\n# so\ndef f():\n    """Says."""\n    return """a\n\nb"""\n')
    assert meters.code_lines(python) == 3
    assert meters.code_lines(write(tmp_path, "a.yaml", "# make\na: 1\n\nb:\n  c: 2  # why\n")) == 3


def test_a_block_twice_in_one_project_is_its_own_affair(tmp_path):
    write(tmp_path, "projects/a/one.py", body(9))
    write(tmp_path, "projects/a/two.py", body(9))
    assert meters.duplicates(tmp_path) == []


def test_imports_are_found_wherever_they_hide(tmp_path):
    inside = ["from . import g", "from ..h import i", "importlib.import_module('j.k')"]
    text = "import a.b as c\nfrom d import e\ndef f():\n    " + "\n    ".join(inside)
    path = write(tmp_path, "shared/room/file.py", text)
    names = [each.name for each in meters.imports(path, tmp_path)]
    assert sorted(names) == ["a.b", "d.e", "j.k", "shared.h.i", "shared.room.g"]


def test_arrows_count_imports_between_rooms_only(tmp_path):
    write(tmp_path, "projects/a/one.py", "import torch\nfrom shared.training import cli\nfrom projects.a import two\n")
    assert meters.arrows(tmp_path) == {"projects -> shared": 1}
