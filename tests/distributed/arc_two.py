"""Two ranks of the line arc; the tests that read them are in test_arc.py."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

from projects.arc.module import ArcModule
from shared.training.console import quieten
from tests.distributed import arc
from tests.distributed.group import check, main

UPDATES, TASKS = 5, "[25ff71a9,d037b0a7,c59eb873]"


def fit(root: Path, world: int) -> list[dict[str, Any]]:
    """All ranks: the updates, with noise by sample so that one process sees the same. Returns what each step was about
    to see: samples, cells, times, views, and the noise a run would have drawn, which is by rank.
    """
    steps: list[dict[str, Any]] = []
    step, path = ArcModule.training_step, ArcModule.path

    def watched(module: ArcModule, batch: Any, index: int) -> Any:
        share, question = batch.share, batch.question
        steps.append({
            "update": share.update, "position": share.position.tolist(), "cells": batch.num_units,
            "t": module.randomness.times(share).tolist(),
            "views": [[d4, *colours] for d4, colours in zip(question.d4.tolist(), question.colours.tolist())],
            "noise": module.process.draw(batch.answer.colour, path(module, batch)).u.tolist(),
        })  # fmt: skip
        return step(module, batch, index)

    with patch.object(ArcModule, "training_step", watched):
        arc.learn(root, "run", world, trainer__max_steps=UPDATES, data__tasks=TASKS)
    return steps


@check
def learnt(folder: Path) -> Any:
    return fit(folder, 2)


if __name__ == "__main__":
    quieten()
    main()
