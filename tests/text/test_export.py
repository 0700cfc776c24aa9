"""An export wants torch, safetensors and (for its config) YAML: where nothing else can be imported it says the same."""

import json
import subprocess
import sys

import torch
from safetensors.torch import load_file, save_file

from projects.text.module import OBJECTIVES, Warp
from shared.training import exports, pretrained
from tests.lines import ROOT, environment
from tests.text.trunks import text_module

LOGITS = """
import sys, sysconfig
from pathlib import Path

WITH_TORCH = "numpy sympy mpmath typing_extensions filelock jinja2 markupsafe networkx fsspec torchgen functorch"
ALLOWED = {"torch", "safetensors", "yaml", "_yaml", "shared", "projects", "packages", *WITH_TORCH.split()}
INSTALLED = {path.name.partition(".")[0] for path in Path(sysconfig.get_paths()["purelib"]).iterdir()}


class Bare:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in INSTALLED - ALLOWED:
            raise ModuleNotFoundError(f"{name} is not here")


sys.meta_path.insert(0, Bare)
import torch
from safetensors.torch import load_file, save_file
from shared.training.pretrained import load_for_sampling

given = load_file(sys.argv[1])
for folder in sys.argv[2:]:
    network, _ = load_for_sampling(folder)
    with torch.no_grad():
        save_file({"logits": network(**given)}, f"{folder}/logits")
try:
    import lightning
except ModuleNotFoundError as error:
    print(error)
"""
MADE = [*({"objective": name} for name in OBJECTIVES), {"warp": Warp(follow=0.1)}]


def exported(module, folder):
    """The folder that `export` makes of a checkpoint of it."""
    said = {"project": "text", "stage": None, "size": "nano", "config": {"run": {"name": "a"}}}
    content = {"state_dict": module.state_dict(), "palimpsest": said | pretrained.origin(module)}
    module.on_save_checkpoint(content)
    torch.save(content, folder.with_suffix(".ckpt"))
    exports.export(folder.with_suffix(".ckpt"), folder)
    return folder


def test_an_export_gives_the_same_logits_bit_for_bit_where_there_is_no_more_than_torch_and_safetensors(tmp_path):
    x, belief = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    given = {"x": x, "t": torch.linspace(0.1, 0.9, 4), "belief": belief}
    save_file(given, tmp_path / "given")
    modules = [text_module(seed, **options) for seed, options in enumerate(MADE)]
    for module in modules:
        module.network.ramp.fill_(0.5)
    modules[-1].network.warp.hand_over()
    folders = [exported(module, tmp_path / str(n)) for n, module in enumerate(modules)]
    command = [sys.executable, "-c", LOGITS, *map(str, (tmp_path / "given", *folders))]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "lightning is not here", done.stderr
    for module, folder in zip(modules, folders):
        with torch.no_grad():
            logits = module.network(**given)
        assert torch.equal(load_file(folder / "logits")["logits"], logits) and logits.std() > 0.1
        assert json.loads((folder / "vocabulary.json").read_text())["sha256"] == module.data.vocabulary.sha256
