"""What can be done with a built command line beside training and evaluating: a verb is a function of it.

A project adds its own: `cli.main(Module, Data, verbs={"ablate": Verb(ablate)})` makes `python -m projects.<p> ablate`
and `make ablate PROJECT=<p>`. The function gets the command line (`model`, `datamodule`, `options`, `plan`, `layers`);
the weights of the checkpoint that was named, if one was, are in the model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from shared.training import bench, exports, profiling, samples
from shared.training.errors import Mistake
from shared.training.layers import VERBS

if TYPE_CHECKING:
    from shared.training.cli import PalimpsestCLI


@dataclass(frozen=True)
class Verb:
    """act: its docstring's first line is the help. options: a dataclass; its flags are --<verb>.<field>.
    refuse: raises the Mistakes of `act` that can be foreseen, before anything is said or written.
    """

    act: Callable[["PalimpsestCLI"], Any]
    options: type | None = None
    refuse: Callable[["PalimpsestCLI"], None] = lambda cli: None

    @property
    def help(self) -> str:
        return (self.act.__doc__ or "").strip().partition("\n")[0].rstrip(".")


def _refuse_sample(cli: "PalimpsestCLI") -> None:
    if not hasattr(cli.model, "sample"):
        raise Mistake(f"{type(cli.model).__name__} has no `sample(seeds)`, so it cannot draw; add it to the module.")


def sample(cli: "PalimpsestCLI") -> None:
    """draw samples with the averaged weights of a run, into its samples/"""
    run, options = cli.run_of_weights(), cli.options.sampling
    folder = run.samples / f"sample-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    with cli.drawing():
        drawn = cli.model.sample(options.seeds)
        files = samples.write(drawn, folder, options.first)
        files += cli.model.show(drawn, folder) if hasattr(cli.model, "show") else []
    print(f"drawn       {len(drawn)} samples, {options.steps} steps: {', '.join(file.name for file in files)}")
    print(f"written     {folder}")


BUILT_IN = {
    "sample": Verb(sample, refuse=_refuse_sample),
    "export": Verb(exports.export_verb, exports.ExportOptions, exports.refuse),
    "bench": Verb(bench.bench, bench.BenchOptions),
    "profile": Verb(profiling.run),
}


def help_page(project: str, own: Mapping[str, Verb]) -> str:
    """The verbs of a project, its own last."""
    lines = [f"Verbs of {project} (make <verb> PROJECT={project}, or python -m ... <verb>):"]
    told = {verb: HELP.get(verb, "") for verb in VERBS} | {name: verb.help for name, verb in own.items()}
    return "\n".join([*lines, *(f"  {name:<12} {text}" for name, text in told.items())])


HELP = {
    "fit": "train, then test (make train)",
    "finetune": "adapt a checkpoint: LoRA by configs/<p>/lora.yaml",
    "validate": "the validation loop on a run",
    "test": "score a run (make evaluate)",
    "predict": "answers without scores",
    "config": "the plan and the settings, nothing is run",
} | {name: verb.help for name, verb in BUILT_IN.items()}
