"""Small shards whose pictures say which clip and frame they are."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dex.data.shards import ClipMeta, CropContract, FrameLabels, ShardIndex, stage_clip, staged_clips, write_shards
from dex.video import write_clip

LANDMARKS = 478


def frame_level(frame: int) -> int:
    """Grey level of the left half of frame `frame`: 64 frames can be told apart."""
    return 16 + 3 * frame


def clip_level(number: int, camera: int) -> int:
    """Grey level of the right half of a clip's frames."""
    return 20 + 20 * (number % 8) + 8 * camera


def pictures(number: int, camera: int, frames: int, size: int) -> Iterator[np.ndarray]:
    for frame in range(frames):
        image = np.full((size, size, 3), clip_level(number, camera), np.uint8)
        image[:, : size // 2] = frame_level(frame)
        yield image


def labels(frames: int) -> FrameLabels:
    """Landmarks on a circle of radius 0.5; the pose of frame i has t_x = i / 100; the last frame has no label."""
    angle = np.linspace(0, 2 * np.pi, LANDMARKS, endpoint=False)
    circle = 0.5 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    pose = np.tile(np.eye(3, 4), (frames, 1, 1))
    pose[:, 0, 3] = np.arange(frames) / 100
    pose[-1] = np.nan
    weight = np.ones(frames)
    weight[-1] = 0
    return FrameLabels(
        landmarks=np.tile(circle, (frames, 1, 1)),
        pose=pose,
        pose_weight=weight,
        blendshapes=np.zeros((frames, 0)),
        face_box=np.tile([-0.5, -0.5, 0.5, 0.5], (frames, 1)),
        quality=np.ones(frames),
    )


def meta(key: str, identity: str, camera: int, group: str, frames: int, size: int) -> ClipMeta:
    return ClipMeta(
        key=key,
        identity=identity,
        recording=group,
        camera=str(camera),
        group=group,
        clip=0,
        source_file=f"{key}.mp4",
        source_sha256="0" * 64,
        start=0.0,
        crop_box=[0, 0, size, size],
        crop=CropContract("test.v1", size, 1.5, 0.0),
        fps=25.0,
        frames=frames,
        landmark_scheme="mediapipe_478",
    )


def make_shards(
    out: Path, clips: int = 12, cameras: int = 1, frames: int = 40, size: int = 32, clips_per_shard: int = 4
) -> ShardIndex:
    """`clips` recordings of as many identities, each seen by `cameras`, in shards of about `clips_per_shard` files."""
    staging = out.parent / f"{out.name}-staging"
    for number in range(clips):
        for camera in range(cameras):
            video = staging / "clip.mp4"
            staging.mkdir(parents=True, exist_ok=True)
            write_clip(video, pictures(number, camera, frames, size), preset="ultrafast")
            key = f"id{number:02d}-cam{camera}"
            described = meta(key, f"id{number:02d}", camera, f"group{number:02d}", frames, size)
            stage_clip(staging, described, labels(frames), video.read_bytes())
            video.unlink()
    one = max(path.stat().st_size for path in staging.glob("*.npz")) + max(
        path.stat().st_size for path in staging.glob("*.mp4")
    )
    return write_shards(staged_clips(staging), out, shard_bytes=one * clips_per_shard)
