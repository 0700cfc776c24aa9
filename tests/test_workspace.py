"""The workspace: one make for everything, mistakes named before Python starts, exact constraints, budgets of time."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from shared.training import meters

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()
QUIET = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PROJECT", "SIZE", "SIZES", "STAGE", "HW", "RUN", "RUNS", "RESUME", "SEED")
QUIET += ("CKPT", "ARGS", "NAME", "MODE", "BENCH", "WANDB", "WEIGHTS", "COUNT", "OUT", "MERGE", "PUSH")
MEBIBYTE = 2**20

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what a make above us has set."""
    return {name: value for name, value in os.environ.items() if name not in QUIET} | more


def call(*command: str, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment(**more), timeout=60)


@pytest.fixture
def house(tmp_path) -> Path:
    """The Makefile among configs of our own: project `arc` with two sizes, a folder of sizes and a stage."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "make", tmp_path / "make")
    for name in ("base", "nano", "smol", "lora", "compat/test", "first/base", "first/nano"):
        place(tmp_path / f"configs/arc/{name}.yaml")
    for name in ("cpu", "h200"):
        place(tmp_path / f"configs/hardware/{name}.yaml")
    for name in ("longer", "first/longer"):
        place(tmp_path / f"configs/arc/{name}.yaml", "# overlay: no size\n")
    place(tmp_path / "projects/arc/__main__.py")
    place(tmp_path / "runs/arc/nano/001/config.yaml")
    return tmp_path


def place(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def said(house: Path, line: str) -> str:
    """The last command that `make <line>` would run, without the interpreter."""
    done = call("make", "-n", *line.split(), cwd=house)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].removeprefix("exec .venv/bin/python -m ").strip()


BASE = "--config configs/arc/base.yaml"
NANO = f"{BASE} --config configs/arc/nano.yaml"
COMMANDS = {
    "train PROJECT=arc": f"projects.arc fit {NANO}",
    "train PROJECT=arc SIZE=smol HW=cpu": (
        f"projects.arc fit {BASE} --config configs/arc/smol.yaml --config configs/hardware/cpu.yaml"
    ),
    "train PROJECT=arc SIZE=compat/test": f"projects.arc fit {BASE} --config configs/arc/compat/test.yaml",
    "train PROJECT=arc STAGE=first": (
        f"projects.arc fit {NANO} --config configs/arc/first/base.yaml --config configs/arc/first/nano.yaml"
    ),
    "train PROJECT=arc RUN=a RESUME=1": f"projects.arc fit {NANO} --run.name 'a' --run.resume true",
    "train PROJECT=arc RESUME=0 DETERMINISTIC=0": f"projects.arc fit {NANO}",
    "train PROJECT=arc RESUME=auto": f"projects.arc fit {NANO} --run.resume auto",
    "train PROJECT=arc SEED=3 DETERMINISTIC=1": (
        f"projects.arc fit {NANO} --seed_everything 3 --trainer.deterministic true"
    ),
    "train PROJECT=arc CKPT=x.ckpt ARGS=--a=[1]": f"projects.arc fit {NANO} --ckpt_path 'x.ckpt' --a=[1]",
    "config PROJECT=arc": f"projects.arc config {NANO}",
    "evaluate PROJECT=arc": f"projects.arc test {NANO}",
    "evaluate PROJECT=arc CKPT=runs/x": "projects.arc test --ckpt_path 'runs/x'",
    "evaluate PROJECT=arc RUN=001": "projects.arc test --ckpt_path 'runs/arc/nano/001'",
    "validate PROJECT=arc CKPT=x HW=cpu": "projects.arc validate --config configs/hardware/cpu.yaml --ckpt_path 'x'",
    "predict PROJECT=arc CKPT=x": "projects.arc predict --ckpt_path 'x'",
    "statistics PROJECT=arc": f"projects.arc statistics {NANO}",
    "finetune PROJECT=arc CKPT=runs/x RUN=b": f"projects.arc finetune {NANO} --run.name 'b' --ckpt_path 'runs/x'",
    "sample PROJECT=arc COUNT=4": f"projects.arc sample {NANO} --sampling.count 4",
    "sample PROJECT=arc RUN=001": "projects.arc sample --ckpt_path 'runs/arc/nano/001'",
    "export PROJECT=arc CKPT=x OUT=y MERGE=1 PUSH=me/it": (
        "projects.arc export --ckpt_path 'x' --export.out 'y' --export.push 'me/it' --export.merge true"
    ),
    "evaluate PROJECT=arc CKPT=x WEIGHTS=raw": "projects.arc test --ckpt_path 'x' --checkpoint.weights raw",
    "train PROJECT=arc WANDB=offline": f"projects.arc fit {NANO} --logging.wandb offline",
    "profile PROJECT=arc": f"projects.arc profile {NANO}",
    "train-ladder PROJECT=arc SIZES=nano KEEP_GOING=1": "shared.training.ladder 'arc' --keep-going nano",
    "repro RUN=runs/arc/nano/001": "shared.training.repro 'runs/arc/nano/001'",
    "compare RUNS=runs/arc/nano/001": "shared.training.compare runs/arc/nano/001",
    "bench": "shared.training.bench all",
    "bench PROJECT=arc MODE=loop SECONDS=3": "shared.training.bench arc --mode loop --seconds 3",
    "new-project NAME=spirals": "shared.training.scaffold 'spirals'",
    "projects": "shared.training.catalogue",
    "results PROJECT=arc RUNS=runs/x": "shared.training.results_table arc runs/x",
    "help PROJECT=arc": "projects.arc help",
    "report RUN=runs/arc/nano/001/": "shared.training.report 'runs/arc/nano/001'",
    "report PROJECT=arc RUN=001": "shared.training.report 'runs/arc/nano/001'",
}


@needs_make
@pytest.mark.parametrize("line", COMMANDS)
def test_make_says_this_command(house, line):
    assert said(house, line) == COMMANDS[line]


@needs_make
def test_bench_runs_the_bench_of_the_project(house):
    place(house / "projects/arc/bench.py")
    assert said(house, "bench PROJECT=arc BENCH=packing") == "projects.arc.bench packing"


@needs_make
def test_the_tests_of_a_project_are_found_by_name(house):
    own, others = ("packages/arc/test_x.py", "smoke/test_arc.py", "learn/test_arc_nano.py"), ("smoke/test_arch.py",)
    for path in (*own, *others, "smoke/test_smoke.py", "projects/test_contract.py"):
        place(house / "tests" / path)
    found = "tests/packages/arc tests/smoke/test_arc.py tests/learn/test_arc_nano.py"
    found += " tests/smoke/test_smoke.py tests/projects/test_contract.py --project arc -x"
    assert said(house, "test PROJECT=arc ARGS=-x").endswith(found)


@needs_make
def test_the_template_lives_in_shared(house):
    place(house / "configs/template/nano.yaml")
    assert said(house, "train PROJECT=template") == "shared.training.template fit --config configs/template/nano.yaml"


MISTAKES = {
    "train": "PROJECT= is not named; choose one of: template, arc.",
    "train PROJECT=acr": "PROJECT=acr does not exist; choose one of: template, arc. Did you mean arc?",
    "evaluate PROJECT=arc SIZE=nmao": (
        "SIZE=nmao does not exist in configs/arc; choose one of: nano, smol, compat/test. Did you mean nano?"
    ),
    "train PROJECT=arc STAGE=fist": (
        "STAGE=fist does not exist in configs/arc; choose one of: first. Did you mean first?"
    ),
    "train PROJECT=arc STAGE=first SIZE=longer": (
        "SIZE=longer does not exist in configs/arc; choose one of: nano, smol, compat/test."
    ),
    "config PROJECT=arc HW=b9": "HW=b9 does not exist; choose one of: cpu, h200.",
    "train PROJECT=arc RESUME=yes": "RESUME=yes does not exist; choose one of: 1, 0, auto, true, false.",
    "bench PROJECT=arc BENCH=x": "arc has no measurements of its own: there is no bench.py in its folder.",
    "bench PROJECT=acr": "PROJECT=acr does not exist; choose one of: template, arc. Did you mean arc?",
    "finetune PROJECT=arc": (
        "finetune starts from a checkpoint and CKPT= is not named; the runs here: runs/arc/nano/001."
    ),
    "repro RUN=02": "RUN=02 names no run folder here; those with a config are: runs/arc/nano/001.",
    "test PROJECT=acr": "PROJECT=acr does not exist; choose one of: template, arc. Did you mean arc?",
    "test PROJECT=arc": "arc has no tests of its own in tests/*/arc or tests/*/test_arc*.py.",
    "report RUN=02": "RUN=02 names no run folder here; those with a config are: runs/arc/nano/001.",
    "trian": (
        "make has no target trian: make help lists them, and a project's own verb needs PROJECT=<name>."
        " Did you mean train?"
    ),
}


@needs_make
@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_2_before_anything_is_set_up(house, line):
    done = call("make", *line.split(), cwd=house)
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, MISTAKES[line])
    assert not (house / ".venv").exists()


@needs_make
def test_help_lists_every_target_with_its_comment():
    rules = re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    inside = {"check", "check-base", "check-bench", "check-run", "check-tests", "ready", "own"}
    page = call("make").stdout
    assert {rule for rule in rules if not re.search(rf"^  {rule} +\S", page, re.MULTILINE)} == inside


@needs_make
def test_every_target_but_these_makes_the_environment_ready_first(house):
    place(house / "projects/arc/bench.py")
    place(house / "tests/smoke/test_arc.py")
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = ["PROJECT=arc", "RUN=001", "CKPT=x"]
    asked = {name: call("make", "-n", name, *named, cwd=house).stdout for name in targets}
    assert {name for name, text in asked.items() if "make/setup.sh" not in text} == {"ci", "clean", "bench-start"}


@needs_make
def test_clean_leaves_runs_and_data(house):
    place(house / "data/x")
    place(house / ".cache/x")
    place(house / "shared/__pycache__/x")
    assert call("make", "clean", cwd=house).returncode == 0
    assert (house / "runs/arc/nano/001/config.yaml").exists() and (house / "data/x").exists()
    assert not (house / ".cache").exists() and not (house / "shared/__pycache__").exists()


def set_up(house: Path, *arguments: str, PYTHON: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    return call(str(house / "make/setup.sh"), *arguments, cwd=house, PATH="/usr/bin:/bin", PYTHON=PYTHON, **more)


@pytest.fixture
def ready(house) -> Path:
    """A house whose environment (a stand-in) carries the stamp that its files ask for."""
    place(house / "pyproject.toml", "[project]")
    place(house / "constraints.txt", "torch==2.13.0")
    place(house / ".venv/pyvenv.cfg", "home = /usr/bin\nversion = 3.12.1\n")
    place(house / ".venv/bin/python", "#!/bin/sh\nexit 1\n")
    (house / ".venv/bin/python").chmod(0o755)
    made_from = "[project]torch==2.13.03.12.1\n"
    place(house / f".venv/.ready-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}")
    return house


def test_a_fresh_stamp_returns_in_under_300_ms(ready):
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        done = set_up(ready, "--say")
        seconds.append(time.perf_counter() - started)
        assert (done.returncode, done.stderr) == (0, ".venv is ready (Python 3.12.1).\n")
    assert min(seconds) < 0.3


@pytest.mark.parametrize("file", ["pyproject.toml", "constraints.txt", ".venv/pyvenv.cfg"])
def test_the_stamp_follows_what_the_environment_was_made_from(ready, file):
    path = ready / file
    path.write_text(path.read_text().replace("3.1", "3.2") + "# changed")
    done = set_up(ready, PYTHON="no-such-python")
    assert done.returncode == 2 and "no-such-python does not start" in done.stderr


def fake_python(house: Path, version: str) -> str:
    place(house / "python", f"#!/bin/sh\necho {version}\n")
    (house / "python").chmod(0o755)
    return str(house / "python")


@pytest.mark.parametrize("asked", [{"SYSTEM": "1"}, {"EXTRAS": "arc"}, {"LATEST": "1"}])
def test_asking_for_another_environment_makes_it_again(ready, asked):
    assert set_up(ready).returncode == 0
    assert set_up(ready, PYTHON="no-such-python").returncode == 2
    same = fake_python(ready, "3.12.1")
    assert set_up(ready, PYTHON=same).returncode == 0
    done = set_up(ready, PYTHON=same, **asked)
    assert "Setting up .venv on Python 3.12.1" in done.stderr


@pytest.mark.parametrize("version", ["3.10.13", "3.14.0", "2.7.18"])
def test_another_python_is_refused_with_a_sentence(ready, version):
    done = set_up(ready, PYTHON=fake_python(ready, version))
    assert done.returncode == 2
    assert f"is Python {version}, but 3.11, 3.12 or 3.13 is needed: try PYTHON=" in done.stderr


def test_constraints_are_exact_and_fit_any_machine():
    assert CONSTRAINTS[0] == "torch==2.13.0"
    assert [line for line in CONSTRAINTS if not re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*", line)] == []
    assert [line for line in CONSTRAINTS if re.match("nvidia|cuda|triton", line)] == []


def declared() -> list[Requirement]:
    extras = PYPROJECT["project"]["optional-dependencies"]
    lines = [*PYPROJECT["project"]["dependencies"], *(line for name in extras for line in extras[name])]
    return [Requirement(line) for line in lines if not line.startswith("palimpsest")]


def test_constraints_lie_in_the_ranges_of_pyproject():
    exact = dict(line.split("==") for line in CONSTRAINTS)
    for need in declared():
        assert need.specifier.contains(exact[canonicalize_name(need.name)]), need


def test_every_import_is_declared():
    """What a file imports is in the standard library, ours, or a requirement of pyproject.toml."""
    brings = metadata.packages_distributions()
    known = {canonicalize_name(need.name) for need in declared()} | {"palimpsest"}
    ours = {*sys.stdlib_module_names, *meters.ROOMS, "tests"}
    asked = [
        each for path in meters.sources(ROOT, *meters.ROOMS, "tests", "make") for each in meters.imports(path, ROOT)
    ]
    foreign = [each for each in asked if each.root not in ours and not each.root.startswith("no_such")]
    stray = [each for each in foreign if known.isdisjoint(map(canonicalize_name, brings.get(each.root, [])))]
    assert [f"{each.path}:{each.line} {each.root}" for each in stray] == []


FULL = {"shared/processes", "shared/networks", "shared/augmentation"}


def test_the_other_init_files_are_empty():
    found = [path for path in meters.sources(ROOT, *meters.ROOMS) if path.name == "__init__.py" and path.read_text()]
    assert {str(path.parent.relative_to(ROOT)) for path in found} <= FULL


def test_the_roots_are_typed():
    assert [room for room in meters.ROOMS if not (ROOT / room / "py.typed").exists()] == []


def test_the_repository_is_below_20_mebibytes():
    done = call("git", "ls-files", "-z")
    if done.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in done.stdout.split("\0") if name]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 20 * MEBIBYTE


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process may use all cores")
def test_a_worker_has_one_thread():
    import torch

    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("ci", "budget", "code"), [("1", 0.01, 1), ("true", 60, 0), ("", 0.01, 0)])
def test_a_room_over_its_budget_fails_in_ci_only(tmp_path, ci, budget, code):
    text = (ROOT / "tests/conftest.py").read_text().replace('"laws": 40', f'"laws": {budget}')
    place(tmp_path / "tests/conftest.py", text)
    shutil.copytree(ROOT / "tests/offline", tmp_path / "tests/offline")
    place(tmp_path / "tests/laws/test_slow.py", "import time\n\ndef test_slow():\n    time.sleep(0.1)\n")
    place(tmp_path / "pytest.ini", "[pytest]\naddopts = --import-mode=importlib -p no:cacheprovider\n")
    done = call(sys.executable, "-m", "pytest", "tests", cwd=tmp_path, CI=ci, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert done.returncode == code, done.stdout + done.stderr
    assert re.search(r"^laws +1 +0\.\d", done.stdout, re.MULTILINE)
    assert ("OVER BUDGET" in done.stdout) == (budget < 1)
