"""A project from the template: it trains, resumes, draws and passes what every project passes, with no other edit."""

import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.training import meters, scaffold
from shared.training.errors import Mistake

ROOT = Path(__file__).parents[3]
FOLDERS = ("packages", "shared", "projects", "configs", "tests", "make")
FILES = ("Makefile", "pyproject.toml")
SHORTER = "(scaffolded or test_meters) and not broken and not any_update"
FOUND_BY = ("smoke", "learn", "projects", "cli/test_matrix.py", "test_directions.py", "test_meters.py")


def call(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command in the copy; what pytest told its workers, and a make above us its own, is none of its business."""
    told = ("PYTEST_", "MAKE", "MFLAGS", "ARGS", "PROJECT", "CI")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(told)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=110)


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A copy of the repository in which `scaffolded` was made."""
    root = tmp_path_factory.mktemp("house")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    for name in FILES:
        shutil.copy(ROOT / name, root)
    done = call(root, sys.executable, "-m", "shared.training.scaffold", "scaffolded")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "next        make train PROJECT=scaffolded"
    return root


def changed(here: Path, there: Path) -> set[str]:
    """Files of `there` that `here` lacks or that differ."""
    files = {str(f.relative_to(there)) for f in there.rglob("*") if f.is_file() and "__pycache__" not in f.parts}
    same, _, _ = filecmp.cmpfiles(here, there, files, shallow=False)
    return files - set(same)


def test_nothing_but_the_new_project_is_written(house):
    new = {path for path in changed(ROOT, house) if not path.startswith(".")}
    assert new == {scaffold.renamed(str(path), "scaffolded") for path in scaffold.sources(ROOT)}
    assert new >= {f"projects/scaffolded/{name}.py" for name in ("__init__", "__main__", "network", "module", "data")}
    assert new >= {f"configs/scaffolded/{name}.yaml" for name in ("base", "nano", "smol", "mediom", "lorge")}
    assert new >= {
        "projects/scaffolded/README.md",
        "tests/projects/test_scaffolded.py",
        "tests/learn/test_scaffolded.py",
    }
    assert new >= {"tests/smoke/scaffolded.yaml", "projects/scaffolded/results/goals.yaml"}
    assert "projects/scaffolded/results/measured.json" not in new


def test_the_template_is_named_nowhere_in_it(house):
    text = {path: (house / scaffold.renamed(str(path), "scaffolded")).read_text() for path in scaffold.sources(ROOT)}
    assert [path for path, content in text.items() if "template" in content.lower()] == []


def test_the_copy_is_in_the_layout_of_the_house(house):
    for command in (["check"], ["format", "--check"]):
        done = call(house, sys.executable, "-m", "ruff", *command, "projects/scaffolded", "tests")
        assert done.returncode == 0, done.stdout


def test_the_new_project_passes_the_tests_that_find_it(house):
    """Rehearsal, kill -9 and resume, samples, contract, config matrix, directions, meters, and its own tests."""
    files = [f"tests/{name}" for name in FOUND_BY]
    done = call(house, sys.executable, "-m", "pytest", "-v", "-x", "-k", SHORTER, *files)
    assert done.returncode == 0, done.stdout
    passed = [line for line in done.stdout.splitlines() if " PASSED" in line]
    for law in ("killed_at_update_5", "sample_17", "parameters_are_those", "a_network_loads", "four_hundred_updates"):
        assert [line for line in passed if law in line and "scaffolded" in line], law


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_knows_the_new_project(house):
    done = call(house, "make", "-n", "train", "PROJECT=scaffolded", "SIZE=smol")
    last = done.stdout.strip()
    assert last.endswith(
        "-m projects.scaffolded fit --config configs/scaffolded/base.yaml --config configs/scaffolded/smol.yaml"
    )


def test_two_new_projects_are_no_copies_of_each_other(house, tmp_path):
    for name in ("shared", "projects", "configs", "tests"):
        shutil.copytree(house / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    scaffold.create(tmp_path, "ring_world")
    assert "class RingWorldModule" in (tmp_path / "projects/ring_world/module.py").read_text()
    assert meters.duplicates(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "has no name"),
        ("Spirals", "is no name for a project"),
        ("two moons", "is no name for a project"),
        ("2d", "is no name for a project"),
        ("../x", "is no name for a project"),
        ("class", "is a word of Python's own"),
        ("arc", "is taken"),
        ("template", "is taken"),
        ("hardware", "is taken"),
    ],
)
def test_a_name_that_cannot_be_is_refused_in_a_sentence_and_writes_nothing(tmp_path, name, words):
    for folder in ("projects/arc", "configs/arc", "configs/hardware", "configs/template"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(Mistake, match=words) as refused:
        scaffold.create(tmp_path, name)
    assert len(str(refused.value).splitlines()) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_project_killed_while_it_is_written_is_not_taken_for_one(tmp_path, monkeypatch):
    shutil.copytree(ROOT / scaffold.HOME, tmp_path / scaffold.HOME)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(scaffold, "_tidy", killed)
    with pytest.raises(KeyboardInterrupt):
        scaffold.create(tmp_path, "scaffolded")
    assert (tmp_path / "projects/scaffolded/module.py").exists()
    assert not (tmp_path / "projects/scaffolded/__main__.py").exists()
