"""`make repro RUN=...`: are the first 20 updates of a run the same again, bit by bit, on this machine?

Every run keeps the losses of its first updates one by one (`logs.keep_first`). They are made again by taking up a copy
of the run that holds its configuration and no checkpoint, as a run is taken up that died before its first one; it stops
after the same number of updates, under the learning rates of the whole run. Knows files and commands; no project.
"""

import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from shared.training import interrupts, runs
from shared.training.errors import Mistake, told
from shared.training.layers import flag_values
from shared.training.logs import FIRST_LOSSES
from shared.training.plan import git_state
from shared.training.tables import read_table

OURS = ("run.", "logging.", "trainer.callbacks")  # keys that the second run sets itself and that change no loss


class StopAfter(Callback):
    """Leaves, as if finished, before update `updates` + 1 begins."""

    def __init__(self, updates: int):
        self.updates = updates

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step >= self.updates:
            raise SystemExit(0)


def main(folder: str) -> bool:
    """Print what is the same and what is not; True when every loss is equal."""
    run = runs.reopen(folder)
    kept = _losses(run)
    if not kept:
        raise Mistake(f"{run.folder} has no {FIRST_LOSSES}: it ended before its first row of logs. Train it further.")
    with tempfile.TemporaryDirectory(prefix="repro-") as root:
        again = _again(run, Path(root), len(kept))
        for name, text in beside(run, again).items():
            print(f"{name:<11} {text}")
        verdict, equal = compare(kept, _losses(again))
    print(f"{'losses':<11} {verdict}")
    return equal


def _losses(run: runs.Run) -> dict[int, float]:
    return read_table(run.folder / FIRST_LOSSES).get("train/loss", {})


def compare(kept: Mapping[int, float], again: Mapping[int, float]) -> tuple[str, bool]:
    """The sentence, and whether all are equal. Both tables hold nine digits, which tell any two float32 apart."""
    equal = sum(again.get(update) == loss for update, loss in kept.items())
    differing = next((update for update, loss in kept.items() if again.get(update) != loss), None)
    text = f"{equal} of {len(kept)} losses equal"
    if differing is None:
        return text, True
    there = f"{again[differing]:.9g}" if differing in again else "missing"
    return f"{text}; the first difference is at update {differing}: {kept[differing]:.9g} then, {there} now", False


def beside(run: runs.Run, again: runs.Run) -> dict[str, str]:
    """What may explain a difference: code, data, configuration, machine, versions; each as it was and as it is."""
    then, now = run.manifest["starts"][0], again.manifest["starts"][-1]
    configs = [_first_config(run), again.folder / "config.yaml"]
    changed = runs.config_differences(*(file.read_text(encoding="utf-8") for file in configs))
    changed = [line for line in changed if not line.startswith(OURS)]
    return {
        "run": f"{run.folder}",
        "code": _then_now(then.get("git"), git_state()),
        "data": _then_now(then.get("data"), now.get("data")),
        "config": "; ".join(changed) or f"equal ({then.get('config', 'no hash kept')})",
        "machine": _then_now(_listed(then["machine"]), _listed(now["machine"])),
        "versions": _then_now(_listed(then["versions"]), _listed(now["versions"])),
    }


def _then_now(then: Any, now: Any) -> str:
    return f"{now} both times" if then == now else f"{then or 'unknown'} then, {now or 'unknown'} now"


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def _first_config(run: runs.Run) -> Path:
    """The configuration the run began with: a resume under another one kept it under the update it held until."""
    kept = [file for file in run.folder.glob("config.*.yaml") if file.suffixes[0][1:].isdigit()]
    return min(kept, key=lambda file: int(file.suffixes[0][1:]), default=run.folder / "config.yaml")


def _again(run: runs.Run, root: Path, updates: int) -> runs.Run:
    """The first updates once more, in a process of their own, in a copy of the run below `root`."""
    folder = runs.size_folder(root, run.project, run.stage, run.size) / run.name
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(_first_config(run), folder / "config.yaml")
    start = {**run.manifest["starts"][0], "resumed": False}
    who = {"project": run.project, "stage": run.stage, "size": run.size}
    runs.write_json(folder / "manifest.json", {**who, "starts": [start]})
    again = list(command(start["command"], root, run.name, updates))
    process = interrupts.run(again, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if not (folder / FIRST_LOSSES).exists():
        said = (process.stderr or process.stdout).strip().splitlines()[-3:]
        raise Mistake("\n".join([f"The first updates of {run.folder} could not be run again:", *said]))
    return runs.reopen(folder)


def command(began_with: str, root: Path, name: str, updates: int) -> Iterator[str]:
    """The verb and files the run began with, made to take up the copy (which holds its flags) and to stop early."""
    words = shlex.split(began_with)  # python -m <module> <verb> ...
    yield from (sys.executable, *words[1:4])
    yield from (f"--{name}={value}" for name, value in flag_values(words[4:]) if name in ("config", "ckpt_path"))
    yield from (f"--run.root={root}", f"--run.name={name}", "--run.resume=true", "--run.test_after_fit=false")
    yield from (f"--logging.every={updates}", "--logging.tensorboard=off", "--logging.wandb=off")
    yield from ("--trainer.callbacks+=shared.training.repro.StopAfter", f"--trainer.callbacks.updates={updates}")


if __name__ == "__main__":
    with told():
        sys.exit(0 if main(sys.argv[1]) else 1)
