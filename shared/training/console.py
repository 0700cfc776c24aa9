"""What reaches the terminal beside the run's own lines: nothing that is not about the run.

Knows which messages of the libraries below are adverts, tips and notices. What a run says is `runs.Run.say`.
"""

import logging
import os
import warnings

from lightning.pytorch.utilities import rank_zero_only

LIBRARIES = ("lightning.pytorch", "lightning.fabric")
NOISE = (  # beginnings of warnings that tell the user nothing about the run
    "The '.*_dataloader' does not have many workers",
    "The `srun` command is available",
    "The number of training batches",
    ".*LeafSpec",
    "You defined a `validation_step` but have no `val_dataloader`",
    "You have overridden `transfer_batch_to_device` in `LightningModule`",
    "predict returned None",
)


def say(line: str) -> None:
    """One line on stdout, from rank 0 only."""
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        print(line, flush=True)


def quieten() -> None:
    """Leave out adverts, tips and notices about other people's deprecations; warnings about the run stay."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in NOISE:
        warnings.filterwarnings("ignore", message=text)
