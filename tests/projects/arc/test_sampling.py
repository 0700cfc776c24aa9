"""Ways back from the prior: all run, all ask what training drew, and every grid is the same in any company."""

import pytest
import torch

from projects.arc.module import Noise
from projects.arc.network import GridDenoiser
from projects.arc.packing import blank
from projects.arc.sampling import WalkOptions, counted_grid, way
from projects.arc.size import SizeOptions
from projects.arc.solving import EvalOptions, Solver
from projects.arc.walking import Denoiser, walk
from shared.processes.draws import PerSegment
from shared.sampling import sample
from shared.training.randomness import Randomness, sample_rng
from tests.projects.arc.conftest import arc_batches, arc_module

SAMPLERS = ("posterior", "coupled", "renoise", "confidence", "feedback")
KINDS = ("uniform", "hybrid", "absorbing")


def solver(module, **options) -> Solver:
    given = EvalOptions(**{"num_steps": 3, "views": 8, **options})
    return Solver(module.network, module.process, given, SizeOptions(), Randomness(), "cycle")


def said(answered) -> list:
    return [[(c.grid.tobytes(), c.count) for c in one.candidates] for one in answered]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_sampler_gives_answers_of_colours_that_are_the_same_in_any_company(data, sampler, kind):
    module = arc_module(data, noise=Noise(kind=kind)).eval()
    queries = data.queries()[:3]
    asked = solver(module, sampler=sampler)
    together = asked.all(queries)
    alone = [one for query in reversed(queries) for one in asked.all([query])]
    assert said(together) == said(alone[::-1])
    assert all(c.grid.max() < 10 for one in together for c in one.candidates)


def places_of(*sizes):
    return blank(torch.tensor(sizes).numpy(), "cpu")


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_sure_belief_is_drawn_whatever_the_sampler(sampler, kind, steps):
    places, process = places_of((2, 3), (1, 1), (4, 4)), Noise(kind=kind).process()
    truth = torch.arange(len(places.colour)) % 10
    rng = PerSegment([sample_rng(0, n) for n in range(3)], places.lengths.tolist())
    x = process.prior(places.colour, rng)
    step, grid = way(process, WalkOptions(steps, sampler), places, rng)
    assert torch.equal(sample(lambda x, t: process.certain(truth), step, x, grid), truth)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_levels_and_beliefs_asked_for_are_levels_and_beliefs_trained(data, batch, sampler):
    """First level 1, none outside (0, 1], falling; no belief at first, then a distribution."""
    module, asked = arc_module(data).eval(), []
    module.network.forward = lambda *a: asked.append(a[3:]) or GridDenoiser.forward(module.network, *a)
    prefix, rng = module.network.prefix(batch.question), torch.Generator().manual_seed(0)
    for steps in (1, 2, 32, 128):
        asked.clear()
        denoise = Denoiser(module.network, prefix, batch.answer)
        walk(denoise, batch.answer, module.process, WalkOptions(steps, sampler), rng)
        times = [float(t[0]) for t, _ in asked]
        assert len(times) == steps and times[0] == 1.0 and times[-1] > 0 and times == sorted(times, reverse=True)
        assert asked[0][1] is None
        assert all(torch.allclose(belief.sum(-1), torch.ones(len(belief))) for _, belief in asked[1:])


def test_the_views_asked_for_are_views_trained(data):
    asked = solver(arc_module(data).eval(), views=72).views()
    shifts = {tuple(row) for row in asked.colours.tolist()}
    assert set(asked.d4.tolist()) == set(range(8)) and len(shifts) == 9 and all(row[0] == 0 for row in shifts)
    with pytest.raises(ValueError, match="asked for 73 views"):
        solver(arc_module(data).eval(), views=73).views()


def test_the_surest_cells_are_fixed_first_and_as_many_as_survive():
    places, process = places_of((1, 10), (2, 2)), Noise().process()
    sureness = torch.cat([torch.arange(10.0), torch.arange(4.0)]) / 2 + 1
    logits = torch.zeros(14, 10)
    logits[:, 3] = sureness
    rng = torch.Generator().manual_seed(0)
    step, grid = way(process, WalkOptions(4, "confidence"), places, rng)
    x, fixed = torch.full((14,), 7), []
    sample(lambda x, t: logits, step, x, grid, lambda t, x, belief: fixed.append(x == 3))
    for s, now in zip(grid[1:], fixed):
        for cells, number in ((slice(0, 10), 10), (slice(10, 14), 4)):
            kept = int((process.alpha(s) * number).round())
            assert now[cells].tolist() == [False] * (number - kept) + [True] * kept


def test_the_earlier_systems_levels_are_counted_ones():
    assert counted_grid(1).tolist() == [1.0, 0.0]
    assert counted_grid(2).tolist() == [1.0, 1 / 128, 0.0]
    assert (counted_grid(8)[:-1] * 128).tolist() == [128, 110, 92, 74, 55, 37, 19, 1]
    assert len(counted_grid(128).unique()) == 129


def drawn(sampler: str, **options) -> list[torch.Tensor]:
    """States of a walk with a belief that prefers 3 a little to 4."""
    places, process = places_of((5, 8)), Noise().process()
    logits = torch.full((40, 10), -20.0)
    logits[:, 3], logits[:, 4] = 0.2, 0.0
    rng, states = torch.Generator().manual_seed(0), []
    x = process.prior(places.colour, rng)
    step, grid = way(process, WalkOptions(4, sampler, **options), places, rng)
    sample(lambda x, t: logits, step, x, grid, lambda t, x, belief: states.append(x))
    return states


def test_feedback_hands_the_drawn_answer_back_and_corrupts_nothing():
    sampled, likeliest = drawn("feedback"), drawn("feedback", feedback="argmax")
    assert all(set(x.tolist()) == {3, 4} for x in sampled[:-1]) and set(sampled[-1].tolist()) == {3}
    assert all(set(x.tolist()) == {3} for x in likeliest)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_last_step_is_the_likeliest_answer_or_a_draw_of_it(sampler):
    assert set(drawn(sampler)[-1].tolist()) == {3}
    assert set(drawn(sampler, final="sample")[-1].tolist()) == {3, 4}
    assert set(drawn(sampler, final="sample", temperature=0.01)[-1].tolist()) == {3}


def test_guidance_of_one_is_off_bitwise_and_reads_no_second_question(module, data):
    queries, reads = data.queries(), []
    prefix = module.network.prefix
    module.network.prefix = lambda question: reads.append(question.hidden) or prefix(question)
    plain = solver(module).all(queries)
    assert said(solver(module, guidance=1.0).all(queries)) == said(plain) and all(hidden is None for hidden in reads)
    reads.clear()
    guided = solver(module, guidance=3.0).all(queries)
    assert said(guided) != said(plain) and any(hidden is not None and bool(hidden.all()) for hidden in reads)


def test_guidance_is_twice_the_told_belief_less_the_untold_one(module, data):
    queries, asking = data.queries()[:2], solver(module, guidance=2.0, views=2)
    seen = asking.views()
    prefix, places = asking.read(queries, seen), places_of(*[(2, 2)] * 4)
    x, t = torch.arange(16) % 10, torch.ones(16)
    both = asking.denoiser(queries, seen, prefix, places)(x, t)
    told = Denoiser(module.network, prefix, places)(x, t)
    untold = Denoiser(module.network, asking.read(queries, seen, hidden=True), places)(x, t)
    assert torch.allclose(both, 2 * told - untold, atol=1e-5) and not torch.allclose(told, untold)


def test_guidance_without_withheld_inputs_in_training_is_refused(data):
    with pytest.raises(ValueError, match=r"eval\.guidance needs a network that met withheld inputs"):
        arc_module(data, condition_dropout=0.0, eval=EvalOptions(guidance=2.0))


@pytest.mark.parametrize("kind", ["hybrid", "absorbing"])
def test_a_mask_has_a_row_of_its_own_only_where_noise_draws_it(data, batch, kind):
    plain, masked = arc_module(data), arc_module(data, noise=Noise(kind=kind))
    assert len(plain.network.colour.weight) == 10 and len(masked.network.colour.weight) == 11
    x0 = batch.answer
    noise = masked.process.draw(x0.colour, torch.Generator().manual_seed(0))
    x_t = masked.corrupted(x0, noise, torch.full((x0.count,), 0.9))
    share = float((x_t.colour == 10).float().mean())
    assert share > 0.9 if kind == "absorbing" else 0.6 < share < 0.9


@pytest.mark.parametrize("floor", [0.0, 0.02])
@pytest.mark.parametrize("kind", KINDS)
def test_noise_survives_as_tabulated(kind, floor):
    """The numbers of the earlier system, whose floor is 0.02; without one the same curve falls to 0."""
    table = {0: 0.999557, 1: 0.998824, 31: 0.850072, 63: 0.503967, 95: 0.161387, 126: 0.020145, 127: 0.02}
    t = (torch.tensor(list(table), dtype=torch.float64) + 1) / 128
    wanted = floor + (1 - floor) * (torch.tensor(list(table.values()), dtype=torch.float64) - 0.02) / 0.98
    process = Noise(floor, kind=kind).process()
    assert torch.allclose(process.alpha(t), wanted, atol=1e-6) and process.num_classes == 10
    assert process.alpha(torch.zeros(1)) == 1


def test_training_draws_one_time_from_every_stretch_that_walks_ask_for(data):
    module, (order, pairs) = arc_module(data), arc_batches(data)
    for update in range(3):
        t = module.recipe.times(module, pairs.build(order.shares(update)[0]), torch.Generator())
        assert (t * len(t)).ceil().sort().values.tolist() == list(range(1, len(t) + 1))
