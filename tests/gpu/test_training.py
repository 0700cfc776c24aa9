"""The training loop on a card: no waiting, no needless compiling, the memory that was planned, the same run twice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from shared.training import callbacks, hardware, plan
from shared.training.tables import read_table
from tests.gpu.desk import FOUND, NANO, QUIET, ROOT, At, fit, line
from tests.lines import PACKAGES

pytestmark = pytest.mark.gpu
BF16 = 2e-2


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    monkeypatch.chdir(ROOT)
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.compiler.reset()


def watched(monkeypatch, act):
    """Every run of this test has one callback more, after ours."""
    build = callbacks.build
    monkeypatch.setattr(callbacks, "build", lambda run, options: [*build(run, options), At(act)])


def last_loss(run):
    losses = read_table(run.trainer.logger.run.folder / "metrics.csv")["train/loss"]
    return losses[max(losses)]


@pytest.mark.parametrize(("project", "size"), FOUND)
def test_every_project_trains_in_half_precision(project, size, tmp_path):
    run = fit(project, size, tmp_path, "--trainer.max_steps=30", "--logging.every=10")
    assert run.trainer.global_step == 30 and torch.tensor(last_loss(run)).isfinite()
    perf = read_table(run.trainer.logger.run.folder / "perf.csv")
    assert perf["perf/tflops"][30] > 0 and perf["perf/memory_gb"][30] > 0
    known = hardware.peak_tflops(torch.cuda.get_device_name(), "bf16-mixed")
    assert ("perf/mfu" in perf) == (known is not None)


@pytest.mark.parametrize("project", NANO)
def test_no_update_between_two_logging_points_waits_for_the_card(project, tmp_path, monkeypatch):
    """From update 10 on, 50 updates under torch's sync debug mode: any wait raises."""

    def act(trainer):
        if trainer.global_step in (10, 60):
            torch.cuda.set_sync_debug_mode("error" if trainer.global_step == 10 else "default")

    watched(monkeypatch, act)
    assert fit(project, "nano", tmp_path, "--trainer.max_steps=70", "--logging.every=70").trainer.global_step == 70


def gradients(run, batch, compile):
    """The gradient of one step in bf16 at the weights of `run`, with blocks compiled or not; dropout off."""
    module = run.model.cuda().eval()
    hardware.apply(hardware.HardwareOptions(compile=compile), module.network)
    module.zero_grad()
    with torch.autocast("cuda", torch.bfloat16):
        module.training_step(batch.to("cuda"), 0)["loss"].backward()
    return torch.cat([p.grad.flatten().float() for p in module.network.parameters() if p.grad is not None])


@pytest.mark.parametrize("project", NANO)
def test_compiled_is_eager(project, tmp_path):
    run = fit(project, "nano", tmp_path, "--trainer.max_steps=20")
    batch = next(plan.batches(run.datamodule))
    eager, compiled = (gradients(run, batch, how).clone() for how in ("none", "blocks"))
    assert ((compiled - eager).norm() / eager.norm()).item() < BF16


@pytest.mark.parametrize("project", NANO)
def test_a_warm_run_compiles_at_most_twice_more(project, tmp_path, monkeypatch):
    """Ten updates meet every path through a block and lengths that vary; what follows should be known."""
    counter, compiled, seen = CompileCounterWithBackend("inductor"), torch.compile, {}
    monkeypatch.setattr(torch, "compile", lambda f, mode=None: compiled(f, backend=counter))
    watched(monkeypatch, lambda trainer: seen.setdefault(trainer.global_step, counter.frame_count))
    fit(project, "nano", tmp_path, "--trainer.max_steps=40", "--hardware.compile=blocks")
    assert seen[10] > 0, "nothing was compiled"
    assert seen[40] - seen[10] <= 2


def test_the_planned_memory_is_what_a_run_takes(tmp_path):
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    flags = ("--data.batch_size=16384", "--data.micro_batch=16384", "--trainer.max_steps=4", "--logging.every=2")
    run = fit("template", "lorge", tmp_path, *flags)
    taken = torch.cuda.max_memory_allocated()
    assert run.plan.activation_bytes > 1e9
    assert abs(run.plan.peak_bytes / taken - 1) < 0.2, f"planned {run.plan.peak_bytes:,}, taken {taken:,}"


def test_the_micro_batch_found_for_the_card_splits_the_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "CACHE", tmp_path / "cache")
    flags = ("--data.batch_size=96", "--data.micro_batch=auto", "--trainer.max_steps=2")
    found = fit("template", "nano", tmp_path, *flags).plan
    assert found.micro_batch * found.accumulate == 96 and (tmp_path / "cache/micro_batch.json").exists()


def typed(root: Path, *flags: str, kill: bool = False) -> int:
    """A deterministic run of the template in a process of its own; its exit code."""
    killer = ["--trainer.callbacks+=tests.gpu.desk.KillAt", "--trainer.callbacks.update=13"]
    settings = [*QUIET[:3], f"--run.root={root}", "--trainer.max_steps=20", "--trainer.deterministic=true"]
    settings += ["--checkpoint.every=5", "--logging.every=2", *killer, *flags]
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", **({"KILL": "1"} if kill else {})}
    command = [sys.executable, "-m", PACKAGES["template"], "fit", *line("template", "nano", *settings)]
    return subprocess.run(command, env=environment, cwd=ROOT, timeout=110, check=False).returncode


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    assert typed(tmp_path, "--run.name=whole") == 0
    assert typed(tmp_path, "--run.name=killed", kill=True) < 0
    assert typed(tmp_path, "--run.name=killed", "--run.resume=true") == 0
    whole, killed = ((tmp_path / "template/nano" / name / "metrics.csv").read_bytes() for name in ("whole", "killed"))
    assert whole == killed and len(whole.splitlines()) > 5
