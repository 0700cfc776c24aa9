"""Starts ranks, once per file of tests, and hands out what each of them saw."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.group import BROKE, SECONDS

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@dataclass
class Ranks:
    """What a launch left in its folder."""

    folder: Path
    said: str

    def __call__(self, check: str) -> list[Any]:
        """The facts of that check, one entry per rank, each made in its time."""
        file = self.folder / f"{check}.json"
        assert file.exists(), f"the ranks never finished `{check}`:\n{self.said[-4000:]}"
        ranks = json.loads(file.read_text())
        for rank in ranks:
            assert not (isinstance(rank["facts"], dict) and BROKE in rank["facts"]), rank["facts"][BROKE]
            assert rank["seconds"] < SECONDS
        return [rank["facts"] for rank in ranks]


@pytest.fixture(scope="module")
def at_home():
    """The repository is the current directory, where configs/ is."""
    before = os.getcwd()
    os.chdir(ROOT)
    yield
    os.chdir(before)


@pytest.fixture(scope="module")
def launch(at_home) -> Callable[[str, int, Path], Ranks]:
    def launched(module: str, world: int, folder: Path) -> Ranks:
        torchrun = [f"--nproc-per-node={world}", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
        command = [sys.executable, "-m", "torch.distributed.run", *torchrun, "-m", module, str(folder)]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=110)
        return Ranks(folder, done.stdout + done.stderr)

    return launched


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in ("PL_GLOBAL_SEED", "PALIMPSEST_RUN")} | ENVIRONMENT


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
