"""Recipes of papers as overlays: each trains, and what its paper fixes is what is built."""

import pytest
import torch

from projects.text.warping import Affine, Fitted, Monotone
from shared.training.pretrained import load_for_sampling
from shared.training.tables import read_table
from tests.lines import ROOT, Line, built

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
UPDATES = 5


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The module of a recipe, and of its run of five updates at tiny size the folder."""
    found = {}

    def of(name):
        if name not in found:
            line, root = Line("text"), tmp_path_factory.mktemp(name)
            flags = [f"--config=configs/text/{name}.yaml", f"--trainer.max_steps={UPDATES}"]
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(ROOT)
                line.run(*line.fit(root, "a", *flags, "--run.test_after_fit=false", "--run.validate_every=5"))
                run = line.folder(root) / "a"
                found[name] = built("text", [f"--ckpt_path={run}"], "sample", "sample").model, run
        return found[name]

    return of


@pytest.mark.parametrize("name", ["cdcd", "plaid", "langflow"])
def test_a_recipe_trains_and_draws(recipe, name):
    module, run = recipe(name)
    losses = read_table(run / "metrics.csv")["train/loss"]
    assert len(losses) == UPDATES and all(0 < loss < 1e4 for loss in losses.values())
    assert len(module.walked([0, 1]).ids) == 2
    _, process = load_for_sampling(run)
    t = torch.linspace(0.1, 0.9, 9)
    assert torch.equal(process.schedule.log_snr(t), module.process.schedule.log_snr(t))


def test_cdcd_has_no_bias_a_sphere_and_levels_that_follow_the_loss(recipe):
    network = recipe("cdcd")[0].network
    assert not network.logit_bias and network.rows.norm == "sphere"
    assert isinstance(network.warp.second, Monotone) and network.warp.handed


def test_plaid_learns_the_bound_with_rows_of_length_one_and_its_own_levels(recipe):
    module, _ = recipe("plaid")
    network = module.network
    assert network.rows.radius == 1 and network.rows.embedding_dim == 16 and network.logit_bias
    assert isinstance(network.warp, Affine) and network.warp.start == (-3.0, 6.0)
    assert float(network.warp.gamma_0) != -3 and module.believed(16) == 4


def test_plaid_moves_rows_and_levels_faster_than_the_trunk(recipe):
    module, _ = recipe("plaid")
    module.trainer = type("", (), {"max_steps": 100})
    groups = module.configure_optimizers()["optimizer"].param_groups
    rates = {name: group["initial_lr"] for group in groups for name in names_in(group, module.network)}
    fast = {name for name, rate in rates.items() if rate > 0.009}
    assert fast == {name for name in rates if name.startswith(("rows.", "warp."))} and len(fast) == 7
    assert {rate for name, rate in rates.items() if name not in fast} == {1.4e-3}


def names_in(group, network):
    ids = {id(parameter) for parameter in group["params"]}
    return [name for name, parameter in network.named_parameters() if id(parameter) in ids]


def test_langflow_fits_a_gumbel_from_the_first_update(recipe):
    module, _ = recipe("langflow")
    network, warp = module.network, module.network.warp
    assert network.rows.embedding_dim == 128 and network.rows.radius == pytest.approx(128**0.5) and network.logit_bias
    assert isinstance(warp.second, Fitted) and warp.handed
    assert warp.first.location == pytest.approx(-module.log_snr_star) and warp.second.location != warp.first.location


@pytest.mark.parametrize("name", ["cdcd", "langflow"])
def test_these_walk_without_noise(recipe, name):
    assert recipe(name)[0].sampling.kind == "ddim"
