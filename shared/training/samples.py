"""What a module draws when it is asked to: samples as text, pictures, videos or numbers, and their files.

`make sample` calls `module.sample(seeds, **options)`; sample n is the same alone and in company. Knows files, not what
is shown. Videos become GIFs here; a line with better means writes its own in `module.show(samples, folder)`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.training.tables import replace_text, replacing

SHEET_COLUMNS = 4
FRAME_MS = 100


@dataclass
class Sample:
    """One drawn thing; what is None or empty it does not have.

    image: uint8 [H, W, 3]; video: uint8 [T, H, W, 3]; data: tensors by name.
    """

    text: str | None = None
    image: Tensor | None = None
    video: Tensor | None = None
    data: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class SamplingOptions:
    """Config group `sampling`: how beliefs are walked. A project with more to say derives its own class.

    steps: of the walk from noise to data. count: samples that the verb `sample` draws. first: number of the first one;
    sample n is drawn from a generator of its own.
    """

    steps: int = 32
    count: int = 16
    first: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("count", 1), ("first", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"sampling.{name} is {value}; it must be at least {least}.")

    @property
    def seeds(self) -> list[int]:
        """Numbers of the samples to draw."""
        return list(range(self.first, self.first + self.count))


def write(samples: Sequence[Sample], folder: Path, first: int = 0) -> list[Path]:
    """samples.txt, one PNG or GIF for each picture or video, all pictures on samples.png, numbers in samples.npz.

    first: number of the first sample; files are named after the number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = dict(enumerate(samples, first))
    texts = [f"--- {n}\n{sample.text}\n" for n, sample in named.items() if sample.text is not None]
    written = [folder / "samples.txt"] if texts else []
    for path in written:
        replace_text(path, "".join(texts))
    pictures = {n: sample.image for n, sample in named.items() if sample.image is not None}
    videos = {n: sample.video for n, sample in named.items() if sample.video is not None}
    written += [_png(folder / f"{n:03d}.png", image) for n, image in pictures.items()]
    written += [_png(folder / "samples.png", sheet(list(pictures.values())))] if len(pictures) > 1 else []
    written += [_gif(folder / f"{n:03d}.gif", video) for n, video in videos.items()]
    return written + _numbers(named, folder / "samples.npz")


def sheet(images: Sequence[Tensor], gap: int = 4) -> Tensor:
    """Pictures [H, W, 3] of any sizes on one white page, row by row."""
    height, width = (max(image.shape[axis] for image in images) + gap for axis in (0, 1))
    columns = min(SHEET_COLUMNS, len(images))
    page = torch.full((-(-len(images) // columns) * height, columns * width, 3), 255, dtype=torch.uint8)
    for n, image in enumerate(images):
        top, left = n // columns * height, n % columns * width
        page[top : top + image.shape[0], left : left + image.shape[1]] = image.cpu()
    return page


def _png(path: Path, image: Tensor) -> Path:
    from matplotlib.image import imsave

    with replacing(path) as file:
        imsave(file, image.cpu().numpy(), format="png")
    return path


def _gif(path: Path, video: Tensor) -> Path:
    from PIL import Image

    first, *rest = (Image.fromarray(frame) for frame in video.cpu().numpy())
    with replacing(path) as file:
        first.save(file, "GIF", save_all=True, append_images=rest, duration=FRAME_MS, loop=0)
    return path


def _numbers(samples: Mapping[int, Sample], path: Path) -> list[Path]:
    """Tensors of one name and one shape are stacked; others keep the number of their sample."""
    by_name: dict[str, list[tuple[int, Tensor]]] = {}
    for n, sample in samples.items():
        for name, value in sample.data.items():
            by_name.setdefault(name, []).append((n, value.detach().cpu()))
    arrays: dict[str, Any] = {}
    for name, values in by_name.items():
        alike = len({value.shape for _, value in values}) == 1 and len(values) == len(samples)
        if alike:
            arrays[name] = torch.stack([value for _, value in values]).numpy()
        else:
            arrays |= {f"{name}.{n}": value.numpy() for n, value in values}
    if not arrays:
        return []
    with replacing(path) as file:
        np.savez(file, **arrays)
    return [path]
