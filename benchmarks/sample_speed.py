"""Speed of making a video, a frame: the diffusion sampler with and without guidance, the decoders, and stage 1 alone.

    python -m benchmarks.sample_speed [--config FILE] [--motion-config FILE] [--frames 24] [--device cuda] [--json FILE]

Random weights. The defaults are the toy configs, which a CPU can take; on a GPU give the paper's
(configs/animator_paper_512_image.yaml, configs/motion_paper_256.yaml) and more frames than one window of 24 has, since
windows overlap by 4. bf16 on a GPU, float32 on a CPU. The floor is the counted work at the rate of one large matrix
product, measured in the same run. Variants take turns; milliseconds are medians over the rounds.

- `late expression`: the paper's guidance; a branch that has no weight at a step is not evaluated.
- `nothing kept`: the same, with what no step changes computed at every step.
- `expression at once`: delay and blend 0, always the same two branches. `unguided`: scale 1, half the work.
- decoders: on latents of the config's picture size, Stable Diffusion's VAE, its small TAESD, and space-to-depth.
- motion trainer: one forward pass a frame, reading the driver included; the source has been read before.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import AutoencoderTiny

from benchmarks.animator import Bench, network_config
from benchmarks.counting import Meter
from benchmarks.figures import measured
from benchmarks.train_speed import begin_memory, hardware, matrix_rate, peak_memory, wait
from benchmarks.workload import latent_factor, merged, random_codec
from dex.animator.codec import Autoencoder, Codec
from dex.animator.conditions import FrameConditions
from dex.motion.config import MotionConfig
from dex.motion.generator import MotionGenerator

CONFIGS = Path(__file__).parents[1] / "configs"
GUIDANCE: dict[str, dict[str, Any]] = {
    "late expression": {},
    "expression at once": {"delay": 0, "blend": 0},
    "unguided": {"scale": 1, "delay": 0, "blend": 0},
}
DECODERS = ("VAE", "TAESD", "space-to-depth")


@dataclass(frozen=True)
class Work:
    """Something that makes `frames` frames."""

    run: Callable[[], object]
    frames: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sample_speed", description=__doc__.partition("\n")[0])
    parser.add_argument("--config", type=Path, default=CONFIGS / "animator_quick.yaml", help="of an animator")
    parser.add_argument("--motion-config", type=Path, default=CONFIGS / "quickstart.yaml", help="of a motion trainer")
    parser.add_argument("--frames", type=int, default=24, help="of the sampled video")
    parser.add_argument("--steps", type=int, help="of the sampler; default: the config's")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    measured(lambda: run(arguments), arguments.json)


def run(how: argparse.Namespace) -> dict[str, Any]:
    if min(how.frames, how.rounds, how.steps or 1) < 1:
        raise ValueError("--frames, --steps and --rounds must be at least 1")
    torch.manual_seed(0)
    dtype = torch.bfloat16 if how.device == "cuda" else torch.float32
    settings = merged([how.config])
    size, init = settings["data"]["init_args"]["size"], settings["model"]["init_args"]
    steps = how.steps or init.get("sampler", {}).get("steps", 35)
    bench = Bench(network_config(how.config), torch.device(how.device), size // latent_factor(init["codec"]))
    bench.for_inference(dtype)
    calls = bench.count_calls()
    works = {f"sampler, {name}": sampler(bench, how.frames, steps, guidance) for name, guidance in GUIDANCE.items()}
    works["sampler, nothing kept"] = forgetful(works["sampler, late expression"])
    works |= {f"decoder, {name}": decoder(name, size, how.device, dtype) for name in DECODERS}
    works["motion trainer"] = one_pass(how.motion_config, how.device, dtype)
    counted = {name: counts(work, calls, how.device) for name, work in works.items()}  # and a warm-up
    seconds: dict[str, list[float]] = {name: [] for name in works}
    rates = []
    for _ in range(how.rounds):
        rates.append(matrix_rate(how.device, dtype))
        for name, work in works.items():
            wait(how.device)
            begin = time.perf_counter()
            with torch.inference_mode():
                work.run()
            wait(how.device)
            seconds[name].append((time.perf_counter() - begin) / work.frames)
    rate = statistics.median(rates)
    rows = {
        name: figures
        | {
            "ms_per_frame": 1000 * statistics.median(seconds[name]),
            "floor_ms": figures["tflop_per_frame"] / rate * 1000,
            "matrix_share": figures["tflop_per_frame"] / rate / statistics.median(seconds[name]),
        }
        for name, figures in counted.items()
    }
    report = {
        "configs": [how.config.name, how.motion_config.name],
        "hardware": hardware(how.device),
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "size": size,
        "frames": how.frames,
        "steps": steps,
        "rounds": how.rounds,
        "matrix_tflops": rate,
        "rows": rows,
    }
    print("\n".join(told(report)))
    return report


def sampler(bench: Bench, frames: int, steps: int, guidance: dict[str, Any]) -> Work:
    settings = bench.settings(steps, **guidance)
    return Work(lambda: bench.video(frames, settings), frames)


def forgetful(work: Work) -> Work:
    def run() -> None:
        with mock.patch.object(FrameConditions, "recall", lambda _told, _name, make: make()):
            work.run()

    return Work(run, work.frames)


def decoder(name: str, size: int, device: str, dtype: torch.dtype) -> Work:
    """Four frames at a time, as `decode_frames` does; latents of noise."""
    codec: Codec
    with torch.device(device):
        if name == "TAESD":
            codec = Autoencoder(AutoencoderTiny(), "random")
        else:
            codec = random_codec("space-to-depth:8" if name == "space-to-depth" else "random")
        latents = torch.randn(4, codec.channels, size // codec.factor, size // codec.factor)
    codec.to(dtype)
    return Work(lambda: codec.decode(latents), len(latents))


def one_pass(config: Path, device: str, dtype: torch.dtype) -> Work:
    """Pose and code of a driver's picture, then the picture: stage 1 at work, frame by frame."""
    settings = merged([config])["model"]["init_args"]
    try:
        network = MotionConfig.from_dict(settings.get("network", {}))
    except TypeError as error:
        raise ValueError(f"{config}: no configuration of a motion trainer ({error})") from error
    with torch.device(device):
        generator = MotionGenerator(network).requires_grad_(False).eval()
        picture = torch.rand(1, 3, network.size, network.size) * 2 - 1
    pose = generator.pose_encoder(picture)
    feature = generator.appearance_encoder(picture, pose)
    style = generator.style_encoder(feature)

    def frame() -> None:
        with torch.autocast(device, dtype, enabled=dtype is not torch.float32):
            driving_pose, expression = generator.read_motion(picture)
            generator.animate(feature, style, pose, driving_pose[:, None], expression[:, None])

    return Work(frame, 1)


def counts(work: Work, calls: dict[str, int], device: str) -> dict[str, Any]:
    """What one run computes, calls and needs."""
    calls.update(dict.fromkeys(calls, 0))
    begin_memory(device)
    with torch.inference_mode(), Meter() as meter:
        work.run()
    figures = {"tflop_per_frame": meter.flops / work.frames / 1e12, "peak_gb": peak_memory(device) / 1e9}
    return figures | ({"unet_calls": calls["denoiser_calls"]} if calls["denoiser_calls"] else {})


def told(report: dict[str, Any]) -> list[str]:
    """The figures as Markdown."""
    lines = [
        f"{' and '.join(report['configs'])} on {report['hardware']}, {report['dtype']}, {report['size']}², "
        f"{report['frames']} frames, {report['steps']} steps, {report['rounds']} rounds, "
        f"matrix rate {report['matrix_tflops']:.4g} TFLOP/s",
        "",
        "| a frame | UNet calls | GFLOP | ms | floor, ms | of matrix rate | peak, GB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in report["rows"].items():
        lines.append(
            f"| {name} | {row.get('unet_calls', '')} | {1000 * row['tflop_per_frame']:.2f} | {row['ms_per_frame']:.2f} "
            f"| {row['floor_ms']:.2f} | {row['matrix_share']:.0%} | {row['peak_gb']:.2f} |"
        )
    return lines


if __name__ == "__main__":
    main()
