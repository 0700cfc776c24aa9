"""What is said of a run: its first snapshot, the table of a walk, the report with its floors, short names of flags."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from projects.text import made
from projects.text.commands import DenoiseOptions, begun, spelled
from projects.text.evaluate import Evaluation
from projects.text.health import effective_rank, health, mean_distance, nearest_pairs, recovered
from projects.text.likelihood import NLLBound
from projects.text.pictures import FromTheStart, Moments, digest
from projects.text.sampling import Sampling
from tests.text.trunks import text_module


@pytest.fixture(scope="module")
def module():
    return text_module()


def results(module, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(made, "NOVELTY_WINDOW", 50)
    (tmp_path / "samples").mkdir()
    found = Evaluation(module.data, NLLBound(module.likelihood))
    found.add(rows)
    said = found.results(tmp_path, module.sampling, module.network.rows)
    return said, {metric.name: metric for metric in said.metrics}


def test_true_sentences_parse_and_lie_at_the_true_floor(module, tmp_path, monkeypatch):
    said, found = results(
        module,
        module.words(torch.from_numpy(module.data.source.take("test", np.arange(300)).ids)),
        tmp_path,
        monkeypatch,
    )
    assert found["parse"].value == found["parse"].low == 1 and found["special"].value == 0
    assert abs(found["unigram_kl"].value - found["unigram_kl"].floors["true"]) < 0.02
    assert found["bigram_kl"].floors["true"] < found["bigram_kl"].floors["unigram"]
    assert said.headline.startswith("100.0% of 300 sentences parse") and len(said.sections) == 3
    assert all(file.exists() for file in said.files)


def test_one_word_over_and_over_is_no_sentence_and_specials_are_counted(module, tmp_path, monkeypatch):
    row = ["sleeps"] * 13 + ["[MASK]", "[EOS]", "[PAD]"]
    _, found = results(module, [row] * 64, tmp_path, monkeypatch)
    assert found["parse"].value == 0 and found["self_bleu"].value == 1 and found["unique"].value == 1 / 64
    assert found["special"].value == pytest.approx(1 / 14)


def test_the_first_snapshot_is_of_the_network_before_any_update(module, tmp_path):
    module.snapshots = SimpleNamespace(every=4, count=2)
    run = SimpleNamespace(run=SimpleNamespace(samples=tmp_path))
    trainer = SimpleNamespace(global_step=0, is_global_zero=True, fast_dev_run=False, logger=run, callbacks=[])
    before = torch.get_rng_state()
    FromTheStart().on_train_start(trainer, module)
    assert {file.name for file in (tmp_path / "0").iterdir()} == {"samples.txt", "trajectory.md"}
    assert torch.equal(before, torch.get_rng_state())
    trainer.global_step, trainer.logger.run.samples = 4, tmp_path / "resumed"
    FromTheStart().on_train_start(trainer, module)
    assert not (tmp_path / "resumed").exists()


def test_a_walk_from_a_sentence_begins_at_it_corrupted(module):
    text, moments = " ".join(module.data.grammar.sample(0, 1).words), Moments(module)
    options = DenoiseOptions(text=text, start=1e-30)  # the Gumbel is that steep
    module.sampling = Sampling(steps=4)
    module.walked([0, 1], through=begun(module, options, moments))
    first, second = moments.seen[:2]
    assert first.t == 1 and second.t == pytest.approx(1e-30) and len(moments.seen) == 5
    x0 = module.network.rows(module.data.row(text))
    assert second.seen == module.spoken(module.words(module.network.rows.nearest(x0)[None])[0])


def test_short_names_of_flags_are_spelled_out_and_nano_is_asked_where_nothing_is_named():
    assert spelled(["denoise", "--run", "runs/a", "--from=0.4"]) == [
        "denoise", "--ckpt_path", "runs/a", "--denoise.start=0.4",
    ]  # fmt: skip
    assert spelled(["sample", "--run=a", "--num-samples", "2"]) == ["sample", "--ckpt_path=a", "--sampling.count", "2"]
    assert spelled(["schedules", "--data.level=micro"])[1:3] == [
        "--config=configs/text/base.yaml", "--config=configs/text/nano.yaml",
    ]  # fmt: skip
    assert spelled(["schedules", "--run", "a"]) == ["schedules", "--ckpt_path", "a"]
    assert spelled(["fit", "--from", "x"]) == ["fit", "--from", "x"]


def test_health_sees_a_table_collapse(module):
    rows = module.network.rows.rows.detach()
    merged = rows[:1] + 0.1 * (rows - rows[:1])
    assert 0.9 < float(mean_distance(rows)) < 1.1 and float(mean_distance(merged)) < 0.2
    assert effective_rank(rows) > 14 and effective_rank(rows[:1].expand(60, -1)) == pytest.approx(1, abs=1e-3)
    assert recovered(module.network.rows) > 0.95


def test_the_nearest_rows_are_named(module):
    rows = module.network.rows.rows.detach().clone()
    rows[7] = rows[9] + 0.01
    assert nearest_pairs(rows, module.data.vocabulary)[0].startswith(" ".join(module.data.vocabulary.words([7, 9])))
    said = health(module.network.rows, module.data.vocabulary, [["a", "dog"], ["a"]])
    assert "ids that samples use | 2 of 60" in said and "most used | a 2, dog 1" in said


def test_weights_have_a_name_that_one_weight_changes(module):
    before = digest(module.network)
    assert before == digest(module.network)
    with torch.no_grad():
        module.network.common[3] += 1e-3
    assert digest(module.network) != before
    with torch.no_grad():
        module.network.common[3] -= 1e-3
