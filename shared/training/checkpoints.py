"""Checkpoint files: which are kept, how one is written so that a kill leaves a whole one, how it is read and chosen.

A file holds Lightning's keys with `state_dict` = averaged weights (what every evaluation reads),
`current_model_state` = raw weights (what training continues from), `averaging_state` = the average's own tensors, and
`palimpsest` = where it comes from. It contains tensors and plain values only and loads with `weights_only=True`,
without Lightning. Knows no network.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from shared.training.errors import Mistake

SCHEMA = 1
EXPORTED, CONFIG, WHOLE, ADAPTERS = "config.json", "config.yaml", "model.safetensors", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
Preference = Literal["final", "best", "halfway", "last"]
Weights = Literal["averaged", "raw"]


@dataclass
class CheckpointOptions:
    """Which files a run keeps.

    every: updates between two writings of last.ckpt.
    monitor: validation metric that chooses best.ckpt, by mode; None writes no best.ckpt.
    prefer: the file that an evaluation of the run reads. weights: what it reads there, the average or what training
    goes on from.
    keep_every: updates between copies that are never replaced; None keeps none.
    """

    every: int = 500
    monitor: str | None = None
    mode: Literal["min", "max"] = "min"
    prefer: Preference = "final"
    weights: Weights = "averaged"
    keep_every: int | None = None

    def __post_init__(self):
        for name in ("every", "keep_every"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"checkpoint.{name} is {value}; it counts updates between files, so give 1 or more.")

    def improves(self, value: float, best: float | None) -> bool:
        """Whether a monitored value is strictly better than the best so far (NaN never is)."""
        if best is None:
            return value == value
        return value < best if self.mode == "min" else value > best


def settle(temporary: Path, target: Path, copies: Iterable[Path] = ()) -> None:
    """Make a finished temporary file the target (and, by link where the disk can, each copy), durably and at once.

    The earlier target stays whole until the rename. Raises OSError when the disk refuses.
    """
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    for copy in copies:
        twin = copy.with_name(copy.name + ".tmp")
        twin.unlink(missing_ok=True)
        try:
            os.link(temporary, twin)
        except OSError:
            shutil.copyfile(temporary, twin)
        os.replace(twin, copy)
    os.replace(temporary, target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint file, a run's chosen one or an export folder, as plain values and CPU tensors, by a file's keys.

    Raises Mistake if it is missing or is not one of ours.
    """
    path = Path(path)
    if exported(path):
        return _read_export(path)
    path = choose(path) if path.is_dir() else path
    if not path.exists():
        raise Mistake(f"Checkpoint {path} does not exist; give a run folder, or a file in its checkpoints/ folder.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, UnpicklingError) as error:  # not a file of torch, or one with more than plain values
        raise Mistake(
            f"{path} is not a checkpoint ({str(error).splitlines()[0]:.80}). Give a file of a run."
        ) from error
    if not isinstance(content, dict) or "palimpsest" not in content:
        raise Mistake(f"{path} has no key `palimpsest`: it was not written here. Give a file of a run's checkpoints/.")
    return content


def updates_made(path: str | Path) -> int:
    """How many updates the weights of a checkpoint have had."""
    return int(read(path)["palimpsest"]["updates"])


def _read_export(folder: Path) -> dict[str, Any]:
    """An export as the checkpoint it was made from, without what training needs; adapters keep the names of peft."""
    from safetensors.torch import load_file

    with _whole(folder):
        facts = json.loads((folder / EXPORTED).read_text(encoding="utf-8"))
        tensors = load_file(folder / (ADAPTERS if "lora" in facts else WHOLE))
        named = {"network." + name.removeprefix(PEFT_PREFIX): value for name, value in tensors.items()}
        tied = {"network." + name: named["network." + first] for name, first in facts["tied"].items()}
        told = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in facts["told"]}
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    return {"state_dict": named | tied, **told, "palimpsest": {**facts, "config": config}}


@contextmanager
def _whole(export: Path) -> Iterator[None]:
    """Turn what a torn or incomplete folder makes of its readers into a Mistake."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError, SafetensorError) as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0]:.90}"
        raise Mistake(
            f"{export} is not a whole export ({why}). Write it again: make export CKPT=<run> OUT=<folder>."
        ) from error


def exported(path: str | Path | None) -> Path | None:
    """The folder of an export, if the path is one."""
    return Path(path) if path and (Path(path) / EXPORTED).is_file() else None


def place(export: Path) -> tuple[str, str | None, str]:
    """(project, stage, size) of an export. Raises Mistake where it does not say, or lacks its configuration."""
    with _whole(export):
        facts = json.loads((export / EXPORTED).read_text(encoding="utf-8"))
        (export / CONFIG).stat()
        return facts["project"], facts.get("stage"), facts["size"]


def holds_weights(path: str | Path) -> bool:
    """Whether the path is a file or an export, rather than a run with files to choose from."""
    return Path(path).is_file() or exported(path) is not None


def choose(folder: str | Path, prefer: Preference = "final") -> Path:
    """The file of a run folder that `prefer` names; `final` falls back to `last` in a run that is not finished.

    Raises Mistake when the run has no such file, and says why.
    """
    folder = Path(folder)
    files = {name: folder / "checkpoints" / f"{name}.ckpt" for name in ("final", "best", "halfway", "last")}
    if files[prefer].exists():
        return files[prefer]
    if prefer == "final" and files["last"].exists():
        return files["last"]
    if not (folder / "checkpoints").is_dir():
        raise Mistake(
            f"{folder} is neither a run (no checkpoints/) nor a whole export (no {EXPORTED}). Give one of these, or a"
            " file of a run's checkpoints/."
        )
    present = [name for name, file in files.items() if file.exists()]
    why = {
        "best": "best.ckpt is written at a validation when checkpoint.monitor names a metric",
        "halfway": "halfway.ckpt is written at half of trainer.max_steps",
    }.get(prefer, "the run was stopped before its first checkpoint (checkpoint.every)")
    wanted = f"Prefer one of: {', '.join(present)}" if present else "Train it first"
    raise Mistake(f"{folder} has no {prefer}.ckpt: {why}. {wanted}.")


def require_same(state: Mapping[str, Tensor], path: str | Path) -> None:
    """`audit` of a file whose weights will be loaded by someone else."""
    audit(state, plain(read(path)["state_dict"]), path)


def audit(state: Mapping[str, Tensor], stored: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse weights that do not fit the network: names and shapes of `stored` must be those of `state`.

    state: the module's `state_dict()` (meta tensors will do). Raises Mistake with at most eight differing keys.
    """
    has = {key: tuple(value.shape) for key, value in stored.items()}
    wanted = {plain_key(key): tuple(value.shape) for key, value in state.items()}
    lines = [f"missing {key}" for key in sorted(wanted.keys() - has.keys())]
    lines += [f"unexpected {key}" for key in sorted(has.keys() - wanted.keys())]
    both = sorted(wanted.keys() & has.keys())
    lines += [f"{key} is {list(has[key])}, wanted {list(wanted[key])}" for key in both if has[key] != wanted[key]]
    if lines:
        more = f" and {len(lines) - 8} more" if len(lines) > 8 else ""
        differing = "; ".join(lines[:8]) + more
        raise Mistake(f"{path} holds another architecture: {differing}. Use the configuration it was trained with.")


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes, types and bytes; the same for a checkpoint and what was exported from it."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with `plain_key` names."""
    return {plain_key(key): value for key, value in state.items()}


def plain_key(key: str) -> str:
    """A state-dict key without the prefix that a wrapping compile would add."""
    return key.replace("_orig_mod.", "")
