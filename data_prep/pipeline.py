"""One source → staged clips, and a record of everything that was taken or not: the whole job of one worker.

probe → first pass: shots, faces, tracks → spans → smoothed squares → filters → second pass: crop, encode → stage
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped

from data_prep import filters, frames, histograms, shots
from data_prep.analyse import analyse
from data_prep.layouts import Source
from data_prep.segments import BRIDGE, Span, spans, window_of
from data_prep.settings import FPS, Settings
from dex import video
from dex.data.shards import ClipMeta, FrameLabels, stage_clip
from dex.faces import crop, pose_labels
from dex.faces.boxes import bounds, cut_square, larger_side
from dex.resample import Instant

if TYPE_CHECKING:  # loads MediaPipe
    from dex.faces.detect import FaceTracker

Progress = Callable[[float], None]  # share of the source that is done, 0 to 1

_ANALYSIS_SHARE = 0.7  # of the time that a source takes
_PRESET = "veryfast"  # 2.5 times the speed of "medium" for 0.5 dB (41.5 → 41.0 dB at the same bytes)
_CHUNK = 1000  # rows looked at together


@dataclass
class Record:
    """What became of one source: an entry of report.json."""

    file: str
    reason: str = ""  # why it gave no clip at all; "" where it gave some
    detail: str = ""
    note: str = ""  # what else is odd about the file
    seconds: float = 0.0  # that could be read
    width: int = 0
    height: int = 0
    fps: float = 0.0
    codec: str = ""
    sha256: str = ""
    clips: list[dict] = field(default_factory=list)  # key, start, seconds, frames
    rejected: list[dict] = field(default_factory=list)  # start, seconds, reason, detail
    histograms: histograms.Counts = field(default_factory=histograms.empty)


def process(source: Source, settings: Settings, tracker: FaceTracker, folder: Path, progress: Progress) -> Record:
    """Stages the clips of `source` in `folder`. Whatever is wrong with the file becomes a reason in the record.

    Raises `OSError` only where the disk under `folder` is full or fails.
    """
    record = Record(source.file)
    with _warnings() as notes:
        try:
            _process(source, settings, tracker, folder, progress, record)
        except (video.VideoError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
                raise
            record.reason = filters.UNREADABLE
            record.detail = _plain(error, source)
    record.note = "; ".join(notes)
    if not record.clips and not record.reason:
        record.reason, record.detail = _main_reason(record.rejected)
    return record


def _process(
    source: Source, settings: Settings, tracker: FaceTracker, folder: Path, progress: Progress, record: Record
) -> None:
    _check_readable(source.path)
    info = frames.describe(source)
    record.width, record.height, record.fps, record.codec = info.width, info.height, round(info.fps, 3), info.codec
    if 0 < info.fps < settings.min_fps:
        record.reason, record.detail = filters.SLOW, f"{info.fps:.2f} frames/s, need {settings.min_fps:g} (--min-fps)"
        return
    record.sha256 = frames.sha256(source)
    folder.mkdir(parents=True, exist_ok=True)
    total = max(info.duration * FPS, 1)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        rows, ended = analyse(
            frames.instants(source),
            tracker,
            Path(scratch) / "rows",
            lambda index: progress(min(1, index / total) * _ANALYSIS_SHARE),
        )
        record.seconds = len(rows) / FPS
        if ended:
            logging.getLogger(video.__name__).warning(ended)
        job = _Encoder(source, settings, tracker, info, record, folder, Path(scratch))
        job.run(rows, lambda row: progress(_ANALYSIS_SHARE + (1 - _ANALYSIS_SHARE) * row / max(1, len(rows))))


def _check_readable(path: Path) -> None:
    """Raises `OSError` in the system's own words, and `VideoError` for pipes and devices, which could block."""
    kind = path.stat().st_mode
    if stat.S_ISDIR(kind):
        os.listdir(path)
    elif stat.S_ISREG(kind):
        path.open("rb").close()
    else:
        raise video.VideoError("a pipe, socket or device, not a file")


@dataclass(frozen=True)
class _Encoder:
    """The second pass over a source: what the first found is cropped, encoded, checked and staged."""

    source: Source
    settings: Settings
    tracker: FaceTracker
    info: video.VideoInfo
    record: Record
    folder: Path
    scratch: Path

    def run(self, rows: Shaped[np.ndarray, "T"], progress: Progress) -> None:
        width, height = self.info.width, self.info.height
        chunks = [rows[at : at + _CHUNK] for at in range(0, len(rows), _CHUNK)]
        reasons = [filters.instant_reasons(chunk, width, height, self.settings) for chunk in chunks]
        cuts = shots.find_cuts(rows["thumbnail"])
        instants = frames.instants(self.source)
        if chunks:
            for span in spans(rows, np.concatenate(reasons), cuts, self.settings, self.source.multi_view):
                if refused := self._take(span, rows, instants):
                    self._reject(span, rows, *refused)
                progress(span.stop)

    def _take(
        self, span: Span, all_rows: Shaped[np.ndarray, "T"], instants: Iterator[Instant]
    ) -> tuple[str, str] | None:
        """Stages one clip, or says why not."""
        if span.reason:
            stretch = all_rows[span.start : min(span.stop, span.start + _CHUNK)]
            return span.reason, span.detail or filters.span_detail(span.reason, stretch, self.settings)
        width, height = self.info.width, self.info.height
        rows = _filled(all_rows, span)
        squares = crop.squares(rows["landmarks"], width, height, FPS)
        if refused := filters.clip_reason(rows, squares, width, height, self.settings):
            return refused
        path = self.scratch / "clip.mp4"
        pictures = _crops(instants, rows["index"], squares, self.settings.size)
        count = video.write_clip(path, pictures, fps=FPS, preset=_PRESET)
        data = path.read_bytes()
        if refused := _decoders_disagree(data, count, len(rows)):
            return refused
        start = int(rows["index"][0])
        sound = (
            video.extract_audio(self.source.path, start / FPS, (start + count) / FPS) if self.info.has_audio else None
        )
        meta = self._meta(start, count, squares)
        stage_clip(self.folder, meta, labels(rows, squares), data, sound)
        self._accept(meta, rows)
        return None

    def _meta(self, start: int, count: int, squares: Float[np.ndarray, "T 3"]) -> ClipMeta:
        number = window_of(start, self.settings) if self.source.multi_view else len(self.record.clips)
        name = (
            f"{self.source.recording}_{self.source.camera}" if self.source.multi_view else Path(self.source.file).stem
        )
        key = f"{_slug(name)}-{self.record.sha256[:8]}-{number:04d}"
        box = np.concatenate([squares[:, :2], squares[:, :2] + squares[:, 2:]], axis=-1).mean(0)
        return ClipMeta(
            key=key,
            identity=self.source.identity,
            recording=self.source.recording,
            camera=self.source.camera,
            group=f"{self.source.recording}#{number:04d}" if self.source.multi_view else key,
            clip=number,
            source_file=self.source.file,
            source_sha256=self.record.sha256,
            start=start / FPS,
            crop_box=np.round(box, 2).tolist(),
            crop=self.settings.contract,
            fps=float(FPS),
            frames=count,
            landmark_scheme="mediapipe_478",
            blendshape_names=self.tracker.blendshape_names,
            licence=self.settings.licence or self.source.licence,
        )

    def _accept(self, meta: ClipMeta, rows: Shaped[np.ndarray, "T"]) -> None:
        clip = {"key": meta.key, "start": meta.start, "seconds": meta.frames / FPS, "frames": meta.frames}
        self.record.clips.append(clip)
        yaw, pitch = pose_labels.yaw_pitch(rows["pose"])
        face = larger_side(bounds(rows["landmarks"]))
        seconds = np.array([meta.frames / FPS])
        found = histograms.count(yaw=yaw, pitch=pitch, face=face, seconds=seconds)
        self.record.histograms = histograms.add(self.record.histograms, found)

    def _reject(self, span: Span, rows: Shaped[np.ndarray, "T"], reason: str, detail: str) -> None:
        start = int(rows["index"][span.start]) / FPS
        self.record.rejected.append(
            {"start": start, "seconds": len(span) / FPS, "reason": reason, "detail": detail},
        )


def labels(rows: Shaped[np.ndarray, "T"], squares: Float[np.ndarray, "T 3"]) -> FrameLabels:
    """Pixels of the source → normalised coordinates of the crop."""
    scale = 2 / squares[:, 2]
    shift = -1 - squares[:, :2] * scale[:, None]
    landmarks = rows["landmarks"] * scale[:, None, None] + shift[:, None]
    pose = pose_labels.apply_affine(rows["pose"].astype(np.float64), scale, shift)
    return FrameLabels(
        landmarks=landmarks.astype(np.float32),
        pose=pose.astype(np.float32),
        pose_weight=pose_labels.confidence(pose, landmarks, rows["found"].astype(np.float64)),
        blendshapes=rows["blendshapes"],
        face_box=bounds(landmarks).astype(np.float32),
        quality=rows["sharpness"],
    )


def _filled(all_rows: Shaped[np.ndarray, "N"], span: Span) -> Shaped[np.ndarray, "T"]:
    """A copy of a span in which lapses of the detector are filled: landmarks between their neighbours, poses from the
    nearest. A neighbour may lie outside of the span, since long runs are cut into clips wherever they are long enough.
    """
    rows = np.array(all_rows[span.start : span.stop])
    first = max(0, span.start - BRIDGE)
    good = first + np.flatnonzero(all_rows["found"][first : span.stop + BRIDGE])
    for at in np.flatnonzero(~rows["found"]):
        place = np.searchsorted(good, span.start + at)
        before, after = all_rows[good[place - 1]], all_rows[good[place]]
        share = (span.start + at - good[place - 1]) / (good[place] - good[place - 1])
        for name in ("landmarks", "blendshapes", "sharpness"):
            rows[name][at] = (1 - share) * before[name] + share * after[name]
        rows["pose"][at] = (before if share < 0.5 else after)["pose"]
    return rows


def _crops(
    instants: Iterator[Instant], indices: Shaped[np.ndarray, "T"], squares: Float[np.ndarray, "T 3"], size: int
) -> Iterator[Shaped[np.ndarray, "size size 3"]]:
    """Takes the frames of one clip from the stream; the stream stays where the clip ends."""
    first, last = int(indices[0]), int(indices[-1])
    for instant in instants:
        if instant.index >= first:
            x, y, side = squares[instant.index - first]
            yield cut_square(instant.image, np.array([x, y]), float(side), size)
        if instant.index >= last:
            return


def _decoders_disagree(data: bytes, written: int, expected: int) -> tuple[str, str] | None:
    try:
        counts = (expected, written, len(video.ClipReader(data)), video.count_frames(data))
    except video.VideoError as error:
        return filters.DECODERS, str(error)
    if len(set(counts)) == 1:
        return None
    return filters.DECODERS, "{} frames wanted, {} written, decord counts {}, PyAV {}".format(*counts)


def _main_reason(rejected: list[dict]) -> tuple[str, str]:
    """The reason that cost most time."""
    if not rejected:
        return filters.UNREADABLE, "no frame can be decoded"
    seconds: dict[str, float] = {}
    for span in rejected:
        seconds[span["reason"]] = seconds.get(span["reason"], 0.0) + span["seconds"]
    reason = max(seconds, key=lambda name: seconds[name])
    longest = max((span for span in rejected if span["reason"] == reason), key=lambda span: span["seconds"])
    return reason, longest["detail"]


def _plain(error: Exception, source: Source) -> str:
    """An error's words without the path and the number that libav puts in."""
    text = getattr(error, "strerror", None) or str(error)
    return re.sub(r"\[Errno -?\d+\] ", "", text).replace(f": '{source.path}'", "")


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:60] or "clip"


class _warnings:  # noqa: N801, used like contextlib.suppress
    """Collects what dex.video warns about."""

    def __enter__(self) -> list[str]:
        self._handler, messages = logging.Handler(logging.WARNING), []
        self._handler.emit = lambda entry: messages.append(entry.getMessage())
        logging.getLogger(video.__name__).addHandler(self._handler)
        return messages

    def __exit__(self, *error: object) -> None:
        logging.getLogger(video.__name__).removeHandler(self._handler)
