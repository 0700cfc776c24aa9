"""Windows: every token in one window or counted as left out, padding where it belongs, caches whole or not there."""

import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packages.text.documents import Corpus, Document
from packages.text.token_cache import cached
from packages.text.vocabulary import EOS, PAD, Vocabulary
from packages.text.windows import KINDS, LONG, TAILS, Packing, cut, pack, pack_pairs, stream

WORDS = Vocabulary(map(str, range(50)))
SIZE = len(WORDS)
sequences = st.lists(st.lists(st.integers(5, SIZE - 1), max_size=30), min_size=1, max_size=8)
packings = st.builds(
    Packing, st.sampled_from(KINDS), st.integers(2, 12), st.sampled_from(LONG), st.sampled_from([None, *TAILS])
)


def packed(documents, packing):
    """The windows, or None when no window comes of the documents."""
    try:
        return pack(documents, packing, SIZE)
    except ValueError as error:
        assert str(error).startswith(("the corpus has", "all "))
        return None


def everything(windows):
    """The tokens of all windows in a row, padding left out."""
    ids, _ = windows.take(range(len(windows)))
    return np.concatenate([row[:length] for row, length in zip(ids, windows.lengths)])


@given(sequences, packings)
def test_every_token_is_in_one_window_or_counted_as_left_out(documents, packing):
    if windows := packed(documents, packing):
        assert windows.lengths.sum() + windows.cut.lost == len(windows.tokens)
        assert (np.diff(windows.cut.spans.reshape(-1)) >= 0).all()  # in order, none twice
        assert windows.lengths.min() >= 1 and windows.lengths.max() <= packing.length


@given(sequences, packings)
def test_split_documents_with_their_tails_come_back_whole(documents, packing):
    windows = packed(documents, replace(packing, long="split", tail="keep"))
    ends = [] if packing.kind == "none" else [EOS]
    wanted = [id for ids in documents for id in [*ids, *ends]]
    assert (everything(windows).tolist() if windows else []) == wanted


@given(sequences, packings)
def test_dropped_documents_are_those_too_long_and_counted(documents, packing):
    packing = replace(packing, long="drop", kind="none")
    fitting = [ids for ids in documents if len(ids) <= packing.length]
    if windows := packed(documents, packing):
        assert windows.cut.dropped == len(documents) - len(fitting) and windows.cut.split == 0
        assert everything(windows).tolist() == [id for ids in fitting for id in ids]
        assert [documents[n] for n in windows.document(range(len(windows)))] == [ids for ids in fitting if ids]


@given(sequences, st.integers(2, 12))
def test_joined_documents_are_cut_without_padding(documents, length):
    windows = packed(documents, Packing("concat", length))
    wanted = [id for ids in documents for id in [*ids, EOS]]
    if windows is None:
        assert len(wanted) < length
        return
    ids, valid = windows.take(range(len(windows)))
    assert valid.all() and ids.reshape(-1).tolist() == wanted[: len(wanted) // length * length]
    assert np.array_equal(ids, list(stream((WORDS.decode(each) for each in documents), WORDS, length)))


@given(sequences, packings)
def test_padding_counts_with_eos_pad_alone(documents, packing):
    if windows := packed(documents, packing):
        ids, valid = windows.take(range(len(windows)))
        real = np.arange(packing.length) < windows.lengths[:, None]
        assert ((ids == PAD) == ~real).all()
        assert valid.all() if packing.kind == "eos_pad" else (valid == real).all()


def test_the_three_packings_of_two_documents():
    documents = [[5, 6], [7, 8, 9]]
    rows = {kind: pack(documents, Packing(kind, 4), SIZE).take([0, -1])[0].tolist() for kind in KINDS}
    assert rows["eos_pad"] == [[5, 6, EOS, PAD], [7, 8, 9, EOS]]
    assert rows["concat"] == [[5, 6, EOS, 7], [5, 6, EOS, 7]]
    assert rows["none"] == [[5, 6, PAD, PAD], [7, 8, 9, PAD]]


@pytest.mark.parametrize("kind", ["none", "concat"])
@pytest.mark.parametrize(("left", "kept"), [(1, False), (2, True), (3, True)])
def test_a_tail_is_kept_from_half_a_window_on(kind, left, kept):
    tokens = 4 + left - (kind == "concat")  # EOS is one more
    windows = pack([[5] * tokens], Packing(kind, 4, "split", "keep_half"), SIZE)
    assert windows.lengths.tolist() == [4, left][: 1 + kept] and windows.cut.lost == (0 if kept else left)


def test_a_short_document_is_no_tail():
    assert len(pack([[5], [6] * 9], Packing("none", 4, "split", "drop"), SIZE)) == 3


def test_splits_and_drops_are_printed():
    windows = pack([[5] * 3, [6] * 9], Packing("eos_pad", 4, "split"), SIZE)
    assert str(windows) == (
        "4 windows of 4 (eos_pad) from 2 documents, 14 tokens; too long: 0 dropped, 1 split; 0 tokens left out"
    )


@pytest.mark.parametrize(("size", "kind"), [(65_535, np.uint16), (65_536, np.uint32)])
def test_ids_take_two_bytes_while_they_fit(size, kind):
    windows = pack([[size - 1, 6]], Packing("none", 2), size)
    assert windows.tokens.dtype == kind and windows.take([0])[0].tolist() == [[size - 1, 6]]


@pytest.mark.parametrize("wrong", [SIZE, -1])
def test_an_id_beyond_the_vocabulary_is_refused(wrong):
    with pytest.raises(ValueError, match=rf"are not of a vocabulary of {SIZE}"):
        pack([[5], [6, wrong]], Packing(), SIZE)


@pytest.mark.parametrize(
    ("documents", "packing", "said"),
    [
        ([[5] * 6], Packing("concat", 8), "the corpus has 7 tokens, less than a window of 8; give more text"),
        (
            [[5] * 8, [5] * 9],
            Packing("eos_pad", 8),
            r"all 2 documents are longer than a window of 8 tokens \(the shortest",
        ),
        ([], Packing(), "the corpus has no text"),
        ([[]], Packing("none"), "the corpus has no text"),
    ],
)
def test_a_corpus_without_a_window_says_what_to_do(documents, packing, said):
    with pytest.raises(ValueError, match=said):
        pack(documents, packing, SIZE)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": "eospad"}, "unknown packing 'eospad'; wanted one of eos_pad"),
        ({"long": "cut"}, "unknown long 'cut'"),
        ({"tail": "half"}, "unknown tail 'half'; wanted one of keep_half"),
        ({"length": 1}, "length of a window is 1; give 2"),
    ],
)
def test_an_unknown_packing_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Packing(**wrong)


# ---- pairs ----


pairs = st.lists(st.tuples(*[st.lists(st.integers(5, SIZE - 1), max_size=8)] * 2), min_size=1, max_size=6)


@given(pairs, st.integers(4, 16))
def test_the_first_segment_of_a_pair_is_known_and_the_second_is_not(found, length):
    fitting = [(first, second) for first, second in found if len(first) + len(second) + 2 <= length]
    if not fitting:
        with pytest.raises(ValueError, match="all "):
            pack_pairs(found, length, SIZE)
        return
    windows = pack_pairs(found, length, SIZE)
    ids, valid = windows.take(range(len(windows)))
    known = windows.known(range(len(windows)))
    assert valid.all() and windows.cut.dropped == len(found) - len(fitting)
    for row, mask, (first, second) in zip(ids, known, fitting, strict=True):
        assert row[mask].tolist() == [*first, EOS]
        assert row[~mask].tolist() == [*second, EOS] + [PAD] * (length - len(first) - len(second) - 2)


# ---- caches ----


class Walked:
    """Documents that count how often they are walked; `meanwhile` happens in the middle of each walk."""

    def __init__(self, *texts, meanwhile=lambda: None):
        self.texts, self.meanwhile, self.walks = texts, meanwhile, 0

    def __call__(self):
        self.walks += 1
        for number, text in enumerate(self.texts):
            if number == 1:
                self.meanwhile()
            yield Document(text, "0")

    def corpus(self) -> Corpus:
        return Corpus("made", self, identity=" | ".join(self.texts))


TEXTS = ("1 2 3", "4 5", "6 7 8 9", "10")
PACKING = Packing("eos_pad", 4)


def test_a_cache_holds_what_packing_in_memory_gives(tmp_path):
    for packing in (PACKING, Packing("concat", 3), Packing("none", 3, "split")):
        memory = pack(map(WORDS.encode, TEXTS), packing, SIZE)
        disk = cached(Walked(*TEXTS).corpus(), WORDS, packing, tmp_path)
        index = range(len(memory))
        assert all(map(np.array_equal, disk.take(index), memory.take(index)))
        assert np.array_equal(disk.document(index), memory.document(index)) and str(disk) == str(memory)


def test_a_corpus_is_tokenised_once(tmp_path):
    documents = Walked(*TEXTS)
    for _ in range(2):
        cached(documents.corpus(), WORDS, PACKING, tmp_path)
    assert documents.walks == 1


def test_corpus_vocabulary_and_packing_have_caches_of_their_own(tmp_path):
    corpus = Walked(*TEXTS).corpus()
    cases = [(corpus, WORDS, PACKING), (Walked("1").corpus(), WORDS, PACKING), (corpus, Vocabulary("12"), PACKING)]
    cases += [
        (corpus, WORDS, each) for each in (Packing("none", 4), Packing("eos_pad", 5), Packing("eos_pad", 4, "split"))
    ]
    folders = {cached(*case, tmp_path).folder for case in cases}
    assert len(folders) == len(cases) and folders == set(tmp_path.iterdir())


def test_an_interrupted_build_leaves_nothing_and_the_next_is_whole(tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(Walked(*TEXTS, meanwhile=stop).corpus(), WORDS, PACKING, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(cached(Walked(*TEXTS).corpus(), WORDS, PACKING, tmp_path)) == 3


def test_what_a_kill_leaves_is_never_taken_for_a_cache(tmp_path, monkeypatch):
    def stop():
        raise KeyboardInterrupt

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr("shutil.rmtree", lambda *_, **__: None)  # a kill tidies nothing up
        cached(Walked(*TEXTS, meanwhile=stop).corpus(), WORDS, PACKING, tmp_path)
    (half,) = tmp_path.iterdir()
    whole = cached(Walked(*TEXTS).corpus(), WORDS, PACKING, tmp_path)
    assert len(whole) == 3 and whole.folder != half and half.is_dir()


def test_two_builders_at_once_do_not_harm_each_other(tmp_path):
    both, found = threading.Barrier(2, timeout=20), []

    def build():
        found.append(cached(Walked(*TEXTS, meanwhile=both.wait).corpus(), WORDS, PACKING, tmp_path))

    builders = [threading.Thread(target=build) for _ in range(2)]
    for each in builders:
        each.start()
    for each in builders:
        each.join()
    assert [windows.take([0])[0].tolist() for windows in found] == [[[6, 7, 8, EOS]]] * 2
    assert list(tmp_path.iterdir()) == [found[0].folder]


def test_a_damaged_cache_says_so(tmp_path):
    folder = cached(Walked(*TEXTS).corpus(), WORDS, PACKING, tmp_path).folder
    (folder / "tokens.bin").write_bytes(b"\0\0\0\0")
    with pytest.raises(ValueError, match=r"token cache .* is damaged \(2 tokens of 14\); remove it"):
        cached(Walked(*TEXTS).corpus(), WORDS, PACKING, tmp_path)
    (folder / "facts.json").unlink()
    with pytest.raises(ValueError, match=r"token cache .* is damaged .*remove it"):
        cached(Walked(*TEXTS).corpus(), WORDS, PACKING, tmp_path)


def test_a_worker_gets_the_name_of_the_files_and_not_their_content(tmp_path):
    windows = cached(Walked(*["1 2 3"] * 5000).corpus(), WORDS, PACKING, tmp_path)
    sent = pickle.dumps(windows)
    assert len(sent) < 500 and np.array_equal(pickle.loads(sent).take([4999])[0], windows.take([4999])[0])


def test_cutting_knows_no_more_than_offsets():
    assert cut(np.array([0, 2, 7]), Packing("none", 3, "split")).spans.tolist() == [[0, 2], [2, 5], [5, 7]]
