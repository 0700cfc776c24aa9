"""Weights that leave the house: a folder of safetensors with what they are made of, and its way to a hub.

A folder holds the averaged weights (`model.safetensors`, or in the format of peft `adapter_model.safetensors` and
`adapter_config.json`), `config.json`, a model card, and for each thing the module tells its checkpoints one
`<name>.json`. `pretrained.from_pretrained` and every verb with CKPT= read it. Does not know what a network is for.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml
from torch import Tensor

from shared.training import adapting, checkpoints, layout, lora, pretrained
from shared.training.checkpoints import ADAPTERS, CONFIG, EXPORTED, PEFT_PREFIX, WHOLE, Weights
from shared.training.errors import Mistake
from shared.training.report import metric_table
from shared.training.runs import make_folder, read_json, write_json
from shared.training.tables import replace_text

if TYPE_CHECKING:
    from shared.training.cli import PalimpsestCLI

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LIGHTNINGS = {  # keys of a checkpoint; others in lower case (class names are not) are what a module tells
    "epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops", "callbacks", "optimizer_states",
    "lr_schedulers", "hyper_parameters", "current_model_state", "averaging_state", "palimpsest",
}  # fmt: skip
STAGING = ".unfinished"  # folder in an export where a new one is written
TOLD = ("project", "stage", "size", "git", "data", "updates", "network", "process", "lora")  # of a checkpoint's origin


@dataclass
class ExportOptions:
    """out: folder to write (None: `export` in the run, or beside the file). merge: fold adapters into their base.
    dtype: of floating tensors (None: as they are). push: owner/name of a repository to send it to (None: none is sent).
    """

    out: str | None = None
    merge: bool = False
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    push: str | None = None
    private: bool = True

    @property
    def default(self) -> str:
        return "merged" if self.merge else "export"

    def __post_init__(self) -> None:
        if self.push is not None and not re.fullmatch(pretrained.REPOSITORY, self.push):
            raise ValueError(f"export.push is {self.push!r}; wanted owner/name of a repository (PUSH=).")


def export(
    path: str | Path,
    out: str | Path,
    merge: bool = False,
    dtype: str | None = None,
    weights: Weights = "averaged",
    base: str | None = None,
) -> dict[str, str]:
    """Write the folder `out` from a checkpoint, a run or another export; returns what is worth saying, by name.

    base: where the base of adapters is now, if it has moved. Raises Mistake where there is nothing to merge, and where
    `out` holds something else.
    """
    out = Path(out)
    origin = _exportable(path, out, merge)
    facts = {name: origin[name] for name in TOLD if origin.get(name) is not None} | _measured(path, origin)
    parts, content = pretrained.parts(path, weights, base)
    said = {}
    if merge:
        said["merged"] = f"equals unmerged on random inputs, largest difference {lora.merge(parts.network):.1e}"
        facts["merged"] = facts.pop("lora")
    write = _write_adapters if "lora" in facts else _write_whole
    with _staged(out) as staging:
        said |= write(staging, parts, facts, DTYPES.get(dtype or ""))
        _write_beside(staging, facts, content, out.name)
    return {**said, "written": f"{out}: {', '.join(sorted(file.name for file in out.iterdir()))}"}


def push_to_hub(folder: str | Path, repo_id: str, private: bool = True, api: Any = None) -> str:
    """Send an export to a repository of the hub, made if it is not there; returns its address. The one call of the
    house that goes out, and only when asked. api: stands in for `huggingface_hub.HfApi()`.
    """
    if not (Path(folder) / EXPORTED).exists():
        raise Mistake(f"{folder} is not an export (no {EXPORTED}). Write one first: make export CKPT=... OUT={folder}.")
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=str(folder)))
    except Exception as error:  # the library's own errors, and those of the connection below it
        raise Mistake(
            f"{folder} could not be sent to {repo_id} ({type(error).__name__}: {str(error).splitlines()[0]:.90})."
            " It is whole on this disk; check the name, the connection and `hf auth login`, then push again."
        ) from error


def _exportable(path: str | Path, out: Path | None, merge: bool) -> dict[str, Any]:
    """Where the weights come from. Raises Mistake where nothing can be merged, and where `out` is no export."""
    if out and out.exists() and any(out.iterdir()) and not any((out / ours).exists() for ours in (EXPORTED, STAGING)):
        raise Mistake(f"{out} is not empty and holds no export. Name another folder with --export.out (OUT=).")
    origin = checkpoints.read(path)["palimpsest"]
    if missing := origin.get("incomplete"):
        raise Mistake(f"{path} is not all of the weights: {missing}. Export the base, or adapt it jointly.")
    if merge and not origin.get("lora"):
        raise Mistake(f"{path} has no adapters, so there is nothing to merge. Leave out --export.merge (MERGE=).")
    return origin


def refuse(cli: "PalimpsestCLI") -> None:
    """What `export_verb` would refuse."""
    assert cli.checkpoint is not None, "a stored run or a file is required before"
    options, run = cli.options.export, cli.layers.run
    out = options.out or (run and run.folder / options.default)  # that of a loose file is a new one
    _exportable(cli.checkpoint, Path(out) if out else None, options.merge)


def export_verb(cli: "PalimpsestCLI") -> None:
    """weights as safetensors with what they are made of: OUT= [MERGE=1] [PUSH=owner/name]"""
    options, path = cli.options.export, cli.checkpoint
    assert path is not None, "a stored run or a file is required before"
    out = options.out or cli.run_of_weights().folder / options.default
    said = export(path, out, options.merge, options.dtype, cli.options.checkpoint.weights, cli.options.lora.base)
    for name, value in said.items():
        print(f"{name:<11} {value}")
    if options.push:
        print(f"pushed      {push_to_hub(out, options.push, options.private)}")


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A folder to write in, whose files take the place of an earlier export's once all are there. A kill before that
    leaves the earlier export; one amid the renames leaves a folder without its config.json, which nothing reads.
    """
    staging = out / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    make_folder(staging)
    yield staging
    for stale in (EXPORTED, WHOLE, ADAPTERS, "adapter_config.json"):
        (out / stale).unlink(missing_ok=True)
    for file in sorted(staging.iterdir(), key=lambda file: file.name == EXPORTED):
        os.replace(file, out / file.name)
    staging.rmdir()


def _write_whole(out: Path, parts: Any, facts: dict[str, Any], dtype: torch.dtype | None) -> dict[str, str]:
    tensors, facts["tied"] = _once(parts.network.state_dict())
    return {"weights": _save(tensors, out / WHOLE, dtype)}


def _write_adapters(out: Path, parts: Any, facts: dict[str, Any], dtype: torch.dtype | None) -> dict[str, str]:
    """The format of peft: `PeftModel.from_pretrained(base, out)` reads it, too."""
    network, whole = parts.network, parts.network.state_dict()
    theirs = {mine: name for name, mine in lora.peft_names(network).items()}
    kept = [name.removeprefix("network.") for name in adapting.own(parts, parts.state_dict())]
    config = network.peft_config[lora.ADAPTER]
    config.inference_mode = True
    config.save_pretrained(str(out))
    facts["tied"] = {}
    named = {PEFT_PREFIX + theirs.get(name, name): whole[name].contiguous() for name in kept}
    base = sum(p.numel() for name, p in network.named_parameters() if name not in kept)
    share = 100 * sum(value.numel() for value in named.values()) / base
    return {"adapters": f"{_save(named, out / ADAPTERS, dtype)}, {share:.2g} % of the base's"}


def _save(tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype | None) -> str:
    from safetensors.torch import save_file

    cast = {n: v.to(dtype) if dtype and v.is_floating_point() else v for n, v in tensors.items()}
    save_file(cast, path, metadata={"format": "pt"})
    return f"{path.stat().st_size:,} bytes, {sum(v.numel() for v in cast.values()):,} values"


def _once(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, each storage under its first name; every other name -> that one)."""
    first: dict[Any, str] = {}
    named = {n: first.setdefault((v.data_ptr() or id(v), v.shape, v.stride()), n) for n, v in state.items()}
    return {n: state[n].contiguous() for n in first.values()}, {n: f for n, f in named.items() if n != f}


def _write_beside(out: Path, facts: Mapping[str, Any], content: Mapping[str, Any], name: str) -> None:
    """config.json, the card, the run's configuration, and what the module told its checkpoints."""
    told = {name: value for name, value in content.items() if name.islower() and name not in LIGHTNINGS}
    for key, value in told.items():
        write_json(out / f"{key}.json", value)
    write_json(out / EXPORTED, {**facts, "told": list(told)})
    config = {k: v for k, v in content["palimpsest"].get("config", {}).items() if k not in ("run", "ckpt_path")}
    replace_text(out / CONFIG, yaml.safe_dump(config, sort_keys=False))
    replace_text(out / "README.md", "\n".join(card(facts, name)) + "\n")


def _measured(path: str | Path, origin: Mapping[str, Any]) -> dict[str, Any]:
    """What the run's report says, or the export it comes from."""
    if "measured" in origin:
        return {"measured": origin["measured"]}
    around = (Path(path).absolute(), *Path(path).absolute().parents)
    run = next((folder for folder in around if (folder / "manifest.json").exists()), None)
    if run is None or not (run / "report.json").exists():
        return {}
    said = read_json(run / "report.json")
    return {"measured": {name: said[name] for name in ("headline", "metrics", "weights")}}


def card(facts: Mapping[str, Any], folder: str) -> Iterator[str]:
    """Lines of README.md: what it is, what was measured, how to use it."""
    yield f"---\ntags: [palimpsest, {facts['project']}]\nlibrary_name: palimpsest\n---\n"
    yield "# " + "-".join(filter(None, ["palimpsest", facts["project"], facts.get("stage"), facts["size"]])) + "\n"
    if "lora" in facts:
        adapted = facts["lora"]
        yield f"Adapters of rank {adapted['options']['r']} for `{adapted['base']}` (sha256 {adapted['sha256'][:12]}).\n"
    measured = facts.get("measured", {})
    if measured.get("headline"):
        yield f"**{measured['headline']}**\n"
        yield from layout.markdown(*metric_table(measured["metrics"]))
        yield ""
    yield "```python\nfrom shared.training.pretrained import from_pretrained, load_for_sampling\n"
    yield f'network = from_pretrained("{folder}")'
    yield f'network, process = load_for_sampling("{folder}", device="cpu")\n```\n'
    stated = {"updates": facts.get("updates"), "code": facts.get("git"), **facts.get("data", {})}
    yield from layout.markdown(["", ""], [[name, str(value)] for name, value in stated.items() if value])
