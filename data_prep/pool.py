"""Worker processes that may die: one source at a time for each, a lost or stuck worker costs that source only."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from data_prep import filters
from data_prep.layouts import Source
from data_prep.pipeline import Record, process
from data_prep.settings import Settings

_STALL = 600.0  # seconds without a sign of life from a worker
_SIGN_OF_LIFE = 0.5  # seconds between two of them

Job = tuple[Source, Path]  # a source and the folder for its clips


class WorkerError(RuntimeError):
    """Something that would fail for every source: a full disk, a missing weight."""


@dataclass
class _Lane:
    """One process, the pipe to it, and what it is working on."""

    process: Any
    pipe: Connection
    job: Job | None = None
    heard: float = 0.0


def run(
    jobs: Sequence[Job], settings: Settings, workers: int, log: Path, progress: Callable[[str, float], None]
) -> Iterator[tuple[Job, Record]]:
    """Records in the order they are done. `progress` is called with a source's file and the share of it that is done.

    Raises `WorkerError` for troubles that are not the source's.
    """
    context = multiprocessing.get_context("spawn")
    waiting = deque(jobs)
    lanes: list[_Lane] = []

    def start() -> _Lane:
        ours, theirs = context.Pipe()
        child = context.Process(target=_work, args=(theirs, settings, log), daemon=True)
        child.start()
        theirs.close()
        return _Lane(child, ours)

    def give(lane: _Lane) -> None:
        if waiting:
            lane.job, lane.heard = waiting.popleft(), time.monotonic()
            with contextlib.suppress(BrokenPipeError):  # it died already: seen at the next look
                lane.pipe.send(lane.job)

    try:
        lanes += [start() for _ in range(min(workers, len(jobs)))]
        for lane in lanes:
            give(lane)
        while any(lane.job for lane in lanes):
            wait([lane.pipe for lane in lanes if lane.job], timeout=1.0)
            for number, lane in enumerate(lanes):
                if lane.job and (record := _hear(lane, progress)):
                    yield lane.job, record
                    if not lane.process.is_alive():
                        lane = lanes[number] = start()
                    lane.job = None
                    give(lane)
    finally:
        for lane in lanes:
            lane.process.kill()
            lane.process.join()
            lane.pipe.close()


def _hear(lane: _Lane, progress: Callable[[str, float], None]) -> Record | None:
    """What the worker has said: a record when it is done, or dead, or silent for too long."""
    source = lane.job[0]
    try:
        while lane.pipe.poll():
            kind, content = lane.pipe.recv()
            lane.heard = time.monotonic()
            if kind == "failed":
                raise WorkerError(content)
            if kind == "done":
                return content
            progress(source.file, content)
    except (EOFError, ConnectionResetError):
        lane.process.join()
        how = lane.process.exitcode
        detail = signal.Signals(-how).name if how is not None and how < 0 else f"exit status {how}"
        return Record(source.file, filters.CRASHED, f"its process ended with {detail}")
    if time.monotonic() - lane.heard > _STALL:
        lane.process.kill()
        lane.process.join()
        return Record(source.file, filters.STALLED, f"no progress for {_STALL:.0f} s")
    return None


def _work(pipe: Connection, settings: Settings, log: Path) -> None:
    """A worker's life. Its stderr goes to `log`: MediaPipe, TFLite and libav speak there whatever they are told."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 2)
    try:
        from dex.faces.detect import FaceTracker  # loads MediaPipe, after stderr is out of the way

        with FaceTracker() as tracker:
            while True:
                source, folder = pipe.recv()
                pipe.send(("done", _guarded(source, settings, tracker, folder, pipe)))
    except (EOFError, BrokenPipeError):  # the parent is gone
        return
    except (OSError, ImportError, ValueError, RuntimeError) as error:
        # A full disk, a missing weight, a library that cannot be loaded: every other source would fail alike.
        pipe.send(("failed", f"{error}".strip().splitlines()[0]))


def _guarded(source: Source, settings: Settings, tracker: Any, folder: Path, pipe: Connection) -> Record:
    said = 0.0

    def progress(share: float) -> None:
        nonlocal said
        if time.monotonic() - said > _SIGN_OF_LIFE:
            said = time.monotonic()
            try:
                pipe.send(("progress", share))
            except BrokenPipeError:  # the parent is gone: leave at once, another run may have begun
                os._exit(1)

    try:
        return process(source, settings, tracker, folder, progress)
    except (OSError, EOFError):
        raise
    except Exception as error:
        # A fault of this program at one odd file: the other files go on, the report and the log name it.
        traceback.print_exc()
        return Record(source.file, filters.FAULT, f"{type(error).__name__}: {error}".splitlines()[0])
