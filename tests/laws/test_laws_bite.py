"""Every law can fail: a formula of `shared.processes` is broken in a copy, and its law must notice.

MUTATIONS: (file, law, case) -> pairs of sound and broken text. The sound text must stand in the file exactly once, so a
row goes stale loudly. Together they break every formula: a sign, s for t, a missing root, a wrong denominator.
"""

import importlib
import shutil
import sys
from pathlib import Path

import pytest

import shared.processes as sound
from tests.laws import kinds, laws, strides
from tests.laws.cases import named

FOLDER = Path(sound.__file__).parent
ONLY = "bridge-eta1.0"  # for laws that build what they need themselves
COSINE, FLOW, STEP = "gaussian-cosine-eta0.0", "gaussian-linear-eta0.0", "gaussian-cosine-eta0.5"
UNIFORM, COUPLED, HYBRID = "uniform-markov-cosine", "uniform-coupled-cosine", "hybrid-markov-cosine"
MASK, DDPM, WARPED, NESTED = "absorbing-cosine", "gaussian-cosine-eta1.0", "gaussian-warped-eta0.0", "nested-linear"

MUTATIONS = {
    ("schedules", kinds.functions_have_their_published_values, ONLY): [
        ("return 1 - t\n\n\ndef cosine", "return 1 + t\n\n\ndef cosine"),
        ("return torch.sqrt((last - here)", "return ((last - here)"),
        ("1 - (1 - eps) * t", "1 - eps * t"),
        ("1 - (1 - floor) * (1 - fn(t))", "1 - floor * (1 - fn(t))"),
        ("fn(t).clamp(min=floor)", "fn(t).clamp(max=floor)"),
        ("fn(t).square()", "fn(t)"),
        ("fn(t).sqrt()", "fn(t)"),
        ("torch.round(t * steps)", "torch.floor(t * steps)"),
    ],
    ("schedules", kinds.schedule_is_consistent, COSINE): [
        ("torch.sin((1 - t) * quarter)", "torch.sin(t * quarter)"),
        ("return torch.autograd.grad", "return -torch.autograd.grad"),
        ("((1 - alpha) * (1 + alpha)).sqrt()", "(1 - alpha) * (1 + alpha)"),
        ("2 * alpha.log() - torch.log1p", "alpha.log() - torch.log1p"),
        ("-self.sigma(t), self.alpha(t)", "self.sigma(t), self.alpha(t)"),
    ],
    ("schedules", laws.nothing_is_lost_at_zero, COSINE): [
        ("torch.ones_like(t) * quarter", "torch.ones_like(t)"),
    ],
    ("schedules", kinds.schedule_is_consistent, FLOW): [
        ("2 * (torch.log1p(-t) - t.log())", "2 * (t.log() - torch.log1p(-t))"),
        ("-torch.ones_like(t), torch", "torch.ones_like(t), torch"),
    ],
    ("schedules", laws.one_is_the_prior, "gaussian-shifted-eta0.0"): [
        ("(1 + (self.shift - 1) * t)", "(1 + self.shift * t)"),
    ],
    ("schedules", kinds.schedule_is_consistent, WARPED): [
        ("torch.sigmoid(-self.cdf", "torch.sigmoid(self.cdf"),
    ],
    ("schedules", kinds.warp_follows_the_loss, ONLY): [
        ("t - edges[i])", "t + edges[i])"),
        ("(place - i) * (", "place * ("),
        ("(curve[1:] + curve[:-1]) / 2", "curve[1:]"),
        ("density + self.uniform * flat", "density"),
        ("self.edges.diff().to(log_snr)[i] * (self", "self.edges.diff().to(log_snr)[i] / (self"),
        ("self.loss.copy_(cdf.quantile(middle))", "self.loss.copy_(-middle)"),
    ],
    ("schedules", kinds.level_to_time_is_the_inverse, COSINE): [
        ("late = schedule.log_snr(middle) < log_snr", "late = schedule.log_snr(middle) > log_snr"),
    ],
    ("schedules", laws.waiting_moves_nothing, MASK): [
        ("spread(s < t, x_t), x_s, x_t", "spread(s < t, x_t), x_t, x_s"),
    ],
    ("schedules", laws.time_belongs_to_rows_and_columns, UNIFORM): [
        ("value.shape + (1,) * (like.ndim - value.ndim)", "(1,) * (like.ndim - value.ndim) + value.shape"),
    ],
    ("draws", kinds.choices_are_proportional, ONLY): [
        ("u * reach[..., -1]", "u"),
    ],
    ("draws", laws.a_sample_has_its_own_randomness, COSINE): [
        ("zip(generators, lengths)]", "zip(generators[::-1], lengths)]"),
    ],
    ("categorical", laws.nothing_is_lost_at_zero, UNIFORM): [
        ("noise.u < self", "noise.u > self"),
        ("x0, noise.r)", "noise.r, x0)"),
    ],
    ("categorical", laws.steps_carry_the_marginal, UNIFORM): [
        ("(1 - a) * self.stationary", "a * self.stationary"),
    ],
    ("categorical", kinds.posterior_is_bayes_by_matrices, UNIFORM): [
        ("stay = a_t / a_s", "stay = a_s / a_t"),
        ("seen = a_t + (1 - a_t) * pi_here", "seen = a_t + (1 - a_s) * pi_here"),
        ("p * (a_s * move)", "p * (a_t * move)"),
        ("(1 - a_s) * move * rest", "(1 - a_s) * move"),
        ("(stay + (1 - stay) * pi_here)", "(stay + (1 - stay))"),
    ],
    ("categorical", kinds.posterior_is_bayes_by_matrices, HYBRID): [
        ("1 - p_here * (a_t / seen)", "1 + p_here * (a_t / seen)"),
        ("(1 - a_s) / (1 - a_t) * rest", "(1 - a_t) / (1 - a_s) * rest"),
    ],
    ("categorical", kinds.posterior_is_bayes_by_matrices, MASK): [
        ("move = (1 - stay) / (1 - a_t)", "move = (1 - stay) / (1 - a_s)"),
        ("torch.where(shown, F", "torch.where(~shown, F"),
    ],
    ("categorical", kinds.draws_follow_the_posterior, UNIFORM): [
        (
            "draws.choose(self.posterior(x_t, belief, t, s), rng)",
            "draws.choose(self.posterior(x_t, belief, t, t), rng)",
        ),
    ],
    ("categorical", laws.steps_carry_the_marginal, COUPLED): [
        ("(a_s - a_t) / (1 - a_t)", "(a_s - a_t) / (1 - a_s)"),
    ],
    ("categorical", laws.two_steps_are_one, COUPLED): [
        ("torch.where(taken, x0, x_t)", "torch.where(taken, x_t, x0)"),
    ],
    ("categorical", kinds.final_step_is_the_argmax, UNIFORM): [
        ("expand(s, x_s) == 0", "expand(s, x_s) == 1"),
    ],
    ("categorical", kinds.elbo_weight_has_its_value, ONLY): [
        ("-derivative(self.schedule", "derivative(self.schedule"),
        ("/ (1 - self.alpha(exact))", "/ self.alpha(exact)"),
    ],
    ("categorical", laws.one_is_the_prior, HYBRID): [
        ("pi[self.mask_id] = 1 - self.uniform_share", "pi[self.mask_id] = self.uniform_share"),
        ("coin < self.uniform_share", "coin > self.uniform_share"),
    ],
    ("categorical", laws.one_is_the_prior, "hybrid-inside"): [
        ("ids + (ids >= self.mask_id)", "ids + (ids > self.mask_id)"),
    ],
    ("categorical", kinds.masks_are_nested, MASK): [
        ("return torch.where(x_t == self.mask_id, x_s, x_t)", "return x_s"),
    ],
    ("gaussian", laws.one_is_the_prior, COSINE): [
        ("alpha * x0 + sigma * noise", "alpha * x0 - sigma"),
        ("self.schedule.sigma(torch.ones((), dtype=eps.dtype, device=eps.device)) * eps", "2 * eps"),
    ],
    ("gaussian", kinds.full_variance_is_ddpm, DDPM): [
        ("eta**2 * s_s**2", "eta * s_s**2"),
        ("(a_t * s_s / (a_s * s_t)) ** 2)", "(a_t * s_s / (a_s * s_t)))"),
        ("a_t * s_s / (a_s * s_t)", "a_s * s_t / (a_t * s_s)"),
    ],
    ("gaussian", kinds.strides_compose, STEP): [
        ("eps_hat = (x_t - a_t * belief) / s_t", "eps_hat = (x_t + a_t * belief) / s_t"),
        ("a_s * belief + (s_s**2 - v)", "a_t * belief + (s_s**2 - v)"),
        ("(s_s**2 - v).clamp(min=0).sqrt()", "(s_s**2 - v).clamp(min=0)"),
        ("* eps_hat, v.sqrt()", "* eps_hat, v"),
    ],
    ("gaussian", strides.a_walk_has_the_snr_it_claims, DDPM): [
        ("a_s, s_s = self._scales(x_t, s)", "a_s, s_s = self._scales(x_t, s * 0.999)"),
    ],
    ("gaussian", laws.steps_carry_the_marginal, STEP): [
        ("x_s + std * self.draw", "x_s + self.draw"),
    ],
    ("gaussian", laws.a_sure_belief_returns_x0, "gaussian-square_root_compat-eta0.0"): [
        ("expand(s, x_s) == 0, belief, x_s", "expand(s, x_s) == 1, belief, x_s"),
    ],
    ("gaussian", kinds.identities_agree, COSINE): [
        ("(x_t - sigma * eps) / _", "(x_t + sigma * eps) / _"),
        ("(x_t - alpha * x0) / _", "(x_t - sigma * x0) / _"),
        ("x_t - self.schedule.sigma(time) * velocity", "x_t + self.schedule.sigma(time) * velocity"),
        ("(eps + self.schedule", "(eps - self.schedule"),
    ],
    ("gaussian", kinds.identities_agree, FLOW): [
        ("* velocity - self.schedule.velocity", "* velocity + self.schedule.velocity"),
        ("x_t - x0) / _", "x_t + x0) / _"),
    ],
    ("gaussian", kinds.weights_translate_errors, COSINE): [
        ('"eps": lambda: log_snr.exp()', '"eps": lambda: log_snr'),
        ("torch.sigmoid(bias - log_snr)", "torch.sigmoid(log_snr - bias)"),
    ],
    ("gaussian", kinds.weights_translate_errors, FLOW): [
        ("self.schedule.sigma(t).square()", "self.schedule.sigma(t)"),
    ],
    ("gaussian", kinds.weights_are_finite, COSINE): [
        (".clamp(-LOG_SNR_CUT, LOG_SNR_CUT)", ""),
    ],
    ("gaussian", kinds.heun_is_of_second_order, ONLY): [
        ("torch.full_like(t, 0.5)", "torch.full_like(t, 1.0)"),
    ],
    ("gaussian", kinds.heun_averages_two_slopes, ONLY): [
        ("schedule.sigma(t) / (2 * schedule.sigma(s))", "schedule.sigma(s) / (2 * schedule.sigma(t))"),
        ("schedule.log_snr(t)) / 2).exp()", "schedule.log_snr(t))).exp()"),
    ],
    ("gaussian", kinds.two_beliefs_are_of_second_order, ONLY): [
        ("stride / (2 * self.stride)", "stride / self.stride"),
        ("ahead = belief + share", "ahead = belief - share"),
    ],
    ("interpolation", laws.nothing_is_lost_at_zero, ONLY): [
        ("(1 - t) * x0 + t * noise.start", "t * x0 + (1 - t) * noise.start"),
    ],
    ("interpolation", laws.steps_carry_the_marginal, ONLY): [
        ("(t * (1 - t)).sqrt()", "t * (1 - t)"),
        ("(then * (now - then) / now).sqrt()", "(then * (now - then) / now)"),
        ("then * (now - then) / now", "now * (now - then) / then"),
    ],
    ("interpolation", kinds.a_quiet_bridge_contracts, ONLY): [
        ("spread(noise.gain, x0) * self.sigma", "self.sigma"),
        ("std = eta * self.sigma", "std = self.sigma"),
    ],
    ("interpolation", laws.two_steps_are_one, ONLY): [
        ("(then / now) * (x_t - belief)", "(1 - then / now) * (x_t - belief)"),
    ],
    ("interpolation", kinds.anchors_come_back, ONLY): [
        ("right=True) - 1", "right=False) - 1"),
    ],
    ("interpolation", kinds.cubic_is_smooth_and_natural, ONLY): [
        ("span**2 / 6", "span / 6"),
        ("2 * (h[:, 1:] + h[:, :-1])", "(h[:, 1:] + h[:, :-1])"),
    ],
    ("interpolation", kinds.levels_are_nested, NESTED): [
        ("order < self.counts", "order <= self.counts"),
        ("(frame - left).to(x0.dtype)", "(right - frame).to(x0.dtype)"),
        ("self.corrupt(belief, self.order, s)", "self.corrupt(belief, self.order, t)"),
    ],
    ("interpolation", kinds.counts_have_their_values, ONLY): [
        ("length * (smallest / length) ** t.double())", "smallest * (length / smallest) ** t.double())"),
        ("(smallest - length) * t", "(length - smallest) * t"),
        ("torch.floor(octaves", "torch.ceil(octaves"),
    ],
}
ROWS = [(*key, *pair) for key, pairs in MUTATIONS.items() for pair in pairs]


def broken(folder: Path, file: str, old: str, new: str):
    """A copy of `shared.processes` in which `old` of one file reads `new`."""
    name = "broken_" + folder.name.replace("-", "_")
    shutil.copytree(FOLDER, folder / name, ignore=shutil.ignore_patterns("__pycache__", "__main__.py"))
    for path in (folder / name).glob("*.py"):
        text = path.read_text().replace("shared.processes", name)
        if path.stem == file:
            assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}.py: name the formula anew"
            text = text.replace(old, new)
        path.write_text(text)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        for loaded in [m for m in sys.modules if m.split(".")[0] == name]:
            del sys.modules[loaded]


@pytest.mark.parametrize("row", ROWS, ids=[f"{file}-{new.strip()[:40]}" for file, _, _, _, new in ROWS])
def test_a_broken_formula_breaks_its_law(row, tmp_path):
    file, law, case, old, new = row
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        law(named(case), broken(tmp_path, file, old, new))
