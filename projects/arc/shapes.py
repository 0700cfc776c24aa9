"""How many shapes the micro-batches of a run have had: compiled kernels want few of them. Knows layouts only."""

from __future__ import annotations

from shared.networks import Layout
from shared.training.console import say


class Shapes:
    """Counts distinct shapes, and says so once when they are more than `most`."""

    def __init__(self, most: int = 8):
        self.most, self.met = most, set[tuple[int, ...]]()

    def meet(self, layout: Layout) -> None:
        """A micro-batch whose body lies as `layout` says."""
        shape = layout.count, layout.tokens, layout.prefix_tokens or 0
        if shape in self.met:
            return
        self.met.add(shape)
        if len(self.met) == self.most + 1:
            say(f"micro-batches of {len(self.met)} shapes so far; a larger data.token_quantum makes fewer")
