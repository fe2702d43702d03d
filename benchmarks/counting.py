"""What a training step computes and holds, counted without computing it.

The networks of a real config are built on the meta device, and one real step is taken by Lightning's own trainer on
fake tensors, which have shapes, types and storages but no numbers. Counted are the multiplications and additions of
matrix products, convolutions and attention, backward pass included, by the formulas of torch's `FlopCounterMode`, and
the bytes of every storage that is alive, whoever holds it. So nothing here knows a formula of a network.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.workload import (
    STABLE_DIFFUSION_VAE,
    RandomBatches,
    RandomLatents,
    RandomPerceptual,
    bare_trainer,
    build,
    encoder_sizes,
    latent_factor,
    merged,
    without_downloads,
)
from dex.animator.codec import load_codec
from dex.animator.trainer import Animator
from dex.fit import FitCLI
from dex.motion.encoders import Encoders
from dex.motion.losses import LossWeights


@dataclass(frozen=True)
class Count:
    """Of one step of one GPU. Bytes: what stays, and what a step needs beside it."""

    flops: float  # a mean over the steps, where not all are alike (R1)
    samples: int
    frames: int  # of each sample, its source included
    trained: int  # parameters
    parameters: int  # bytes of the networks trained or frozen within the module, without the moving average
    gradients: int
    optimiser: int
    average: int
    frozen: int  # networks of others: encoders, codec, perceptual network
    activations: int  # alive when the backward pass begins, beside all of the above
    peak: int  # everything together at its worst moment


class Meter(TorchDispatchMode):
    """Counts what happens inside, real or fake. `flops`: two for each multiplication with its addition, in matrix
    products, convolutions and attention. `now`: bytes of the storages made inside that are still alive; `peak`: their
    maximum.

    (`FlopCounterMode` itself follows modules by hooks, which R1's gradient within a step does not suffer.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket not in flop_registry and func is not torch.ops.prim.device.default:
            with self:  # in inference mode composite operators come undivided
                made = func.decompose(*args, **(kwargs or {}))
            if made is not NotImplemented:
                return made
        made = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=made)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.see(tensor)
        return made

    def see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size


class Answers(TorchFunctionMode):
    """For fake tensors, whose numbers nobody knows: every loss is finite, every label known, and only a tensor itself
    is equal to it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__bool__:
            return True
        if func is torch.equal:
            return args[0] is args[1]
        return func(*args, **(kwargs or {}))


@contextmanager
def norms_in_float32() -> Iterator[None]:
    """What CUDA's autocast does and the CPU's does not: norms take and give float32."""
    originals = {name: getattr(F, name) for name in ("group_norm", "layer_norm")}

    def widened(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, *args, **kwargs: norm(x.float() if torch.is_autocast_enabled("cpu") else x, *args, **kwargs)

    for name, norm in originals.items():
        setattr(F, name, widened(norm))
    try:
        yield
    finally:
        for name, norm in originals.items():
            setattr(F, name, norm)


class Counter(L.Callback):
    """Counts from the second step on: the first one makes the optimiser's state."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.flops: list[int] = []
        self.held: list[int] = []  # bytes at the beginning of each backward pass, without gradients

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 1:
            self.meter.peak = self.meter.now
        self.meter.flops = 0

    def on_before_backward(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step:
            gradients = (parameter.grad for parameter in trainer.lightning_module.parameters())
            self.held.append(self.meter.now - size_of(gradient for gradient in gradients if gradient is not None))

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.flops.append(self.meter.flops)


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def held_by(networks: Iterable[nn.Module]) -> int:
    """Bytes of weights and buffers."""
    return sum(size_of((*network.parameters(), *network.buffers())) for network in networks)


def count(configs: Sequence[Path], changes: Sequence[str] = ()) -> Count:
    """Of a training step of these configs on one GPU, latents from the cache, perceptual network included."""
    cli, others = on_meta(configs, changes)
    meter, precision = Meter(), str(merged(configs)["trainer"].get("precision", "32-true"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        with meter:
            for network in (cli.model, *others):
                make_fake(network)
        with Answers(), norms_in_float32():
            return take_steps(cli.model, others, RandomBatches(cli.datamodule), precision, meter, r1_interval(configs))


def on_meta(configs: Sequence[Path], changes: Sequence[str] = ()) -> tuple[FitCLI, list[nn.Module]]:
    """The command line's objects, and the third parties' networks that the training keeps beside its own."""
    # R1 in every second step: three steps then show a step with it and one without.
    changes = [*without_downloads(configs), *changes]
    if r1_interval(configs) > 1:
        changes.append("--model.init_args.loss.r1_interval=2")
    with torch.device("meta"):
        cli = build(configs, changes)
        others: list[nn.Module] = []
        if isinstance(cli.model, Animator):
            others.append(Encoders(encoder_sizes(cli.model.network.config.expression_dim)))
            if not cli.model.codec_name.startswith("space-to-depth"):
                others.append(AutoencoderKL.from_config(STABLE_DIFFUSION_VAE))
        elif merged(configs)["model"]["init_args"].get("perceptual") != "none":
            others.append(RandomPerceptual())
    return cli, others


def r1_interval(configs: Sequence[Path]) -> int:
    """Steps of a training with a discriminator from one with R1 to the next; 1 for any other."""
    model = merged(configs)["model"]
    loss = {**vars(LossWeights()), **model["init_args"].get("loss", {})}
    return int(loss["r1_interval"]) if model["class_path"].endswith("MotionTrainer") and loss["adversarial"] else 1


def make_fake(network: nn.Module) -> None:
    """Gives a network that was built on the meta device fake tensors on the CPU; they cannot be moved again."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(
                    torch.empty_like(parameter, device="cpu"), parameter.requires_grad
                )
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
    network._apply = lambda *_, **__: network  # type: ignore[method-assign]


def take_steps(
    model: Any, others: list[nn.Module], data: RandomBatches, precision: str, meter: Meter, every: int = 1
) -> Count:
    """Two steps or, with R1, three, in fake tensors or in real ones; `meter` must have seen all networks come to be.

    `every`: of how many steps of the real training one has R1.
    """
    counter = Counter(meter)
    callbacks: list[L.Callback] = [counter]
    if isinstance(model, Animator):
        # A codec without weights is none of the others, and still decodes for `loss.own_features`.
        model._frozen = others if len(others) > 1 else [*others, load_codec(model.codec_name)]
        callbacks.append(RandomLatents(model.network.config.latent_channels, latent_factor(model.codec_name)))
    else:
        model._perceptual = others
    model.log = model.log_dict = lambda *_, **__: None  # Lightning's log copies numbers, which fake tensors lack
    trainer = bare_trainer(2 if every == 1 else 3, "cpu", precision, callbacks)
    with meter:
        trainer.fit(model, datamodule=data)
        batch = size_of(value for value in vars(data.batch()).values() if isinstance(value, Tensor))
    moments = [
        value for optimizer in trainer.optimizers for state in optimizer.state.values() for value in state.values()
    ]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    stays = {
        "parameters": held_by([model]) - held_by([model.average]),
        "optimiser": size_of(moments),
        "average": held_by([model.average]),
        "frozen": held_by(others),
    }
    plain, with_r1 = counter.flops[1], counter.flops[-1]
    return Count(
        flops=(with_r1 + (every - 1) * plain) / every,
        samples=data.batch_size,
        frames=1 + data.drivers,
        trained=sum(parameter.numel() for parameter in trained),
        gradients=size_of(trained),
        activations=max(counter.held) - sum(stays.values()) - batch,
        peak=meter.peak,
        **stays,
    )
