"""A signal ends what is going on in a sentence, and everything that was started with it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PARENT = """
import sys
from shared.training import errors, interrupts
with errors.told():
    interrupts.run([sys.executable, "-c", sys.argv[1]])
"""
CHILD = """
import os, signal, sys, time
def leave(number, frame):
    print("child heard", signal.Signals(number).name, flush=True)
    time.sleep(0.5)
    print("child is done", flush=True)
    os._exit(3)
signal.signal(signal.SIGINT, leave)
print("ready", flush=True)
time.sleep(30)
"""


def unless_ignored() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts us without it


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_waited_for_and_told_in_a_sentence(number):
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=unless_ignored
    ) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert out.splitlines() == ["child heard SIGINT", "child is done"]
    assert err.startswith(f"Stopped by {number.name}. ") and len(err.splitlines()) == 1
    assert process.returncode == 128 + number


def test_what_was_handled_before_is_handled_again_afterwards():
    from shared.training.interrupts import Stopped, stoppable

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped) as ended, stoppable():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
