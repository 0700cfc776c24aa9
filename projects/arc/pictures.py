"""What a run shows of itself: answers on their way to noise, and the network's walks back from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from packages.arc import draw
from packages.arc.tasks import Grid
from projects.arc.pairs import Example, Query
from projects.arc.walking import Denoiser, walk
from shared.processes.draws import PerSegment
from shared.training.batches import Share
from shared.training.samples import Sample

if TYPE_CHECKING:
    from projects.arc.module import ArcModule

SHOWN_DEMOS = 2
TIMES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)


def shown(module: ArcModule) -> list[Example]:
    """The pairs of the pictures: held-out ones where there are any, else training pairs of different tasks."""
    data = module.trainer.datamodule
    held = data.held()
    examples = held or list({e.row: e for e in data.examples()}.values())
    picks = np.linspace(0, len(examples) - 1, min(module.snapshots.count, len(examples))).round().astype(int)
    return [examples[i] for i in picks]


def sample_of(query: Query, answer: Grid) -> Sample:
    """A drawn answer as picture (behind the first demos and the question), as digits and as a tensor."""
    demos = [(pair.input, pair.output) for pair in query.task.demos[:SHOWN_DEMOS]]
    rows = "\n".join("".join(map(str, row)) for row in answer.tolist())
    return Sample(
        text=f"{query.name}\n{rows}",
        image=torch.from_numpy(draw.pairs([*demos, (query.grid, answer)])),
        data={"answer": torch.from_numpy(answer)},
    )


def draw_noising(module: ArcModule, folder: Path) -> Path:
    """noising.png: each answer at six times of one path."""
    rows = [_noising(module, e.pair.output, n) for n, e in enumerate(shown(module))]
    return draw.save(draw.noising(rows), folder / "noising.png")


def _noising(module: ArcModule, grid: np.ndarray, number: int) -> draw.Noising:
    process, x0 = module.process, torch.from_numpy(grid.astype(np.int64)).reshape(-1)
    noise = process.draw(x0, module.randomness.sample(("noising", number)))
    times = torch.tensor(TIMES)
    states = [process.corrupt(x0, noise, t.expand(len(x0))).reshape(grid.shape).numpy() for t in times]
    return draw.Noising(grid, TIMES, states, process.alpha(times).tolist())


def draw_denoising(module: ArcModule, folder: Path) -> Path:
    """denoising.png: x_t and belief along the walk back, the answer, the target, and how sure the last belief was."""
    examples = shown(module)
    walks = _walks(module, examples)
    kind = "held-out" if module.trainer.datamodule.held() else "training"
    return draw.save(draw.denoising(walks, f"the walk back, {kind} pairs"), folder / "denoising.png")


def _walks(module: ArcModule, examples: list[Example]) -> list[draw.Walk]:
    device = module.network.out.weight.device
    batch = module.data.pairs(examples).to(device).build(Share.of(range(len(examples))))
    prefix, places = module.network.prefix(batch.question), batch.answer
    rng = PerSegment(
        [module.randomness.sample(("denoising", n), device) for n in range(len(examples))], places.lengths.tolist()
    )
    seen: list[tuple[float, torch.Tensor, torch.Tensor]] = []
    denoise = Denoiser(module.network, prefix, places)

    def watch(t: torch.Tensor, x: torch.Tensor, belief: torch.Tensor) -> None:
        seen.append((float(t[0]), x.cpu(), belief.softmax(-1).cpu()))

    final, _ = walk(denoise, places, module.process, module.eval_options, rng, watch)
    ends = np.cumsum(places.lengths)
    return [
        _walk(e, n, slice(end - e.pair.output.size, end), seen, final.cpu())
        for n, (e, end) in enumerate(zip(examples, ends))
    ]


def _walk(example: Example, number: int, cells: slice, seen: list, final: torch.Tensor) -> draw.Walk:
    shape = example.pair.output.shape

    def grid(values: torch.Tensor) -> np.ndarray:
        return values[cells].reshape(*shape, *values.shape[1:]).numpy()

    return draw.Walk(
        example.pair.input,
        [t for t, _, _ in seen],
        [grid(x) for _, x, _ in seen],
        [grid(belief) for _, _, belief in seen],
        grid(final),
        example.pair.output,
        f"pair {number + 1}",
    )
