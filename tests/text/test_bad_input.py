"""A user's mistake with a text costs one sentence, before anything is written: what was seen, wanted, to be done."""

import sys

import pytest
import torch

from packages.text import corpora
from projects.text.module import TextDiffusion
from shared.training import checkpoints
from shared.training.errors import EXIT_CODE
from tests.lines import Line
from tests.text.corpora_made import articles, restaurants

pytestmark = [
    pytest.mark.usefixtures("at_home"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
TEXT = Line("text")
E2E = ("--data.source=e2e", "--data.path=DIR/e2e.txt", "--data.length=16", "--data.cache_dir=DIR/cache")
TALES = ("--data.source=text", "--data.cache_dir=DIR/cache", "--data.length=16", "--data.vocab_size=300")
CASES = {
    "objective": (["--model.objective=cross_entrpy"], "Did you mean `cross_entropy`?"),
    "sampler": (["--sampling.kind=ddmp"], "Did you mean `ddpm`?"),
    "level": (["--data.level=smal"], "Did you mean `small`?"),
    "packing": (["--data.packing=concta"], "wanted one of 'eos_pad', 'concat', 'none'. Did you mean `concat`?"),
    "steps": (["--sampling.steps=0"], "sampling.steps is 0; it must be at least 1."),
    "levels of the bound": (["--model.likelihood.levels=0"], "model.likelihood.levels is 0; give 1 or more."),
    "nothing held out": (["--data.held_out=0"], "data.held_out is 0; give 1 or more."),
    "length": ([*E2E, "--data.length=1"], "data.length is 1; give 2 or more."),
    "length of the grammar": (["--data.length=5"], "sentences of micro have up to 14 words and EOS; give 15 or more"),
    "fewer ids than bytes": ([*TALES, "--data.path=DIR/tales.txt", "--data.vocab_size=100"],
                             "vocab_size is 100; bytes and specials alone are 261, ask for that or more"),
    "fewer ids than words": ([*E2E, "--data.vocab_size=9"], "a larger vocabulary is never truncated to UNK: ask for"),
    "no frequent word": ([*E2E, "--data.min_count=9999"], "occurs 9999 times, so the vocabulary is empty; set a lower"),
    "shorter than a window": ([*TALES, "--data.path=DIR/tales.txt", "--data.length=9000"],
                              "tokens, less than a window of 9000; give more text or less length"),
    "one group": ([*TALES, "--data.path=DIR/short.txt"], "which no split cuts; give a larger corpus, or smaller"),
    "longer than every window": ([*E2E, "--data.length=3"], "are longer than a window of 3 tokens (the shortest has"),
    "empty": ([*TALES, "--data.path=DIR/empty.txt"], "empty.txt is empty; give a file with text in it"),
    "not UTF-8": ([*E2E, "--data.path=DIR/latin.txt"], "latin.txt is not UTF-8: byte 0xe9 at offset 13; convert it"),
    "no fields": ([*E2E, "--data.path=DIR/tales.txt"], "tales.txt, line 1: ' = Tale 0 of 0 = '; wanted `name : value"),
    "no pairs": ([*TALES, "--data.conditional=true", "--data.path=DIR/tales.txt"],
                 "line 1: one of the two texts of a pair is missing; wanted `given||text`, or a tab between"),
    "pairs of the grammar": (["--data.conditional=true"], "sentences of the grammar have nothing given; set"),
    "no file": ([*E2E, "--data.path=DIR/none.txt"], "none.txt is no file, folder or glob that finds one; give"),
    "no path": (["--data.source=e2e"], "the source e2e has no path; set it"),
    "no name": (["--data.source=hub"], "the source hub has no dataset_name; set it"),
    "no tokenizer": ([*TALES, "--data.path=DIR/tales.txt", "--data.tokenizer=DIR/none.json"],
                     "none.json' is neither a file or folder here nor to be had from the hub"),
    "elbo of free rows": (["--model.objective=elbo", "--model.embedding.norm=free"],
                          "set model.embedding.radius, or norm sphere"),
    "batch of two ranks": (["--data.batch_size=15", "--trainer.devices=2", "--trainer.strategy=ddp"],
                           "Global batch 15 does not split over 2 "),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    restaurants(folder / "e2e.txt")
    restaurants(folder / "part.txt", names=("Aromi",))
    restaurants(folder / "other.txt", names=("Fitz", "Wok"))
    articles(folder / "tales.txt")
    (folder / "empty.txt").write_text("\n \n")
    (folder / "short.txt").write_text("only a few words .\n")
    (folder / "latin.txt").write_bytes("name : A||caf\xe9\n".encode("latin1"))
    return folder


def sentence(capsys, verb, *flags):
    """What the command says as it ends with the exit code of a mistake: one line on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        TEXT.run(verb, *flags)
    said = capsys.readouterr().err.splitlines()
    assert ended.value.code == EXIT_CODE and len(said) == 1, said
    return said[0]


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_sentence_and_leaves_no_run(name, files, tmp_path, capsys):
    given, words = CASES[name]
    flags = [flag.replace("DIR", str(files)) for flag in given]
    assert words in sentence(capsys, *TEXT.fit(tmp_path, "run", *flags))
    assert not TEXT.folder(tmp_path).exists()


def test_a_source_of_tables_without_its_library_names_the_line_that_installs_it(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (files / "rows.parquet").touch()
    given = ["--data.source=parquet", f"--data.path={files}/rows.parquet"]
    said = sentence(capsys, *TEXT.fit(tmp_path, "run", *given))
    assert "needs the package datasets" in said and "`make setup`, or `pip install datasets`" in said


def test_a_hub_that_is_not_reached_names_the_way_round(tmp_path, capsys, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def nowhere(*args, **more):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets, "load_dataset", nowhere)
    given = ["--data.source=hub", "--data.dataset_name=some/text"]
    said = sentence(capsys, *TEXT.fit(tmp_path, "run", *given))
    assert "hub:some/text train is not to be had (no route to the hub); fetch it where there is a network" in said


def test_an_unknown_source_of_the_package_names_the_nearest_first():
    with pytest.raises(ValueError, match="unknown source 'e2'; wanted one of e2e, "):
        corpora.Source("e2")


@pytest.fixture(scope="module")
def run(files, tmp_path_factory, request):
    """A finished run of two updates on e2e.txt."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        more = [flag.replace("DIR", str(files)) for flag in E2E]
        TEXT.run(*TEXT.fit(root, "run", *more, "--trainer.max_steps=2", "--run.test_after_fit=false"))
    return TEXT.folder(root) / "run"


BESIDE = {
    "another vocabulary": ("test", ["--data.source=grammar"], "CKPT was trained on vocabulary"),
    "all of it trained": ("test", ["--data.path=DIR/trained.txt"], "were seen in training; evaluate others"),
    "too few ids": ("test", ["--data.vocab_size=9"], "a larger vocabulary is never truncated to UNK"),
    "shorter rows": ("test", ["--data.length=3"], "holds another architecture: network.place.weight is"),
    "an unknown word": ("denoise", ["--denoise.text=quark"], "The word 'quark' is not in the vocabulary"),
    "too many words": ("denoise", [f"--denoise.text={'the ' * 16}"], "has 16 words, a row holds 15 and EOS"),
    "no steps": ("sample", ["--sampling.steps=0"], "sampling.steps is 0; it must be at least 1."),
    "a twin that is not there": ("goals", ["--goals.vs=DIR/none"], "none"),
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_mistake_beside_a_run_is_one_sentence(name, run, files, capsys):
    verb, given, words = BESIDE[name]
    if name == "all of it trained":
        seen = set(checkpoints.read(run)["corpus"]["seen"])
        read = corpora.read(corpora.Source("e2e", path=str(files / "e2e.txt")))
        lines = (files / "e2e.txt").read_text().splitlines()
        (files / "trained.txt").write_text("\n".join(x for x, d in zip(lines, read) if d.group in seen) + "\n")
    flags = [flag.replace("DIR", str(files)) for flag in given]
    assert words in sentence(capsys, verb, f"--ckpt_path={run}", *flags)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_batch(tmp_path, capsys, monkeypatch):
    plain = TextDiffusion.training_step

    def broken(module, batch, index):
        found = plain(module, batch, index)
        return {**found, "loss": found["loss"] * torch.nan}

    monkeypatch.setattr(TextDiffusion, "training_step", broken)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        TEXT.run(*TEXT.fit(tmp_path, "run", "--run.test_after_fit=false"))
    said = capsys.readouterr().err
    assert ended.value.code == EXIT_CODE and "Traceback" not in said and "not finite" in said
    (kept,) = (TEXT.folder(tmp_path) / "run").glob("nonfinite-*.pt")
    (batch,) = torch.load(kept, weights_only=False)["ranks"][0]["batches"]
    assert batch["ids"].shape == (16, 16)
