"""Ctrl-C and SIGTERM become a wish: the update in hand is finished, last.ckpt is written, then the process leaves.

The first signal sets `requested`; a second one is handled as it would have been without us. With several ranks the
wish is shared at the next logging point (`agreed`), so that all of them stop after the same update. Knows no Trainer.
"""

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
