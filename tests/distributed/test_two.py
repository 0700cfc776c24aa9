"""Two ranks against one process: what must be equal, what must differ, and how both of them end."""

import shutil

import pytest
import torch

from shared import objectives
from shared.training.runs import read_json
from tests.distributed import adapted, arc, two
from tests.distributed.facts import Alone, facts, furthest, losses, spread, table
from tests.distributed.project import train
from tests.distributed.settings import copy_of_third, halfway


@pytest.fixture(scope="module")
def ranks(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    (folder / "grids").mkdir()
    arc.trained(folder / "grids")
    adapted.base(folder / "adapters")
    return launch("tests.distributed.two", 2, folder)


@pytest.fixture(scope="module")
def one(tmp_path_factory, at_home):
    return Alone(tmp_path_factory.mktemp("one"))


# --- the same learning


@pytest.mark.parametrize("name", ["k1", "k2", "k4", "clipped", "normalised", "muon"])
def test_two_ranks_with_ragged_masks_learn_what_one_process_learns(ranks, one, name):
    """Loss scaling, accumulation (k micro-batches), clipping after the all-reduce, running statistics, Muon."""
    for rank in ranks(name):
        assert furthest(rank["weights"], one(name)["weights"]) < 1e-6


def test_accumulating_changes_nothing(ranks):
    assert furthest(ranks("k2")[0]["weights"], ranks("k1")[0]["weights"]) < 1e-6
    assert furthest(ranks("k4")[0]["weights"], ranks("k1")[0]["weights"]) < 1e-6


def test_the_logged_norm_is_that_of_one_process_and_clipping_bites(ranks, one):
    together, single = (table(home / "toy/nano" / name, "optim/grad_norm") for home, name in
                        ((ranks.folder / "clipped", "run"), (one.folder, "clipped")) if one("clipped"))  # fmt: skip
    assert furthest([*together.values()], [*single.values()]) < 1e-6
    assert min(together.values()) > 0.05
    assert furthest(ranks("clipped")[0]["weights"], ranks("k1")[0]["weights"]) > 1e-4


def test_two_ranks_log_what_one_process_logs(ranks, one):
    assert one("k1")
    for column in ("train/loss", "train/units", "train/low", "train/high"):
        together, single = (
            table(run, column) for run in (ranks.folder / "k1/toy/nano/run", one.folder / "toy/nano/k1")
        )
        assert together.keys() == single.keys()
        assert furthest([*together.values()], [*single.values()]) < 1e-6


def test_the_average_is_equal_on_ranks_and_that_of_one_process(ranks, one):
    first, second = (rank["average"] for rank in ranks("averaged"))
    assert first == second and len(first) == 2  # exponential and one power-function track
    assert furthest(first, one("averaged")["average"]) < 1e-6
    assert furthest(first[0], ranks("averaged")[0]["weights"]) > 1e-4


def test_running_statistics_are_equal_on_ranks_and_those_of_one_process(ranks, one):
    first, second = (rank["statistics"] for rank in ranks("normalised"))
    assert first == second and first[0] > 0
    assert furthest(first, one("normalised")["statistics"]) < 1e-6


def test_a_calibrated_schedule_is_equal_on_ranks_and_that_of_one_process(ranks):
    first, second = ranks("calibrated")
    assert first == second
    assert furthest(first, two.calibrate(slice(None))) < 1e-12
    assert furthest(first, torch.linspace(0, 1, 9).tolist()) > 1e-3


def test_a_mean_over_what_the_corruption_counted_is_global(ranks):
    first, second = ranks("counted_by_the_corruption")
    assert (first + second) / 2 == pytest.approx((3 + 4) / (1 + 5))


def test_contrast_over_two_ranks_is_that_of_the_joined_batch(ranks):
    a, b = (x.requires_grad_() for x in two.pairs())
    loss = objectives.info_nce(a, b, temperature=0.5)
    loss.sum().backward()
    for part, whole in zip(zip(*ranks("contrast")), (loss.tolist(), a.grad.tolist(), b.grad.tolist())):
        assert furthest([*part[0], *part[1]], whole) < 1e-6


# --- the same data, and different noise


def test_ranks_share_no_sample_and_together_hold_the_batch_of_one_process(ranks, one):
    first, second = (spread([rank], "position") for rank in ranks("k1"))
    assert all(not set(first[update]) & set(second[update]) for update in first)
    for name in ("k1", "k2", "k4"):
        assert spread(ranks(name), "position") == spread([one("k1")], "position")
        assert spread(ranks(name), "index") == spread([one("k1")], "index")


def test_times_are_stratified_over_the_batch_of_both_ranks(ranks, one):
    times = spread(ranks("k1"), "t")
    assert times == spread([one("k1")], "t")
    for values in times.values():
        assert sorted(int(t * len(values)) for t in values) == list(range(len(values)))
    first, second = (spread([rank], "t") for rank in ranks("k1"))
    assert all(not set(first[update]) & set(second[update]) for update in first)


def test_noise_by_sample_is_that_of_one_process_on_any_split(ranks, one):
    assert spread(ranks("k1"), "noise") == spread([one("k1")], "noise") == spread(ranks("k4"), "noise")


def test_noise_by_rank_differs_between_ranks(ranks):
    first, second = ([step["noise"] for step in rank] for rank in ranks("one_rank_draws_its_own_noise"))
    assert all(a != b for a, b in zip(first, second))


def test_dropout_differs_between_ranks(ranks):
    first, second = ([step["mask"] for step in rank] for rank in ranks("one_rank_draws_its_own_noise"))
    assert all(a != b for a, b in zip(first, second))


def test_phases_are_equal_on_ranks(ranks):
    first, second = ranks("phases")
    assert first == second and set(first) == {"short", "long"}


def test_a_branch_that_one_rank_alone_takes_finishes(ranks):
    first, second = ranks("a_branch_on_one_rank")
    assert first["update"] == second["update"] == 3
    assert first["weights"] == second["weights"]


# --- evaluation


def test_seven_samples_are_evaluated_once_each(ranks):
    first, second = (rank["validated"] for rank in ranks("evaluated"))
    assert sorted(first + second) == [100 + i for i in range(7)]
    assert {len(first), len(second)} == {3, 4}


def test_a_validation_of_seven_samples_is_that_of_one_process(ranks, one):
    for rank in ranks("evaluated"):
        assert rank["metrics"]["val/error"] == pytest.approx(one("evaluated")["metrics"]["val/error"], abs=1e-6)


def test_a_rank_with_nothing_to_validate_is_refused_before_the_others_wait_for_it(ranks):
    for rank in ranks("nothing_for_one_rank_to_validate"):
        assert "Validation has no batch for rank 0 of 2" in rank["raised"] and rank["update"] == 0


def test_metrics_are_merged_not_averaged(ranks):
    right = sum(i**2 for i in range(7)) / 7
    assert ranks("a_metric_of_seven") == [pytest.approx(right)] * 2


@pytest.mark.parametrize(("name", "of"), [("ranks", "alone"), ("raw-cut", "raw")])
def test_grids_are_answered_on_two_ranks_as_in_one_process(ranks, name, of):
    """By whole copies, and by the raw weights of a cut network."""
    assert ranks("grids") == [None, None]
    home = ranks.folder / "grids/arc/nano"
    assert arc.answers(home / name) == arc.answers(home / of)
    assert arc.answers(home / "raw") != arc.answers(home / "alone")


# --- files


def test_rank_1_writes_no_file(ranks):
    first, second = ranks("files_of_each_rank")
    assert second == []
    there = {file.removeprefix("toy/nano/run/") for file in first}
    assert {
        "metrics.csv",
        "train.log",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "samples/2/picture.txt",
    } <= there


def test_ranks_that_nobody_gave_a_name_agree_on_one_folder(ranks):
    assert ranks("nobody_names_the_run") == [["001", "002"]] * 2


# --- how it ends


def test_a_nan_on_rank_1_stops_both_before_the_same_update(ranks):
    first, second = ranks("nan_on_one_rank")
    assert first["update"] == second["update"] == 2
    assert first["weights"] == second["weights"]
    for rank in (first, second):
        assert "The gradient of update 3 is not finite" in rank["raised"]
    evidence = torch.load(ranks.folder / "nan_on_one_rank/toy/nano/run/nonfinite-3.pt", weights_only=True)
    assert len(evidence["ranks"]) == 2


def test_a_full_disk_stops_both_ranks(ranks):
    for rank in ranks("a_full_disk"):
        assert "No space left on device" in rank["raised"] and rank["update"] == 2


def test_sigterm_to_rank_0_stops_both_after_the_same_update_with_last_ckpt(ranks):
    first, second = ranks("sigterm_to_rank_0")
    assert first["raised"] == second["raised"] == "SystemExit: 143"
    assert first["update"] == second["update"] == 5  # the next logging point
    assert max(first["seconds"], second["seconds"]) < 20
    stored = torch.load(ranks.folder / "sigterm_to_rank_0/toy/nano/run/checkpoints/last.ckpt", weights_only=True)
    assert stored["global_step"] == 5


def test_raw_weights_are_back_on_both_ranks_after_an_exception_in_validation(ranks):
    for rank in ranks("an_exception_in_validation"):
        assert rank["before"] == rank["after"]
        assert furthest(rank["average"], rank["after"]) > 1e-4  # else a swap would not show


# --- going on


@pytest.mark.parametrize(
    ("made_by", "folder"), [("two ranks", "resumed/toy/nano/run"), ("a cut network", "cut_and_resumed/toy/nano/cut")]
)
def test_saved_by_two_ranks_it_goes_on_in_one_process(ranks, tmp_path, made_by, folder):
    """The next three losses, the row that two ranks began and one process finished, the weights and their average."""
    source = ranks.folder / folder
    home = tmp_path / "toy/nano"
    shutil.copytree(source, home / "run")
    copy_of_third(tmp_path, "run", "again")
    again = facts(train(tmp_path, "again", halfway(), resume=True))
    assert [step["update"] for step in again["seen"]] == [4, 5, 6]
    assert furthest(again["weights"], ranks("resumed")[0]["weights"]) < 1e-5
    assert furthest(again["average"], ranks("resumed")[0]["average"]) < 1e-5
    assert furthest(of_updates([again])[-3:], of_updates(ranks("resumed"))[-3:]) < 1e-5
    rows, whole = table(home / "again", "train/units"), table(source, "train/units")
    assert rows.keys() == whole.keys() == {2, 4, 6}  # updates 3 and 4 share a row
    assert furthest([*rows.values()], [*whole.values()]) < 1e-5


def of_updates(ranks):
    """The loss of each update: the mean over ranks."""
    return [sum(step) / len(step) for step in zip(*([seen["loss"] for seen in rank["seen"]] for rank in ranks))]


# --- a network cut over both ranks


def test_a_cut_network_learns_what_whole_copies_learn(ranks):
    """Clipped, averaged, evaluated on a ragged split, looked at without a gradient and drawn on the way."""
    for whole, cut in ranks("cut"):
        assert furthest(cut["weights"], whole["weights"]) < 1e-5
        assert furthest(cut["average"], whole["average"]) < 1e-5
        assert cut["metrics"]["val/error"] == pytest.approx(whole["metrics"]["val/error"], abs=1e-5)
    pictures = sorted(file.parent.name for file in (ranks.folder / "cut/toy/nano/cut/samples").rglob("*.txt"))
    assert pictures == ["2", "3"]


def test_a_cut_network_accumulates(ranks, one):
    assert furthest(ranks("cut_and_accumulated")[0]["weights"], ranks("cut_and_accumulated")[1]["weights"]) == 0
    assert ranks("cut_and_accumulated")[0]["update"] == 3


def test_muon_moves_cut_matrices_as_whole_ones(ranks):
    for whole, cut in ranks("cut_with_muon"):
        assert furthest(cut["weights"], whole["weights"]) < 1e-5


def test_a_cut_network_goes_on_from_files_of_cut_and_of_whole_ones(ranks):
    whole, cut = ranks("cut_and_resumed")[0]
    assert len(cut["seen"]) == len(whole["seen"]) == 3
    for rank in ranks("cut_and_resumed"):
        for again in rank:
            assert furthest(again["weights"], ranks("resumed")[0]["weights"]) < 1e-5
            assert furthest(again["average"], ranks("resumed")[0]["average"]) < 1e-5


def test_a_nan_stops_a_cut_network_too(ranks):
    for rank in ranks("cut_and_nan"):
        assert "The gradient of update 3 is not finite" in rank["raised"] and rank["update"] == 2
    evidence = torch.load(ranks.folder / "cut_and_nan/toy/nano/run/nonfinite-3.pt", weights_only=True)
    assert evidence["state_dict"]["network.input.weight"].shape == (16, 7)


def test_a_cut_network_compiles(ranks, one):
    for rank in ranks("cut_and_compiled"):
        assert rank["graphs"] >= 2
        assert furthest(rank["weights"], one("evaluated")["weights"]) < 1e-5
        assert rank["metrics"]["val/error"] == pytest.approx(one("evaluated")["metrics"]["val/error"], abs=1e-5)


@pytest.mark.parametrize("why", ["scalar", "shared"])
def test_what_cannot_be_cut_is_refused_by_name_before_training(ranks, why):
    for said in ranks("not_cut"):
        assert said[why].startswith("The network cannot be cut over processes: ")
        assert why in said[why] and "gate" in said[why] and "set hardware.shard false" in said[why]


def test_a_member_entered_by_a_method_it_does_not_name_is_told_in_a_sentence(ranks):
    for said in ranks("entered_by_the_back_door"):
        assert "computed with a part of weights" in said and "`entries`" in said


def test_a_cut_arc_learns_what_one_process_learns(ranks):
    """A network entered by several methods: losses, and the file, in which everything is whole."""
    assert ranks("cut_grids") == [None] * 2
    alone, cut = (ranks.folder / place for place in ("grids/arc/nano/alone", "cut_grids/arc/nano/cut"))
    assert len(adapted.losses(alone)) == 2
    assert furthest(adapted.losses(cut), adapted.losses(alone)) < 1e-4
    assert adapted.apart(adapted.stored(cut), adapted.stored(alone)) < 1e-4
    assert adapted.kept(cut) == pytest.approx(adapted.kept(alone), rel=0.05)
    assert {file.parent.name for file in (cut / "samples").rglob("*.png")} >= {"1", "2"}
    assert (cut / "report.md").exists() and (cut / "answers.json").exists()


def test_a_cut_arc_goes_on_as_one_process_does_from_either_file(ranks):
    home = ranks.folder / "cut_grids/arc/nano"
    for name, run in (("alone", ranks.folder / "grids/arc/nano/alone"), ("cut", home / "cut")):
        shutil.copytree(run, home / f"{name}-alone")
        arc.learn(ranks.folder / "cut_grids", f"{name}-alone", trainer__max_steps=4, run__resume=True)
    for name in ("cut-alone", "cut-again"):
        assert len(adapted.losses(home / name)) == 4
        assert furthest(adapted.losses(home / name), adapted.losses(home / "alone-alone")) < 1e-4
        assert adapted.apart(adapted.stored(home / name), adapted.stored(home / "alone-alone")) < 1e-3


# --- adapters


@pytest.fixture(scope="module")
def alone(ranks):
    """The folder in which one process has adapted the base as two ranks have."""
    folder = ranks.folder / "adapters"
    assert adapted.finetune(folder, "alone", updates=3) == []
    return folder


@pytest.mark.parametrize("name", ["whole", "cut"])
def test_two_ranks_adapt_as_one_process_does(ranks, alone, name):
    ours, theirs = adapted.run(alone, name), adapted.run(alone, "alone")
    assert furthest(adapted.losses(ours), adapted.losses(theirs)) < 1e-5
    assert adapted.apart(adapted.stored(ours), adapted.stored(theirs)) < 1e-5


def test_adapting_ranks_leave_every_frozen_weight_as_it_was_in_the_base(ranks):
    for whole, cut in ranks("adapters"):
        assert whole == cut == []


def test_rows_of_a_cut_network_are_adapted_as_in_one_process(ranks):
    """Task rows of arc, one of them new to the base; the others, and all that is frozen, stay."""
    assert ranks("cut_rows") == [[], []]
    folder = ranks.folder / "cut_rows"
    assert arc.adapt(folder, ranks.folder / "grids/arc/nano/alone", "alone") == []
    cut, alone = (folder / "arc/nano-lora" / name for name in ("cut", "alone"))
    assert furthest(adapted.losses(cut), adapted.losses(alone)) < 1e-4
    assert adapted.apart(adapted.stored(cut), adapted.stored(alone)) < 1e-4
    assert any("trainable_tokens" in name for name in adapted.stored(cut))


@pytest.mark.parametrize("name", ["whole", "cut"])
def test_files_of_adapting_ranks_hold_adapters_only_and_go_on_in_one_process(ranks, alone, name):
    """Two more updates are those of a run that one process made throughout, on the same base."""
    weights = [key for key in adapted.stored(adapted.run(alone, name)) if not key.startswith("optimizer_states")]
    assert weights and all("lora_" in key for key in weights if key != "averaging_state.updates")
    for run in (name, "alone"):
        shutil.copytree(adapted.run(alone, run), adapted.run(alone, f"{run}-{name}-again"))
        adapted.finetune(alone, f"{run}-{name}-again", updates=5, run__resume=True)
    ours, theirs = (adapted.run(alone, f"{run}-{name}-again") for run in (name, "alone"))
    assert len(adapted.losses(ours)) == 5
    assert furthest(adapted.losses(ours), adapted.losses(theirs)) < 1e-5
    assert adapted.apart(adapted.stored(ours), adapted.stored(theirs)) < 1e-5


# --- the command line


def test_two_ranks_have_the_loss_curve_of_one_process(ranks, one, record_property):
    assert ranks("template_on_two") == [None] * 2
    assert read_json(one.template() / "template/nano/row6/plan.json")["micro_batch"] == 48  # the whole, at once
    difference = furthest(losses(ranks.folder / "template_on_two"), losses(one.template()))
    record_property("print", f"template, 50 updates, W = 2 against 1: losses differ by at most {difference:.1e}")
    assert difference < 1e-5
