"""Laws of exports: the same outputs bit for bit, read by all that reads checkpoints, without Lightning and without a
pickle; adapters in the format of peft; nothing goes out unless it is asked to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from shared.processes import Uniform, cosine, squared, with_floor
from shared.training import adapting, checkpoints, exports, pretrained
from shared.training.errors import Mistake
from shared.training.lora import LoraOptions, Rows
from shared.training.template.module import TemplateModule

ROOT = Path(__file__).parents[3]
X, T = torch.tensor([[0.3, -1.0], [0.5, 2.0]]), torch.tensor([0.2, 0.7])


class Tied(nn.Module):
    """One matrix under two names."""

    def __init__(self, width: int = 3):
        super().__init__()
        self.table, self.out = nn.Embedding(4, width), nn.Linear(width, 4, bias=False)
        self.out.weight = self.table.weight

    def forward(self, ids):
        return self.out(self.table(ids))


def template(seed: int = 0) -> TemplateModule:
    """A small template module whose read-out says something."""
    torch.manual_seed(seed)
    module = TemplateModule(width=16, depth=2)
    module.configure_model()
    nn.init.normal_(module.network.output.weight)
    return module.eval()


def save(module, path: Path, **more) -> Path:
    state = {name: value.clone() for name, value in adapting.own(module, module.state_dict()).items()}
    told = {
        "project": "template",
        "stage": None,
        "size": "nano",
        "config": {"model": {"width": 16}, "run": {"name": "a"}},
    }
    torch.save({"state_dict": state, "palimpsest": told | pretrained.origin(module), **more}, path)
    return path


@pytest.fixture
def file(tmp_path) -> Path:
    raw = {name: value + 1 for name, value in template().state_dict().items()}
    return save(template(), tmp_path / "whole.ckpt", current_model_state=raw, notes={"rows": [1, 2]})


@pytest.fixture
def adapted(file, tmp_path, request):
    """(module, its file): adapters that have learnt something."""
    module, init = template(seed=1), getattr(request, "param", "default")
    adapting.attach(module, LoraOptions(enabled=True, init=init, modules_to_save=["input"]), file)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if value.requires_grad:
                value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))) / 10)
    return module.eval(), save(module, tmp_path / "adapted.ckpt")


def test_outputs_are_bitwise_equal_before_and_after_export(file, tmp_path):
    exports.export(file, tmp_path / "out")
    network = pretrained.from_pretrained(tmp_path / "out")
    assert not network.training
    assert torch.equal(network(X, T), template().network(X, T))


def test_the_folder_holds_tensors_by_the_networks_names_and_says_what_they_are_made_of(file, tmp_path):
    said = exports.export(file, tmp_path / "out")
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "config.yaml", "README.md", "notes.json"}
    assert "written" in said and set(load_file(tmp_path / "out/model.safetensors")) == set(
        template().network.state_dict()
    )
    facts = json.loads((tmp_path / "out/config.json").read_text())
    assert facts["network"] == {
        "class_path": "shared.training.template.network.TemplateNetwork",
        "init_args": {"width": 16, "depth": 2},
    }
    assert facts["process"]["class_path"] == "shared.processes.gaussian.Gaussian" and facts["project"] == "template"
    content = checkpoints.read(tmp_path / "out")
    assert content["notes"] == {"rows": [1, 2]} and content["palimpsest"]["config"] == {"model": {"width": 16}}


def test_network_and_process_come_back_ready_to_walk(file, tmp_path):
    exports.export(file, tmp_path / "out")
    network, process = pretrained.load_for_sampling(tmp_path / "out")
    ours = template()
    assert torch.equal(process.x0_from_velocity(X, network(X, T), T), ours.denoise(X, T))


def test_averaged_weights_are_exported_and_raw_ones_on_request(file, tmp_path):
    exports.export(file, tmp_path / "raw", weights="raw")
    module = template()
    averaged = module.network.input.weight.clone()
    pretrained.load(module, tmp_path / "raw")
    assert torch.equal(module.network.input.weight, averaged + 1)
    pretrained.load(module, file)
    assert torch.equal(module.network.input.weight, averaged)
    pretrained.load(module, file, weights="raw")
    assert torch.equal(module.network.input.weight, averaged + 1)


def test_half_the_bytes_load_into_a_whole_network(file, tmp_path):
    exports.export(file, tmp_path / "whole")
    exports.export(file, tmp_path / "half", dtype="bf16")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.65 * sizes[1]
    network = pretrained.from_pretrained(tmp_path / "half")
    assert network.input.weight.dtype == torch.float32
    torch.testing.assert_close(network(X, T), template().network(X, T), rtol=0.05, atol=0.05)


def test_tied_tensors_are_stored_once_and_come_back_tied(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "ROOMS", ("tests",))
    module = nn.Module()
    module.network = pretrained.build(Tied, width=3)
    exports.export(save(module, tmp_path / "tied.ckpt"), tmp_path / "out")
    assert list(load_file(tmp_path / "out/model.safetensors")) == ["table.weight"]
    network = pretrained.from_pretrained(tmp_path / "out")
    assert network.out.weight is network.table.weight
    assert torch.equal(network(torch.arange(4)), module.network(torch.arange(4)))


# adapters


def test_adapters_go_out_alone_and_come_back_onto_their_base(adapted, tmp_path):
    module, path = adapted
    said = exports.export(path, tmp_path / "out")
    assert "% of the base" in said["adapters"] and not (tmp_path / "out/model.safetensors").exists()
    assert torch.equal(pretrained.from_pretrained(tmp_path / "out")(X, T), module.network(X, T))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("adapted", ["default", "orthogonal", "pissa", "olora"], indirect=True)
def test_the_adapters_folder_is_one_of_peft(adapted, tmp_path):
    from peft import PeftModel

    module, path = adapted
    exports.export(path, tmp_path / "out")
    theirs = PeftModel.from_pretrained(template().network, str(tmp_path / "out"))
    assert torch.equal(theirs(X, T), module.network(X, T))


def test_merged_is_unmerged_under_the_names_of_the_base(adapted, file, tmp_path):
    module, path = adapted
    said = exports.export(path, tmp_path / "out", merge=True)
    assert said["merged"].startswith("equals unmerged on random inputs, largest difference ")
    assert float(said["merged"].split()[-1]) <= 1e-5
    network = pretrained.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(network(X, T), module.network(X, T), rtol=0, atol=1e-5)
    assert set(load_file(tmp_path / "out/model.safetensors")) == set(template().network.state_dict())
    assert not any("lora" in name for name in network.state_dict())


def test_a_merged_export_is_a_base_and_an_export_of_adapters_can_be_merged(adapted, tmp_path):
    module, path = adapted
    exports.export(path, tmp_path / "adapters")
    exports.export(tmp_path / "adapters", tmp_path / "merged", merge=True)
    again = template(seed=4)
    adapting.attach(again, LoraOptions(enabled=True), tmp_path / "merged")
    torch.testing.assert_close(again.network(X, T), module.network(X, T), rtol=0, atol=1e-5)


def test_adapters_follow_a_base_that_moved_and_replace_what_the_folder_held(adapted, file, tmp_path):
    module, path = adapted
    exports.export(file, tmp_path / "out")
    exports.export(path, tmp_path / "out")
    assert torch.equal(pretrained.from_pretrained(tmp_path / "out")(X, T), module.network(X, T))
    moved = file.rename(tmp_path / "moved.ckpt")
    assert torch.equal(pretrained.from_pretrained(tmp_path / "out", base=moved)(X, T), module.network(X, T))
    exports.export(tmp_path / "moved.ckpt", tmp_path / "out")
    assert torch.equal(pretrained.from_pretrained(tmp_path / "out")(X, T), template().network(X, T))
    assert not (tmp_path / "out/adapter_config.json").exists()


def test_checkpoint_run_export_and_adapters_are_all_accepted(file, adapted, tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/final.ckpt").write_bytes(file.read_bytes())
    exports.export(file, tmp_path / "export")
    for path in (file, tmp_path / "run", tmp_path / "export"):
        module = template(seed=2)
        pretrained.load(module, path)
        assert torch.equal(module.network(X, T), template().network(X, T))
        assert module.weights_from == str(path)
    exports.export(adapted[1], tmp_path / "adapters")
    for path in (adapted[1], tmp_path / "adapters"):
        module = template(seed=2)
        pretrained.load(module, path)
        assert torch.equal(module.eval().network(X, T), adapted[0].network(X, T))


def test_rows_that_learnt_travel_in_the_format_of_peft(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "ROOMS", ("tests",))
    module = nn.Module()
    module.network = pretrained.build(Rowed)
    base = save(module, tmp_path / "base.ckpt")
    adapting.attach(module, LoraOptions(enabled=True, targets="out", train_rows=[Rows("table", [1, 3])]), base)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(value.requires_grad)
    exports.export(save(module, tmp_path / "rows.ckpt"), tmp_path / "out")
    network = pretrained.from_pretrained(tmp_path / "out")
    assert torch.equal(network(torch.arange(4)), module.network(torch.arange(4)))


class Rowed(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(4, 3), nn.Linear(3, 4)

    def forward(self, ids):
        return self.out(self.table(ids))


# what is refused


def test_an_architecture_that_differs_is_refused_by_name(file):
    other = TemplateModule(width=16, depth=3)
    other.configure_model()
    with pytest.raises(Mistake, match=r"holds another architecture: missing network\.blocks\.2"):
        pretrained.load(other, file)


def test_there_is_nothing_to_merge_without_adapters(file, tmp_path):
    with pytest.raises(Mistake, match="has no adapters, so there is nothing to merge"):
        exports.export(file, tmp_path / "out", merge=True)


def test_a_folder_with_other_things_is_left_alone(file, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(Mistake, match="is not empty and holds no export"):
        exports.export(file, tmp_path / "mine")
    assert [f.name for f in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_file_makes_nothing_but_what_lives_here(file, tmp_path):
    exports.export(file, tmp_path / "out")
    facts = json.loads((tmp_path / "out/config.json").read_text())
    facts["network"] = {"class_path": "os.system", "init_args": {"command": "true"}}
    (tmp_path / "out/config.json").write_text(json.dumps(facts))
    with pytest.raises(Mistake, match=r"The file names os.system; what is made from a file lives in shared, projects"):
        pretrained.from_pretrained(tmp_path / "out")


def test_a_file_that_does_not_say_how_its_network_is_made_says_so(tmp_path):
    torch.save({"state_dict": {}, "palimpsest": {"project": "template"}}, tmp_path / "old.ckpt")
    with pytest.raises(Mistake, match="does not say how its network is made"):
        pretrained.from_pretrained(tmp_path / "old.ckpt")


@pytest.mark.parametrize("path", ["runs/no/such/run", "./owner/name", "nothing"])
def test_what_cannot_be_a_repository_is_never_asked_for(path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(Mistake, match=r"does not exist\. Give an export folder"):
        pretrained.from_pretrained(path)


def test_a_repository_is_fetched_and_an_unreachable_one_is_one_sentence(file, tmp_path, monkeypatch):
    exports.export(file, tmp_path / "out")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: str(tmp_path / "out"))
    assert torch.equal(pretrained.from_pretrained("owner/name")(X, T), template().network(X, T))
    monkeypatch.undo()
    with pytest.raises(Mistake, match="owner/name is not a path here and could not be fetched"):
        pretrained.from_pretrained("owner/name")  # the tests have no network


class Hub:
    """Stands in for the hub's interface."""

    def __init__(self, fails: bool = False):
        self.fails, self.asked = fails, []

    def create_repo(self, repo_id, **options):
        self.asked.append((repo_id, options))
        if self.fails:
            raise ConnectionError("no route to host")

    def upload_folder(self, repo_id, folder_path):
        self.asked.append((repo_id, folder_path))
        return f"hub/{repo_id}"


def test_a_folder_is_pushed_as_it_is_and_privately(file, tmp_path):
    exports.export(file, tmp_path / "out")
    hub = Hub()
    assert exports.push_to_hub(tmp_path / "out", "owner/name", api=hub) == "hub/owner/name"
    assert hub.asked == [("owner/name", {"private": True, "exist_ok": True}), ("owner/name", str(tmp_path / "out"))]


def test_a_push_that_fails_or_has_nothing_to_send_is_one_sentence(file, tmp_path):
    with pytest.raises(Mistake, match="is not an export"):
        exports.push_to_hub(tmp_path, "owner/name", api=Hub())
    exports.export(file, tmp_path / "out")
    with pytest.raises(Mistake, match=r"could not be sent to owner/name \(ConnectionError: no route to host\)"):
        exports.push_to_hub(tmp_path / "out", "owner/name", api=Hub(fails=True))


# how things say what they are made of


def test_a_process_is_made_again_from_what_it_says():
    schedule = with_floor(squared(cosine(0.008)), 0.1)
    made = pretrained.build(Uniform, num_classes=10, schedule=schedule, joint="coupled")
    said = json.loads(json.dumps(pretrained.description(made)))
    again = pretrained.rebuild(said)
    assert pretrained.description(again) == said and (again.num_classes, again.joint) == (10, "coupled")
    assert torch.equal(again.alpha(T), made.alpha(T))


def test_what_could_not_be_made_again_is_refused_when_it_is_described():
    with pytest.raises(ValueError, match="cannot be made again from a file"):
        pretrained.description(pretrained.build(Uniform, num_classes=3, schedule=lambda t: 1 - t))


def test_making_a_network_from_a_file_leaves_the_generator_alone(file):
    before = torch.get_rng_state()
    pretrained.from_pretrained(file)
    assert torch.equal(torch.get_rng_state(), before)


LOADS = """
import sys, time, torch
start = time.process_time()
from shared.training.pretrained import from_pretrained
seconds, network = time.process_time() - start, from_pretrained(sys.argv[1])
heavy = ("lightning", "jsonargparse", "peft", "matplotlib", "transformers", "huggingface_hub")
print(seconds, [name for name in heavy if name in sys.modules])
"""


def test_pretrained_loads_within_two_seconds_of_torch_and_without_the_training_stack(file, tmp_path):
    exports.export(file, tmp_path / "out")
    command = [sys.executable, "-c", LOADS, str(tmp_path / "out")]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    seconds, _, loaded = out.strip().partition(" ")
    assert float(seconds) <= 2.0 and loaded == "[]"


def entries(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_an_export_killed_while_it_is_written_leaves_the_earlier_one_whole(file, tmp_path, monkeypatch):
    exports.export(file, tmp_path / "out")
    before = entries(tmp_path / "out")
    other = save(template(seed=5), tmp_path / "other.ckpt")
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(exports, "_write_beside", _killed)
        exports.export(other, tmp_path / "out")
    assert entries(tmp_path / "out") == before
    exports.export(other, tmp_path / "out")
    assert not (tmp_path / "out" / exports.STAGING).exists()
    assert torch.equal(pretrained.from_pretrained(tmp_path / "out")(X, T), template(seed=5).network(X, T))


@pytest.mark.parametrize("renames", range(4))
def test_an_export_killed_amid_its_renames_is_read_by_nothing_and_can_be_made_again(
    file, tmp_path, monkeypatch, renames
):
    exports.export(file, tmp_path / "out")
    other, replace, left = save(template(seed=5), tmp_path / "other.ckpt"), exports.os.replace, [renames]

    def until(*paths):
        if Path(paths[1]).parent == tmp_path / "out":
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        replace(*paths)

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(exports.os, "replace", until)
        exports.export(other, tmp_path / "out")
    with pytest.raises(Mistake, match=r"neither a run .* nor a whole export"):
        pretrained.from_pretrained(tmp_path / "out")
    exports.export(other, tmp_path / "out")
    assert torch.equal(pretrained.from_pretrained(tmp_path / "out")(X, T), template(seed=5).network(X, T))


def _killed(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "config.yaml", "notes.json"])
@pytest.mark.parametrize("torn", [True, False])
def test_an_export_with_a_torn_or_missing_file_is_refused_in_a_sentence(file, tmp_path, name, torn):
    exports.export(file, tmp_path / "out")
    path = tmp_path / "out" / name
    whole = path.read_bytes()
    path.write_bytes(b"[" if name == "config.yaml" else whole[: len(whole) // 2])
    if not torn:
        path.unlink()
    with pytest.raises(Mistake, match="whole export"):
        checkpoints.read(tmp_path / "out")


def test_a_folder_that_cannot_be_made_is_refused_in_a_sentence(file):
    with pytest.raises(Mistake, match=r"cannot be made \(Not a directory\)"):
        exports.export(file, file / "out")
