"""Laws of what enters a network: levels stay apart, tables read and write."""

import math

import pytest
import torch
from torch.nn import functional as F

from shared.networks import Embedding, LevelEmbedding


def log_snr(t):
    """Of the cosine schedule."""
    angle = t.clamp(1e-9, 1 - 1e-9) * math.pi / 2
    return 2 * (angle.cos() / angle.sin()).log()


@pytest.mark.parametrize(("of", "levels"), [("t", lambda t: t), ("log_snr", log_snr)])
@pytest.mark.parametrize("features", [64, 256])
def test_neighbouring_levels_are_told_apart_at_the_start(of, levels, features):
    torch.manual_seed(0)
    embedding = LevelEmbedding(128, features, of)
    for steps in (64, 128):
        out = embedding(levels(torch.arange(1, steps) / steps))
        apart = (out[1:] - out[:-1]).norm(dim=-1) / out[1:].norm(dim=-1)
        assert apart.min() >= 0.05
        assert F.cosine_similarity(out[1:], out[:-1]).max() < 0.999


def test_levels_start_at_the_scale_of_embeddings():
    out = LevelEmbedding(128, 256)(torch.rand(200))
    assert 0.2 < out.square().mean().sqrt() < 1.0


def test_level_embedding_counts_and_takes_any_shape():
    embedding = LevelEmbedding(48, features=256)
    assert sum(p.numel() for p in embedding.parameters()) == 256 * 48 + 48**2
    t = torch.rand(3, 4)
    torch.testing.assert_close(embedding(t)[1], embedding(t[1]))


def test_log_snr_is_cut_where_it_says():
    embedding = LevelEmbedding(32, of="log_snr")
    at = torch.tensor([20.0, 35.0, float("inf"), 19.0])
    out = embedding(at)
    assert torch.equal(out[0], out[1]) and torch.equal(out[0], out[2]) and not torch.allclose(out[0], out[3])


def test_odd_features_and_unknown_levels_are_refused():
    for options in ({"features": 7}, {"of": "sigma"}):
        with pytest.raises(ValueError, match="features must be even"):
            LevelEmbedding(32, **options)


@pytest.mark.parametrize("factor", [None, 6])
@pytest.mark.parametrize("unit", [False, True])
def test_a_table_reads_with_what_it_wrote(factor, unit):
    torch.manual_seed(0)
    embedding = Embedding(11, 16, factor, unit)
    ids = torch.arange(11)
    x = torch.randn(5, 16)
    torch.testing.assert_close(embedding.logits(x), x @ embedding(ids).T, atol=1e-5, rtol=1e-5)
    if unit:
        assert torch.allclose(embedding.rows.norm(dim=-1), torch.ones(11))
    wanted = 11 * 16 if factor is None else 11 * 6 + 6 * 16
    assert sum(p.numel() for p in embedding.parameters()) == wanted
