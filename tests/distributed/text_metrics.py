"""Two ranks that measure sentences; the tests that read them are in test_text_metrics.py."""

from pathlib import Path
from typing import Any

import torch.distributed as dist

from packages.text import floors
from packages.text.rows import Words, fingerprints
from packages.text.table import measure, table, values
from packages.text.table import metrics as make
from tests.distributed.group import check, main
from tests.text.toy_grammar import Toy

TOY = Toy()
ROWS = floors.bigram(TOY, 301, seed=3)
SEEN = fingerprints([ROWS[0]])


def measured(rows: list[Words]) -> dict[str, list[Any]]:
    """Value and n of every metric, those of nothing left out."""
    found = measure(rows, make(TOY, SEEN))
    return {name: [value.value, value.n] for name, value in found.items() if value.n}


@check
def shares(folder: Path) -> Any:
    return measured(ROWS[dist.get_rank() :: 2])


@check
def one_has_nothing(folder: Path) -> Any:
    return measured(ROWS if dist.get_rank() == 0 else [])


@check
def never_updated(folder: Path) -> Any:
    metrics = make(TOY, SEEN)
    if dist.get_rank() == 1:
        for metric in metrics.values():
            metric.update(ROWS)
    return {name: [value.value, value.n] for name, value in values(metrics).items() if value.n}


@check
def alone(folder: Path) -> Any:
    """Only rank 0 asks: it must not wait for the other."""
    rows = table(ROWS, TOY, SEEN) if dist.get_rank() == 0 else []
    return {row.name: [row.value, row.n] for row in rows}


if __name__ == "__main__":
    main()
