"""What one task taught, as a file of its own: `adapters/<task>.safetensors` with the tensors that learned and its row.

A file is bound to its base by the hash of the base's tensors, and comes to be at once: a torn one is none. Knows a
network that has been adapted (`shared/training/adapting.py`), or learnt in full; not how it was trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from projects.arc.pairs import Query
from projects.arc.solving import Answered
from shared.training import checkpoints
from shared.training.errors import Mistake

FOLDER = "adapters"
ROWS = "tasks.token_adapter.trainable_tokens_delta.default"  # what peft calls the rows that learn


def learning(network: Any) -> dict[str, Tensor]:
    """What of the network learns, by name."""
    return {name: p.data for name, p in network.named_parameters() if p.requires_grad}


def place(module: Any, id: str) -> tuple[str | None, int]:
    """The tensor that holds the task's row, and where in it; None where demos alone tell the task."""
    if not module.conditioning.has_rows:
        return None, 0
    row = module.data.row_of([id])[id]
    adapted = getattr(module, "adapted", None)
    return (ROWS, adapted["options"].train_rows[0].rows.index(row)) if adapted else ("tasks.weight", row)


def learnt(module: Any, id: str) -> dict[str, Tensor]:
    """A copy of what learns; of the rows, the task's alone."""
    table, row = place(module, id)
    found = learning(module.network)
    return {name: (value[row : row + 1] if name == table else value).clone() for name, value in found.items()}


@torch.no_grad()
def wear(module: Any, id: str, tensors: Mapping[str, Tensor]) -> None:
    """Put what `learnt` gave back into the network, in place."""
    table, row = place(module, id)
    parameters = dict(module.network.named_parameters())
    for name, value in tensors.items():
        (parameters[name][row : row + 1] if name == table else parameters[name]).copy_(value)


def write(path: Path, tensors: Mapping[str, Tensor], base: str, facts: Mapping[str, Any]) -> None:
    """base: sha256 of the base's tensors; facts: plain values worth keeping."""
    said = {"format": "pt", "base": base, "facts": json.dumps(dict(facts))}
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(save({name: value.cpu().contiguous() for name, value in tensors.items()}, said))
    checkpoints.settle(temporary, path)


def read(path: Path, base: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and facts; None where there is no whole file. Raises Mistake for adapters of another base."""
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError):
        return None
    if said["base"] != base:
        raise Mistake(
            f"{path} was trained on a base whose tensors have sha256 {said['base'][:12]}, this one's have {base[:12]}."
            " Take its own base, or train it again."
        )
    return tensors, json.loads(said["facts"])


@contextmanager
def restored(module: Any) -> Iterator[None]:
    """Whatever is worn inside, the network is afterwards as it was."""
    before = {name: p.detach().clone() for name, p in module.network.named_parameters()}
    try:
        yield
    finally:
        for name, parameter in module.network.named_parameters():
            parameter.data.copy_(before[name])


def answered(module: Any, folder: Path, base: str, queries: Iterable[Query]) -> list[Answered]:
    """Answers, each task's by its own adapters. Raises Mistake for a task without a whole file."""
    found: list[Answered] = []
    with restored(module):
        for id, asked in groupby(queries, lambda query: query.task.id):
            content = read(folder / f"{id}.safetensors", base)
            if content is None:
                raise Mistake(f"{folder} has no whole {id}.safetensors. Go on with the run that wrote it (RESUME=1).")
            wear(module, id, content[0])
            found += module.solver().all(list(asked), say=print)
    return found
