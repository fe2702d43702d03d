"""Command line of the latent cache: python -m data_prep.latents SHARDS --codec NAME [--size N]

Encodes every frame of prepared shards once, into SHARDS/latents (dex/data/latents.py has the format).
Run again it goes on where it was interrupted, makes those shards anew whose bytes have changed, and removes the latents
of those that are gone. In a folder outside of SHARDS, which others may share, it replaces and removes nothing.
"""

from __future__ import annotations

import argparse
import fcntl
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from dex.animator.codec import Codec, load_codec
from dex.batch import picture_to_float
from dex.data.clips import DAMAGE, OpenClip
from dex.data.latents import FOLDER, DamagedClipError, LatentHeader, latent_file, write_latents
from dex.data.reading import Tally, read_units
from dex.data.shards import Shard, ShardError, ShardIndex, StoredClip
from dex.files import file_sha256, remove_left

_PICTURES = 16  # decoded and encoded at a time


@dataclass(frozen=True)
class _Encoder:
    shards: Path
    out: Path
    codec: Codec
    size: int  # pixels a side
    half: bool
    device: torch.device

    def header(self, shard: Shard) -> LatentHeader:
        dtype: Literal["F16", "F32"] = "F16" if self.half else "F32"
        return LatentHeader(self.codec.name, self.codec.hash, str(self.size), dtype, shard.name, shard.sha256)

    @property
    def owns_out(self) -> bool:
        """Whether latents are written inside the folder of shards, where those of no other shards can be."""
        return self.out.resolve().is_relative_to(self.shards.resolve())

    def is_done(self, shard: Shard) -> bool:
        """Whether its latents are there.

        Raises `ShardError` where there are those of another codec, size or type, or perhaps of other shards.
        """
        path, wanted = latent_file(self.out, shard.name), self.header(shard)
        if not path.is_file():
            return False
        found = LatentHeader.read(path)
        for name in ("codec_hash", "size", "dtype"):
            if getattr(found, name) != getattr(wanted, name):
                raise ShardError(
                    f"{path}: made with another {name} ({getattr(found, name)[:12]} by {found.codec}, now "
                    f"{getattr(wanted, name)[:12]} by {wanted.codec}). Delete {self.out} or give --out another folder."
                )
        if found.shard_sha256 != wanted.shard_sha256 and not self.owns_out:
            raise ShardError(
                f"{path}: made from another {shard.name} (sha256 {found.shard_sha256[:12]}, here {shard.sha256[:12]}), "
                f"perhaps of another folder of shards. Delete it if nothing needs it, or give --out another folder."
            )
        return found.shard_sha256 == wanted.shard_sha256

    def remove_stale(self, shards: Sequence[Shard]) -> None:
        """Deletes latents of shards that are no longer, and nothing else."""
        if not self.owns_out:
            return
        for path in set(self.out.glob("*.safetensors")) - {latent_file(self.out, shard.name) for shard in shards}:
            with suppress(ShardError):  # not ours
                LatentHeader.read(path)
                path.unlink()

    def encode(self, shard: Shard, bar: tqdm) -> list[str]:
        """Writes the latents of a shard and returns the keys of damaged clips."""
        path = self.shards / shard.name
        if not path.is_file() or file_sha256(path) != shard.sha256:
            raise ShardError(
                f"{path}: missing, or not what index.json says. Copy the shards again or prepare them again."
            )
        every = read_units(str(path), Tally(), cameras=sys.maxsize)
        clips = {clip.meta.key: clip for unit in every for clip in unit.clips}
        side = self.size // self.codec.factor
        shapes = {key: (clip.meta.frames, self.codec.channels, side, side) for key, clip in clips.items()}

        def encode(key: str) -> Iterator[np.ndarray]:
            for pictures in _pictures(clips[key], self.size):
                yield self.codec.encode(picture_to_float(pictures.to(self.device))).cpu().numpy()
                bar.update(len(pictures))

        return write_latents(latent_file(self.out, shard.name), self.header(shard), shapes, encode)


def make_latents(shards: Path, out: Path, codec: Codec, size: int | None, half: bool, device: torch.device) -> str:
    """Latents of all shards in the folder `shards`; returns a summary. Raises `ShardError` or `OSError`."""
    index = ShardIndex.load(shards)
    size = index.crop.size if size is None else size
    if not 0 < size <= index.crop.size or size % codec.factor:
        raise ShardError(
            f"--size {size}: need a multiple of {codec.factor} (codec {codec.name}) up to {index.crop.size}, "
            "the pixels of the crops"
        )
    encoder = _Encoder(shards, out, codec.to(device), size, half, device)
    out.mkdir(parents=True, exist_ok=True)
    left_out: list[str] = []
    with _held(out):
        remove_left(out, "*.safetensors*")
        todo = [shard for shard in index.shards if not encoder.is_done(shard)]
        with tqdm(total=sum(shard.frames for shard in todo), desc="encode", unit="frame", smoothing=0.0) as bar:
            for shard in todo:
                left_out += encoder.encode(shard, bar)
        encoder.remove_stale(index.shards)
    damaged = f", {len(left_out)} damaged clips left out, the first is {left_out[0]}" if left_out else ""
    return f"{out}: latents of {len(index.shards)} shards by {codec.name} at {size}², {len(todo)} made now{damaged}\n"


def _pictures(stored: StoredClip, size: int) -> Iterator[torch.Tensor]:
    """All frames as the loader yields them, uint8 (N, 3, H, W), some at a time."""
    try:
        clip = OpenClip(stored, size)
        frames = range(clip.meta.frames)
        for begin in frames[::_PICTURES]:
            yield torch.from_numpy(clip.frames(frames[begin : begin + _PICTURES])).movedim(-1, 1).contiguous()
    except DAMAGE as error:
        raise DamagedClipError(str(error)) from error


@contextmanager
def _held(out: Path) -> Iterator[None]:
    with open(out / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShardError(f"{out}: another run is writing there; wait for it or stop it") from None
        yield


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_prep.latents", description=__doc__.splitlines()[2])
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="folder with index.json")
    parser.add_argument("--codec", required=True, help="space-to-depth:N, a folder of diffusers, or a hub id")
    parser.add_argument("--size", type=int, help="pixels a side, as data.size of the training; default: the crop's")
    parser.add_argument("--out", type=Path, help=f"default: SHARDS/{FOLDER}")
    parser.add_argument("--half", action="store_true", help="float16: half of the disk, three digits of the latents")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    out = options.out or options.shards / FOLDER
    try:
        device = torch.device(options.device)
        codec = load_codec(options.codec)
        print(make_latents(options.shards, out, codec, options.size, options.half, device), end="")
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
