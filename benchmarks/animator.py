"""Speed and memory of stage 2 with random weights: a forward pass, a training step, a sampled video.

    python -m benchmarks.animator [--size 512] [--frames 24] [--device cuda] [--config FILE] [--json FILE]

The defaults are the paper's: Stable Diffusion 1.5's width at 512², bf16, 24 frames, 35 steps, guidance. The training
step is that of the image phase: 4 drivers of one source, float32 weights under autocast, gradient checkpointing, AdamW.
Latents are random; the image codec is not part of it. `peak_gb` is torch's own count, on a GPU only.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from benchmarks.figures import measured
from dex.animator.conditions import Conditions
from dex.animator.config import AnimatorConfig
from dex.animator.sampler import SamplerSettings, sample
from dex.animator.unet import AnimatorUNet
from dex.pose import make_pose, matrix_from_euler

DRIVERS = 4


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.animator", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=512, help="pixels a side; the latent has an eighth of it")
    parser.add_argument("--frames", type=int, default=24, help="of the sampled video")
    parser.add_argument("--steps", type=int, default=35, help="of the sampler")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--config", type=Path, help="of a run, for its network; default: the paper's")
    parser.add_argument(
        "--repeats", type=int, default=3, help="timings of forward and training step; the median counts"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    measured(lambda: run(arguments), arguments.json)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.size < 64 or arguments.size % 64:
        raise ValueError(f"--size {arguments.size}: needs a multiple of 64")
    if min(arguments.frames, arguments.steps, arguments.repeats) < 1:
        raise ValueError("--frames, --steps and --repeats must be at least 1")
    torch.manual_seed(0)
    bench = Bench(network_config(arguments.config), torch.device(arguments.device), arguments.size // 8)
    cuda = bench.device.type == "cuda"
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "size": arguments.size,
        "parameters_million": round(sum(p.numel() for p in bench.network.parameters()) / 1e6, 2),
        "training_step": bench.measure(bench.training_step, arguments.repeats),
    }
    bench.for_inference()
    figures["forward"] = bench.measure(bench.forward, arguments.repeats)
    calls = bench.count_calls()
    video = bench.measure(lambda: bench.video(arguments.frames, bench.settings(arguments.steps)), 1)
    figures["video"] = video | {"frames": arguments.frames, "steps": arguments.steps} | calls
    for name in ("forward", "training_step", "video"):
        print(name, ", ".join(f"{key} {value}" for key, value in figures[name].items()))
    return figures


def network_config(path: Path | None) -> AnimatorConfig:
    """Raises `ValueError` for a file that is no animator's configuration."""
    if path is None:
        return AnimatorConfig()
    try:
        model = yaml.safe_load(path.read_text())["model"]
        if not model["class_path"].endswith(".Animator"):
            raise KeyError(model["class_path"])
        return AnimatorConfig(**model["init_args"].get("network", {}))
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no configuration of an animator ({error!r})") from error


class Bench:
    def __init__(self, config: AnimatorConfig, device: torch.device, side: int) -> None:
        with torch.device(device):
            self.network = AnimatorUNet(config)
        self.network.enable_gradient_checkpointing()
        self.device, self.side, self.config = device, side, config
        self.optimizer = torch.optim.AdamW(list(self.network.spatial_parameters()), 1e-5)

    def measure(self, work: Callable[[], object], repeats: int) -> dict[str, float]:
        """Median milliseconds after one run to warm up (which a video, run once, has had by the forward pass)."""
        cuda = self.device.type == "cuda"
        if repeats > 1:
            work()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(repeats):
            self.wait()
            begin = time.perf_counter()
            work()
            self.wait()
            times.append(1000 * (time.perf_counter() - begin))
        figures = {"ms": round(statistics.median(times), 1)}
        return figures | {"peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)} if cuda else figures

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def latents(self, *batch: int) -> Tensor:
        return torch.randn(*batch, self.config.latent_channels, self.side, self.side, device=self.device)

    def poses(self, *batch: int) -> Tensor:
        yaw, pitch, roll = 0.3 * torch.randn(3, *batch, device=self.device)
        still = torch.zeros(*batch, 3, device=self.device)
        return make_pose(matrix_from_euler(yaw, pitch, roll), still, still[..., 0] + 1)

    def told(self, frames: int) -> Conditions:
        """Of `frames` frames of one source, the reference encoded now."""
        source_pose = self.poses(1)
        expression = torch.randn(1, frames, self.config.expression_dim, device=self.device)
        reference = self.network.encode_reference(self.latents(1), source_pose)
        return Conditions(source_pose, self.poses(1, frames), reference, expression)

    def noise(self, told: Conditions, temporal: bool) -> Tensor:
        """ε of its frames."""
        latents = self.latents(1, told.driving_pose.shape[1])
        return self.network(latents, torch.tensor([500], device=self.device), told, temporal)

    def training_step(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16):
            error = self.noise(self.told(DRIVERS), temporal=False).float().square().mean()
        error.backward()
        self.optimizer.step()

    def for_inference(self, dtype: torch.dtype = torch.bfloat16) -> None:
        """As an export, by default in half precision, is loaded, without what training holds."""
        del self.optimizer
        self.network.requires_grad_(False).eval().to(dtype)
        for parameter in self.network.parameters():
            parameter.grad = None

    @torch.inference_mode()
    def forward(self) -> None:
        self.noise(self.told(1), temporal=False)

    def count_calls(self) -> dict[str, int]:
        """A tally, filled while the networks are used."""
        calls = {"reference_calls": 0, "denoiser_calls": 0}

        def hook(name: str) -> Callable[..., None]:
            def add(*_: object) -> None:
                calls[name] += 1

            return add

        self.network.reference.register_forward_pre_hook(hook("reference_calls"))
        self.network.denoiser.register_forward_pre_hook(hook("denoiser_calls"))
        return calls

    def settings(self, steps: int, **guidance: Any) -> SamplerSettings:
        """The paper's, with windows no longer than the network's."""
        window = min(24, self.config.frames)
        return SamplerSettings(steps=steps, window=window, overlap=min(4, self.config.frames // 2), **guidance)

    @torch.inference_mode()
    def video(self, frames: int, settings: SamplerSettings) -> None:
        codes = torch.randn(frames, self.config.expression_dim)
        motion = zip(self.poses(frames).cpu(), codes, strict=True)
        for _ in sample(self.network, self.latents(1)[0], self.poses(), motion, settings):
            pass


if __name__ == "__main__":
    main()
