"""The sampler on a denoiser whose answer is known, and on the real one at tiny size."""

import gc
import itertools
import math
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from dex.animator import blocks
from dex.animator.conditions import Conditions, FrameConditions, Reference
from dex.animator.config import AnimatorConfig
from dex.animator.sampler import NOISE_SCHEDULE, SamplerSettings, sample
from dex.animator.unet import AnimatorUNet, blocks_of
from tests.animator.conftest import TINY_PIXELS
from tests.animator.test_guidance import formula

# The last step of this one leads to the clean picture, so that answers are exact.
CLEAN = {**NOISE_SCHEDULE, "set_alpha_to_one": True}
SIZE = (2, 4, 4)
ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)


class GaussianDenoiser(nn.Module):
    """The best ε for frames drawn from N(μ, deviation²), μ = t_x of the driver + its expression: 0 where not told.

    `context`: the mean over the window is told instead, as an extreme case of temporal attention.
    """

    def __init__(self, deviation: float = 0.0, context: bool = False) -> None:
        super().__init__()
        self.variance, self.context = deviation**2, context
        self.references = 0
        self.calls: list[tuple[float, str, int]] = []  # timestep, branch, windows

    def encode_reference(self, source_latent: Tensor, source_pose: Tensor) -> Reference:
        self.references += 1
        return Reference((torch.zeros(1, 1, 1),), (torch.zeros(1, 1, 1),))

    def forward(self, z: Tensor, timestep: Tensor, conditions: Conditions | None, temporal: bool = False) -> Tensor:
        mean = torch.zeros(z.shape[:2])
        if conditions is not None:
            mean = conditions.driving_pose[..., 0, 3]
            if conditions.expression is not None:
                mean = mean + conditions.expression[..., 0]
        branch = "none" if conditions is None else "no_expression" if conditions.expression is None else "full"
        self.calls.append((float(timestep[0]), branch, len(z)))
        if self.context:
            mean = mean.mean(dim=1, keepdim=True).expand_as(mean)
        alpha = ALPHAS[timestep.long()].float()[:, None, None, None, None]
        around = z - alpha.sqrt() * mean[..., None, None, None]
        return (1 - alpha).sqrt() * around / (alpha * self.variance + 1 - alpha)


def driver(
    frames: int, pose: float = 0.01, expression: float = 0.02, width: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """t_x = pose · i, e = expression · i."""
    for i in range(frames):
        moved = torch.eye(3, 4)
        moved[0, 3] = pose * i
        yield moved, torch.full((width,), expression * i)


def video(network: nn.Module, frames: int, schedule: dict = CLEAN, size: tuple = SIZE, **settings: object) -> Tensor:
    how = SamplerSettings(**{"steps": 7, "scale": 1.0, **settings})
    return torch.stack(list(sample(network, torch.zeros(size), torch.eye(3, 4), driver(frames), how, schedule)))


def ddim_times(steps: int) -> list[tuple[float, float]]:
    """(ᾱ, ᾱ of the next step) of SD 1.5's leading timesteps; the last leads to ᾱ = 1."""
    times = [i * (1000 // steps) + 1 for i in range(steps)][::-1]
    return [(float(ALPHAS[t]), float(ALPHAS[t - 1000 // steps]) if t > 1000 // steps else 1.0) for t in times]


# ---- the answer ------------------------------------------------------------------------------------------------------


def test_ddim_of_a_gaussian_is_exact() -> None:
    """For N(μ, s²) a DDIM step is affine: z' − √ᾱ' μ = κ (z − √ᾱ μ), κ = (√ᾱ√ᾱ' s² + √(1−ᾱ)√(1−ᾱ')) / (ᾱs² + 1 − ᾱ)."""
    deviation, frames = 0.5, 24
    kappa = math.prod(
        (math.sqrt(a * b) * deviation**2 + math.sqrt((1 - a) * (1 - b))) / (a * deviation**2 + 1 - a)
        for a, b in ddim_times(35)
    )
    still = {"steps": 35, "scale": 1.0, "delay": 0, "blend": 0, "size": (4, 64, 64)}
    found = video(GaussianDenoiser(deviation), frames, **still)
    for i, frame in enumerate(found):
        assert frame.mean() == pytest.approx(0.03 * i * (1 - kappa * math.sqrt(ddim_times(35)[0][0])), abs=0.016)
        assert frame.std() == pytest.approx(kappa, rel=0.02)


def test_guidance_is_applied_at_every_step() -> None:
    """Frames of one picture each: the noise falls out of the difference of two frames of the same noise."""
    w, steps = 3.0, 35
    one, other = (
        torch.stack(
            list(
                sample(
                    GaussianDenoiser(0.5),
                    torch.zeros(SIZE),
                    torch.eye(3, 4),
                    [(moved, torch.full((1,), 0.7 * scale))],
                    SamplerSettings(steps=steps, scale=w),
                    CLEAN,
                )
            )
        )
        for scale in (0.0, 1.0)
        for moved in [torch.eye(3, 4) + scale * 0.3 * torch.eye(1, 12)[0].roll(3).view(3, 4)]
    )
    z = 0.0
    for t, (a, b) in zip(range(steps, 0, -1), ddim_times(steps), strict=True):
        mean = sum(weight * mu for weight, mu in zip(formula(t, w), (0.0, 0.3, 1.0), strict=True))
        noise = math.sqrt(1 - a) * (z - math.sqrt(a) * mean) / (a * 0.25 + 1 - a)
        z = math.sqrt(b) * (z - math.sqrt(1 - a) * noise) / math.sqrt(a) + math.sqrt(1 - b) * noise
    assert z > 1.5  # guidance overshoots, hence the order of the branches shows
    torch.testing.assert_close(other - one, torch.full_like(one, z), rtol=1e-4, atol=1e-4)


def test_only_branches_that_count_are_evaluated() -> None:
    network = GaussianDenoiser()
    video(network, 50, steps=35, scale=2.0)
    calls = Counter(t for t, _, _ in network.calls)
    windows = 3  # 0…23, 20…43, 40…63
    assert [calls[t] / windows for t in sorted(calls, reverse=True)] == [2] * 6 + [3] * 4 + [2] * 25
    assert network.references == 1
    network = GaussianDenoiser()
    video(network, 24, steps=35, scale=1.0)
    assert Counter(branch for _, branch, _ in network.calls) == {"no_expression": 10, "full": 29}


# ---- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("frames", [1, 3, 24, 25, 44, 45, 64, 90])
def test_long_videos_equal_one_long_window(frames: int, batch: int) -> None:
    """Whatever the number of windows; the denoiser looks at one frame at a time."""
    whole = video(GaussianDenoiser(0.3), frames, window=100)
    assert whole.shape == (frames, *SIZE)
    torch.testing.assert_close(video(GaussianDenoiser(0.3), frames, window_batch=batch), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch", [1, 3])
def test_disagreeing_windows_are_joined_without_a_seam(batch: int) -> None:
    """Each window wants its own grey: the step between two of them is spread evenly over the overlap."""
    found = video(GaussianDenoiser(context=True), 64, window_batch=batch).flatten(1)
    assert found.std(dim=1).max() < 1e-5
    grey = found.mean(dim=1)
    first, second, third = (0.03 * (start + 11.5) for start in (0, 20, 40))
    torch.testing.assert_close(grey[:20], torch.full((20,), first))
    torch.testing.assert_close(grey[24:40], torch.full((16,), second))
    torch.testing.assert_close(grey[44:], torch.full((20,), third))
    assert grey.diff().abs().max() < 1.05 * (second - first) / 5
    cut = video(GaussianDenoiser(context=True), 64, overlap=0).flatten(1).mean(dim=1)
    assert cut.diff().abs().max() > 4 * grey.diff().abs().max()


def test_the_last_window_is_filled_up() -> None:
    network = GaussianDenoiser(context=True)
    assert video(network, 30)[-1].mean() == pytest.approx(0.03 * (sum(range(20, 30)) + 14 * 29) / 24, abs=1e-4)


def test_a_driver_is_read_as_it_is_needed() -> None:
    taken = []
    stream = (taken.append(i) or motion for i, motion in enumerate(driver(10**9)))
    how = SamplerSettings(steps=2)
    frames = sample(GaussianDenoiser(), torch.zeros(SIZE), torch.eye(3, 4), stream, how)
    assert not taken
    for done in range(1, 101):
        next(frames)
        assert len(taken) <= done + 24 + 1


def test_noise_belongs_to_seed_and_frame() -> None:
    short, long, again, other = (
        video(GaussianDenoiser(1.0), frames, size=(4, 16, 16), seed=seed)
        for frames, seed in ((24, 0), (60, 0), (60, 0), (60, 1))
    )
    assert torch.equal(short[:20], long[:20])
    assert torch.equal(long, again)
    correlation = torch.corrcoef(torch.cat([long, other]).flatten(1)).fill_diagonal_(0)
    assert correlation.abs().max() < 0.2


# ---- schedulers ------------------------------------------------------------------------------------------------------

SCHEDULERS = [
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "SASolverScheduler",
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy in diffusers
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_finds_the_picture(name: str) -> None:
    found = [video(GaussianDenoiser(), 50, scheduler=name, steps=20, window_batch=batch) for batch in (1, 3)]
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)
    want = 0.03 * torch.arange(50)[:, None, None, None].expand_as(found[0])
    torch.testing.assert_close(found[0], want, atol=0.25, rtol=0)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("ddim", "none of that name"),
        ("UNet2DConditionModel", "none of that name"),
        ("RePaintScheduler", "noise schedule of betas"),
        ("FlowMatchEulerDiscreteScheduler", "noise schedule of betas"),
        ("DDIMInverseScheduler", "from picture to noise"),
    ],
)
def test_other_schedulers_are_refused_at_once(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        sample(GaussianDenoiser(), torch.zeros(SIZE), torch.eye(3, 4), [], SamplerSettings(scheduler=name))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_what_a_schedulers_steps_do_not_know_is_refused_at_once(prediction: str) -> None:
    schedule = {**NOISE_SCHEDULE, "prediction_type": prediction}

    def begin(name: str) -> None:
        sample(GaussianDenoiser(), torch.zeros(SIZE), torch.eye(3, 4), [], SamplerSettings(scheduler=name), schedule)

    begin("DDIMScheduler")
    for name in ("EulerAncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "PNDMScheduler"):
        if prediction != "sample":
            begin(name)
            continue
        with pytest.raises(ValueError, match=f"{name}: cannot step by a prediction of sample; take DDIMScheduler"):
            begin(name)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"overlap": 24}, "less than the window"),
        ({"steps": 0}, "steps is 0"),
        ({"window_batch": 0}, "window_batch is 0"),
        ({"delay": 36}, "at most 35"),
        ({"steps": 1001}, "at most 1000"),
    ],
)
def test_settings_that_do_not_fit(wrong: dict, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        sample(GaussianDenoiser(), torch.zeros(SIZE), torch.eye(3, 4), [], SamplerSettings(**wrong))


def test_a_driver_without_frames() -> None:
    with pytest.raises(ValueError, match="no driving frame"):
        video(GaussianDenoiser(), 0)


# ---- the real network ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> AnimatorUNet:
    """The real class at tiny size, with the additions that start at zero moved away from it."""
    unet = {**TINY_PIXELS.unet, "in_channels": 2, "out_channels": 2, "block_out_channels": [8, 16]}
    torch.manual_seed(0)
    made = AnimatorUNet(AnimatorConfig(expression_dim=8, expression_tokens=2, unet=unet))
    for parameter in made.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return made.eval().requires_grad_(False)


def real_video(network: nn.Module, frames: int, side: int = 4, **settings: object) -> Iterator[Tensor]:
    how = SamplerSettings(**{"steps": 3, "delay": 12, "blend": 23, "scale": 2.0, **settings})
    latent = torch.linspace(-1, 1, 2 * side**2).view(2, side, side)
    return sample(network, latent, torch.eye(3, 4), driver(frames, expression=0.2, width=8), how)


def test_real_network_whatever_the_window_batch(network: AnimatorUNet) -> None:
    one, two, three = (torch.stack(list(real_video(network, 70, window_batch=batch))) for batch in (1, 2, 3))
    assert one.shape == (70, *SIZE)
    torch.testing.assert_close(two, one, atol=1e-4, rtol=0)
    torch.testing.assert_close(three, one, atol=1e-4, rtol=0)
    apart = torch.stack(list(real_video(network, 70, overlap=0)))
    assert (apart - one)[24:].abs().max() > 1e-3  # windows matter to it


def test_real_network_is_called_as_counted(network: AnimatorUNet, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    for part in ("reference", "denoiser"):
        getattr(network, part).register_forward_pre_hook(lambda *_, part=part: calls.update([part]))
    list(real_video(network, 60, steps=35, delay=5, blend=5))
    assert calls == {"reference": 1, "denoiser": 3 * (6 * 2 + 4 * 3 + 25 * 2)}


def test_what_no_step_changes_is_computed_once_a_window(network: AnimatorUNet, monkeypatch: pytest.MonkeyPatch) -> None:
    warped: Counter[str] = Counter()
    warp = blocks.warp_volume
    monkeypatch.setattr(blocks, "warp_volume", lambda *args: warped.update(["volumes"]) or warp(*args))
    kept = torch.stack(list(real_video(network, 60)))
    windows = 3 * len(blocks_of(network.denoiser))
    assert warped["volumes"] == windows
    monkeypatch.setattr(FrameConditions, "recall", lambda self, name, make: make())
    anew = torch.stack(list(real_video(network, 60)))
    assert warped["volumes"] >= (1 + 3) * windows  # at each of three steps
    torch.testing.assert_close(kept, anew, rtol=0, atol=0)


class Watched(nn.Module):
    """Keeps an account of all tensors but parameters that live while the network is about to run."""

    def __init__(self, network: AnimatorUNet) -> None:
        super().__init__()
        self.network, self.encode_reference = network, network.encode_reference
        self.calls, self.peak = itertools.count(), 0

    def forward(self, *arguments: object, **named: object) -> Tensor:
        if next(self.calls) % 7 == 6:  # the account takes time: once a window, at its end
            live = [thing.untyped_storage() for thing in gc.get_objects() if type(thing) is Tensor]
            self.peak = max(self.peak, sum({one.data_ptr(): one.nbytes() for one in live}.values()))
        return self.network(*arguments, **named)


def test_memory_does_not_grow_with_the_length(network: AnimatorUNet) -> None:
    peaks = []
    for frames in (24, 240):
        watched = Watched(network)
        assert sum(1 for _ in real_video(watched, frames, side=16)) == frames
        peaks.append(watched.peak)
    assert peaks[0] > 24 * 2 * 16 * 16 * 4  # the account sees at least one window
    assert peaks[1] < 1.1 * peaks[0]
