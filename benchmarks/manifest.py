"""Protocols as files: which frames of which clips are source, pose driver and expression driver of every pair.

A manifest is JSON lines: a header, one line a clip (with its hash), one line a pair. Whoever holds the same clips
scores the same frames.

    self           first frame of a clip → the following frames; the first is not scored
    cross          source of one identity, pose and expression from a clip of another
    disentangled   tuples (s, a, b) of three identities and three pairs each: pose and expression of a; pose of b with
                   the expression of a; pose of a with the expression of b. The influence matrix needs all three.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

SCHEMA = 1
TASKS = ("self", "cross", "disentangled")
FOLDER = Path(__file__).parent / "protocols"

Edit = Literal["none", "pose", "expression"]


class ManifestError(ValueError):
    """A manifest that cannot be used; the message names the file and the remedy."""


@dataclass(frozen=True)
class Clip:
    key: str
    identity: str
    sha256: str  # of the mp4; of a synthetic clip, of the parameters that it is drawn from


@dataclass(frozen=True)
class Span:
    """Frames of a clip: `start`, `start` + `stride`, … (`count` of them)."""

    clip: str
    start: int
    count: int
    stride: int = 1

    @property
    def frames(self) -> range:
        return range(self.start, self.start + self.count * self.stride, self.stride)


@dataclass(frozen=True)
class Pair:
    """One video to be made: as many frames as its drivers have."""

    id: str
    source: Span  # one frame
    pose: Span
    expression: Span
    tuple: str = ""  # disentangled: pairs of one name have the same source, a and b
    edit: Edit = "none"  # what of b it takes


@dataclass(frozen=True)
class Manifest:
    task: str
    name: str
    kind: str  # "synthetic" or "shards": where the clips come from
    size: int  # pixels a side of source, drivers and output
    fps: float
    seed: int
    clips: tuple[Clip, ...]
    pairs: tuple[Pair, ...]

    def __post_init__(self) -> None:
        """Raises `ManifestError` for what no maker writes."""
        if self.task not in TASKS or self.kind not in ("synthetic", "shards"):
            raise ManifestError(f"task {self.task!r} of {self.kind!r}: need one of {', '.join(TASKS)}")
        keys = {clip.key for clip in self.clips}
        if missing := sorted({s.clip for p in self.pairs for s in (p.source, p.pose, p.expression)} - keys):
            raise ManifestError(f"pairs name clips that the manifest lacks: {', '.join(missing[:5])}")
        ids = [pair.id for pair in self.pairs]
        if len(set(ids)) < len(ids) or not ids:
            raise ManifestError(f"{len(ids)} pairs with {len(set(ids))} different ids")
        for pair in self.pairs:
            if Path(pair.id).name != pair.id or pair.pose.count != pair.expression.count or pair.source.count != 1:
                raise ManifestError(
                    f"pair {pair.id!r}: ids name files, and both drivers have the same number of frames"
                )
        if self.task == "disentangled":
            edits: dict[str, list[str]] = defaultdict(list)
            for pair in self.pairs:
                edits[pair.tuple].append(pair.edit)
            for name, found in edits.items():
                if found != ["none", "pose", "expression"]:
                    raise ManifestError(
                        f"tuple {name!r} has the edits {', '.join(found)}: need none, pose, expression, in this order"
                    )

    @property
    def identity(self) -> dict[str, str]:
        """Of each clip."""
        return {clip.key: clip.identity for clip in self.clips}

    def save(self, path: Path) -> None:
        header = {"schema": SCHEMA, **{k: v for k, v in vars(self).items() if k not in ("clips", "pairs")}}
        lines = [header, *({"clip": asdict(c)} for c in self.clips), *({"pair": asdict(p)} for p in self.pairs)]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Raises `ManifestError`."""
        try:
            header, *lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
            if header.pop("schema") != SCHEMA:
                raise ManifestError(f"{path}: another schema, this program reads {SCHEMA}. Make the manifest again")
            clips = tuple(Clip(**line["clip"]) for line in lines if "clip" in line)
            pairs = tuple(_pair(line["pair"]) for line in lines if "pair" in line)
            return cls(**header, clips=clips, pairs=pairs)
        except ManifestError as error:
            raise ManifestError(f"{path}: {error}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ManifestError(f"{path}: cannot be read: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ManifestError(
                f"{path}: no manifest ({error!r}). Make one with `python -m benchmarks make`"
            ) from error


def _pair(line: dict[str, Any]) -> Pair:
    return Pair(**line | {name: Span(**line[name]) for name in ("source", "pose", "expression")})


def find(protocol: str) -> Path:
    """`protocol`: a file, or the name of a shipped one such as "synthetic-v1-self". Raises `ManifestError`."""
    path = Path(protocol)
    if path.suffix == ".jsonl":
        return path
    shipped = FOLDER / f"{protocol}.jsonl"
    if not shipped.is_file():
        names = ", ".join(sorted(p.stem for p in FOLDER.glob("*.jsonl")))
        raise ManifestError(f"{protocol}: no such protocol. There are: {names}; or give a .jsonl file")
    return shipped


def sha256_of(values: Iterable[Any]) -> str:
    """Of plain values, whatever order their dictionaries are in."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
