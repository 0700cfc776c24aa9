"""Laws of the augmentations: nothing at p = 0, all but the protected at p = 1, the wished rate between."""

import math

import pytest
import torch

from shared.augmentation import crop_window, delete_tokens, drop_condition, mask_spans, mask_tokens, mix

MASK = 99
IDS = torch.arange(1, 61).repeat(40, 1)  # [40, 60], no id is 0 or MASK


def rng(key=0):
    return torch.Generator().manual_seed(key)


def spans(ids, p, mask_id, rng, protect=None):
    return mask_spans(ids, p, 3.0, mask_id, rng, protect)


MASKINGS = [mask_tokens, spans]


def within(rate, p, count, correlated=1.0):
    """|rate - p| <= 4 standard errors of `count` draws (`correlated`: draws that count as one)."""
    return abs(rate - p) <= 4 * math.sqrt(p * (1 - p) * correlated / count)


@pytest.mark.parametrize("mask", MASKINGS)
def test_masking_hides_nothing_everything_and_spares_the_protected(mask):
    protect = IDS % 7 == 0
    same, none = mask(IDS, 0.0, MASK, rng(), protect)
    assert torch.equal(same, IDS) and not none.any()
    hidden, masked = mask(IDS, 1.0, MASK, rng(), protect)
    assert torch.equal(masked, ~protect) and torch.equal(hidden == MASK, ~protect)
    assert torch.equal(hidden[protect], IDS[protect])


@pytest.mark.parametrize("p", [0.15, 0.5, 0.9])
@pytest.mark.parametrize("mask", MASKINGS)
def test_masking_keeps_its_rate(mask, p):
    ids = IDS.repeat(20, 1)
    hidden, masked = mask(ids, p, MASK, rng(), None)
    assert within(masked.float().mean(), p, masked.numel(), 1 if mask is mask_tokens else 12)
    assert within(masked[:, 0].float().mean(), p, len(ids)) and within(masked[:, -1].float().mean(), p, len(ids))
    assert torch.equal(hidden, torch.where(masked, MASK, ids))


@pytest.mark.parametrize("mask", MASKINGS)
def test_rows_may_have_their_own_rates_and_keys(mask):
    p = torch.linspace(0, 1, 40)
    _, masked = mask(IDS, p, MASK, rng())
    assert not masked[0].any() and masked[-1].all() and masked[10:15].float().mean() < masked[30:35].float().mean()
    together, _ = mask(IDS[:3], 0.4, MASK, [rng(5), rng(6), rng(7)])
    alone, _ = mask(IDS[1:2], 0.4, MASK, [rng(6)])
    assert torch.equal(together[1], alone[0]) and not torch.equal(together[0], together[1])


@pytest.mark.parametrize("length", [1.0, 4.0])
def test_spans_have_their_mean_length(length):
    _, masked = mask_spans(torch.zeros(400, 300, dtype=torch.long), 0.2, length, MASK, rng())
    starts = masked[:, 1:] & ~masked[:, :-1]
    mean = masked.float().mean() * 300 / starts.float().sum(1).mean() / (300 / 299)
    assert mean == pytest.approx(length, rel=0.06)


def test_impossible_spans_and_rates_are_refused():
    with pytest.raises(ValueError, match="mean_length must be at least 1"):
        mask_spans(IDS, 0.1, 0.5, MASK, rng())
    with pytest.raises(ValueError, match=r"shape \(3,\) for 40 rows"):
        mask_tokens(IDS, torch.rand(3), MASK, rng())


def test_deleting_takes_out_and_closes_the_gaps():
    same, index = delete_tokens(IDS, 0.0, rng())
    assert torch.equal(same, IDS) and torch.equal(index, torch.arange(60).expand(40, -1))
    protect = IDS <= 2
    left, index = delete_tokens(IDS, 1.0, rng(), protect)
    assert left[:, :2].tolist() == [[1, 2]] * 40 and not left[:, 2:].any() and (index[:, 2:] == -1).all()
    some, index = delete_tokens(IDS, 0.4, rng())
    kept = index >= 0
    assert torch.equal(some[kept], IDS.gather(1, index.clamp(min=0))[kept]) and not some[~kept].any()
    assert (index.diff(dim=1)[kept[:, 1:]] > 0).all()  # order is kept
    assert within(1 - kept.float().mean(), 0.4, kept.numel())


def test_conditions_drop_by_sample():
    cond, null = torch.randn(4000, 3, 2), torch.full((3, 2), 7.0)
    same, none = drop_condition(cond, 0.0, rng(), null)
    assert torch.equal(same, cond) and not none.any()
    assert torch.equal(drop_condition(cond, 1.0, rng(), null)[0], null.expand(4000, -1, -1))
    some, dropped = drop_condition(cond, 0.1, rng(), null)
    assert torch.equal(some[~dropped], cond[~dropped]) and (some[dropped] == 7).all()
    assert within(dropped.float().mean(), 0.1, 4000)


def test_a_learned_null_gets_the_gradient_of_the_dropped():
    null = torch.zeros(2, requires_grad=True)
    out, dropped = drop_condition(torch.randn(50, 2), 0.5, rng(), null)
    out.sum().backward()
    assert null.grad.tolist() == [dropped.sum().item()] * 2


@pytest.mark.parametrize("align", [1, 4])
def test_windows_are_pieces_at_aligned_starts(align):
    x = torch.arange(30).repeat(3000, 1)
    window, start = crop_window(x, 9, rng(), align)
    assert torch.equal(window, start.unsqueeze(1) + torch.arange(9))
    seen, counts = start.unique(return_counts=True)
    assert seen.tolist() == list(range(0, 22, align))
    assert all(within(n / 3000, 1 / len(seen), 3000) for n in counts.tolist())
    assert torch.equal(crop_window(x, 30, rng(), align)[0], x)


def test_windows_beyond_the_sequence_are_refused():
    with pytest.raises(ValueError, match=r"length must be 1\.\.60"):
        crop_window(IDS, 61, rng())


def test_mixtures_take_whole_samples():
    a, b = torch.zeros(4000, 3), torch.ones(4000, 3)
    assert torch.equal(mix(a, b, 0.0, rng())[0], a) and torch.equal(mix(a, b, 1.0, rng())[0], b)
    mixed, from_b = mix(a, b, 0.3, rng())
    assert torch.equal(mixed[:, 0], from_b.float()) and torch.equal(mixed[:, 0], mixed[:, 2])
    assert within(from_b.float().mean(), 0.3, 4000)
    with pytest.raises(ValueError, match="give equal ones"):
        mix(a, b[:2], 0.3, rng())
