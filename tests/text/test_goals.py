"""Goals: what counts as reached, what is counted, and that the command says it for a run beside its twin."""

import json
import math

import pytest
import yaml

from packages.text.table import Row
from projects.text import goals, levels, made
from projects.text.commands import spelled
from projects.text.evaluate import standing
from projects.text.goals import GOALS, GoalsOptions, core, judged, more, of, verdict
from projects.text.options import Options
from shared.training.report import Metric
from tests.lines import ROOT, Line
from tests.text.corpora_made import restaurants
from tests.text.trunks import text_module

WANTED = yaml.safe_load((ROOT / GOALS).read_text())


@pytest.mark.parametrize(
    ("goal", "value", "twin", "said"),
    [
        ({"must": 0.9, "moonshot": 0.98}, 0.89, None, "no, by 0.01"),
        ({"must": 0.9, "moonshot": 0.98}, 0.9, None, "yes"),
        ({"must": 0.9, "moonshot": 0.98}, 0.98, None, "moonshot"),
        ({"must": 0.9, "moonshot": 0.98, "twin": 0.01}, 0.98, None, "yes"),
        ({"must": 0.9, "moonshot": 0.98, "twin": 0.01}, 0.98, 0.995, "yes"),
        ({"must": 0.9, "moonshot": 0.98, "twin": 0.01}, 0.98, 0.985, "moonshot"),
        ({"must": 0.25, "moonshot": 0.08, "twin": 0.05, "better": "less"}, 0.07, 0.03, "moonshot"),
        ({"must": 0.25, "moonshot": 0.08, "twin": 0.05, "better": "less"}, 0.07, 0.01, "yes"),
        ({"must": 0.25, "moonshot": 0.08, "better": "less"}, 0.3, None, "no, by 0.05"),
        ({"must": 0.05, "moonshot": 0.01, "better": "near"}, -0.06, None, "no, by 0.01"),
        ({"must": 0.05, "moonshot": 0.01, "better": "near"}, -0.01, None, "moonshot"),
        ({"moonshot": 0.85}, 0.8, None, "no"),
    ],
)
def test_a_goal_is_reached_in_its_direction_and_a_moonshot_beside_the_twin(goal, value, twin, said):
    assert verdict(goal, value, twin) == said


def test_what_was_not_measured_reaches_nothing():
    row = judged({"goal": "a", "must": 1, "metric": "gone"}, {}, {"gone": Metric("gone", 0.5, 3)})
    assert row == ["a", "1", "-", "not measured", "-", "0.5", "-"]


def row(name, value, true, n=500):
    return name, Row(name, value, n, "", "", {"true": true, "unigram": 2 * true})


def test_goals_count_what_lies_above_or_beside_the_true_sampler():
    names = ["agreement/quotes/5", "agreement/quotes/3", "agreement/subject-verb/1"]
    found = dict(
        [
            row("unigram_kl", 0.05, 0.03),
            row("distinct_2", 0.57, 0.6),
            row("novel", 0.4, 0.5),
            row(names[0], 0.2, 1.0, 99),
        ]
        + [row(name, value, 1.0) for name, value in zip(names[1:], (0.7, 0.8))]
        + [row("agreement/quotes", 0.1, 1.0)]
    )
    said = {metric.name: metric for metric in standing(found)}
    assert said["unigram_kl_excess"].value == pytest.approx(0.02) and said["unigram_kl_excess"].floors["true"] == 0
    assert said["unigram_kl_excess"].floors["unigram"] == pytest.approx(0.03)
    assert said["distinct_2_off"].value == pytest.approx(-0.05) and said["novel_share"].value == pytest.approx(0.8)
    assert said["agreement_least"].value == 0.7 and set(said) == {
        "unigram_kl_excess", "distinct_2_off", "novel_share", "agreement_least",
    }  # fmt: skip


@pytest.mark.parametrize("level", ["micro", "small"])
def test_every_goal_is_one_that_is_measured(level, monkeypatch):
    """Under the names that the goals ask for; agreement needs sentences that parse, skill a level that t reaches."""
    monkeypatch.setattr(made, "NOVELTY_WINDOW", 100)
    monkeypatch.setattr(goals, "TIMED", (2, 2))
    monkeypatch.setattr(levels, "ASKED", 4)
    module = text_module()
    module.sampling.steps = 2
    options = GoalsOptions(samples=8, sentences=4, levels=2)
    found = {*core(module, options), *more(module, options)}
    asked = {goal["metric"] for goal in of(Options(level=level))}
    assert asked - found <= {"agreement_least", "cross_entropy_gap"}
    assert {"parse_at_4", "skill_at_star", "bound_gap"} <= found and "level" not in {*found}


def test_short_walks_are_asked_only_of_who_can_take_them():
    module = text_module(objective="autoregressive")
    assert list(goals.short(module, 8, 4)) == []


def test_goals_name_a_direction_that_exists_and_a_moonshot_beyond_the_must():
    for goal in WANTED:
        better = goal.get("better", "more")
        assert better in ("more", "less", "near") and {"goal", "metric", "command", "run"} <= goal.keys()
        if {"must", "moonshot"} <= goal.keys():
            assert (goal["moonshot"] > goal["must"]) == (better == "more")


def test_bench_of_a_run_is_goals_and_without_one_the_bench_of_the_house():
    line = spelled(["bench", "--run", "a", "--vs=b", "--num-samples", "9"])
    assert line == ["goals", "--ckpt_path", "a", "--goals.vs=b", "--goals.samples", "9"]
    assert spelled(["bench", "--config", "x.yaml"]) == ["bench", "--config", "x.yaml"]
    assert spelled(["sample", "--run", "a", "--num-samples", "9"])[-2:] == ["--sampling.count", "9"]


@pytest.mark.usefixtures("at_home")
def test_goals_of_no_run_are_refused(capsys):
    line = Line("text")
    with pytest.raises(SystemExit):
        line.run("goals", *line.arguments)
    assert "goals measures the weights of a run and none is named; give --run" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the model, one of a twin, and one on other rows; made tiny."""
    root, line = tmp_path_factory.mktemp("runs"), Line("text")
    special = {"model": (), "twin": ("--config=configs/text/autoregressive.yaml",), "longer": ("--data.length=24",)}
    for name, flags in special.items():
        line.run(*line.fit(root, name, *flags, "--trainer.max_steps=2", "--run.test_after_fit=false"))
    return line, line.folder(root)


@pytest.mark.usefixtures("at_home")
def test_the_command_says_it_of_a_run_beside_its_twin_and_keeps_it(trained, monkeypatch, capsys):
    line, folder = trained
    monkeypatch.setattr(made, "NOVELTY_WINDOW", 100)
    given = ["bench", "--run", str(folder / "model"), "--vs", str(folder / "twin"), "--num-samples", "8"]
    line.run(*spelled(given), "--goals.sentences=4", "--goals.levels=2")
    said = capsys.readouterr().out
    assert "parse rate of micro" in said and "parse rate, unconditional" not in said
    kept = json.loads((folder / "model/bench.json").read_text())
    twin = {each["name"]: each["value"] for each in kept["vs"]}
    assert kept["samples"] == 8 and twin["bound_gap"] > 0 and "sampled_tokens_per_s" not in twin
    assert "| bound minus true entropy" in (folder / "model/bench.md").read_text()


@pytest.mark.usefixtures("at_home")
def test_a_twin_of_other_data_is_refused(trained, capsys):
    line, folder = trained
    given = ["bench", "--run", str(folder / "model"), "--vs", str(folder / "longer")]
    with pytest.raises(SystemExit):
        line.run(*spelled(given))
    assert "was trained on other data: its sentences is" in capsys.readouterr().err


# --- of real text


@pytest.fixture(scope="module")
def read_runs(tmp_path_factory):
    """A run on pairs and its twin, and a file of other pairs."""
    root, line = tmp_path_factory.mktemp("read"), Line("text")
    restaurants(root / "e2e.txt")
    restaurants(root / "other.txt", names=("Fitz", "Wok"))
    text = [
        "--config=configs/text/e2e_conditional.yaml",
        f"--data.path={root}/e2e.txt",
        f"--data.cache_dir={root}/cache",
    ]
    text += ["--data.min_count=1", "--data.length=28", "--data.batch_size=16", "--data.micro_batch=16"]
    for name, flags in {"model": (), "twin": ("--config=configs/text/autoregressive.yaml",)}.items():
        short = ("--trainer.max_steps=2", "--run.test_after_fit=false", "--snapshots.every=null")
        line.run(*line.fit(root, name, *text, *flags, *short))
    return line, line.folder(root), root


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize("file", ["e2e.txt", "other.txt"])
def test_a_run_on_real_text_stands_beside_its_twin_on_any_file(read_runs, file, monkeypatch, capsys):
    line, folder, root = read_runs
    monkeypatch.setattr(goals, "TIMED", (2, 2))
    given = ["bench", "--run", str(folder / "model"), "--vs", str(folder / "twin"), "--num-samples", "8"]
    more = [] if file == "e2e.txt" else [f"--data.path={root}/{file}"]
    line.run(*spelled(given), "--goals.sentences=4", "--goals.levels=2", *more)
    said = capsys.readouterr().out
    assert "fields that are said" in said and "parse rate" not in said and "WikiText" not in said
    kept = json.loads((folder / "model/bench.json").read_text())
    mine, twin = ({each["name"]: each for each in kept[whose]} for whose in ("run", "vs"))
    gap, ratio = mine["nats_per_word_over_twin"], mine["perplexity_over_twin"]
    assert gap["value"] == pytest.approx(mine["nats_per_token"]["value"] - twin["nats_per_token"]["value"])
    assert ratio["value"] == pytest.approx(mine["perplexity"]["value"] / twin["perplexity"]["value"])
    assert gap["low"] < gap["value"] < gap["high"] and gap["floors"]["twin"] == 0
    assert ("bigram" in mine["nats_per_token"]["floors"]) == (file == "e2e.txt")
    assert "| E2E, bound given the fields over the autoregressive twin" in (folder / "model/bench.md").read_text()


def test_the_gap_to_a_twin_is_as_uncertain_as_the_draws_of_both():
    def known(value, wide):
        return {"perplexity": Metric("perplexity", value, 9, value * math.exp(-wide), value * math.exp(wide))}

    found = goals.behind(known(8.0, 0.3), known(4.0, 0.4))
    gap, ratio = found["nats_per_word_over_twin"], found["perplexity_over_twin"]
    assert (gap.low, gap.value, gap.high) == pytest.approx((math.log(2) - 0.5, math.log(2), math.log(2) + 0.5))
    assert (ratio.low, ratio.high) == pytest.approx((2 * math.exp(-0.5), 2 * math.exp(0.5)))
    exact = goals.behind(known(8.0, 0.3), known(4.0, 0.0))["nats_per_word_over_twin"]
    assert exact.high - exact.value == pytest.approx(0.3)


@pytest.mark.usefixtures("at_home")
def test_a_report_on_pairs_says_whether_what_was_given_is_said_beside_people(read_runs):
    line, folder, _ = read_runs
    line.run("test", f"--ckpt_path={folder}/model", "--model.likelihood.levels=2")
    said = json.loads((folder / "model/report.json").read_text())
    found = {metric["name"]: metric for metric in said["metrics"]}
    assert {"true", "nearest", "other"} <= found["bleu"]["floors"].keys() & found["fields"]["floors"].keys()
    assert found["nats_per_token"]["floors"].keys() == {"unigram", "bigram"} and "fields/food" in found
    text = (folder / "model/report.md").read_text()
    assert "fields said" in text and "in 32 field sets" in text and "what is given is not counted" in text


@pytest.mark.parametrize(
    ("text", "metrics"),
    [
        ({"source": "e2e"}, {"nats_per_word_over_twin", "perplexity_over_twin", "unigram_kl_excess"}),
        ({"source": "e2e", "conditional": True}, {"fields", "bleu", "nats_per_word_over_twin", "unigram_kl_excess"}),
        ({"source": "text"}, {"perplexity_over_twin", "nats_per_word_over_twin", "unigram_kl_excess"}),
    ],
)
def test_goals_of_real_text_are_those_of_its_kind(text, metrics):
    assert {goal["metric"] for goal in of(Options(**text))} == metrics


def test_what_only_is_told_reaches_nothing():
    assert verdict({"better": "less"}, 0.3, None) == "-"
