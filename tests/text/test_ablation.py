"""The ablation: an arm changes one thing, is trained once, and stands beside the base with what is known of both."""

import json

import pytest
import yaml

from projects.text import ablation, made
from projects.text.ablation import ARMS, BASE, Ablation, AblationOptions, difference, flags, line, resampled
from projects.text.commands import spelled
from shared.training import callbacks
from shared.training.errors import Mistake
from shared.training.layers import flag_values
from shared.training.report import Metric
from tests.lines import ROOT, Line, parsed
from tests.shared.training.loop import Killed, die_at
from tests.text.trunks import text_module

pytestmark = [
    pytest.mark.usefixtures("at_home"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning"),
]
EVERY = yaml.safe_load((ROOT / ARMS).read_text())
QUICK = [f"--config=configs/text/{name}.yaml" for name in ("base", "nano", "quick")]


def leaf(tree, key):
    for part in key.split("."):
        tree = tree[part]
    return tree


def test_every_arm_sets_something_otherwise_than_the_quick_run_and_nothing_else():
    base = yaml.safe_load(parsed("text", QUICK, "fit"))
    for name, settings in EVERY.items():
        assert name != BASE and "," not in name
        assert any(leaf(base, key) != value for key, value in settings.items()), name
    everything = [flag for name, settings in EVERY.items() if name != "elbo" for flag in flags(settings)]
    arm = yaml.safe_load(parsed("text", [*QUICK, *everything], "fit"))
    last = {key: value for settings in EVERY.values() for key, value in settings.items() if settings != EVERY["elbo"]}
    assert all(leaf(arm, key) == value for key, value in last.items())


# --- the table


def metric(value, half=None):
    return Metric("parse", value, 100, *(() if half is None else (value - half, value + half)))


def test_a_difference_is_known_as_well_as_both_sides_together():
    assert difference([metric(0.5, 0.03)], [metric(0.4, 0.04)]) == "+0.100 (+0.050 .. +0.150)"
    assert difference([metric(0.5, 0.03)], [metric(0.4)]) == "+0.100"


def test_of_several_seeds_the_differences_are_taken_seed_by_seed():
    arm, base = [metric(0.5, 0.1), metric(0.9, 0.1)], [metric(0.4, 0.1), metric(0.6, 0.1)]
    assert difference(arm, base) == "+0.200 (+0.100 .. +0.300)"


def test_a_row_says_what_was_measured_and_of_a_failed_arm_nothing():
    base = [{"parse": metric(0.4, 0.04), "seconds": Metric("seconds", 100.0, 1)}]
    arm = [{"parse": metric(0.5, 0.03), "seconds": Metric("seconds", 0.0, 1)}]
    assert line("x", arm, base) == ["x", "0.5", "+0.100 (+0.050 .. +0.150)", *["-"] * 7]
    assert line(BASE, base, base) == [BASE, "0.4", *["-"] * 7, "100"]
    assert line("y", [], base) == ["y", *["-"] * 9]


def test_sentences_drawn_again_spread_as_a_share_of_as_many_does(monkeypatch):
    monkeypatch.setattr(made, "NOVELTY_WINDOW", 100)
    monkeypatch.setattr(ablation, "RESAMPLED", ("parse",))
    monkeypatch.setattr(ablation, "REPEATS", 400)
    module = text_module()
    good = tuple(module.data.grammar.sample(0, 0).words)
    half = resampled(module, [good] * 30 + [(*good, *good)] * 70)
    assert half == {"parse": pytest.approx(1.96 * (0.3 * 0.7 / 100) ** 0.5, rel=0.15)}


# --- the command


def test_bench_of_an_ablation_is_of_the_quick_run_and_has_short_names():
    said = spelled(["bench", "--what", "ablation", "--updates", "9", "--only=no-bias,elbo"])
    assert said == ["ablation", *spelled(["ablation"])[1:], "--ablation.updates", "9", "--ablation.only=no-bias,elbo"]
    assert said[1:4] == QUICK


def test_arms_are_the_base_and_those_that_are_named(capsys):
    assert list(AblationOptions().arms) == [BASE, *EVERY] and list(AblationOptions(only="elbo").arms) == [BASE, "elbo"]
    with pytest.raises(Mistake, match=r"has no-bia, which is no arm; those are .* Did you mean `no-bias`"):
        _ = AblationOptions(only="elbo,no-bia").arms


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Of a tiny ablation, and the folder of its arms."""
    root, text = tmp_path_factory.mktemp("runs"), Line("text")
    own = ["--updates=8", "--only=no-bias,heun,elbo", f"--run.root={root}", "--run.validate_every=null"]
    few = ["--ablation.samples=4", "--ablation.sentences=2", "--ablation.levels=2"]
    return spelled(["bench", *text.arguments, "--what=ablation", *own, *few]), text.folder(root, "ablation")


@pytest.fixture(scope="module")
def done(arguments):
    """The ablation, whose first arm beside the base was killed and whose elbo cannot be trained; what it said."""
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(made, "NOVELTY_WINDOW", 100)
        patch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
        build, trained = callbacks.build, Ablation.trained

        def dying(run, *given):
            return [*(die_at(6, "on_train_batch_end") if run.folder.name == "no-bias-0" else []), *build(run, *given)]

        with patch.context() as killed, pytest.raises(Killed):
            killed.setattr(callbacks, "build", dying)
            Line("text").run(*arguments[0])

        def refused(self, name, *given):
            if name == "elbo":
                raise Mistake("it cannot be.")
            return trained(self, name, *given)

        patch.setattr(Ablation, "trained", refused)
        Line("text").run(*arguments[0])
    return said


def test_arms_are_runs_and_those_that_only_walk_are_none(arguments, done):
    folder = arguments[1]
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"base-0", "no-bias-0"}
    settings = yaml.safe_load((folder / "no-bias-0/config.yaml").read_text())
    assert settings["model"]["network"]["logit_bias"] is False and settings["trainer"]["max_steps"] == 8


def test_a_killed_ablation_goes_on_and_a_killed_arm_is_taken_up(arguments, done):
    starts = {
        name: json.loads((arguments[1] / name / "manifest.json").read_text())["starts"]
        for name in ("base-0", "no-bias-0")
    }
    assert [start["resumed"] for start in starts["base-0"]] == [False]
    assert [start["resumed"] for start in starts["no-bias-0"]] == [False, True]


def test_the_table_has_every_arm_and_says_which_could_not_be_trained(arguments, done):
    table = (arguments[1] / "ablation.md").read_text().splitlines()
    cells = {row.split(" | ")[0][2:]: row.split(" | ")[1:] for row in table if row.startswith("| ")}
    assert list(cells) == ["arm", "base", "no-bias", "elbo", "heun"]
    assert cells["no-bias"][1].startswith("+0.000 (") and cells["heun"][2] != "-" and cells["heun"][4] == "-"
    assert set(cells["elbo"]) == {"-", "- |"} and table[-1] == "elbo-0: it cannot be."
    assert any(line.startswith("   3/4  elbo-0: failed") for line in done)


def test_what_is_finished_is_read(arguments, done, monkeypatch, capsys):
    before = (arguments[1] / "ablation.json").read_text()
    monkeypatch.setattr("shared.training.cli.PalimpsestCLI.fit", None)
    monkeypatch.setattr(ablation, "sentences", None)
    Line("text").run(*[flag.replace(",elbo", "") for flag in arguments[0]])
    assert "3/3  heun-0: parse rate" in capsys.readouterr().out
    assert (arguments[1] / "ablation.json").read_text() == before


def test_a_run_of_other_settings_is_not_taken_for_an_arm(arguments, done, capsys):
    other = [flag.replace("updates=8", "updates=9") for flag in arguments[0]]
    assert dict(flag_values(other))["ablation.updates"] == "9"
    with pytest.raises(SystemExit):
        Line("text").run(*other)
    said = " ".join(capsys.readouterr().err.split())
    assert "base-0 was trained with other settings (trainer.max_steps 8, now 9); move it away" in said


def test_an_ablation_of_a_run_is_refused(arguments, done, capsys):
    with pytest.raises(SystemExit):
        Line("text").run(*spelled(["bench", "--what", "ablation", "--run", str(arguments[1] / "base-0")]))
    assert "ablation trains runs of its own; leave --run out" in capsys.readouterr().err
