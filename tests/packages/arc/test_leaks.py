"""Hidden outputs change nothing that is read, selected, filtered or sized; revealing an evaluated task is refused."""

import json

import numpy as np
import pytest

from packages.arc import identity, sizes, subsets
from packages.arc.families import family
from packages.arc.sources import Source, read_answers, read_questions, reveal

SENTINELS = {"a sentinel": [[9]], "31x31": [[0] * 31] * 31, "nonsense": "no grid at all"}


@pytest.fixture
def folder(files):
    return files / "evaluation"


def with_outputs(folder, target, output):
    """The same files with every hidden output replaced."""
    for file in folder.glob("*.json"):
        raw = json.loads(file.read_text())
        for test in raw["test"]:
            test["output"] = output
        (target / file.name).write_text(json.dumps(raw))
    return str(target)


def selected(tasks):
    """Everything the room derives from questions."""
    cut = subsets.hold_out(subsets.within(tasks, 20), share=0.5)
    return {
        "sha256": tasks.sha256,
        "filtered": subsets.within(tasks, 10).ids,
        "held": {id: identity.content_hash(pair.input, pair.output) for id, pair in cut.held.items()},
        "training": cut.training.sha256,
        "hashes": identity.pool_hashes(cut.training),
        "overlap": identity.overlap(cut.training, tasks),
        "sizes": [sizes.rule(task.demos, query) for task in tasks for query in task.queries],
        "families": [found and found.detail for found in (family(task.demos) for task in tasks)],
        "weights": subsets.pair_weights(tasks, tasks.ids, 10).tolist(),
    }


@pytest.mark.parametrize("name", SENTINELS)
def test_hidden_outputs_change_nothing_that_is_derived_from_questions(folder, tmp_path, name):
    changed = with_outputs(folder, tmp_path, SENTINELS[name])
    assert selected(read_questions(Source(changed))) == selected(read_questions(Source(str(folder))))


def test_the_answers_did_change(folder, tmp_path):
    changed = read_answers(Source(with_outputs(folder, tmp_path, [[9]])))
    assert all(out.tolist() == [[9]] for outputs in changed.values() for out in outputs)
    with pytest.raises(ValueError, match="31x31 cells"):
        read_answers(Source(with_outputs(folder, tmp_path, SENTINELS["31x31"])))


def test_revealed_tasks_keep_their_demos_add_their_answers_and_ask_nothing(official):
    tasks, answers = official.questions("arc1", "training"), official.answers("arc1", "training")
    shown = reveal(tasks, answers, ())
    assert shown.num_queries == 0 and shown.num_demos == tasks.num_demos + tasks.num_queries
    for before, after in zip(tasks, shown):
        added = after.demos[len(before.demos) :]
        assert after.demos[: len(before.demos)] == before.demos
        assert [pair.origin for pair in added] == ["revealed"] * len(before.queries)
        assert all(np.array_equal(pair.output, answer) for pair, answer in zip(added, answers[before.id], strict=True))
    assert shown.sha256 != tasks.sha256


def test_revealing_an_evaluated_task_is_refused(official):
    tasks, answers = official.questions("arc1", "training"), official.answers("arc1", "training")
    with pytest.raises(ValueError, match=r"cannot reveal the test outputs of 74dd1130 \(1 in all\): it is evaluated"):
        reveal(tasks, answers, ["74dd1130"])
    with pytest.raises(ValueError, match=r"007bbfb7 \(400 in all\)"):
        reveal(tasks, answers, tasks)


def test_revealing_an_evaluated_query_is_refused(official):
    tasks, answers = official.questions("arc1", "training"), official.answers("arc1", "training")
    with pytest.raises(ValueError, match="cannot reveal 40853293#0: its input is the evaluated 070dd51e#0"):
        reveal(tasks, answers, official.questions("arc1", "evaluation"))


def test_missing_answers_reveal_nothing(tmp_path):
    raw = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]]}]}
    (tmp_path / "a.json").write_text(json.dumps(raw))
    source = Source(str(tmp_path))
    assert len(reveal(read_questions(source), read_answers(source), ())["a"].demos) == 1


def test_an_exported_question_folder_alone_gives_no_answers(exported):
    found = read_answers(Source(str(exported / "questions"), "evaluation"))
    assert {answer for answers in found.values() for answer in answers} == {None}
