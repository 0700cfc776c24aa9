"""Laws of the mirrors: they say what the tables say, go on where a run goes on, and are not there unless asked for."""

import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.training import loggers
from shared.training.runs import LoggingOptions
from shared.training.tables import read_table
from tests.shared.training.loop import Hook, Killed, Setting, die_at, train

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

ROOT = Path(__file__).parents[3]
Values = dict[str, dict[int, float]]


def tables(folder: Path) -> Values:
    both = read_table(folder / "metrics.csv") | read_table(folder / "perf.csv")
    return {name: column for name, column in both.items() if name != "update"}


def on_the_board(folder: Path) -> Values:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return {name: {each.step: each.value for each in board.Scalars(name)} for name in board.Tags()["scalars"]}


def rows_on_the_board(folder: Path, name: str) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return [each.step for each in board.Scalars(name)]


def wandb_records(folder: Path) -> list[list]:
    """The records of every file, oldest first."""
    from wandb.proto import wandb_internal_pb2

    files = [pieces_of(file.read_bytes()) for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]
    return [[wandb_internal_pb2.Record.FromString(piece) for piece in pieces] for pieces in files]


def written(folder: Path, count: int) -> list[list]:
    """`wandb_records` once the service, a process of its own, has closed `count` files."""
    for _ in range(100):
        files = wandb_records(folder)
        if len(files) == count and all(records and records[-1].HasField("exit") for records in files):
            break
        time.sleep(0.1)
    return files


def pieces_of(data: bytes) -> list[bytes]:
    """A LevelDB log: after seven bytes of its own, pieces with a head of checksum, length and kind; a piece that does
    not fit into its block of 32 KiB is cut (kinds 2, 3, 4: first, middle, last)."""
    pieces, at = [], 7
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        body = data[at + 7 : at + 7 + length]
        at += 7 + length
        pieces[len(pieces) if kind in (1, 2) else len(pieces) - 1 :] = [body if kind in (1, 2) else pieces[-1] + body]
    return pieces


def wandb_values(records: list) -> Values:
    values: Values = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            row = {item.key or "/".join(item.nested_key): float(item.value_json) for item in record.history.item}
            for name, value in row.items():
                values.setdefault(name, {})[int(row["_step"])] = value
    return {name: column for name, column in values.items() if not name.startswith("_")}


def same(mirror: Values, table: Values) -> bool:
    """Equal as float32 and nine digits are."""
    return mirror.keys() == table.keys() and all(
        mirror[name] == pytest.approx(column, rel=1e-6) for name, column in table.items()
    )


def test_tensorboard_says_what_the_tables_say(tmp_path):
    run, _ = train(tmp_path, "a", Setting(mirrors={}))
    assert same(on_the_board(run.folder), tables(run.folder))


def test_tensorboard_of_a_resumed_run_holds_each_update_once(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, "a", Setting(mirrors={}, extra=die_at(11)))
    run, _ = train(tmp_path, "a", Setting(mirrors={}), resume=True)
    assert rows_on_the_board(run.folder, "train/loss") == [3, 6, 9, 12]
    assert same(on_the_board(run.folder), tables(run.folder))


@pytest.fixture(scope="module")
def interrupted_and_resumed(tmp_path_factory):
    """A run mirrored offline, left by a signal after update 7, then finished."""
    root = tmp_path_factory.mktemp("runs")

    def press(trainer):
        if trainer.global_step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    mirrors = {"tensorboard": "off", "wandb": "offline"}
    with pytest.raises(SystemExit):
        train(root, "a", Setting(mirrors=mirrors, extra=[Hook("on_train_batch_end", press)]))
    first = written(root / "toy/nano/a", 1)
    run, _ = train(root, "a", Setting(mirrors=mirrors), resume=True)
    written(run.folder, 2)
    return run, first


def test_wandb_offline_is_closed_after_a_signal(interrupted_and_resumed):
    _, [records] = interrupted_and_resumed
    assert records[-1].exit.exit_code == 1


def test_wandb_of_a_resumed_run_is_one_run_with_the_rows_of_the_tables(interrupted_and_resumed):
    run, _ = interrupted_and_resumed
    files = wandb_records(run.folder)
    names = {record.run.run_id for records in files for record in records if record.HasField("run")}
    assert names == {run.manifest["wandb"]}
    merged: Values = {}
    for values in map(wandb_values, files):
        for name, column in values.items():
            merged.setdefault(name, {}).update(column)
    assert same(merged, tables(run.folder))


def test_a_mirror_writes_nothing_before_training_starts(tmp_path):
    run, _ = train(tmp_path, "a", Setting())
    for logger in loggers.build(run, LoggingOptions(wandb="offline")):
        if isinstance(logger, loggers.Mirror):
            logger.log_metrics({"x": 1.0}, 1)
            logger.finalize("success")
    assert not {"tensorboard", "wandb"} & {path.name for path in run.folder.iterdir()}


LOADED = """
import sys
from pathlib import Path
from tests.shared.training.loop import Setting, train
for choice, wandb in (("off", "off"), ("auto", "off"), ("auto", "offline")):
    train(Path(sys.argv[1]), choice + wandb, Setting(updates=2, mirrors={"tensorboard": choice, "wandb": wandb}))
    print("LOADED", choice, wandb, sorted({"tensorboard", "wandb"} & {name.split(".")[0] for name in sys.modules}))
"""


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """A process that trains with more and more mirrors; it has no network and says so when it is asked for."""
    command = [sys.executable, "-c", LOADED, str(tmp_path_factory.mktemp("runs"))]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)


def test_a_library_that_is_not_asked_for_is_not_imported(process):
    assert "LOADED off off []" in process.stdout
    assert "LOADED auto off ['tensorboard']" in process.stdout
    assert "LOADED auto offline ['tensorboard', 'wandb']" in process.stdout


def test_wandb_offline_asks_for_no_network_and_says_nothing(process):
    assert "NetworkUsed" not in process.stderr
    assert "wandb:" not in process.stdout + process.stderr


def test_a_library_that_is_asked_for_and_missing_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("shared.training.runs.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as refused:
        LoggingOptions(wandb="offline")
    assert refused.value.name == "wandb"
    assert not LoggingOptions().tensorboard_here, "auto does without"
