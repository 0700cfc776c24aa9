"""Two ranks of the line text; the tests that read them are in test_text.py."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

from projects.text.data import TextData
from projects.text.module import TextDiffusion
from projects.text.sampling import Sampling
from shared.training import cli
from shared.training.console import quieten
from tests.distributed.adapted import spelled
from tests.distributed.group import check, main
from tests.text.corpora_made import restaurants

UPDATES = 20
LAYERS = [f"--config=configs/{name}.yaml" for name in ("text/base", "text/nano", "hardware/cpu")]
TINY = ["--config=tests/smoke/text.yaml", f"--trainer.max_steps={UPDATES}", "--logging.every=1",
        "--snapshots.every=null", "--run.validate_every=null", "--run.test_after_fit=false"]  # fmt: skip
RAGGED = {"source": "e2e", "packing": "none", "length": 16}


def fit(root: Path, name: str, world: int = 1, **flags: Any) -> list[dict[str, Any]]:
    """All ranks: the updates, with noise by sample so that one process sees the same. Returns what each step was about
    to see: which samples, how many tokens, and their times."""
    flags = {"run.root": root, "run.name": name, "trainer.devices": world, "randomness.mode": "sample"} | flags
    steps: list[dict[str, Any]] = []
    step = TextDiffusion.training_step

    def watched(module: TextDiffusion, batch: Any, index: int) -> Any:
        t = module.randomness.times(batch.share).tolist()
        if not batch.ids.is_meta:  # where the memory of a step is counted
            steps.append({"position": batch.share.position.tolist(), "tokens": batch.num_units, "t": t})
        return step(module, batch, index)

    with patch.object(TextDiffusion, "training_step", watched):
        cli.main(TextDiffusion, TextData, ["fit", *LAYERS, *TINY, *spelled(flags)], groups={"sampling": Sampling})
    return steps


def sentences(root: Path, world: int = 1) -> list[dict[str, Any]]:
    """Rows of the grammar that all hear a belief, under a warp that follows the loss half of the way."""
    return fit(root, "sentences", world, model__self_conditioning__probability=1, model__warp__follow=0.5)


def ragged(root: Path, world: int = 1) -> list[dict[str, Any]]:
    """Rows of a file whose padding does not count, on each rank another number of tokens."""
    if not (path := root / "e2e.txt").exists():
        restaurants(path)
    own = {f"data.{name}": value for name, value in RAGGED.items()} | {"data.path": path, "data.cache_dir": root}
    return fit(root, "ragged", world, model__self_conditioning__probability=0, **own)


@check
def rows_of_the_grammar(folder: Path) -> Any:
    return sentences(folder, 2)


@check
def rows_of_a_file(folder: Path) -> Any:
    return ragged(folder, 2)


if __name__ == "__main__":
    quieten()
    main()
