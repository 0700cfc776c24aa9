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
DRAWS = 64  # noised copies of every row


def distances(rows: Tensor) -> Tensor:
    """[V (V - 1) / 2] of every two rows."""
    return torch.nn.functional.pdist(rows.detach().float())


def mean_distance(rows: Tensor) -> Tensor:
    """Mean distance of two rows over that of orthogonal ones of their length; 0 for a collapsed table."""
    return distances(rows).mean() / (math.sqrt(2) * rows.detach().norm(dim=-1).mean())


def effective_rank(rows: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007)."""
    share = torch.linalg.svdvals(rows.detach().double())
    share = share / share.sum()
    return float(torch.special.entr(share).sum().exp())


@torch.no_grad()
def recovered(table: Rows) -> float:
    """Share of rows that are the nearest to themselves at SNR 12 ln(V) / R^2, where the bound asks for the token."""
    rows, (count, _) = table.rows, table.rows.shape
    log_snr = torch.tensor(math.log(12 * math.log(count)) - 2 * math.log(table.radius))
    alpha, sigma = scales(log_snr)
    ids = torch.arange(count, device=rows.device).repeat(DRAWS)
    noise = torch.randn(len(ids), rows.shape[1], generator=sample_rng(0, "health")).to(rows)
    return float((table.nearest(alpha * rows[ids] + sigma * noise) == ids).float().mean())


def nearest_pairs(rows: Tensor, vocabulary: Tokens) -> list[str]:
    """The closest rows by name, with their distance."""
    apart, pairs = distances(rows), torch.triu_indices(len(rows), len(rows), 1).T
    closest = apart.argsort()[:PAIRS].tolist()
    return [f"{' '.join(vocabulary.words(pairs[n].tolist()))} ({float(apart[n]):.2f})" for n in closest]


def health(table: Rows, vocabulary: Tokens, drawn: Sequence[Words]) -> str:
    """The section of the report, a table in markdown. drawn: sentences, for the words they use."""
    rows = table.rows.detach()
    apart, norms = distances(rows), rows.norm(dim=-1)
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
