"""Every project x stage x size x hardware: it parses, builds on the meta device, and keeps what its header promises."""

import inspect
import re
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import yaml

from shared.training import cli, hardware, plan
from shared.training.errors import Mistake
from shared.training.layers import Layers
from tests import lines
from tests.lines import CPU, LINES, PACKAGES, ROOT, RUNGS, Rung, wiring

LADDER = ("nano", "smol", "mediom", "lorge")
PROFILES = sorted(path.stem for path in ROOT.glob("configs/hardware/*.yaml"))


def adapters(rung: Rung) -> Path | None:
    """The lora.yaml of the stage, or of the project."""
    home = Path("configs") / rung.project
    return next((f for f in (home / (rung.stage or "") / "lora.yaml", home / "lora.yaml") if (ROOT / f).exists()), None)


@cache
def built(rung: Rung) -> cli.PalimpsestCLI:
    """Parsed, planned and built on the meta device, as `config` does it."""
    return lines.built(rung.project, [*rung.line, CPU])


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
    rung = [rung for rung in RUNGS if rung.project == project][-1]
    splits = ["--data.batch_size=48"] if built(rung).plan.batch_size else []
    line = [*rung.line, f"--config=configs/hardware/{profile}.yaml", *splits]
    assert lines.built(project, line).plan.updates > 0


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("rung", RUNGS, ids=str)
def test_every_size_parses_for_every_verb_as_for_its_plan(rung, verb):
    """A rehearsal needs no run. What a verb adds to the layers is no key of the configuration."""
    rehearsal = "--trainer.fast_dev_run=true"
    planned = lines.parsed(rung.project, [*rung.line, CPU, rehearsal], "config")
    assert lines.parsed(rung.project, [*rung.line, CPU, rehearsal], verb) == planned


@pytest.mark.parametrize("rung", [rung for rung in RUNGS if adapters(rung)], ids=str)
def test_adapters_lie_over_every_size(rung, tmp_path):
    """`finetune` of a loose checkpoint takes the size's layers and lora.yaml above them."""
    loose = tmp_path / "loose.ckpt"
    loose.touch()
    layers = lines.built(rung.project, [*rung.line, CPU, f"--ckpt_path={loose}"], "finetune").layers
    assert layers.files[-1] == adapters(rung) and layers.size == f"{layers.size.removesuffix('-lora')}-lora"


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


@pytest.mark.parametrize("line", LINES, ids=str)
def test_each_rung_of_the_ladder_is_larger_than_the_one_below(line):
    home = "/".join(("configs", line.project, *([line.stage] if line.stage else [])))
    own = {rung.files[-1].stem: rung for rung in RUNGS if str(rung.files[-1].parent) == home}
    counts = [built(own[size]).plan.parameters for size in LADDER if size in own]
    assert counts and counts == sorted(set(counts))


def test_the_template_has_every_rung_of_the_ladder():
    assert {f"template/{size}" for size in LADDER} <= {str(rung) for rung in RUNGS}


@pytest.mark.parametrize("project", PACKAGES)
def test_no_argument_is_a_plain_dict(project):
    """The parser replaces a dict whole where it merges a dataclass, so a layer would lose what it does not repeat."""
    given = wiring(project)
    both = [cls for one in (given.module, given.data) for cls in (one if isinstance(one, tuple) else (one,))]
    options = [verb.options for verb in given.verbs.values() if verb.options]
    found = [name for cls in [*both, *cli.GROUPS.values(), *given.groups.values(), *options] for name in dicts_in(cls)]
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
