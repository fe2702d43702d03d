"""From a stored clip to training samples: which frames are taken, and how they become tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch.utils.data import default_collate

from dex.batch import BACKGROUND, Batch, blendshape_row
from dex.data.latents import ClipLatents
from dex.data.regions import region_maps
from dex.data.shards import ClipMeta, FrameLabels, ShardError, StoredClip
from dex.video import ClipReader, VideoError

# What a damaged clip can raise while it is opened and read; anything else is a fault of this program.
DAMAGE = (VideoError, ShardError, KeyError, ValueError, OSError)

# Background motion is measured on about this many pixels a side, outside the head grown by this many of them.
_MOTION_SIDE = 32
_HEAD_MARGIN = 3
_MIN_BACKGROUND = 0.02  # share of the picture; less is no measurement


class UnusableError(Exception):
    """A whole clip that cannot give a sample of the kind asked for; it is passed over and counted as dropped."""


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn (the arguments of `TalkingHeads` that reach the workers)."""

    mode: str  # "pairs" or "clip"
    size: int  # pixels a side
    drivers: int  # K of a pairs sample
    clip_length: int  # T of a clip sample
    cross_view: bool
    max_background_motion: float | None  # mean |difference| of neighbouring frames in 8-bit levels


class OpenClip:
    """A clip ready to read: meta, labels and decoder. Raises one of `DAMAGE` where its files are damaged."""

    def __init__(self, stored: StoredClip, size: int, latents: ClipLatents | None = None) -> None:
        if missing := {"npz", "mp4"} - set(stored.members):
            raise ShardError(f"no {' and no '.join(sorted(missing))} beside its json")
        self.meta: ClipMeta = stored.meta
        self.labels = FrameLabels.from_npz(stored.members["npz"]())
        if len(self.labels) != self.meta.frames:
            raise ShardError(f"{len(self.labels)} rows of labels for {self.meta.frames} frames")
        # An unknown pose is the identity with weight 0, never NaN.
        known = np.isfinite(self.labels.pose).all(axis=(1, 2)) & (self.labels.pose_weight > 0)
        self.pose = np.where(known[:, None, None], self.labels.pose, np.eye(3, 4)).astype(np.float32)
        self.pose_weight = np.where(known, self.labels.pose_weight, 0).astype(np.float32)
        self.blendshapes = blendshape_row(self.meta.blendshape_names, self.labels.blendshapes)
        self.size, self.cached = size, latents
        self._reader = ClipReader(
            stored.members["mp4"](), self.meta.frames, None if size == self.meta.crop.size else size
        )

    def frames(self, indices: Sequence[int]) -> Shaped[np.ndarray, "N H W 3"]:
        return self._reader.get(indices)

    def latents(self, indices: Sequence[int]) -> Float[np.ndarray, "N c h w"] | None:
        """None where there is no cache."""
        return self.cached.frames(indices) if self.cached else None

    def regions(self, indices: Sequence[int]) -> Shaped[np.ndarray, "N H W"]:
        return region_maps(self.labels.landmarks[list(indices)], self.meta.landmark_scheme, self.size)


def draw_samples(group: list[OpenClip], how: Sampling, count: int, rng: np.random.Generator) -> list[Batch]:
    """Up to `count` samples from clips that show the same instants through several cameras (or one).

    Samples are Batches whose tensors lack the leading dimension, and whose pictures still are (…, H, W, 3) as decoded:
    `join` puts the channels first. Mode "clip" shows the first camera. Raises `UnusableError` where there are none.
    """
    if how.mode == "pairs":
        return _draw_pairs(group, how, count, rng)
    return _draw_clips(group[0], how, count, rng)


# ---- pairs: one source, K drivers ------------------------------------------------------------------------------------


def _draw_pairs(group: list[OpenClip], how: Sampling, count: int, rng: np.random.Generator) -> list[Batch]:
    shots = [_choose_pair(group, how, rng) for _ in range(count)]
    pictures = _read(group, [shot for drawn in shots for part in drawn for shot in part])
    samples = []
    for (source,), driving, views in shots:
        samples.append(
            _sample(
                key=f"{_name(group, [source])}|{_name(group, driving)}",
                pictures=[np.stack([pictures[shot] for shot in part]) for part in ([source], driving, views)],
                labels=[_labels(group, part) for part in ([source], driving)],
                view_poses=_poses(group, views),
                same_view=views is driving,
                latents=[_latents(group, part) for part in ([source], driving)],
            )
        )
    return samples


Shot = tuple[int, int]  # (camera, frame)


def _choose_pair(
    group: list[OpenClip], how: Sampling, rng: np.random.Generator
) -> tuple[list[Shot], list[Shot], list[Shot]]:
    """One source, K drivers, and the K views that their expression is read from.

    Frames differ while the clip has enough of them; each is seen by a camera of its own draw.
    """
    frames = min(clip.meta.frames for clip in group)
    if frames < 2:
        raise UnusableError(f"{frames} frame, a pair needs 2")
    instants = rng.choice(frames, 1 + how.drivers, replace=frames < 1 + how.drivers)
    cameras = rng.integers(len(group), size=1 + how.drivers)
    source, *driving = [(int(camera), int(frame)) for camera, frame in zip(cameras, instants, strict=True)]
    if not how.cross_view or len(group) == 1:
        return [source], driving, driving
    others = rng.integers(1, len(group), size=how.drivers)  # a step of 1 … C-1 never leads back to the same camera
    views = [((camera + int(step)) % len(group), frame) for (camera, frame), step in zip(driving, others, strict=True)]
    return [source], driving, views


def _read(group: list[OpenClip], shots: list[Shot]) -> dict[Shot, Shaped[np.ndarray, "H W 3"]]:
    """Every shot once, one call of the decoder a camera."""
    pictures: dict[Shot, np.ndarray] = {}
    for camera, clip in enumerate(group):
        if indices := sorted({frame for c, frame in shots if c == camera}):
            pictures.update(zip(((camera, i) for i in indices), clip.frames(indices), strict=True))
    return pictures


def _name(group: list[OpenClip], shots: list[Shot]) -> str:
    return "+".join(f"{group[camera].meta.key}@{frame}" for camera, frame in shots)


def _labels(group: list[OpenClip], shots: Sequence[Shot]) -> tuple[np.ndarray, ...]:
    """Pose, its weight, region map and blendshapes of each shot."""
    if len({camera for camera, _ in shots}) == 1:
        clip, frames = group[shots[0][0]], [frame for _, frame in shots]
        return clip.pose[frames], clip.pose_weight[frames], clip.regions(frames), clip.blendshapes[frames]
    parts = [_labels(group, [shot]) for shot in shots]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def _poses(group: list[OpenClip], shots: Sequence[Shot]) -> tuple[np.ndarray, np.ndarray]:
    """Pose and its weight of each shot."""
    pose = np.stack([group[camera].pose[frame] for camera, frame in shots])
    return pose, np.stack([group[camera].pose_weight[frame] for camera, frame in shots])


def _latents(group: list[OpenClip], shots: Sequence[Shot]) -> Float[np.ndarray, "N c h w"] | None:
    """Of each shot, where there is a cache."""
    if len({camera for camera, _ in shots}) == 1:
        return group[shots[0][0]].latents([frame for _, frame in shots])
    parts = [part for camera, frame in shots if (part := group[camera].latents([frame])) is not None]
    return np.concatenate(parts) if parts else None


# ---- clip: one source, T consecutive frames --------------------------------------------------------------------------


def _draw_clips(clip: OpenClip, how: Sampling, count: int, rng: np.random.Generator) -> list[Batch]:
    length, total = how.clip_length, clip.meta.frames
    if total < length + 1:
        raise UnusableError(
            f"{total} frames, need {length + 1}. Lower data.clip_length or prepare with --min-seconds "
            f"{(length + 1) / clip.meta.fps:g}"
        )
    samples, motion = [], 0.0
    for _ in range(count):
        begin = int(rng.integers(total - length + 1))
        source = int(rng.integers(total - length))  # among the frames outside the window
        source += length if source >= begin else 0
        window = range(begin, begin + length)
        pictures = clip.frames(sorted([source, *window]))
        shown, rest = (pictures[:1], pictures[1:]) if source < begin else (pictures[-1:], pictures[:-1])
        labels = [_labels([clip], [(0, i) for i in part]) for part in ([source], window)]
        if how.max_background_motion is not None:
            motion = background_motion(rest, labels[1][2])
            if motion > how.max_background_motion:
                continue
        samples.append(
            _sample(
                key=f"{clip.meta.key}@{source}|{clip.meta.key}@{begin}-{begin + length - 1}",
                pictures=[shown, rest, rest],
                labels=labels,
                view_poses=labels[1][:2],
                same_view=True,
                latents=[_latents([clip], [(0, i) for i in part]) for part in ([source], window)],
            )
        )
    if not samples:
        raise UnusableError(f"background motion {motion:.1f}, at most {how.max_background_motion:g} is allowed")
    return samples


def background_motion(frames: Shaped[np.ndarray, "T H W 3"], regions: Shaped[np.ndarray, "T H W"]) -> float:
    """Mean |difference| of neighbouring frames in 8-bit levels (green) over the background above the chin.

    Shoulders move with the speaker, hence only what lies above the lowest point of the head counts. 0 where the
    background is too small to tell.
    """
    step = max(1, frames.shape[1] // _MOTION_SIDE)
    green = frames[:, ::step, ::step, 1].astype(np.int16)  # a third of the work, and most of the brightness
    head = (regions[:, ::step, ::step] != BACKGROUND).any(axis=0)
    rows = np.flatnonzero(head.any(axis=1))
    grown = F.max_pool2d(torch.from_numpy(head)[None].float(), 2 * _HEAD_MARGIN + 1, stride=1, padding=_HEAD_MARGIN)
    background = grown[0].numpy() == 0
    background[rows[-1] + 1 if len(rows) else len(background) :] = False
    if background.mean() < _MIN_BACKGROUND or len(green) < 2:
        return 0.0
    return float(np.abs(np.diff(green, axis=0)).mean(axis=0)[background].mean())


# ---- tensors ---------------------------------------------------------------------------------------------------------


def join(samples: list[Batch]) -> Batch:
    """The Batch of `samples`. Channels come first in shape only: memory stays as decoded, since moving bytes around
    costs a loader process nearly as much as decoding."""
    shared = all(sample.expression_view is sample.driving for sample in samples)
    fields = {
        # in a loader process it writes straight into the memory that the main process will see
        name: default_collate([getattr(sample, name) for sample in samples])
        for name, value in vars(samples[0]).items()
        if isinstance(value, torch.Tensor) and not (shared and name == "expression_view")
    }
    for name in ("source", "driving", "expression_view"):
        fields[name] = fields[name].movedim(-1, -3) if name in fields else fields["driving"]
    return Batch(key=[key for sample in samples for key in sample.key], **fields)


def _sample(
    key: str,
    pictures: list[np.ndarray],
    labels: Sequence[tuple[np.ndarray, ...]],
    view_poses: Sequence[np.ndarray],
    same_view: bool,
    latents: Sequence[np.ndarray | None],
) -> Batch:
    """A sample from [source, driving, views] pictures, [source, driving] labels and latents, and the views' poses
    with their weight."""
    source, driving, views = (torch.from_numpy(part) for part in pictures)
    (source_pose, source_weight, source_region, _), (pose, weight, region, blendshapes) = labels
    view_pose, view_weight = view_poses
    source_latent, latent = (None if part is None else torch.from_numpy(part) for part in latents)
    return Batch(
        key=[key],
        source=source[0],
        driving=driving,
        expression_view=driving if same_view else views,
        view_pose=torch.from_numpy(view_pose),
        view_pose_weight=torch.from_numpy(view_weight),
        source_pose=torch.from_numpy(source_pose)[0],
        driving_pose=torch.from_numpy(pose),
        source_pose_weight=torch.from_numpy(source_weight)[0],
        driving_pose_weight=torch.from_numpy(weight),
        driving_blendshapes=torch.from_numpy(blendshapes),
        driving_region=torch.from_numpy(region),
        source_region=torch.from_numpy(source_region)[0],
        source_latent=None if source_latent is None else source_latent[0],
        driving_latent=latent,
    )
