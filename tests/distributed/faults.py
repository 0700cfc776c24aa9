"""The template on two ranks, of which one or both are made to fail: `python -m tests.distributed.faults <fault> ...`.

The command line is the real one, and the first process starts the second. What is right is said by `test_faults.py`.
"""

import errno
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

from shared.training import callbacks, cli
from shared.training.errors import Mistake
from shared.training.runs import rank
from shared.training.template.data import TemplateData
from shared.training.template.module import TemplateModule


def full_disk() -> None:
    """Rank 0 cannot write its checkpoint."""

    def refuse(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    callbacks.settle = refuse


def no_origin() -> None:
    """Rank 0 fails between two collectives."""

    def torn(self: Any) -> dict[str, Any]:
        raise Mistake("The manifest is torn.")

    callbacks.Checkpoints.origin = cached_property(torn)
    callbacks.Checkpoints.origin.__set_name__(callbacks.Checkpoints, "origin")


def no_picture() -> None:
    """Rank 0 draws, and its disk is full."""

    def draw(self: TemplateModule, folder: Path, update: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    TemplateModule.draw = draw


def mistaken(*ranks: int) -> None:
    def step(self: TemplateModule, batch: Any, index: int) -> None:
        if self.trainer.global_step == 1 and rank() in ranks:
            raise Mistake("This batch is not right.")
        return train(self, batch, index)

    train, TemplateModule.training_step = TemplateModule.training_step, step


FAULTS = {
    "full_disk": full_disk,
    "no_origin": no_origin,
    "no_picture": no_picture,
    "mistake_of_one": lambda: mistaken(1),
    "mistake_of_all": lambda: mistaken(0, 1),
}

if __name__ == "__main__":
    FAULTS[sys.argv[1]]()
    cli.main(TemplateModule, TemplateData, sys.argv[2:])
