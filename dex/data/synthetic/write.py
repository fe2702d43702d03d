"""Synthetic talking heads as shards: the schema of `dex/data/shards.py`, every label exact."""

import hashlib
import io
import json
import multiprocessing
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dex.data.shards import ClipMeta, FrameLabels, ShardIndex, packed_clips, stage_clip, staged_clips, write_shards
from dex.data.synthetic.blendshapes import BLENDSHAPES
from dex.data.synthetic.head import make_head, parameters_hash
from dex.data.synthetic.landmarks import LANDMARK_GROUPS, landmarks
from dex.data.synthetic.motion import crop_contract, motion_track, view_of
from dex.data.synthetic.raster import sharpness
from dex.data.synthetic.render import render
from dex.data.synthetic.splits import SPLITS, identity_seed
from dex.data.synthetic.surface import Array
from dex.video import write_clip

FPS = 25
PRESET = "veryfast"  # x264's; "medium" costs twice the time of drawing and gains little on pictures this small


@dataclass(frozen=True)
class Plan:
    """What to write. `clips` takes, each seen by `views` cameras; identities are shared out in turn."""

    clips: int
    size: int = 128
    seed: int = 0
    seconds: float = 5.0
    identities: int = 0  # 0: one a take
    views: int = 1
    split: str = "train"

    def __post_init__(self) -> None:
        if self.size < 16 or self.size % 2:
            raise ValueError(f"size {self.size}: need an even number of pixels, at least 16 (H.264 yuv420p).")
        if min(self.clips, self.views) < 1 or self.identities < 0 or not 0 <= self.seed < 500:
            raise ValueError("need at least one clip and one view, identities ≥ 0, and a seed from 0 to 499.")
        if self.frames < 1:
            raise ValueError(f"seconds {self.seconds:g}: need at least one frame of 1/{FPS} s.")
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r}: need one of {', '.join(SPLITS)}.")

    @property
    def frames(self) -> int:
        return round(self.seconds * FPS)

    def head_seed(self, take: int) -> int:
        """Of the head that a take shows."""
        return identity_seed(self.split, self.seed * 1_000_000 + take % (self.identities or self.clips))

    def key(self, take: int, view: int) -> str:
        return f"synthetic-{self.split}-s{self.seed}-{take:06d}-c{view}"


def write_take(plan: Plan, folder: Path, take: int) -> int:
    """Draw and stage the clips of one take that are not there yet; returns the number of frames drawn."""
    head = make_head(plan.head_seed(take))
    rng = np.random.default_rng([plan.seed, list(SPLITS).index(plan.split), take])
    track, expression = motion_track(rng, plan.frames, FPS)
    poses = [track] + [view_of(rng, track) for _ in range(plan.views - 1)]
    drawn = 0
    for view, pose in enumerate(poses):
        key = plan.key(take, view)
        if (folder / f"{key}.json").is_file():
            continue
        image = render(head, expression, pose, plan.size).image
        video = io.BytesIO()
        write_clip(video, image, fps=FPS, preset=PRESET)
        meta = ClipMeta(
            key=key,
            identity=f"synthetic-{head.seed}",
            recording=f"synthetic-{plan.split}-s{plan.seed}-{take:06d}",
            camera=str(view),
            group=f"synthetic-{plan.split}-s{plan.seed}-{take:06d}",
            clip=0,
            source_file="dex.data.synthetic",
            source_sha256=parameters_hash(head),
            start=0.0,
            crop_box=[0.0, 0.0, float(plan.size), float(plan.size)],
            crop=crop_contract(plan.size),
            fps=float(FPS),
            frames=plan.frames,
            landmark_scheme="synthetic",
            blendshape_names=list(BLENDSHAPES),
            licence="procedural, Apache-2.0",
        )
        stage_clip(folder, meta, labels(image, landmarks(head, expression, pose), pose, expression), video.getvalue())
        drawn += plan.frames
    return drawn


def labels(image: Array, points: Array, pose: Array, expression: Array) -> FrameLabels:
    """Ground truth of T frames: image (T, S, S, 3), landmarks (T, L, 2), pose (T, 3, 4), expression (T, E)."""
    face = points[:, LANDMARK_GROUPS["face"]]
    box = np.concatenate([face.min(1), face.max(1)], 1)
    pixels = np.clip((box + 1) * image.shape[1] / 2, 0, image.shape[1]).astype(np.int32)
    return FrameLabels(points, pose, np.ones(len(pose), np.float32), expression, box, sharpness(image, pixels))


def write(plan: Plan, out: Path, workers: int = 1) -> ShardIndex:
    """Write a plan's shards and index.json into `out`. A killed run goes on where it stopped when started again.

    Raises:
        ValueError: `out` holds other shards already, or workers < 1.
    """
    if workers < 1:
        raise ValueError(f"workers {workers}: need at least 1.")
    digest = hashlib.sha256(json.dumps(asdict(plan)).encode()).hexdigest()[:12]
    folder = out / f".staging-{digest}"
    index = finished(plan, out) if (out / "index.json").is_file() else _drawn(plan, out, folder, workers)
    shutil.rmtree(folder, ignore_errors=True)  # also that of a run which was killed when its shards stood
    return index


def _drawn(plan: Plan, out: Path, folder: Path, workers: int) -> ShardIndex:
    """Draws and packs what a plan has, by way of loose clips in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = plan.clips * plan.views * plan.frames
    with tqdm(total=frames, unit="frame", smoothing=0.1, desc=str(out)) as bar:
        for take, drawn in enumerate(drawn_frames(plan, folder, workers)):
            bar.update(plan.views * plan.frames)
            bar.set_postfix(take=take + 1, drawn=drawn, refresh=False)
    return write_shards(staged_clips(folder), out, plan.split)


def drawn_frames(plan: Plan, folder: Path, workers: int) -> Iterator[int]:
    """Frames drawn for each take as takes get done."""
    if workers == 1:
        yield from (write_take(plan, folder, take) for take in range(plan.clips))
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(_Job(plan, folder), range(plan.clips))


@dataclass(frozen=True)
class _Job:
    plan: Plan
    folder: Path

    def __call__(self, take: int) -> int:
        return write_take(self.plan, self.folder, take)


def finished(plan: Plan, out: Path) -> ShardIndex:
    """The index in `out`, if it is what the plan would write; ValueError where it holds something else."""
    index = ShardIndex.load(out)
    takes = [(take, view) for take in range(plan.clips) for view in range(plan.views)]
    wanted = {(plan.key(take, view), f"synthetic-{plan.head_seed(take)}", plan.frames) for take, view in takes}
    metas = (clip.meta for clip in packed_clips(out))
    if index.crop != crop_contract(plan.size) or wanted != {(meta.key, meta.identity, meta.frames) for meta in metas}:
        raise ValueError(
            f"{out}: its {index.clips} clips are not those of {plan}. Choose another --out, or remove that folder."
        )
    return index
