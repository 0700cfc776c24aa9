"""Real text as data: what trains and what is held out, whose vocabulary reads it, and what a checkpoint says of it."""

import json
from dataclasses import replace
from functools import partial
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from packages.text.documents import Corpus, Document, key, keys
from packages.text.vocabulary import EOS, PAD, UNK, Vocabulary
from projects.text.data import TextData
from projects.text.module import TextDiffusion
from projects.text.network import Trunk
from projects.text.options import Options
from projects.text.read import Known, Read
from projects.text.sources import opened, told
from shared.training.batches import Share, loader
from shared.training.errors import Mistake
from tests.lines import awake
from tests.text.corpora_made import articles, restaurants
from tests.text.trunks import SIZES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    restaurants(folder / "e2e.txt")
    restaurants(folder / "other.txt", names=("Fitz", "Wok"), mark="now")
    articles(folder / "tales.txt")
    articles(folder / "more.txt", seed=1, mark="again")
    return folder


def options(folder, file="e2e.txt", **more) -> Options:
    source = "text" if file in ("tales.txt", "more.txt") else "e2e"
    given = {"source": source, "path": str(folder / file), "cache_dir": str(folder / "cache"), "length": 16}
    if source == "text":
        given |= {"vocab_size": 300, "held_out_share": 0.25}
    return Options(**{**given, **more})


@pytest.fixture(scope="module")
def read(folder) -> Read:
    return opened(options(folder))


def data_of(folder, rank=0, world=1, file="e2e.txt", **more) -> TextData:
    data = TextData(batch_size=12, **vars(options(folder, file, **more)))
    data.trainer = SimpleNamespace(world_size=world, global_rank=rank, accumulate_grad_batches=1, global_step=0)
    return data


def taken(data, count):
    batches = iter(data.train_dataloader())
    return [next(batches) for _ in range(count)]


# --- what trains, what is held out


@pytest.mark.parametrize("file", ["e2e.txt", "tales.txt"])
def test_every_document_trains_or_is_held_out_and_no_group_does_both(folder, file):
    source = opened(options(folder, file))
    training, held_out = ({d.group for d in corpus} for corpus in (source.training, source.held_out))
    assert training and held_out and not training & held_out
    assert training | held_out == {d.group for d in source.corpus}


def test_no_row_of_a_validation_or_a_test_is_a_row_that_trains(read):
    training, held_out = (
        {tuple(row) for row in read.take(stream, np.arange(len(read.windows(stream)))).ids.tolist()}
        for stream in ("train", "test")
    )
    assert training and held_out and not training & held_out


def test_two_ranks_see_every_training_row_once_in_a_pass(folder):
    size = data_of(folder).source.size()
    updates = size // 12
    seen = [b.index for rank in (0, 1) for b in taken(data_of(folder, rank, 2), updates)]
    index = torch.cat(seen)
    assert len(set(index.tolist())) == len(index) == 12 * updates > size - 12 and int(index.max()) < size


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
def test_two_ranks_of_four_workers_each_see_every_training_row_once_in_a_pass(folder):
    """Batches that workers build are those of the process, so none of them replays another's stream."""
    seen = []
    for rank in (0, 1):
        data = data_of(folder, rank, 2)
        updates, order = data.source.size() // 12, data.train_dataloader().batches
        built = list(islice(loader(order, partial(data.sentences, "train"), workers=4), updates))
        for here, there in zip(taken(data, updates), built, strict=True):
            assert torch.equal(here.ids, there.ids) and torch.equal(here.index, there.index)
        seen += [batch.index for batch in built]
    assert len(torch.cat(seen)) == len(torch.cat(seen).unique()) == 12 * updates > data.source.size() - 12


def test_two_ranks_share_all_held_out_rows(folder):
    parts = [torch.cat([b.index for b in data_of(folder, rank, 2).test_dataloader()]) for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), torch.arange(len(data_of(folder).source.windows("test"))))


def test_validation_looks_all_over_the_held_out_text(folder):
    source = opened(options(folder, "tales.txt"))
    count = len(source.windows("test"))
    assert source.evaluated("val", 5)[-1] > 0.7 * count and len(source.evaluated("val", 5)) == 5
    assert source.evaluated("val", 10**6).tolist() == source.evaluated("test", 5).tolist() == list(range(count))


@pytest.mark.parametrize("file", ["e2e.txt", "tales.txt"])
def test_likelihood_is_measured_all_over_the_test_and_of_the_same_rows_on_any_number_of_ranks(folder, file):
    chosen, count = data_of(folder, file=file).measured(5), len(opened(options(folder, file)).windows("test"))
    assert len(set(chosen.tolist())) == 5 < count and chosen[-1] >= 0.6 * count
    parts = [torch.cat([b.index for b in data_of(folder, rank, 2, file).test_dataloader()]) for rank in (0, 1)]
    assert sorted(n for part in parts for n in set(part.tolist()) & {*chosen.tolist()}) == chosen.tolist()
    assert all(0 < len({*part.tolist()} & {*chosen.tolist()}) < 5 for part in parts)


def test_an_evaluation_measures_the_rows_that_are_chosen(folder):
    module = module_of(data_of(folder, file="tales.txt"))
    module.likelihood.sentences = 3
    module.on_test_start()
    assert module.evaluation.bound.chosen.tolist() == module.data.measured(3).tolist()


def test_vocabulary_entropy_and_shares_know_the_training_part_alone(folder, read):
    held_out = {d.group for d in read.held_out}
    changed = folder / "changed.txt"
    lines = [
        line.replace(" food in the", " fare in the") if document.group in held_out else line
        for line, document in zip((folder / "e2e.txt").read_text().splitlines(), read.corpus)
    ]
    changed.write_text("\n".join(lines) + "\n")
    other = opened(options(folder, "changed.txt"))
    assert other.corpus.sha256 != read.corpus.sha256 and other.vocabulary.sha256 == read.vocabulary.sha256
    assert other.entropy == read.entropy and np.array_equal(other.shares(), read.shares())
    assert other.sha256 == read.sha256 and UNK in other.take("test", np.arange(2)).ids


def test_a_held_out_text_that_trains_under_another_group_is_left_out_and_counted(folder, read):
    training, held_out = next(iter(read.training)).text, next(iter(read.held_out))
    twice = folder / "twice.txt"
    fields = next(line for line in (folder / "e2e.txt").read_text().splitlines() if held_out.text in line)
    twice.write_text((folder / "e2e.txt").read_text() + f"{fields.partition('||')[0]}||{training}\n")
    source = opened(options(folder, "twice.txt"))
    assert {d.text for d in source.held_out} == {d.text for d in read.held_out}
    assert "without 1 documents whose text trains" in source.describe()["source"]


# --- how it lies in rows


@pytest.mark.parametrize(("file", "packing"), [("e2e.txt", "eos_pad"), ("tales.txt", "concat"), ("e2e.txt", "none")])
def test_shares_of_ids_are_those_of_the_positions_that_count(folder, file, packing):
    source = opened(options(folder, file, packing=packing))
    rows = source.take("train", np.arange(source.size()))
    drawn = np.bincount(rows.ids[rows.valid], minlength=len(source.vocabulary)) / rows.valid.sum()
    assert source.shares().sum() == pytest.approx(1) and np.abs(source.shares() - drawn).max() < 0.002


def test_e2e_is_padded_words_and_articles_are_joined_pieces(folder, read):
    tales = opened(options(folder, "tales.txt"))
    assert isinstance(read.vocabulary, Vocabulary) and (read.packing.kind, tales.packing.kind) == ("eos_pad", "concat")
    row = read.take("train", np.array([0])).ids[0].tolist()
    text = next(iter(read.training)).text.split()
    assert read.vocabulary.words(row[: len(text)]) == text and set(row[len(text) + 1 :]) == {PAD}
    assert row[len(text)] == EOS and not (tales.take("train", np.arange(9)).ids == PAD).any()
    assert "the" in tales.joined(tales.vocabulary.words(tales.take("train", np.array([1])).ids[0]))


def test_pieces_are_counted_by_the_words_they_make(folder, read):
    tales = opened(options(folder, "tales.txt"))
    words = sum(len(document.text.split()) + 1 for document in tales.held_out)
    pieces = sum(len(tales.vocabulary.encode(document.text)) + 1 for document in tales.held_out)
    assert tales.tokens_per_word == pytest.approx(pieces / words) and pieces > words
    assert read.tokens_per_word == opened(options(folder, packing="none")).tokens_per_word == 1


def test_rows_of_a_parquet_file_are_read_by_the_name_of_their_column(folder):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    texts = [document.text for document in opened(options(folder)).corpus]
    parquet.write_table(pyarrow.table({"said": texts}), folder / "rows.parquet")
    given = {"source": "parquet", "column": "said", "sample_by": "line", "tokenizer": "words"}
    source = opened(options(folder, "rows.parquet", **given))
    assert [d.text for d in source.corpus] == texts and source.packing.kind == "eos_pad"
    with pytest.raises(ValueError, match="has no column 'text'; name one of said"):
        opened(options(folder, "rows.parquet", **{**given, "column": "text"})).describe()


def test_a_line_is_a_sentence_where_it_is_asked_for(folder):
    assert opened(options(folder, "tales.txt", sample_by="line")).packing.kind == "eos_pad"


def module_of(data: TextData) -> TextDiffusion:
    torch.manual_seed(0)
    module = TextDiffusion(network=Trunk(**SIZES))
    module.adopt(data, None)
    module.configure_model()
    awake(module.network)
    return module.eval()


def test_what_stands_in_padding_that_does_not_count_changes_nothing_by_a_bit(folder):
    """Losses, logits of valid positions and units of packing none, whatever the padding holds."""
    module = module_of(data_of(folder, packing="none"))
    batch = module.data.sentences("train", Share.of(range(8)))
    assert not batch.valid.all() and batch.num_units == int(batch.valid.sum()) and batch.mask is batch.valid
    seen = []
    for fill in (PAD, 9):
        ids = torch.where(batch.valid, batch.ids, fill)
        noisy = module.network.rows(batch.ids) + torch.randn(1, generator=torch.Generator().manual_seed(1))
        noisy = torch.where(batch.valid.unsqueeze(-1), noisy, float(fill))
        logits = module.network(noisy, torch.full((8,), 0.5), None, batch.mask)[batch.valid]
        rng = [torch.Generator().manual_seed(n) for n in range(8)]
        losses = module.objective.loss(module, replace(batch, ids=ids), torch.linspace(0.2, 0.8, 8), rng)
        seen.append((logits, losses.total, losses.ce, losses.accuracy))
    assert all(torch.equal(one, other) for one, other in zip(*seen))


def test_tokens_of_ragged_rows_weigh_the_same_in_any_share(folder):
    """Every rank divides by the tokens of the whole update."""
    whole = taken(data_of(folder, packing="none"), 1)[0]
    parts = [taken(data_of(folder, rank, 2, packing="none"), 1)[0] for rank in (0, 1)]
    assert {part.global_units for part in parts} == {whole.global_units} == {int(whole.valid.sum())}
    assert sum(part.num_units for part in parts) == whole.global_units


@pytest.mark.parametrize("shards", [1, 3, 4])
def test_the_loss_of_ragged_rows_is_the_mean_over_tokens_however_they_are_cut(folder, shards, monkeypatch):
    """Of an update in one, and of micro-batches with more and fewer tokens, as their gradients are averaged."""
    data = data_of(folder, packing="none")
    data.trainer.accumulate_grad_batches = shards
    module, parts, seen = module_of(data), taken(data, shards), []
    module.randomness, module.network.belief = replace(module.randomness, mode="sample"), None
    loss = module.objective.loss
    monkeypatch.setattr(module.objective, "loss", lambda *given: seen.append(loss(*given)) or seen[-1], raising=False)
    steps = [float(module.training_step(part, 0)["loss"].detach()) for part in parts]
    nats = sum(float(losses.total.detach().sum()) for losses in seen)
    assert sum(steps) / shards == pytest.approx(nats / sum(part.num_units for part in parts), rel=1e-5)
    assert len({part.num_units for part in parts}) > (shards > 1)


def test_sentences_without_modelled_padding_are_drawn_in_lengths_of_training(folder):
    module = module_of(data_of(folder, packing="none"))
    module.sampling.steps, masks = 2, []
    hook = module.network.register_forward_pre_hook(lambda net, given: masks.append(given[3]))
    drawn, lengths = module.walked([3, 4]), module.data.source.lengths([3, 4])
    hook.remove()
    assert len(masks) == 2 and all(mask.sum(1).tolist() == lengths.tolist() for mask in masks)
    assert (drawn.ids[0, lengths[0] :] == PAD).all() and lengths.tolist() == module.data.source.lengths([3, 4]).tolist()
    many = np.bincount(module.data.source.lengths(range(2000)), minlength=17) / 2000
    trained = np.array(module.data.source.facts.lengths) / module.data.source.size()
    assert np.abs(many - trained).max() < 0.05
    alone = module.walked([4])
    assert torch.equal(alone.ids[0], drawn.ids[1])


# --- what a checkpoint says of it


def kept(source) -> dict:
    """As a file holds it."""
    return json.loads(json.dumps(told(source)))


@pytest.mark.parametrize(("file", "another"), [("e2e.txt", "other.txt"), ("tales.txt", "more.txt")])
def test_another_file_is_read_as_the_text_that_trained_and_all_of_it_is_held_out(folder, file, another):
    trained = opened(options(folder, file))
    other = opened(options(folder, another), kept(trained))
    assert other.vocabulary.sha256 == trained.vocabulary.sha256 and other.entropy == trained.entropy
    assert np.array_equal(other.shares(), trained.shares())
    assert {d.text for d in other.held_out} == {d.text for d in other.corpus}
    assert "nothing trained CKPT" in other.describe()["source"] and "training" not in other.describe()
    assert other.floors(8)["true"]["unigram_kl"].value > 0


def test_the_file_that_trained_is_held_out_as_in_training(folder, read):
    again = opened(options(folder), kept(read))
    assert again.held_out.facts == read.held_out.facts and again.describe()["sha256"] == read.describe()["sha256"]


def test_a_document_that_trained_is_never_evaluated(folder, read):
    mixed = folder / "mixed.txt"
    mixed.write_text((folder / "e2e.txt").read_text() + (folder / "other.txt").read_text())
    found = opened(options(folder, "mixed.txt"), kept(read))
    trained = keys(read.training)
    assert {d.text for d in found.held_out} == {
        d.text for d in found.corpus if d.group not in trained and key(d.text) not in trained
    }
    left = sum(d.group in trained for d in found.corpus)
    assert left > 0 and f"{left} documents trained CKPT and are left out" in found.describe()["source"]
    with pytest.raises(ValueError, match=r"all \d+ documents of e2e:trained.txt were seen in training; evaluate"):
        trained_only = folder / "trained.txt"
        lines = (folder / "e2e.txt").read_text().splitlines()
        trained_only.write_text("\n".join(x for x, d in zip(lines, read.corpus) if d.group in trained) + "\n")
        _ = opened(options(folder, "trained.txt"), kept(read)).held_out


def test_training_goes_on_with_its_own_text_or_as_an_adaptation(folder, read):
    with pytest.raises(ValueError, match=r"CKPT was trained on e2e:e2e.txt \(\w{12}\), the data is e2e:other.txt"):
        opened(options(folder, "other.txt"), kept(read)).take("train", np.arange(2))
    same = opened(options(folder), kept(read))
    assert np.array_equal(same.take("train", np.arange(9)).ids, read.take("train", np.arange(9)).ids)
    adapted = opened(options(folder, "other.txt"), kept(read), base=True)
    assert adapted.vocabulary.sha256 == read.vocabulary.sha256 and len(adapted.take("train", np.arange(2)).ids) == 2
    assert set(read.facts.seen) < set(adapted.facts.seen)
    assert not {d.group for d in adapted.held_out} & {d.group for d in adapted.training}


def test_data_of_twins_is_told_apart_by_text_vocabulary_and_packing(folder, read):
    same = [opened(options(folder)), opened(options(folder, packing="eos_pad", held_out_share=0.1))]
    others = [options(folder, "other.txt"), options(folder, length=24), options(folder, packing="none")]
    assert {source.describe()["sha256"] for source in same} == {read.sha256}
    assert len({read.sha256, *(opened(each).sha256 for each in others)}) == 4


@pytest.mark.parametrize("mine", ["grammar", "e2e.txt"])
def test_a_checkpoint_of_another_vocabulary_is_refused(folder, read, mine):
    grammar = Options(level="micro")
    ours, theirs = (grammar, read) if mine == "grammar" else (options(folder), opened(grammar))
    with pytest.raises(Mistake, match=r"CKPT was trained on vocabulary \w{12} of \d+ ids, the data has \w{12} of"):
        opened(ours, kept(theirs))


def test_a_tokenizer_that_is_named_must_be_that_of_the_checkpoint(folder):
    tales = opened(options(folder, "tales.txt"))
    file = opened(options(folder, "more.txt")).vocabulary.save(folder / "more" / "tokenizer.json")
    with pytest.raises(Mistake, match="CKPT was trained on vocabulary"):
        opened(options(folder, "tales.txt", tokenizer=str(file), vocab_size=None), kept(tales))
    own = tales.vocabulary.save(folder / "own" / "tokenizer.json")
    opened(options(folder, "more.txt", tokenizer=str(own), vocab_size=None), kept(tales))


def test_a_corpus_of_too_many_documents_is_judged_by_its_held_out_side(folder, read, monkeypatch):
    monkeypatch.setattr("projects.text.read.REMEMBERED", 3)
    many = opened(options(folder))
    assert many.facts.seen is None and {d.group for d in many.held_out} == {d.group for d in read.held_out}


# --- what is refused


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"path": "nowhere.txt"}, "nowhere.txt is no file, folder or glob"),
        ({"path": None}, "the source e2e has no path; set it"),
        ({"length": 4}, "are longer than a window of 4 tokens"),
        ({"held_out_share": 1.0}, r"data.held_out_share is 1.0; give a share between 0 and 1"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_sentence(folder, more, words):
    with pytest.raises(ValueError, match=words):
        opened(options(folder, **more)).describe()


def test_rows_of_the_grammar_are_padded():
    with pytest.raises(ValueError, match=r"data\.packing is concat; rows of the grammar are eos_pad"):
        opened(Options(packing="concat"))


def test_a_sentence_is_read_as_the_text_that_trained(folder, read):
    """The same vocabulary, and nothing put in or left out on either way."""
    tales = opened(options(folder, "tales.txt", sample_by="line", packing="eos_pad", length=24))
    for source in (read, tales):
        text = next(iter(source.training)).text
        assert source.row(text) == source.take("train", np.array([0])).ids[0].tolist()
        assert source.vocabulary.decode(source.row(text), clean=True).split() == text.split()


def test_a_sentence_of_words_becomes_a_row(folder, read):
    assert read.row("Aromi serves")[2:4] == [EOS, PAD]
    with pytest.raises(Mistake, match="The word 'quark' is not in the vocabulary"):
        read.row("quark")
    tales = opened(options(folder, "tales.txt"))
    assert PAD not in tales.row("the fox") and tales.row("the fox").count(EOS) > 1


def test_known_is_all_that_a_checkpoint_keeps(read):
    assert Known(**kept(read)["corpus"]) == read.facts


def test_documents_of_a_stream_are_counted_as_they_come():
    """A stream is never walked to be hashed."""
    walked = []

    def walk():
        walked.append(1)
        yield Document("a", key("a"))

    assert Corpus("stream", walk, "parquet 0 1").sha256 and not walked
