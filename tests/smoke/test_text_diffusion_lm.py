"""The recipe of Diffusion-LM through its command line, on a made file: it runs, resumes, is exported, walks again."""

import json

import pytest
import torch

from projects.text.encoder import Encoder
from shared.training import checkpoints
from shared.training.pretrained import load_for_sampling
from tests.lines import Line
from tests.smoke.test_smoke import dying
from tests.text.corpora_made import restaurants

pytestmark = [
    pytest.mark.usefixtures("at_home"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
TEXT = Line("text")
SMALL = {"width": 32, "depth": 2, "heads": 2, "hidden": 64, "level": 16, "level_hidden": 24}


def arguments(folder, name, *more):
    """Five updates on the file `one.txt` of a folder."""
    return [
        *TEXT.fit(folder, name, "--config=configs/text/diffusion_lm_e2e.yaml"),
        *(f"--model.network.{size}={value}" for size, value in SMALL.items()), f"--data.path={folder}/one.txt",
        f"--data.cache_dir={folder}/cache", "--data.length=16", "--data.batch_size=16", "--data.micro_batch=16",
        "--data.held_out=8", "--model.likelihood.sentences=8", "--model.likelihood.levels=2", "--sampling.steps=4",
        "--trainer.max_steps=5", "--run.validate_every=3", "--snapshots.every=5", "--snapshots.count=2",
        "--checkpoint.every=3", "--logging.every=1", *more,
    ]  # fmt: skip


def test_five_updates_are_trained_killed_resumed_reported_and_exported(tmp_path):
    restaurants(tmp_path / "one.txt")
    TEXT.run(*arguments(tmp_path, "whole"))
    with dying(4, "on_train_batch_end"):
        TEXT.run(*arguments(tmp_path, "killed"))
    TEXT.run(*arguments(tmp_path, "killed", "--run.resume=true"))
    whole, killed = (TEXT.folder(tmp_path) / name for name in ("whole", "killed"))
    assert (whole / "metrics.csv").read_text() == (killed / "metrics.csv").read_text()
    one, other = (checkpoints.read(run / "checkpoints/final.ckpt")["state_dict"] for run in (whole, killed))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert {"mse", "rounding", "prior"} <= {name.rpartition("/")[2] for name in header(whole)}
    assert {"nats_per_token", "unigram_kl"} <= {
        m["name"] for m in json.loads((whole / "report.json").read_text())["metrics"]
    }

    TEXT.run("export", f"--ckpt_path={whole}", f"--export.out={tmp_path}/export")
    network, process = load_for_sampling(tmp_path / "export")
    assert isinstance(network, Encoder) and network.warp is None
    x, t = torch.randn(2, 16, 16), torch.full((2,), 0.5)
    assert torch.equal(process.schedule.alpha(t), network.schedule.alpha(t)) and network(x, t).shape == x.shape


def header(run):
    return (run / "metrics.csv").read_text().splitlines()[0].split(",")
