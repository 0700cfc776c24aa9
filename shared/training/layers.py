"""The layers a run is configured from, in order, and where each value came from.

Later wins: defaults of the dataclasses, `configs/<p>/base.yaml`, `configs/<p>/<size>.yaml`, the hardware profile,
`configs/<p>/lora.yaml` (finetune), `configs/local.yaml`, flags. A stored run (one that is resumed, evaluated or
fine-tuned) gives its own `config.yaml` in place of the project's files. Project, stage and size are read off the paths:
a folder with a `base.yaml` of its own is a stage, any other folder below the project is a part of the size
(`configs/arc/compat/test.yaml` is size `compat/test`).

Knows files, lines and flags; does not know which keys exist (`errors.explain` asks the parser).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from shared.training import catalogue, checkpoints, hardware, runs
from shared.training.errors import Mistake, choices, nearest

CONFIGS = Path("configs")
TRAINING = ("fit", "finetune", "profile", "bench")
STORED = ("validate", "test", "predict", "sample", "export")  # what is done with a run that exists
VERBS = (*TRAINING, *STORED, "config")
NEW_RUN = ("--run.name=null", "--run.resume=false")  # a run that starts from another does not take over its name


@dataclass(frozen=True)
class Layers:
    """files: YAML, lowest first; flags: the rest of the command line; machine_flags: what the machine adds to its
    profile; notes: what the user is told about the choice; given: the command line as it was; run: the stored run.
    """

    project: str
    stage: str | None
    size: str
    files: tuple[Path, ...] = ()
    flags: tuple[str, ...] = ()
    machine_flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    run: runs.Run | None = field(default=None, compare=False)

    @property
    def arguments(self) -> list[str]:
        """What the parser reads, in order."""
        configs = [f"--config={file}" for file in self.files]
        return [*configs, *self.machine_flags, *self.flags]

    @property
    def ckpt_path(self) -> str | None:
        """What this command line names; a stored config may name what its run began with."""
        return dict(flag_values(self.flags)).get("ckpt_path")

    @cached_property
    def lines(self) -> dict[Path, dict[str, tuple[int, Any]]]:
        """Per file: dotted key -> (line, value if it is a scalar)."""
        return {file: dict(_keys_of(file)) for file in self.files}

    def origins(self) -> Iterator[tuple[str, str, bool]]:
        """Every key that is set: (dotted key, 'file:line' or 'Command line', whether it is a flag)."""
        for file, keys in self.lines.items():
            yield from ((key, f"{file}:{line}", False) for key, (line, _) in keys.items())
        yield from ((flag, "Command line", True) for flag, _ in flag_values(self.flags))

    def classes(self) -> dict[str, str]:
        """Key (without `init_args`) -> class path, where a layer names a class."""
        scalars = {key: value for keys in self.lines.values() for key, (_, value) in keys.items()}
        values = {**scalars, **dict(flag_values(self.flags))}
        named = {k.removesuffix(".class_path"): v for k, v in values.items() if k.endswith(".class_path")}
        typed = {k: v for k, v in values.items() if "." in (v or "") and any(o.startswith(k + ".") for o in values)}
        return {key.replace(".init_args", ""): str(value) for key, value in {**typed, **named}.items()}

    def origin(self, key: str) -> str:
        """Where `key` (or what lies nearest around it) was set last; empty when it is a default."""
        while key:
            found = [where for other, where, _ in self.origins() if (other.rstrip("+") + ".").startswith(key + ".")]
            if found:
                return found[-1]
            key = key.rpartition(".")[0]
        return ""

    def origin_of_message(self, message: str) -> str:
        """Where the one set key that `message` speaks of was set; empty when it names none, or several."""
        words = {word.strip(".") for word in re.findall(r"[\w.]+", message)}
        keys = {key for key, _, _ in self.origins()}
        first = message.partition(" ")[0].strip("`")  # a bare name counts where the message opens with it
        named = {key for key in keys if key in words} or {key for key in keys if key.rpartition(".")[2] == first}
        return self.origin(named.pop()) if len(named) == 1 else ""


def take_verb(argv: Sequence[str], own: Iterable[str] = ()) -> tuple[str, list[str]]:
    """The verb, one of the house's or the project's `own`, and the rest of the line. Raises Mistake naming them."""
    verb, rest = (argv[0], list(argv[1:])) if argv else ("", [])
    known = [*VERBS, *own]
    if verb in known:
        return verb, rest
    seen = f"`{verb}` is not a verb" if verb else "No verb is given"
    raise Mistake(f"{seen}; wanted one of {choices(known)}.{nearest(verb, known)}")


def arrange(project: str, verb: str, argv: Sequence[str]) -> Layers:
    """Sort a command line into layers. Raises Mistake for files that do not exist or are not YAML."""
    given, flags = _leading_configs(argv)
    for file in given:
        _require(file)
    profiles = [file for file in given if file.parent.name == "hardware"]
    own = [file for file in given if file not in profiles]
    local = [file for file in [CONFIGS / "local.yaml"] if file.exists()]
    stage, size = _names(project, own)
    asked = _asked(flags, [*given, *local])
    if not own and "help" not in asked and not (verb not in ("fit", "profile", "config") and "ckpt_path" in asked):
        raise Mistake(_no_base(project) if verb == "finetune" else _no_config(project))
    if not own and (exported := checkpoints.exported(asked.get("ckpt_path"))):
        of, stage, size = checkpoints.place(exported)
        if of != project:
            raise Mistake(f"{exported} is an export of {of}, not of {project}. Give one of {project}.")
        own = [exported / checkpoints.CONFIG]
    adapters: list[Path] = []
    if verb == "finetune":
        own, stage, size = _based(project, stage, size, own, asked)
        adapters = _adapters(project, stage)
    run = _stored_run(verb, project, stage, size, own, asked)
    if run is not None:
        own, stage, size = [run.folder / "config.yaml"], run.stage, run.size
    kept = run is not None and verb in TRAINING  # a resumed run keeps the hardware it was started with
    machine = hardware.detect()
    known = hardware.Choice(flags=hardware.node_flags(machine))
    choice = known if profiles or kept else hardware.choose(machine)
    chosen = [CONFIGS / "hardware" / f"{choice.profile}.yaml"] if choice.profile else []
    notes = [note for note in (choice.reason, *(f"{file} is used" for file in local)) if note]
    files = (*own, *profiles, *chosen, *(() if kept else adapters), *local)
    more = (*choice.flags, *(NEW_RUN if verb == "finetune" and not kept else ()))
    layers = Layers(project, stage, size, files, tuple(flags), more, tuple(notes), tuple(argv), run)
    _ = layers.lines  # a file that is not YAML is refused here
    return layers


def flag_values(flags: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """(name, value) of every `--name value` and `--name=value`; the value is None when there is none."""
    for flag, after in zip(flags, [*flags[1:], "--"]):
        if flag.startswith("--") and len(flag) > 2:
            name, equals, value = flag[2:].partition("=")
            yield name, value if equals else (None if after.startswith("--") else after)


def _leading_configs(argv: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The --config files at the head of the line, and everything after them (more of them there stay in place)."""
    rest, files = list(argv), []
    while rest and rest[0].split("=")[0] in ("--config", "-c"):
        name, equals, value = rest.pop(0).partition("=")
        if not equals and not rest:
            raise Mistake(f"Command line: {name} has no file. Give one: {name} {CONFIGS}/<project>/base.yaml.")
        files.append(Path(value if equals else rest.pop(0)))
    return files, rest


def _names(project: str, files: list[Path]) -> tuple[str | None, str]:
    """(stage, size) from the last of the project's own files that is no overlay."""
    home = CONFIGS / project
    inside = [f.relative_to(home) for f in files if f.is_relative_to(home) and not catalogue.is_overlay(f)]
    if not inside:
        return None, files[-1].stem if files else "default"
    stage = next((f.parts[0] for f in inside if len(f.parts) > 1 and (home / f.parts[0] / "base.yaml").exists()), None)
    last = inside[-1].with_suffix("")
    return stage, str(last.relative_to(stage) if stage and last.is_relative_to(stage) else last)


def _asked(flags: Sequence[str], files: list[Path]) -> dict[str, str | None]:
    """All flags, and what the files say of the run where no flag does."""
    stated = {key: value for file in files for key, (_, value) in _keys_of(file) if key.startswith("run.")}
    return {**stated, **dict(flag_values(flags))}


def _stored_run(
    verb: str, project: str, stage: str | None, size: str, own: list[Path], asked: dict[str, str | None]
) -> runs.Run | None:
    """The run whose config.yaml is the base layer: the one evaluated, or the one resumed."""
    if "trainer.fast_dev_run" in asked and "ckpt_path" not in asked:
        return None
    root, name, path = asked.get("run.root") or "runs", asked.get("run.name"), asked.get("ckpt_path")
    if verb not in (*TRAINING, "config") and (path or verb in STORED):
        return _evaluated(project, path, runs.newest(root, project, stage, size), f"{project} {size}", own)
    if verb not in ("fit", "finetune") or str(asked.get("run.resume")).lower() not in ("true", "auto"):
        return None
    folder = runs.size_folder(root, project, stage, size) / name if name else None
    folder = folder or runs.newest(root, project, stage, size, unfinished=True)
    return runs.reopen(folder) if folder and (folder / "manifest.json").exists() else None


def _based(
    project: str, stage: str | None, size: str, own: list[Path], asked: dict[str, str | None]
) -> tuple[list[Path], str | None, str]:
    """(files, stage, size) of a run that adapts the checkpoint asked for, a run's or a loose one."""
    path = asked.get("ckpt_path")
    if path is None:
        raise Mistake(_no_base(project))
    base = _evaluated(project, path, None, f"{project} {size}", own)
    if base is None:
        return own, stage, f"{size.removesuffix('-lora')}-lora"  # adapters may have been merged into it
    return [base.folder / "config.yaml"], base.stage, f"{base.size}-lora"


def _adapters(project: str, stage: str | None) -> list[Path]:
    home = CONFIGS / project
    found = [place / "lora.yaml" for place in (home, home / (stage or "")) if (place / "lora.yaml").exists()]
    if not found:
        raise Mistake(
            f"{home / 'lora.yaml'} does not exist, so {project} has no adapters yet; write it (see configs/template)."
        )
    return found[-1:]


def _no_base(project: str) -> str:
    return (
        "finetune starts from a checkpoint and none is named. Give a run, a file or an exported folder:"
        f" make finetune PROJECT={project} CKPT=runs/{project}/<size>/<run> (--ckpt_path)."
    )


def _evaluated(project: str, path: str | None, newest: Path | None, what: str, files: list[Path]) -> runs.Run | None:
    if path is None and newest is None:
        raise Mistake(
            f"There is no run of {what} yet. Train one first, or name a run folder or a file with --ckpt_path."
        )
    found = Path(path) if path else newest
    assert found is not None
    if not found.exists():
        raise Mistake(f"--ckpt_path {found} does not exist. Give a run folder (runs/...) or a checkpoint file.")
    try:
        run = runs.reopen(found)
    except Mistake:
        if files and checkpoints.holds_weights(found):
            return None  # a loose checkpoint or an export: the layers describe it
        raise
    if run.project != project:
        raise Mistake(f"{found} is a run of {run.project}, not of {project}. Give one of {project}.")
    return run


def _require(file: Path) -> None:
    if file.is_file():
        return
    names = [f.stem for f in sorted(file.parent.glob("*.yaml")) if catalogue.is_size(f)]
    kind = "Hardware profiles" if file.parent.name == "hardware" else f"Sizes in {file.parent}"
    if not names:
        projects = [f.name for f in sorted(CONFIGS.glob("*")) if f.is_dir() and f.name != "hardware"]
        raise Mistake(
            f"{file} does not exist. Projects with configs: {choices(projects)}.{nearest(file.parent.name, projects)}"
        )
    raise Mistake(f"{file} does not exist. {kind}: {choices(names)}.{nearest(file.stem, names)}")


def _no_config(project: str) -> str:
    home = CONFIGS / project
    sizes = [f.stem for f in sorted(home.glob("*.yaml")) if catalogue.is_size(f)]
    return (
        f"No --config is given. Wanted: --config {home}/base.yaml --config {home}/<size>.yaml"
        f" with a size of {choices(sizes)}; `make train PROJECT={project} SIZE=nano` does it for you."
    )


def _keys_of(file: Path) -> Iterator[tuple[str, tuple[int, Any]]]:
    """(dotted key, (line, scalar value)) of a YAML file. Raises Mistake for bad syntax or a key given twice."""
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise Mistake(f"{file}:{line}: this is not YAML: {error.problem}. Check the indentation and colons.") from error
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise Mistake(f"{file}:1: a config is a mapping of keys to values, not a {root.tag.rpartition(':')[2]}.")
    yield from _walk(root, "", file) if root is not None else ()


def _walk(node: yaml.MappingNode, prefix: str, file: Path) -> Iterator[tuple[str, tuple[int, Any]]]:
    seen: dict[str, int] = {}
    for key, value in node.value:
        name, line = prefix + str(key.value), key.start_mark.line + 1
        if name in seen:
            raise Mistake(
                f"{file}:{line}: the key `{name}` is given twice, first on line {seen[name]}. Keep one of them."
            )
        seen[name] = line
        yield name, (line, value.value if isinstance(value, yaml.ScalarNode) else None)
        if isinstance(value, yaml.MappingNode):
            yield from _walk(value, name + ".", file)
