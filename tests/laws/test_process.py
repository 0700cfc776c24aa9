"""Every process obeys; float64, t of [B] and [B, T], B = T included. The laws are in laws.py and kinds.py."""

import pytest

from tests.laws import kinds, laws, strides
from tests.laws.cases import CASES, Case, only

IDS = only("ids")
REAL = only("real")
RANDOM = [c for c in CASES if c.kind != "nested"]
# eta = 0 of a bridge contracts: its noise is narrower than the bridge's own, by design
MARGINAL = [c for c in RANDOM if c.name != "bridge-eta0.0"]


def law(cases: list[Case]):
    return pytest.mark.parametrize("case", cases, ids=[c.name for c in cases])


@law([c for c in CASES if c.exact_start])
def test_nothing_is_lost_at_zero(case):
    laws.nothing_is_lost_at_zero(case)


@law(RANDOM)
def test_one_is_the_prior(case):
    laws.one_is_the_prior(case)


@law(MARGINAL)
def test_steps_carry_the_marginal_from_t_to_s(case):
    laws.steps_carry_the_marginal(case)


@law(MARGINAL)
def test_two_steps_are_one(case):
    laws.two_steps_are_one(case)


@law(CASES)
def test_a_sure_belief_returns_x0_for_1_2_7_and_64_steps(case):
    laws.a_sure_belief_returns_x0(case)


@law(CASES)
def test_waiting_moves_nothing(case):
    laws.waiting_moves_nothing(case)


@law(CASES)
def test_time_belongs_to_rows_and_columns(case):
    laws.time_belongs_to_rows_and_columns(case)


@law(CASES)
def test_corrupt_is_pure(case):
    laws.corrupt_is_pure(case)


@law(CASES)
def test_a_sample_has_its_own_randomness(case):
    laws.a_sample_has_its_own_randomness(case)


@law(only("ids", without="coupled"))
def test_posterior_is_bayes_by_matrices(case):
    kinds.posterior_is_bayes_by_matrices(case)


@law(only("ids", without="coupled"))
def test_draws_follow_the_posterior(case):
    kinds.draws_follow_the_posterior(case)


@law([c for c in IDS if c.name.startswith("absorbing")])
def test_masks_are_nested(case):
    kinds.masks_are_nested(case)


@law(REAL)
def test_strides_compose(case):
    kinds.strides_compose(case)


@law(REAL)
def test_a_walk_of_any_stride_has_the_snr_it_claims(case):
    strides.a_walk_has_the_snr_it_claims(case)


def test_without_noise_linear_is_euler():
    kinds.without_noise_linear_is_euler(REAL[0])


@law([c for c in REAL if "eta1" in c.name and "linear-eta" not in c.name and "shifted-" not in c.name])
def test_full_variance_is_ddpm(case):
    kinds.full_variance_is_ddpm(case)


@law([c for c in REAL if "eta0.0" in c.name])
def test_identities_agree(case):
    kinds.identities_agree(case)


@law([c for c in REAL if "eta0.0" in c.name])
def test_schedule_is_consistent(case):
    kinds.schedule_is_consistent(case)


@law([c for c in REAL if "eta0.0" in c.name])
def test_level_to_time_is_the_inverse(case):
    kinds.level_to_time_is_the_inverse(case)


@law([c for c in REAL if "eta0.0" in c.name])
def test_float32_is_finite_inside(case):
    kinds.float32_is_finite_inside(case)


@law([c for c in IDS + REAL if "coupled" not in c.name])
def test_weights_are_finite(case):
    kinds.weights_are_finite(case)


@law([c for c in REAL if "eta0.0" in c.name])
def test_weights_translate_errors(case):
    kinds.weights_translate_errors(case)


@law(only("nested"))
def test_levels_are_nested(case):
    kinds.levels_are_nested(case)


@law([c for c in IDS if c.name.endswith(("-cosine", "-inside"))])
def test_final_step_is_the_argmax(case):
    kinds.final_step_is_the_argmax(case)


@pytest.mark.parametrize(
    "claim",
    [
        kinds.functions_have_their_published_values,
        kinds.warp_follows_the_loss,
        kinds.elbo_weight_has_its_value,
        kinds.anchors_come_back,
        kinds.cubic_is_smooth_and_natural,
        kinds.counts_have_their_values,
        kinds.a_quiet_bridge_contracts,
        kinds.choices_are_proportional,
        kinds.heun_averages_two_slopes,
        kinds.heun_is_of_second_order,
        kinds.two_beliefs_are_of_second_order,
    ],
    ids=lambda claim: claim.__name__,
)
def test_values(claim):
    claim(only("bridge")[0])
