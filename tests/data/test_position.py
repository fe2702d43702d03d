"""Changing the number of ranks or workers in the middle of an epoch repeats nothing and loses nothing."""

import itertools
import random
from collections import Counter

import pytest

from dex.data.position import Layout, advanced, batches_of_all, shares

WHOLE = 24  # batches of all processes in an epoch


def per_epoch(layout: Layout) -> int:
    return max(1, WHOLE // layout.processes)


def taken(history: list[Layout]) -> Counter[tuple[int, int, int, int]]:
    """Every (epoch, share, of how many, batch) of a history's processes."""
    found: Counter[tuple[int, int, int, int]] = Counter()
    for end in range(1, len(history) + 1):
        layout = history[end - 1]
        for process in range(layout.processes):
            batches = (
                (share.epoch, share.index, share.count, number)
                for share in shares(history[:end], process, per_epoch)
                for number in range(share.first, share.last)
            )
            found.update(itertools.islice(batches, layout.done(process)))
    return found


@pytest.mark.parametrize("seed", range(30))
def test_every_begun_epoch_is_finished_and_nothing_comes_twice(seed: int) -> None:
    draw = random.Random(seed)
    sizes = (1, 2, 3, 4)
    history = [Layout(draw.choice(sizes), draw.choice((1, 2)), draw.randrange(1, 40)) for _ in range(4)]
    found = taken(history)
    assert set(found.values()) == {1}
    assert sum(found.values()) == batches_of_all(history)
    # Some time later all epochs that had been begun are complete: each share of theirs from 0 to its end.
    last = max(epoch for epoch, *_ in found)
    later = taken([*history[:-1], Layout(history[-1].world, history[-1].workers, history[-1].batches + 200)])
    assert set(later.values()) == {1}
    for epoch in range(last + 1):
        of = {count for e, _, count, _ in later if e == epoch}
        assert len(of) == 1  # an epoch is dealt out once, to one layout
        (count,) = of
        batches = {(index, number) for e, index, _, number in later if e == epoch}
        assert batches == set(itertools.product(range(count), range(max(1, WHOLE // count))))


def test_the_same_layout_merges_and_another_is_noted() -> None:
    history = advanced([], 2, 4, 10)
    assert advanced(history, 2, 4, 15) == [Layout(2, 4, 15)]
    changed = advanced(history, 4, 4, 15)
    assert changed == [Layout(2, 4, 10), Layout(4, 4, 5)]
    assert batches_of_all(changed) == 40
