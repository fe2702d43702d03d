"""The command: what reaches the network, what is written, and what is said where it cannot be."""

import argparse
import os
import resource
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from dex.animate import assign, main
from dex.animation.backends import load_backend, to_network
from dex.animation.footage import open_footage, read_picture
from dex.animation.motion_file import Motion
from dex.animation.poses import relative_motion
from dex.animation.reenact import Request, reenact
from dex.motion.encoders import load_generator, save_generator
from dex.video import VideoError, count_frames, iter_frames, probe
from tests.animation.conftest import SIZE, moving, scene, tiny_generator
from tests.motion.conftest import TINY

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _signals_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)


class Command:
    """`python -m dex.animate` on the tiny checkpoint and the small material, in this process."""

    def __init__(self, checkpoint: Path, material: Path, out: Path) -> None:
        self.checkpoint, self.material, self.out = checkpoint, material, out

    def __call__(self, *arguments: object, source: str = "portrait.png") -> dict[str, Path]:
        """Files written, by what comes after the common stem."""
        before = set(self.out.glob("*"))
        common = ["-s", self.material / source, "-o", self.out, "--checkpoint", self.checkpoint, "--no-crop"]
        assert main([str(argument) for argument in (*common, *arguments)]) == 0
        new = sorted(set(self.out.glob("*")) - before)
        stem = min(new, key=lambda path: len(path.name)).name.removesuffix(".mp4")
        return {path.name.removeprefix(stem): path for path in new}

    def track(self, *arguments: object, source: str = "portrait.png") -> Motion:
        """The motion that the network was given."""
        self.out.mkdir(exist_ok=True)
        for path in self.out.glob("*"):
            path.unlink()
        return Motion.load(self(*arguments, source=source)[".motion.safetensors"])


@pytest.fixture
def command(checkpoint: Path, material: Path, tmp_path: Path) -> Command:
    return Command(checkpoint, material, tmp_path / "out")


def read(checkpoint: Path, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Poses and codes of a file's frames by the encoders alone."""
    frames = [np.asarray(Image.open(path))] if path.suffix == ".png" else [image for _, image in iter_frames(path)]
    small = [np.asarray(Image.fromarray(f).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for f in frames]
    generator, _ = load_generator(checkpoint)
    with torch.no_grad():
        return generator.read_motion(to_network(small))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


# ---- what is written -------------------------------------------------------------------------------------------------


def test_videos_have_the_drivers_length_rate_and_sound(command: Command, material: Path) -> None:
    written = command("-d", material / "a.mp4")
    assert set(written) == {".mp4", "_concat.mp4", ".motion.safetensors"}
    assert written[".mp4"].name == "portrait--a.mp4"
    for end, width in {".mp4": SIZE, "_concat.mp4": 3 * SIZE}.items():
        info = probe(written[end])
        assert (info.width, info.height, info.has_audio) == (width, SIZE, True)
        assert count_frames(written[end]) == 20
        with av.open(str(written[end])) as container:
            video, sound = container.streams.video[0], container.streams.audio[0]
            assert video.average_rate == Fraction(30000, 1001)
            assert float(sound.duration * sound.time_base) == pytest.approx(20 * 1001 / 30000, abs=0.03)
            samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(sound)])
        assert np.abs(samples[2000:20_000]).max() > 0.4
    assert not list(command.out.glob(".*"))


def test_concat_shows_driving_source_result(command: Command, material: Path) -> None:
    written = command("-d", material / "b.mp4", "--size", 64)
    result, joined = (
        np.stack([image for _, image in iter_frames(written[end])]).astype(int) for end in (".mp4", "_concat.mp4")
    )
    assert joined.shape == (12, 64, 192, 3)
    driving = np.stack([image for _, image in iter_frames(material / "b.mp4")]).astype(int)
    for number, want in enumerate((driving, scene(0)[None], result)):
        assert np.abs(joined[:, :, 64 * number : 64 * (number + 1)] - want).mean() < 6
    both = command("--pose-driver", material / "b.mp4", "--expression-driver", material / "a.mp4")
    assert probe(both["_concat.mp4"]).width == 4 * SIZE
    assert "portrait--b+a.mp4" in {path.name for path in both.values()}


def test_the_same_bytes_again_and_the_picture_is_the_generators(command: Command, material: Path) -> None:
    first = command("-d", material / "b.mp4")
    kept = {end: path.read_bytes() for end, path in first.items()}
    for path in first.values():
        path.unlink()
    assert {end: path.read_bytes() for end, path in command("-d", material / "b.mp4").items()} == kept

    motion = Motion.load(first[".motion.safetensors"])
    source = np.asarray(Image.fromarray(scene(0)).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    pose, _ = read(command.checkpoint, material / "portrait.png")
    generator, _ = load_generator(command.checkpoint)
    with torch.no_grad():
        want = generator(to_network([source]), pose, motion.pose[None], motion.expression[None])[0]
    tracks = motion.pose, motion.expression
    levels = (want.clamp(-1, 1).movedim(1, -1).numpy() + 1) * 127.5
    backend, driving = load_backend(command.checkpoint, None, None, 0, None, None), zip(*tracks, strict=True)
    made = np.stack(list(backend.animate(to_network([source])[0], pose[0], driving)))
    assert np.abs(made - levels).max() <= 0.51
    shown = np.stack([image for _, image in iter_frames(first[".mp4"])]).astype(float)
    coarse = (shown - levels).reshape(12, 4, 8, 4, 8, 3).mean((2, 4))  # the codec spoils the noise of random weights
    assert np.abs(coarse).mean() < 3


def test_a_motion_file_gives_the_same_frames_again(command: Command, material: Path) -> None:
    first = command("-d", material / "a.mp4", "--expression-driver", material / "b.mp4")
    motion = first[".motion.safetensors"]
    for mode in ("--relative", "--absolute"):
        again = command("-d", motion, mode)
        repeated, original = Motion.load(again[".motion.safetensors"]), Motion.load(motion)
        assert torch.equal(repeated.pose, original.pose)
        assert torch.equal(repeated.expression, original.expression)
        assert count_frames(again[".mp4"]) == count_frames(first[".mp4"])
        shown, before = (np.stack([image for _, image in iter_frames(f[".mp4"])]) for f in (again, first))
        np.testing.assert_array_equal(shown, before)
        for path in again.values():
            path.unlink()


def test_edited_and_mixed_motion(command: Command, material: Path) -> None:
    made = Motion.load(command("-d", material / "b.mp4")[".motion.safetensors"])
    edited = command.out.parent / "edited.motion.safetensors"
    Motion(made.pose.flip(0), made.expression, made.fps, made.crop, made.encoders, {}).save(edited)
    mixed = command.track("--pose-driver", edited, "--expression-driver", material / "a.mp4", "--absolute", "--fps", 25)
    assert torch.equal(mixed.pose, made.pose.flip(0))
    own = command.track("-d", material / "a.mp4", "--fps", 25)
    assert torch.equal(mixed.expression, own.expression[:12])


def test_what_holds_for_ever_has_no_rate(command: Command, material: Path) -> None:
    made = Motion.load(command("-d", material / "b.mp4")[".motion.safetensors"])
    still = command.out.parent / "still.motion.safetensors"
    Motion(made.pose[:1], made.expression[:1], Fraction(10), made.crop, made.encoders, {}).save(still)
    held = command.track("--expression-driver", still, "--pose-driver", material / "b.mp4")
    assert (held.fps, len(held.pose)) == (25, 12)
    assert torch.equal(held.expression, made.expression[:1].expand_as(held.expression))


# ---- what drives what ------------------------------------------------------------------------------------------------


def test_tracks(command: Command, material: Path) -> None:
    """Relative, absolute, pose alone, expression alone, and two drivers: exactly these tracks."""
    (pose_s,), (code_s,) = read(command.checkpoint, material / "portrait.png")
    pose_b, code_b = read(command.checkpoint, material / "b.mp4")
    pose_p, _ = read(command.checkpoint, material / "pictures" / "0.png")
    still = pose_s.expand_as(pose_b)
    relative = relative_motion(still, pose_b[:1].expand_as(pose_b), pose_b)
    assert (pose_b[-1] - pose_b[0]).abs().max() > 5e-3

    usual = command.track("-d", material / "b.mp4")
    close(usual.pose, relative)
    close(usual.expression, code_b)
    assert torch.equal(usual.pose[0], command.track("-d", material / "b.mp4", "--expression-only").pose[0])

    absolute = command.track("-d", material / "b.mp4", "--absolute")
    close(absolute.pose, pose_b)
    assert torch.equal(absolute.expression, usual.expression)

    pose_only = command.track("-d", material / "b.mp4", "--pose-only")
    assert torch.equal(pose_only.pose, usual.pose)
    close(pose_only.expression, code_s.expand_as(code_b))

    expression_only = command.track("-d", material / "b.mp4", "--expression-only")
    close(expression_only.pose, still)
    assert torch.equal(expression_only.expression, usual.expression)

    two = command.track("--pose-driver", material / "pictures", "--expression-driver", material / "b.mp4")
    assert len(two.pose) == 11
    assert torch.equal(two.expression, usual.expression[:11])
    assert torch.equal(two.pose, command.track("-d", material / "pictures", "--pose-only").pose)

    # A single picture holds for ever; its pose is taken as it is.
    held = command.track("--pose-driver", material / "pictures" / "0.png", "--expression-driver", material / "b.mp4")
    close(held.pose, pose_p.expand_as(pose_b))
    assert torch.equal(held.expression, usual.expression)


def test_pose_by_hand(command: Command, material: Path) -> None:
    """Alone it lasts as long as its keyframes; beside a driver as long as that."""
    (pose_s,), (code_s,) = read(command.checkpoint, material / "portrait.png")
    alone = command.track("--pose", "0:yaw=0;0.4:yaw=20")
    assert len(alone.pose) == 11
    close(alone.expression, code_s.expand(11, -1))
    assert torch.equal(alone.pose[0], command.track("--pose", "yaw=0").pose[0])
    turned = command.track("--pose", "yaw=10")
    assert len(turned.pose) == 1
    close(alone.pose[5], turned.pose[0])
    close(alone.pose[0], pose_s)
    beside = command.track("-d", material / "b.mp4", "--pose", "yaw=10")
    assert len(beside.pose) == 12
    close(beside.pose, turned.pose.expand(12, 3, 4))
    assert torch.equal(beside.expression, command.track("-d", material / "b.mp4").expression)


def test_video_source_is_edited_frame_by_frame(command: Command, material: Path) -> None:
    """The poses stay those of each source frame; the shorter of the two ends it; its own sound where there is none."""
    pose_a, _ = read(command.checkpoint, material / "a.mp4")
    edited = command.track("-d", material / "b.mp4", source="a.mp4")
    assert edited.fps == 25
    assert len(edited.pose) == 12
    resampled = [round(i / 25 * 30000 / 1001 - 1e-3) for i in range(12)]
    close(edited.pose, pose_a[resampled])
    assert torch.equal(edited.expression, command.track("-d", material / "b.mp4").expression)
    turned = command("--pose", "yaw=10", source="a.mp4")
    assert count_frames(turned[".mp4"]) == 20
    assert probe(turned[".mp4"]).has_audio


def test_who_drives_what(tmp_path: Path) -> None:
    one, two, three = Path("1"), Path("2"), Path("3")
    nothing = {
        "driving": None,
        "pose_driver": None,
        "expression_driver": None,
        "pose": None,
        "pose_only": False,
        "expression_only": False,
    }

    def roles(moving: bool = False, **given: object) -> tuple[Path | None, Path | None]:
        return assign(argparse.Namespace(**{**nothing, **given}), moving)

    assert roles(driving=one) == (one, one)
    assert roles(driving=one, pose_only=True) == (one, None)
    assert roles(driving=one, expression_only=True) == (None, one)
    assert roles(driving=one, pose_driver=two) == (two, one)
    assert roles(driving=one, expression_driver=two) == (one, two)
    assert roles(pose_driver=one) == (one, None)
    assert roles(driving=one, pose="edit") == (None, one)
    assert roles(pose="edit") == (None, None)
    assert roles(moving=True, driving=one) == (None, one)
    assert roles(moving=True, driving=one, pose_only=True) == (one, None)
    assert roles(moving=True, driving=one, pose_driver=two) == (two, one)
    for wrong, said in (
        ({}, "nothing drives"),
        ({"driving": three, "pose_driver": one, "expression_driver": two}, "nothing to drive"),
        ({"driving": one, "pose_only": True, "expression_only": True}, "contradicts"),
        ({"driving": one, "pose_only": True, "expression_driver": two}, "contradicts"),
        ({"driving": one, "expression_only": True, "pose": "edit"}, "contradicts"),
        ({"pose_driver": one, "pose": "edit"}, "contradicts"),
    ):
        with pytest.raises(ValueError, match=said):
            roles(**wrong)


def test_fps_and_size(command: Command, material: Path) -> None:
    written = command("-d", material / "a.mp4", "--fps", "10", "--size", 48)
    info = probe(written[".mp4"])
    assert (info.fps, info.width, info.height) == (10, 48, 48)
    assert count_frames(written[".mp4"]) == 7  # 20 / 29.97 s


def test_paste_back_keeps_the_rest_of_the_picture(command: Command, tmp_path: Path, material: Path) -> None:
    wide = np.concatenate([scene(4), scene(5), scene(6)], axis=1)[:63]
    Image.fromarray(wide).save(tmp_path / "wide.png")
    written = command("-d", material / "b.mp4", "--paste-back", source=tmp_path / "wide.png")
    shown = np.stack([image for _, image in iter_frames(written[".mp4"])]).astype(int)
    assert shown.shape == (12, 62, 192, 3)
    outside = np.r_[0:60, 132:192]
    assert np.abs(shown[:, :, outside] - wide[None, :62, outside]).mean() < 4
    assert np.abs(shown[:, 20:42, 85:107] - wide[None, 20:42, 85:107]).mean() > 10


# ---- what is said ----------------------------------------------------------------------------------------------------


def test_errors_are_one_line_and_leave_nothing(
    checkpoint: Path, material: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "noise.png").write_bytes(b"\x89PNG but not really")
    whole = (material / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    save_generator(tmp_path / "wide", TINY, tiny_generator().state_dict(), {}, None)
    (tmp_path / "wide" / "generator.safetensors").write_bytes(b"damaged")
    given = {"-s": material / "portrait.png", "-d": material / "b.mp4", "--checkpoint": checkpoint, "-o": out}

    def refused(*flags: object, **other: object) -> str:
        options = {**given, **{("-" if len(name) == 1 else "--") + name: value for name, value in other.items()}}
        pairs = [str(part) for pair in options.items() if pair[1] is not None for part in pair]
        assert main([*pairs, "--no-crop", *map(str, flags)]) == 1
        said = capsys.readouterr().err
        assert said.splitlines()[-1].startswith("error: ")
        assert sum("error" in line for line in said.splitlines()) == 1
        assert not list(out.glob("*")) if out.exists() else True
        return said

    assert "no such file" in refused(s=tmp_path / "gone.png")
    assert "no such file" in refused(d=tmp_path / "gone.mp4")
    assert "no such motion file" in refused(d=tmp_path / "gone.motion.safetensors")
    assert "empty file" in refused(d=tmp_path / "empty.mp4")
    assert "without pictures" in refused(d=tmp_path / "empty")
    assert "cannot be read as video" in refused(d=tmp_path / "noise.mp4")
    assert "cannot be read as a picture" in refused(s=tmp_path / "noise.png")
    assert str(tmp_path / "cut.mp4") in refused(d=tmp_path / "cut.mp4")
    assert "python -m dex.export" in refused(checkpoint=tmp_path / "empty")
    assert "cannot be read" in refused(checkpoint=tmp_path / "wide")
    assert "even number" in refused(size=33)
    assert "even number" in refused(size=0)
    assert "nothing drives" in refused(d=None)
    assert "--steps: of the diffusion" in refused(steps=3)
    assert "--seed: of the diffusion" in refused(seed=0)
    assert "the source must be a picture or a video" in refused(s=_motion(checkpoint, material, tmp_path))

    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nand what torch says of it")

    monkeypatch.setattr("dex.animate.reenact", too_large)
    assert refused().endswith("a smaller --size needs less. CUDA out of memory. Tried to allocate 9 GiB.\n")


def _motion(checkpoint: Path, material: Path, folder: Path) -> Path:
    request = Request(material / "portrait.png", None, material / "b.mp4", crop=False, out=folder / "made")
    return reenact(request, load_backend(checkpoint, None, None, 0, None, None), print).motion


def test_motion_of_another_checkpoint(
    checkpoint: Path, material: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Other weights: a warning. Codes of another length: an error. Both say what to do."""
    motion = Motion.load(_motion(checkpoint, material, tmp_path))
    strange = tmp_path / "strange.motion.safetensors"
    common = ["-s", str(material / "portrait.png"), "-o", str(tmp_path / "out"), "--checkpoint", str(checkpoint)]
    Motion(motion.pose, motion.expression, motion.fps, None, "other", {}).save(strange)
    assert main([*common, "--no-crop", "-d", str(strange)]) == 0
    said = capsys.readouterr().err
    assert said.count("warning: ") == 2
    assert "other encoders" in said
    assert "Make the motion file again" in said
    Motion(motion.pose, motion.expression[:, :4], motion.fps, None, "other", {}).save(strange)
    assert main([*common, "--no-crop", "-d", str(strange)]) == 1
    assert "codes of 4 numbers, the checkpoint's have 8" in capsys.readouterr().err


def test_an_input_is_not_overwritten(
    checkpoint: Path, material: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    motion = _motion(checkpoint, material, tmp_path)
    taken = tmp_path / "portrait--portrait--b.mp4"
    taken.write_bytes((material / "b.mp4").read_bytes())
    common = ["-s", str(material / "portrait.png"), "-o", str(tmp_path), "--checkpoint", str(checkpoint), "--no-crop"]
    assert main([*common, "--pose-driver", str(taken), "-d", str(motion), "--pose-only"]) == 1
    assert "nothing to drive" in capsys.readouterr().err
    link = tmp_path / "b.mp4"
    link.symlink_to(tmp_path / "portrait--b.mp4")
    (tmp_path / "portrait--b.mp4").write_bytes((material / "b.mp4").read_bytes())
    assert main([*common, "-d", str(link)]) == 1
    assert "is an input" in capsys.readouterr().err


def start(checkpoint: Path, out: Path, *arguments: object, **options: object) -> subprocess.Popen:
    line = [sys.executable, "-m", "dex.animate", "--checkpoint", checkpoint, "-o", out, "--no-crop", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [str(part) for part in line],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_full_disk_in_the_middle(checkpoint: Path, material: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for it: writing fails after some frames."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    noisy = tmp_path / "noisy"
    noisy.mkdir()
    for i in range(60):
        noise = np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(noisy / f"{i}.png")
    started = start(
        checkpoint, tmp_path / "out", "-s", material / "portrait.png", "-d", noisy, "--size", 256, preexec_fn=limit
    )
    _, errors = started.communicate(timeout=200)
    said = errors.decode().splitlines()
    assert started.returncode == 1, errors
    assert said[-1].startswith("error: ")
    assert "too large" in said[-1]
    assert "Traceback" not in errors.decode()
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(checkpoint: Path, material: Path, tmp_path: Path, how: signal.Signals) -> None:
    if signal.getsignal(how) is signal.SIG_IGN:
        pytest.skip(f"{how.name} is ignored here (a shell's background), and so it is by what is started here")
    out = tmp_path / "out"
    long = tmp_path / "long"
    long.mkdir()
    for i, image in enumerate(moving(3, 50)):
        Image.fromarray(image).save(long / f"{i}.png")
    started = start(checkpoint, out, "-s", material / "portrait.png", "-d", long, "--fps", 240)
    deadline = time.monotonic() + 100
    while not list(out.glob(".*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.01)
    started.send_signal(how)
    _, errors = started.communicate(timeout=100)
    assert started.returncode == 130
    assert errors.decode().splitlines()[-1].startswith("error: interrupted")
    assert list(out.iterdir()) == []


def test_without_opencv_the_remedy_is_named(checkpoint: Path, material: Path, tmp_path: Path) -> None:
    """As after an installation without the extra: --no-crop still works, cropping says what is missing."""
    lacking = "import sys; sys.modules.update(cv2=None, mediapipe=None); from dex.animate import main; sys.exit(main())"
    common = [sys.executable, "-c", lacking, "-s", material / "portrait.png", "--pose", "yaw=9", "--paste-back"]
    common += ["--checkpoint", checkpoint, "-o", tmp_path]
    for more, code in (["--no-crop"], 0), ([], 1):
        ended = subprocess.run(
            [*map(str, common), *more], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
        )
        assert ended.returncode == code, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: finding faces needs MediaPipe and OpenCV")
    assert "pip install -e '.[prep]'" in ended.stderr


def test_footage_orders_numbers_and_keeps_exif(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"f{number}.png")
    order = [int(i.image[0, 0, 0]) for i in open_footage(tmp_path).instants(Fraction(25))]
    assert order == [1, 9, 10]


def test_pages_are_no_animation(tmp_path: Path) -> None:
    """A phone's portrait is an MPO: a JPEG with a second view, or a map of depths."""
    for name, kind in {"phone.jpg": "MPO", "pages.tif": "TIFF", "moving.gif": "GIF"}.items():
        first, second = (Image.new("RGB", (16, 16), (level,) * 3) for level in (40, 200))
        first.save(tmp_path / name, format=kind, save_all=True, append_images=[second], duration=100)
        assert open_footage(tmp_path / name).still == (kind != "GIF")
    for name in ("phone.jpg", "pages.tif"):
        assert abs(int(read_picture(tmp_path / name).mean()) - 40) <= 1


def test_grey_of_16_bits_keeps_its_greys(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(levels).save(tmp_path / name)
        np.testing.assert_array_equal(read_picture(tmp_path / name), (levels // 256)[..., None].repeat(3, axis=2))


def test_a_picture_too_large_to_open_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(VideoError, match=r"huge\.png: cannot be read as a picture: .* exceeds limit"):
        next(open_footage(tmp_path / "huge.png").instants(Fraction(25)))
