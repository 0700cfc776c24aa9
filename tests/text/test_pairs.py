"""Conditional pairs: what is given never changes, is never paid for, and is said or not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from packages.text import control
from packages.text.bleu import against_references
from packages.text.corpora import Source, read
from packages.text.documents import Document, keys
from packages.text.vocabulary import EOS, PAD
from projects.text.data import TextData
from projects.text.module import TextDiffusion
from projects.text.network import Trunk
from projects.text.options import Options
from projects.text.sampling import Sampling
from projects.text.sources import opened, told
from shared.training.batches import Share
from tests.lines import awake
from tests.text.corpora_made import restaurants
from tests.text.trunks import SIZES

OBJECTIVES = ["cross_entropy", "diffusion_lm", "elbo", "masked", "autoregressive"]
KINDS = ["ddpm", "ddim", "multistep", "heun", "recorrupt", "switched"]
LENGTH = 28


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    restaurants(folder / "e2e.txt")
    restaurants(folder / "other.txt", names=("Fitz", "Wok"))
    return folder


def options(folder, file="e2e.txt", **more) -> dict:
    given = {"source": "e2e", "path": str(folder / file), "cache_dir": str(folder / "cache"), "length": LENGTH}
    return {**given, "conditional": True, **more}


def data_of(folder, rank=0, world=1, **more) -> TextData:
    data = TextData(batch_size=12, **options(folder, **more))
    data.trainer = SimpleNamespace(world_size=world, global_rank=rank, accumulate_grad_batches=1, global_step=0)
    return data


def module_of(folder, objective="cross_entropy") -> TextDiffusion:
    torch.manual_seed(0)
    module = TextDiffusion(objective=objective, network=Trunk(**SIZES))
    module.adopt(data_of(folder), None)
    module.configure_model()
    awake(module.network)
    module.sampling = Sampling(steps=3)
    return module.eval()


@pytest.fixture(scope="module", params=OBJECTIVES)
def module(request, folder):
    return module_of(folder, request.param)


def batch_of(module, count=6):
    return module.data.sentences("train", Share.of(range(count)))


def generators(count, seed=0):
    return [torch.Generator().manual_seed(seed + n) for n in range(count)]


# --- rows


def test_a_row_is_what_is_given_then_the_text_and_the_text_alone_counts(folder):
    source = opened(Options(**options(folder)))
    documents, rows = list(source.training), source.take("train", np.arange(source.size()))
    assert len(documents) == source.size()
    for document, ids, valid, known in zip(documents, *rows, strict=True):
        assert source.vocabulary.words(ids[known]) == [*document.given.split(), "[EOS]"] and valid.all()
        text = ids[~known].tolist()
        end = text.index(EOS)
        assert source.vocabulary.words(text[:end]) == document.text.split() and set(text[end + 1 :]) == {PAD}


@pytest.mark.parametrize("mark", ["\t", "||"])
def test_lines_of_pairs_are_read_with_either_mark_and_what_is_given_makes_the_group(tmp_path, mark):
    file = tmp_path / "pairs.txt"
    file.write_text(f"one two{mark}a b\nthree{mark}c\none two{mark}d\n")
    found = list(read(Source("pairs", path=str(file))))
    assert [(each.given, each.text) for each in found] == [("one two", "a b"), ("three", "c"), ("one two", "d")]
    assert found[0].group == found[2].group != found[1].group
    file.write_text("one two three\n")
    with pytest.raises(ValueError, match=r"pairs.txt, line 1: one of the two texts of a pair is missing; wanted"):
        list(read(Source("pairs", path=str(file))))


def test_text_and_parquet_are_pairs_where_it_is_asked_for(folder):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    pairs = [(each.given, each.text) for each in opened(Options(**options(folder))).corpus]
    (folder / "pairs.txt").write_text("".join("\t".join(pair) + "\n" for pair in pairs))
    table = pyarrow.table({"fields": [given for given, _ in pairs], "said": [text for _, text in pairs]})
    parquet.write_table(table, folder / "pairs.parquet")
    by_words = {"tokenizer": "words"}
    of_lines = opened(Options(**options(folder, "pairs.txt", source="text", **by_words)))
    rows = {"source": "parquet", "column": "said", "given_column": "fields", **by_words}
    of_rows = opened(Options(**options(folder, "pairs.parquet", **rows)))
    for source in (of_lines, of_rows):
        assert [(each.given, each.text) for each in source.corpus] == pairs
        assert not {d.group for d in source.training} & {d.group for d in source.held_out}
        assert len(source.take("train", np.arange(3)).known) == 3


def test_words_of_what_is_given_are_words_of_the_vocabulary_and_no_share_of_what_is_learnt(folder):
    source = opened(Options(**options(folder)))
    number = source.vocabulary.encode("area")[0]  # stands in every text of the first kind and in all fields
    assert source.vocabulary.unknown("| :") == []
    rows = source.take("train", np.arange(source.size()))
    counted = rows.valid & ~rows.known
    drawn = np.bincount(rows.ids[counted], minlength=len(source.vocabulary)) / counted.sum()
    assert source.shares().sum() == pytest.approx(1) and np.abs(source.shares() - drawn).max() < 1e-6
    assert source.shares()[source.vocabulary.encode("|")[0]] == 0 < source.shares()[number]
    assert source.tokens_per_word == 1


def test_an_update_divides_by_the_tokens_that_are_learnt_on_any_number_of_ranks(folder):
    whole = next(iter(data_of(folder).train_dataloader()))
    parts = [next(iter(data_of(folder, rank, 2).train_dataloader())) for rank in (0, 1)]
    assert {part.global_units for part in parts} == {whole.global_units} == {int(whole.counted.sum())}
    assert sum(int(part.counted.sum()) for part in parts) == whole.global_units < whole.ids.numel()
    judged = next(iter(data_of(folder).test_dataloader()))
    assert judged.global_units == int(judged.counted.sum())


# --- learning: what is given enters clean and costs nothing


def noisy_where_given(module, batch):
    """A hook that moves what the network says where tokens are given."""

    def moved(net, inputs, output):
        where = batch.known[: len(output)].unsqueeze(-1)
        return torch.where(where, output + 100 * torch.randn(output.shape), output)

    return module.network.register_forward_hook(moved)


def test_the_loss_and_the_bound_do_not_depend_by_a_bit_on_what_is_said_where_tokens_are_given(module):
    batch, found = batch_of(module), []
    for moved in (False, True):
        hook = noisy_where_given(module, batch) if moved else None
        losses = module.objective.loss(module, batch, torch.linspace(0.1, 0.9, 6), generators(6))
        nats = module.objective.nats(module, batch, generators(6, 9), 4)
        found.append((losses.total, losses.ce, losses.accuracy, nats))
        if hook:
            hook.remove()
    assert all(torch.equal(one, other) for one, other in zip(*found))


def test_the_network_sees_what_is_given_clean_at_every_level(module):
    batch, seen = batch_of(module), []
    hook = module.network.register_forward_pre_hook(lambda net, inputs: seen.append((inputs[0], inputs[2])))
    module.objective.loss(module, batch, torch.linspace(0.1, 0.9, 6), generators(6))
    module.objective.nats(module, batch, generators(6), 2)
    hook.remove()
    x0 = module.network.rows(batch.ids)
    for x, belief in seen:
        if module.objective.exact:
            x = x.roll(-1, 1)  # BOS stands before it
        for part in (x, belief):
            if part is not None:
                known = batch.known[: len(part)]
                assert torch.equal(part[known], x0[: len(part)][known])


def test_nats_are_those_of_the_text_given_the_rest(folder):
    """By the chain rule: of the whole row less those of what is given."""
    module = module_of(folder, "autoregressive")
    batch = batch_of(module)
    given = batch.known.clone()
    conditional = module.objective.nats(module, batch, None, 1)
    batch.known[:] = False
    whole = module.objective.nats(module, batch, None, 1)
    batch.known[:] = ~given
    first = module.objective.nats(module, batch, None, 1)
    torch.testing.assert_close(conditional, whole - first)


# --- walks


def walked(module, seeds, seen, **more):
    """The ids that were drawn; seen gets x before the walk, and behind every step."""

    def through(walk):
        def step(x, belief, t, s):
            seen.append(x)
            return walk.step(x, belief, t, s)

        return walk._replace(step=step)

    return module.walked(seeds, Sampling(steps=3, **more), through).ids


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_given_stands_clean_at_every_step_of_every_walk(folder, kind):
    module, seen, asked = module_of(folder), [], []
    ids, known = module.data.given([0, 1, 2])
    x0 = module.network.rows(ids)
    hook = module.network.register_forward_pre_hook(lambda net, inputs: asked.append(inputs[0::2]))
    more = {"clamp": "nearest", "clamp_start": 0.0, "score_temperature": 0.9} if kind == "ddpm" else {}
    drawn = walked(module, [0, 1, 2], seen, kind=kind, **more)
    hook.remove()
    assert len(seen) == 3 and len(asked) >= 3 and known.any()
    assert all(torch.equal(x[known], x0[known]) for x in [*seen, *(x for x, _ in asked)])
    heard = [belief for _, belief in asked if belief.any()]
    assert heard and all(torch.equal(belief[known], x0[known]) for belief in heard)
    assert torch.equal(drawn[known], ids[known]) and not torch.equal(drawn[~known], ids[~known])


@pytest.mark.parametrize("objective", ["masked", "autoregressive", "diffusion_lm"])
def test_twins_keep_what_is_given(folder, objective):
    module, seen = module_of(folder, objective), []
    ids, known = module.data.given([0, 1, 2])
    drawn = walked(module, [0, 1, 2], seen)
    assert all(torch.equal(x[known], module.network.rows(ids)[known]) for x in seen)
    assert torch.equal(drawn[known], ids[known]) and not torch.equal(drawn[~known], ids[~known])


def test_other_noise_changes_the_text_and_not_what_is_given(folder):
    module = module_of(folder)
    groups = len(module.data.source._asked.groups)
    one, other = (walked(module, [n, n + 1], []) for n in (0, groups))
    _, known = module.data.given([0, 1])
    assert torch.equal(one[known], other[known]) and not torch.equal(one[~known], other[~known])


def test_sentences_are_drawn_for_each_held_out_group_in_turn_in_any_company(folder):
    module = module_of(folder)
    source = module.data.source
    groups = [given for _, given in sorted({(document.group, document.given) for document in source.held_out})]
    rows = module.words(module.walked(list(range(len(groups) + 1))).ids)
    given = [" ".join(row[: row.index("[EOS]")]) for row in rows]
    assert len(groups) > 1 and given == [*groups, groups[0]]
    assert source.said(rows[0]) == rows[0][rows[0].index("[EOS]") + 1 :]
    assert module.words(module.walked([1]).ids)[0] == rows[1]


# --- whether it was said


def test_bleu_is_that_of_the_paper_by_hand():
    said, meant = ["the", "cat", "sat", "on", "a", "mat"], ["the", "cat", "sat", "on", "the", "red", "mat"]
    precisions = [5 / 6, 3 / 5, 2 / 4, 1 / 3]
    by_hand = np.exp(np.log(precisions).mean() + 1 - 7 / 6)
    assert against_references([said], [[meant]]) == pytest.approx(by_hand)
    assert against_references([said, meant], [[said], [said, meant]]) == pytest.approx(1)
    assert against_references([said], [[meant, said[:-1]]]) > against_references([said], [[meant]])
    assert np.isnan(against_references([], []))


def fields(text, **slots):
    return Document(text, "-".join(slots.values()), slots, " ".join(slots.values()))


HELD = [
    fields("at Aromi there is Thai food for all", name="Aromi", food="Thai", family="yes"),
    fields("Aromi serves Thai food", name="Aromi", food="Thai", family="yes"),
    fields("go to the Old Inn for fish", name="Old Inn", food="fish"),
]
TRAINED = [fields("Cotto serves Thai food", name="Cotto", food="Thai"), fields("the Pub serves fish", food="fish")]


def test_a_text_says_its_fields_and_its_floors_are_other_peoples_texts():
    asked = control.Asked(HELD, TRAINED)
    texts = [["Aromi", "serves", "Thai", "food"], ["the", "old", "inn", "is", "open"], ["nothing", "at", "all"]]
    rows = {row.name: row for row in control.faithful(texts, asked)}
    assert rows["fields"].value == pytest.approx(3 / 6) and rows["fields"].n == 6  # yes is not said by any text
    assert rows["fields/name"].value == pytest.approx(2 / 3) and rows["fields/food"].value == pytest.approx(1 / 3)
    assert rows["fields"].floors["true"] == 1 and rows["fields"].floors["nearest"] == pytest.approx(3 / 6)
    assert rows["fields"].floors["other"] == 0 and "fields/family" not in rows
    assert rows["bleu"].floors["nearest"] > rows["bleu"].floors["other"]
    assert rows["bleu"].n == 3 and 0 < rows["bleu"].value < 1


def test_people_are_judged_without_their_own_text_among_the_references():
    asked = control.Asked(HELD, TRAINED)
    rows = {row.name: row for row in control.faithful([HELD[0].text.split(), HELD[2].text.split()], asked)}
    assert rows["bleu"].value == pytest.approx(1) and rows["bleu"].floors["true"] < 1


def test_texts_without_fields_have_bleu_alone():
    pairs = [Document("a b c d", "1", given="x y"), Document("e f g h", "2", given="z")]
    rows = control.faithful([["a", "b", "c", "d"]], control.Asked(pairs, pairs))
    assert [row.name for row in rows] == ["bleu"] and set(rows[0].floors) == {"nearest", "other"}


def test_a_run_on_another_file_has_no_training_text_to_retrieve_from(folder):
    trained = opened(Options(**options(folder)))
    other = opened(Options(**options(folder, "other.txt")), told(trained))
    assert {d.text for d in other.held_out} == {d.text for d in other.corpus} and not keys(other.corpus) & keys(
        trained.training
    )
    rows = [other.vocabulary.words(row) for row in other.given(range(4)).ids]
    assert set(other.faithful(rows)[0].floors) == {"true", "other"}


# --- refused


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"source": "grammar"}, r"data.conditional is true, and sentences of the grammar have nothing given"),
        ({"source": "parquet"}, r"no column of parquet says what is given; set data.given_column"),
        ({"packing": "concat"}, r"data.packing is concat and data.long is drop; pairs are rows of their own"),
        ({"long": "split"}, r"pairs are rows of their own, padded and never split"),
    ],
)
def test_what_cannot_be_pairs_is_said(folder, more, words):
    with pytest.raises(ValueError, match=words):
        Options(**options(folder, **more))
