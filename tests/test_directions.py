"""Imports go one way: projects -> {shared, packages}; shared and packages do not know each other; nobody imports tests.

Reads the imports of every file (`meters.imports`), so no import is missed because a branch did not run. What importing
a file really loads is asked of a fresh process.
"""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from shared.training import meters

ROOT = Path(__file__).parent.parent
LEARNING = {"torch", "einops", "numpy", "safetensors"}
TRAINING = LEARNING | {
    "lightning",
    "peft",
    "jsonargparse",
    "matplotlib",
    "PIL",
    "huggingface_hub",
    "rich",
    "wandb",
    "yaml",
}
NOT_IN_PACKAGES = {"lightning", "pytorch_lightning", "peft", "jsonargparse", "shared", "projects", "tests"}
ANSWERS = "read_answers"
MAY_READ_ANSWERS = {"projects/arc/data.py", "projects/arc/evaluate.py"}
HEAVY = ["lightning", "jsonargparse", "peft", "transformers", "datasets", "wandb", "tensorboard", "diffusers"]
HEAVY += ["matplotlib", "av", "webdataset"]
IMPORT_SECONDS = 2.0  # of processor time beyond what is loaded already


def wrong(each: meters.Imported) -> bool:
    """Whether an import goes against the directions of the house."""
    room, asked = each.path.parts[0], each.root
    if asked in sys.stdlib_module_names:
        return False
    if room == "packages":
        return asked in NOT_IN_PACKAGES
    if room == "shared":
        inside = "training" in each.path.parts
        return asked != "shared" and asked not in (TRAINING if inside else LEARNING)
    if asked == "projects":
        return each.name.split(".")[1:2] != [each.path.parts[1]]
    return asked == "tests"


def against(root: Path) -> list[str]:
    """Every import that goes the wrong way, as "file:line name"."""
    found = [each for path in meters.sources(root, *meters.ROOMS) for each in meters.imports(path, root)]
    return [f"{each.path}:{each.line} {each.name}" for each in found if wrong(each)]


def names_answers(path: Path) -> bool:
    """Whether a file names `read_answers` without defining it: by import, as an attribute, or as a string."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    if any(isinstance(node, ast.FunctionDef) and node.name == ANSWERS for node in nodes):
        return False
    return any(ANSWERS in (getattr(node, field, None) for field in ("id", "attr", "name", "value")) for node in nodes)


def readers_of_answers(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in meters.sources(root, *meters.ROOMS) if names_answers(path)}


def test_imports_follow_the_directions():
    assert against(ROOT) == []


def test_only_data_and_evaluation_read_the_answers():
    assert readers_of_answers(ROOT) <= MAY_READ_ANSWERS


def test_shared_training_loads_nothing_by_itself():
    assert (ROOT / "shared/training/__init__.py").read_text() == ""


LOADS = """
import importlib, json, sys, time
found = {}
for first, *then in map(str.split, sys.argv[1:]):
    importlib.import_module(first)
    for name in then:
        before, start = set(sys.modules), time.process_time()
        importlib.import_module(name)
        found[name] = sorted({each.split(".")[0] for each in set(sys.modules) - before}), time.process_time() - start
print(json.dumps(found))
"""


@cache
def loads(*groups: str) -> dict[str, tuple[list[str], float]]:
    """Per module: the roots of what it loads on top of all before it, and the processor seconds it takes. One process
    walks the groups; the first name of each is loaded without being measured."""
    command = [sys.executable, "-c", LOADS, *groups]
    return json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)


def parts(file: str) -> list[str]:
    """The modules projects.<p>.<file> that exist, and the template's."""
    paths = [*ROOT.glob(f"shared/training/template/{file}.py"), *sorted(ROOT.glob(f"projects/*/{file}.py"))]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]


NETWORKS, MODULES = parts("network"), parts("module")
IN_ORDER = (
    " ".join(["torch", *NETWORKS]),
    " ".join(["lightning", *MODULES]),
)  # networks first: before lightning is there


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_loads_without_the_training_stack(network):
    roots, _ = loads(*IN_ORDER)[network]
    assert set(HEAVY).intersection(roots) == set()


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_loads_in_two_seconds_beyond_torch(network):
    _, seconds = loads(*IN_ORDER)[network]
    assert seconds <= IMPORT_SECONDS


@pytest.mark.parametrize("module", MODULES)
def test_a_module_loads_lightning_and_nothing_heavier(module):
    """What `import lightning` brings along by itself (matplotlib, through torchmetrics) is not the module's doing."""
    roots, _ = loads(*IN_ORDER)[module]
    assert set(HEAVY).intersection(roots) == set()


def test_the_tests_above_see_what_a_process_loads():
    found = loads("json matplotlib", "decimal json.tool")
    assert "matplotlib" in found["matplotlib"][0] and found["json.tool"][0] == ["json"]


WRONG = {
    "packages/a/b.py": [
        "import shared.sampling",
        "from lightning import Callback",
        "def f():\n    import projects.arc",
    ],
    "shared/networks/a.py": ["import lightning", "from packages import arc", "import scipy", "import yaml"],
    "shared/training/a.py": [
        "import packages.arc",
        "from projects.arc import network",
        "import tests",
        "import pandas",
    ],
    "projects/arc/a.py": ["from projects.text import data", "import projects.text.data", "from tests import conftest"],
}
RIGHT = {
    "packages/a/b.py": ["import numpy, json", "from packages.arc import views", "from . import c"],
    "shared/networks/a.py": ["import torch, math", "from shared.processes import Uniform", "from .b import c"],
    "shared/training/a.py": ["import lightning, rich, yaml", "from shared import sampling"],
    "projects/arc/a.py": [
        "from . import b",
        "from projects.arc import b",
        "from shared import sampling",
        "import peft",
    ],
}


def cases(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(path, line) for path, lines in table.items() for line in lines]


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True)
    (root / path).write_text(text)


@pytest.mark.parametrize(("path", "text"), cases(WRONG))
def test_a_wrong_import_is_seen(tmp_path, path, text):
    write(tmp_path, path, text)
    assert len(against(tmp_path)) == 1


@pytest.mark.parametrize(("path", "text"), cases(RIGHT))
def test_a_right_import_passes(tmp_path, path, text):
    write(tmp_path, path, text)
    assert against(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [
        "from packages.arc.sources import read_answers",
        "from packages.arc import sources\nsources.read_answers('x')",
        "from packages.arc import sources\ngetattr(sources, 'read_answers')",
        "from packages.arc.sources import read_answers as r",
    ],
)
def test_a_reader_of_answers_is_seen(tmp_path, text):
    write(tmp_path, "projects/arc/network.py", text)
    write(tmp_path, "packages/arc/sources.py", "def read_answers(): ...\nread_answers()")
    assert readers_of_answers(tmp_path) == {"projects/arc/network.py"}
