"""Every shipped config parses, and its model and data build."""

from pathlib import Path

import pytest
import torch
import yaml

from dex import fit
from dex.animator.trainer import Animator
from dex.data.synthetic.module import SyntheticHeads
from dex.data.talking_heads import TalkingHeads
from dex.motion.losses import PerceptualLoss
from dex.motion.trainer import MotionTrainer
from dex.reading.own import USUAL

CONFIGS = Path(__file__).parents[1] / "configs"
# Overlays hold a difference only and follow the config that they change.
OVERLAYS = {
    "motion_small_64.yaml": "quickstart.yaml",
    "animator_small_64.yaml": "animator_quick.yaml",
    "controlled_long.yaml": "controlled_small.yaml",
    "controlled_full.yaml": "controlled_small.yaml",
    "controlled_real.yaml": "controlled_small.yaml",
    "controlled_small_animator.yaml": "animator_quick.yaml",
    "controlled_full_animator.yaml": "animator_quick.yaml",
}
ALL = sorted(path.name for path in CONFIGS.glob("*.yaml"))


@pytest.fixture(params=ALL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def build(name: str, monkeypatch: pytest.MonkeyPatch) -> fit.FitCLI:
    """The command line's own objects, networks on the meta device, third-party weights left out."""
    monkeypatch.setattr(PerceptualLoss, "__init__", lambda self, name: torch.nn.Module.__init__(self))
    base = [f"--config={CONFIGS / OVERLAYS[name]}"] if name in OVERLAYS else []
    with torch.device("meta"):
        return fit.make_cli(
            [*base, f"--config={CONFIGS / name}", "--trainer.accelerator=cpu", "--trainer.precision=32"]
        )


def test_there_are_configs_and_the_quickstart_is_one() -> None:
    assert fit.QUICKSTART.name in ALL


def test_config_builds_its_model_and_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cli = build(name, monkeypatch)
    assert isinstance(cli.datamodule, TalkingHeads | SyntheticHeads)
    if isinstance(cli.model, MotionTrainer):
        assert cli.model.network.size == cli.config.data.init_args.size
    else:
        assert isinstance(cli.model, Animator)
    framing = getattr(cli.datamodule, "framing", "wide")
    assert (cli.config.monitor.tuples, cli.config.data.init_args.size, framing) in USUAL  # else read in the training
    assert cli.trainer.max_steps > 0
    assert cli.config.run.startswith("runs/")


@pytest.mark.parametrize("path", sorted((CONFIGS / "strategy").glob("*.yaml")), ids=lambda path: path.stem)
def test_strategy_is_set_by_its_overlay(path: Path) -> None:
    more = ["--trainer.strategy.init_args.shard_ranks=8"] if path.stem == "fsdp" else []
    with torch.device("meta"):
        cli = fit.make_cli([f"--config={fit.QUICKSTART}", f"--config={path}", "--trainer.accelerator=cpu", *more])
    assert type(cli.trainer.strategy).__name__.startswith({"ddp": "DDP", "fsdp": "FullySharded"}[path.stem])


def test_one_device_is_used_unless_more_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a machine's would take a strategy that nobody chose."""
    cli = build("quickstart.yaml", monkeypatch)
    assert cli.config.trainer.devices == 1
    assert type(cli.trainer.strategy).__name__ == "SingleDeviceStrategy"


def test_config_opens_with_what_it_reproduces_on_what_and_how(name: str) -> None:
    text = (CONFIGS / name).read_text()
    opening = text[: text.index("\nrun:")]
    assert all(line.startswith("#") for line in opening.splitlines())
    for word in ("Reproduces:", "Hardware:", "Launch:"):
        assert word in opening, f"{name}: its opening comment lacks '{word}'"


def test_paper_config_holds_the_papers_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    config = build("motion_paper_256.yaml", monkeypatch).config
    init = config.model.init_args
    loss, optimisation, network = init.loss, init.optimisation, init.network
    assert (loss.l1, loss.lpips, loss.clpips, loss.adversarial) == (10, 1, 100, 1)
    assert (loss.r1, loss.r1_interval) == (10, 16)
    assert (optimisation.learning_rate, config.trainer.max_steps) == (1e-4, 200_000)
    assert config.data.init_args.batch_size * 8 == 112
    assert config.data.init_args.drivers == 4
    assert (network.size, network.expression_dim, network.style_dim) == (256, 512, 2048)
    assert init.perceptual == "vgg16"


def test_animator_paper_configs_hold_the_papers_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    image, video = (build(f"animator_paper_512_{phase}.yaml", monkeypatch) for phase in ("image", "video"))
    for cli, phase in ((image, "image"), (video, "video")):
        init, data = cli.config.model.init_args, cli.config.data.init_args
        assert (init.phase, data.size, init.loss.prediction, init.loss.min_snr) == (phase, 512, "epsilon", 0)
        assert (init.loss.drop_expression, init.loss.drop_all) == (0.1, 0.05)
        assert (init.sampler.steps, init.sampler.delay, init.sampler.blend) == (35, 5, 5)
        assert (init.network.expression_dim, init.network.expression_tokens, init.network.frames) == (512, 32, 24)
        assert init.network.unet["block_out_channels"] == [320, 640, 1280, 1280]
    assert image.config.data.init_args.drivers == 4
    assert (video.config.data.init_args.mode, video.config.data.init_args.clip_length) == ("clip", 24)
    assert video.config.model.init_args.start == f"{image.config.run}/export"


def test_quickstart_needs_nothing_from_outside() -> None:
    content = yaml.safe_load(fit.QUICKSTART.read_text())
    assert content["model"]["init_args"]["perceptual"] == "none"
    assert content["data"]["class_path"].endswith("SyntheticHeads")
