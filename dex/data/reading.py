"""Reading tar shards from files, pipes and URLs: which clips they hold, and what is wrong with them."""

from __future__ import annotations

import glob
import itertools
import logging
import os
import shlex
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from webdataset.gopen import gopen
from webdataset.shardlists import expand_urls

from dex.data.clips import DAMAGE
from dex.data.shards import ClipMeta, ShardError, ShardIndex, StoredClip

log = logging.getLogger(__name__)

# A run stops when more clips are damaged than this share of those tried, and a few that are always forgiven.
MAX_SKIPPED_SHARE = 0.01
FORGIVEN = 3


@dataclass
class Tally:
    """What became of the clips (or groups of them) that were tried: each counts once, however often it is read.

    Names are kept: some hundred bytes a clip, in every loader process.
    """

    tried: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    unusable: set[str] = field(default_factory=set)  # whole, but of no use for this mode, at least once
    reason: str = ""  # name and reason of the last one passed over
    fresh: Tally | None = None  # the same since the last `news`, where somebody asks for them

    @property
    def skipped(self) -> int:
        return len(self.damaged)

    @property
    def dropped(self) -> int:
        return len(self.unusable)

    def add(self, other: Tally) -> None:
        self.tried |= other.tried
        self.damaged |= other.damaged
        self.unusable |= other.unusable
        self.reason = other.reason or self.reason
        if self.fresh is not None:
            self.fresh.add(other)

    def news(self) -> Tally:
        """What was added since the last call: it travels beside each batch from worker to main process."""
        assert self.fresh is not None
        news, self.fresh = self.fresh, Tally()
        return news

    def begin(self, name: str) -> None:
        self.add(Tally(tried={name}))

    def skip(self, name: str, error: Exception) -> None:
        reason = _told(name, error)
        if name not in self.damaged:
            log.warning("clip skipped: %s", reason)
        self.add(Tally(damaged={name}, reason=reason))

    def drop(self, name: str, error: Exception) -> None:
        self.add(Tally(unusable={name}, reason=_told(name, error)))

    def last(self) -> str:
        """The last reason as a clause, nothing where all went well."""
        return f"; the last one: {self.reason}" if self.reason else ""

    def check(self) -> None:
        """Raises `ShardError` when more than `MAX_SKIPPED_SHARE` of the clips are damaged."""
        if self.skipped > FORGIVEN + MAX_SKIPPED_SHARE * len(self.tried):
            raise ShardError(
                f"{self.skipped} of {len(self.tried | self.damaged)} clips are damaged, more than "
                f"{MAX_SKIPPED_SHARE:.0%}{self.last()}. Copy the shards again or prepare them again."
            )


def _told(name: str, error: Exception) -> str:
    return f"{name}: {' '.join(str(error).split()) or type(error).__name__}"


# ---- which shards ----------------------------------------------------------------------------------------------------


def find_shards(source: str | list[str]) -> tuple[list[str], list[ShardIndex]]:
    """The URLs that `source` names, and the index of each folder among them.

    A source is a folder that holds index.json, a tar file, a pattern (`{000..031}`, `*`), or a URL as webdataset takes
    it (`pipe:…`, `https:…`); `s3://…` is read through the `aws` command. A list is the sum of its items.
    Raises `ShardError` where nothing is found.
    """
    urls: list[str] = []
    indices: list[ShardIndex] = []
    for item in [source] if isinstance(source, str) else source:
        for url in expand_urls(item):
            if Path(url).is_dir():
                indices.append(ShardIndex.load(url))
                urls += [str(Path(url) / shard.name) for shard in indices[-1].shards]
            elif url.startswith("s3://"):
                urls.append(f"pipe:aws s3 cp {shlex.quote(url)} -")
            elif url.partition(":")[0] in ("pipe", "http", "https", "ftps", "sftp", "scp", "gs", "htgs", "ais", "hf"):
                urls.append(url)
            else:
                urls += sorted(glob.glob(url)) or [url]
    if not urls:
        raise ShardError(f"{source}: names no shard. Its index.json lists none; prepare the clips again.")
    if missing := [url for url in urls if is_local(url) and not Path(url).is_file()]:
        raise ShardError(
            f"{missing[0]}: no such shard or folder ({len(missing)} of {len(urls)} are missing). "
            "Make shards with `python -m data_prep VIDEOS --out SHARDS`."
        )
    return urls, indices


def is_local(url: str) -> bool:
    return ":" not in url.partition("/")[0]


# ---- what is in a shard ----------------------------------------------------------------------------------------------


@dataclass
class Unit:
    """What is opened together: clips of one group (the same instants through several cameras), mostly one."""

    group: str
    identity: str
    url: str  # of its shard
    clips: list[StoredClip] = field(default_factory=list)


def read_units(url: str, tally: Tally, cameras: int, rng: np.random.Generator | None = None) -> Iterator[Unit]:
    """Units of one shard in the order of the tar.

    Of a local file only the small json members are read; the others when a clip is opened. Of a group with more than
    `cameras` cameras that many are kept, drawn by `rng` (the first ones without it). Damaged members and the lost tail
    of a cut shard are entered in `tally`.
    """
    for group, clips in itertools.groupby(_read_clips(url, tally), key=lambda clip: clip.meta.group):
        unit = None
        for seen, clip in enumerate(clips):
            unit = unit or Unit(group, clip.meta.identity, url)
            if len(unit.clips) < cameras:
                unit.clips.append(clip)
            elif rng is not None and (place := int(rng.integers(seen + 1))) < cameras:  # reservoir sampling
                unit.clips[place] = clip
        if unit is not None:
            yield unit


# What local shards hold, by path, size and time of change: a small set is gone through again and again, and reading a
# tar's headers and metas takes time from decoding (`python -m benchmarks.loader`).
_listings: dict[tuple[str, int, int], list[StoredClip]] = {}
_MOST_LISTINGS = 64


def _read_clips(url: str, tally: Tally) -> Iterator[StoredClip]:
    """The clips of a shard; what is damaged is entered in `tally`."""
    if not _seekable(url) or not os.path.isfile(url):
        yield from _scan(url, tally)
        return
    state = os.stat(url)
    key = (url, state.st_size, state.st_mtime_ns)
    if key not in _listings:
        met = Tally()
        found = list(_scan(url, met))
        if met.damaged:  # not remembered, so that every tally hears of it
            tally.add(met)
            yield from found
            return
        if len(_listings) >= _MOST_LISTINGS:
            _listings.clear()
        _listings[key] = found
    yield from _listings[key]


def _seekable(url: str) -> bool:
    return is_local(url) and url.endswith(".tar")


def _scan(url: str, tally: Tally) -> Iterator[StoredClip]:
    seekable = _seekable(url)
    try:
        with gopen(url) as stream, tarfile.open(fileobj=stream, mode="r:" if seekable else "r|*") as tar:
            members = ((info, _reader(tar, info, url if seekable else None)) for info in tar if info.isfile())
            for key, files in itertools.groupby(members, key=lambda member: member[0].name.partition(".")[0]):
                readers = {info.name.partition(".")[2]: read for info, read in files}
                try:
                    clip = StoredClip(ClipMeta.from_json(readers["json"]()), readers)
                except DAMAGE as error:
                    tally.skip(key, KeyError("no json beside it") if "json" not in readers else error)
                    continue
                yield clip
            while not seekable and stream.read(1 << 16):  # a pipe that is not emptied ends in an error
                pass
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        tally.skip(url, error)


def _reader(tar: tarfile.TarFile, info: tarfile.TarInfo, path: str | None) -> Callable[[], bytes]:
    """Reads a member later from its place in a plain file, or now from a stream."""
    offset, size, name = info.offset_data, info.size, info.name

    def read() -> bytes:
        assert path is not None
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise ShardError(f"{name}: {path} ends before it does")
        return data

    if path is not None:
        return read
    file = tar.extractfile(info)
    data = file.read() if file else b""
    return lambda: data
