"""The shard schema, in one place: what a clip is on disk, and how clips become WebDataset tars with an index.

A clip is three or four files of one key:

    {key}.mp4    square crop, H.264 yuv420p, constant 25 fps, closed GOP of 12
    {key}.json   `ClipMeta`
    {key}.npz    `FrameLabels`, one row a frame
    {key}.flac   optional: 16 kHz mono audio of the same time span

Clips are first *staged* as loose files (`stage_clip`: the json is renamed into place last, so a json means a complete
clip) and then packed (`write_shards`) into `{out}/{split}-000000.tar, …` of about 0.5 GB beside `index.json`. Both
steps write to a temporary name, fsync and rename: a killed run leaves no torn file under a final name.

Clips that show the same instant through several cameras share `group`; they stand side by side in one shard, and frame
i of one is frame i of the other. Groups are ordered by a hash of their name, so that every shard mixes identities and
the same clips give the same bytes on every machine.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
from jaxtyping import Float

from dex.files import file_sha256, replacing, write_atomic

SCHEMA = 1
SHARD_BYTES = 500_000_000
MEMBERS = ("json", "npz", "mp4", "flac")
REQUIRED = {"json", "npz", "mp4"}
KEY_LENGTH = 90  # a tar header holds names of 100 bytes


class ShardError(ValueError):
    """Shards that cannot be read or written as asked; the message names the file and the remedy."""


@dataclass(frozen=True)
class CropContract:
    """How a square crop was cut around a head; a model works on pictures cut by the same rule it was trained on."""

    rule: str  # name and version of the rule, e.g. "smoothed-face-square.v1" or "synthetic.v1"
    size: int  # pixels, both sides
    margin: float  # side of the crop / the larger side of the face box
    shift_up: float  # the crop's centre lies this share of its side above the face box's centre


@dataclass(frozen=True)
class ClipMeta:
    """{key}.json."""

    key: str  # unique in the data set; letters, digits, "_" and "-" only (webdataset splits names at the first dot)
    identity: str  # subject; the unit of train/test splits
    recording: str  # one take of one subject, seen by one or several cameras
    camera: str  # "0" where there is one camera
    group: str  # clips of one group show the same instants, frame by frame
    clip: int  # running number inside recording and camera
    source_file: str  # path of the original, relative to the input folder
    source_sha256: str
    start: float  # seconds into the original
    crop_box: list[float]  # x0, y0, x1, y1 in pixels of the original, mean over the clip
    crop: CropContract
    fps: float
    frames: int
    landmark_scheme: str  # "mediapipe_478" or "synthetic"
    blendshape_names: list[str] = field(default_factory=list)
    licence: str = "not stated"
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if not self.key or not self.key.replace("_", "").replace("-", "").isalnum() or not self.key.isascii():
            raise ShardError(f"clip key {self.key!r}: only letters, digits, '_' and '-' are allowed")
        if len(self.key) > KEY_LENGTH:
            raise ShardError(f"clip key {self.key!r}: {len(self.key)} characters, at most {KEY_LENGTH} are allowed")

    @classmethod
    def from_json(cls, text: str | bytes) -> ClipMeta:
        """Raises `ShardError` for another schema version or missing and unknown fields."""
        raw = json.loads(text)
        if not isinstance(raw, dict):
            raise ShardError(f"clip metadata: a {type(raw).__name__}, need the fields of a clip")
        if raw.get("schema") != SCHEMA:
            raise ShardError(
                f"clip {raw.get('key')!r}: schema {raw.get('schema')}, this program reads {SCHEMA}. "
                "Prepare the shards again with this version of data_prep."
            )
        names = {f.name for f in fields(cls)}
        if wrong := set(raw) ^ names:
            raise ShardError(f"clip {raw.get('key')!r}: fields missing or unknown: {sorted(wrong)}")
        try:
            return cls(**{**raw, "crop": CropContract(**raw["crop"])})
        except TypeError as error:
            raise ShardError(f"clip {raw.get('key')!r}: {error}") from error

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


@dataclass(frozen=True)
class FrameLabels:
    """{key}.npz: one row for each of T frames. Coordinates are normalised image coordinates of the crop, in [-1, 1]."""

    landmarks: Float[np.ndarray, "T L 2"]
    pose: Float[np.ndarray, "T 3 4"]  # P = [sR | t]; one canonical unit is 10 cm
    pose_weight: Float[np.ndarray, "T"]  # confidence in [0, 1]; 1 where the pose is exact, 0 where unknown
    blendshapes: Float[np.ndarray, "T E"]  # in [0, 1], named by ClipMeta.blendshape_names; E may be 0
    face_box: Float[np.ndarray, "T 4"]  # x0, y0, x1, y1
    # Sharpness: variance of the Laplacian of the 8-bit luma inside the face box. Of a face scaled to 178 pixels in data
    # by data_prep, at the size that is drawn in synthetic data: the two cannot be compared.
    quality: Float[np.ndarray, "T"]

    def __post_init__(self) -> None:
        lengths = {f.name: len(getattr(self, f.name)) for f in fields(self)}
        if len(set(lengths.values())) != 1:
            raise ShardError(f"frame labels of different lengths: {lengths}")

    def __len__(self) -> int:
        return len(self.pose)

    @classmethod
    def from_npz(cls, data: bytes) -> FrameLabels:
        """Raises `ShardError` where the labels cannot be read, or differ in length."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                found = {f.name: arrays[f.name] for f in fields(cls)}
        except Exception as error:  # whatever damaged bytes make of zipfile, zlib, and the tokeniser behind numpy
            raise ShardError(f"labels cannot be read: {type(error).__name__}: {error}") from error
        return cls(**found)

    def to_npz(self) -> bytes:
        # np.savez_compressed stamps the time of day into the zip: write the members with a fixed date, so that the
        # same labels give the same bytes.
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for f in fields(self):
                member = io.BytesIO()
                np.save(member, np.ascontiguousarray(getattr(self, f.name), dtype=np.float32), allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{f.name}.npy"), member.getvalue(), zipfile.ZIP_DEFLATED)
        return buffer.getvalue()


@dataclass(frozen=True)
class Shard:
    name: str  # file name beside index.json
    sha256: str
    bytes: int
    clips: int
    frames: int


@dataclass(frozen=True)
class ShardIndex:
    """index.json."""

    crop: CropContract
    fps: float
    clips: int
    frames: int
    identities: list[str]
    shards: list[Shard]
    schema: int = SCHEMA

    @classmethod
    def load(cls, folder: str | Path) -> ShardIndex:
        """Reads `folder`/index.json. Raises `ShardError` where it is missing or of another schema."""
        path = Path(folder) / "index.json"
        if not path.is_file():
            raise ShardError(
                f"{path}: not found. A folder of shards holds index.json; make one with `python -m data_prep`."
            )
        raw = json.loads(path.read_text())
        if raw.get("schema") != SCHEMA:
            raise ShardError(
                f"{path}: schema {raw.get('schema')}, this program reads {SCHEMA}. Prepare the shards again."
            )
        return cls(
            **{
                **raw,
                "crop": CropContract(**raw["crop"]),
                "shards": [Shard(**shard) for shard in raw["shards"]],
            }
        )

    def save(self, folder: str | Path) -> None:
        write_atomic(Path(folder) / "index.json", json.dumps(asdict(self), indent=1).encode())


@dataclass(frozen=True)
class StoredClip:
    """A complete clip somewhere on disk: its meta, and a way to read each member's bytes."""

    meta: ClipMeta
    members: dict[str, Callable[[], bytes]]  # extension → reader


def stage_clip(folder: Path, meta: ClipMeta, labels: FrameLabels, video: bytes, audio: bytes | None = None) -> None:
    """Puts a clip's files into `folder`, the json last. Raises `ShardError` where labels and meta disagree."""
    if len(labels) != meta.frames:
        raise ShardError(f"clip {meta.key}: {len(labels)} rows of labels for {meta.frames} frames")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{meta.key}.mp4", video)
    write_atomic(folder / f"{meta.key}.npz", labels.to_npz())
    if audio is not None:
        write_atomic(folder / f"{meta.key}.flac", audio)
    write_atomic(folder / f"{meta.key}.json", meta.to_json())


def staged_clips(folder: Path) -> Iterator[StoredClip]:
    """Complete clips among the loose files of `folder` (recursively), in the order of their names.

    Raises `ShardError` for a json whose clip was taken away.
    """
    for path in sorted(folder.rglob("*.json")):
        files = {ext: file for ext in MEMBERS if (file := path.with_suffix(f".{ext}")).is_file()}
        if missing := REQUIRED - set(files):
            raise ShardError(
                f"{path}: its {sorted(missing)} is gone. Delete this json to have the clip prepared again."
            )
        yield StoredClip(ClipMeta.from_json(path.read_bytes()), {ext: file.read_bytes for ext, file in files.items()})


def packed_clips(folder: Path) -> Iterator[StoredClip]:
    """Clips of a folder of shards (an earlier `write_shards`), read lazily from the tars."""
    for shard in ShardIndex.load(folder).shards:
        path = folder / shard.name
        try:
            with tarfile.open(path) as tar:
                located = [(info.name, info.offset_data, info.size) for info in tar]
        except tarfile.TarError as error:
            raise ShardError(f"{path}: is damaged ({error}); remove its folder and pack it again") from error
        for key, members in itertools.groupby(located, key=lambda item: item[0].partition(".")[0]):
            readers = {name.partition(".")[2]: _reader(path, offset, size) for name, offset, size in members}
            if not set(readers) >= REQUIRED:
                raise ShardError(f"{path}: clip {key} is incomplete, it has only {sorted(readers)}")
            yield StoredClip(ClipMeta.from_json(readers["json"]()), readers)


def _reader(path: Path, offset: int, size: int) -> Callable[[], bytes]:
    def read() -> bytes:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    return read


def write_shards(
    clips: Iterable[StoredClip], out: Path, split: str = "train", shard_bytes: int = SHARD_BYTES
) -> ShardIndex:
    """Packs clips into shards of about `shard_bytes` and writes index.json last.

    Shards of an earlier, larger packing of the same split are removed then: a brace pattern would read them too.
    Raises `ShardError` for no clips, a key that occurs twice, or clips of different crop contracts or frame rates.
    """
    ordered = sorted(clips, key=lambda clip: (_order(clip.meta.group), clip.meta.group, clip.meta.key))
    _check_agreement([clip.meta for clip in ordered], out)
    out.mkdir(parents=True, exist_ok=True)
    shards: list[Shard] = []
    pending = [list(group) for _, group in itertools.groupby(ordered, key=lambda clip: clip.meta.group)]
    while pending:
        name = f"{split}-{len(shards):06d}.tar"
        shards.append(_write_shard(out / name, pending, shard_bytes))
    metas = [clip.meta for clip in ordered]
    index = ShardIndex(
        crop=metas[0].crop,
        fps=metas[0].fps,
        clips=len(metas),
        frames=sum(meta.frames for meta in metas),
        identities=sorted({meta.identity for meta in metas}),
        shards=shards,
    )
    index.save(out)
    for stale in set(out.glob(f"{split}-[0-9]*.tar")) - {out / shard.name for shard in shards}:
        stale.unlink()
    return index


def _order(group: str) -> str:
    return hashlib.sha256(group.encode()).hexdigest()


def _check_agreement(metas: list[ClipMeta], out: Path) -> None:
    if not metas:
        raise ShardError(f"{out}: no clips to pack. See the report for the reason each was rejected.")
    for attribute in ("crop", "fps"):
        if len(found := {getattr(meta, attribute) for meta in metas}) > 1:
            raise ShardError(f"{out}: clips of different {attribute} cannot share shards: {sorted(map(str, found))}")
    keys = sorted(meta.key for meta in metas)
    if twice := [a for a, b in itertools.pairwise(keys) if a == b]:
        raise ShardError(f"{out}: {len(twice)} clip keys occur twice, the first is {twice[0]!r}")


def _write_shard(path: Path, pending: list[list[StoredClip]], shard_bytes: int) -> Shard:
    """Moves groups from the front of `pending` into one tar until it holds `shard_bytes`; at least one group."""
    written: list[ClipMeta] = []
    with (
        replacing(path) as temporary,
        open(temporary, "wb") as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        while pending and (not written or file.tell() < shard_bytes):
            for clip in pending.pop(0):
                for extension in MEMBERS:
                    if extension in clip.members:
                        _add(tar, f"{clip.meta.key}.{extension}", clip.members[extension]())
                written.append(clip.meta)
    return Shard(path.name, file_sha256(path), path.stat().st_size, len(written), sum(meta.frames for meta in written))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # no owner, no time: the same clips give the same bytes
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
