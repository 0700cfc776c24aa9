"""The sweep over ways back: what a cell counts and keeps, which way wins, and that a stopped sweep goes on."""

import json
from dataclasses import replace

import pytest
import torch

from projects.text import goals, made
from projects.text.commands import spelled
from projects.text.kept import Kept
from projects.text.sampling import Sampling
from projects.text.sweep import HEAD, KINDS, SamplerOptions, Sweep, Walked, by_seed, line, winner
from shared.training.report import Metric
from tests.lines import Line
from tests.text.trunks import text_module


@pytest.fixture(scope="module")
def module():
    return text_module()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_counts_every_call_of_the_network(module, kind):
    seen = []
    hook = module.network.register_forward_hook(lambda *given: seen.append(1))
    module.walked([0, 1], Sampling(steps=5, kind=kind))
    hook.remove()
    assert Walked(kind, 5, 0).calls == len(seen)


def test_a_full_sweep_is_larger_in_every_way():
    plain, full = SamplerOptions(), SamplerOptions(full=True)
    assert (plain.samples, len([*plain.walks()])) == (500, 6 * 5)
    assert (full.samples, len([*full.walks()])) == (2000, 6 * 6 * 3)
    assert {walked.steps for walked in full.walks()} - {walked.steps for walked in plain.walks()} == {256}


@pytest.fixture
def sweep(module, monkeypatch, tmp_path):
    monkeypatch.setattr(made, "NOVELTY_WINDOW", 100)
    options = SamplerOptions(samples=6, kinds=["ddim", "heun"], steps=[2, 3])
    return lambda: Sweep(module, options, Kept(tmp_path / "sampler.json"))


def test_a_sweep_that_was_stopped_goes_on_where_it_stood(sweep, monkeypatch, capsys):
    first = sweep()
    found = [first.cell(walked) for walked in first.walks[:3]]
    again, seen = sweep(), []
    monkeypatch.setattr(Sweep, "measured", lambda self, walked: seen.append(walked) or [Metric("tokens_per_s", 1.0, 1)])
    assert [again.cell(walked) for walked in again.walks[:3]] == found and not seen
    again.cell(again.walks[3])
    assert seen == again.walks[3:] and "4 cells of 6 sentences, 3 of them are kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changed",
    [
        lambda module: text_module(seed=1),
        lambda module: setattr(module, "sampling", replace(module.sampling, logit_temperature=0.9)),
        lambda module: setattr(module, "randomness", replace(module.randomness, seed=5)),
    ],
)
def test_a_cell_of_other_weights_options_or_seeds_is_measured_anew(sweep, changed):
    once = sweep()
    once.module = text_module()
    once.cell(once.walks[0])
    again = Sweep(changed(once.module) or once.module, once.options, once.kept)
    assert len(once.kept.cells) == 1 and len(again.missing()) == 4


def test_a_cell_of_more_sentences_is_measured_anew(sweep, module):
    once = sweep()
    once.cell(once.walks[0])
    assert len(once.missing()) == 3
    assert len(Sweep(module, replace(once.options, samples=7), once.kept).missing()) == 4


def test_another_seed_draws_others_and_leaves_the_seed_of_the_run(sweep, module, monkeypatch):
    drawn, walk = [], goals.drawn
    monkeypatch.setattr(goals, "drawn", lambda *given: drawn.append(walk(*given)) or drawn[-1])
    one = sweep()
    seed = module.randomness
    for walked in (Walked("ddim", 2, 0), Walked("ddim", 2, 1)):
        one.measured(walked)
    assert drawn[0] != drawn[1] and module.randomness is seed
    assert drawn[0] == walk(module, replace(module.sampling, kind="ddim", steps=2), 6)


def cell(parse, bigram, half=0.02):
    share = {} if parse is None else {"parse": Metric("parse", parse, 500, parse - half, parse + half)}
    return {**share, "bigram_kl_excess": Metric("bigram_kl_excess", bigram, 500)}


def test_the_winner_parses_best_and_among_equals_is_nearest_to_the_true_pairs():
    table = {
        Walked("ddpm", 64, 0): cell(0.92, 0.01),
        Walked("ddim", 64, 0): cell(0.94, 0.03),
        Walked("heun", 64, 0): cell(0.90, -0.01),
        Walked("switched", 64, 0): cell(0.939, 0.02),
    }
    assert winner(table).kind == "ddpm"
    assert winner({walked: each for walked, each in table.items() if walked.kind != "ddpm"}).kind == "switched"


def test_without_a_grammar_the_pairs_alone_decide_and_the_row_says_what_there_is():
    table = {Walked("ddpm", 8, 0): cell(None, 0.2), Walked("heun", 8, 0): cell(None, 0.1)}
    assert winner(table).kind == "heun"
    metrics = {**table[Walked("heun", 8, 0)], "tokens_per_s": Metric("tokens_per_s", 1234.5, 9)}
    said = dict(zip(HEAD, line(Walked("heun", 8, 0), metrics)))
    assert said["calls"] == "15" and said["parse rate"] == "-" and said["bigram KL"] == "+0.1000"


def test_seeds_of_one_way_are_one_row_with_the_interval_of_all_their_sentences():
    found = [(Walked("ddpm", 8, n), cell(parse, kl)) for n, (parse, kl) in enumerate([(0.9, 0.1), (0.8, 0.3)])]
    (row,) = by_seed(found).values()
    assert row["parse"].value == pytest.approx(0.85) and row["parse"].n == 1000
    assert row["parse"].high - row["parse"].low == pytest.approx(2 * 1.96 * (0.85 * 0.15 / 1000) ** 0.5, rel=0.1)
    assert row["bigram_kl_excess"].value == pytest.approx(0.2)


def test_bench_of_something_is_the_verb_of_that_name():
    line = spelled(["bench", "--run", "a", "--what", "sampler", "--num-samples", "9", "--full"])
    assert line == ["sampler", "--ckpt_path", "a", "--sampler.samples", "9", "--sampler.full=true"]
    assert spelled(["bench", "--run", "sampler", "--what", "sampler"]) == ["sampler", "--ckpt_path", "sampler"]
    assert spelled(["bench", "--what=sampler", "--run=a"]) == ["sampler", "--ckpt_path=a"]


@pytest.mark.usefixtures("at_home")
def test_the_command_prints_the_table_keeps_it_and_measures_nothing_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(made, "NOVELTY_WINDOW", 100)
    text = Line("text")
    text.run(*text.fit(tmp_path, "a", "--trainer.max_steps=2", "--run.test_after_fit=false"))
    folder = text.folder(tmp_path) / "a"
    given = ["bench", "--what", "sampler", "--run", str(folder), "--num-samples", "4", "--sampler.steps=[2]"]
    text.run(*spelled(given))
    said = capsys.readouterr().out
    assert "6/6  switched 2: parse rate 0.000" in said and "winner of all: " in said
    table = (folder / "sampler.md").read_text()
    assert table.count("\n| ") == 6 and "| heun | 2 | 3 | 0.000" in table
    assert len(json.loads((folder / "sampler.json").read_text())["cells"]) == 6
    monkeypatch.setattr(torch.nn.Module, "__call__", None)
    text.run(*spelled(given))
    assert "6 of them are kept" in capsys.readouterr().out and (folder / "sampler.md").read_text() == table


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sampler.steps=[4]"], "sampler walks with the weights of a run and none is named; give --run"),
        (["--sampler.kinds=[eulr]"], "sampler.kinds has eulr; wanted some of ddpm, ddim"),
        (["--sampler.steps=[0]"], "sampler.samples and sampler.steps count from 1, and 0 is given"),
    ],
)
def test_a_sweep_of_nothing_is_refused(flags, said, capsys):
    line = Line("text")
    with pytest.raises(SystemExit):
        line.run("sampler", *line.arguments, *flags)
    assert said in " ".join(capsys.readouterr().err.split())
