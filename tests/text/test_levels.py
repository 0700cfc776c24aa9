"""What a run shows of itself level by level: one skill for report, goals and validation, the copier beside it;
headlines that neither cosines nor likelihood can embellish; a validation that sees a collapse and goes on."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from packages.text.floors import bigram, true
from packages.text.table import Row
from projects.text import goals, levels, made, watching
from projects.text.diagnostics import HEAD
from projects.text.evaluate import Evaluation
from projects.text.figures import density, draw_agreement
from projects.text.levels import Levels, asked, decided, few, measured, star
from projects.text.likelihood import NLLBound
from projects.text.module import TextDiffusion
from projects.text.pictures import Moments, clamped
from projects.text.resolution import span
from projects.text.sampling import Sampling
from projects.text.warping import Affine, Gumbel, Monotone, Relay
from shared.training import report
from shared.training.batches import Share
from tests.learn.test_text import trained
from tests.lines import Line
from tests.text.trunks import batch_of, text_module


@pytest.fixture(scope="module")
def module():
    return text_module()


@pytest.fixture(scope="module")
def found(module):
    module.data.held_out = 64
    return measured(module)


def test_the_copier_stands_beside_with_no_skill_at_any_level_and_excellent_rows(found):
    for level in (*found.copier, *found.lone):
        assert level.accuracy == level.bayes and level.skill in (None, 0)
    assert "Excellent" in {level.band() for level in found.copier}
    assert [level.index for level in found.mine] == [level.index for level in found.copier]
    rows = [line for line in found.table().splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(found.mine) and rows[0].count("|") == len(HEAD) + 4
    assert {"skill_at_star", "cosine_mean", "excellent_rows"} == {metric.name for metric in found.metrics()}


def test_report_goals_and_anyone_who_asks_find_one_skill(module, found, monkeypatch):
    monkeypatch.setattr(levels, "ASKED", 64)
    monkeypatch.setattr(goals, "TIMED", (2, 2))
    (of_the_report,) = (metric for metric in found.metrics() if metric.name == "skill_at_star")
    assert goals.more(module, goals.GoalsOptions(samples=2))["skill_at_star"] == of_the_report
    assert star(module, few(module, "test", 64)) == found.star and of_the_report.floors == {"copier": 0.0}


def test_a_sentence_has_its_noise_in_any_company(module):
    batch = few(module, "test", 6)
    whole, part = asked(module, batch)[0], asked(module, batch.of(torch.tensor([2, 5])))[0]
    assert torch.equal(whole.noise[[2, 5]], part.noise)


def test_a_given_token_is_asked_clean_and_not_counted(module):
    batch, seen = batch_of(module), []
    batch = replace(batch, known=torch.zeros_like(batch.known).index_fill(1, torch.tensor([0, 3]), True))
    noised, believe, _ = asked(module, batch)
    level = noised.at(-1.0, lambda x, t: seen.append(x) or believe(x, t))
    x0 = module.network.rows(batch.ids)
    assert torch.equal(seen[0][:, [0, 3]], x0[:, [0, 3]]) and not torch.equal(seen[0][:, 1], x0[:, 1])
    assert level.tokens == batch.ids.numel() - 2 * len(batch.ids)


def test_what_the_copier_decides_over_all_levels_is_the_entropy_of_words_alone(module):
    """The integral of 1/2 SNR |x0 - belief|^2 over the log-SNR is an entropy for who believes by Bayes' rule."""
    shares = torch.from_numpy(module.data.shares())
    ids = torch.multinomial(shares, 256 * 16, replacement=True, generator=torch.Generator().manual_seed(0)).view(
        256, 16
    )
    batch = replace(few(module, "test", 256), ids=ids)
    noised, _, copier = asked(module, batch)
    steps = torch.linspace(4, math.log(0.002 / 16) + 0.05, 60).tolist()
    found = [level for step in steps if (level := noised.at(step, copier))]
    entropy = float(-(shares * shares.clamp(min=1e-300).log()).sum())
    assert decided(found) == pytest.approx(entropy, rel=0.03)
    assert all(level.ce == pytest.approx(float(found[0].ce), abs=entropy + 0.1) for level in found)


def test_a_twin_has_no_levels_of_noise_to_show():
    twin = text_module(objective="autoregressive")
    assert measured(twin) is None and star(twin, few(twin, "test", 4)) is None


class Shuffled(TextDiffusion):
    """Trained on the tokens of a batch in any order, over all of its places: only their shares are left."""

    def training_step(self, batch, index):
        order = torch.randperm(batch.ids.numel(), generator=torch.Generator().manual_seed(index))
        batch.ids = batch.ids.flatten()[order].view_as(batch.ids)
        return super().training_step(batch, index)


def test_300_updates_on_position_shuffled_data_teach_no_skill(monkeypatch):
    monkeypatch.setattr("tests.learn.test_text.UPDATES", 300)
    module = text_module(asleep=True)
    module.__class__ = Shuffled
    trained(module)
    batch = module.data.sentences("test", Share.of(range(1024)))  # one token in twenty says something at i = 500
    order = torch.randperm(batch.ids.numel(), generator=torch.Generator().manual_seed(0))
    noised, believe, _ = asked(module, replace(batch, ids=batch.ids.flatten()[order].view_as(batch.ids)))
    skills = [level.skill for level in noised.rows(believe) if level.skill is not None]
    assert len(skills) >= 4 and max(map(abs, skills)) <= 0.03, skills


# --- headlines


def headline(module, rows, tmp_path, found=None):
    """report.md of a run that drew `rows` and whose likelihood is perfect."""
    evaluation = Evaluation(module.data, NLLBound(module.likelihood))
    evaluation.bound.rows = [[0.01, 0.01, 0.01, 10.0]] * 4
    evaluation.levels = found
    evaluation.add(rows)
    (tmp_path / "samples").mkdir(exist_ok=True)
    results = evaluation.results(tmp_path, Sampling(), module.network.rows)
    run = made_run(tmp_path)
    return report.write(run, results).read_text(), {metric.name: metric.value for metric in results.metrics}


def made_run(folder):
    machine = {"device": "a", "system": "b"}
    manifest = {"starts": [{"command": "c", "machine": machine, "versions": {}}]}
    return SimpleNamespace(
        folder=folder, samples=folder / "samples", manifest=manifest, project="text", stage=None, size="nano"
    )


@pytest.fixture
def few_seen(monkeypatch):
    monkeypatch.setattr(made, "NOVELTY_WINDOW", 50)


@pytest.mark.usefixtures("few_seen")
def test_have_64_times_is_reported_as_a_collapse_and_not_by_its_perplexity(module, tmp_path):
    text, said = headline(module, [["have"] * 64] * 32, tmp_path)
    first = next(line for line in text.splitlines() if line.startswith("**"))
    assert (said["parse"], said["unigram_entropy"], said["self_bleu"], said["repeat_3"]) == (0, 0, 1, 1)
    assert said["perplexity"] < 1.01 and "perplexity" not in first
    assert first.startswith("**0.0% of 32 sentences parse; ")
    assert "collapsed: entropy of the words 0.00 nats, 100% of 3-grams stand twice" in first


@pytest.mark.usefixtures("few_seen")
def test_have_64_times_is_a_collapse_where_no_grammar_says_so(module, tmp_path, monkeypatch):
    source = module.data.source
    metrics = {name: metric for name, metric in source.metrics().items() if name not in ("parse", "agreement")}
    floors = source.floors(32)
    monkeypatch.setattr(source, "metrics", lambda: metrics)
    monkeypatch.setattr(source, "floors", lambda n: floors)
    text, _ = headline(module, [["have"] * 64] * 32, tmp_path)
    first = next(line for line in text.splitlines() if line.startswith("**"))
    assert first.startswith("**32 sentences; over the true sampler: unigram kl +") and "collapsed: entropy" in first


@pytest.mark.usefixtures("few_seen")
def test_true_sentences_are_called_neither_collapsed_nor_praised(module, found, tmp_path):
    rows = [[*words, "[EOS]"] for words in true(module.data.grammar, 200)]
    text, _ = headline(module, rows, tmp_path, praised(found, 0.02))
    first = next(line for line in text.splitlines() if line.startswith("**"))
    assert "collapsed" not in first and "Excellent" not in first


def praised(found: Levels, skill: float, cosine: float = 0.91) -> Levels:
    """The rows of a model that reads nearly as the copier does, with that cosine and that skill at SNR*."""
    rows = [
        replace(level, cosine=cosine, magnitude=1.0, accuracy=level.bayes + skill * (1 - level.bayes))
        for level in found.mine
    ]
    return replace(found, mine=rows)


def test_a_table_full_of_excellent_is_said_beside_what_parses_and_skill(found):
    (said,) = praised(found, 0.02).said(0.03)
    n = len(found.mine)
    assert (
        said == f"mean cosine 0.91 and {n} of {n} rows Excellent, yet 3.0% of sentences parse and skill at SNR* is 0.02"
    )
    assert praised(found, 0.02).said(0.92) == [] and praised(found, 0.02, cosine=0.6).said(0.03) == []
    assert praised(found, 0.5).said(None) == [] and "skill at SNR* is 0.02" in praised(found, 0.02).said(None)[0]


@pytest.mark.usefixtures("few_seen")
def test_the_report_holds_the_table_its_files_and_the_sentence(module, found, tmp_path):
    rows = [[*words, "[EOS]"] for words in bigram(module.data.grammar, 100)]
    text, said = headline(module, rows, tmp_path, praised(found, 0.02))
    assert "rows Excellent, yet" in next(line for line in text.splitlines() if line.startswith("**"))
    assert "## By level of noise" in text and said["skill_at_star"] == pytest.approx(0.02)
    pictures = {"window", "warp", "agreement", "ngrams", "lengths", "rows"}
    assert all((tmp_path / f"samples/{name}.png").exists() and f"samples/{name}.png" in text for name in pictures)
    kept = (tmp_path / "samples/levels.md").read_text()
    assert found.table().splitlines()[0] in kept and "At even steps" in kept
    assert {each["name"] for each in json.loads((tmp_path / "report.json").read_text())["metrics"]} >= {"cosine_mean"}


# --- pictures


def test_the_density_of_a_warp_is_drawn_as_it_is_and_sums_to_one():
    law = Gumbel(1.2, *span(16.0))
    level, share = density(law, torch.linspace(*span(16.0), 4001, dtype=torch.float64))
    assert share.sum() * (level[1] - level[0]) == pytest.approx(1, abs=1e-3)
    assert share == pytest.approx(law.density(torch.from_numpy(level)).numpy(), abs=1e-3)
    assert level[share.argmax()] == pytest.approx(-1.2, abs=0.01)


def test_agreement_is_drawn_only_where_there_are_dependencies(tmp_path):
    row = Row("agreement/quotes/5", 0.9, 120, "", "", {"bigram": 0.1})
    assert draw_agreement({"parse": row}, tmp_path / "a.png") is None and not (tmp_path / "a.png").exists()
    assert draw_agreement({row.name: row}, tmp_path / "a.png").exists()


def test_a_walk_says_where_it_is_clamped(module):
    options = Sampling(steps=4, clamp="nearest", clamp_start=0.5)
    assert [clamped(options, t) for t in (1.0, 0.51, 0.5, 0.0)] == [False, False, True, True]
    assert not clamped(Sampling(), 0.0)
    module.sampling, moments = options, Moments(module)
    module.walked([0, 1], through=moments.through)
    module.sampling = Sampling()
    lines = moments.table()
    assert [line.count("clamped") for line in lines if line.startswith("      ")][-4:] == [0, 0, 1, 1]


# --- validation


def test_bins_of_t_hold_every_sentence_once_and_their_mean_is_that_of_all(module):
    with torch.no_grad():
        losses = module.on_fixed_paths(batch_of(module, 64))
    bins = watching.twentieths(losses)
    for name, value in (("ce", losses.ce), ("accuracy", losses.accuracy)):
        parts = [bins[f"{name}/{place:02}"] for place in range(20)]
        assert sum(int(count) for _, count in parts) == 64
        assert float(sum(total for total, _ in parts)) == pytest.approx(float(value.sum()), rel=1e-5)
    middle = (losses.t >= 0.35) & (losses.t < 0.4)
    assert float(bins["ce/07"][0]) == pytest.approx(float(losses.ce[middle].sum()), rel=1e-5) and middle.any()


def test_what_is_the_same_for_all_batches_is_said_with_the_first(module):
    first, second = (module.validation_step(batch_of(module, 16), index)["logs"] for index in (0, 1))
    assert {"skill", "row_norm", "row_rank", "row_distance"} == {*first} - {*second}
    assert {"loss", "accuracy", "parse", "entropy", "ce/00", "accuracy/19"} <= {*second}
    assert float(first["row_norm"]) == pytest.approx(4, abs=1e-4) and "warp_scale" not in first
    assert float(first["skill"]) == star(module, few(module, "val", watching.ASKED)).skill


def test_a_twin_validates_without_skill(module):
    logs = text_module(objective="autoregressive").validation_step(batch_of(module, 4), 0)["logs"]
    assert "skill" not in logs and "ce/00" not in logs and {"loss", "parse", "entropy", "row_rank"} <= {*logs}


def test_location_and_scale_are_logged_of_a_warp_that_moves():
    ends = dict(zip(("log_snr_min", "log_snr_max"), span(16.0)))
    law = Gumbel(1.2, scale=0.7, **ends)
    assert watching.moving(law) == {} == watching.moving(None)
    relay = watching.moving(Relay(law, Monotone(**ends)))
    assert relay["warp_location"] == pytest.approx(1.2, abs=0.02) and relay["warp_scale"] == pytest.approx(
        0.7, abs=0.05
    )
    assert set(watching.moving(Affine())) == set(relay)


def test_words_that_hardly_vary_have_no_entropy_and_none_have_none():
    assert float(watching.entropy([["have"] * 5] * 3)) == 0 == float(watching.entropy([["[EOS]"], ["[EOS]"]]))
    assert float(watching.entropy([["a", "b"]])) == pytest.approx(math.log(2))


@pytest.mark.parametrize(("nats", "lines"), [(0.99, 1), (1.0, 0), (None, 0)])
def test_a_collapse_prints_one_line_and_stops_nothing(nats, lines):
    said = []
    metrics = {} if nats is None else {"val/entropy": torch.tensor(nats)}
    run = SimpleNamespace(say=said.append)
    trainer = SimpleNamespace(callback_metrics=metrics, sanity_checking=False, fast_dev_run=False)
    trainer.logger = SimpleNamespace(run=run)
    watching.CollapseWatch().on_validation_end(trainer, None)
    assert len(said) == lines and all("0.99 nats" in line for line in said)


@pytest.mark.usefixtures("at_home")
def test_a_run_keeps_bins_in_its_table_and_says_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(watching, "entropy", lambda rows: torch.tensor(0.0, dtype=torch.float64))
    line = Line("text")
    line.run(*line.fit(tmp_path, "a", "--trainer.max_steps=4", "--run.test_after_fit=false"))
    out = capsys.readouterr().out
    header = (line.folder(tmp_path) / "a/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val/skill", "val/entropy", "val/row_rank", "val/ce/00", "val/accuracy/19"} <= {*header}
    (said,) = [each for each in out.splitlines() if each.startswith("validation at 4")]
    assert "val/skill" in said and "val/ce/" not in said
    assert out.count("have an entropy of 0.00 nats") == 1 and "update 4/4" in out
    assert "val/ce/" not in (line.folder(tmp_path) / "a/report.md").read_text()
