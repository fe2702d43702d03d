"""Command line of data_prep.

python -m data_prep INPUT --out SHARDS [options]        raw video → shards
python -m data_prep merge PART… --out SHARDS            parts of a job array → one set of shards
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from dex.cores import usable_cores


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):  # names of files may be no UTF-8
        stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers are stopped, as on Ctrl-C
    try:
        print(_merge(arguments[1:]) if arguments[:1] == ["merge"] else _prepare(arguments), end="")
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {error}{_hint(error)}", file=sys.stderr)
        return 1
    return 0


def _prepare(arguments: list[str]) -> str:
    from data_prep.layouts import LAYOUTS
    from data_prep.settings import Settings

    parser = argparse.ArgumentParser(prog="python -m data_prep", description=__doc__, formatter_class=_Formatter)
    parser.add_argument("input", type=Path, metavar="INPUT", help="a folder of videos, or one video")
    parser.add_argument("--out", type=Path, required=True, metavar="SHARDS", help="folder for the shards; also resumes")
    parser.add_argument("--layout", choices=list(LAYOUTS), default="folder", help="folder tree of INPUT (README.md)")
    parser.add_argument("--size", type=int, default=512, help="pixels of the square crop")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes, one core each")
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="i/N", help="only the i-th of N parts, i from 1")
    parser.add_argument("--min-seconds", type=float, default=4.0, help="shortest clip")
    parser.add_argument("--max-seconds", type=float, default=10.0, help="longest clip")
    parser.add_argument("--min-face", type=float, default=48.0, help="smallest face in pixels of the source")
    parser.add_argument(
        "--min-face-share", type=float, default=0.15, help="the same over the picture's shorter side, unless size/4"
    )
    parser.add_argument("--min-sharpness", type=float, default=5.0, help="variance of the Laplacian over the face")
    parser.add_argument("--min-fps", type=float, default=7.0, help="slowest source")
    parser.add_argument("--licence", default="", help="licence note for every clip; the layout's own by default")
    options = vars(parser.parse_args(arguments))
    root, out, layout = (options.pop(name) for name in ("input", "out", "layout"))
    workers, part = options.pop("workers"), options.pop("part")
    if workers < 1:
        raise ValueError(f"--workers {workers}: need at least 1")
    from data_prep.commands import prepare

    return prepare(root, out, layout, Settings(**options), workers, part)


def _merge(arguments: list[str]) -> str:
    parser = argparse.ArgumentParser(prog="python -m data_prep merge", description="Joins finished parts.")
    parser.add_argument("parts", nargs="+", type=Path, metavar="PART", help="folder of one finished part")
    parser.add_argument("--out", type=Path, required=True, metavar="SHARDS", help="new folder for the joined shards")
    parser.add_argument("--incomplete", action="store_true", help="also where some of the N parts are missing")
    options = parser.parse_args(arguments)
    from data_prep.commands import merge

    return merge(options.parts, options.out, options.incomplete)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def _part(text: str) -> tuple[int, int]:
    try:
        index, count = (int(piece) for piece in text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: need i/N, as 3/8") from None
    if not 1 <= index <= count:
        raise argparse.ArgumentTypeError(f"{text!r}: i goes from 1 to N")
    return index, count


def _hint(error: Exception) -> str:
    missing = isinstance(error, ImportError | OSError) and any(name in str(error) for name in ("libGL", "libEGL"))
    return "; python -m dex.doctor --install installs what is missing, or names it" if missing else ""


if __name__ == "__main__":
    sys.exit(main())
