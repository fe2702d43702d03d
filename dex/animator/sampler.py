"""From one source and a stream of poses and expressions to a stream of latents: any length, in constant memory.

A video is denoised in windows of 24 frames that overlap by 4, one after the other (or `window_batch` at a time):

- The noise of frame i, and what a stochastic scheduler adds at its steps, are functions of (seed, i) alone. Two windows
  that share a frame start it from the same noise, so their trajectories for it stay close, and a mean of the two keeps
  the noise at its right strength (independent noises would average out).
- After *every* step the first 4 frames of a window are drawn to the last 4 of the window before it, after the same
  step: z ← (1 − r) z_before + r z, with r = 1/5, 2/5, 3/5, 4/5 over the overlap. Temporal attention carries that to
  the frames behind. Where two windows disagree about a frame by Δ, neighbouring frames of the joined video differ by no
  more than Δ/5 for it; where they agree (a network that looks at one frame at a time), the joined video is the same as
  that of one long window.
- What a window must know of the one before is 4 frames after each step; frames leave as soon as no later window can
  change them. Memory depends on window, overlap, batch and steps, not on the length.
- The last window is filled up with its last frame, held still, and cut again: networks trained on 24 frames see 24. A
  video that fits into one window is denoised at its own length.

Trajectories are float32, whatever the precision of the network.
"""

from __future__ import annotations

import inspect
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from dex.animator.conditions import Conditions, Memory, Reference
from dex.animator.guidance import Branch, branch_weights, check_guidance
from dex.batch import FrameMotion

if TYPE_CHECKING:
    from dex.animator.unet import AnimatorUNet

# Stable Diffusion 1.5's noise schedule, in the words of diffusers' schedulers; what one does not know it is not told.
NOISE_SCHEDULE: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "skip_prk_steps": True,
}
# The same curve, bent so that it ends in noise alone, and sampled from that end on (Lin et al. 2024, arXiv:2305.08891).
# Where the last step still lets low frequencies through, a network trusts those of the noise that sampling begins with.
ZERO_TERMINAL_SNR: Mapping[str, Any] = {
    **NOISE_SCHEDULE,
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
}
_NEEDED = {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type"}


@dataclass(frozen=True)
class SamplerSettings:
    """How a video is drawn; the defaults are the paper's but for `scale`, which it does not state.

    Raises `ValueError` for numbers that do not fit.
    """

    steps: int = 35
    scheduler: str = "DDIMScheduler"  # class name in diffusers
    scale: float = 2.5  # w; 1: no guidance, half the work
    delay: int = 5  # S; like `blend` counted in 35 steps (see `guidance`)
    blend: int = 5
    window: int = 24  # frames that the temporal attention sees at once
    overlap: int = 4  # frames that neighbouring windows share
    window_batch: int = 1  # windows denoised together: a matter of speed and memory, not of the result
    seed: int = 0

    def __post_init__(self) -> None:
        check_guidance(self.scale, self.delay, self.blend)
        for name, least in {"steps": 1, "window": 1, "overlap": 0, "window_batch": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"sampler: {name} is {getattr(self, name)}, need at least {least}")
        if self.overlap >= self.window:
            raise ValueError(f"sampler: overlap is {self.overlap}, need less than the window of {self.window} frames")

    @property
    def stride(self) -> int:
        """Frames from the start of one window to the next."""
        return self.window - self.overlap


def sample(
    network: AnimatorUNet,
    source_latent: Float[Tensor, "c h w"],
    source_pose: Float[Tensor, "3 4"],
    driving: Iterable[FrameMotion],
    settings: SamplerSettings = SamplerSettings(),
    schedule: Mapping[str, Any] = NOISE_SCHEDULE,
    temporal: bool = True,
) -> Iterator[Float[Tensor, "c h w"]]:
    """Latents of the video, frame by frame, float32 on the device of `source_latent`, which must be the network's.

    `temporal`: with the temporal attention; where it was never trained the video is the same without, and sooner made.
    `driving` is read as needed, one window (or batch of windows) and one frame ahead. The source is encoded once.
    Raises `ValueError` for an unknown or unfit scheduler at once, and for no driving frame at the first frame.
    """
    _check_step(make_scheduler(settings, schedule), settings.scheduler)
    return _Video(network, source_latent, source_pose, settings, schedule, temporal).frames(driving)


def from_schedule(kind: Any, schedule: Mapping[str, Any]) -> Any:
    """A diffusers scheduler of class `kind`, told what it knows of `schedule`."""
    known = inspect.signature(kind.__init__).parameters
    return kind(**{key: value for key, value in schedule.items() if key in known})


def make_scheduler(
    settings: SamplerSettings, schedule: Mapping[str, Any] = NOISE_SCHEDULE, device: torch.device | None = None
) -> Any:
    """The diffusers scheduler of that name with its steps set. Raises `ValueError` where there is none of that use."""
    name = settings.scheduler
    if not name.endswith("Scheduler") or not hasattr(diffusers, name):
        raise ValueError(f"scheduler {name!r}: diffusers has none of that name; one is DDIMScheduler")
    kind = getattr(diffusers, name)
    try:
        known = set(inspect.signature(kind.__init__).parameters)
        asked = inspect.signature(kind.step).parameters.values()
    except (ImportError, AttributeError, TypeError):  # of diffusers' stand-ins
        raise ValueError(f"scheduler {name}: needs a package that is not installed; take DDIMScheduler") from None
    required = {p.name for p in asked if p.default is p.empty} - {"self", "args", "kwargs"}
    if not known >= _NEEDED or required != {"model_output", "timestep", "sample"}:
        raise ValueError(f"scheduler {name}: does not sample from a noise schedule of betas; take DDIMScheduler")
    if "noise_sampler_seed" in known:
        raise ValueError(
            f"scheduler {name}: draws its noise for a whole batch, so that a frame would depend on its window; "
            "take DDIMScheduler"
        )
    if schedule.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known:
        raise ValueError(f"scheduler {name}: cannot begin at noise alone, as this checkpoint asks; take DDIMScheduler")
    if settings.steps > schedule["num_train_timesteps"]:
        raise ValueError(f"sampler: steps is {settings.steps}, at most {schedule['num_train_timesteps']} are allowed")
    scheduler = from_schedule(kind, schedule)
    scheduler.set_timesteps(settings.steps, device=device)
    if scheduler.timesteps[0] < scheduler.timesteps[-1]:
        raise ValueError(f"scheduler {name}: goes from picture to noise; take DDIMScheduler")
    return scheduler


def _check_step(scheduler: Any, name: str) -> None:
    """Raises `ValueError` where it knows no step from what the network predicts: some say so only when they take it."""
    z = torch.zeros(1, 1, 1, 1)
    try:
        scheduler.step(z, scheduler.timesteps[0], z, **_noise(scheduler, [_generator(0, 0)]))
    except (NotImplementedError, ValueError):
        prediction = scheduler.config.prediction_type
        raise ValueError(f"scheduler {name}: cannot step by a prediction of {prediction}; take DDIMScheduler") from None


# ---- windows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stretch:
    """What is denoised together: overlapping windows, filled up to their full length."""

    first: int  # number of its first frame in the video
    motions: list[FrameMotion]
    finished: int  # leading frames that no later stretch changes and that belong to the video


def _stretches(driving: Iterator[FrameMotion], settings: SamplerSettings) -> Iterator[_Stretch]:
    advance = settings.window_batch * settings.stride
    first, held, ahead = 0, list[FrameMotion](), list(itertools.islice(driving, 1))
    if not ahead:
        raise ValueError("no driving frame: the video to be made has no length")
    while ahead:
        motions = held + ahead
        motions += itertools.islice(driving, advance + settings.overlap - len(motions))
        ahead = list(itertools.islice(driving, 1))
        real = len(motions)
        if first or real > settings.window:
            windows = -(-(real - settings.overlap) // settings.stride)
            motions += [motions[-1]] * (windows * settings.stride + settings.overlap - real)
        yield _Stretch(first, motions, advance if ahead else real)
        first, held = first + advance, motions[advance:]


# ---- denoising -------------------------------------------------------------------------------------------------------

Trail = deque[Float[Tensor, "overlap c h w"]]  # the last frames of a window after each step, first step first


@dataclass(frozen=True)
class _Video:
    """One source and how it is to be animated."""

    network: AnimatorUNet
    source_latent: Float[Tensor, "c h w"]
    source_pose: Float[Tensor, "3 4"]
    settings: SamplerSettings
    schedule: Mapping[str, Any]
    temporal: bool

    def frames(self, driving: Iterable[FrameMotion]) -> Iterator[Float[Tensor, "c h w"]]:
        with torch.no_grad():
            pose = self.source_pose[None].to(self.source_latent.device)
            reference = self.network.encode_reference(self.source_latent[None], pose)
        trail: Trail = deque()
        for stretch in _stretches(iter(driving), self.settings):
            for frame in self._denoise(stretch, reference, trail).unbind():
                yield frame.clone()  # a view of one frame in the caller's hands would keep the whole stretch
                del frame

    @torch.no_grad()
    def _denoise(self, stretch: _Stretch, reference: Reference, trail: Trail) -> Float[Tensor, "N c h w"]:
        """The finished frames of a stretch. `trail` is that of the window before (empty: there is none) and becomes
        that of the last window step by step, so that there is never more than one."""
        settings, device = self.settings, self.source_latent.device
        windows = _windows(len(stretch.motions), settings)
        conditions = self._conditions(stretch.motions, windows, reference)
        scheduler = make_scheduler(settings, self.schedule, device)  # anew: it remembers the steps before
        generators = [_generator(settings.seed, stretch.first + int(i)) for i in windows.flat]
        noise = _noise(scheduler, generators)
        shape = (windows.size, *self.source_latent.shape)
        z = randn_tensor(shape, generator=generators, device=device).unflatten(0, windows.shape)
        z = z * scheduler.init_noise_sigma
        continued = bool(trail)
        for step, t in enumerate(scheduler.timesteps):
            estimate = self._estimate(scheduler.scale_model_input(z, t), step, scheduler.timesteps, conditions)
            stepped = scheduler.step(estimate.flatten(0, 1), t, z.flatten(0, 1), **noise)
            flat = stepped.prev_sample
            if self.schedule.get("set_alpha_to_one") and step + 1 == len(scheduler.timesteps):
                # DDIM goes back by whole steps: of a number that does not divide the schedule, the last ends in noise.
                flat = stepped.get("pred_original_sample", flat)
            z = _joined(flat.unflatten(0, windows.shape), trail.popleft() if continued else None, settings.overlap)
            trail.append(z[-1, settings.stride :].clone())  # a view would keep the whole window
        video = torch.cat([z[:, : settings.stride].flatten(0, 1), z[-1, settings.stride :]])
        return video[: stretch.finished]

    def _conditions(self, motions: list[FrameMotion], windows: np.ndarray, reference: Reference) -> Conditions:
        device, count = self.source_latent.device, len(windows)

        def repeated(features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(feature.expand(count, -1, -1) for feature in features)

        return Conditions(
            source_pose=self.source_pose.to(device).expand(count, 3, 4),
            driving_pose=torch.stack([pose for pose, _ in motions]).to(device)[windows],
            reference=Reference(tokens=repeated(reference.tokens), features=repeated(reference.features)),
            expression=torch.stack([expression for _, expression in motions]).to(device)[windows],
            memory=Memory(),
        )

    def _estimate(
        self, z: Float[Tensor, "W F c h w"], step: int, timesteps: Float[Tensor, "S"], conditions: Conditions
    ) -> Float[Tensor, "W F c h w"]:
        """Guided ε̃ of a step; only branches that count are evaluated."""
        how = self.settings
        t = timesteps[step].expand(len(z))
        given: dict[Branch, Conditions | None] = {
            "none": None,
            "no_expression": conditions.without_expression(),
            "full": conditions,
        }
        weights = branch_weights(step, len(timesteps), scale=how.scale, delay=how.delay, blend=how.blend)
        estimate = torch.zeros_like(z)
        for branch, weight in weights.items():
            estimate += weight * self.network(z, t, given[branch], temporal=self.temporal)
        return estimate


def _windows(frames: int, settings: SamplerSettings) -> np.ndarray:
    """(windows, frames of each): which frames of a stretch each window holds."""
    length = min(settings.window, frames)
    starts = np.arange(0, frames - length + 1, settings.stride)
    return starts[:, None] + np.arange(length)


def _joined(
    z: Float[Tensor, "W F c h w"], before: Float[Tensor, "overlap c h w"] | None, overlap: int
) -> Float[Tensor, "W F c h w"]:
    """The first frames of each window drawn to the last ones of the window before."""
    ramp = (torch.arange(1, overlap + 1, device=z.device) / (overlap + 1))[:, None, None, None]
    windows = []
    for window in z:
        if before is not None:
            window = torch.cat([torch.lerp(before, window[:overlap], ramp), window[overlap:]])
        before = window[len(window) - overlap :]
        windows.append(window)
    return torch.stack(windows)


def _noise(scheduler: Any, generators: list[torch.Generator]) -> dict[str, Any]:
    """What a step is told of the noise that it adds; nothing where it adds none."""
    return {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}


def _generator(seed: int, frame: int) -> torch.Generator:
    """Of one frame, on the CPU: the same noise on every device."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, frame]).generate_state(1, np.uint64)[0]))
