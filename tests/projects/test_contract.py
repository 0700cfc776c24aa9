"""What every line promises the house, the module contract, asked of each project and stage that is found."""

import ast
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shared.training.samples import Sample
from tests.lines import LINES, PACKAGES, ROOT, awake, given

pytestmark = [
    pytest.mark.usefixtures("at_home"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
READS = ("item", "tolist", "numpy", "nonzero", "__float__", "__int__", "__bool__")  # each waits for an accelerator
DRAWS = 2_000  # training samples whose levels a walk must stay among
NEAR = 0.02  # of a drawn level


@pytest.fixture(scope="module", params=LINES, ids=str)
def made(request, tmp_path_factory):
    """The line's command line with module and data, built at nano, made tiny and attached to a Trainer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        made = request.param.build()
    awake(made.model.network)
    return made


@pytest.fixture
def module(made):
    return made.model.train()


@pytest.fixture
def batch(made):
    return next(iter(made.datamodule.train_dataloader()))


def test_a_batch_counts_its_samples_and_units_and_those_of_the_update(made, batch):
    for name in ("num_samples", "num_units", "global_samples", "global_units", "shards"):
        assert type(getattr(batch, name)) is int and getattr(batch, name) > 0, name
    assert batch.num_samples <= batch.global_samples and batch.shards == made.trainer.accumulate_grad_batches
    assert type(batch.to("cpu")) is type(batch)


def test_the_batch_of_an_update_is_the_same_when_it_is_asked_for_again(made, batch):
    assert same(batch, next(iter(made.datamodule.train_dataloader())))


def test_a_step_gives_a_loss_that_reaches_every_trainable_parameter(module, batch):
    module.zero_grad()
    out = module.training_step(batch, 0)
    assert set(out) == {"loss", "logs"} and out["loss"].ndim == 0 and torch.isfinite(out["loss"])
    assert not any(value.requires_grad for value in tensors(out["logs"]))
    out["loss"].backward()
    assert [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_step_draws_by_key_so_that_it_repeats(module, batch):
    losses = []
    for seed in (0, 0):
        torch.manual_seed(seed)  # dropout alone may use it
        losses.append(float(module.training_step(batch, 0)["loss"]))
    assert losses[0] == losses[1]


def test_a_step_reads_no_value_on_the_host(module, batch, monkeypatch):
    """Range checks, which the processes do on the CPU only, are left out."""
    for name in ("schedules", "gaussian", "categorical", "interpolation"):
        monkeypatch.setattr(f"shared.processes.{name}.readable", lambda x: False)
    for name in READS:
        monkeypatch.setattr(Tensor, name, refusal(name))
    module.training_step(batch, 0)


def test_validation_gives_logs_of_tensors_without_changing_anything(module, made):
    before = {name: value.clone() for name, value in module.state_dict().items()}
    first = next(iter(made.datamodule.val_dataloader()))
    with torch.no_grad():
        out = module.eval().validation_step(first, 0)
    assert out["logs"] and all(torch.isfinite(value).all() for value in tensors(out["logs"]))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_optimizers_hold_every_trainable_parameter_once(module):
    chosen = module.configure_optimizers()
    optimizer = chosen["optimizer"] if isinstance(chosen, dict) else chosen
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in module.parameters() if p.requires_grad)


def test_forward_flops_of_a_batch_are_a_whole_number(module, batch):
    assert type(module.flops(batch)) is int and module.flops(batch) > batch.num_samples


def test_adapters_reach_linear_layers_and_of_attention_every_one(module):
    linear = {name for name, part in module.network.named_modules() if isinstance(part, torch.nn.Linear)}
    reached = {name for name in linear if re.search(module.lora_targets, name)}
    assert reached and {name for name in linear if re.search(r"attention\.[qkvo]$", name)} <= reached


def test_configuring_the_model_twice_keeps_the_network(module):
    network = module.network
    module.configure_model()
    assert module.network is network and isinstance(network, torch.nn.Module)


def test_sample_17_is_the_same_alone_and_in_company(module):
    module.eval()
    with torch.no_grad():
        (alone,), company = module.sample([17]), module.sample([15, 16, 17, 18, 19])
    assert isinstance(alone, Sample) and len(company) == 5
    assert close(alone, company[2])
    assert not all(close(alone, other) for other in (*company[:2], *company[3:]))


def test_the_walk_asks_only_what_training_draws(module, made):
    """Levels near drawn ones; of the optional inputs and masks only kinds that some training sample learnt from."""
    batches, drawn = iter(made.datamodule.train_dataloader()), 0
    with recorded(module.train().network) as trained:
        while drawn < DRAWS:
            batch = next(batches)
            module.training_step(batch, 0)
            drawn += batch.num_samples
    with torch.no_grad(), recorded(module.eval().network, learning=False) as asked:
        module.sample([0, 1, 2])
    levels = torch.tensor(sorted(trained.pop("t")))
    walked = torch.tensor(sorted(asked.pop("t")))
    assert len(walked) > 1
    assert ((walked[:, None] - levels).abs().min(1).values < NEAR).all(), (walked, levels.aminmax())
    assert {name: found - trained[name] for name, found in asked.items() if found - trained[name]} == {}


@pytest.mark.parametrize("project", PACKAGES)
def test_no_module_logs_by_itself_or_reads_an_item(project):
    """Steps return their logs; `self.log` and `.item()` stand in no file of a line that Lightning calls."""
    folder = ROOT / PACKAGES[project].replace(".", "/")
    assert [where for path in sorted(folder.glob("module*.py")) for where in calls(path)] == []


@pytest.mark.parametrize("project", PACKAGES)
def test_every_project_has_a_test_that_it_learns(project):
    found = [*ROOT.glob(f"tests/learn/test_{project}.py"), *ROOT.glob(f"tests/learn/test_{project}_*.py")]
    assert [path for path in found if "def test_" in path.read_text()], f"write tests/learn/test_{project}.py"


def test_the_search_for_logging_sees_it(tmp_path):
    (tmp_path / "module.py").write_text("def f(self, x):\n    self.log('a', x)\n    self.log_dict({})\n    x.item()\n")
    assert len(calls(tmp_path / "module.py")) == 3


def calls(path: Path) -> list[str]:
    """Where a file calls self.log, self.log_dict or .item()."""
    called = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [f"{path}:{f.lineno}" for f in called if re.search(r"^self\.log(_dict)?$|\.item$", ast.unparse(f))]


def refusal(name):
    def refuse(*args, **kwargs):
        raise AssertionError(f"Tensor.{name} in a training step")

    return refuse


@contextmanager
def recorded(network: torch.nn.Module, learning: bool = True) -> Iterator[dict[str, set]]:
    """The kinds of inputs, by argument, of the calls of the network that learn (or of all)."""
    seen: dict[str, set] = {}

    def record(network, arguments, named, out):
        for name, value in given(network, arguments, named).items() if torch.is_grad_enabled() or not learning else ():
            seen.setdefault(name, set()).update(kinds(name, value, len(out) if isinstance(out, Tensor) else 0))

    hook = network.register_forward_hook(record, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def kinds(name: str, value: object, rows: int) -> set:
    """What kind of input a call gave: levels of t; which rows had an optional input; how full a mask was."""
    if name == "t":
        return set(value.flatten().tolist())
    if value is None:
        return {"absent"}
    if isinstance(value, Tensor) and value.dtype == torch.bool:
        flat = value.reshape(len(value), -1)
        return {"full" if all_ else "some" if any_ else "empty" for all_, any_ in zip(flat.all(1), flat.any(1))}
    if isinstance(value, Tensor) and 0 < len(value) < rows:
        return {"given", "absent"}  # an input for the first rows only
    return {"given"}


def tensors(logs: dict) -> list[Tensor]:
    """Values of logs: tensors, or pairs of sum and count."""
    return [value for each in logs.values() for value in (each if isinstance(each, tuple) else (each,))]


def close(one: Sample, other: Sample) -> bool:
    """Text equal, pictures equal, numbers within 1e-5."""
    pairs = [(one.image, other.image), (one.video, other.video)]
    if one.text != other.text or any((a is None) != (b is None) for a, b in pairs) or set(one.data) != set(other.data):
        return False
    if not all(a is None or torch.equal(a, b) for a, b in pairs):
        return False
    both = [(one.data[name], other.data[name]) for name in one.data]
    return all(a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=0, atol=1e-5) for a, b in both)


def same(one: object, other: object) -> bool:
    """Equal tensors in equal places of two batches."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if hasattr(one, "__dataclass_fields__"):
        return all(
            same(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__ if name != "share"
        )
    return True
