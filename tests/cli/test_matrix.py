"""Every project x stage x size x hardware: it parses, builds on the meta device, and keeps what its header promises."""

import inspect
import re
import runpy
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import yaml

from shared.training import cli, hardware, plan
from shared.training.errors import Mistake
from shared.training.layers import Layers, arrange

ROOT = Path(__file__).parents[2]
LADDER = ("nano", "smol", "mediom", "lorge")
OTHERS = ("base", "lora")  # files that are not sizes
PACKAGES = {"template": "shared.training.template"} | {
    path.parent.name: f"projects.{path.parent.name}" for path in sorted(ROOT.glob("projects/*/__main__.py"))
}
PROFILES = sorted(path.stem for path in ROOT.glob("configs/hardware/*.yaml"))


@dataclass(frozen=True)
class Rung:
    """One size of one project (and stage): its own files, lowest first."""

    project: str
    files: tuple[Path, ...]

    def __str__(self) -> str:
        return str(self.files[-1].relative_to("configs").with_suffix(""))

    @property
    def line(self) -> list[str]:
        return [f"--config={file}" for file in self.files]


def rungs_of(project: str) -> list[Rung]:
    home = ROOT / "configs" / project
    sizes = [file for file in sorted(home.rglob("*.yaml")) if file.stem not in OTHERS]
    return [Rung(project, tuple(below(home, file))) for file in sizes]


def below(home: Path, size: Path) -> list[Path]:
    """base.yaml, and for a stage also the project's file of that size and the stage's own base."""
    files = [home / "base.yaml"]
    if size.parent != home and (size.parent / "base.yaml").exists():
        files += [home / size.name, size.parent / "base.yaml"]
    return [file.relative_to(ROOT) for file in [*files, size] if file.exists()]


RUNGS = [rung for project in PACKAGES if (ROOT / "configs" / project).is_dir() for rung in rungs_of(project)]


@cache
def classes(project: str) -> tuple[Any, Any]:
    """What the project's __main__ gives to cli.main."""
    caught: list[tuple[Any, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "main", lambda module, data, *args, **options: caught.append((module, data)))
        runpy.run_module(PACKAGES[project], run_name="__main__")
    return caught[0]


@cache
def built(rung: Rung) -> cli.PalimpsestCLI:
    """Parsed, planned and built on the meta device, as `config` does it."""
    layers = arrange(rung.project, "config", [*rung.line, "--config=configs/hardware/cpu.yaml"])
    return cli.PalimpsestCLI(*classes(rung.project), layers, "config")


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    """Layers are named from the root; a machine's own local.yaml has no part in this."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(Path, "exists", lambda self, real=Path.exists: self.name != "local.yaml" and real(self))


@pytest.mark.parametrize("rung", RUNGS, ids=str)
def test_the_parameters_are_those_of_the_header(rung):
    header = re.search(r"^# parameters: ([\d,]+)", rung.files[-1].read_text(), re.MULTILINE)
    assert header, f"{rung.files[-1]} states no '# parameters: N'"
    assert f"{built(rung).plan.parameters:,}" == header[1]
    assert all(p.is_meta for p in built(rung).model.parameters())


@pytest.mark.parametrize("rung", RUNGS, ids=str)
@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_planned_exactly_or_refused_with_a_batch_that_splits(rung, profile):
    own = yaml.safe_load(Path(f"configs/hardware/{profile}.yaml").read_text())
    home = built(rung)
    config = {key: cli._init_args(value) for key, value in home.config.as_dict().items()}
    config["trainer"] |= own["trainer"]
    config["hardware"] |= own.get("hardware", {})
    world, batch_size = plan.world_size(config["trainer"], hardware.Machine()), config["data"].get("batch_size")
    if batch_size and batch_size % world:
        with pytest.raises(Mistake, match=f"does not split over {world} GPUs. Choose data.batch_size"):
            plan.resolve(config, hardware.Machine())
        config["data"]["batch_size"] = 48 * world
    planned = plan.described(
        plan.resolve(config, hardware.Machine()), home.model, home.datamodule, home.options.optim
    )  # refuses a training state that does not fit the card
    if batch_size is not None:
        assert planned.world * planned.micro_batch * planned.accumulate == planned.batch_size


@pytest.mark.parametrize("project", PACKAGES)
@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_parses_on_top_of_every_project(project, profile):
    rungs = [rung for rung in RUNGS if rung.project == project]
    if not rungs:
        pytest.skip(f"{project} has no configs yet")
    splits = ["--data.batch_size=48"] if built(rungs[-1]).plan.batch_size else []
    line = [*rungs[-1].line, f"--config=configs/hardware/{profile}.yaml", *splits]
    assert cli.PalimpsestCLI(*classes(project), arrange(project, "config", line), "config").plan.updates > 0


@pytest.mark.parametrize("rung", RUNGS, ids=str)
def test_every_group_survives_being_printed_and_read_again(rung, tmp_path):
    first = built(rung)
    stored = tmp_path / "config.yaml"
    stored.write_text(first.parser.dump(first.config, skip_unset=False, skip_validation=True))
    again = first.parser.parse_args([f"--config={stored}"])
    assert first.parser.dump(again) == first.parser.dump(first.config)


@pytest.mark.parametrize("rung", RUNGS, ids=str)
def test_an_overlay_holds_only_keys_that_differ_from_the_layer_below(rung):
    set_below: dict[str, Any] = {}
    for file in rung.files[:-1]:
        set_below |= values(file)
    same = [key for key, value in values(rung.files[-1]).items() if key in set_below and set_below[key] == value]
    assert not same, f"{rung.files[-1]} repeats {same}"


@pytest.mark.parametrize("rung", RUNGS, ids=str)
def test_a_config_opens_with_its_command(rung):
    first = rung.files[-1].read_text().splitlines()[0]
    assert first.startswith("# make ") and f"PROJECT={rung.project}" in first
    assert f"SIZE={rung.files[-1].stem}" in first or rung.files[-1].parent.name != rung.project


@pytest.mark.parametrize("project", PACKAGES)
def test_each_rung_of_the_ladder_is_larger_than_the_one_below(project):
    own = {str(rung): rung for rung in RUNGS if rung.project == project}
    counts = [built(own[name]).plan.parameters for size in LADDER if (name := f"{project}/{size}") in own]
    assert counts == sorted(set(counts))


def test_the_template_has_every_rung_of_the_ladder():
    assert {f"template/{size}" for size in LADDER} <= {str(rung) for rung in RUNGS}


@pytest.mark.parametrize("project", PACKAGES)
def test_no_argument_is_a_plain_dict(project):
    """The parser replaces a dict whole where it merges a dataclass, so a layer would lose what it does not repeat."""
    given = [cls for classes_ in classes(project) for cls in (classes_ if isinstance(classes_, tuple) else (classes_,))]
    found = [name for cls in [*given, *cli.GROUPS.values()] for name in dicts_in(cls)]
    assert not found


def test_the_dict_ban_sees_dicts():
    @dataclass
    class Inner:
        table: dict[str, int] | None = None

    @dataclass
    class Outer:
        inner: Inner
        fine: list[int]

    assert dicts_in(Outer) == ["Inner.table"]


def test_no_default_config_names_the_network():
    """Nothing is fetched unless a layer of one's own asks for it."""
    text = {file: file.read_text() for file in ROOT.glob("configs/**/*.yaml") if file.name != "local.yaml"}
    assert not [file for file, content in text.items() if re.search(r"https?://|hf://|s3://", content)]


def values(file: Path) -> dict[str, Any]:
    layers = Layers("", None, "", (file,))
    return {key: value for keys in layers.lines.values() for key, (_, value) in keys.items() if value is not None}


def dicts_in(cls: Any) -> list[str]:
    """Names of constructor arguments of type dict, of `cls` and of the dataclasses it takes."""
    hints = get_type_hints(cls) if is_dataclass(cls) else get_type_hints(cls.__init__)
    names = [f.name for f in fields(cls)] if is_dataclass(cls) else list(inspect.signature(cls.__init__).parameters)
    found = []
    for name in (name for name in names if name in hints):
        for part in parts(hints[name]):
            if part is dict or get_origin(part) is dict:
                found.append(f"{cls.__name__}.{name}")
            elif is_dataclass(part):
                found += dicts_in(part)
    return found


def parts(hint: Any) -> list[Any]:
    """A union's members, one level deep."""
    return list(get_args(hint)) if "Union" in type(hint).__name__ or "Union" in str(get_origin(hint)) else [hint]
