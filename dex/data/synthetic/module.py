"""Synthetic heads made on the fly: endless training batches with exact labels, and swaps whose truth is rendered."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dex.batch import Batch, blendshape_row, to_float
from dex.data.limits import check_least
from dex.data.position import Layout, advanced, batches_of_all, completed_batches
from dex.data.synthetic.blendshapes import BLENDSHAPES
from dex.data.synthetic.controls import ExpressionsName, sample_some
from dex.data.synthetic.head import Head, make_head
from dex.data.synthetic.motion import FramingName, crop_contract, sample_pose
from dex.data.synthetic.render import render
from dex.data.synthetic.splits import SPLITS


class SyntheticBatches(Dataset[Batch]):
    """Batch number i as a pure function of (seed, i); item access makes it.

    Training: `expression_view` shows the driving frame's instant through a second camera, that is, the same expression
    in another pose. Swaps (`swap=True`): pose from one frame, expression from another, and `driving` renders both.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        drivers: int,
        seed: int,
        *,
        first_identity: int,
        identities: int,
        swap: bool = False,
        second_view: bool = True,
        framing: FramingName = "wide",
        expressions: ExpressionsName = "all",
    ) -> None:
        self.size, self.batch_size, self.drivers, self.seed = size, batch_size, drivers, seed
        self.first_identity, self.identities = first_identity, identities
        self.swap, self.second_view = swap, second_view
        self.framing, self.expressions = framing, expressions

    def __getitem__(self, index: int) -> Batch:
        rng = np.random.default_rng([self.seed, index])
        seeds = self.first_identity + rng.choice(self.identities, self.batch_size, self.batch_size > self.identities)
        made = [self.sample(make_head(int(seed)), rng) for seed in seeds]
        columns = {name: torch.stack([sample[name] for sample in made]) for name in made[0]}
        keys = [f"synthetic-{seed}-{index}" for seed in seeds]
        return Batch(
            key=keys,
            **columns,
            source_pose_weight=torch.ones(self.batch_size),
            driving_pose_weight=torch.ones(self.batch_size, self.drivers),
            view_pose_weight=torch.ones(self.batch_size, self.drivers),
        )

    def sample(self, head: Head, rng: np.random.Generator) -> dict[str, Tensor]:
        """One source, K drivers, K other views of the drivers' expression, K frames of their pose."""
        k = self.drivers
        pose = sample_pose(rng, 1 + 2 * k, self.framing)
        expression = sample_some(rng, 1 + 2 * k, self.expressions)
        driving, other = slice(1, 1 + k), slice(1 + k, 1 + 2 * k)
        poses, expressions = [pose[: 1 + k]], [expression[: 1 + k]]
        if self.second_view:
            poses.append(pose[other])
            expressions.append(expression[driving])
        if self.swap:
            poses.append(pose[driving])
            expressions.append(expression[other])
        drawn = render(head, np.concatenate(expressions), np.concatenate(poses), self.size)
        image, region = torch.from_numpy(drawn.image).movedim(-1, 1), torch.from_numpy(drawn.mask)
        label = torch.from_numpy(pose[: 1 + k])
        sample = {
            "source": image[0],
            "driving": image[driving],
            "expression_view": image[other] if self.second_view else image[driving],
            "view_pose": torch.from_numpy(pose[other if self.second_view else driving]),
            "source_pose": label[0],
            "driving_pose": label[driving],
            "driving_blendshapes": torch.from_numpy(blendshape_row(BLENDSHAPES, expression[driving])),
            "driving_region": region[driving],
            "source_region": region[0],
        }
        return sample | {"pose_view": image[-k:]} if self.swap else sample


class StepSampler(Sampler[int]):
    """Batch numbers of one rank from the common number `first` on: rank r of w takes first + r, first + r + w, …"""

    def __init__(self, first: int, rank: int, world: int, count: int | None = None) -> None:
        self.first, self.rank, self.world, self.count = first, rank, world, count

    def __iter__(self) -> Iterator[int]:
        steps = itertools.count() if self.count is None else range(self.count)
        return (self.first + step * self.world + self.rank for step in steps)


class SyntheticHeads(L.LightningDataModule):
    """Batches of synthetic heads. A resumed run continues with the batch after the last one it trained on."""

    def __init__(
        self,
        size: int = 64,
        batch_size: int = 8,
        drivers: int = 4,
        workers: int = 1,
        seed: int = 0,
        second_view: bool = True,
        framing: FramingName = "wide",
        expressions: ExpressionsName = "all",
        identities: int = 100_000,
        val_identities: int = 64,
        val_batches: int = 8,
    ) -> None:
        """
        Args:
            size: pixels, both sides.
            batch_size: sources a batch; each has `drivers` driving frames.
            workers: processes that render; 0 renders in the training process.
            seed: of the training batches. Validation is the same for every seed, so that runs compare.
            second_view: read the expression code from another camera's view of the same instant (DeX-Portrait).
            framing: wide, with hair and shoulders, or close, where the face fills the picture.
            expressions: all coefficients on their own, or symmetric: the ten controls that the monitor reads.
            identities: how many different heads training knows.
            val_identities: heads of validation, none of them known to training.
            val_batches: swaps of `batch_size` sources each.

        Raises ValueError for a number that is too small, by its name.
        """
        super().__init__()
        self.save_hyperparameters()
        self.size, self.batch_size, self.drivers, self.workers, self.seed = size, batch_size, drivers, workers, seed
        self.second_view, self.identities = second_view, identities
        self.framing, self.expressions = framing, expressions
        self.val_identities, self.val_batches = val_identities, val_batches
        check_least(self, size=16, batch_size=1, drivers=1, workers=0, identities=1, val_identities=1, val_batches=0)
        self.crop = crop_contract(size, framing)
        self.history: list[Layout] = []  # what training has taken, over all runs

    def train_dataloader(self) -> DataLoader[Batch]:
        rank, world = self._position()
        batches = SyntheticBatches(
            self.size,
            self.batch_size,
            self.drivers,
            self.seed,
            first_identity=SPLITS["train"][0],
            identities=self.identities,
            second_view=self.second_view,
            framing=self.framing,
            expressions=self.expressions,
        )
        return self._loader(batches, StepSampler(batches_of_all(self._advanced()), rank, world), self.workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        rank, world = self._position()
        batches = SyntheticBatches(
            self.size,
            self.batch_size,
            self.drivers,
            seed=0,
            first_identity=SPLITS["val"][0],
            identities=self.val_identities,
            swap=True,
            framing=self.framing,
            expressions=self.expressions,
        )
        return self._loader(batches, StepSampler(0, rank, world, -(-self.val_batches // world)), 0)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Pictures become float on the device."""
        return to_float(batch)

    def _position(self) -> tuple[int, int]:
        """Rank and world size."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _advanced(self) -> list[Layout]:
        """What training has taken; a batch is a function of its number, so workers do not matter."""
        return advanced(self.history, self._position()[1], 1, completed_batches(self.trainer))

    def state_dict(self) -> dict[str, Any]:
        """Part of every checkpoint."""
        return {"history": [dataclasses.astuple(layout) for layout in self._advanced()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [Layout(*layout) for layout in state_dict["history"]]

    @staticmethod
    def _loader(batches: SyntheticBatches, sampler: StepSampler, workers: int) -> DataLoader[Batch]:
        return DataLoader(
            batches,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
