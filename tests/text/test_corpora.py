"""Readers: what a document and its group are, mistakes in one sentence, splits that no article or field set crosses."""

import sys
from collections import Counter
from importlib.util import find_spec
from itertools import starmap
from types import SimpleNamespace

import pytest

from packages.text import e2e, wikisplit
from packages.text.corpora import BLOCK, Source, read
from packages.text.documents import Corpus, Document, is_held_out, key, keys, split, unseen

ARTICLES = " \n = Lobster = \n \n The lobster swims . \n\n = = Food = = \n It eats . \n = A = B = \n \n Last . \n"
FIELDS = (
    "name : Blue | food : Thai||Blue is Thai .\nfood : Thai | name : Blue||Thai at Blue .\nname : Red||Red is here .\n"
)


def texts(source: Source) -> list[str]:
    return [document.text for document in read(source)]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(ARTICLES)
    return path


def place(folder, content: dict[str, str]):
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_an_article_goes_from_one_heading_to_the_next(file):
    found = texts(Source("text", str(file)))
    assert found == ["= Lobster = \n \n The lobster swims . \n\n = = Food = = \n It eats .", "= A = B = \n \n Last ."]


@pytest.mark.parametrize(
    ("sample_by", "wanted"),
    [
        ("line", ["= Lobster =", "The lobster swims .", "= = Food = =", "It eats .", "= A = B =", "Last ."]),
        ("paragraph", ["= Lobster =", "The lobster swims .", "= = Food = = \n It eats .", "= A = B =", "Last ."]),
    ],
)
def test_lines_and_paragraphs_stay_in_the_group_of_their_article(file, sample_by, wanted):
    found, whole = list(read(Source("text", str(file), sample_by))), list(read(Source("text", str(file))))
    assert [document.text for document in found] == wanted
    assert list(dict.fromkeys(d.group for d in found)) == [document.group for document in whole]


def test_without_headings_the_file_is_the_document(tmp_path):
    assert texts(Source("text", str(place(tmp_path, {"a.txt": "one\n\ntwo\n"}) / "a.txt"))) == ["one\n\ntwo"]


def test_without_headings_paragraphs_are_the_groups(tmp_path):
    file = place(tmp_path, {"a.txt": "one\ntwo\n\n\nthree\n"}) / "a.txt"
    found = list(read(Source("text", str(file), "line")))
    assert [document.text for document in found] == ["one", "two", "three"]
    assert found[0].group == found[1].group != found[2].group


def test_without_blank_lines_so_many_lines_stay_together(tmp_path):
    file = place(tmp_path, {"a.txt": "\n".join(map(str, range(2 * BLOCK + 1)))}) / "a.txt"
    assert list(Counter(d.group for d in read(Source("text", str(file), "line"))).values()) == [BLOCK, BLOCK, 1]


def test_among_several_files_a_file_is_never_cut(tmp_path):
    place(tmp_path, {"b/2.txt": "one\n\ntwo\n", "1.txt": "three\n", "note.md": "no"})
    found = list(read(Source("text", str(tmp_path), "line")))
    assert [document.text for document in found] == ["three", "one", "two"]
    assert found[0].group != found[1].group == found[2].group
    assert texts(Source("text", str(tmp_path / "*.md"))) == ["no"]


def test_a_group_is_its_content_wherever_it_stands(tmp_path):
    place(tmp_path, {"a.txt": "one\n\ntwo", "b.txt": "\n\nzero\n\none\n", "c.txt": "one\n"})
    keys = [{d.text: d.group for d in read(Source("text", str(tmp_path / f"{name}.txt"), "line"))} for name in "abc"]
    assert keys[0]["one"] == keys[1]["one"] == keys[2]["one"] == key("one")


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_line_ends_are_no_text(tmp_path, ends):
    (tmp_path / "a.txt").write_bytes(f"one{ends}{ends}two{ends}".encode())
    assert texts(Source("text", str(tmp_path / "a.txt"), "line")) == ["one", "two"]


def test_another_encoding_is_named_with_its_offset(tmp_path):
    (tmp_path / "a.txt").write_bytes("naïve\nword caf".encode() + b"\xe9 x\n")
    with pytest.raises(ValueError, match=r"a.txt is not UTF-8: byte 0xe9 at offset 15; convert it"):
        texts(Source("text", str(tmp_path)))


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    place(tmp_path, {"a.txt": "text", "b.txt": content})
    with pytest.raises(ValueError, match=r"b.txt is empty; give a file with text"):
        texts(Source("text", str(tmp_path)))


def test_a_path_that_is_not_there_is_refused_when_opened(tmp_path):
    for path, what in ((tmp_path / "no.txt", "is no file, folder or glob"), (tmp_path, "holds no .txt file")):
        with pytest.raises(ValueError, match=what):
            read(Source("text", str(path)))


def test_unknown_names_list_the_known_ones_nearest_first():
    with pytest.raises(ValueError, match="unknown source 'parket'; wanted one of parquet, "):
        Source("parket", "x")
    with pytest.raises(ValueError, match="unknown sample_by 'lines'; wanted one of line, "):
        Source("text", "x", "lines")
    with pytest.raises(ValueError, match="the source hub has no dataset_name; set it"):
        Source("hub", "x")


# ---- E2E and WikiSplit ----


def test_texts_of_one_field_set_share_a_group_whatever_the_order_of_fields(tmp_path):
    found = list(read(Source("e2e", str(place(tmp_path, {"a.txt": FIELDS})))))
    assert [document.text for document in found] == ["Blue is Thai .", "Thai at Blue .", "Red is here ."]
    assert found[0].group == found[1].group != found[2].group
    assert found[1].slots == {"food": "Thai", "name": "Blue"}
    assert [len(group) for group in e2e.by_fields(found).values()] == [2, 1]


def test_slots_become_labels_and_text_again(tmp_path):
    found = list(read(Source("e2e", str(place(tmp_path, {"a.txt": FIELDS})))))
    values = e2e.slot_values(found)
    assert values == {"food": ("Thai",), "name": ("Blue", "Red")}
    assert [e2e.labels(document.slots, values) for document in found] == [[0, 0], [0, 0], [-1, 1]]
    assert e2e.labels({"food": "Fish"}, values) == [-1, -1]
    assert all(e2e.parse(e2e.joined(document.slots)) == document.slots for document in found)


@pytest.mark.parametrize(
    "line", ["no bars", "name : Blue||", "name Blue||text", " : Blue||text", "name : Blue | ||text"]
)
def test_a_line_of_another_form_is_named(tmp_path, line):
    place(tmp_path, {"a.txt": f"name : Red||Red .\n{line}\n"})
    with pytest.raises(ValueError, match=r"a.txt, line 2: .*name : value"):
        texts(Source("e2e", str(tmp_path)))


def test_wikisplit_gives_rows_and_each_sentence_once(tmp_path):
    place(tmp_path, {"a.tsv": "A b , c .\tA b . <::::> C .\n", "b.tsv": "D e .\tD . <::::> C .\n"})
    assert list(wikisplit.rows(tmp_path / "a.tsv")) == [("A b , c .", "A b .", "C .")]
    found = list(read(Source("wikisplit", str(tmp_path))))
    assert [document.text for document in found] == ["A b , c .", "A b .", "C .", "D e .", "D ."]
    assert [len({d.group for d in found[a:b]}) for a, b in ((0, 3), (3, 5), (0, 5))] == [1, 1, 2]


def test_a_row_without_both_short_sentences_is_named(tmp_path):
    place(tmp_path, {"a.tsv": "A b .\tA . <::::> \n"})
    with pytest.raises(ValueError, match=r"a.tsv, line 1: .*wanted `long TAB first <::::> second`"):
        texts(Source("wikisplit", str(tmp_path)))


# ---- splits ----


def made(count: int) -> Corpus:
    found = [Document(f"{n} {m}", key(str(n))) for n in range(count) for m in range(3)]
    return Corpus("made", lambda: iter(found))


def test_a_split_has_every_document_once_and_no_group_twice():
    corpus = made(500)
    sides = [list(side) for side in split(corpus)]
    assert sorted(d.text for side in sides for d in side) == sorted(d.text for d in corpus)
    assert not {d.group for d in sides[0]} & {d.group for d in sides[1]}


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_the_held_out_share_of_groups_is_as_asked(share):
    _, validation = split(made(5000), share)
    assert abs(validation.facts.groups / 5000 - share) < 4 * (share * (1 - share) / 5000) ** 0.5


def test_the_side_of_a_group_depends_on_nothing_but_its_content():
    assert [n for n in range(40) if is_held_out(key(str(n)))] == [9, 39]
    small, large = ({d.text for d in split(made(count))[1]} for count in (40, 80))
    assert small == {text for text in large if int(text.split()[0]) < 40}


def test_what_is_unseen_shares_no_text_with_what_was_seen():
    one, two = (Corpus(name, lambda texts=name: (Document(t, texts) for t in texts)) for name in ("abcb", "bde"))
    assert [document.text for document in unseen(one, keys(two))] == ["a", "c"]
    assert [document.text for document in unseen(two, keys(one))] == ["d", "e"]


def test_a_side_without_a_document_is_a_mistake():
    with pytest.raises(ValueError, match=r"made:validation is empty: made has 1 groups .* which no split cuts"):
        split(made(1))


def test_the_hash_of_a_corpus_is_of_its_content():
    assert made(3).sha256 == made(3).sha256 != made(4).sha256
    assert split(made(99))[0].sha256 != split(made(99))[1].sha256
    cases = ([("ab", "0"), ("c", "0")], [("a", "0"), ("bc", "0")], [("ab", "1"), ("c", "0")], [("c", "0"), ("ab", "0")])
    cases += ([("ab0 c", "0")], [("ab0c", "0")])
    assert len({Corpus("made", lambda case=case: starmap(Document, case)).sha256 for case in cases}) == len(cases)


# ---- parquet and the hub ----


ROWS = ["", " = Lobster = \n", " It swims . \n", "", " = Crab = \n", " It walks . \n"]
WANTED = ["= Lobster = \n It swims .", "= Crab = \n It walks ."]


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for `datasets` that notes what it is asked for and gives rows."""
    asked: list = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        if args[0] == "unreachable":
            raise ConnectionError("no route\nto anywhere")
        return [{"text": text, "id": 0} for text in (ROWS if args[0] == "wiki" else ["one\n\ntwo", " = x"])]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


@pytest.mark.parametrize("source", [Source("hub", dataset_name="a/b"), Source("parquet", "x.parquet")])
def test_without_datasets_one_sentence_says_how_to_get_it(monkeypatch, source):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=rf"the source {source.source} needs the package datasets .*make setup"):
        read(source)


def test_rows_of_lines_become_articles(hub):
    corpus = read(Source("hub", dataset_name="wiki", dataset_config="raw", dataset_split="test"))
    assert [document.text for document in corpus] == WANTED == [document.text for document in corpus]
    assert hub == [(("wiki", "raw"), {"split": "test", "streaming": False})]
    assert corpus.name == "hub:wiki raw test"


def test_other_rows_are_documents_and_groups(hub):
    found = list(read(Source("hub", dataset_name="web", sample_by="paragraph")))
    assert [document.text for document in found] == ["one", "two", "= x"]
    assert found[0].group == found[1].group != found[2].group


def test_a_stream_is_split_and_hashed_without_being_walked(hub):
    corpus = read(Source("hub", dataset_name="web", streaming=True))
    training, validation = split(Corpus(corpus.name, lambda: iter([][0]), corpus.identity))
    assert len({corpus.sha256, training.sha256, validation.sha256}) == 3


def test_a_missing_column_and_an_unreachable_hub_say_what_to_do(hub):
    with pytest.raises(ValueError, match=r"hub:web train has no column 'body'; name one of text, id"):
        list(read(Source("hub", dataset_name="web", column="body")))
    with pytest.raises(ValueError, match=r"hub:unreachable train is not to be had \(no route\); .*folder"):
        read(Source("hub", dataset_name="unreachable"))


def not_installed(tmp_path, source) -> bool:
    """Whether reading parquet without the library tells so."""
    (tmp_path / "a.parquet").touch()
    with pytest.raises(ValueError, match="needs the package datasets"):
        read(source)
    return True


def parquet(folder, *tables: list[str]) -> None:
    import datasets

    datasets.disable_progress_bars()
    for number, texts in enumerate(tables):
        datasets.Dataset.from_dict({"text": texts}).to_parquet(folder / f"{number}.parquet")


def test_parquet_files_are_read(tmp_path):
    source = Source("parquet", str(tmp_path))
    if find_spec("datasets") is None:
        assert not_installed(tmp_path, source)
        return
    parquet(tmp_path, ROWS)
    corpus = read(source)
    assert [document.text for document in corpus] == WANTED == [document.text for document in corpus]


@pytest.mark.parametrize("parts", [1, 2, 4, 5])
def test_readers_of_a_stream_share_its_files(tmp_path, parts):
    source = Source("parquet", str(tmp_path / "*.parquet"), streaming=True)
    if find_spec("datasets") is None:
        assert not_installed(tmp_path, source)
        return
    parquet(tmp_path, *(["one", "two", str(n)] for n in range(5)))
    found = [[document.text for document in read(source, part, parts)] for part in range(parts)]
    assert sorted(text for texts in found for text in texts) == sorted(texts(source))
    assert all(found) and len({read(source, part, parts).sha256 for part in range(parts)}) == parts


def test_more_readers_than_files_are_a_mistake(hub):
    with pytest.raises(ValueError, match=r"hub:web train has 1 files for 4 readers .*use fewer workers"):
        read(Source("hub", dataset_name="web", streaming=True), 0, 4)


# ---- the real files ----


def test_wikitext_has_its_words_and_articles(real):
    by_article, by_line = (read(Source("text", str(real / "wikitext2-valid.txt"), by)) for by in ("document", "line"))
    assert by_article.facts[:2] == (60, 60) and by_line.facts[:2] == (2461, 60)
    for corpus in (by_article, by_line):
        assert sum(len(document.text.split()) for document in corpus) == 213_886


def test_e2e_has_its_texts_field_sets_and_types(real):
    found = list(read(Source("e2e", str(real / "e2e-valid.txt"))))
    assert len(found) == 4672 and len(e2e.by_fields(found)) == 547
    assert len({word for document in found for word in document.text.split()}) == 1118
    assert len(e2e.slot_values(found)) == 8


def test_wikisplit_has_its_sentences(real):
    assert read(Source("wikisplit", str(real))).facts[:2] == (29_978, 2)


@pytest.mark.parametrize(
    ("source", "name", "groups"), [("text", "wikitext2-valid.txt", (51, 9)), ("e2e", "e2e-valid.txt", (500, 47))]
)
def test_the_real_splits_are_these(real, source, name, groups):
    training, validation = split(read(Source(source, str(real / name))))
    assert (training.facts.groups, validation.facts.groups) == groups
    assert not {d.group for d in training} & {d.group for d in validation}


def test_few_texts_of_e2e_stand_in_two_field_sets(real):
    training, validation = split(read(Source("e2e", str(real / "e2e-valid.txt"))))
    assert (validation.facts.documents, unseen(validation, keys(training)).facts.documents) == (367, 359)
