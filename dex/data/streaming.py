"""Streams of batches out of tar shards, as a pure function of (seed, epoch, rank, worker).

webdataset opens the URLs. Its resampling and shuffling are not used: their state lives in a running generator, and an
interrupted run could not find its place again. Here a worker's order of clips in epoch e is drawn from (seed, e,
worker), a training batch takes a fixed number of clips from that order whatever becomes of them, and so batch n is
found without decoding the batches before it.
"""

from __future__ import annotations

import gc
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dex.batch import Batch
from dex.data.clips import DAMAGE, OpenClip, Sampling, UnusableError, draw_samples, join
from dex.data.latents import LatentCache
from dex.data.position import History, Layout, shares
from dex.data.reading import Tally, Unit, read_units
from dex.data.shards import ShardError

# Clips passed over in a row (too short, moving background) before a stream gives up.
MAX_DROPPED_IN_A_ROW = 200
# A worker that is silent for so many seconds hangs (a decoder that spins, a dead file system).
WORKER_TIMEOUT = 900
# Where no index says how many clips there are, the shards are dealt out anew after so many batches.
_EPOCH_BATCHES = 1000
# The draws of one seed, kept apart (a seed sequence takes trailing zeros for nothing).
_SHARDS, _CLIPS, _SAMPLES, _PASS = 1, 2, 3, 4


@dataclass(frozen=True)
class Schedule:
    """Everything that decides which samples a stream gives."""

    urls: list[str]
    sampling: Sampling
    batch_size: int
    samples_per_clip: int
    seed: int
    shuffle: int  # units in the shuffle buffer
    epoch_batches: int | None  # batches of one rank after which the shards are dealt out anew; None: by `samples`
    samples: int  # of all clips that the indices count; 0 where not all shards have an index
    keep: Callable[[str], bool]  # identity → whether it is in this split
    rank: int = 0
    world: int = 1
    latents: LatentCache | None = None

    @property
    def cameras(self) -> int:
        """Cameras of a group that a unit may need: one for each frame of a pairs sample, one for a clip."""
        return 1 + self.sampling.drivers if self.sampling.mode == "pairs" else 1

    def per_epoch(self, layout: Layout) -> int:
        """Batches of one loader process in an epoch."""
        through = -(-self.samples // (self.batch_size * layout.world))
        return max(1, (self.epoch_batches or through or _EPOCH_BATCHES) // layout.workers)

    def units(self, url: str, tally: Tally, rng: np.random.Generator | None = None) -> Iterator[Unit]:
        """This split's units of one shard, in the order of the tar."""
        return (unit for unit in read_units(url, tally, self.cameras, rng) if self.keep(unit.identity))


# ---- training: endless, resumable ------------------------------------------------------------------------------------


class TrainStream(IterableDataset):
    """Endless training batches of one rank, on from where its `history` has come to."""

    def __init__(self, schedule: Schedule, history: History) -> None:
        self.schedule, self.history = schedule, history

    def __iter__(self) -> Iterator[Item]:
        worker, workers = _worker()
        layout = self.history[-1]
        # The loader takes batches from its workers in turn, beginning with worker 0: whoever is asked for the next
        # batch goes on with the part of the worker whose turn it was.
        mine = (layout.batches + worker) % workers
        tally = Tally(fresh=Tally())
        return _guarded(self._batches(self.schedule.rank * workers + mine, tally), tally)

    def _batches(self, process: int, tally: Tally) -> Iterator[Batch]:
        """The batches of loader process `process` of all ranks'."""
        schedule = self.schedule
        per_batch = -(-schedule.batch_size // schedule.samples_per_clip)
        done = self.history[-1].done(process)
        for share in shares(self.history, process, schedule.per_epoch):
            first = min(share.last, share.first + done)
            done -= first - share.first
            if first == share.last:
                continue
            units = epoch_units(schedule, share.index, share.count, share.epoch, tally)
            window = _Window(itertools.islice(units, first * per_batch, None))
            for number in range(first, share.last):
                rng = np.random.default_rng([schedule.seed, _SAMPLES, share.epoch, share.index, number])
                yield join(_fill(schedule, window, rng, tally))
                window.advance(per_batch)


def epoch_units(schedule: Schedule, index: int, count: int, epoch: int, tally: Tally) -> Iterator[Unit]:
    """Endless units of loader process `index` of `count` in one epoch, through the shuffle buffer.

    In each epoch every shard belongs to exactly one process, which goes over its share again and again. Fewer shards
    than processes are dealt out unit by unit instead. Raises `ShardError` where the share is empty.
    """
    order = np.random.default_rng([schedule.seed, _SHARDS, epoch]).permutation(len(schedule.urls))  # same everywhere
    urls = [schedule.urls[i] for i in order]
    by_shard = len(urls) >= count
    share, first, step = (urls[index::count], 0, 1) if by_shard else (urls, index, count)
    rng = np.random.default_rng([schedule.seed, _CLIPS, epoch, index])

    def in_order() -> Iterator[Unit]:
        while True:
            found = 0
            every = (unit for url in share for unit in schedule.units(url, tally, rng))
            for unit in itertools.islice(every, first, None, step):
                found += 1
                yield unit
            tally.check()
            if not found:
                raise ShardError(
                    f"loader process {index + 1} of {count} (ranks × workers) finds no clip in its share of "
                    f"{len(urls)} shards{tally.last()}. Use fewer workers (data.workers) or more clips."
                )

    buffer: list[Unit] = []
    for unit in in_order():
        if len(buffer) < schedule.shuffle:
            buffer.append(unit)
        elif (place := int(rng.integers(schedule.shuffle + 1))) < schedule.shuffle:
            buffer[place], unit = unit, buffer[place]
            yield unit
        else:
            yield unit


class _Window:
    """Units at the front of an iterator, to look ahead without taking."""

    def __init__(self, units: Iterator[Unit]) -> None:
        self._units = units
        self._ahead: deque[Unit] = deque()

    def peek(self, number: int) -> Unit:
        while len(self._ahead) <= number:
            self._ahead.append(next(self._units))
        return self._ahead[number]

    def advance(self, count: int) -> None:
        self.peek(count - 1)
        for _ in range(count):
            self._ahead.popleft()


def _fill(schedule: Schedule, window: _Window, rng: np.random.Generator, tally: Tally) -> list[Batch]:
    """One batch: samples of the units at the front of the window, and of those behind where some are no use."""
    samples: list[Batch] = []
    in_vain = 0
    for number in itertools.count():
        wanted = min(schedule.samples_per_clip, schedule.batch_size - len(samples))
        drawn = _draw(window.peek(number), schedule, wanted, rng, tally)
        tally.check()
        samples += drawn
        in_vain = 0 if drawn else in_vain + 1
        if len(samples) == schedule.batch_size:
            break
        if in_vain > MAX_DROPPED_IN_A_ROW:
            raise ShardError(
                f"none of {in_vain} clips in a row is of use for mode {schedule.sampling.mode!r}{tally.last()}"
            )
    return samples


# ---- validation: every unit once -------------------------------------------------------------------------------------


class PassStream(IterableDataset):
    """Every unit of the split once, one sample each, over all ranks and workers; the same samples however shared out.

    Each rank gets the same number of batches, and no unit is doubled or left out to that end: the batches are of
    nearly equal size instead, at most `batch_size` (with `batch_size` 1, and a number of units that the ranks do not
    divide, a batch may hold 2). Only where no unit of a batch is of use, the rank's next one that is stands in for it.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        tally = Tally()
        self.units = sum(1 for _ in _every_unit(schedule, tally))
        tally.check()
        most, least = -(-self.units // schedule.world), self.units // schedule.world
        if least == 0:
            raise ShardError(
                f"{self.units} validation clips for {schedule.world} ranks: each needs one{tally.last()}. "
                "Hold out more identities (data.val_fraction), or give data.val_shards with more clips."
            )
        self.batches = min(-(-most // schedule.batch_size), least)

    def __iter__(self) -> Iterator[Item]:
        tally = Tally(fresh=Tally())
        return _guarded(self._batches(*_worker(), tally), tally)

    def _batches(self, worker: int, workers: int, tally: Tally) -> Iterator[Batch]:
        count = len(range(self.schedule.rank, self.units, self.schedule.world))
        share = enumerate(self._share(tally))
        for number, group in itertools.groupby(share, key=lambda item: item[0] * self.batches // count):
            if number % workers == worker:
                places, units = zip(*group, strict=True)
                yield join(list(self._samples(units, tally)) or [self._stand_in(places[-1] + 1, tally)])

    def _share(self, tally: Tally) -> Iterator[Unit]:
        """This rank's units."""
        return itertools.islice(_every_unit(self.schedule, tally), self.schedule.rank, None, self.schedule.world)

    def _samples(self, units: Iterable[Unit], tally: Tally) -> Iterator[Batch]:
        for unit in units:
            yield from _draw_pass(unit, self.schedule, tally)
            tally.check()

    def _stand_in(self, place: int, tally: Tally) -> Batch:
        """The sample of the rank's first unit of use from `place` on, then from the beginning."""
        ahead, behind = itertools.islice(self._share(tally), place, None), self._share(tally)
        sample = next(self._samples(itertools.chain(ahead, behind), tally), None)
        if sample is None:
            raise ShardError(f"no validation clip of rank {self.schedule.rank} is of use{tally.last()}")
        return sample


def first_samples(schedule: Schedule, count: int) -> Iterator[Batch]:
    """Batches of one: what `PassStream` makes of the split's first `count` units, on every rank, without a look at the
    units behind them.

    Raises `ShardError` where too many are damaged.
    """
    tally = Tally()
    for unit in itertools.islice(_every_unit(schedule, tally), count):
        yield from (join([sample]) for sample in _draw_pass(unit, schedule, tally))
        tally.check()


def _every_unit(schedule: Schedule, tally: Tally) -> Iterator[Unit]:
    return (unit for url in schedule.urls for unit in schedule.units(url, tally))


def _draw_pass(unit: Unit, schedule: Schedule, tally: Tally) -> list[Batch]:
    """The sample of a unit that a pass has, or none."""
    rng = np.random.default_rng([schedule.seed, _PASS, *unit.group.encode()])
    return _draw(unit, schedule, 1, rng, tally)


# ---- shared by both --------------------------------------------------------------------------------------------------


def _draw(unit: Unit, schedule: Schedule, count: int, rng: np.random.Generator, tally: Tally) -> list[Batch]:
    """Up to `count` samples of a unit; none where it is damaged or unusable, which `tally` then says."""
    tally.begin(unit.group)
    sampling, cache = schedule.sampling, schedule.latents
    try:
        group = [
            OpenClip(clip, sampling.size, cache.clip(unit.url, clip.meta.key) if cache else None) for clip in unit.clips
        ]
        return draw_samples(group, sampling, count, rng)
    except UnusableError as error:
        tally.drop(unit.group, error)
    except DAMAGE as error:
        tally.skip(unit.group, error)
    return []


@dataclass
class Failure:
    """The last item of a stream that an error ended: the message travels, a traceback is no use to the user."""

    message: str


Item = tuple[Batch, Tally] | Failure  # a batch, and what its worker has met since the last one


def _guarded(batches: Iterator[Batch], tally: Tally) -> Iterator[Item]:
    try:
        for batch in batches:
            yield batch, tally.news()
    except ShardError as error:
        yield Failure(str(error))


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


def _begin_worker(_: int) -> None:
    """What the parent left for its garbage collector is no business of a worker: finalisers that run in the middle of
    reading labels can end it (seen with CPython 3.11.7: "AST constructor recursion depth mismatch"), and pages that the
    collector does not touch stay shared."""
    gc.freeze()


class Loader:
    """Batches of a stream, made by `workers` processes (0: in this one), with a tally of what they have met.

    Raises `ShardError` when a worker fails or more clips are damaged than `Tally.check` allows.
    """

    def __init__(self, stream: TrainStream | PassStream, workers: int) -> None:
        self.tally = Tally()  # over all workers, as of the last batch handed out
        self._length = stream.batches if isinstance(stream, PassStream) else None
        self._loader: DataLoader[Item] = DataLoader(
            stream,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            persistent_workers=workers > 0 and self._length is not None,
            timeout=WORKER_TIMEOUT if workers else 0,
            worker_init_fn=_begin_worker,
            pin_memory=torch.cuda.is_available(),
        )

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("training batches are endless")
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        for item in self._loader:
            if isinstance(item, Failure):
                raise ShardError(item.message)
            batch, news = item
            self.tally.add(news)
            self.tally.check()
            yield batch
