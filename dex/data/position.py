"""Where training stands in its data, whatever numbers of ranks and workers it has had on the way.

A run's history is a list of layouts. Under one layout, loader process i of n takes the i-th of n shares of each epoch.
When the layout changes in the middle of an epoch, the new processes first finish the shares that are begun, dealt out
among them, and then begin the next epoch: nothing is repeated and nothing is lost.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import lightning as L


@dataclass(frozen=True)
class Layout:
    """`batches` batches of each of `world` ranks, loaded by `workers` processes a rank (at least 1)."""

    world: int
    workers: int
    batches: int

    @property
    def processes(self) -> int:
        return self.world * self.workers

    def done(self, process: int) -> int:
        """Batches of one of its processes: a rank's workers are asked in turn."""
        return len(range(process % self.workers, self.batches, self.workers))


@dataclass(frozen=True)
class Share:
    """Batches `first` to `last` (exclusive) of share `index` of `count` of an epoch."""

    epoch: int
    index: int
    count: int
    first: int
    last: int


History = Sequence[Layout]
PerEpoch = Callable[[Layout], int]  # batches of one process in an epoch


def advanced(history: History, world: int, workers: int, total: int) -> list[Layout]:
    """The history after `total` batches a rank, counted from the beginning of training, the last in this layout."""
    now = Layout(world, workers, total - sum(layout.batches for layout in history))
    if history and (history[-1].world, history[-1].workers) == (world, workers):
        return [*history[:-1], replace(now, batches=now.batches + history[-1].batches)]
    return [*history, now]


def completed_batches(trainer: L.Trainer | None) -> int:
    """Batches a rank of a trainer's whole training, also before a resumption; 0 without a trainer."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.completed if trainer else 0


def batches_of_all(history: History) -> int:
    """Over all ranks."""
    return sum(layout.world * layout.batches for layout in history)


def shares(history: History, process: int, per_epoch: PerEpoch) -> Iterator[Share]:
    """Endless shares of a process of the last layout, from that layout's beginning on."""
    begun, epoch = standing(history[:-1], per_epoch)
    layout = history[-1]
    yield from begun[process :: layout.processes]
    for number in itertools.count(epoch):
        yield Share(number, process, layout.processes, 0, per_epoch(layout))


def standing(history: History, per_epoch: PerEpoch) -> tuple[list[Share], int]:
    """What is left of the shares that are begun at the end of a history, and the first epoch that nobody has begun."""
    begun: list[Share] = []
    epoch = 0
    for layout in history:
        whole = per_epoch(layout)
        queues = [begun[process :: layout.processes] for process in range(layout.processes)]
        beyond = [layout.done(i) - sum(share.last - share.first for share in queue) for i, queue in enumerate(queues)]
        following = epoch + max(0, *(-(-batches // whole) for batches in beyond))
        begun = []
        for process, queue in enumerate(queues):
            own = (Share(number, process, layout.processes, 0, whole) for number in range(epoch, following))
            begun += after([*queue, *own], layout.done(process))
        epoch = following
    return begun, epoch


def after(queue: list[Share], done: int) -> Iterator[Share]:
    """What is left of shares when `done` batches of them are taken."""
    for share in queue:
        taken = min(done, share.last - share.first)
        done -= taken
        if share.first + taken < share.last:
            yield replace(share, first=share.first + taken)
