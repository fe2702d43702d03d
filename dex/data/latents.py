"""The latent cache: the codec's latents of every frame of prepared shards, so that training need not encode them.

`{shards}/latents/{shard}.safetensors`, one file a shard, holds a tensor (T, c, h, w) of each clip under the clip's key,
float32 or float16. Its header says which codec made it from which bytes. Single frames are read out of the file where
they lie: a clip of ten seconds at 512² has 16 MB of latents, a sample needs five frames of it.

What is encoded are the very pictures that the loader yields at that size, without augmentation, by the mode of the
posterior: in float32 a training step sees the same numbers as when it encodes for itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open

from dex.data.shards import ShardError, ShardIndex
from dex.files import replacing

SCHEMA = "1"
FOLDER = "latents"  # beside the shards
_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}


@dataclass(frozen=True)
class LatentHeader:
    """What a file of latents says of itself (all strings: safetensors knows no other)."""

    codec: str  # as in a configuration
    codec_hash: str
    size: str  # pixels a side of the pictures that were encoded
    dtype: Literal["F32", "F16"]
    shard: str
    shard_sha256: str
    schema: str = SCHEMA

    @classmethod
    def read(cls, path: Path) -> LatentHeader:
        """Raises `ShardError` for another file, or one that was cut."""
        try:
            with safe_open(path, "np") as file:
                found = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise ShardError(f"{path}: cannot be read ({error}). Delete it and make it again.") from error
        if set(found) != {field.name for field in fields(cls)} or found["schema"] != SCHEMA:
            raise ShardError(f"{path}: holds no latents of this version. Delete it and make it again.")
        return cls(**found)


class DamagedClipError(Exception):
    """A clip that cannot be decoded: it is left out of the cache, as the loader passes over it."""


def latent_file(folder: Path, shard: str) -> Path:
    return folder / f"{Path(shard).stem}.safetensors"


def write_latents(
    path: Path,
    header: LatentHeader,
    shapes: Mapping[str, tuple[int, int, int, int]],
    encode: Callable[[str], Iterator[Float[np.ndarray, "N c h w"]]],
) -> list[str]:
    """Writes one file of latents and returns the keys of clips left out for damage.

    `encode` gives the frames of a clip piece by piece; memory holds one piece. The header of a safetensors file comes
    first and its tensors leave no gaps, hence its place is kept, and what was written of a damaged clip is taken back.
    The file appears only when it is complete.
    """
    dtype = _TYPES[header.dtype]
    room = len(_head(header, shapes, dtype)) + 32 * len(shapes)
    whole: dict[str, tuple[int, int, int, int]] = {}
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.seek(8 + room)
        for key, shape in shapes.items():
            begin = file.tell()
            try:
                for piece in encode(key):
                    file.write(np.ascontiguousarray(piece, dtype).data)
            except DamagedClipError:
                file.seek(begin)
                file.truncate()
                continue
            assert file.tell() - begin == dtype.itemsize * int(np.prod(shape)), f"{key}: not {shape}"
            whole[key] = shape
        file.seek(0)
        file.write(room.to_bytes(8, "little") + _head(header, whole, dtype).ljust(room))
    return [key for key in shapes if key not in whole]


def _head(header: LatentHeader, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype) -> bytes:
    content: dict[str, object] = {"__metadata__": asdict(header)}
    begin = 0
    for key, shape in shapes.items():
        end = begin + dtype.itemsize * int(np.prod(shape))
        content[key] = {"dtype": header.dtype, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    return json.dumps(content).encode()


@dataclass(frozen=True)
class ClipLatents:
    """Latents of one clip; opened for each reading, since a loader's workers cannot share an open file."""

    path: Path
    key: str

    def frames(self, indices: Sequence[int]) -> Float[np.ndarray, "N c h w"]:
        """float32. Raises `ShardError` where they are not there."""
        try:
            with safe_open(self.path, "np") as file:
                stored = file.get_slice(self.key)
                return np.concatenate([stored[i : i + 1] for i in indices]).astype(np.float32)
        except (SafetensorError, OSError) as error:
            raise ShardError(f"{self.path}: no latents of clip {self.key} ({error})") from error


@dataclass(frozen=True)
class LatentCache:
    """The latents of all shards of a datamodule, made by one codec at one size."""

    files: dict[str, Path]  # a shard, as its URL was given → its latents
    codec: str
    codec_hash: str
    folder: Path
    command: str  # that makes the first of its folders, but for the codec

    def clip(self, shard: str, key: str) -> ClipLatents:
        return ClipLatents(self.files[shard], key)

    def check_codec(self, name: str, codec_hash: str) -> None:
        """Raises `ShardError` unless the latents were made by this very codec."""
        if codec_hash != self.codec_hash:
            raise ShardError(
                f"{self.folder}: latents of codec {self.codec!r} (hash {self.codec_hash[:12]}), the model's is "
                f"{name!r} (hash {codec_hash[:12]}). Delete the folder and run `{self.command} --codec {name}`."
            )

    @classmethod
    def find(cls, shards: Sequence[str], latents: str, size: int) -> LatentCache:
        """The cache of these shards (paths in folders with index.json), `latents` being relative to each folder.

        Raises `ShardError` where latents are missing, or were made from other shards or at another size.
        """
        files: dict[str, Path] = {}
        headers: list[LatentHeader] = []
        hashes: dict[Path, dict[str, str]] = {}
        for url in shards:
            shard = Path(url)
            if shard.parent not in hashes:
                hashes[shard.parent] = _hashes(shard)
            file = latent_file(shard.parent / latents, shard.name)
            headers.append(_checked(file, shard, hashes[shard.parent][shard.name], latents, size))
            files[url] = file
        if len({(header.codec_hash, header.dtype) for header in headers}) > 1:
            names = sorted({f"{header.codec} {header.dtype}" for header in headers})
            raise ShardError(f"data.latents: shards with latents of different codecs cannot be mixed: {names}")
        first = Path(shards[0]).parent
        return cls(files, headers[0].codec, headers[0].codec_hash, first / latents, _command(first, latents, size))


def _hashes(shard: Path) -> dict[str, str]:
    """sha256 of the shards in a folder, as its index has them."""
    if not shard.is_file():
        raise ShardError(f"data.latents: {shard} is no local file; a cache stands beside a folder of shards")
    return {one.name: one.sha256 for one in ShardIndex.load(shard.parent).shards}


def _checked(file: Path, shard: Path, sha256: str, latents: str, size: int) -> LatentHeader:
    command = _command(shard.parent, latents, size)
    if not file.is_file():
        raise ShardError(f"{file}: no latents of {shard.name}. Run `{command} --codec CODEC`; it goes on where it was.")
    header = LatentHeader.read(file)
    if header.shard_sha256 != sha256:
        raise ShardError(
            f"{file}: made from another {shard.name} (sha256 {header.shard_sha256[:12]}, it is {sha256[:12]} now). "
            f"Run `{command} --codec {header.codec}`."
        )
    if header.size != str(size):
        raise ShardError(
            f"{file}: latents of {header.size}² pictures, data.size is {size}. Set data.size to {header.size}, or "
            f"delete {file.parent} and run `{command} --codec {header.codec}`."
        )
    return header


def _command(shards: Path, latents: str, size: int) -> str:
    elsewhere = "" if latents == FOLDER else f" --out {shards / latents}"
    return f"python -m data_prep.latents {shards} --size {size}{elsewhere}"
