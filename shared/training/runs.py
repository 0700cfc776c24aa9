"""Run folders: where a run lives, who may write there, and how it is taken up again.

A run is `<root>/<project>[-<stage>]/<size>/<name>/` with `config.yaml`, `plan.json`, `manifest.json`, `metrics.csv`,
`perf.csv`, `train.log`, `checkpoints/`, `samples/` and the report. `metrics.csv` holds the update and values that
depend on the seed only, so that two runs can be compared byte by byte; all that is read off a clock goes to `perf.csv`.
`first_losses.csv` holds the losses of the first 20 updates one by one, which `repro.py` compares.

Knows files and names. Does not know what is trained, nor what a checkpoint holds (`checkpoints.py`).
"""

import hashlib
import itertools
import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy
import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only

from shared.training.checkpoints import updates_made
from shared.training.errors import Mistake
from shared.training.tables import replace_text

_NAME_VARIABLE = "PALIMPSEST_RUN"  # rank 0 tells the other ranks which name it chose
_opened = itertools.count()  # runs of this process; all ranks open them in one order


def rank() -> int:
    """This process among all of the run; known from the launcher's environment before any process group exists."""
    return getattr(rank_zero_only, "rank", 0)


@dataclass
class RunOptions:
    """Where the run goes and what surrounds the updates.

    name: folder name; None takes the next free number (001, 002, ...), or the job id under SLURM or torchrun.
    resume: true continues the named (else the newest unfinished) run; auto does so if there is one, else starts anew.
    validate_every: updates between validations; None never validates.
    test_after_fit: evaluate the averaged weights in the same process once all updates are done.
    """

    name: str | None = None
    root: str = "runs"
    resume: bool | Literal["auto"] = False
    validate_every: int | None = None
    test_after_fit: bool = True


@dataclass
class LoggingOptions:
    """every: updates between two rows of metrics.csv, two console lines, two host reads.

    tensorboard: auto mirrors the tables where the library is installed.
    wandb: offline mirrors them into files of the run, online to the service as well.
    """

    every: int = 20
    tensorboard: Literal["auto", "off"] = "auto"
    wandb: Literal["off", "offline", "online"] = "off"

    def __post_init__(self):
        if self.every < 1:
            raise ValueError(f"logging.every is {self.every}; it counts updates between rows, so give 1 or more.")
        if self.wandb != "off" and not find_spec("wandb"):
            raise ModuleNotFoundError("logging.wandb", name="wandb")

    @property
    def tensorboard_here(self) -> bool:
        return self.tensorboard == "auto" and find_spec("tensorboard") is not None


@dataclass(frozen=True)
class Run:
    """One run folder. `resume_from` is the checkpoint to continue from (None: start at update 0)."""

    folder: Path
    project: str
    stage: str | None
    size: str
    name: str
    command: str = ""
    resume_from: Path | None = None

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.folder / "samples"

    @property
    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.folder)

    def note(self, **facts: Any) -> None:
        """Merge facts into manifest.json; ranks other than 0 write nothing."""
        if rank() == 0:
            write_json(self.folder / "manifest.json", {**self.manifest, **facts})

    def say(self, line: str, *, console: bool = True) -> None:
        """One line to the console and to train.log; ranks other than 0 are silent."""
        if rank() != 0:
            return
        if console:
            print(line, flush=True)
        with open(self.folder / "train.log", "a", encoding="utf-8") as log:
            log.write(line + "\n")

    @property
    def finished(self) -> bool:
        return "finished" in self.manifest


def open_run(
    options: RunOptions,
    project: str,
    stage: str | None,
    size: str,
    config_yaml: str,
    plan: Mapping[str, Any],
    command: str,
) -> Run:
    """Create the folder of a new run, or take up an old one, and write config, plan and manifest there.

    Call it when everything else has been checked: a refused run leaves no folder. Raises Mistake when the name is
    taken, when there is nothing to resume, or when the run to resume has already made all the planned updates.
    """
    refuse(options, project, stage, size, plan)
    folder = _choose_folder(options, size_folder(options.root, project, stage, size))
    last = folder / "checkpoints" / "last.ckpt"
    run = Run(folder, project, stage, size, folder.name, command, last if options.resume and last.exists() else None)
    if rank() == 0:
        make_folder(run.checkpoints)
        _write_start(run, config_yaml, plan)
    return run


def refuse(options: RunOptions, project: str, stage: str | None, size: str, plan: Mapping[str, Any]) -> None:
    """Raise the Mistake that `open_run` would raise; nothing is chosen, told to other ranks or written. All ranks call
    it, and a run that is finished is refused by all of them.
    """
    home = size_folder(options.root, project, stage, size)
    if folder := _to_resume(options, home):
        _refuse_finished(folder, plan)
    elif rank() == 0:
        _new_name(options, home)


def make_folder(folder: Path) -> None:
    """With its parents, if it is not there. Raises Mistake where that is not allowed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Mistake(f"{folder} cannot be made ({error.strerror}). Name a folder that can be written to.") from error


def reopen(path: str | Path, command: str = "") -> Run:
    """The run that `path` (its folder, or any file inside it) belongs to; nothing is written."""
    path = Path(path)
    for folder in (path, *path.parents):
        if (folder / "manifest.json").exists():
            found = read_manifest(folder)
            return Run(folder, found["project"], found["stage"], found["size"], folder.name, command)
    raise Mistake(
        f"{path} is not inside a run folder (no manifest.json above it); give a folder such as runs/arc/nano/001."
    )


def size_folder(root: str | Path, project: str, stage: str | None, size: str) -> Path:
    """The folder that holds all runs of one project, stage and size."""
    return Path(root) / (f"{project}-{stage}" if stage else project) / size


def newest(root: str | Path, project: str, stage: str | None, size: str, *, unfinished: bool = False) -> Path | None:
    """The run folder started last (None if there is none); `unfinished` leaves out runs that made all their updates."""
    return _newest_in(size_folder(root, project, stage, size), unfinished=unfinished)


def _newest_in(home: Path, *, unfinished: bool) -> Path | None:
    manifests = dict(_readable(home))
    wanted = {folder: m["starts"][-1]["utc"] for folder, m in manifests.items() if not (unfinished and "finished" in m)}
    return max(wanted, key=lambda folder: wanted[folder], default=None)


def _readable(home: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(folder, manifest) of each run; one whose manifest is torn is named and passed over."""
    for file in sorted(home.glob("*/manifest.json")):
        try:
            yield file.parent, read_manifest(file.parent)
        except Mistake as torn:
            if rank() == 0:
                print(f"Passed over: {torn}", file=sys.stderr)


def _choose_folder(options: RunOptions, home: Path) -> Path:
    key = f"{_NAME_VARIABLE} {os.environ.get('TORCHELASTIC_RESTART_COUNT')} {next(_opened)}"
    store = _torchrun_store()
    if rank() != 0 and (told := store.get(key).decode() if store else os.environ.get(_NAME_VARIABLE)):
        return home / told
    folder = _to_resume(options, home) or home / _new_name(options, home)
    if rank() == 0:  # told to the ranks it will start, and to those that torchrun has started beside it
        os.environ[_NAME_VARIABLE] = folder.name
        if store:
            store.set(key, folder.name)
    return folder


def _torchrun_store() -> torch.distributed.TCPStore | None:
    """The board that torchrun keeps for its ranks, there before any process group."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return torch.distributed.TCPStore(host, port, is_master=False)


def _to_resume(options: RunOptions, home: Path) -> Path | None:
    if not options.resume:
        return None
    folder = home / options.name if options.name else _newest_in(home, unfinished=True)
    if folder is not None and (folder / "manifest.json").exists():
        return folder
    if options.resume == "auto":
        return None
    wanted = f"no run named {options.name}" if options.name else "no unfinished run"
    raise Mistake(f"Nothing to resume: {home} holds {wanted}. Leave out run.resume, or set it to auto to start afresh.")


def _refuse_finished(folder: Path, plan: Mapping[str, Any]) -> None:
    made = read_manifest(folder).get("finished", {}).get("update", -1)
    if made >= plan.get("updates", made + 1):
        raise Mistake(f"Run {folder} has made all its {made} updates. Raise trainer.max_steps to go on from there.")


def _new_name(options: RunOptions, home: Path) -> str:
    name = options.name or _job_id() or (_next_number(home) if rank() == 0 else None)
    if name is None:
        raise Mistake("Several processes were started without a common run name; give all of them the same --run.name.")
    if not re.fullmatch(r"[\w.-]+", name):
        raise Mistake(f"run.name is {name!r}; a run name holds letters, digits, '.', '_' and '-' only.")
    if rank() == 0 and (home / name).exists():
        raise Mistake(f"Run {home / name} exists. Continue it with run.resume true, or choose another run.name.")
    return name


def _job_id() -> str | None:
    """What the launcher calls this job, the same on every rank (None under a plain start)."""
    torchrun = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return os.environ.get("SLURM_JOB_ID") or (torchrun if torchrun != "none" else None)


def _next_number(home: Path) -> str:
    taken = [int(f.name) for f in home.glob("*") if f.name.isdigit()]
    return f"{max(taken, default=0) + 1:03d}"


def _write_start(run: Run, config_yaml: str, plan: Mapping[str, Any]) -> None:
    """Record how this start was made; a resumed run whose config differs keeps both files."""
    manifest = run.manifest if (run.folder / "manifest.json").exists() else {}
    starts = manifest.get("starts", [])
    config = run.folder / "config.yaml"
    if config.exists() and (changed := config_differences(config.read_text(), config_yaml)):
        earlier = run.folder / f"config.{updates_made(run.resume_from) if run.resume_from else 0}.yaml"
        if not earlier.exists():  # else the one in between has made no update that is kept
            replace_text(earlier, config.read_text())
        run.say("Resumed with changed configuration:\n" + "\n".join(f"  {line}" for line in changed))
    replace_text(config, config_yaml)  # whole at any moment: other ranks may be reading it
    write_json(run.folder / "plan.json", dict(plan))
    start = {"utc": _now(), "command": run.command, "resumed": run.resume_from is not None, **_environment(plan)}
    start |= {"seed": _leaves(yaml.safe_load(config_yaml)).get("seed_everything"), "config": config_hash(config_yaml)}
    run_facts = {"project": run.project, "stage": run.stage, "size": run.size}
    # a run with more planned updates than it had is unfinished again
    kept = {key: value for key, value in manifest.items() if key != "finished"}
    write_json(run.folder / "manifest.json", {**kept, **run_facts, "starts": [*starts, start]})


def _environment(plan: Mapping[str, Any]) -> dict[str, Any]:
    versions = {"python": platform.python_version(), "torch": torch.__version__, "lightning": lightning.__version__}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    system = f"{platform.system()} {platform.machine()}"
    width = {"threads": torch.get_num_threads(), "processes": plan.get("world", 1)}
    return {
        "versions": {**versions, "numpy": numpy.__version__},
        "machine": {"system": system, "device": device, **width},
        "git": plan.get("git"),
        "data": data_fingerprint(plan.get("data") or {}),
        "argv": sys.argv[1:],
    }


def config_differences(old_yaml: str, new_yaml: str) -> list[str]:
    """`key: old -> new` for every leaf that differs, sorted; without `run.*`, which only says how a run is started."""
    return [f"{key}: {old} -> {new}" for key, old, new in differing_leaves(old_yaml, new_yaml)]


def differing_leaves(old_yaml: str, new_yaml: str) -> list[tuple[str, str, str]]:
    """(key, old value, new value) of each leaf outside `run.*` that differs, sorted by key."""
    old, new = _leaves(yaml.safe_load(old_yaml)), _leaves(yaml.safe_load(new_yaml))
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    keys = [key for key in differing if not key.startswith("run.")]
    return [(key, str(old.get(key, "(not set)")), str(new.get(key, "(not set)"))) for key in keys]


def config_hash(config_yaml: str) -> str:
    """Twelve hex digits, equal where `config_differences` finds nothing."""
    kept = {key: leaf for key, leaf in _leaves(yaml.safe_load(config_yaml)).items() if not key.startswith("run.")}
    return _digest(kept, 12)


def data_fingerprint(description: Mapping[str, Any]) -> str:
    """The digest that the data's own description gives as `sha256`, else one of the description."""
    return str(description.get("sha256") or _digest(description, 16)) if description else ""


def _digest(facts: Mapping[str, Any], length: int) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:length]


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): tree}
    return {key: leaf for name, branch in tree.items() for key, leaf in _leaves(branch, f"{prefix}{name}.").items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def read_json(path: Path) -> dict[str, Any]:
    """Raises Mistake where the file is torn: those written here never are, so a disk or an editor did it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Mistake(f"{path} is not JSON ({error}). Restore it, or delete its folder {path.parent}.") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a run's manifest.json says. Raises Mistake where it is torn or lacks what every run has."""
    path = folder / "manifest.json"
    found = read_json(path)
    if isinstance(found, dict) and found.get("starts") and found.keys() >= {"project", "stage", "size"}:
        return found
    raise Mistake(f"{path} is not the manifest of a run. Restore it, or delete its folder {folder}.")


def read_config(folder: Path) -> str:
    """The text of a run's config.yaml. Raises Mistake where it is not YAML."""
    path = folder / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
        yaml.safe_load(text)
    except (OSError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise Mistake(f"{path} cannot be read ({why:.120}). Restore it, or delete its folder {folder}.") from error
    return text


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    replace_text(path, json.dumps(content, indent=2, default=str) + "\n")


def rehearsed(trainer: Any) -> bool:
    """Whether this is Lightning's `fast_dev_run`, which leaves no checkpoint, picture or report behind."""
    return bool(trainer.fast_dev_run)
