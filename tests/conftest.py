"""What every test gets: no network, one thread per worker, no display, and a clock on each room with its budget.

The rooms are the folders of tests/, except that all a project's tests (unit, smoke, learn) share one budget.
"""

import fcntl
import os
import runpy
import socket
import struct
import sys
from collections import defaultdict
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
OFFLINE = TESTS / "offline"
BUDGETS = {"laws": 40, "shared": 90, "packages": 60, "cli": 60, "tests": 25, "distributed": 60}  # seconds on 2 workers
PROJECT_BUDGET = 75
SLACK = 1.5
GET_FLAGS, SET_FLAGS, UP = 0x8913, 0x8914, 1  # of a network interface of Linux
PER_PROJECT = ("projects", "smoke", "learn")

os.environ |= {"MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PYTHONPATH"] = os.pathsep.join([str(OFFLINE), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]).rstrip(
    ":"
)
runpy.run_path(str(OFFLINE / "sitecustomize.py"))


def raise_loopback() -> None:
    """A process cut off from all networks (`unshare -n`) has not even 127.0.0.1, by which ranks of one machine talk."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        flags = struct.unpack_from("h", fcntl.ioctl(door, GET_FLAGS, struct.pack("16s16x", b"lo")), 16)[0]
        if not flags & UP:
            fcntl.ioctl(door, SET_FLAGS, struct.pack("16sh14x", b"lo", flags | UP))


if sys.platform == "linux":
    raise_loopback()


@pytest.fixture
def at_home(monkeypatch):
    """Commands and layers are named from the root of the repository."""
    monkeypatch.chdir(TESTS.parent)


@pytest.fixture(autouse=True)
def one_thread_per_worker():
    """A run inside a test may claim all cores; the next test on this worker starts from one again."""
    yield
    if "PYTEST_XDIST_WORKER" in os.environ and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--project", help="leave out what tests another project")


def pytest_collection_modifyitems(config, items):
    """Tests of projects that were not asked for are left out; those marked `gpu` are skipped without a CUDA device."""
    if wanted := config.getoption("--project"):
        others = [item for item in items if room_of(item.nodeid) not in (f"project {wanted}", *BUDGETS)]
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=others)
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def room_of(nodeid: str) -> str:
    """tests/laws/test_x.py -> "laws"; tests/text/test_x.py, tests/smoke/test_text.py, [text] -> "project text"."""
    file, _, name = nodeid.partition("::")
    folders, stem = file.split("/")[1:-1], Path(file).stem
    if not folders:
        return "tests"
    if (TESTS.parent / "projects" / folders[0]).is_dir():
        return f"project {folders[0]}"
    if folders[0] not in PER_PROJECT:
        return folders[0]
    words = [*folders[1:2], *stem.split("_"), *name.rstrip("]").replace("[", "-").split("-")]
    return "project " + next((word for word in words if (TESTS.parent / "projects" / word).is_dir()), "template")


def budget_of(room: str) -> float:
    return PROJECT_BUDGET if room.startswith("project ") else BUDGETS.get(room, float("inf"))


class Clock:
    """Adds up what each room took and what its tests want printed (`record_property("print", text)`)."""

    def __init__(self, workers: int):
        self.workers = workers
        self.seconds: dict[str, float] = defaultdict(float)
        self.tests: dict[str, int] = defaultdict(int)
        self.prints: list[str] = []

    def pytest_runtest_logreport(self, report):
        room = room_of(report.nodeid)
        self.seconds[room] += report.duration / self.workers
        if report.when == "call":
            self.tests[room] += 1
            self.prints += [text for name, text in report.user_properties if name == "print"]

    def over(self) -> list[str]:
        """The rooms that took more than their budget and the slack."""
        return [room for room, seconds in self.seconds.items() if seconds > SLACK * budget_of(room)]

    def lines(self) -> list[str]:
        rows = [f"{'room':20} tests  seconds  budget"]
        for room, seconds in sorted(self.seconds.items()):
            late = "   OVER BUDGET" if room in self.over() else ""
            rows.append(f"{room:20} {self.tests[room]:5}  {seconds:7.1f}  {budget_of(room):6g}{late}")
        return [*rows, f"{'all':20} {sum(self.tests.values()):5}  {sum(self.seconds.values()):7.1f}"]


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def pytest_configure(config):
    if getattr(config.option, "dist", "no") == "load":  # what -n says by itself
        config.option.dist = "loadfile"  # what a file prepares is prepared once
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Clock(max(1, getattr(config.option, "numprocesses", 0) or 0)), "clock")


def pytest_sessionfinish(session):
    clock = session.config.pluginmanager.get_plugin("clock")
    if clock and in_ci() and clock.over() and session.exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter, config):
    clock = config.pluginmanager.get_plugin("clock")
    if not clock or not clock.tests:
        return
    for text in clock.prints:
        terminalreporter.write_line(f"\n{text}")
    terminalreporter.write_line("\n" + "\n".join(clock.lines()))
    if in_ci() and clock.over():
        terminalreporter.write_line(
            f"Rooms over {SLACK} x their budget: {', '.join(clock.over())}. Make them faster.", red=True
        )
