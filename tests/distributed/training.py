"""One rank of a small training, for tests, under a launcher's variables.

What is asked: stage ("motion", "muon", "image", "video"), strategy ("single", "ddp", "fsdp", "hybrid"), ranks, steps,
folder, and optionally

    encoders    of stage 2: their folder
    virtual     ranks that a single process stands in for: it trains on all of their samples at once, so that its steps
                are those of the ranks together
    same_noise  false: every rank's noise is its own, as outside of tests; else all have the same
    resume      a checkpoint to begin with
    every       steps between two checkpoints; there is one at the end in any case
    validate    batches of validation, every three steps
    monitor     true: every two steps and at the end, and previews with it
    eps         of Adam
    precision   Lightning's
    output      false: nothing is made of the batch below

Each rank writes folder/rank-R.json: losses and sample keys of its steps, the monitor's newest figures, and what the
moving average makes of one batch; the first also average.safetensors, and start.safetensors with what it was before the
first step.
"""

import dataclasses
import json
import os
import random
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from dex.animator import trainer as animator_trainer
from dex.animator.losses import DiffusionLoss
from dex.animator.sampler import SamplerSettings
from dex.animator.trainer import Animator, AnimatorOptimisation
from dex.batch import Batch, to_float
from dex.callbacks import monitor
from dex.callbacks.checkpoints import Checkpoints, Preempted
from dex.callbacks.monitor import Monitor
from dex.callbacks.preview import Preview
from dex.data.augment import ExpressionAugmentation, PoseAugmentation
from dex.data.synthetic.module import SyntheticHeads
from dex.motion import trainer as motion_trainer
from dex.motion.losses import LossWeights
from dex.motion.trainer import MotionTrainer, Optimisation
from dex.sharding import FullySharded, leave_group, whole
from tests.animator.conftest import TINY_PIXELS
from tests.motion.conftest import TINY, Steady

STILL = {"rotation": 0.0, "scale": 0.0, "translation": 0.0, "perspective": 0.0, "colour": 0.0}


def motion(muon: float = 0.0) -> MotionTrainer:
    """Without anything random, and with losses that are means over samples."""
    return MotionTrainer(
        network=TINY,
        loss=LossWeights(
            l1=1, multi_scale=1, own_features=0.02, pose=0.5, expression=0.5, adversarial=0.1, r1_interval=3
        ),
        pose_augmentation=PoseAugmentation(**STILL),
        expression_augmentation=ExpressionAugmentation(warp=0, mask_probability=0, colour=0),
        optimisation=Optimisation(
            learning_rate=3e-4,
            discriminator_learning_rate=3e-4,
            muon=muon,
            clip_norm=1,
            ema_decay=0.9,
            anchors_first=2,
            encoders_every=2,
        ),
        perceptual="none",
    )


def animator(phase: str, encoders: str) -> Animator:
    module = Animator(
        encoders,
        network=TINY_PIXELS,
        phase=phase,  # type: ignore[arg-type]
        loss=DiffusionLoss(prediction="v_prediction", drop_expression=0, drop_all=0),
        optimisation=AnimatorOptimisation(learning_rate=3e-4, warmup_steps=0, clip_norm=1, ema_decay=0.9),
        sampler=SamplerSettings(steps=4),
        sampled=1,
    )
    open_additions = module.network.open_additions

    def opened() -> None:  # several ranks reset the random state on their way to this, one process does not
        torch.manual_seed(0)
        open_additions()

    module.network.open_additions = opened  # type: ignore[method-assign]
    return module


class Together(SyntheticHeads):
    """What `virtual` ranks get, in the one process there is."""

    virtual = 1

    def train_dataloader(self) -> Any:
        batches = super().train_dataloader()
        return batches if self.virtual == 1 else joined(iter(batches), self.virtual)


def joined(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    while True:
        yield join([next(batches) for _ in range(count)])


def join(parts: list[Batch]) -> Batch:
    def one(values: list[Any]) -> Any:
        if torch.is_tensor(values[0]):
            return torch.cat(values)
        return [key for part in values for key in part] if isinstance(values[0], list) else values[0]

    names = [field.name for field in dataclasses.fields(Batch)]
    return Batch(**{name: one([getattr(part, name) for part in parts]) for name in names})


class Record(L.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.keys: list[list[str]] = []
        self.start: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.start = averaged(module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, _: Any, batch: Batch, __: int) -> None:
        name = "loss/total" if isinstance(module, MotionTrainer) else "loss/denoising"
        self.losses.append(trainer.callback_metrics[name].item())
        self.keys.append(batch.key)


class WatchedMonitor(Monitor):
    """Fails where a rank's global random numbers after a measurement are not those before."""

    def on_train_batch_end(self, *args: Any) -> None:
        before = global_random()
        super().on_train_batch_end(*args)
        assert global_random() == before, "the monitor has drawn from a global generator"


def global_random() -> tuple[Any, ...]:
    """State of Python's, numpy's and torch's generators."""
    _, keys, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), keys.tolist(), rest, torch.get_rng_state().tolist()  # type: ignore[union-attr]


def averaged(module: Any) -> dict[str, Tensor]:
    """A copy of the whole moving average; every rank must ask."""
    return {name: whole(tensor).clone().contiguous() for name, tensor in module.average.state_dict().items()}


def same_noise_for_each_sample(virtual: int) -> None:
    """A generator that gives every rank the same numbers; one process gives its virtual ranks the same, too."""

    def draw(shape: Any, *, generator: Any = None, device: Any = None) -> Tensor:
        first, *others = shape
        return torch.randn((first // virtual, *others), generator=generator).repeat(virtual, *[1] * len(others))

    def draw_integers(count: int, size: Any, *, generator: Any = None, device: Any = None) -> Tensor:
        return torch.randint(count, (size[0] // virtual,), generator=generator).repeat(virtual)

    def draw_uniform(kinds: int, count: int, *, generator: Any = None, device: Any = None) -> Tensor:
        return torch.rand(kinds, count // virtual, generator=generator).repeat(1, virtual)

    class Torch:
        randn, randint, rand = staticmethod(draw), staticmethod(draw_integers), staticmethod(draw_uniform)

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    def step_random(module: L.LightningModule, seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(module.global_step)

    animator_trainer.torch = Torch()  # type: ignore[assignment]
    animator_trainer.step_random = motion_trainer.step_random = step_random


def strategy(name: str) -> Any:
    match name:
        case "fsdp":
            return FullySharded()
        case "hybrid":
            return FullySharded(shard_ranks=1)
        case "ddp":
            return "ddp_find_unused_parameters_true"
    return "auto"


def main(asked: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    monitor.FRAMES = 2  # of a film that nobody looks at: an animator draws three pictures for each, in four steps
    folder = Path(asked["folder"])
    virtual = asked.get("virtual", 1)
    if asked.get("same_noise", True):
        same_noise_for_each_sample(virtual)
    L.seed_everything(0, verbose=False)
    match asked["stage"]:
        case "motion":
            module: Any = motion()
        case "muon":
            module = motion(muon=0.002)
        case phase:
            module = animator(phase, asked["encoders"])
    data = Together(size=32, batch_size=2, drivers=2, workers=0, val_batches=2)
    data.virtual = virtual
    record = Record()
    steady = [Steady(asked["eps"])] if "eps" in asked else []
    saves = Checkpoints(str(folder), every_n_steps=asked.get("every", 1000), agree_every_n_steps=1)
    saves.resume = Path(asked["resume"]) if "resume" in asked else None
    saves.listen()
    monitors = [WatchedMonitor(every_n_steps=2, tuples=2, identities=5)] if asked.get("monitor") else []
    previews = [Preview(every_n_steps=2, samples=1)] if monitors else []
    trainer = L.Trainer(
        max_steps=asked["steps"],
        accelerator="cpu",
        devices=asked.get("ranks", 1),
        strategy=strategy(asked["strategy"]),
        precision=asked.get("precision", "32-true"),
        logger=False,
        callbacks=[record, saves, *monitors, *previews, *steady],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=asked.get("validate", 0),
        val_check_interval=3,
        check_val_every_n_epoch=None,
        default_root_dir=folder,
        use_distributed_sampler=False,
    )
    try:
        trainer.fit(module, data)
    except Preempted as ended:
        print(f"preempted: {ended}")
    batch = to_float(next(iter(Together(size=32, batch_size=2, drivers=2, workers=0, val_batches=2).val_dataloader())))
    made = output(module, batch) if asked.get("output", True) else None
    average = averaged(module)
    said = {
        "losses": record.losses,
        "keys": record.keys,
        "output": made,
        "figures": monitors[0].figures if monitors else {},
        "average": {name: tensor.double().sum().item() for name, tensor in average.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    if trainer.is_global_zero:
        save_file(average, folder / "average.safetensors")
        save_file(record.start, folder / "start.safetensors")
    (folder / f"rank-{trainer.global_rank}.json").write_text(json.dumps(said))
    leave_group()


@torch.no_grad()
def output(module: Any, batch: Batch) -> list[float]:
    """What the moving average makes of a batch, as sums of its pictures."""
    module.eval()
    if isinstance(module, MotionTrainer):
        return module.reenact(batch).fake.double().flatten(2).sum(dim=2).flatten().tolist()
    source, _ = module.latents(batch)
    made = module.reenact(source[:1], module.motion(batch))
    return made.double().flatten(2).sum(dim=2).flatten().tolist()


def rank_process(asked: dict[str, Any], launched: dict[str, str]) -> None:
    """What a rank's process runs. If it fails, folder/failure-RANK.txt says why."""
    os.environ.update(launched)
    try:
        main(asked)
    except BaseException:
        folder = Path(asked["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"failure-{launched.get('LOCAL_RANK', 0)}.txt").write_text(traceback.format_exc())
        raise
