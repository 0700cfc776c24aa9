"""A module on a base: trained weights that stay as they are, adapters that learn, and files that hold only the latter.

Order: build, load the base, inject, optimizer, compile. A base may have fewer rows in a table than the network, where
a module adds some (new tasks, new words): they start near the mean of the known ones. Adapters are bound to the tensors
of their base by a hash. Does not know how adapters work (`lora.py`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.training import checkpoints
from shared.training.errors import Mistake
from shared.training.lora import LoraOptions, Rows, inject

NEW_ROW_STD = 0.01  # around the mean of the known rows


def attach(
    module: Any,
    options: LoraOptions,
    base: str | Path,
    sha256: str | None = None,
    feed: Callable[[], None] | None = None,
) -> None:
    """Load the averaged weights of `base` and, if `options` want them, put adapters around the module's layers.

    sha256: of the tensors the base must hold. feed: runs first batches through the module (see `lora.inject`).
    Afterwards `module.adapted` says {options, base, sha256}, for its files. Raises Mistake for another base or
    architecture, and for names that match nothing.
    """
    if sha256 and not Path(base).exists():
        raise Mistake(f"{base}, the base of these adapters, does not exist. Put it back, or name it with --lora.base.")
    content, options = checkpoints.read(base), options.of(module)
    if content["palimpsest"].get("lora"):
        raise Mistake(f"{base} is itself adapted. Export it with merge, then adapt what that writes.")
    state = checkpoints.plain(content["state_dict"])
    found = checkpoints.fingerprint(state)
    if sha256 not in (None, found):
        raise Mistake(
            f"{base} is not the base that these adapters were trained on: its tensors have sha256 {found[:12]}, wanted"
            f" {sha256[:12]}. Put the right file back, or name it with --lora.base."
        )
    wanted = module.state_dict()
    state |= dict(_grown(state, wanted, options.train_rows or []))
    checkpoints.audit(wanted, state, base)
    module.load_state_dict(state)
    if options.enabled and options.tune != "full":
        inject(module.network, options, feed)
        module.strict_loading = False
        module.adapted = {"options": options, "base": str(base), "sha256": found}


def attach_again(module: Any, options: LoraOptions, said: Mapping[str, Any]) -> None:
    """As the file of an adapted run says it was attached. Raises Mistake where `options` ask for something else."""
    attach(module, options, options.base or said["base"], said["sha256"])
    now, then = asdict(module.adapted["options"]), {"base": None, **said["options"]}
    if odd := [key for key in now if key != "base" and now[key] != then.get(key)]:
        raise Mistake(f"lora.{odd[0]} is {now[odd[0]]}, the run was begun with {then.get(odd[0])}. Leave it as it was.")


def own(module: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of `state` (by names of `module.state_dict()`) a file of the module holds: without the base, if adapted."""
    adapted = getattr(module, "adapted", None)
    named = module.named_parameters(remove_duplicate=False) if adapted else []
    frozen = {name for name, parameter in named if not parameter.requires_grad}
    return {name: value for name, value in state.items() if name not in frozen}


def _grown(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], rows: list[Rows]) -> Iterator[tuple[str, Tensor]]:
    """The tables that have more rows in the network than in the base, filled up."""
    for each in rows:
        name = f"network.{each.embedding}.weight"
        known, size = state.get(name), len(wanted.get(name, ()))
        if known is not None and len(known) < size:
            noise = torch.randn((size - len(known), *known.shape[1:]), generator=torch.Generator().manual_seed(0))
            yield name, torch.cat([known, known.mean(0, keepdim=True) + NEW_ROW_STD * noise])
