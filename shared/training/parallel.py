"""How a run spreads over processes: plain DDP, FSDP2 for networks that do not fit a card, and what starts the ranks.

`ddp` and `sharded` are what a hardware profile names as `trainer.strategy`; `strategy` chooses between them by
`hardware.shard`. Knows Lightning's strategies and the launchers' environment; no network and no batch.

What a network must be to be cut: every member of a ModuleList gathers its weights when it is called and frees them
after; everything else is whole from the beginning of `training_step` to its end, and wherever the house evaluates or
draws (`together`). So any method of a network may be called there. A member that is entered by other methods than
`forward` names them, `entries = ("keys_values",)` in its class; a list that a member fills must be empty when it is
handed over. No parameter is a scalar (shape [1] is as good), none belongs to a member and to something else.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from inspect import signature
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from shared.training.batches import each_tensor
from shared.training.errors import Mistake
from shared.training.shards import cut_like, whole

STATE_BYTES = 16  # per parameter: weight 4, gradient 4, Adam 8
FULL = 0.6  # share of a card that this state may take before it is cut


def ddp(compress: bool = False) -> DDPStrategy:
    """One whole network per process. compress: gradients travel in bf16, for a narrow bus (CUDA only)."""
    renamed = "forward_sync_buffers" in signature(DistributedDataParallel).parameters  # from torch 2.13 on
    sync: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DDPStrategy(
        find_unused_parameters=False,
        gradient_as_bucket_view=True,
        static_graph=False,
        ddp_comm_hook=bf16_compress_hook if compress else None,
        **sync,  # buffers are equal on all ranks already: their updates are all-reduced
    )


def sharded() -> "Sharded":
    """One network over all processes (FSDP2)."""
    return Sharded()


def must_shard(wish: bool | Literal["auto"], parameters: int, memory_gb: float | None, world: int) -> bool:
    """`hardware.shard`: auto cuts only where the state of training takes more than 0.6 of a card (None: unknown)."""
    if world == 1 or wish != "auto":
        return world > 1 and bool(wish)
    return memory_gb is not None and parameters * STATE_BYTES > FULL * memory_gb * 1e9


def strategy(given: str | Strategy, shard: bool, world: int) -> str | Strategy:
    """What the Trainer gets for the `trainer.strategy` of the layers: theirs where it serves, ours where it is open."""
    if world == 1:
        return "auto" if isinstance(given, Sharded | DDPStrategy) else given
    if shard:
        return given if isinstance(given, Sharded) else sharded()
    return ddp() if isinstance(given, Sharded) or given in ("auto", "ddp") else given


class Sharded(ModelParallelStrategy):
    """FSDP2: every member of every ModuleList of the module, then the rest, cut over all processes.

    A checkpoint is one file as any other strategy writes it: it is read before the network is cut, and what is cut is
    made whole when it is written. Precision is the Trainer's (autocast over float32 weights).
    """

    def __init__(self) -> None:
        super().__init__(data_parallel_size="auto", tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # "auto" would mean the number of nodes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        assert self.lightning_module is not None
        cut(self.lightning_module, self.device_mesh["data_parallel"])
        fitting = trainer.fit_loop.epoch_loop.val_loop
        for loop in (fitting, trainer.validate_loop, trainer.test_loop, trainer.predict_loop):
            loop.inference_mode = False  # what is gathered there must still serve a backward pass
        super().setup(trainer)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().training_step(*args, **kwargs)
        except RuntimeError as error:
            if "DTensor" not in str(error):
                raise
            raise Mistake(
                "A network that is cut over processes computed with a part of weights. Enter the members of its"
                " ModuleLists by forward or by a method named in their `entries`, or set hardware.shard false."
            ) from error

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return optimizer.state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Every rank takes part in making tensors whole; rank 0 keeps and writes them, each once."""
        super().save_checkpoint(each_tensor(checkpoint, cache(self._gathered)), filepath, storage_options)

    def _gathered(self, tensor: Tensor) -> Tensor:
        tensor = whole(tensor)
        return tensor.cpu() if self.is_global_zero else tensor.new_empty(0)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"]):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {i: each_tensor(of, partial(cut_like, other=parameters[i])) for i, of in stored["state"].items()}
            optimizer.load_state_dict({**stored, "state": state})


def cut(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shard `module` over `mesh` in place: inner parts first, the rest last. Nothing happens the second time.

    Raises Mistake with torch's reason where a network cannot be cut.
    """
    if isinstance(module, FSDPModule):
        return
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")  # nothing here writes in place
    try:
        for part in reversed([*_members(module)]):
            fully_shard(part, mesh=mesh)
            for name in getattr(part, "entries", ()):
                register_fsdp_forward_method(part, name)
        # by default a forward pass without a backward leaves the root whole: averages could not be swapped into it
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        register_fsdp_forward_method(module, "training_step")
        root: Any = module
        root._get_fsdp_state()._lazy_init()  # else the first part that is called, in an evaluation, would be the root
    except (ValueError, NotImplementedError) as error:
        raise Mistake(
            f"The network cannot be cut over processes: {error} Change that, or set hardware.shard false."
        ) from error


def _members(network: nn.Module) -> Iterator[nn.Module]:
    lists = (module for module in network.modules() if isinstance(module, nn.ModuleList))
    members = dict.fromkeys(member for each in lists for member in each)
    return (m for m in members if not isinstance(m, nn.ModuleList) and any(True for _ in m.parameters()))


def is_cut(module: nn.Module) -> bool:
    """Whether ranks hold parts of `module` only, so that all of them must enter `together`."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


@contextmanager
def together(module: nn.Module) -> Iterator[None]:
    """Inside, every rank holds all of a cut network, so a forward pass is its own affair: evaluations need not be of
    one length, pictures are drawn by one rank. All ranks enter and leave; costs 4 bytes per parameter."""
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


# --- launching


def launch_lines(command: str) -> list[str]:
    """How several nodes are started, by torchrun on each or by SLURM. command: `python -m projects.text fit ...`."""
    rendezvous = "--rdzv-id=NAME --rdzv-backend=c10d --rdzv-endpoint=HOST:29400"
    return [
        f"torchrun --nnodes=N --nproc-per-node=8 {rendezvous} {command.removeprefix('python ')}",
        f"srun --nodes=N --ntasks-per-node=8 {command}",
    ]


def require_ranks(planned: int, environment: Mapping[str, str]) -> None:
    """Refuse to start fewer ranks than the launcher's environment states. Raises Mistake; pure."""
    stated, source = _stated(environment)
    outside = "SLURM_NTASKS" in environment and "SLURM_PROCID" not in environment and "RANK" not in environment
    if outside and stated > 1:
        raise Mistake(
            f"SLURM has given {stated} tasks, but this is one process outside of them. Start it with srun:"
            " srun python -m projects.<p> fit ..., or ask for one task."
        )
    if stated > planned:
        raise Mistake(
            f"{source} states {stated} ranks, the configuration plans {planned} (trainer.devices x trainer.num_nodes)."
            f" Set the two so that they make {stated}, or launch {planned}."
        )


def _stated(environment: Mapping[str, str]) -> tuple[int, str]:
    """(ranks, name of the variable that says so)."""
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        if name in environment:
            return int(environment[name]), name
    return 1, ""
