"""FSDP2: each rank holds its part of the weights, their gradients, their moments and their moving average.

Lightning's `ModelParallelStrategy` starts the ranks; what is sharded, a module says in `configure_model`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


class FullySharded(ModelParallelStrategy):
    """FSDP2 over all ranks, or hybrid: over groups of `shard_ranks`, each of which holds a whole copy.

    With 8 for nodes of 8 GPUs, weights are gathered within the node and only gradients travel between nodes.
    """

    def __init__(self, shard_ranks: int | None = None) -> None:
        """Raises, at the start, `ValueError` where `shard_ranks` does not divide the number of ranks."""
        super().__init__(data_parallel_size=1, tensor_parallel_size=1)
        self.shard_ranks = shard_ranks
        self.mesh: DeviceMesh | None = None

    def setup_environment(self) -> None:
        # Not "auto": that takes a node's ranks for tensor parallelism.
        self._data_parallel_size = ranks = self.num_nodes * self.num_processes
        super().setup_environment()
        if self.mesh is None:
            among = self.shard_ranks or ranks
            if ranks % among:
                raise ValueError(
                    f"strategy: shard_ranks is {among}, it must divide the {ranks} ranks; see --trainer.devices"
                )
            shape, names = ((ranks,), ("shard",)) if among == ranks else ((ranks // among, among), ("copy", "shard"))
            self.mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)

    @property
    def precision_policy(self) -> MixedPrecisionPolicy:
        """Master weights and sums of gradients in float32. Under bf16-mixed weights are gathered, and used, in bf16.

        Inputs are left as they are: autocast turns what may be turned, and poses stay exact.
        """
        half = torch.bfloat16 if self.precision_plugin.precision == "bf16-mixed" else None
        return MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)


def shard(module: L.LightningModule, units: Iterable[nn.Module]) -> None:
    """Shards `units`, inner ones first, where the module's trainer says so; elsewhere nothing happens.

    A unit's weights are gathered when it is called and let go after it, so only its `forward` may use them.
    """
    strategy = module.trainer.strategy
    if isinstance(strategy, FullySharded):
        for unit in units:
            if not isinstance(unit, FSDPModule):  # a second fit, or the validation after it, finds them sharded
                unit.to(memory_format=torch.contiguous_format)  # FSDP2 takes no channels_last weights
                fully_shard(unit, mesh=strategy.mesh, mp_policy=strategy.precision_policy, reshard_after_forward=True)


def sharded(module: L.LightningModule) -> bool:
    return module._trainer is not None and isinstance(module.trainer.strategy, FullySharded)


def in_use(module: L.LightningModule) -> AbstractContextManager[Any]:
    """For calling networks where Lightning does not, in a callback: sharded weights are gathered in the precision of
    training, and meet what they are given under its autocast only. Elsewhere nothing happens."""
    return module.trainer.precision_plugin.forward_context() if sharded(module) else nullcontext()


def check_whole(module: L.LightningModule, setting: str) -> None:
    """Raises `ValueError` where the module is sharded, for a setting that needs each weight in one piece."""
    if sharded(module):
        raise ValueError(
            f"{setting} needs whole matrices on every rank: set it to 0, or take --config "
            "configs/strategy/ddp.yaml instead of a sharding strategy"
        )


def average_gradients(module: L.LightningModule, replicated: nn.Module) -> None:
    """Means over all ranks of the gradients of a network that is not sharded in a module that is; else nothing."""
    if sharded(module):
        for parameter in replicated.parameters():
            if parameter.grad is not None:
                parameter.grad = module.trainer.strategy.reduce(parameter.grad, reduce_op="mean")


def on_any_rank(module: L.LightningModule, flag: bool) -> bool:
    """Whether it is so on any rank of a sharded module: all must call a network as often as each other."""
    return module.trainer.strategy.reduce_boolean_decision(flag, all=False) if sharded(module) else flag


def fewest(module: L.LightningModule, count: int) -> int:
    """The smallest of all ranks' numbers in a sharded module, for the same reason; else the number itself."""
    if not sharded(module):
        return count
    most = torch.tensor(count, device=module.device)
    return int(module.trainer.strategy.reduce(most, reduce_op="min"))


def leave_group() -> None:
    """Ends this process's part in a gloo group. Lightning does so for NCCL only, and gloo's threads abort some
    interpreters that leave without."""
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's parts, without a copy."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def whole(tensor: Tensor) -> Tensor:
    """A sharded value as every rank's own; every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
