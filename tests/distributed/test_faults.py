"""One rank fails: all of them end, within seconds, and it is said once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.distributed.conftest import ROOT, environment
from tests.distributed.settings import TEMPLATE

SECONDS = 60  # to start, to fail and to end, on a busy machine; a rank that waits does so for 30 minutes
SHARDED = "--hardware.shard=true"
CASES = {
    "full_disk": ([SHARDED], "could not be written (No space left on device); the earlier file is whole."),
    "no_origin": ([SHARDED], "The manifest is torn."),
    "no_picture": ([SHARDED, "--snapshots.every=2"], "The disk refuses to take more"),
    "mistake_of_one": ([], "Rank 1: This batch is not right."),
    "mistake_of_all": ([], "This batch is not right."),
}


def members(session: int) -> list[str]:
    """Processes that were started in this session and live."""
    listed = subprocess.run(["ps", "-o", "pid=,stat=", "-s", str(session)], capture_output=True, text=True).stdout
    return [line for line in listed.splitlines() if " Z" not in line]


SLOW = ("full_disk", "no_origin", "mistake_of_all")  # each starts two processes; the others need the same repairs


@pytest.mark.parametrize("fault", [pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW)) for c in CASES])
def test_a_failure_of_any_rank_ends_all_and_is_told_once(fault, tmp_path):
    flags, sentence = CASES[fault]
    command = [sys.executable, "-m", "tests.distributed.faults", fault, *TEMPLATE, f"--run.root={tmp_path}",
               "--trainer.devices=2", "--trainer.max_steps=4", "--checkpoint.every=2", "--snapshots.every=null",
               "--run.validate_every=null", "--logging.tensorboard=off", *flags]  # fmt: skip
    with open(tmp_path / "said", "w+") as said:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=said, stderr=said, start_new_session=True
        )
        try:
            code = process.wait(SECONDS)
            time.sleep(1)
            left = members(process.pid)
        finally:
            if members(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
        said.seek(0)
        text = said.read()
    assert code != 0 and left == [], text
    assert text.count(sentence) == 1 and "Traceback" not in text, text
