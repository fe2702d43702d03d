"""A source, its drivers and a network → videos and a motion file. Nothing here holds more than a few frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, repeat, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dex.animation.backends import Backend, to_network
from dex.animation.drivers import Driver, FootageDriver, Moment, MotionDriver, check_motion
from dex.animation.footage import Footage, open_footage
from dex.animation.motion_file import SUFFIX, Motion
from dex.animation.paste import paste
from dex.animation.poses import PoseEdit, relative_motion
from dex.animation.views import Shot, View, contract_warning, make_view
from dex.video import clip_writer

if TYPE_CHECKING:  # loads MediaPipe
    from dex.faces.follow import Choice

_DEFAULT_FPS = Fraction(25)


@dataclass(frozen=True)
class Request:
    """What is to be made. `pose` and `expression`: the files that drive them; None: the source's own."""

    source: Path
    pose: Path | None
    expression: Path | None
    edit: PoseEdit | None = None  # a pose by hand, in the place of `pose`
    absolute: bool = False
    out: Path = Path("out")
    fps: Fraction | None = None  # None: the driver's
    size: int | None = None  # pixels a side of the result; None: the network's
    crop: bool = True
    face: Choice = None
    paste_back: bool = False


class Frame(NamedTuple):
    """One frame on its way."""

    shot: Shot  # of the source
    source_pose: Float[Tensor, "3 4"]
    drivers: tuple[Shaped[np.ndarray, "n n 3"], ...]  # pictures of the drivers, for the comparison
    pose: Float[Tensor, "3 4"]
    expression: Float[Tensor, "E"]


@dataclass(frozen=True)
class Result:
    video: Path
    comparison: Path
    motion: Path
    frames: int
    seconds: float  # that animating and writing took, without the search for faces


def reenact(request: Request, backend: Backend, warn: Callable[[str], None]) -> Result:
    """Writes `{source}--{driving}.mp4`, `…_concat.mp4` (drivers | source | result) and the motion file.

    As long as the shortest of the drivers and a source video; a picture or a constant holds for ever, alone it gives
    one frame. Raises ValueError (of many kinds, one line each) and OSError; no file is left half-written.
    """
    size = backend.size if request.size is None else request.size
    if size < 16 or size % 2:
        raise ValueError(f"--size {size}: need an even number of pixels, at least 16")
    footage = open_footage(request.source)
    inputs = {path: _open_driver(path) for path in (request.pose, request.expression) if path is not None}
    fps = _rate(request, footage, inputs)
    source = make_view(footage, fps, backend.crop, request.crop, request.face)
    stage = Stage(request, backend, size, fps, source)
    drivers = {path: _driver(path, inputs[path], stage, warn) for path in dict.fromkeys(stage.driving)}
    if request.crop and (warning := contract_warning(backend.crop)):
        warn(warning)  # last, so that what fails fails in one line
    return _write(stage, drivers)


@dataclass(frozen=True)
class Stage:
    """Everything that is the same for all frames."""

    request: Request
    backend: Backend
    size: int
    fps: Fraction
    source: View

    @property
    def driving(self) -> list[Path]:
        """Files that drive: pose, expression; one that drives both is there twice."""
        return [path for path in (self.request.pose, self.request.expression) if path is not None]

    def read(self, shot: Shot) -> Moment:
        poses, codes = self.backend.read_motion(to_network([shot.cut(self.backend.size)]))
        return Moment(poses[0], codes[0])


def frames(stage: Stage, drivers: dict[Path, Driver]) -> Iterator[Frame]:
    """Pose and expression of every frame: the tracks that the network is given."""
    first: Moment | None = None
    sources = _sources(stage)
    for number, (pose, expression) in enumerate(_together(stage, drivers)):
        if (source := next(sources, None)) is None:
            return
        shot, own = source
        first = first or pose
        pictures = {id(m): m.picture for m in (pose, expression) if m is not None and m.picture is not None}
        target = own.pose
        if stage.request.edit is not None:
            target = stage.request.edit.pose(own.pose, float(number / stage.fps), stage.request.absolute)
        elif pose is not None and first is not None:
            # A picture does not move: there is no change to lay on the source, only a pose to take.
            absolute = stage.request.absolute or drivers[stage.driving[0]].still
            target = pose.pose if absolute else relative_motion(own.pose, first.pose, pose.pose)
        code = own.expression if expression is None else expression.expression
        yield Frame(shot, own.pose, tuple(pictures.values()), target, code)


def _sources(stage: Stage) -> Iterator[tuple[Shot, Moment]]:
    """The source and what is read from it, for every frame; a picture holds for ever."""
    read = ((shot, stage.read(shot)) for shot in stage.source.shots())
    return repeat(next(read)) if stage.source.footage.still else read


def _together(stage: Stage, drivers: dict[Path, Driver]) -> Iterator[tuple[Moment | None, Moment | None]]:
    """(pose driver's, expression driver's) moments; what holds for ever does not end the others."""
    request = stage.request
    if request.pose is not None and request.pose == request.expression:
        moments = _endless(drivers[request.pose])
        pairs: Iterator[tuple[Moment | None, Moment | None]] = ((moment, moment) for moment in moments)
    else:
        one, two = (repeat(None) if p is None else _endless(drivers[p]) for p in (request.pose, request.expression))
        pairs = zip(one, two, strict=False)
    if stage.source.footage.still and all(driver.still for driver in drivers.values()):
        seconds = request.edit.seconds if request.edit else 0.0
        pairs = (pair for pair, _ in zip(pairs, range(round(seconds * stage.fps) + 1), strict=False))
    return pairs


def _endless(driver: Driver) -> Iterator[Moment]:
    return repeat(next(driver.moments())) if driver.still else driver.moments()


# ---- inputs ----------------------------------------------------------------------------------------------------------


def _open_driver(path: Path) -> Footage | Motion:
    return Motion.load(path) if path.suffix == ".safetensors" else open_footage(path)


def _rate(request: Request, source: Footage, inputs: dict[Path, Footage | Motion]) -> Fraction:
    """Frames a second: asked for, or those of the first that moves: expression, pose, source."""
    if request.fps is not None:
        return request.fps
    driving = [inputs[path] for path in (request.expression, request.pose) if path is not None]
    moving = [given for given in (*driving, source) if not given.still]
    rates = [given.fps if isinstance(given, Motion) else given.native_fps for given in moving]
    return next((rate for rate in rates if rate is not None), _DEFAULT_FPS)


def _driver(path: Path, given: Footage | Motion, stage: Stage, warn: Callable[[str], None]) -> Driver:
    if isinstance(given, Motion):
        length = stage.read(next(stage.source.shots())).expression.shape[0]
        for warning in check_motion(path, given, stage.backend, length):
            warn(warning)
        return MotionDriver(path, given, stage.fps)
    view = make_view(given, stage.fps, stage.backend.crop, stage.request.crop, stage.request.face)
    return FootageDriver(view, stage.backend, stage.size)


# ---- outputs ---------------------------------------------------------------------------------------------------------


def _write(stage: Stage, drivers: dict[Path, Driver]) -> Result:
    request = stage.request
    video, comparison, motion = _outputs(stage, drivers)
    request.out.mkdir(parents=True, exist_ok=True)
    sound = _sound(stage, drivers)
    poses, codes = [], []
    started = time.perf_counter()
    with ExitStack() as stack:
        add = stack.enter_context(clip_writer(video, fps=stage.fps, sound=sound))
        compare = stack.enter_context(clip_writer(comparison, fps=stage.fps, sound=sound))
        bar = stack.enter_context(_bar(stage, drivers))
        for frame, picture in animated(stage, frames(stage, drivers)):
            made = resized(picture, stage.size)
            add(_even(paste(frame.shot.image, made, frame.shot.square)) if request.paste_back else made)
            compare(np.hstack([*frame.drivers, frame.shot.cut(stage.size), made]))
            poses.append(frame.pose)
            codes.append(frame.expression)
            bar.update()
            bar.set_postfix_str(f"{1000 * (time.perf_counter() - started) / len(poses):.1f} ms/frame", refresh=False)
        track = torch.stack(poses), torch.stack(codes)
        Motion(*track, stage.fps, stage.backend.crop, stage.backend.encoders, _provenance(stage)).save(motion)
    return Result(video, comparison, motion, len(poses), time.perf_counter() - started)


def animated(stage: Stage, track: Iterator[Frame]) -> Iterator[tuple[Frame, Shaped[np.ndarray, "H W 3"]]]:
    """Each frame with its picture. A still source is encoded once for all; of a video each frame is a source."""
    animate, size = stage.backend.animate, stage.backend.size
    if not stage.source.footage.still:
        for frame in track:
            source = to_network([frame.shot.cut(size)])[0]
            yield frame, next(animate(source, frame.source_pose, [(frame.pose, frame.expression)]))
        return
    if (first := next(track, None)) is not None:
        track, ahead = tee(chain([first], track))
        driving = ((frame.pose, frame.expression) for frame in ahead)
        pictures = animate(to_network([first.shot.cut(size)])[0], first.source_pose, driving)
        # The pictures first: the network decides how far it reads ahead.
        yield from ((frame, picture) for picture, frame in zip(pictures, track, strict=False))


def _outputs(stage: Stage, drivers: dict[Path, Driver]) -> tuple[Path, Path, Path]:
    names = [drivers[path].name for path in dict.fromkeys(stage.driving)]
    if stage.request.edit is not None:
        names.insert(0, "pose")
    stem = f"{stage.source.footage.name}--{'+'.join(names)}"
    outputs = tuple(stage.request.out / f"{stem}{end}" for end in (".mp4", "_concat.mp4", SUFFIX))
    inputs = {path.resolve() for path in (stage.request.source, *stage.driving)}
    if taken := [path for path in outputs if path.resolve() in inputs]:
        raise ValueError(f"{taken[0]} is an input; write to another folder with -o")
    return outputs[0], outputs[1], outputs[2]


def _sound(stage: Stage, drivers: dict[Path, Driver]) -> Path | None:
    """The expression driver's, whose lips are seen; else the pose driver's; else the source's."""
    heard = [drivers[path].sound for path in (stage.request.expression, stage.request.pose) if path is not None]
    footage = stage.source.footage
    return next((path for path in (*heard, footage.path if footage.has_sound else None) if path is not None), None)


def _bar(stage: Stage, drivers: dict[Path, Driver]) -> tqdm:
    lengths = [driver.count for driver in drivers.values() if not driver.still]
    if not stage.source.footage.still:
        lengths.append(stage.source.count)
    layout = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    return tqdm(total=min(lengths, default=None), desc="animating", bar_format=layout if lengths else None, leave=False)


def resized(picture: Shaped[np.ndarray, "S S 3"], size: int) -> Shaped[np.ndarray, "size size 3"]:
    """Bicubic with antialiasing; unchanged where the size is right."""
    if picture.shape[0] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))


def _even(picture: Shaped[np.ndarray, "H W 3"]) -> Shaped[np.ndarray, "H2 W2 3"]:
    """Without the last row or column where H.264 cannot hold them."""
    height, width = picture.shape[:2]
    return picture[: height // 2 * 2, : width // 2 * 2]


def _provenance(stage: Stage) -> dict[str, Any]:
    request = stage.request
    return {
        "source": request.source.name,
        "pose": request.pose.name if request.pose else None,
        "expression": request.expression.name if request.expression else None,
        "edit": request.edit.keyframes if request.edit else None,
        "motion": "absolute" if request.absolute else "relative",
        "checkpoint": stage.backend.provenance,
    }
