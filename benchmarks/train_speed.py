"""Speed of a training step of any config: where its time goes, how close to the machine it comes, what options give.

    python -m benchmarks.train_speed --config FILE [--config FILE …] [--device cuda] [--random] [--json FILE]
        [--on NAME …] [--off NAME …] [--options NAME … | none] [-- FURTHER ARGUMENTS OF dex.fit]

The base is the config as it is, with the options of --on and --off switched; the table shows each option switched the
other way by itself. All take turns in one run, each turn a training of its own by Lightning's trainer, so that another
load on the machine meets them alike; figures are medians over the turns of a turn's mean, speed-ups medians of ratios
within a round. The matrix rate is that of one large product in the run's precision, measured before every round; the
floor is the counted work of a step (`benchmarks.counting`: cached latents, nothing computed twice) at that rate.

`--random` puts random weights and pictures where something would have to be fetched or trained first: encoders, VAE,
perceptual network, base weights, shards. Synthetic heads stay what they are.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.counting import Count, count, r1_interval
from benchmarks.figures import measured
from benchmarks.memory import peak_resident_bytes, reset_peak, return_freed
from benchmarks.workload import (
    RandomBatches,
    RandomLatents,
    bare_trainer,
    build,
    latent_factor,
    merged,
    random_parts,
    without_downloads,
)
from dex.animator.trainer import Animator
from dex.cores import usable_cores
from dex.data.talking_heads import TalkingHeads

PHASES = ("data wait", "forward", "backward", "optimiser", "EMA")
_OPTIMISATION = "--model.init_args.optimisation"


@dataclass(frozen=True)
class Switches:
    """What a training may have switched on. All but `sdpa`, which nobody would want off, are settings of a run."""

    bf16: bool = False
    sdpa: bool = True
    channels_last: bool = False
    compile: bool = False
    fused: bool = False
    gradient_checkpointing: bool = False
    latent_cache: bool = False

    def arguments(self) -> list[str]:
        """What `python -m dex.fit` would be told."""
        names = ("channels_last", "compile", "fused", "gradient_checkpointing")
        return [f"{_OPTIMISATION}.{name}={str(getattr(self, name)).lower()}" for name in names]

    def flipped(self, name: str) -> Switches:
        return dataclasses.replace(self, **{name: not getattr(self, name)})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_speed", description=__doc__.partition("\n")[0])
    names = [field.name for field in dataclasses.fields(Switches)]
    parser.add_argument("--config", type=Path, action="append", required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--random", action="store_true", help="nothing is fetched: random weights and pictures")
    parser.add_argument("--on", nargs="*", choices=names, default=[], help="switched on in the base")
    parser.add_argument("--off", nargs="*", choices=names, default=[], help="switched off in the base")
    parser.add_argument(
        "--options", nargs="*", choices=[*names, "none"], help="to be compared; default: all that apply"
    )
    parser.add_argument("--steps", type=int, help="measured a turn; default 8, with R1 a whole interval of it")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("fit", nargs="*", help="further arguments of dex.fit, after --")
    arguments = parser.parse_args()
    measured(lambda: run(arguments), arguments.json)


def run(how: argparse.Namespace) -> dict[str, Any]:
    if how.rounds < 1 or how.warm_up < 1 or (how.steps or 1) < 1:
        raise ValueError("--rounds, --warm-up and --steps must be at least 1")
    base = base_switches(how)
    names = applying(how.config) if how.options is None else [name for name in how.options if name != "none"]
    variants = {"base": base} | {name: base.flipped(name) for name in names}
    work = count(how.config, [*how.fit, *base.arguments(), f"{_OPTIMISATION}.gradient_checkpointing=false"])
    steps = how.steps or max(8, r1_interval(how.config))
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    rates: dict[bool, list[float]] = {False: [], True: []}
    failed: dict[str, str] = {}
    for _ in range(how.rounds):
        for half in {switches.bf16 for switches in variants.values()}:
            rates[half].append(matrix_rate(how.device, torch.bfloat16 if half else torch.float32))
        for name, switches in variants.items():
            if name not in failed:
                try:
                    turns[name].append(turn(how, switches, steps))
                except (torch.cuda.OutOfMemoryError, BackendCompilerFailed) as error:
                    if name == "base":
                        raise ValueError(f"base: {first_line(error)}. Switch other options on or off.") from error
                    failed[name] = first_line(error)
    figures = {
        "configs": [path.name for path in how.config],
        "hardware": hardware(how.device),
        "torch": torch.__version__,
        "random": how.random,
        "steps": steps,
        "rounds": how.rounds,
        "base": dataclasses.asdict(base),
        "counted": {
            "tflop_per_step": work.flops / 1e12,
            "tflop_per_sample": work.flops / work.samples / 1e12,
            "peak_gb": work.peak / 1e9,
        },
        "matrix_tflops": {
            ("bf16" if half else "fp32"): statistics.median(seen) for half, seen in rates.items() if seen
        },
        "variants": {
            name: summary(seen, turns["base"], work, statistics.median(rates[variants[name].bf16]))
            | ({} if name == "base" else {"on": getattr(variants[name], name)})
            for name, seen in turns.items()
            if name not in failed
        }
        | {name: {"failed": why, "on": getattr(variants[name], name)} for name, why in failed.items()},
    }
    print("\n".join(told(figures)))
    return figures


def base_switches(how: argparse.Namespace) -> Switches:
    settings = merged(how.config)
    optimisation = settings["model"]["init_args"].get("optimisation", {})
    motion = settings["model"]["class_path"].endswith("MotionTrainer")
    base = Switches(
        bf16=settings["trainer"].get("precision") == "bf16-mixed",
        channels_last=optimisation.get("channels_last", motion),
        compile=optimisation.get("compile", False),
        fused=optimisation.get("fused", False),
        gradient_checkpointing=optimisation.get("gradient_checkpointing", False),
        latent_cache=bool(settings["data"]["init_args"].get("latents")),
    )
    return dataclasses.replace(base, **dict.fromkeys(how.on, True), **dict.fromkeys(how.off, False))


def applying(configs: Sequence[Path]) -> list[str]:
    """Stage 1 has no attention and no latents."""
    names = [field.name for field in dataclasses.fields(Switches)]
    if merged(configs)["model"]["class_path"].endswith("MotionTrainer"):
        return [name for name in names if name not in ("sdpa", "latent_cache")]
    return names


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# ---- one training ----------------------------------------------------------------------------------------------------


def turn(how: argparse.Namespace, switches: Switches, steps: int) -> dict[str, float]:
    """Means over the measured steps, in seconds; `peak` in bytes."""
    with torch.device(how.device):
        changes = [*how.fit, *switches.arguments(), *(without_downloads(how.config) if how.random else [])]
        cli = build(how.config, changes)
        if how.random:
            random_parts(cli.model, merged(how.config)["model"]["init_args"].get("perceptual") != "none")
    data: Any = cli.datamodule
    if how.random and isinstance(data, TalkingHeads):
        data = RandomBatches(data)
    watch = Stopwatch(how.device, how.warm_up)
    callbacks: list[L.Callback] = [watch]
    if switches.latent_cache and isinstance(cli.model, Animator):
        callbacks.append(RandomLatents(cli.model.network.config.latent_channels, latent_factor(cli.model.codec_name)))
    trainer = bare_trainer(how.warm_up + steps, how.device, "bf16-mixed" if switches.bf16 else "32-true", callbacks)
    begin_memory(how.device)
    plain = contextlib.nullcontext() if switches.sdpa else sdpa_kernel(SDPBackend.MATH)
    with plain, watch.over_average(cli.model):
        trainer.fit(cli.model, datamodule=data)
    figures = watch.means() | {"peak": float(peak_memory(how.device)), "samples": float(data.batch_size)}
    del cli, trainer, data, callbacks
    return figures


class Stopwatch(L.Callback):
    """Notes when which part of a step begins: on the clock, or on a GPU by events in its queue, which is where its time
    goes; there `data wait` is the time in which the queue had run empty."""

    def __init__(self, device: str, warm_up: int) -> None:
        self.cuda, self.warm_up = device == "cuda", warm_up
        self.marks: list[tuple[str, Any]] = []
        self.seen = 0

    def mark(self, phase: str) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((phase, event))
        else:
            self.marks.append((phase, time.perf_counter()))

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda *_: self.mark("forward"))

    def on_train_batch_start(self, *_: Any) -> None:
        self.mark("forward")

    def on_before_backward(self, *_: Any) -> None:
        self.mark("backward")

    def on_after_backward(self, *_: Any) -> None:
        self.mark("optimiser")

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen += 1
        if self.seen == self.warm_up:
            self.marks.clear()
        self.mark("data wait")

    @contextlib.contextmanager
    def over_average(self, model: L.LightningModule) -> Iterator[None]:
        """Watches the moving average of the weights, for which Lightning has no hook."""
        module: Any = sys.modules[type(model).__module__]
        update: Callable[..., None] = module.update_average

        def watched(*given: Any) -> None:
            self.mark("EMA")
            update(*given)
            self.mark("forward")

        module.update_average = watched
        try:
            yield
        finally:
            module.update_average = update

    def means(self) -> dict[str, float]:
        """Seconds of each phase, and of the step, over the steps after the warm-up."""
        if self.cuda:
            torch.cuda.synchronize()
        spent = dict.fromkeys(PHASES, 0.0)
        for (phase, begin), (_, end) in zip(self.marks, self.marks[1:], strict=False):
            spent[phase] += begin.elapsed_time(end) / 1000 if self.cuda else end - begin
        steps = self.seen - self.warm_up
        return {name: value / steps for name, value in spent.items()} | {"step": sum(spent.values()) / steps}


def begin_memory(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        return_freed()
        reset_peak()


def peak_memory(device: str) -> int:
    """Of the device, or on the CPU of this process, libraries and pictures included."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else peak_resident_bytes()


# ---- figures ---------------------------------------------------------------------------------------------------------


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """TFLOP/s of a large square product: the best of ten, since anything slower was disturbed."""
    side = 8192 if device == "cuda" else 1024
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    best = float("inf")
    for number in range(12):
        wait(device)
        begin = time.perf_counter()
        a @ b
        wait(device)
        if number > 1:
            best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best / 1e12


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{usable_cores()} CPU cores ({platform.machine()}), {torch.get_num_threads()} threads"


def summary(seen: list[dict[str, float]], base: list[dict[str, float]], work: Count, rate: float) -> dict[str, Any]:
    """Milliseconds and shares; `speed_up` over the base, of turns of the same round."""
    step = statistics.median(each["step"] for each in seen)
    achieved = work.flops / step / 1e12
    return {
        "step_ms": 1000 * step,
        "samples_per_second": seen[0]["samples"] / step,
        "split_ms": {name: 1000 * statistics.median(each[name] for each in seen) for name in PHASES},
        "data_wait_share": statistics.median(each["data wait"] / each["step"] for each in seen),
        "tflops": achieved,
        "matrix_share": achieved / rate,
        "floor_ms": 1000 * work.flops / rate / 1e12,
        "peak_gb": max(each["peak"] for each in seen) / 1e9,
        "speed_up": statistics.median(b["step"] / s["step"] for b, s in zip(base, seen, strict=True)),
    }


def told(figures: dict[str, Any]) -> list[str]:
    """The figures as Markdown."""
    variants, counted = figures["variants"], figures["counted"]
    base = variants["base"]
    lines = [
        f"{' + '.join(figures['configs'])} on {figures['hardware']}, "
        f"{figures['rounds']} rounds of {figures['steps']} steps",
        f"counted {counted['tflop_per_step']:.4g} TFLOP a step, {counted['tflop_per_sample']:.4g} a sample; "
        + ", ".join(f"matrix rate {rate:.4g} TFLOP/s ({name})" for name, rate in figures["matrix_tflops"].items()),
        f"base: step {base['step_ms']:.1f} ms (floor {base['floor_ms']:.1f}), "
        f"{base['samples_per_second']:.2f} samples/s, {base['tflops']:.4g} TFLOP/s = "
        f"{base['matrix_share']:.0%} of the matrix rate, "
        + ", ".join(f"{name} {value:.1f}" for name, value in base["split_ms"].items()),
        "",
        "| option | switched | step, ms | against base | of matrix rate | data wait | peak, GB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in variants.items():
        switched = "" if name == "base" else "on" if row["on"] else "off"
        if "failed" in row:
            lines.append(f"| {name} | {switched} | {row['failed']} | | | | |")
            continue
        lines.append(
            f"| {name} | {switched} | {row['step_ms']:.1f} | {row['speed_up']:.2f}× | {row['matrix_share']:.0%} "
            f"| {row['data_wait_share']:.1%} | {row['peak_gb']:.2f} |"
        )
    return lines


if __name__ == "__main__":
    main()
