"""AdamW (Loshchilov & Hutter 2019), or Muon with it, and a learning rate that is one pure function of the update.

Knows parameters by their names and by the modules that own them. Does not know the task, nor how ranks share a batch.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from shared.training.errors import Mistake, nearest
from shared.training.muon import MuonAdamW


@dataclass(frozen=True)
class Group:
    """Parameters whose name matches `pattern` (re.search); the first group that matches wins."""

    pattern: str
    lr_scale: float = 1.0
    weight_decay: float | None = None  # None: as without the group
    name: str | None = None  # its learning rate is logged as optim/lr_<name>; None: it is not
    optional: bool = False  # a network may have no such parameter


@dataclass(frozen=True)
class Plateau:
    """For recipes of earlier systems: after `patience` validations without a lower `monitor`, lr times `factor`."""

    monitor: str = "val/loss"
    factor: float = 0.5
    patience: int = 5


@dataclass(frozen=True)
class Recipe:
    """Config group `optim`. lr is the peak; times are updates, shares are of all updates, floor and start of lr."""

    kind: Literal["adamw", "muon"] = "adamw"  # muon: hidden matrices by Muon, the rest by AdamW
    hidden: str = r"(^|\.)blocks\."  # muon: names of the matrices that count as hidden (re.search)
    hidden_lr_scale: float = 1.0  # muon: their learning rate relative to lr
    lr: float = 1e-3
    batch_ref: int | None = None  # batch that lr and betas[1] are meant for, see `scaled`; None: whatever it is
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_on: Literal["matrices", "all"] = "matrices"  # matrices: 2 or more dimensions, embeddings excepted
    warmup: int | None = None  # None: 2 % of the updates, at most 2000
    start: float = 0.0
    shape: Literal["cosine", "linear", "constant", "wsd", "plateau"] = (
        "cosine"  # wsd: constant, then falls in `cooldown`
    )
    floor: float = 0.1
    cooldown: float = 0.15
    plateau: Plateau = field(default_factory=Plateau)  # of that shape, which has no warm-up and no floor
    groups: list[Group] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("lr", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optim.{name} is {getattr(self, name):g}; it must be above 0.")
        for name in ("start", "floor", "cooldown"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optim.{name} is {getattr(self, name):g}; it is a share and lies in [0, 1].")
        for name, least in (("warmup", 0), ("batch_ref", 1), ("weight_decay", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"optim.{name} is {value}; it must be at least {least}.")


def scaled(recipe: Recipe, batch_size: int) -> Recipe:
    """The recipe for this batch: lr by the square root of the ratio to batch_ref, betas[1] to its power."""
    if recipe.batch_ref is None:
        return recipe
    ratio, (first, second) = batch_size / recipe.batch_ref, recipe.betas
    return replace(recipe, batch_ref=None, lr=recipe.lr * math.sqrt(ratio), betas=(first, second**ratio))


def warmup_updates(recipe: Recipe, total: int) -> int:
    """Updates until the peak."""
    if recipe.shape == "plateau":
        return 0
    return min(2000, max(1, round(0.02 * total))) if recipe.warmup is None else recipe.warmup


def learning_rate(
    u: int,
    total: int,
    warmup: int,
    shape: str = "cosine",
    floor: float = 0.1,
    start: float = 0.0,
    cooldown: float = 0.15,
) -> float:
    """Share of the peak in [0, 1] at update u = 1 .. total: from `start` to 1 at `warmup`, down to `floor` at `total`.

    wsd (Hu et al. 2024) falls as 1 - sqrt (Haegele et al. 2024) over the last `cooldown` of the updates.
    """
    rise = start + (1 - start) * u / warmup if u < warmup else 1.0
    begin = {"constant": total, "wsd": (1 - cooldown) * total}.get(shape, warmup)
    x = min(1.0, max(0.0, (u - begin) / (total - begin))) if total > begin else float(u >= total)
    left = {"cosine": (1 + math.cos(math.pi * x)) / 2, "linear": 1 - x, "wsd": 1 - math.sqrt(x), "constant": 1.0}[shape]
    return min(rise, floor + (1 - floor) * left)


def build(module: nn.Module, recipe: Recipe, total_updates: int) -> dict[str, Any]:
    """What `configure_optimizers` returns: the optimizer over `module.network`, or `module`, and its schedule."""
    if recipe.batch_ref is not None:
        raise ValueError("optim.batch_ref has not been applied; call optim.scaled(recipe, batch_size) first.")
    if total_updates < 1:
        raise Mistake(f"trainer.max_steps is {total_updates}; set it to the number of updates of the run.")
    network = getattr(module, "network", module)
    _require_inside(module, network)
    optimizer = MuonAdamW(groups(network, recipe), recipe.lr, recipe.betas, recipe.eps)
    # Lightning refuses to clip before an optimizer that unscales by itself; this one is left to its own unscaling.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    if recipe.shape == "plateau":
        return {"optimizer": optimizer, "lr_scheduler": _plateau(module, optimizer, recipe.plateau)}
    warmup = warmup_updates(recipe, total_updates)

    def factor(done: int) -> float:
        r = recipe
        return learning_rate(done + 1, total_updates, warmup, r.shape, r.floor, r.start, r.cooldown)

    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


def _plateau(module: Any, optimizer: Any, options: Plateau) -> dict[str, Any]:
    """Lightning asks at every batch; the answer is due at each validation."""
    batches = module.trainer.val_check_interval
    if not (module.trainer.limit_val_batches and isinstance(batches, int)):
        raise Mistake("optim.shape is plateau, but this run never validates; set run.validate_every.")
    scheduler = ReduceLROnPlateau(optimizer, factor=options.factor, patience=options.patience)
    return {"scheduler": scheduler, "monitor": options.monitor, "interval": "step", "frequency": batches}


def groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameter groups for torch: every trainable parameter in exactly one, by first matching pattern, decay and kind.

    Raises Mistake for a pattern that matches nothing and for a network with nothing to train.
    """
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if not named:
        raise Mistake("The network has no trainable parameter; give it one or leave something unfrozen.")
    _require_matches(recipe, named)
    embeddings = {id(p) for m in network.modules() if _is_embedding(m) for p in m.parameters(recurse=False)}
    buckets: dict[tuple[Group, float, float, bool], list[Tensor]] = {}
    for name, p in named.items():
        group = next((g for g in recipe.groups if re.search(g.pattern, name)), Group("default"))
        decays = recipe.decay_on == "all" or (p.ndim >= 2 and id(p) not in embeddings)
        decay = group.weight_decay if group.weight_decay is not None else recipe.weight_decay * decays
        hidden = recipe.kind == "muon" and p.ndim == 2 and id(p) not in embeddings and re.search(recipe.hidden, name)
        scale = group.lr_scale * (recipe.hidden_lr_scale if hidden else 1.0)
        buckets.setdefault((group, scale, decay, bool(hidden)), []).append(p)
    _require_all(buckets, named)
    if recipe.kind == "muon" and not any(key[-1] for key in buckets):
        raise Mistake(f"optim.kind is muon, but no matrix matches optim.hidden `{recipe.hidden}`; name some.")
    return [
        {
            "params": members,
            "lr": recipe.lr * scale,
            "weight_decay": decay,
            "orthogonal": hidden,
            "name": f"{group.pattern}, {'muon' if hidden else 'adamw'}, decay {decay:g}",
            "logged": group.name,
        }
        for (group, scale, decay, hidden), members in buckets.items()
    ]


def rates(optimizer: Any) -> dict[str, float]:
    """`optim/lr`, of the parameters that no named group has, and `optim/lr_<name>` of each that does."""
    found = {group.get("logged"): float(group["lr"]) for group in reversed(optimizer.param_groups)}
    first = found.pop(None, float(optimizer.param_groups[0]["lr"]))
    return {"optim/lr": first, **{f"optim/lr_{name}": rate for name, rate in found.items()}}


def _is_embedding(module: nn.Module) -> bool:
    """torch's own and every class called `...Embedding`, or derived from one; a tied matrix counts as its embedding."""
    return any(cls.__name__.endswith(("Embedding", "EmbeddingBag")) for cls in type(module).__mro__)


def _require_matches(recipe: Recipe, named: Mapping[str, Tensor]) -> None:
    for group in recipe.groups:
        if not group.optional and not any(re.search(group.pattern, name) for name in named):
            some = ", ".join(list(named)[:5])
            hint = nearest(group.pattern, named)
            raise Mistake(f"optim.groups: no parameter matches `{group.pattern}`.{hint} Names are like {some}.")


def _require_all(buckets: Mapping[Any, list[Tensor]], named: Mapping[str, Tensor]) -> None:
    grouped, total = (
        sum(p.numel() for members in buckets.values() for p in members),
        sum(p.numel() for p in named.values()),
    )
    assert grouped == total, f"the groups hold {grouped:,} of {total:,} trainable parameters"


def _require_inside(module: nn.Module, network: nn.Module) -> None:
    inside = {id(p) for p in network.parameters()}
    if outside := [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in inside]:
        raise ValueError(f"Parameter {outside[0]} lies outside `network` and would never be trained; move it inside.")
