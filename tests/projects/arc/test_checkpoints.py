"""What a run leaves of its weights, whatever precision it computed in."""

from pathlib import Path

import pytest
import torch

from projects.arc.pairs import PairBatches
from shared.training import pretrained
from shared.training.batches import Share
from tests.lines import ROOT, Line
from tests.projects.arc.conftest import arc_data, believe

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
ARC = Line("arc")
HALF = (
    "--trainer.precision=bf16-mixed",
    "--trainer.max_steps=2",
    "--run.test_after_fit=false",
    "--snapshots.every=null",
    "--ema.enabled=false",
)


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    """A run in half precision, and its network as it was when the run ended."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        cli = ARC.run(*ARC.fit(root, "half", *HALF))
    return ARC.folder(root) / "half", cli.model.network


def tensors(tree):
    """Every floating tensor of a checkpoint."""
    if isinstance(tree, torch.Tensor):
        return [tree] if tree.is_floating_point() else []
    inside = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [tensor for part in inside for tensor in tensors(part)]


def test_checkpoints_of_a_run_in_half_precision_are_float32(half):
    for name in ("last", "final"):
        found = tensors(torch.load(half[0] / f"checkpoints/{name}.ckpt", weights_only=True))
        assert len(found) > 20 and {tensor.dtype for tensor in found} == {torch.float32}


def test_a_network_read_from_a_checkpoint_gives_the_same_logits(half):
    data = arc_data(tasks=["25ff71a9", "3c9b0459", "6150a2bd", "d037b0a7"])
    batch = PairBatches(data.examples(), data.max_size, None, data.randomness).build(Share.of([0, 4, 7]))
    folder, network = half
    for where in (folder, folder / "checkpoints/last.ckpt"):
        again = pretrained.from_pretrained(where)
        assert torch.equal(believe(again, batch), believe(network.eval(), batch)) and believe(again, batch).any()


def test_the_card_of_an_export_names_its_folder(half, tmp_path, at_home):
    ARC.run("export", f"--ckpt_path={half[0]}", f"--export.out={tmp_path / 'mine'}")
    assert 'from_pretrained("mine")' in (tmp_path / "mine/README.md").read_text()
