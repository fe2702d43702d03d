"""dex.video: what we write is read back exactly; wild files are read rightly or refused with a reason."""

import io
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dex.video import (
    ClipReader,
    VideoError,
    clip_writer,
    count_frames,
    extract_audio,
    iter_frames,
    probe,
    write_clip,
)

SIZE, FRAMES = 64, 40


def picture(index: int, size: int = SIZE) -> np.ndarray:
    """A flat picture whose level tells its index."""
    return np.full((size, size, 3), 20 + 5 * index, np.uint8)


def textured(count: int, size: int = SIZE) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 255, (size // 8, size // 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    return [np.roll(base, (i, 2 * i), (0, 1)) for i in range(count)]


@pytest.fixture(scope="module")
def clip() -> bytes:
    buffer = io.BytesIO()
    assert write_clip(buffer, (picture(i) for i in range(FRAMES))) == FRAMES
    return buffer.getvalue()


@pytest.fixture(scope="module")
def rich_clip() -> bytes:
    buffer = io.BytesIO()
    write_clip(buffer, textured(50))
    return buffer.getvalue()


# ---- our own clips ---------------------------------------------------------------------------------------------------


def test_any_frame_is_found_again(clip: bytes) -> None:
    reader = ClipReader(clip, FRAMES)
    wanted = [31, 0, 12, 39, 11, 12]
    read = reader.get(wanted).astype(int)
    assert len(reader) == FRAMES
    assert np.abs(read - np.stack([picture(i) for i in wanted])).max() <= 3


def test_both_decoders_agree(rich_clip: bytes, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(rich_clip)
    decoded = list(iter_frames(tmp_path / "clip.mp4"))
    assert count_frames(rich_clip) == len(decoded) == len(ClipReader(rich_clip)) == 50
    np.testing.assert_allclose([time for time, _ in decoded], np.arange(50) / 25, atol=1e-6)
    difference = ClipReader(rich_clip).get(range(50)).astype(int) - np.stack([image for _, image in decoded])
    assert np.abs(difference).mean() < 1


def test_colours_survive() -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [200, 150, 120]], np.uint8)
    buffer = io.BytesIO()
    write_clip(buffer, (np.broadcast_to(colour, (32, 32, 3)) for colour in colours))
    read = ClipReader(buffer.getvalue()).get(range(len(colours))).mean(axis=(1, 2))
    assert np.abs(read - colours).max() < 4  # another matrix or range would be off by 10 and more


def test_format_is_what_the_schema_says(rich_clip: bytes) -> None:
    with av.open(io.BytesIO(rich_clip)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 25)
    assert [i for i, packet in enumerate(packets) if packet.is_keyframe] == [0, 12, 24, 36, 48]
    assert all(packet.pts == packet.dts for packet in packets)  # no B-frames
    assert rich_clip.index(b"moov") < rich_clip.index(b"mdat")


def test_same_frames_same_bytes(clip: bytes, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", (picture(i) for i in range(FRAMES)))
    assert (tmp_path / "clip.mp4").read_bytes() == clip


@pytest.mark.parametrize("size", [32, 80, 128])
def test_same_bytes_whatever_lay_in_memory(size: int, tmp_path: Path) -> None:
    """A clip decoded in between leaves its pieces in the heap; x264 used to look at them, at 32 every other time."""
    noise = np.random.default_rng(0).integers(0, 255, (12, size, size, 3), dtype=np.uint8)
    made = set()
    for _ in range(25):
        write_clip(tmp_path / "clip.mp4", noise)
        made.add((tmp_path / "clip.mp4").read_bytes())
        np.stack([image for _, image in iter_frames(tmp_path / "clip.mp4")])
    assert len(made) == 1


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "no frames"),
        ([np.zeros((63, 64, 3), np.uint8)], "even"),
        ([picture(0), picture(1, 32)], "frame 1"),
        ([np.zeros((64, 64, 3), np.float32)], "float32"),
    ],
)
def test_wrong_frames_leave_nothing_behind(frames: list[np.ndarray], reason: str, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=reason):
        write_clip(tmp_path / "clip.mp4", frames)
    assert list(tmp_path.iterdir()) == []


def test_over_reported_frames_are_refused(clip: bytes) -> None:
    with pytest.raises(VideoError, match=f"holds {FRAMES} frames, its meta says 41"):
        ClipReader(clip, FRAMES + 1)
    with pytest.raises(VideoError, match="do not decode"):
        ClipReader(clip, FRAMES).get([FRAMES])


def test_damaged_clips_are_refused(rich_clip: bytes) -> None:
    with pytest.raises(VideoError, match="truncated"):
        ClipReader(rich_clip[:-100])
    with pytest.raises(VideoError, match="truncated"):
        ClipReader(b"")
    with pytest.raises(VideoError):
        ClipReader(b"\0" * 1000)
    middle = len(rich_clip) // 2
    holed = rich_clip[:middle] + bytes(2000) + rich_clip[middle + 2000 :]
    with pytest.raises(VideoError, match="do not decode"):
        ClipReader(holed, 50).get(range(50))


def test_scaling_is_antialiased() -> None:
    """Scaled by the decoder as Pillow's antialiased bicubic filter does; taking every fourth pixel is far off."""
    grey = [np.repeat(image.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2) for image in textured(3, 256)]
    buffer = io.BytesIO()
    write_clip(buffer, grey, crf=10)
    full = ClipReader(buffer.getvalue()).get([1])[0]
    scaled = ClipReader(buffer.getvalue(), size=64).get([1])[0].astype(float)
    expected = np.asarray(Image.fromarray(full).resize((64, 64), Image.Resampling.BICUBIC)).astype(float)
    error = np.abs(scaled - expected).mean()
    assert error < 2
    assert error < np.abs(full[::4, ::4] - expected).mean() / 3


@pytest.mark.parametrize("size", [32, 96, 144])
def test_widths_that_decord_pads(size: int) -> None:
    buffer = io.BytesIO()
    write_clip(buffer, (picture(i, size) for i in range(20)))
    read = ClipReader(buffer.getvalue(), 20).get([7, 3])
    assert read.shape == (2, size, size, 3)
    assert np.abs(read.mean(axis=(1, 2, 3)) - [20 + 5 * 7, 20 + 5 * 3]).max() < 3


# ---- wild files ------------------------------------------------------------------------------------------------------


def wild_video(path: Path, times: list[float], size: int = SIZE, **rotation: object) -> None:
    """mpeg4 at 1 ms resolution with frames at `times`, quadrants of four colours."""
    image = np.zeros((size, 2 * size, 3), np.uint8)  # wider than high, so that a turn shows
    image[: size // 2, :size], image[: size // 2, size:] = (200, 30, 30), (30, 200, 30)
    image[size // 2 :, :size] = (30, 30, 200)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 2 * size, size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.bit_rate = 4_000_000
        if rotation:
            stream.set_display_rotation(**rotation)
        for time in times:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_display_matrix_is_applied(degrees: int, mirrored: bool, tmp_path: Path) -> None:
    wild_video(tmp_path / "plain.mp4", [0.0, 0.04])
    wild_video(tmp_path / "turned.mp4", [0.0, 0.04], degrees=degrees, hflip=mirrored)
    plain, turned = (next(iter_frames(tmp_path / f"{name}.mp4"))[1] for name in ("plain", "turned"))
    expected = np.rot90(plain, degrees // 90)  # counter-clockwise, as the metadata means it
    expected = expected[:, ::-1] if mirrored else expected
    assert np.abs(turned.astype(int) - expected).max() <= 2
    info = probe(tmp_path / "turned.mp4")
    assert (info.height, info.width) == turned.shape[:2]


def test_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.1, 0.5, 0.51, 1.2]
    wild_video(tmp_path / "vfr.mp4", [0.3 + time for time in times])
    np.testing.assert_allclose([time for time, _ in iter_frames(tmp_path / "vfr.mp4")], times, atol=2e-3)


def test_reasons_for_files_that_are_no_video(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "text.txt").write_text("hello\n" * 100)
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.jpg")
    write_beep(tmp_path / "sound.mp4", flash=None)
    wild_video(tmp_path / "whole.avi", [i / 25 for i in range(50)])
    (tmp_path / "head.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(50))
    reasons = {
        "gone.mp4": "no such file",
        "empty.mp4": "empty file",
        "noise.mp4": "cannot be read as video",
        "text.txt": "text file|cannot be read",
        "photo.jpg": "still picture",
        "sound.mp4": "no video stream, only audio",
        "head.mp4": "cannot be read as video|no video stream",
    }
    for name, reason in reasons.items():
        for read in (probe, count_frames, lambda path: list(iter_frames(path))):
            with pytest.raises(VideoError, match=reason) as caught:
                read(tmp_path / name)
            assert "\n" not in str(caught.value)


def test_a_broken_tail(rich_clip: bytes, tmp_path: Path) -> None:
    """The index stands in front, so a cut file still declares its full length."""
    path = tmp_path / "cut.mp4"
    path.write_bytes(rich_clip[: int(0.8 * len(rich_clip))])
    kept = len(list(iter_frames(path)))
    assert 25 < kept < 50
    path.write_bytes(rich_clip[: int(0.35 * len(rich_clip))])
    frames = iter_frames(path)
    good = [next(frames) for _ in range(10)]
    assert len(good) == 10
    with pytest.raises(VideoError, match=r"truncated or damaged: .* of 2\.00 s"):
        list(frames)


@pytest.mark.parametrize(
    ("name", "frames"), [("personalive_driving", 1531), ("v-express_radio10", 61), ("moore-animateanyone_th2", 351)]
)
def test_edit_lists_of_real_files(talking_heads: Path, name: str, frames: int) -> None:
    path = talking_heads / "videos" / f"{name}.mp4"
    assert count_frames(path) == frames
    if frames < 1000:
        assert sum(1 for _ in iter_frames(path)) == frames


# ---- sound -----------------------------------------------------------------------------------------------------------

RATE = 44_100


def write_beep(path: Path, flash: float | None, offset: float = 0.0, seconds: float = 6.0) -> None:
    """A tone that begins with a white frame `flash` seconds into a video that starts `offset` s after the sound."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=RATE, layout="mono")
        video = None
        if flash is not None:
            video = container.add_stream("mpeg4", rate=25)
            video.width = video.height = SIZE
            video.pix_fmt = "yuv420p"
        tone = np.sin(2 * np.pi * 1000 * np.arange(int((offset + seconds) * RATE)) / RATE) * 20_000
        tone[: round((offset + (flash or 1.0)) * RATE)] = 0
        for begin in range(0, len(tone) - 1024, 1024):
            frame = av.AudioFrame.from_ndarray(tone[None, begin : begin + 1024].astype(np.int16), "s16", "mono")
            frame.rate, frame.pts, frame.time_base = RATE, begin, Fraction(1, RATE)
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
        for i in range(int(seconds * 25)) if video else ():
            level = 255 if i >= round(flash * 25) else 0
            frame = av.VideoFrame.from_ndarray(np.full((SIZE, SIZE, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = i + round(offset * 25), Fraction(1, 25)
            container.mux(video.encode(frame))
        if video:
            container.mux(video.encode(None))


def heard(flac: bytes) -> np.ndarray:
    with av.open(io.BytesIO(flac)) as container:
        stream = container.streams.audio[0]
        assert (stream.rate, stream.layout.name) == (16_000, "mono")
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(stream)]).astype(float)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("offset", [0.0, 0.8])
@pytest.mark.parametrize("start", [0.0, 2.6])
def test_sound_is_in_step_with_the_picture(suffix: str, offset: float, start: float, tmp_path: Path) -> None:
    path = tmp_path / f"beep.{suffix}"
    write_beep(path, flash=3.0, offset=offset)
    flash = next(time for time, image in iter_frames(path) if image.mean() > 100)
    assert flash == pytest.approx(3.0, abs=0.002)
    samples = heard(extract_audio(path, start, 4.0))
    assert len(samples) == round((4.0 - start) * 16_000)
    begin = np.flatnonzero(np.abs(samples) > 5_000)[0] / 16_000 + start
    assert begin == pytest.approx(flash, abs=0.01)


def test_sound_beyond_the_end_is_silence(tmp_path: Path) -> None:
    write_beep(tmp_path / "beep.mp4", flash=1.0, seconds=2.0)
    samples = heard(extract_audio(tmp_path / "beep.mp4", 1.0, 4.0))
    assert len(samples) == 48_000
    assert np.abs(samples[2_000:14_000]).max() > 10_000
    assert np.abs(samples[20_000:]).max() == 0
    assert extract_audio(tmp_path / "beep.mp4", 10.0, 12.0) is None
    wild_video(tmp_path / "mute.mp4", [0.0, 0.04])
    assert extract_audio(tmp_path / "mute.mp4", 0.0, 1.0) is None


# ---- clips with sound ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 0.8])
def test_written_sound_is_in_step_and_as_long_as_the_picture(offset: float, tmp_path: Path) -> None:
    write_beep(tmp_path / "beep.mp4", flash=1.0, offset=offset)
    with clip_writer(tmp_path / "clip.mp4", sound=tmp_path / "beep.mp4") as add:
        for i in range(60):
            add(picture(i % 40))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        sound = container.streams.audio[0]
        assert (sound.codec_context.name, sound.rate, sound.layout.name) == ("aac", RATE, "mono")
        assert float(sound.duration * sound.time_base) == pytest.approx(60 / 25, abs=0.05)
    samples = heard(extract_audio(tmp_path / "clip.mp4", 0.0, 2.4))
    assert np.flatnonzero(np.abs(samples) > 5_000)[0] / 16_000 == pytest.approx(1.0, abs=0.01)
    assert np.abs(samples[-4_000:-400]).max() > 10_000
    assert count_frames(tmp_path / "clip.mp4") == 60


def test_sound_is_read_as_the_frames_are_written(tmp_path: Path) -> None:
    """Sound and picture lie side by side in the file, as a player wants them, and not one after the other."""
    write_beep(tmp_path / "beep.mp4", flash=1.0)
    with clip_writer(tmp_path / "clip.mp4", sound=tmp_path / "beep.mp4") as add:
        for i in range(100):
            add(picture(i % 40))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        first = [packet.stream.type for packet in container.demux() if packet.size][:60]
    assert {"audio", "video"} == set(first)


def test_no_sound_to_keep(tmp_path: Path) -> None:
    wild_video(tmp_path / "mute.mp4", [0.0, 0.04])
    with clip_writer(tmp_path / "clip.mp4", sound=tmp_path / "mute.mp4") as add:
        add(picture(0))
    assert not probe(tmp_path / "clip.mp4").has_audio
    write_beep(tmp_path / "short.mp4", flash=0.1, seconds=0.5)  # ends long before the pictures do
    with clip_writer(tmp_path / "clip.mp4", sound=tmp_path / "short.mp4") as add:
        for i in range(50):
            add(picture(i % 40))
    assert (count_frames(tmp_path / "clip.mp4"), probe(tmp_path / "clip.mp4").has_audio) == (50, True)


def test_a_writer_that_is_interrupted_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupted() -> Iterator[np.ndarray]:
        yield picture(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_clip(tmp_path / "clip.mp4", interrupted())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["hellomeme_amns", "megactor_chtf3", "moore-animateanyone_th2"])
def test_sound_of_real_files(talking_heads: Path, tmp_path: Path, name: str) -> None:
    """aac, mp3, and a video that starts 8 s into its file: the same sound as `extract_audio` finds, to 1 ms."""
    source = talking_heads / "videos" / f"{name}.mp4"
    with clip_writer(tmp_path / "clip.mp4", sound=source) as add:
        for i in range(75):
            add(picture(i % 40))
    before, after = heard(extract_audio(source, 0.0, 2.9)), heard(extract_audio(tmp_path / "clip.mp4", 0.0, 2.9))
    lags = range(-32, 33)
    alike = [np.corrcoef(before[1000:-1000], after[1000 + lag : len(after) - 1000 + lag])[0, 1] for lag in lags]
    assert max(alike) > 0.9
    assert abs(lags[int(np.argmax(alike))]) <= 16


def test_torch_multiplies_by_its_own_library_where_decord_is_imported_first() -> None:
    """decord loads all of CUDA's libraries, with NVBLAS, which hijacks and crashes the products of a torch that comes
    later. `dex.video` must be importable first."""
    program = "import dex.video, torch; torch.nn.Linear(300, 300)(torch.ones(300, 300))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
