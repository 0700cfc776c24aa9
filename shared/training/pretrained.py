"""Trained weights without training: the one way into a module, and networks made again from a file, a folder, the hub.

A module makes its network and its process by `build(Class, **arguments)`, so every file can say what they are made of.
Needs torch, safetensors and the project's network; no Lightning, no pickle. Does not know what a network is for.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from shared.training import adapting, checkpoints, lora
from shared.training.checkpoints import Weights
from shared.training.errors import Mistake, choices

T = TypeVar("T")
REPOSITORY = r"[\w-][\w.-]*/[\w-][\w.-]*"  # owner/name
ROOMS = ("shared", "projects", "packages")  # a file names classes of these only


def build(made_by: Callable[..., T], **arguments: Any) -> T:
    """`made_by(**arguments)`, and the thing remembers it. Arguments: plain values, functions, things built likewise."""
    made = made_by(**arguments)
    object.__setattr__(made, "made", (made_by, arguments))  # a frozen dataclass lets nothing else through
    return made


def description(thing: Any) -> Any:
    """{"class_path", "init_args"} of what `build` made, {"function", "arguments"} of functions and their partials, all
    the way down. Raises ValueError for anything else but plain values: it could not be made again.
    """
    if hasattr(thing, "made"):
        made_by, arguments = thing.made
        return {"class_path": _path(made_by), "init_args": {k: description(v) for k, v in arguments.items()}}
    if isinstance(thing, partial) and not thing.args:
        return {"function": _path(thing.func), "arguments": {k: description(v) for k, v in thing.keywords.items()}}
    if inspect.isfunction(thing) and "<" not in thing.__qualname__:  # not a lambda, nor one inside another
        return {"function": _path(thing), "arguments": {}}
    if isinstance(thing, list | tuple):
        return [description(value) for value in thing]
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    raise ValueError(f"{thing!r:.80} cannot be made again from a file; make it by pretrained.build(Class, ...).")


def rebuild(said: Any, known: Sequence[Any] = ()) -> Any:
    """The thing that a description describes; a network with fresh weights. known: things that are there already, each
    in place of another one of its description."""
    if isinstance(said, list):
        return [rebuild(value, known) for value in said]
    if not isinstance(said, Mapping):
        return said
    if there := [each for each in known if description(each) == said]:
        return there[0]
    function = said.get("function")
    given = {name: rebuild(value, known) for name, value in said["arguments" if function else "init_args"].items()}
    found = _find(function or said["class_path"])
    return build(found, **given) if not function else partial(found, **given) if given else found


def _path(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _find(path: str) -> Any:
    room, (where, _, name) = path.partition(".")[0], path.rpartition(".")
    if room not in ROOMS:
        raise Mistake(f"The file names {path}; what is made from a file lives in {choices(ROOMS)}.")
    return getattr(import_module(where), name)


def origin(module: Any) -> dict[str, Any]:
    """What a checkpoint says under `palimpsest` of the module: how its parts were made, and how they are adapted."""
    parts = {name: getattr(module, name, None) for name in ("network", "process")}
    adapted = getattr(module, "adapted", None)
    return {
        **{name: description(part) for name, part in parts.items() if hasattr(part, "made")},
        **({"lora": {**adapted, "options": asdict(adapted["options"])}} if adapted else {}),
    }


def load(
    module: Any, path: str | Path, weights: Weights = "averaged", base: str | Path | None = None
) -> dict[str, Any]:
    """Weights of a checkpoint, a run, an export or adapters into a module; returns the content of the file.

    base: where the base of adapters is now, if not where it was. The module's `on_load_checkpoint(content)` is asked
    first, and `module.weights_from` says the path afterwards. Raises Mistake where names or shapes differ.
    """
    content = checkpoints.read(path)
    if weights == "raw":
        content["state_dict"] = content.get("current_model_state", content["state_dict"])
    if hasattr(module, "on_load_checkpoint"):
        module.on_load_checkpoint(content)
    state = checkpoints.plain(content["state_dict"])
    if (said := content["palimpsest"].get("lora")) and not hasattr(module, "adapted"):
        adapting.attach(module, lora.as_stored(said["options"]), base or said["base"], said["sha256"])
    if hasattr(module, "adapted"):
        names = lora.peft_names(module.network)
        ours = {f"network.{theirs}": f"network.{mine}" for theirs, mine in names.items()}
        state = {ours.get(name, name): value for name, value in state.items()}
    checkpoints.audit(adapting.own(module, module.state_dict()), state, path)
    module.load_state_dict(state, strict=not hasattr(module, "adapted"))
    module.weights_from = str(path)
    return content


class Parts(nn.Module):
    """What a file holds, as a module of its own: `network` and, if it says, `process`."""

    def __init__(self, said: Mapping[str, Any], path: str | Path):
        super().__init__()
        if "network" not in said:
            raise Mistake(f"{path} does not say how its network is made. Let the module make it by pretrained.build.")
        with torch.random.fork_rng(devices=[]):
            self.network = rebuild(said["network"])
        both = [each for each in self.network.made[1].values() if hasattr(each, "made")]  # a schedule may be learnt
        self.process = rebuild(said.get("process"), known=both)


def parts(
    path: str | Path, weights: Weights = "averaged", base: str | Path | None = None
) -> tuple[Parts, dict[str, Any]]:
    """Network and process of a local path, in eval mode with the weights loaded, and the content of the file."""
    found = Parts(checkpoints.read(path)["palimpsest"], path)
    content = load(found, path, weights, base)
    return found.eval(), content


def from_pretrained(source: str | Path, base: str | Path | None = None) -> nn.Module:
    """The network, in eval mode with its averaged weights.

    source: an export, a checkpoint, a run, or a hub's `owner/name`, which alone touches the net, if it is not here yet.
    base: the same for the base of adapters, if it is not where it was.
    """
    return load_for_sampling(source, base=base)[0]


def load_for_sampling(
    source: str | Path, device: str | torch.device = "cpu", base: str | Path | None = None
) -> tuple[nn.Module, Any]:
    """(network, process) on a device, ready to walk from the prior; source and base as for `from_pretrained`."""
    found, _ = parts(local(source), base=base and local(base))
    return found.network.to(device), found.process


def local(source: str | Path) -> Path:
    """A path that exists, downloaded if it is the name of a repository. Raises Mistake when it is neither."""
    path = Path(source)
    if path.exists():
        return path
    if not re.fullmatch(REPOSITORY, str(source)) or path.parent.exists():
        raise Mistake(f"{source} does not exist. Give an export folder, a checkpoint, or owner/name of a repository.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source)))
    except Exception as error:  # the library's own errors, and those of the connection below it
        raise Mistake(
            f"{source} is not a path here and could not be fetched ({type(error).__name__}). Check the name and the"
            " connection, or give a folder."
        ) from error
