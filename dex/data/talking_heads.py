"""`TalkingHeads`: prepared shards as a LightningDataModule."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from dataclasses import dataclass, replace
from typing import Any, Literal

import lightning as L
import torch
import torch.distributed
from jaxtyping import Shaped
from torch import Tensor

from dex.batch import Batch, to_float
from dex.data.clips import Sampling
from dex.data.latents import LatentCache
from dex.data.limits import check_least
from dex.data.position import Layout, advanced, completed_batches
from dex.data.reading import find_shards, is_local
from dex.data.shards import CropContract, ShardError, ShardIndex
from dex.data.streaming import Loader, PassStream, Schedule, TrainStream, first_samples


@dataclass(frozen=True)
class _Split:
    """Identities on one side of the split."""

    held_out: frozenset[str]
    validation: bool

    def __call__(self, identity: str) -> bool:
        return (identity in self.held_out) == self.validation


class TalkingHeads(L.LightningDataModule):
    """Endless training batches and, where asked for, a validation pass over identities that training never sees.

    Args:
        shards: folder with index.json, tar pattern (`{000..031}`), or URL as webdataset takes it (`pipe:…`,
            `https://…`, `s3://…`); a list is the sum of its items.
        val_shards: the same for validation. Else `val_fraction` of the identities of `shards` (at least one) are held
            out, chosen by a hash of their names; this needs an index.json.
        mode: `pairs`: a source and `drivers` frames of the same subject, each seen by a camera of its own draw where
            there are several. `clip`: a source and `clip_length` consecutive frames of one camera (in validation: of
            the first).
        size: pixels a side; frames are scaled while they are decoded.
        batch_size: samples of one process (rank).
        samples_per_clip: samples taken from each opened clip, since opening is dear.
        max_background_motion: windows of mode `clip` whose background moves more (mean |difference| of neighbouring
            frames in 8-bit levels) are dropped; null keeps all.
        cross_view: read the expression from another camera of the same instant, where there is one.
        workers: loader processes of each rank; 0 loads in the training process.
        shuffle: clips in the shuffle buffer of each worker.
        latents: folder of the latent cache, relative to each folder of shards (`python -m data_prep.latents` writes to
            "latents" there); batches then carry the codec's latents of source and driving frames. `latent_cache` knows
            which codec's; whoever uses them checks it (`LatentCache.check_codec`).
        epoch_batches: batches of one rank after which the shards are dealt out anew; null: as many as the clips of
            index.json have samples (1000 where not all shards have an index). It counts every camera of a recording and
            the identities held out: there an epoch goes over the data more than once.

    The order is a pure function of (seed, batch number, rank, worker): `state_dict` holds the number of batches that
    training has consumed, and a resumed run with the same world size and workers continues with the very same samples.
    Errors are `ShardError`s of one line.
    """

    def __init__(
        self,
        shards: str | list[str],
        val_shards: str | list[str] | None = None,
        val_fraction: float = 0.0,
        mode: Literal["pairs", "clip"] = "pairs",
        size: int = 256,
        batch_size: int = 8,
        drivers: int = 4,
        clip_length: int = 24,
        samples_per_clip: int = 2,
        max_background_motion: float | None = 8.0,
        cross_view: bool = True,
        workers: int = 4,
        seed: int = 0,
        shuffle: int = 64,
        epoch_batches: int | None = None,
        latents: str | None = None,
    ) -> None:
        super().__init__()
        self.shards, self.val_shards, self.val_fraction = shards, val_shards, val_fraction
        self.sampling = Sampling(mode, size, drivers, clip_length, cross_view, max_background_motion)
        self.batch_size, self.samples_per_clip, self.workers = batch_size, samples_per_clip, workers
        self.seed, self.shuffle, self.epoch_batches = seed, shuffle, epoch_batches
        self.latents = latents
        self.latent_cache: LatentCache | None = None  # after `setup`
        self.history: list[Layout] = []  # what training has taken, over all runs
        self.crop: CropContract | None = None  # how the pictures were cut; None where no index says it
        self._train: Loader | None = None
        self._check_arguments()

    def _check_arguments(self) -> None:
        check_least(self, batch_size=1, samples_per_clip=1, workers=0, shuffle=0)
        check_least(self.sampling, size=16, drivers=1, clip_length=2)
        if self.sampling.mode not in ("pairs", "clip"):
            raise ValueError(f"data.mode is {self.sampling.mode!r}, need 'pairs' or 'clip'")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"data.val_fraction is {self.val_fraction}, need 0 ≤ val_fraction < 1")

    def setup(self, stage: str | None = None) -> None:
        """Finds the shards. Raises `ShardError` where they are missing, empty, or do not fit together."""
        self._urls, indices = find_shards(self.shards)
        self._val_urls, val_indices = find_shards(self.val_shards) if self.val_shards else ([], [])
        self._check_crops([*indices, *val_indices])
        if self.latents is not None:
            self.latent_cache = LatentCache.find([*self._urls, *self._val_urls], self.latents, self.sampling.size)
        held_out: frozenset[str] = frozenset()
        if self.val_fraction and not self.val_shards:
            held_out, self._val_urls = self._hold_out(indices), self._urls
        self._keep, self._val_keep = _Split(held_out, False), _Split(held_out, bool(held_out))
        indexed = sum(len(index.shards) for index in indices) == len(self._urls)
        self._clips = sum(index.clips for index in indices) if indexed else None

    def _check_crops(self, indices: list[ShardIndex]) -> None:
        crops = {index.crop for index in indices}
        if len(crops) > 1:
            raise ShardError(f"shards of different crop contracts cannot be mixed: {sorted(map(str, crops))}")
        self.crop = next(iter(crops), None)
        if self.crop and self.sampling.size > self.crop.size:
            raise ShardError(
                f"data.size is {self.sampling.size}, the shards hold crops of {self.crop.size} pixels. "
                f"Lower data.size or prepare with --size {self.sampling.size}."
            )

    def _hold_out(self, indices: list[ShardIndex]) -> frozenset[str]:
        identities = sorted({name for index in indices for name in index.identities}, key=_hash)
        if not indices:
            raise ShardError("data.val_fraction needs a folder with index.json; give data.val_shards instead")
        if len(identities) < 2:
            raise ShardError(f"{len(identities)} identity cannot be split: set data.val_fraction to 0 or add clips")
        return frozenset(identities[: min(max(1, round(self.val_fraction * len(identities))), len(identities) - 1)])

    def _position(self) -> tuple[int, int]:
        """Rank and world size: of the trainer, of torch.distributed, or of the launcher's environment."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    def _schedule(self) -> Schedule:
        rank, world = self._position()
        return Schedule(
            urls=self._urls,
            sampling=self.sampling,
            batch_size=self.batch_size,
            samples_per_clip=self.samples_per_clip,
            seed=self.seed,
            shuffle=self.shuffle,
            epoch_batches=self.epoch_batches,
            samples=(self._clips or 0) * self.samples_per_clip,
            keep=self._keep,
            rank=rank,
            world=world,
            latents=self.latent_cache,
        )

    @property
    def size(self) -> int:
        """Pixels, both sides, of the pictures that it yields."""
        return self.sampling.size

    def train_dataloader(self) -> Loader:
        """Endless batches of this rank, on from where training stands."""
        schedule = self._schedule()
        processes = schedule.world * max(1, self.workers)
        remote = [url for url in self._urls if not is_local(url)]
        if remote and len(self._urls) < processes:
            raise ShardError(
                f"{len(self._urls)} shards for {processes} loader processes ({schedule.world} ranks × "
                f"{max(1, self.workers)} workers): each would be fetched several times. Set data.workers to at most "
                f"{len(self._urls) // schedule.world}, or prepare at least {processes} shards."
            )
        if self._clips is not None and self._clips < processes:
            raise ShardError(
                f"{self._clips} clips for {processes} loader processes ({schedule.world} ranks × "
                f"{max(1, self.workers)} workers): lower data.workers"
            )
        self._train = Loader(TrainStream(schedule, self._advanced()), self.workers)
        return self._train

    def val_dataloader(self) -> Loader | list[Any]:
        """One sample of every validation clip; none where no validation was asked for."""
        return Loader(PassStream(self._val_schedule()), self.workers) if self._val_urls else []

    def _val_schedule(self) -> Schedule:
        still = replace(self.sampling, max_background_motion=None)  # a pass leaves nothing out
        return replace(self._schedule(), urls=self._val_urls, keep=self._val_keep, sampling=still)

    def val_pictures(self, count: int) -> Shaped[Tensor, "N 3 H W"]:
        """uint8, one frame of each of the first validation clips, at most `count`: the same on every rank.

        N is 0 where no validation was asked for. Draws no random numbers but its own. Raises `ShardError`.
        """
        made = [torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)]
        if self._val_urls:
            made += [sample.driving[:, 0].contiguous() for sample in first_samples(self._val_schedule(), count)]
        return torch.cat(made)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Pictures become float on the device."""
        if self.trainer is not None and self.trainer.training:
            self._log()
        return to_float(_channels_first(batch))

    def _log(self) -> None:
        assert self.trainer is not None
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._train is not None and every and self.trainer.global_step % every == 0:
            tally = self._train.tally
            counts: dict[str, float] = {
                "data/skipped": tally.skipped,
                "data/dropped": tally.dropped,
                "data/clips": len(tally.tried),
            }
            for logger in self.trainer.loggers:
                logger.log_metrics(counts, step=self.trainer.global_step)

    def _advanced(self) -> list[Layout]:
        """The history as of the last batch that training has finished; batches loaded ahead do not count."""
        _, world = self._position()
        total = completed_batches(self.trainer) or sum(layout.batches for layout in self.history)
        return advanced(self.history, world, max(1, self.workers), total)

    def state_dict(self) -> dict[str, Any]:
        """Part of every checkpoint."""
        return {"history": [dataclasses.astuple(layout) for layout in self._advanced()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [Layout(*layout) for layout in state_dict["history"]]


def _channels_first(batch: Batch) -> Batch:
    """In memory as well as in shape: the loader leaves that to the device."""
    shared = batch.expression_view is batch.driving
    driving = batch.driving.contiguous()
    views = driving if shared else batch.expression_view.contiguous()
    return replace(batch, source=batch.source.contiguous(), driving=driving, expression_view=views)


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
