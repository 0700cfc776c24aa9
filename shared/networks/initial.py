"""How the networks of the house start: one walk over the modules sets every weight, so no network writes its own rules.

Matrices: truncated normal 0.02; those that write into the residual stream are divided by sqrt(2 depth) (Radford et al.
2019). Embeddings: normal 0.3, because in a pre-norm network they set the scale of the residual stream; at 0.02 the
first blocks drown what was embedded. Special rules (zero modulation, gates, frequencies) belong to the module, in its
`settle(depth)`; so does any `nn.Parameter` a network holds directly. After a build on the meta device: `to_empty`, then
this walk once over the whole network, never module by module (a Linear's own `reset_parameters` knows none of it).
"""

import math

from torch import nn

MATRIX_STD = 0.02
EMBEDDING_STD = 0.3

Norm = (nn.RMSNorm, nn.LayerNorm)


def initialise(network: nn.Module, depth: int, embedding_std: float = EMBEDDING_STD) -> None:
    """Set all weights of `network` in place (global generator); `depth`: number of blocks that write into the
    residual stream.

    Two passes: first the rule of the kind (linear, embedding, norm), then `settle(depth)` of every module that has one,
    children before parents, so that a network's own rule has the last word.
    """
    modules = list(network.modules())
    for module in modules:
        _by_kind(module, embedding_std)
    for module in reversed(modules):
        settle = getattr(module, "settle", None)
        if settle is not None:
            settle(depth)


def matrix(weight, gain: float = 1.0) -> None:
    """Truncated normal of std 0.02 * gain, cut at two standard deviations."""
    std = MATRIX_STD * gain
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def residual(linear: nn.Linear, depth: int) -> None:
    """The rule for a matrix that writes into the residual stream of `depth` blocks with two branches each."""
    matrix(linear.weight, 1 / math.sqrt(2 * depth))


def _by_kind(module: nn.Module, embedding_std: float) -> None:
    if isinstance(module, nn.Linear):
        matrix(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=embedding_std)
    elif isinstance(module, Norm):
        module.reset_parameters()
