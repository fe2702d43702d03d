"""What training needs on many GPUs, computed from the real configs: memory, communication, loading, checkpoints.

    python -m benchmarks.scaling [--gpus 8 64 512] [--config FILE …] [--tflops 790] … [--write docs/scaling.md]

Networks are built on the meta device and a step is counted (`benchmarks.counting`); how weights are divided follows
FSDP2 (along the first dimension, rounded up) and the units that the trainers shard. Every assumption about machines is
an option, and is printed with the tables. `--write` puts the tables between the marks of a document.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.animator import Bench, network_config
from benchmarks.counting import Count, Meter, count, on_meta, r1_interval
from benchmarks.workload import latent_factor, merged
from dex.animator.conditions import Memory
from dex.animator.sampler import SamplerSettings
from dex.animator.trainer import Animator

CONFIGS = Path(__file__).parents[1] / "configs"
PAPER = ("motion_paper_256.yaml", "animator_paper_512_image.yaml", "animator_paper_512_video.yaml")
BEGIN, END = "<!-- python -m benchmarks.scaling: begin -->", "<!-- end -->"
SHARDS_PER_PROCESS = 4  # fewer, and a loader's processes share shards unevenly
_ADAM = 8  # bytes of both moments, float32


@dataclass(frozen=True)
class Machine:
    """Assumptions; rates of one direction."""

    node: int = 8  # GPUs of a node
    tflops: float = 790.0  # matrix rate of a GPU in bf16, TFLOP/s
    share: float = 0.45  # of it that a step reaches
    nvlink: float = 400.0  # GB/s of a GPU to the others in its node
    network: float = 50.0  # GB/s of a GPU to other nodes
    storage: float = 2.0  # GB/s that a node writes
    clip_mb: float = 4.0  # an encoded clip
    frames_core: float = 120.0  # decoded at random places by a core, a second
    frames_core_clip: float = 600.0  # decoded one after another


@dataclass(frozen=True)
class Unit:
    """Weights that are gathered together: shapes of the trained ones and of the frozen ones."""

    trained: tuple[torch.Size, ...]
    frozen: tuple[torch.Size, ...]
    average: bool  # of the moving average, which no training step gathers
    backward: bool  # gathered again in the backward pass

    @property
    def numel(self) -> int:
        return sum(shape.numel() for shape in (*self.trained, *self.frozen))


@dataclass(frozen=True)
class Training:
    """All that the tables need of one config."""

    name: str
    work: Count
    units: tuple[Unit, ...]
    whole: int  # trained weights that stay whole on each rank
    half: bool  # weights gathered in bf16
    backwards: int  # passes a step, each of which DDP follows by an all-reduce of everything
    workers: int
    samples_per_clip: int
    clip: bool  # consecutive frames
    denoiser: int  # operations for a frame of a window; 0: no sampler


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.partition("\n")[0])
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--config", type=Path, action="append", help="default: the paper's three")
    for field in dataclasses.fields(Machine):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    parser.add_argument("--write", type=Path, help="put the tables between the marks of this document")
    arguments = vars(parser.parse_args())
    machine = Machine(**{field.name: arguments[field.name] for field in dataclasses.fields(Machine)})
    try:
        configs = arguments["config"] or [CONFIGS / name for name in PAPER]
        text = report([training(config) for config in configs], arguments["gpus"], machine)
        print(text)
        if arguments["write"]:
            arguments["write"].write_text(placed(arguments["write"].read_text(), text))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def placed(document: str, text: str) -> str:
    """The document with `text` between its marks. Raises `ValueError` where it has none."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the document has no place for the tables: needed are the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


# ---- what is read off the configs ------------------------------------------------------------------------------------


def training(config: Path) -> Training:
    """Builds and counts; with Adam's moments for all weights, since Muon is refused where they are sharded."""
    settings = merged([config])
    with_adam = ["--model.init_args.optimisation.muon=0"]
    cli, _ = on_meta([config], with_adam)
    model: Any = cli.model
    video = isinstance(model, Animator) and model.phase == "video"
    units = sharded_units(model)
    within = {id(parameter) for unit in units for parameter in unit.parameters()}
    described = [describe(unit, model, units, video) for unit in units]
    whole = [p for p in model.parameters() if p.requires_grad and id(p) not in within]
    data: Any = cli.datamodule
    return Training(
        name=config.stem,
        work=count([config], with_adam),
        units=tuple(described),
        whole=sum(parameter.numel() for parameter in whole),
        half=settings["trainer"].get("precision") == "bf16-mixed",
        backwards=2 if r1_interval([config]) > 1 else 1,
        workers=data.workers,
        samples_per_clip=getattr(data, "samples_per_clip", 1),
        clip=getattr(getattr(data, "sampling", None), "mode", "pairs") == "clip",
        denoiser=of_a_frame(config, data.size // latent_factor(model.codec_name)) if video else 0,
    )


def of_a_frame(config: Path, side: int) -> int:
    """Operations by which the denoiser treats one frame of a window, once; at a later step than the first, which has
    left in memory what no step changes."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        bench = Bench(network_config(config), torch.device("cpu"), side)
        bench.network.requires_grad_(False).eval()
        told = dataclasses.replace(bench.told(bench.config.frames), memory=Memory())
        bench.noise(told, temporal=True)
        with Meter() as later:
            bench.noise(told, temporal=True)
    return later.flops // bench.config.frames


def sharded_units(model: Any) -> list[nn.Module]:
    """What the trainer's own `configure_model` shards, inner ones first."""
    found: list[nn.Module] = []
    with mock.patch(f"{type(model).__module__}.shard", lambda _, units: found.extend(units)):
        model.configure_model()
    return found


def describe(unit: nn.Module, model: Any, units: list[nn.Module], video: bool) -> Unit:
    """The unit's own weights, those of units inside it left out."""
    inside = {
        id(p) for other in units if other is not unit and other in set(unit.modules()) for p in other.parameters()
    }
    own = [parameter for parameter in unit.parameters() if id(parameter) not in inside]
    average = {id(parameter) for parameter in model.average.parameters()}
    # The video phase trains nothing in the reference UNet, nor before it: no gradient comes there.
    reaches = not (video and unit is model.network.reference)
    return Unit(
        trained=tuple(parameter.shape for parameter in own if parameter.requires_grad),
        frozen=tuple(parameter.shape for parameter in own if not parameter.requires_grad),
        average=all(id(parameter) in average for parameter in own),
        backward=reaches,
    )


# ---- memory ----------------------------------------------------------------------------------------------------------


def part(shapes: Sequence[torch.Size], ranks: int) -> int:
    """Numbers on the fullest rank: FSDP2 cuts along the first dimension; of 320 rows on 512 ranks, some get one."""
    return sum(-(-shape[0] // ranks) * (shape.numel() // shape[0]) if len(shape) else 1 for shape in shapes)


def memory(run: Training, ranks: int | None) -> dict[str, float]:
    """GB on the fullest GPU; `ranks` among which weights are sharded, None: DDP."""
    work = run.work
    if ranks is None:
        row = {
            "weights": work.parameters,
            "gradients": 2 * work.gradients,  # and DDP's buckets, which it reduces
            "Adam": work.optimiser,
            "EMA": work.average,
            "gathered": 0,
        }
    else:
        trained = run.whole + sum(part(unit.trained, ranks) for unit in run.units)
        frozen = sum(part(unit.frozen, ranks) for unit in run.units if not unit.average)
        used = sorted((unit.numel for unit in run.units if not unit.average), reverse=True)
        reduced = max(sum(shape.numel() for shape in unit.trained) for unit in run.units)
        row = {
            "weights": 4 * (trained + frozen),
            "gradients": 4 * trained,
            "Adam": _ADAM * trained,
            "EMA": 4 * sum(part(unit.frozen, ranks) for unit in run.units if unit.average),
            # Weights of the unit in use and of the one fetched ahead, and a unit's gradient before it is shared out.
            "gathered": (2 if run.half else 4) * sum(used[:2]) + 4 * reduced,
        }
    row |= {"others": work.frozen, "activations": work.activations}
    return {name: value / 1e9 for name, value in row.items()} | {"total": sum(row.values()) / 1e9}


# ---- communication ---------------------------------------------------------------------------------------------------


def communication(run: Training, gpus: int, machine: Machine, strategy: str) -> dict[str, float]:
    """GB that a GPU sends a step within its node and to others, and the seconds of both by rings; nothing overlaps."""
    trained = run.work.trained
    inside = min(gpus, machine.node)
    one_node = gpus <= machine.node
    if strategy == "DDP":
        everything = run.backwards * ring(4 * trained, gpus) * 2
        sent = (everything, 0.0) if one_node else (0.0, everything)
    else:
        among = gpus if strategy == "FSDP" else inside
        bytes_each = 2 if run.half else 4
        used = [unit for unit in run.units if not unit.average]
        gathered = sum(bytes_each * unit.numel * (2 if unit.backward else 1) for unit in used)
        shared = sum(4 * shape.numel() for unit in used for shape in unit.trained)
        flat = ring(gathered + shared, among)
        copies = gpus // among
        between = 2 * ring(shared / among, copies)  # the all-reduce of a rank's part over the copies
        alone = 2 * ring(4 * run.whole, gpus)  # of weights that stay whole
        sent = (flat + alone, 0.0) if one_node else (0.0, flat + alone) if copies == 1 else (flat, between + alone)
    seconds = sent[0] / machine.nvlink / 1e9 + sent[1] / machine.network / 1e9
    return {"within": sent[0] / 1e9, "between": sent[1] / 1e9, "ms": 1000 * seconds}


def ring(size: float, ranks: int) -> float:
    """Bytes that each rank sends to gather, or to reduce and scatter, `size` bytes over a ring."""
    return size * (ranks - 1) / ranks


# ---- tables ----------------------------------------------------------------------------------------------------------


def step_seconds(run: Training, machine: Machine) -> float:
    return run.work.flops / (machine.tflops * 1e12 * machine.share)


def report(runs: Sequence[Training], gpus: Sequence[int], machine: Machine) -> str:
    assumed = ", ".join(f"{field.name} {getattr(machine, field.name):g}" for field in dataclasses.fields(Machine))
    tables = (
        ("Work of a step", work_table(runs, machine)),
        ("Sampling a frame, two branches throughout", sampling_table(runs, machine)),
        ("Memory of the fullest GPU, GB", memory_table(runs, gpus, machine)),
        ("Communication of a GPU and step", communication_table(runs, gpus, machine)),
        ("Loading, a node", loading_table(runs, gpus, machine)),
        ("Checkpoints", checkpoint_table(runs, gpus, machine)),
    )
    return "\n\n".join([f"Assumed (`Machine`): {assumed}.", *(f"### {title}\n\n{table}" for title, table in tables)])


def table(head: Sequence[str], rows: Iterator[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def work_table(runs: Sequence[Training], machine: Machine) -> str:
    rows = (
        [
            run.name,
            f"{run.work.trained / 1e6:.1f}",
            run.work.samples,
            f"{run.work.flops / 1e12:.1f}",
            f"{run.work.flops / run.work.samples / 1e12:.2f}",
            f"{1000 * run.work.flops / machine.tflops / 1e12:.0f}",
            f"{1000 * step_seconds(run, machine):.0f}",
        ]
        for run in runs
    )
    head = ["config", "trained, M", "samples", "TFLOP", "TFLOP a sample", "floor, ms", "at the assumed share, ms"]
    return table(head, rows)


def sampling_table(runs: Sequence[Training], machine: Machine) -> str:
    how = SamplerSettings()
    calls = 2 * how.steps * how.window / (how.window - how.overlap)

    def rows() -> Iterator[Sequence[object]]:
        for run in runs:
            if run.denoiser:
                work = calls * run.denoiser / 1e12
                each = f"{run.denoiser / 1e12:.2f}"
                yield [run.name, how.steps, f"{calls:.0f}", each, f"{work:.0f}", f"{1000 * work / machine.tflops:.0f}"]

    return table(["config", "steps", "times a frame is treated", "TFLOP each", "TFLOP", "floor, ms"], rows())


def strategies(gpus: Sequence[int], machine: Machine) -> Iterator[tuple[str, int]]:
    for number, strategy in itertools.product(gpus, ("DDP", "FSDP", "hybrid")):
        if strategy != "hybrid" or number > machine.node:  # within one node it is the same as FSDP
            yield strategy, number


def memory_table(runs: Sequence[Training], gpus: Sequence[int], machine: Machine) -> str:
    def rows() -> Iterator[Sequence[object]]:
        for run in runs:
            yield from (
                [run.name, title, *(f"{value:.2f}" for value in memory(run, ranks).values())]
                for title, ranks in [("DDP", None), *((f"FSDP over {n}", n) for n in sharded_over(gpus, machine))]
            )

    return table(
        ["config", "sharding", "weights", "gradients", "Adam", "EMA", "gathered", "others", "activations", "total"],
        rows(),
    )


def sharded_over(gpus: Sequence[int], machine: Machine) -> list[int]:
    """Hybrid is what FSDP over a node is."""
    return sorted({*gpus, machine.node} if max(gpus) > machine.node else {*gpus})


def communication_table(runs: Sequence[Training], gpus: Sequence[int], machine: Machine) -> str:
    def rows() -> Iterator[Sequence[object]]:
        for run, (strategy, number) in itertools.product(runs, strategies(gpus, machine)):
            sent = communication(run, number, machine, strategy)
            share = sent["ms"] / 1000 / step_seconds(run, machine)
            figures = (f"{sent['within']:.2f}", f"{sent['between']:.2f}", f"{sent['ms']:.0f}", f"{share:.0%}")
            yield [run.name, number, strategy, *figures]

    return table(["config", "GPUs", "strategy", "GB in the node", "GB between nodes", "ms", "of the step"], rows())


def loading_table(runs: Sequence[Training], gpus: Sequence[int], machine: Machine) -> str:
    def rows() -> Iterator[Sequence[object]]:
        for run in runs:
            samples = machine.node * run.work.samples / step_seconds(run, machine)
            frames = samples * run.work.frames
            rate = machine.frames_core_clip if run.clip else machine.frames_core
            megabytes = samples / run.samples_per_clip * machine.clip_mb
            shards = (SHARDS_PER_PROCESS * number * run.workers for number in gpus)
            yield [run.name, *(f"{value:.0f}" for value in (samples, frames, megabytes, frames / rate)), *shards]

    head = ["config", "samples/s", "frames/s", "MB/s read", "cores to decode", *(f"shards, {n} GPUs" for n in gpus)]
    return table(head, rows())


def checkpoint_table(runs: Sequence[Training], gpus: Sequence[int], machine: Machine) -> str:
    def rows() -> Iterator[Sequence[object]]:
        for run in runs:
            stored = run.work.parameters + run.work.average + run.work.optimiser
            whole = stored / machine.storage / 1e9
            nodes = [-(-number // machine.node) for number in gpus]
            yield [
                run.name,
                f"{stored / 1e9:.1f}",
                f"{(stored - run.work.optimiser) / 1e9:.1f}",
                f"{whole:.0f}",
                *(f"{whole / many:.1f}" for many in nodes),
            ]

    head = ["config", "GB", "of it weights and EMA", "written by one node, s", *(f"by {n} GPUs, s" for n in gpus)]
    return table(head, rows())


if __name__ == "__main__":
    main()
