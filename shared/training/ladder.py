"""`make train-ladder PROJECT=... SIZES="nano smol"`: the sizes of a project in series, each as `make train` trains it.

A size that a finished run of the same configuration has is skipped, one that was broken off goes on where it stopped,
and the ladder stops at the first size that fails. Each run keeps its own `train.log`. Knows make and run folders only.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from shared.training import interrupts, runs
from shared.training.console import say
from shared.training.errors import Mistake, told


@dataclass(frozen=True)
class Ladder:
    """What every size of one ladder has in common. arguments: flags for the command line of each."""

    project: str
    stage: str | None = None
    hw: str | None = None
    arguments: tuple[str, ...] = ()

    def make(self, target: str, size: str, *more: str) -> list[str]:
        """`make <target>` for one size; what else was given to make itself reaches it by the environment."""
        words = {"PROJECT": self.project, "SIZE": size, "STAGE": self.stage, "HW": self.hw}
        named = [f"{name}={value}" for name, value in words.items() if value]
        arguments = f"ARGS={shlex.join([*self.arguments, *more])}"
        return ["make", "--silent", "--no-print-directory", target, *named, arguments]

    def configuration(self, size: str) -> str:
        """The resolved configuration a new run of this size would have, as YAML. Raises Mistake if there is none."""
        asked = interrupts.run(self.make("config", size, "--print_config"), stdout=subprocess.PIPE)
        if asked.returncode:
            raise Mistake(f"Size {size} cannot be trained, so nothing was started; the reason stands above.")
        return asked.stdout

    def home(self, size: str, config: str) -> Path:
        """The folder of this size's runs."""
        root = yaml.safe_load(config)["run"]["root"]
        return runs.size_folder(root, self.project, self.stage, size)

    def train(self, size: str, resumed: Path | None) -> int:
        """Train one size, or go on with the run `resumed`; the exit code."""
        more = [f"--run.name={resumed.name}", "--run.resume=true"] if resumed else []
        return interrupts.run(self.make("train", size, *more)).returncode


def climb(ladder: Ladder, sizes: Sequence[str], *, keep_going: bool = False) -> bool:
    """Train `sizes` in series; True when all are finished. Every configuration is checked before the first starts."""
    configs = {size: ladder.configuration(size) for size in sizes}
    failed = []
    for size, config in configs.items():
        found = same_runs(ladder.home(size, config), config)
        if done := [folder for folder, finished in found.items() if finished]:
            say(f"ladder      {size}: {done[-1]} is finished with this configuration, skipped")
            continue
        broken_off = next(reversed(found), None)
        say(f"ladder      {size}: " + (f"{broken_off} goes on" if broken_off else "a new run"))
        if code := ladder.train(size, broken_off):
            failed.append(size)
            say(f"ladder      {size}: failed with exit code {code}")
            if not keep_going:
                break
    say("ladder      " + (f"failed: {', '.join(failed)}" if failed else "all sizes are finished"))
    return not failed


def same_runs(home: Path, config: str) -> dict[Path, bool]:
    """Runs below `home` with this configuration that can be used: folder -> finished, in order of their names."""
    wanted = runs.config_hash(config)
    found: dict[Path, bool] = {}
    for manifest in sorted(home.glob("*/manifest.json")):
        folder = manifest.parent
        files = [folder / "checkpoints" / f"{name}.ckpt" for name in ("final", "last")]
        final, last = (file.exists() for file in files)
        if (final or last) and _hash(folder) == wanted:
            found[folder] = final
    return found


def _hash(folder: Path) -> str | None:
    """None, and a line that says so, where the configuration of a run cannot be read: it is no run to go on with."""
    try:
        return runs.config_hash(runs.read_config(folder))
    except Mistake as torn:
        say(f"ladder      passed over: {torn}")
        return None


def detach(words: Sequence[str], project: str) -> None:
    """The same ladder in a session of its own, which a logout does not end; prints its number and its log."""
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    log = Path("runs") / f"ladder-{project}-{now}.log"
    log.parent.mkdir(exist_ok=True)
    command = ["nohup", sys.executable, "-m", "shared.training.ladder", *words]
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    say(f"ladder      process {process.pid}, log {log}")


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make train-ladder", allow_abbrev=False)
    parser.add_argument("project")
    parser.add_argument("--stage")
    parser.add_argument("--hw")
    parser.add_argument("--keep-going", action="store_true")
    parser.add_argument("--detach", action="store_true")
    parser.add_argument("sizes", nargs="+")
    asked, arguments = parser.parse_known_args(words)
    if asked.detach:
        detach([word for word in words if word != "--detach"], asked.project)
        return 0
    ladder = Ladder(asked.project, asked.stage, asked.hw, tuple(arguments))
    return 0 if climb(ladder, asked.sizes, keep_going=asked.keep_going) else 1


if __name__ == "__main__":
    with told():
        sys.exit(main(sys.argv[1:]))
