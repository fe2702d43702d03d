"""The unfinished state of a run, in `OUT/.staging`: what survives a kill and is thrown away when the shards stand.

.staging/settings.json        what the run was begun with
.staging/records/{id}.json    one finished source each, written last
.staging/clips/{id}/          its clips
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from data_prep.layouts import Source
from data_prep.pipeline import Record
from dex.data.shards import StoredClip, staged_clips
from dex.files import write_atomic


class StagingError(ValueError):
    """A run that cannot go on as asked; the message says what to do."""


class Staging:
    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out / ".staging"
        self.log = self.folder / "workers.log"

    @contextmanager
    def opened(self, begun_with: dict) -> Iterator[None]:
        """Holds the folder for this run alone. Raises `StagingError` where it is held, or was begun otherwise."""
        foreign = [path.name for path in self.out.iterdir()] if self.out.is_dir() and not self.folder.is_dir() else []
        if foreign:
            raise StagingError(f"{self.out}: holds {sorted(foreign)[0]!r} already; give --out a new or empty folder")
        for name in ("records", "clips"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StagingError(f"{self.out}: another run is writing there; wait for it or stop it") from None
            self._check(begun_with)
            yield

    def _check(self, begun_with: dict) -> None:
        path = self.folder / "settings.json"
        if not path.exists():
            write_atomic(path, json.dumps(begun_with, indent=1).encode())
        before = json.loads(path.read_bytes())
        if changed := [name for name in begun_with if before.get(name) != begun_with[name]]:
            was = ", ".join(f"{name} {before.get(name)!r}, now {begun_with[name]!r}" for name in changed)
            raise StagingError(f"{self.out}: begun with {was}; go on with the same options or choose another --out")

    def record(self, source: Source) -> Record | None:
        """The record of a source that is finished."""
        path = self._record_path(source)
        return Record(**json.loads(path.read_bytes())) if path.is_file() else None

    def finish(self, source: Source, record: Record) -> None:
        """Writes a source's record. Where it names no clip, none stays: a worker may have died after staging some."""
        if not record.clips:
            self.clear(source)
        write_atomic(self._record_path(source), json.dumps(asdict(record)).encode())

    def clips_folder(self, source: Source) -> Path:
        return self.folder / "clips" / _identifier(source)

    def clear(self, source: Source) -> None:
        """Forgets the clips of a source."""
        shutil.rmtree(self.clips_folder(source), ignore_errors=True)

    def clips(self, sources: Iterable[Source]) -> Iterator[StoredClip]:
        for source in sources:
            yield from staged_clips(self.clips_folder(source))

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _record_path(self, source: Source) -> Path:
        return self.folder / "records" / f"{_identifier(source)}.json"


def _identifier(source: Source) -> str:
    """Changes when the file does."""
    try:
        status = os.stat(source.path)
        state = f"{status.st_size} {status.st_mtime_ns}"
    except OSError:
        state = "unreadable"
    return hashlib.sha256(os.fsencode(f"{source.file}\0{state}")).hexdigest()[:20]
