"""Video and audio files: the only module that knows a codec.

Clips that this program wrote are read with decord (`ClipReader`: fast random access). Files from the wild are read
with PyAV (`probe`, `iter_frames`, `extract_audio`): decord miscounts or refuses files with edit lists. All pictures
are uint8 RGB arrays of shape (H, W, 3). Times are seconds on the video's own line: 0 is the first decoded video frame.
"""

from __future__ import annotations

import io
import logging
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

# Before decord, which loads every library of CUDA: one is NVBLAS, and it would take over the matrix products of a torch
# that comes later, and crash.
import torch  # isort: skip

import av
import decord
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from jaxtyping import Shaped

from dex.files import replacing

log = logging.getLogger(__name__)
decord.logging.set_level(decord.logging.QUIET)

AUDIO_RATE = 16_000  # samples a second of extracted audio
# A wild file may lose its tail. Below this share of its declared length it is called truncated.
READABLE_SHARE = 0.5
# Audio timestamps jitter by less than this; a larger step is a gap in the recording and is kept.
_AUDIO_GAP = 0.04
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_ROTATION_UNIT = 1 << 16  # display matrices are 16.16 fixed point


class VideoError(ValueError):
    """A file that cannot be read as asked; the message is one line and says why."""


@dataclass(frozen=True)
class VideoInfo:
    """What `probe` finds out about a file."""

    width: int  # pixels as shown: after rotation and with square pixels
    height: int
    duration: float  # seconds of the video stream as the container declares it; 0 where it does not
    fps: float  # average frames a second; 0 where unknown
    has_audio: bool
    start: float  # container time of the first decoded video frame in seconds; audio may start earlier
    codec: str


# ---- clips that we write ---------------------------------------------------------------------------------------------


def write_clip(
    target: str | Path | IO[bytes],
    frames: Iterable[Shaped[np.ndarray, "H W 3"]],
    *,
    fps: int | Fraction = 25,
    gop: int = 12,
    crf: float = 18,
    preset: str = "medium",
) -> int:
    """Encodes uint8 RGB `frames` as they come and returns their number; everything else as in `clip_writer`."""
    if not isinstance(target, str | Path):  # the index can only be moved to the front of a real file
        with tempfile.TemporaryDirectory() as folder:
            count = write_clip(Path(folder) / "clip.mp4", frames, fps=fps, gop=gop, crf=crf, preset=preset)
            with open(Path(folder) / "clip.mp4", "rb") as file:
                shutil.copyfileobj(file, target)
        return count
    count = 0
    with clip_writer(target, fps=fps, gop=gop, crf=crf, preset=preset) as add:
        for image in frames:
            add(image)
            count += 1
    return count


@contextmanager
def clip_writer(
    path: str | Path,
    *,
    fps: int | Fraction = 25,
    gop: int = 12,
    crf: float = 18,
    preset: str = "medium",
    sound: str | Path | None = None,
) -> Iterator[Callable[[Shaped[np.ndarray, "H W 3"]], None]]:
    """In the `with` block, a function that encodes the next uint8 RGB frame. `path` appears when the block is left
    without an exception; else nothing is left behind.

    H.264 yuv420p in mp4, bt709 limited range, constant `fps`, a key frame every `gop` frames and no B-frames, so that
    any frame is reached by decoding at most `gop` frames and every decoder counts alike. The index stands in front
    (faststart). One encoder thread: the same frames give the same bytes.
    `sound`: a file whose sound, from its first video frame on, is kept as AAC, cut to the length of the frames; it is
    read as the frames are written. A file without sound gives none.

    Raises `VideoError` for no frames, odd sizes, frames of different sizes, or a `sound` that is no video.
    """
    path = Path(path)
    options = {"crf": str(crf), "preset": preset, "threads": "1"}
    options["x264-params"] = f"keyint={gop}:min-keyint={gop}:scenecut=0:open-gop=0:bframes=0"
    with (
        replacing(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        encoder = _Encoder(container, Fraction(fps), options, sound)
        yield encoder.add
        encoder.finish()


class _Encoder:
    """Frames, and the sound that goes with them, into an open container."""

    def __init__(
        self,
        container: av.container.OutputContainer,
        fps: Fraction,
        options: dict[str, str],
        sound: str | Path | None,
    ) -> None:
        self._container, self._fps, self._options, self._sound_file = container, fps, options, sound
        self._stream: av.VideoStream | None = None
        self._shape: tuple[int, ...] = ()
        self._sound: _SoundTrack | None = None
        self._count = 0

    def add(self, image: Shaped[np.ndarray, "H W 3"]) -> None:
        if self._stream is None:
            self._shape = image.shape
            self._stream = _add_h264(self._container, self._shape, self._fps, self._options)
            if self._sound_file is not None and probe(self._sound_file).has_audio:
                self._sound = _SoundTrack(self._container, self._sound_file)
        if image.shape != self._shape or image.dtype != np.uint8:
            raise VideoError(f"frame {self._count}: {image.dtype} {image.shape}, need uint8 {self._shape} as the first")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
        )
        frame.pts, frame.time_base = self._count, 1 / self._fps
        self._container.mux(self._stream.encode(frame))
        self._count += 1
        if self._sound is not None:
            self._sound.write_until(float(self._count / self._fps))

    def finish(self) -> None:
        if self._stream is None:
            raise VideoError("no frames to write: a clip needs at least one")
        self._container.mux(self._stream.encode(None))
        if self._sound is not None:
            self._sound.finish()


class _SoundTrack:
    """The sound of a file as an AAC stream of a container, on the clock of the file's first video frame."""

    def __init__(self, container: av.container.OutputContainer, source: str | Path) -> None:
        with _open_video(source) as (original, _):
            given = original.streams.audio[0]
            self._rate = given.rate if given.rate in _AAC_RATES else 48_000
            layout = "mono" if given.channels == 1 else "stereo"
        self._container = container
        self._stream = container.add_stream("aac", rate=self._rate, layout=layout)
        self._layout = layout
        self._samples = _sound_of(source, self._rate, layout)
        self._pending = np.zeros((0, 0), np.float32)
        self._written = 0

    def write_until(self, seconds: float) -> None:
        """Encodes what is still missing of the first `seconds`; less where the recording ends before."""
        wanted = round(seconds * self._rate) - self._written
        while wanted > 0:
            if self._pending.size == 0:
                run = next(self._samples, None)
                if run is None:
                    return
                self._pending = run
            part, self._pending = self._pending[:, :wanted], self._pending[:, wanted:]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format="fltp", layout=self._layout)
            frame.rate, frame.pts, frame.time_base = self._rate, self._written, Fraction(1, self._rate)
            self._container.mux(self._stream.encode(frame))
            self._written += part.shape[1]
            wanted -= part.shape[1]

    def finish(self) -> None:
        self._samples.close()
        self._container.mux(self._stream.encode(None))


def _add_h264(
    container: av.container.OutputContainer, shape: tuple[int, ...], fps: Fraction, options: dict[str, str]
) -> av.VideoStream:
    if len(shape) != 3 or shape[2] != 3 or shape[0] % 2 or shape[1] % 2:
        raise VideoError(f"frames of shape {shape}: need (H, W, 3) with even H and W")
    # x264's macroblock tree reads past rows that are no multiple of 8 macroblocks: what lies there in memory then
    # decides about bits, and the same frames give other bytes from run to run.
    if -(-shape[1] // 16) % 8:
        options = options | {"x264-params": f"{options['x264-params']}:mbtree=0"}
    stream = container.add_stream("libx264", rate=fps, options=options)
    stream.height, stream.width = shape[:2]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = 1 / fps
    stream.codec_context.color_range = ColorRange.MPEG
    stream.codec_context.colorspace = Colorspace.ITU709
    stream.codec_context.color_primaries = ColorPrimaries.BT709
    stream.codec_context.color_trc = ColorTrc.BT709
    return stream


class ClipReader:
    """Random access to a clip written by `write_clip`. Open it in the process that reads; it does not travel.

    `frames` is the count in the clip's meta. A container that reports another one, or that lacks its tail, is refused
    at once, because decord can spin for ever on frames that are not there. `size` scales to size×size while decoding
    (antialiased), which is cheaper than scaling pictures afterwards.
    """

    def __init__(self, source: bytes | str | Path, frames: int | None = None, size: int | None = None) -> None:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        _check_boxes(data)
        side = -1 if size is None else size
        try:
            self._reader = decord.VideoReader(io.BytesIO(data), num_threads=1, width=side, height=side)
        except (decord.DECORDError, RuntimeError, AssertionError) as error:
            raise VideoError("cannot be opened: no H.264 mp4, or damaged") from error
        if frames is not None and len(self._reader) != frames:
            raise VideoError(f"holds {len(self._reader)} frames, its meta says {frames}")
        self._padded = False

    def __len__(self) -> int:
        return len(self._reader)

    def get(self, indices: Sequence[int]) -> Shaped[np.ndarray, "N H W 3"]:
        """uint8 RGB frames at `indices` (any order, repeats allowed). Raises `VideoError` where one is not there."""
        wanted, places = np.unique(np.asarray(indices), return_inverse=True)  # in rising order: decord seeks less
        try:
            frames = self._one_by_one(wanted) if self._padded else _numpy(self._reader.get_batch(wanted))
        except (decord.DECORDError, IndexError) as error:
            if not self._padded and "size must exactly match" in str(error):
                self._padded = True
                return self.get(indices)
            raise VideoError(f"frames {wanted[0]}…{wanted[-1]} of {len(self)} do not decode") from error
        return frames if len(places) == len(wanted) and (places[:-1] < places[1:]).all() else frames[places]

    def _one_by_one(self, indices: Iterable[int]) -> Shaped[np.ndarray, "N H W 3"]:
        """For widths like 96, whose rows decord pads to a multiple of the width: it then takes the padding for
        channels, returns (H, W, 4 or more), and `get_batch` fails."""
        rows = [self._reader[int(i)].asnumpy() for i in indices]
        height, width = rows[0].shape[:2]
        return np.stack([row.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3) for row in rows])


def _numpy(frames: decord.nd.NDArray) -> Shaped[np.ndarray, "N H W 3"]:
    """The same memory: decord's own `asnumpy` copies, which costs a tenth of decoding."""
    return torch.from_dlpack(frames.to_dlpack()).numpy()


def _check_boxes(data: bytes) -> None:
    """mp4 is a chain of boxes (4 bytes of length, 4 of name): they must fill the file exactly."""
    position = 0
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if length == 1:  # the long form, for boxes over 4 GiB
            length = int.from_bytes(data[position + 8 : position + 16], "big")
        if length < 8:
            break
        position += length
    if position != len(data) or not data:
        raise VideoError(f"damaged or truncated mp4: its boxes need {position} bytes, it has {len(data)}")


# ---- files from the wild ---------------------------------------------------------------------------------------------


def probe(path: str | Path) -> VideoInfo:
    """What the file holds. The first frame is decoded, so that a file that passes has at least one.

    Raises `VideoError` for files that are no video: missing, empty, unreadable, pictures, audio only, no frame.
    """
    with _open_video(path) as (container, stream):
        first = next(_decode(container, stream), None)
        if first is None:
            raise VideoError("no frame can be decoded")
        height, width = _picture(first, stream).shape[:2]
        return VideoInfo(
            width=width,
            height=height,
            duration=_seconds(stream) or max(0.0, (container.duration or 0) / av.time_base),
            fps=float(stream.average_rate or stream.guessed_rate or 0),
            has_audio=bool(container.streams.audio),
            start=first.time or 0.0,
            codec=stream.codec_context.name,
        )


def iter_frames(path: str | Path) -> Iterator[tuple[float, Shaped[np.ndarray, "H W 3"]]]:
    """(seconds since the first frame, uint8 RGB) of every frame that is shown, in order of showing.

    Edit lists, rotation and mirroring in the metadata and non-square pixels are applied. Times rise strictly; a frame
    without a timestamp gets the average step. Damaged packets are passed over. When the file ends, or cannot be read
    further, before `READABLE_SHARE` of its declared length, `VideoError` is raised after the good frames; a smaller
    loss is logged.
    """
    with _open_video(path) as (container, stream):
        step = 1 / float(stream.average_rate or stream.guessed_rate or 25)
        declared = _seconds(stream)
        origin, last = None, -step
        for frame in _decode(container, stream):
            origin = frame.time if origin is None else origin
            time = last + step if frame.time is None or origin is None else frame.time - origin
            if last >= 0 and time <= last:
                continue  # two frames at one instant: the first was shown
            last = time
            yield time, _picture(frame, stream)
    read = last + step
    if declared - read > max(2 * step, 0.1):
        message = f"truncated or damaged: {read:.2f} s of {declared:.2f} s can be read"
        if read < READABLE_SHARE * declared:
            raise VideoError(message)
        log.warning("%s: %s", Path(path).name, message)


def count_frames(source: bytes | str | Path) -> int:
    """Frames that PyAV decodes: a second opinion beside decord's count. Raises `VideoError` for no video."""
    with _open_video(source) as (container, stream):
        return sum(1 for _ in _decode(container, stream))


def extract_audio(path: str | Path, start: float, end: float) -> bytes | None:
    """Sound of [start, end) seconds on the video's line as 16 kHz mono FLAC of round((end - start)·16000) samples.

    Silence stands where the recording has none. None: no audio in that span. Raises `VideoError` for no video.
    """
    origin = probe(path).start
    wanted = np.zeros(round((end - start) * AUDIO_RATE), dtype=np.int16)
    with _open_video(path) as (container, _):
        if not container.streams.audio:
            return None
        found = False
        for time, samples in _sound(container, origin + start, origin + end):
            offset = round((time - origin - start) * AUDIO_RATE)
            left, right = max(offset, 0), min(offset + len(samples), len(wanted))
            if left < right:
                wanted[left:right] = samples[left - offset : right - offset]
                found = True
    return _flac(wanted) if found else None


def _sound(
    container: av.container.InputContainer, start: float, end: float
) -> Iterator[tuple[float, Shaped[np.ndarray, "N"]]]:
    """(container time, int16 samples at 16 kHz) of unbroken runs of sound that cover [start, end)."""
    stream = container.streams.audio[0]
    if start > 1:  # a second early: decoders need a few packets to settle
        container.seek(int((start - 1) * av.time_base), backward=True)
    run: list[np.ndarray] = []
    begin = expected = 0.0
    resampler = None
    for frame in _decode(container, stream):
        time = expected if frame.time is None else frame.time
        if resampler is None or abs(time - expected) > _AUDIO_GAP:
            yield begin, _finish(resampler, run)
            resampler = av.AudioResampler(format="s16", layout="mono", rate=AUDIO_RATE)
            run, begin = [], time
        expected = time + frame.samples / frame.sample_rate
        run += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
        if expected > end + 0.1:  # the resampler holds some back
            break
    yield begin, _finish(resampler, run)


def _sound_of(source: str | Path, rate: int, layout: str) -> Generator[Shaped[np.ndarray, "C n"]]:
    """Float samples from the instant of the first video frame on, without gaps: silence stands for what is missing."""
    origin = probe(source).start
    with _open_video(source) as (container, _):
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
        at = 0  # samples given so far
        for frame in _decode(container, container.streams.audio[0]):
            for piece in resampler.resample(frame):
                samples = piece.to_ndarray()
                begin = at if piece.time is None else round((piece.time - origin) * rate)
                if abs(begin - at) > _AUDIO_GAP * rate or at == 0:
                    while at < begin:  # in seconds: a gap may be long
                        silence = min(begin - at, rate)
                        yield np.zeros((len(samples), silence), np.float32)
                        at += silence
                    samples = samples[:, max(0, at - begin) :]
                if samples.shape[1]:
                    yield samples
                    at += samples.shape[1]


def _finish(resampler: av.AudioResampler | None, run: list[np.ndarray]) -> Shaped[np.ndarray, "N"]:
    tail = [piece.to_ndarray()[0] for piece in resampler.resample(None)] if resampler else []
    return np.concatenate([np.zeros(0, np.int16), *run, *tail])


def _flac(samples: Shaped[np.ndarray, "N"]) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=AUDIO_RATE, layout="mono", format="s16")
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.rate = AUDIO_RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@contextmanager
def _open_video(source: bytes | str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its first real video stream; whatever goes wrong inside is a `VideoError`."""
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise VideoError("no such file")
    if (len(source) if isinstance(source, bytes) else Path(source).stat().st_size) == 0:
        raise VideoError("empty file")
    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source), "r") as container:
            yield container, _video_stream(container)
    except (av.FFmpegError, UnicodeDecodeError) as error:
        raise VideoError(f"cannot be read as video: {_first_line(error)}") from error


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    if container.format.name == "image2" or container.format.name.endswith("_pipe"):
        raise VideoError("a still picture, not a video")
    if container.format.name == "tty":  # libav draws text files as terminal screens
        raise VideoError("a text file, not a video")
    covers = av.stream.Disposition.attached_pic | av.stream.Disposition.still_image
    streams = [stream for stream in container.streams.video if not stream.disposition & covers]
    if not streams:
        raise VideoError("no video stream" + (", only audio" if container.streams.audio else ""))
    if streams[0].codec_context is None:
        raise VideoError("its video codec is not known")
    streams[0].codec_context.thread_count = 1  # callers work in processes, one core each
    return streams[0]


def _seconds(stream: av.VideoStream) -> float:
    """Length as the container declares it; 0 where it does not."""
    return max(0.0, float(stream.duration * stream.time_base)) if stream.duration and stream.time_base else 0.0


def _decode(container: av.container.InputContainer, stream: av.VideoStream | av.AudioStream) -> Iterator:
    """Frames of `stream`; packets that do not decode are passed over, and reading errors end it as the end does."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            log.info("reading stopped: %s", _first_line(error))
            return
        if packet is None:
            return
        try:
            yield from (frame for frame in stream.decode(packet) if not frame.is_corrupt)
        except av.FFmpegError as error:
            log.info("packet passed over: %s", _first_line(error))


def _picture(frame: av.VideoFrame, stream: av.VideoStream) -> Shaped[np.ndarray, "H W 3"]:
    """RGB as it is meant to be shown: square pixels, turned and mirrored by the display matrix."""
    width = round(frame.width * (stream.sample_aspect_ratio or 1))
    image = frame.to_ndarray(format="rgb24", width=width, height=frame.height)
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    # Row vectors: (x', y') = (x, y) [[a, b], [c, d]], in right angles.
    a, b, _, c, d = np.rint(np.frombuffer(matrix, np.int32)[:5] / _ROTATION_UNIT)
    if abs(b) > abs(a):
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
