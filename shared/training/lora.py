"""Low-rank adapters (Hu et al. 2021) by peft: around which layers, what else learns, and how they are folded away.

Knows the names of a network's parts; neither its base (`adapting.py`) nor what it computes.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from shared.training.directions import directions
from shared.training.errors import Mistake, choices, nearest

ADAPTER = "default"  # peft's name for the only one


@dataclass
class Rows:
    """embedding: a table of the network, by name; rows: those that learn while its others are frozen."""

    embedding: str
    rows: list[int]


@dataclass
class LoraOptions:
    """Config group `lora`.

    tune: lora = adapters and rows learn, rows = the rows alone, full = everything, without adapters. base: where the
    base of an adapted run is now, if it has moved. r, alpha: an adapter adds alpha / r (rslora: alpha / sqrt(r)) times
    B A. targets, exclude: names of linear layers of the network (re.search); None takes the
    module's own `lora_targets`. modules_to_save: layers that learn in full, by name. train_rows: None takes the
    module's own `lora_rows`, if it has any. init: how A and B start; the output stays that of the base. pissa (Meng et
    al. 2024) and olora (Buyukakyuz 2024) start at a part of the base's own weights, which is worked out from the base
    again whenever a file is loaded. eva (Paischer et al. 2024) looks where the inputs of the first batches vary most.
    """

    enabled: bool = False
    tune: Literal["lora", "rows", "full"] = "lora"
    base: str | None = None
    r: int = 8
    alpha: int = 16
    targets: str | None = None
    exclude: str | None = None
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora", "eva"] = "default"
    modules_to_save: list[str] = field(default_factory=list)
    train_rows: list[Rows] | None = None

    def __post_init__(self) -> None:
        for name in ("r", "alpha"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"lora.{name} is {value}; give 1 or more, as in r 8 with alpha 16.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout is {self.dropout:g}; it is a share and lies in [0, 1).")
        if self.init == "orthogonal" and self.r % 2:
            raise ValueError(f"lora.r is {self.r}; lora.init orthogonal halves it, so give an even one.")

    def of(self, module: nn.Module) -> "LoraOptions":
        """With the module's own names where none are given."""
        return replace(
            self,
            targets=self.targets or getattr(module, "lora_targets", None),
            train_rows=self.train_rows or getattr(module, "lora_rows", None),
        )


def as_stored(said: Mapping[str, Any]) -> LoraOptions:
    """The options of a file, which holds plain values."""
    rows = [Rows(**row) for row in said["train_rows"] or []]
    return LoraOptions(**{**said, "train_rows": rows or None})


def inject(network: nn.Module, options: LoraOptions, feed: Callable[[], None] | None = None) -> None:
    """Put adapters around the layers that match; all but they, the chosen layers and the chosen rows is frozen.

    feed: runs first batches through the network, for an init that asks for them.
    """
    from peft import LoraConfig, inject_adapter_in_model  # seconds to import, and few runs need it
    from peft.utils.constants import DUMMY_TARGET_MODULES

    rows = {each.embedding: _checked(network, each).rows for each in options.train_rows or []}
    saved = [_part(network, name, nn.Module, "lora.modules_to_save") for name in options.modules_to_save]
    found = [] if options.tune == "rows" else targets(network, options)
    names = [name for name in found if name not in options.modules_to_save]
    if not rows and options.tune == "rows":
        raise Mistake("lora.tune is rows and no rows are named. Name some with lora.train_rows, or tune lora or full.")
    look = directions(network, names, options.r, feed) if options.init == "eva" and feed else {}
    config = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        use_rslora=options.rslora,
        use_dora=options.dora,
        init_lora_weights=True if options.init == "default" else options.init,
        # a whole name each: peft's lists match any name's end
        target_modules="|".join(map(re.escape, names)) if names else DUMMY_TARGET_MODULES,
        trainable_token_indices=rows or None,
    )
    inject_adapter_in_model(config, network)
    with torch.no_grad():
        for name, rows_RD in look.items():
            network.get_parameter(f"{name}.lora_A.{ADAPTER}.weight")[: len(rows_RD)] = rows_RD
    network.train(network.training)  # what was put in is in training mode, dropout too
    _index_on_device(network, rows)
    for part in saved:
        part.requires_grad_(True)


def targets(network: nn.Module, options: LoraOptions) -> list[str]:
    """Names of the layers to adapt. Raises Mistake naming five there are when none matches."""
    linear = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    kept = [n for n in linear if not (options.exclude and re.search(options.exclude, n))]
    found = [n for n in kept if options.targets and re.search(options.targets, n)]
    if not found:
        some = ", ".join(kept[:5] or linear[:5])
        raise Mistake(f"lora.targets `{options.targets}` matches no linear layer. There are for example: {some}.")
    return found


def peft_names(network: nn.Module) -> dict[str, str]:
    """Names of the adapters' tensors in a file of peft -> in `network`."""
    from peft import get_peft_model_state_dict

    names: Any = {name: name for name in network.state_dict()}
    return get_peft_model_state_dict(network, state_dict=names)


@torch.no_grad()
def merge(network: nn.Module) -> float:
    """Fold the adapters into the weights, in place: names are the base's again. Returns the largest difference that
    folding makes to what the adapted layers give for random inputs."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    worst, rng = 0.0, torch.Generator().manual_seed(0)
    for name, part in list(network.named_modules()):
        if isinstance(part, BaseTunerLayer):
            layer, base = cast(Any, part), part.get_base_layer()
            x = _input(base, rng)
            before = layer(x)
            layer.merge()
            worst = max(worst, (base(x) - before).abs().max().item())
            network.set_submodule(name.removesuffix(".token_adapter"), base)
    del network.peft_config
    return worst


def _index_on_device(network: nn.Module, rows: Mapping[str, list[int]]) -> None:
    """peft makes the index of the rows anew in every pass, on the host, for which a CUDA device would have to wait."""
    for name, numbers in rows.items():
        part: Any = network.get_submodule(f"{name}.token_adapter")
        part.register_buffer("rows", torch.tensor(numbers, device=part.base_layer.weight.device), persistent=False)
        part.get_merged_weights = partial(_with_rows, part)


def _with_rows(part: Any, adapters: Iterable[str]) -> Tensor:
    table = part.base_layer.weight
    return table.index_copy(0, part.rows, part.trainable_tokens_delta[ADAPTER].to(table)) if adapters else table


def _input(layer: Any, rng: torch.Generator) -> Tensor:
    if isinstance(layer, nn.Embedding):
        return torch.arange(layer.num_embeddings)
    return torch.randn(16, layer.in_features, generator=rng)


def _checked(network: nn.Module, each: Rows) -> Rows:
    table = _part(network, each.embedding, nn.Embedding, "lora.train_rows")
    if odd := [row for row in each.rows if not 0 <= row < table.num_embeddings]:
        raise Mistake(f"lora.train_rows: {each.embedding} has {table.num_embeddings} rows, none is number {odd[0]}.")
    return each


def _part(network: nn.Module, name: str, kind: type, key: str) -> Any:
    parts = {n: part for n, part in network.named_modules() if n and isinstance(part, kind)}
    if name not in parts:
        raise Mistake(f"{key}: the network has no {name}.{nearest(name, parts)} There are: {choices(list(parts)[:5])}.")
    return parts[name]
