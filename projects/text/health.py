"""How the table of rows is: lengths, distances, rank, whether a noised row is still the nearest to itself, and which
words samples use. A table that collapses loses distance and rank long before the sentences do. Knows rows and counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from packages.text.rows import Words
from packages.text.vocabulary import Tokens
from projects.text.resolution import scales
from projects.text.rounding import Rows
from shared.training import layout
from shared.training.randomness import sample_rng

PAIRS = 10  # nearest ones that are named
COMMON = 10  # words that are named at each end
DRAWS = 8192  # noised copies of rows
LOOKED_AT = 2048  # rows whose pairs are measured


def some(rows: Tensor) -> Tensor:
    """`LOOKED_AT` of the rows at most, from all over: pairs of many thousand rows would fill the memory."""
    return rows[:: -(-len(rows) // LOOKED_AT)].detach()


def distances(rows: Tensor) -> Tensor:
    """[V (V - 1) / 2] of every two rows."""
    return torch.nn.functional.pdist(rows.detach().float())


def mean_distance(rows: Tensor) -> Tensor:
    """Mean distance of two rows over that of orthogonal ones of their length; 0 for a collapsed table."""
    rows = some(rows)
    return distances(rows).mean() / (math.sqrt(2) * rows.detach().norm(dim=-1).mean())


def effective_rank(rows: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007)."""
    share = torch.linalg.svdvals(rows.detach().double())
    share = share / share.sum()
    return float(torch.special.entr(share).sum().exp())


@torch.no_grad()
def recovered(table: Rows) -> float:
    """Share of rows that are the nearest to themselves at SNR 12 ln(V) / R^2, where the bound asks for the token."""
    rows, count = table.rows, len(table.rows)
    log_snr = torch.tensor(math.log(12 * math.log(count) / float(table.radius_squared)))
    alpha, sigma = scales(log_snr)
    ids = torch.randint(count, (DRAWS,), generator=(rng := sample_rng(0, "health")))
    noise = torch.randn(DRAWS, rows.shape[1], generator=rng).to(rows)
    nearest = table.nearest(alpha * rows[ids.to(rows.device)] + sigma * noise)
    return float((nearest.cpu() == ids).float().mean())


def nearest_pairs(rows: Tensor, vocabulary: Tokens) -> list[str]:
    """The closest rows by name, with their distance."""
    stride = -(-len(rows) // LOOKED_AT)
    apart, pairs = distances(some(rows)), torch.triu_indices(len(some(rows)), len(some(rows)), 1).T
    closest = apart.topk(min(PAIRS, len(apart)), largest=False).indices.tolist()
    return [f"{' '.join(vocabulary.words((stride * pairs[n]).tolist()))} ({float(apart[n]):.2f})" for n in closest]


def health(table: Rows, vocabulary: Tokens, drawn: Sequence[Words]) -> str:
    """The section of the report, a table in markdown. drawn: sentences, for the words they use."""
    rows = table.rows.detach()
    apart, norms = distances(some(rows)), rows.norm(dim=-1)
    square = 2**0.5 * norms.mean()
    used = Counter(word for words in drawn for word in words)
    ranked = [f"{word} {count}" for word, count in used.most_common()]
    facts = {
        "length of a row": f"{norms.mean():.3f} (sd {norms.std():.3f}, {norms.min():.3f} .. {norms.max():.3f})",
        "distance of two rows": f"{apart.mean():.2f}, least {apart.min():.2f}, at right angles {square:.2f}",
        "effective rank": f"{effective_rank(rows):.1f} of {min(rows.shape)}",
        "rows found again at SNR 12 ln(V) / R^2": f"{recovered(table):.4f}",
        "nearest pairs": ", ".join(nearest_pairs(rows, vocabulary)),
        "ids that samples use": f"{len(used)} of {len(vocabulary)}",
        "most used": ", ".join(ranked[:COMMON]),
        "least used": ", ".join(ranked[-COMMON:]),
    }
    return "\n".join(layout.markdown(["", ""], [[name, said] for name, said in facts.items()]))
