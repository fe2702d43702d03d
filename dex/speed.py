"""What makes a training step cheaper and leaves its mathematics alone: memory formats, compilation, checkpointing.

All of it acts in place on the repeated blocks of a network, whose names in a checkpoint stay what they were.
`python -m benchmarks.train_speed` measures each.
"""

from __future__ import annotations

import platform
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

Kinds = tuple[type[nn.Module], ...]


def to_channels_last(module: nn.Module) -> None:
    """Stores 2D convolution weights channels last: a fifth faster for stage 1 on CPU, and what tensor cores want.

    `module.to(memory_format=…)` cannot: it fails on the weights of 3D convolutions.
    """
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def compile_blocks(network: nn.Module, kinds: Kinds) -> None:
    """Compiles each block of these kinds by itself, not the network: blocks of one shape share their code."""
    # One entry for each shape and each block's number; past the limit torch goes back to the slow way.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for block in network.modules():
        if isinstance(block, kinds):
            block.compile()


def checkpoint_blocks(network: nn.Module, kinds: Kinds) -> None:
    """Keeps the input of each block of these kinds, and computes what is inside it again in the backward pass. They may
    draw no random numbers."""
    for block in network.modules():
        if isinstance(block, kinds):
            again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
            block.forward = again


def emulates_bf16() -> bool:
    """Whether oneDNN has no bf16 for this processor, so that a training step in it takes several times as long as in
    float32 (docs/speed.md). AVX-512 without bf16 costs little, and is not counted."""
    return torch.backends.mkldnn.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def device_name(device: torch.device) -> str:
    """A GPU's own; of a CPU its kind."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.machine() if device.type == "cpu" else device.type
