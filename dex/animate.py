"""Animate a portrait: `python -m dex.animate -s PORTRAIT -d VIDEO --checkpoint RUN`, or `--demo`.

Pose and expression are two handles: drive both, one, or each by another driver. Writes {source}--{driving}.mp4,
…_concat.mp4 (drivers | source | result) and ….motion.safetensors, which drives again.
"""

from __future__ import annotations

import argparse
import signal
import sys
from fractions import Fraction
from pathlib import Path

import torch

from dex.animation.backends import MotionBackend, load_backend, refuse
from dex.animation.footage import open_footage
from dex.animation.poses import PoseEdit
from dex.animation.reenact import Request, Result, reenact


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dex.animate", description=__doc__.split("\n\n")[1])
    add = parser.add_argument
    add(
        "--demo",
        action="store_true",
        help="drawn heads through the small models that are part of dex; needs nothing else",
    )
    add("-s", "--source", type=Path, metavar="FILE", help="picture, or video to be edited frame by frame")
    add("--checkpoint", type=Path, metavar="DIR", help="what python -m dex.export wrote, or its run")
    add("-o", "--out", type=Path, default=Path("out"), metavar="DIR", help="folder of the results (default: out)")
    network = parser.add_argument_group("network")
    add = network.add_argument
    add(
        "--backend", choices=("motion", "diffusion"), help="motion: stage 1's generator, fast (default: what DIR holds)"
    )
    add("--seed", type=int, metavar="N", help="of the diffusion's noise (default: 0)")
    add(
        "--steps",
        type=int,
        metavar="N",
        help="diffusion steps (default: those of the training's validation; in the paper 35)",
    )
    add(
        "--guidance",
        type=float,
        metavar="W",
        help="strength of the diffusion's guidance; 1: none, half the work (default: as --steps)",
    )
    drivers = parser.add_argument_group("drivers", "a video, a folder of pictures, a picture, or a motion file")
    add = drivers.add_argument
    add("-d", "--driving", type=Path, metavar="FILE", help="drives pose and expression; of a video source, expression")
    add("--pose-driver", type=Path, metavar="FILE", help="drives the pose; takes precedence over -d")
    add("--expression-driver", type=Path, metavar="FILE", help="drives the expression; takes precedence over -d")
    add("--pose-only", action="store_true", help="the source keeps its expression")
    add("--expression-only", action="store_true", help="the source keeps its pose")
    add(
        "--pose",
        type=_pose,
        metavar="EDIT",
        help="pose by hand, degrees: yaw=20,pitch=-5,scale=1.1 with tx, ty, roll "
        "too, or keyframes in seconds: '0:yaw=0;1.5:yaw=20'",
    )
    motion = parser.add_mutually_exclusive_group()
    motion.add_argument(
        "--relative",
        dest="absolute",
        action="store_false",
        help="lay the driver's change since its first frame on the source's pose (default)",
    )
    motion.add_argument("--absolute", action="store_true", help="take the driver's pose as it is")
    parser.set_defaults(absolute=False)
    pictures = parser.add_argument_group("pictures")
    add = pictures.add_argument
    add("--fps", type=_fps, metavar="N", help="frames a second (default: the driver's)")
    add("--size", type=int, metavar="N", help="pixels a side of the result (default: the checkpoint's)")
    add(
        "--face", type=_face, metavar="WHICH", help="of several faces: largest, left, or a number from the left, from 0"
    )
    add("--no-crop", action="store_true", help="sources and drivers are already cut around the face")
    add("--paste-back", action="store_true", help="put the animated face back into the whole source picture")
    return parser


def _pose(text: str) -> PoseEdit:
    try:
        return PoseEdit.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _fps(text: str) -> Fraction:
    try:
        value = Fraction(text).limit_denominator(1001)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if not 1 <= value <= 240:
        raise argparse.ArgumentTypeError(f"{text!r}: need a number from 1 to 240, such as 25, 29.97 or 30000/1001")
    return value


def _face(text: str) -> str | int:
    if text in ("largest", "left"):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: need largest, left or a number from 0")
    return int(text)


def assign(options: argparse.Namespace, moving_source: bool) -> tuple[Path | None, Path | None]:
    """Which file drives the pose, and which the expression; None: the source's own stays.

    A video source keeps its poses unless they are asked for: with -d alone its expression is edited. Raises ValueError
    where options contradict each other or nothing would happen.
    """
    pose, expression = options.pose_driver, options.expression_driver
    if options.pose_only and (options.expression_only or expression):
        raise ValueError("--pose-only contradicts --expression-only and --expression-driver; leave one out")
    if options.expression_only and (pose or options.pose):
        raise ValueError("--expression-only contradicts --pose-driver and --pose; leave one out")
    if options.pose and (pose or options.pose_only):
        raise ValueError("--pose sets the pose by hand and contradicts --pose-driver and --pose-only; leave one out")
    if not options.pose and not options.expression_only and (options.pose_only or not moving_source):
        pose = pose or options.driving
    if not options.pose_only:
        expression = expression or options.driving
    if options.driving not in (None, pose, expression):
        raise ValueError("-d has nothing to drive: pose and expression have drivers of their own; leave one out")
    if not (pose or expression or options.pose):
        raise ValueError("nothing drives: give -d, --pose-driver, --expression-driver or --pose")
    return pose, expression


def animate(options: argparse.Namespace) -> None:
    """Raises ValueError and OSError in words for the user."""
    if options.demo:
        return show_demo(options)
    if missing := [name for name in ("source", "checkpoint") if getattr(options, name) is None]:
        raise ValueError(f"--{' and --'.join(missing)} missing; --demo needs neither")
    pose, expression = assign(options, moving_source=not open_footage(options.source).still)
    backend = load_backend(
        options.checkpoint, options.backend, options.size, options.seed or 0, options.steps, options.guidance
    )
    if options.seed is not None and isinstance(backend, MotionBackend):
        refuse(["seed"])
    request = Request(
        options.source,
        pose,
        expression,
        edit=options.pose,
        crop=not options.no_crop,
        **{name: getattr(options, name) for name in ("absolute", "out", "fps", "size", "face", "paste_back")},
    )
    tell(reenact(request, backend, warn))


def show_demo(options: argparse.Namespace) -> None:
    """Raises ValueError where anything but -o and --backend was asked for as well."""
    usual = vars(make_parser().parse_args(["--demo"])) | {"out": options.out, "backend": options.backend}
    if given := [f"--{name.replace('_', '-')}" for name, value in vars(options).items() if value != usual[name]]:
        raise ValueError(f"--demo chooses everything itself but -o and --backend; leave out {', '.join(given)}")
    from dex.animation import demo  # the renderer of heads takes seconds to compile

    for result in demo.run(options.out, options.backend or "motion", warn):
        tell(result)


def warn(warning: str) -> None:
    print(f"warning: {warning}", file=sys.stderr)


def tell(result: Result) -> None:
    speed = 1000 * result.seconds / result.frames
    print(f"{result.frames} frames, {speed:.1f} ms/frame", result.video, result.comparison, result.motion, sep="\n")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)  # a job's time limit cleans up as Ctrl-C does
    try:
        animate(options)
    except KeyboardInterrupt:
        print("error: interrupted; no video was written", file=sys.stderr)
        return 130
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        print(
            f"error: the device has too little memory; a smaller --size needs less. {error}".partition("\n")[0],
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
