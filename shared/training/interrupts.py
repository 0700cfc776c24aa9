"""Ctrl-C and SIGTERM become a wish: the update in hand is finished, last.ckpt is written, then the process leaves.

The first signal sets `requested`; a second one is handled as it would have been without us. With several ranks the
wish is shared at the next logging point (`agreed`), so that all of them stop after the same update. Outside training
both end the process at once (`Stopped`). Knows no Trainer.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(SystemExit):
    """A signal ended what was being done; every block on the way out leaves as it would after an error."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, both signals raise `Stopped`, unless they were ignored or handled otherwise before."""
    ours = [n for n in SIGNALS if signal.getsignal(n) in (signal.SIG_DFL, signal.default_int_handler)]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    earlier = {number: signal.signal(number, _stop) for number in ours}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` of a command that trains: a signal to us is passed on to all it has started, once, and it is
    waited for. It is a group of its own: a terminal sends Ctrl-C to all of ours, and a second one cuts training short.
    """
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True, process_group=0, **options) as process:
        try:
            out, err = process.communicate()
        except Stopped:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)  # make passes SIGTERM on itself: training would meet it twice
            process.communicate()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


class Interrupts:
    """Catches SIGINT and SIGTERM between `catch` and `release` (in the main thread; elsewhere nothing is caught)."""

    def __init__(self) -> None:
        self.requested: int = 0  # the signal's number
        self.agreed = False
        self._earlier: dict[int, Any] = {}

    def catch(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        self.release()

    def release(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._earlier = {}

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that ended on a signal."""
        return 128 + (self.requested or signal.SIGTERM)
