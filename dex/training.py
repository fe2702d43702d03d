"""What the trainers of both stages share: a step's random numbers, the moving average, learning rates, a last check."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from dex.batch import Batch
from dex.sharding import local, whole


class NonFiniteLossError(ValueError):
    """A loss became NaN or infinite; the message names it, the step and the samples."""


def step_random(module: L.LightningModule, seed: int) -> torch.Generator:
    """Random numbers of this step and rank alone: a resumed run repeats them without a stored state."""
    numbers = np.random.SeedSequence([seed, module.global_step, module.global_rank]).generate_state(2)
    return torch.Generator(module.device).manual_seed(int(numbers[0]) << 20 ^ int(numbers[1]))


def rate_factor(step: int, warmup_steps: int, decay_steps: int) -> float:
    """Of the learning rate at a step: a linear warm-up, then half a cosine to zero; 0 steps of either: none of it."""
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    done = min(1.0, step / decay_steps) if decay_steps else 0.0
    return warm * 0.5 * (1 + math.cos(math.pi * done))


def remember_rates(optimizer: torch.optim.Optimizer) -> None:
    """What `scale_rates` multiplies: this process's own settings, since a checkpoint holds no parameter groups."""
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]


def scale_rates(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """`factor` times the rates it was made with; returns that of the last group, which is always Adam's."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["initial_lr"]
    return optimizer.param_groups[-1]["lr"]


def known_poses(
    label: Float[Tensor, "*b 3 4"], weight: Float[Tensor, "*b"], read: Float[Tensor, "*b 3 4"]
) -> Float[Tensor, "*b 3 4"]:
    """Labels where there are any, elsewhere what the encoder reads."""
    return torch.where((weight > 0)[..., None, None], label, read)


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, decay: float, step: int) -> None:
    """EMA of the weights; the decay grows from 0 so that the start is forgotten soon."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(local(average.parameters()), local(current.parameters()), 1 - decay)


def clip_gradient(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scales the gradient to at most `limit` (0: no limit) over all ranks' parts; returns its norm before."""
    return whole(torch.nn.utils.clip_grad_norm_(parameters, limit or math.inf))


def training_device(module: L.LightningModule) -> torch.device:
    """Where the module will be; in `setup` it is not there yet."""
    return module.device if module._trainer is None else module.trainer.strategy.root_device


def check_unscaled(module: L.LightningModule) -> None:
    """Raises `ValueError` for a precision that scales gradients: they are clipped as they are here, and not every
    optimiser passes through Lightning, which would take the scale off again."""
    precision = module.trainer.precision_plugin
    if getattr(precision, "scaler", None) is not None:
        raise ValueError(
            f"trainer.precision is {precision.precision}: it scales gradients, which training here clips and applies "
            "as they are; set trainer.precision to bf16-mixed or 32"
        )


def check_finite(module: L.LightningModule, terms: Mapping[str, Tensor], batch: Batch) -> None:
    """Raises `NonFiniteLossError` naming the losses and samples, after saving the batch in the run's folder.

    Nothing in it may wait for other ranks: a loss is often bad on one alone.
    """
    values = torch.stack([term.detach().float() for term in terms.values()])
    if torch.isfinite(values).all():
        return
    step, trainer = module.global_step, module.trainer
    bad = [name for name, finite in zip(terms, torch.isfinite(values).tolist(), strict=True) if not finite]
    rank = f"-rank-{trainer.global_rank}" if trainer.world_size > 1 else ""
    path = Path(trainer.default_root_dir) / f"nonfinite-step-{step}{rank}.safetensors"
    save_batch(batch, path)
    raise NonFiniteLossError(
        f"step {step}: loss {', '.join(bad)} is not finite. The batch is saved in {path}; "
        f"its samples: {', '.join(batch.key)}. Lower optimisation.learning_rate, set optimisation.clip_norm, "
        "or look at these samples."
    )


def of_data(module: L.LightningModule, name: str) -> Any:
    """What the training's datamodule has by that name; None where it has nothing, or there is no datamodule."""
    return getattr(getattr(module._trainer, "datamodule", None), name, None)


def crop_contract(module: L.LightningModule) -> dict[str, Any] | None:
    """How the pictures of this training were cut, as plain values; None where its data does not say."""
    crop = of_data(module, "crop")
    return crop and dataclasses.asdict(crop)


def save_batch(batch: Batch, path: Path) -> None:
    """Writes a batch's tensors for study, as safetensors with its keys in the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in vars(batch).items() if torch.is_tensor(value)}
    save_file(tensors, path, metadata={"keys": json.dumps(batch.key)})
