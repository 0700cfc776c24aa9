"""The line `text` on real text: the same command for any file of a kind, and a checkpoint that reads another one."""

import json
import shutil
from pathlib import Path

import pytest

from projects.text import made
from projects.text.data import TextData
from shared.training import checkpoints
from tests.lines import ROOT, SHORT, Line
from tests.text.corpora_made import articles, restaurants

pytestmark = [
    pytest.mark.usefixtures("at_home"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
TEXT = Line("text")
KINDS = {
    "e2e": (restaurants, {"names": ("Fitz", "Wok", "Quay", "Ocean"), "mark": "now"}, []),
    "wikitext2": (articles, {"seed": 1, "mark": "again"}, ["--data.vocab_size=300", "--data.held_out_share=0.25"]),
}


def fit(overlay: str, folder: Path, *more: str) -> None:
    """Eight updates on the file `one.txt` of a folder."""
    _, _, own = KINDS[overlay]
    arguments = TEXT.fit(folder, overlay, f"--config=configs/text/{overlay}.yaml", *SHORT, *own, *more)
    TEXT.run(*arguments, f"--data.path={folder}/one.txt", f"--data.cache_dir={folder}/cache", "--data.length=16",
             "--data.batch_size=16", "--data.micro_batch=16", "--data.held_out=8",
             "--model.likelihood.sentences=8", "--model.likelihood.levels=2")  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
    """(overlay, folder of files and runs, run)"""
    folder, (make, another, _) = tmp_path_factory.mktemp(request.param), KINDS[request.param]
    make(folder / "one.txt")
    make(folder / "two.txt", **another)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        fit(request.param, folder)
    return request.param, folder, TEXT.folder(folder) / request.param


def test_a_run_of_real_text_reports_what_is_there_and_no_parse(trained):
    _, _, run = trained
    said = json.loads((run / "report.json").read_text())
    names = {metric["name"] for metric in said["metrics"]}
    assert {"unigram_kl", "bigram_kl", "distinct_2", "repeat_3", "self_bleu", "special", "cross_entropy"} <= names
    assert "parse" not in names and "parse" not in (run / "metrics.csv").read_text()
    assert "training" in said["data"] and (run / "samples/8/samples.txt").exists()
    assert {name for name in ("lengths.png", "ngrams.png") if (run / "samples" / name).exists()} >= {"ngrams.png"}


def test_the_checkpoint_evaluates_all_of_another_file_with_its_own_vocabulary(trained):
    _, folder, run = trained
    shutil.rmtree(folder / "cache")  # a tokenizer that lay there is not needed
    (folder / "one.txt").rename(folder / "away.txt")
    try:
        TEXT.run("test", f"--ckpt_path={run}", f"--data.path={folder}/two.txt")
    finally:
        (folder / "away.txt").rename(folder / "one.txt")
    said = json.loads((run / "report.json").read_text())
    kept = checkpoints.read(run)
    other = TextData(source=kept["palimpsest"]["config"]["data"]["source"], path=f"{folder}/two.txt", length=16,
                     cache_dir=f"{folder}/cache")  # fmt: skip
    other.adopt(kept)
    rows = len(other.source.windows("test"))
    assert other.source.held_out.facts == other.source.corpus.facts
    assert other.vocabulary.sha256 == kept["vocabulary"]["sha256"]
    assert {m["name"]: m["n"] for m in said["metrics"]}["cross_entropy"] == rows
    assert "two.txt" in said["facts"]["evaluated on"]


def test_an_export_takes_the_vocabulary_along(trained, tmp_path):
    _, _, run = trained
    TEXT.run("export", f"--ckpt_path={run}", f"--export.out={tmp_path}/export")
    exported, kept = checkpoints.read(tmp_path / "export"), checkpoints.read(run)
    assert exported["vocabulary"] == kept["vocabulary"] and exported["corpus"] == kept["corpus"]


def test_a_run_goes_on_with_its_own_file_only(trained, capsys):
    overlay, folder, run = trained
    more = ("--run.resume=true", "--trainer.max_steps=10")
    with pytest.raises(SystemExit):
        TEXT.run(*TEXT.fit(folder, overlay, *more, f"--data.path={folder}/two.txt"))
    assert "CKPT was trained on" in capsys.readouterr().err
    fit(overlay, folder, *more)
    assert json.loads((run / "manifest.json").read_text())["finished"]["update"] == 10


def test_adapters_learn_another_file_in_the_words_of_their_base(trained):
    _, folder, run = trained
    TEXT.run("finetune", f"--ckpt_path={run}", f"--data.path={folder}/two.txt", "--run.name=adapted",
             "--trainer.max_steps=2", "--run.validate_every=2", "--snapshots.every=2", "--data.held_out_share=0.25",
             f"--run.root={folder}")  # fmt: skip
    adapted = checkpoints.read(TEXT.folder(folder, "nano-lora") / "adapted")
    base = checkpoints.read(run)
    assert adapted["vocabulary"] == base["vocabulary"] and "two.txt" in adapted["corpus"]["name"]
    assert set(base["corpus"]["seen"]) < set(adapted["corpus"]["seen"])


def test_statistics_of_a_file_are_said_and_written(trained, tmp_path, capsys):
    overlay, folder, _ = trained
    TEXT.run("statistics", *TEXT.arguments, f"--config=configs/text/{overlay}.yaml", *KINDS[overlay][2],
             f"--data.path={folder}/one.txt", f"--data.cache_dir={folder}/cache",
             f"--statistics.out={tmp_path}")  # fmt: skip
    words = sum(len(line.rpartition("||")[2].split()) for line in (folder / "one.txt").read_text().splitlines())
    said = capsys.readouterr().out
    assert f" {words:,} words" in said and "Budget of" in said
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".md", ".png"}


def test_statistics_of_the_grammar_are_its_exact_ones_and_its_floors(capsys, monkeypatch):
    monkeypatch.setattr(made, "NOVELTY_WINDOW", 50)
    TEXT.run("statistics", *TEXT.arguments, "--statistics.count=50")
    said = capsys.readouterr().out
    assert "nats per sentence" in said and "novel " in said and "length_tv" in said
