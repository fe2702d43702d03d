"""Measure portrait animators: `python -m benchmarks COMMAND --help`.

make     a protocol from synthetic heads or from shards
run      a checkpoint, or a reference row, through a protocol: videos and result file
baselines  every reference row through a protocol, and their table
score    any method's videos, named by the protocol's ids: result file
table    result files as one table (md, csv, tex) or page (html)
verify   hashes and numbers of a result file
compare  two or more result files, with a paired test
published  what papers state, quoted
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # seconds to import: `--help` and mistakes answer at once
    from benchmarks.manifest import Manifest
    from benchmarks.material import Material
    from benchmarks.methods import Maker
    from benchmarks.reading import Extractors, Truth

REFERENCE_ROWS = ("oracle", "copy-driver", "copy-source", "constant", "joint-code", "landmark-warp", "shuffled-driver")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    make = commands.add_parser("make", help="a protocol from synthetic heads or from shards")
    make.add_argument("--task", required=True, choices=("self", "cross", "disentangled"))
    make.add_argument("--name", required=True)
    make.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    make.add_argument("--shards", type=Path, metavar="DIR", help="of data_prep; default: synthetic heads")
    make.add_argument("--clips", type=int, help="identities (default: 32 synthetic ones, all of the shards)")
    make.add_argument("--size", type=int, help="pixels a side (default: 256 synthetic, as the shards)")
    make.add_argument("--frames", type=int, default=16, help="of each driver of shards (default: 16)")
    make.add_argument("--stride", type=int, default=1, help="every so many frames of shards (default: 1)")
    make.add_argument("--seed", type=int, default=0)

    run = commands.add_parser("run", help="a checkpoint or a reference row through a protocol")
    what = run.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, metavar="DIR", help="a run of dex.fit, or its export")
    what.add_argument("--method", choices=REFERENCE_ROWS)
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="results and, in videos/, what was made")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--steps", type=int, help="diffusion steps")
    run.add_argument("--guidance", type=float)
    run.add_argument("--devices", default="1", help="processes, one a GPU where there are any (default: 1)")
    run.add_argument("--nodes", type=int, default=1)

    score = commands.add_parser("score", help="any method's videos")
    score.add_argument("videos", type=Path, help="folder with ID.mp4 or ID/*.png for every id of the protocol")
    score.add_argument("--name", help="of the method (default: the folder's)")
    score.add_argument("--out", type=Path, default=Path("results"), metavar="DIR")

    table = commands.add_parser("table", help="result files as a table")
    table.add_argument("results", type=Path, nargs="+")
    table.add_argument("--format", choices=("md", "csv", "tex", "html"), default="md")
    table.add_argument("--videos", type=Path, metavar="DIR", help="of `run`: filmstrips in the page")
    table.add_argument("--out", type=Path, help="file (default: standard output)")

    verify = commands.add_parser("verify", help="hashes and numbers of a result file")
    verify.add_argument("result", type=Path)
    verify.add_argument("--videos", type=Path, metavar="DIR", help="compute the numbers again")

    compare = commands.add_parser("compare", help="result files of one protocol")
    compare.add_argument("results", type=Path, nargs="+")

    commands.add_parser("published", help="what papers state, quoted: never in one table with what is measured")

    baselines = commands.add_parser("baselines", help="every reference row through a protocol, and their table")
    baselines.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="rows of this protocol that are there are kept, whatever read them: for other readers take another folder",
    )  # fmt: skip
    baselines.set_defaults(checkpoint=None)

    for command in (run, score, baselines):
        command.add_argument("--protocol", required=True, help="a shipped name or a .jsonl file")
    for command in (table, verify):
        command.add_argument("--protocol", default="", help="of --videos: a shipped name or a .jsonl file")
    for command in (run, score, baselines, table, verify):
        command.add_argument("--shards", type=Path, metavar="DIR", help="where the protocol's clips are")
    for command in (run, score, baselines, verify):
        command.add_argument("--perceptual", default="stlpips_alex", help="network of the perceptual distance")
        command.add_argument(
            "--features", default="effnet_lite0", help="of the distance of distributions; or inception"
        )
        command.add_argument("--identity", choices=("arcface", "none"), default="arcface", help="none: no CSIM")
        command.add_argument("--i3d", type=Path, metavar="FILE", help="TorchScript of I3D: FVD as well")
        command.add_argument("--i3d-sha256", default="", metavar="HASH", help="of that file, the one that you trust")
        command.add_argument(
            "--device", help="of the networks that read videos, cpu or cuda:1 (default: a GPU where there is one)"
        )
        command.add_argument("--force", action="store_true", help="an FVD of fewer than 256 videos")
        command.add_argument(
            "--motion-extractor", type=Path, metavar="FILE.yaml", help="your own, see docs/benchmarks.md"
        )
    return parser


def make(options: argparse.Namespace) -> None:
    from benchmarks.make import make_of_shards, make_synthetic

    o = options
    if o.shards is None:
        manifest = make_synthetic(o.task, o.name, o.clips or 32, o.size or 256, o.seed)
    else:
        manifest = make_of_shards(o.task, o.name, o.shards, o.size, o.seed, o.clips, o.frames, o.stride)
    manifest.save(o.out)
    print(f"{o.out}: {len(manifest.pairs)} pairs of {len(manifest.clips)} clips")


def run(options: argparse.Namespace) -> None:
    import torch.distributed
    from lightning.fabric import Fabric
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from benchmarks.reading import Truth
    from benchmarks.suite import open_protocol

    path, manifest, material = open_protocol(options.protocol, options.shards)
    devices = int(options.devices) if options.devices.isdecimal() else options.devices
    try:
        fabric = Fabric(accelerator="auto", devices=devices, num_nodes=options.nodes)
    except (MisconfigurationException, TypeError) as error:
        raise ValueError(f"--devices {options.devices}: {error}") from None
    fabric.launch()
    # Now, so that nobody waits for videos that cannot be scored.
    extractors = _extractors(options) if fabric.global_rank == 0 else None
    videos, model = _generate(options, path, manifest, material, fabric.global_rank, fabric.world_size)
    fabric.barrier()
    if torch.distributed.is_initialized():  # one process scores: metrics must not wait for the others'
        torch.distributed.destroy_process_group()
    if extractors is not None:
        with extractors:
            _score(options, videos, model, path, Truth(manifest, material, extractors))


def _generate(
    options: argparse.Namespace, path: Path, manifest: Manifest, material: Material, rank: int = 0, world: int = 1
) -> tuple[Path, dict[str, Any]]:
    """The folder of the videos, this process's share of which is there now, and what the result file says of their
    model."""
    from benchmarks.suite import begin, generate

    with ExitStack() as stack:
        maker, model = _maker(options, manifest, material, stack)
        videos = options.out / "videos" / f"{model['name']}-{options.protocol_name}"
        begin(videos, path, model)
        generate(manifest, maker, videos, rank, world)
    return videos, model


def baselines(options: argparse.Namespace) -> None:
    from benchmarks.methods import is_defined
    from benchmarks.reading import Truth
    from benchmarks.results import Result
    from benchmarks.suite import open_protocol, with_comparisons
    from benchmarks.tables import render
    from dex.files import file_sha256

    path, manifest, material = open_protocol(options.protocol, options.shards)
    rows = {
        name: options.out / f"{name}-{options.protocol_name}.json"
        for name in REFERENCE_ROWS
        if is_defined(name, manifest, material)
    }

    wanted = file_sha256(path)

    def is_there(row: Path) -> bool:
        return row.is_file() and Result.load(row).content["dataset"]["manifest_sha256"] == wanted

    if missing := [name for name, row in rows.items() if not is_there(row)]:
        with _extractors(options) as extractors:
            truth = Truth(manifest, material, extractors)
            for options.method in missing:
                _score(options, *_generate(options, path, manifest, material), path, truth)
    results = [Result.load(row) for row in rows.values()]
    with_comparisons(results)
    print(render(results, "md"))


def _maker(
    options: argparse.Namespace, manifest: Manifest, material: Material, stack: ExitStack
) -> tuple[Maker, dict[str, Any]]:
    """What makes the videos, and what the result file says of it."""
    from benchmarks.methods import BY_LANDMARKS, CheckpointMethod, maker_of, reference, shuffled

    if options.checkpoint is not None:
        method = CheckpointMethod(options.checkpoint, options.seed, options.steps, options.guidance)
        return maker_of(method, material), {"name": method.name, **method.description}
    if options.method in BY_LANDMARKS:
        from benchmarks.landmark_warp import LandmarkWarp

        made = maker_of(stack.enter_context(LandmarkWarp()), material)
        return (shuffled(manifest, made) if options.method == "shuffled-driver" else made), _nameless(options.method)
    maker = reference(options.method, manifest, material)
    if maker is None:
        raise ValueError(f"{options.method}: not defined for the {manifest.task} protocol of {manifest.name}")
    return maker, _nameless(options.method)


def _nameless(name: str) -> dict[str, Any]:
    """A model of which nothing is known but its name."""
    return {"name": name, "checkpoint_sha256": None, "sampler": None, "seeds": [], "dtype": None}


def score(options: argparse.Namespace) -> None:
    from benchmarks.reading import Truth
    from benchmarks.suite import open_protocol

    path, manifest, material = open_protocol(options.protocol, options.shards)
    with _extractors(options) as extractors:
        model = _nameless(options.name or options.videos.resolve().name)
        _score(options, options.videos, model, path, Truth(manifest, material, extractors))


def _score(options: argparse.Namespace, videos: Path, model: dict[str, Any], protocol: Path, truth: Truth) -> None:
    from benchmarks.suite import score as score_videos

    result = score_videos(videos, protocol, truth, model, ["python", "-m", "benchmarks", *sys.argv[1:]])
    path = options.out / f"{model['name']}-{options.protocol_name}.json"
    result.save(path)
    for warning in result.content["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    for entry in result.content["metrics"]:
        value = "–" if entry["value"] is None else f"{entry['value']:.4f} {entry['unit']}".rstrip()
        interval = "" if entry["ci95"] is None else f"  [{entry['ci95'][0]:.4f}, {entry['ci95'][1]:.4f}]"
        print(f"{entry['id']:36} {value}{interval}")
    print(path)


def _extractors(options: argparse.Namespace) -> Extractors:
    from benchmarks.suite import make_extractors, reading_device

    o = options
    return make_extractors(
        o.perceptual, o.features, o.identity, o.motion_extractor, o.i3d, o.i3d_sha256, o.force, reading_device(o.device)
    )


def table(options: argparse.Namespace) -> None:
    from benchmarks.results import Result
    from benchmarks.suite import with_comparisons
    from benchmarks.tables import render

    results = [Result.load(path) for path in options.results]
    with_comparisons(results)
    if options.format == "html":
        from benchmarks.films import films
        from benchmarks.report import html

        strips = films(results, options.videos, options.protocol, options.shards) if options.videos else []
        text = html(results, strips)
    else:
        text = render(results, options.format)
    if options.out:
        options.out.write_text(text)
    else:
        print(text)


def verify(options: argparse.Namespace) -> None:
    from benchmarks.suite import verify as verify_result

    with ExitStack() as stack:
        extractors = stack.enter_context(_extractors(options)) if options.videos else None
        for line in verify_result(options.result, options.videos, options.protocol, options.shards, extractors):
            print(line)


def compare(options: argparse.Namespace) -> None:
    from benchmarks.results import Result
    from benchmarks.suite import compare as compare_results

    if len(options.results) < 2:
        raise ValueError("compare needs two result files or more")
    for row in compare_results([Result.load(path) for path in options.results]):
        mark = "*" if row["p_holm"] < 0.05 else " "
        print(
            f"{row['metric']:36} {row['a']} − {row['b']} = {row['a_minus_b']:+.4f}  p {row['p']:.4f}  "
            f"p (Holm) {row['p_holm']:.4f} {mark} n {row['n']}"
        )


def published(options: argparse.Namespace) -> None:
    from benchmarks.published import published as tables

    print(tables(), end="")


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    options.protocol_name = Path(getattr(options, "protocol", "")).stem
    actions = {
        "make": make,
        "run": run,
        "score": score,
        "baselines": baselines,
        "table": table,
        "verify": verify,
        "compare": compare,
        "published": published,
    }
    try:
        actions[options.command](options)
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on", file=sys.stderr)
        return 130
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
