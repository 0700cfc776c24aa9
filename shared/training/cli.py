"""The one door of every project: `python -m projects.<p> fit|validate|test|sample|... --config ... [flags]`.

LightningCLI without its subcommands: the verb is taken off first, so one parser serves every verb and a run's stored
`config.yaml` is a layer for each of them. Everything is checked before a run folder exists: parse, seed, plan, build,
then open the run, train, evaluate. Knows the order of these steps; the steps live in the modules it calls.
"""

import os
import shlex
import sys
import tempfile
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from shared.training import (
    adapting,
    callbacks,
    checkpoints,
    ema,
    errors,
    hardware,
    loggers,
    lora,
    micro_batch,
    optim,
    parallel,
    plan,
    pretrained,
    profiling,
    randomness,
    runs,
    samples,
    snapshots,
)
from shared.training.console import quieten, say
from shared.training.errors import Mistake
from shared.training.layers import TRAINING, Layers, arrange, take_verb
from shared.training.verbs import BUILT_IN, Verb, help_page

GROUPS: dict[str, type] = {
    "optim": optim.Recipe,
    "ema": ema.EmaOptions,
    "randomness": randomness.RandomnessOptions,
    "checkpoint": checkpoints.CheckpointOptions,
    "snapshots": snapshots.SnapshotOptions,
    "logging": runs.LoggingOptions,
    "run": runs.RunOptions,
    "hardware": hardware.HardwareOptions,
    "sampling": samples.SamplingOptions,
    "lora": lora.LoraOptions,
}

FIRST_BATCHES = 8  # that adapters may look at before they start
TRAINER = {  # defaults of every run
    "max_epochs": -1,
    "check_val_every_n_epoch": None,
    "use_distributed_sampler": False,
    "inference_mode": True,
    "enable_model_summary": False,
    "enable_progress_bar": False,
}

QUIET: dict[str, dict[str, Any]] = {"validate": {"verbose": False}, "test": {"verbose": False}, "predict": {}}

DECIDED = {  # Trainer key -> the key it follows from
    "max_epochs": "trainer.max_steps (updates)",
    "check_val_every_n_epoch": "run.validate_every (updates)",
    "val_check_interval": "run.validate_every (updates)",
    "accumulate_grad_batches": "data.micro_batch",
    "logger": "logging",
    "log_every_n_steps": "logging.every (updates)",
}


def main(
    module: Any,
    data: Any,
    args: Sequence[str] | None = None,
    *,
    verbs: Mapping[str, Verb] | None = None,
    groups: Mapping[str, type] | None = None,
) -> "PalimpsestCLI | None":
    """Run the verb on the command line for a project's module and data class (or tuples of classes, one per stage).

    verbs: the project's own. groups: top-level config groups (dataclasses) of its own, or in place of ours; module and
    data module find each as an attribute of that name. A Mistake ends the process with exit code 2 and at most six
    lines, and leaves no run folder.
    """
    quieten()
    own, argv = dict(verbs or {}), list(sys.argv[1:] if args is None else args)
    with errors.told():
        if argv[:1] == ["help"]:
            say(help_page(_project(module), own))
            return None
        verb, argv = take_verb(argv, own)
        layers = arrange(_project(module), verb, argv)
        cli = PalimpsestCLI(module, data, layers, verb, {**BUILT_IN, **own}, groups or {})
        cli.act()
    return cli


class PalimpsestCLI(LightningCLI):
    """One command line, from layers to a finished run."""

    def __init__(
        self,
        module: Any,
        data: Any,
        layers: Layers,
        verb: str,
        verbs: Mapping[str, Verb] = BUILT_IN,
        groups: Mapping[str, type] = MappingProxyType({}),
    ):
        self.layers, self.verb, self.action = layers, verb, verbs.get(verb)
        own = {verb: self.action.options} if self.action and self.action.options else {}
        self.own_groups = dict(groups)
        self.groups = {**GROUPS, **groups, **own}
        super().__init__(
            module,
            data,
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False, "dump_header": None, "prog": f"python -m ... {verb}"},
            args=layers.arguments,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER.items()})
        for key, classes in (("model", self._model_class), ("data", self._datamodule_class)):
            if isinstance(classes, tuple):
                parser.add_subclass_arguments(classes, key, fail_untyped=False, required=True)
            else:
                parser.add_lightning_class_args(classes, key)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="A checkpoint file or a run folder.")
        for name, options in self.groups.items():
            parser.add_class_arguments(options, name)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as refusal:
            raise errors.explain(str(refusal), parser, self.layers) from refusal
        for key, source in DECIDED.items():
            if self.config.trainer[key] != parser.get_default(f"trainer.{key}"):
                where = self.layers.origin(f"trainer.{key}")
                raise Mistake(f"{where}: `trainer.{key}` follows from {source}; leave it out and set that instead.")

    def instantiate_classes(self) -> None:
        """Plan first (pure), then everything but the Trainer, which comes last, with the run."""
        machine = hardware.detect()
        config = {key: _init_args(value) for key, value in self.config.as_dict().items()}
        self.plan = plan.resolve(config, machine, self.layers.project, self.layers.stage, self.layers.size)
        if self.verb != "config":
            hardware.require(config["trainer"], machine)
        if self.verb in (*TRAINING, *QUIET):  # what a Trainer does, with as many ranks as the launcher has
            parallel.require_ranks(self.plan.world, os.environ)
        with errors.blamed_on(self.layers):
            self.config_init = self.parser.instantiate(self.config)
            self.model, self.datamodule = self.config_init.model, self.config_init.data
            self.options = self._options()
            self._attach()
            self._refuse_partial_files()
            self.checkpoint = self._checkpoint()
            self._build()
            self.plan = plan.described(self.plan, self.model, self.datamodule, self.options.optim)
            if self.verb in TRAINING:
                self.plan = micro_batch.settle(self.plan, self.model, self.datamodule, config)
            if self.verb in (*TRAINING, "config"):
                self.plan = plan.costed(self.plan, self.model, self.datamodule)

    def _checkpoint(self) -> Path | None:
        """The file or export whose weights will be loaded: of the run evaluated or resumed, or what training starts
        from.
        """
        folder, prefer = self.layers.run and self.layers.run.folder, self.options.checkpoint.prefer
        prefer = getattr(self.model, "prefer", prefer) if prefer == "final" else prefer
        if self.verb in TRAINING:
            last = folder and folder / "checkpoints" / "last.ckpt"
            path = last if last and last.exists() else self.config.ckpt_path
            prefer = prefer if self.verb == "finetune" else "last"
        else:
            path = self.layers.ckpt_path or folder
        if self.verb == "config" or path is None:
            return None  # nothing is loaded: a fresh run, or a fast_dev_run, which looks at code and not at weights
        return Path(path) if checkpoints.holds_weights(path) else checkpoints.choose(path, prefer)

    def _build(self) -> None:
        """The network, after `module.adopt(data, checkpoint)`, the hook of a module whose shape depends on either
        (`extend` where the checkpoint is a base to which something may be added), and its weights.
        """
        stored = checkpoints.read(self.checkpoint) if self.checkpoint else None
        if stored and (origin := stored["palimpsest"]["project"]) != (here := self.layers.project):
            raise Mistake(f"{self.checkpoint} is a checkpoint of {origin}, not of {here}. Give one of {here}.")
        self.based = self._is_based(stored)
        hook = "extend" if self.based and hasattr(self.model, "extend") else "adopt"
        if hasattr(self.model, hook):
            getattr(self.model, hook)(self.datamodule, stored)
        with torch.device("meta" if self.verb == "config" else "cpu"):
            self.model.configure_model()
        if stored:
            self._weights(stored["palimpsest"].get("lora"))
        optim.groups(self._network, self.options.optim)  # a pattern that matches nothing is refused here

    def _is_based(self, stored: Mapping[str, Any] | None) -> bool:
        """Whether training starts from the weights of another run, and counts its own updates."""
        run, lora_wanted = self.layers.run, self.options.lora.enabled
        resumed = run is not None and self.checkpoint == run.checkpoints / "last.ckpt"
        if lora_wanted and self.verb in TRAINING and stored is None:
            raise Mistake("lora.enabled adapts trained weights and none are named. Use: make finetune CKPT=runs/...")
        return self.verb in TRAINING and not resumed and (self.verb == "finetune" or lora_wanted) and bool(stored)

    def _weights(self, adapted: Mapping[str, Any] | None) -> None:
        """Into the model: all of a run that is looked at, the base of one that is adapted; to resume is Lightning's."""
        path, options = self.checkpoint, self.options.lora
        assert path is not None
        if self.verb not in TRAINING:
            pretrained.load(self.model, path, self.options.checkpoint.weights, options.base)
        elif self.based:
            adapting.attach(self.model, options, path, feed=self._feed)
        else:
            if adapted:
                adapting.attach_again(self.model, options, adapted)
            checkpoints.require_same(adapting.own(self.model, self.model.state_dict()), path)

    def _feed(self) -> None:
        """The first batches of the training to come through the module, as it will see them."""
        for batch in islice(plan.batches(self.datamodule, 1, self.plan.accumulate), FIRST_BATCHES):
            self.model.training_step(batch, 0)

    @property
    def _network(self) -> torch.nn.Module:
        return getattr(self.model, "network", self.model)

    def _options(self) -> SimpleNamespace:
        """The config groups as objects, with learning rate, betas and decay as this batch size wants them."""
        options = SimpleNamespace(**{name: self.config_init[name] for name in self.groups})
        if options.optim.batch_ref is not None and self.plan.batch_size is not None:
            options.ema = options.ema.scaled(self.plan.batch_size / options.optim.batch_ref)
            options.optim = optim.scaled(options.optim, self.plan.batch_size)
        return options

    def _attach(self) -> None:
        """What module and data are told beside their own arguments."""
        keyed = randomness.Randomness(self.config.seed_everything, self.options.randomness.mode)
        self.model.optim_recipe = self.options.optim
        self.model.randomness = self.datamodule.randomness = keyed
        for name in ("sampling", *self.own_groups):
            setattr(self.model, name, getattr(self.options, name))
            setattr(self.datamodule, name, getattr(self.options, name))
        if hasattr(self.datamodule, "micro_batch"):
            self.datamodule.micro_batch = self.plan.micro_batch

    def _refuse_partial_files(self) -> None:
        for callback in self.config_init.trainer.callbacks or []:
            if getattr(callback, "save_weights_only", False):
                raise Mistake(
                    f"{type(callback).__name__} has save_weights_only, which leaves out the raw weights, the optimizer"
                    " and the average, so the run could not be resumed. Remove it; checkpoint.every writes whole files."
                )

    def act(self) -> None:
        self._refuse()
        for line in (
            *self.layers.notes,
            *self._launch(),
            *self.plan.lines(training=self.verb in (*TRAINING, "config")),
        ):
            say(line)
        if self.checkpoint:
            say(f"checkpoint  {self.checkpoint}")
        if self.verb == "config":
            say("\n" + self.parser.dump(self.config, skip_default=True, skip_validation=True))
        elif self.action:
            self.action.act(self)
        elif self.verb in ("fit", "finetune"):
            self.fit()
        else:
            self.evaluate()

    def _refuse(self) -> None:
        """What the verb would refuse, before a line is said and a folder made."""
        layers, rehearsal = self.layers, self.config.trainer.fast_dev_run
        if self.verb in ("fit", "finetune") and not rehearsal:
            runs.refuse(self.options.run, layers.project, layers.stage, layers.size, self.plan.as_dict())
        if self.verb == "predict" and type(self.model).predict_step is LightningModule.predict_step:
            raise Mistake(
                f"{type(self.model).__name__} has no `predict_step`, so it cannot answer; use test or sample."
            )
        if self.action:
            self.action.refuse(self)

    def _launch(self) -> list[str]:
        """How the ranks of a profile for several nodes are started."""
        several = isinstance(self.config_init.trainer.strategy, parallel.Sharded)
        return [f"launch      {line}" for line in parallel.launch_lines(self._command())] if several else []

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """The model in eval mode, without gradients, on the device the hardware profile names."""
        accelerator = self.config.trainer.accelerator
        on_card = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
        self.model.to("cuda" if on_card else "cpu")
        with snapshots.evaluating(self.model):
            yield

    def run_of_weights(self) -> runs.Run:
        """The run the weights belong to; a new one, set apart, for a loose file."""
        return self.layers.run or self._open_run(apart="/loose")

    def fit(self) -> None:
        """Open the run, train, and unless told otherwise evaluate the averaged weights in the same process."""
        run = self._open_run()
        settings = self.plan.trainer_settings() | ({"num_sanity_val_steps": 0} if run.resume_from else {})
        trainer = self._trainer(run, **settings)
        begin = run.resume_from or self.checkpoint
        trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=None if self.based else begin)
        if self.options.run.test_after_fit and trainer.global_step >= trainer.max_steps:
            trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        self._farewell(run)

    def evaluate(self) -> None:
        """validate, test or predict with the averaged weights of a run, or of a loose file under the given layers."""
        run = self.layers.run
        if run is None or self.config.trainer.fast_dev_run:
            run = self._open_run(apart="/evaluated")
        verb, quiet = getattr(self._trainer(run), self.verb), QUIET[self.verb]
        verb(self.model, datamodule=self.datamodule, **quiet)
        self._farewell(run)

    def _open_run(self, apart: str = "") -> runs.Run:
        """The run folder; a fast_dev_run keeps nothing, so its folder is a temporary one."""
        options, layers = self.options.run, self.layers
        if self.config.trainer.fast_dev_run:
            self._temporary = tempfile.TemporaryDirectory(prefix="fast-dev-run-")
            options = replace(options, root=self._temporary.name, name=None, resume=False)
        config = self.parser.dump(self.config, skip_unset=False, skip_validation=True)
        size, facts = layers.size + apart, self.plan.as_dict()
        run = runs.open_run(options, layers.project, layers.stage, size, config, facts, self._command())
        say(f"run         {run.folder}" + (f", continued from {run.resume_from.name}" if run.resume_from else ""))
        return run

    def _trainer(self, run: runs.Run, **settings: Any) -> Trainer:
        hardware.apply(self.options.hardware, self._network)
        ours = [*(self.config_init.trainer.callbacks or []), *callbacks.build(run, self.options)]
        has_files = any(isinstance(callback, Checkpoint) for callback in ours)
        mirrored = loggers.build(run, self.options.logging)
        settings.setdefault("profiler", self.config_init.trainer.profiler or profiling.Unwatched())
        given, cut = self.config_init.trainer.strategy, self.plan.shard is True
        settings["strategy"] = parallel.strategy(given, cut, self.plan.world)
        settings |= {"callbacks": ours, "logger": mirrored, "enable_checkpointing": has_files}
        self.trainer = self.instantiate_trainer(**settings)
        randomness.seed_rank(self.config.seed_everything, self.trainer.global_rank)
        return self.trainer

    def _command(self) -> str:
        package = self.model.__class__.__module__.rpartition(".")[0]
        return shlex.join(["python", "-m", package, self.verb, *self.layers.given])

    def _farewell(self, run: runs.Run) -> None:
        """Last lines: what was written and what to type next."""
        if self.config.trainer.fast_dev_run:
            return self._temporary.cleanup()
        files = [f"{f.name}/" if f.is_dir() else f.name for f in sorted(run.folder.iterdir())]
        stage = f" STAGE={run.stage}" if run.stage else ""
        run.say(f"written     {run.folder}: {', '.join(files)}")
        if self.verb in ("fit", "finetune"):
            run.say(f"next        make evaluate PROJECT={run.project}{stage} CKPT={run.folder}")


def _project(module: Any) -> str:
    """The name of the folder the module class lives in."""
    cls = module[0] if isinstance(module, tuple) else module
    return cls.__module__.split(".")[-2]


def _init_args(section: Any) -> Any:
    return section.get("init_args", section) if isinstance(section, dict) else section
