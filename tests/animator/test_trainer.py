"""The animator's training: what learns, what stays, and that the numbers are those of the method."""

import copy
import dataclasses
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from dex import checkpoint
from dex.animation.backends import load_backend
from dex.animator.losses import DiffusionLoss
from dex.animator.sampler import SamplerSettings
from dex.animator.storage import load_animator
from dex.animator.trainer import Animator, AnimatorOptimisation
from dex.batch import MOUTH, Batch, to_float
from dex.callbacks.checkpoints import Checkpoints
from dex.checkpoint import stored
from dex.data.synthetic.module import SyntheticHeads
from dex.export import export
from dex.motion.encoders import load_encoders, save_generator
from dex.motion.generator import MotionGenerator
from dex.saved import ExportError
from dex.sharding import FullySharded
from dex.training import NonFiniteLossError, step_random
from tests.animator.conftest import TINY_PIXELS, away_from_zero
from tests.motion.conftest import TINY as TINY_MOTION


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random ones of stage 1, as an export writes them."""
    folder = tmp_path_factory.mktemp("stage1")
    torch.manual_seed(0)
    save_generator(folder, TINY_MOTION, MotionGenerator(TINY_MOTION).state_dict(), {})
    return folder / "encoders"


def animator(encoders: Path, **changes: Any) -> Animator:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "network": TINY_PIXELS,
        "loss": DiffusionLoss(prediction="v_prediction"),
        "optimisation": AnimatorOptimisation(learning_rate=2e-3, warmup_steps=0, ema_decay=0.9),
        "sampled": 1,
    }
    return Animator(str(encoders), **settings | changes)


def ready(encoders: Path, **changes: Any) -> Animator:
    """Outside a trainer."""
    module = animator(encoders, **changes)
    module.setup("validate")
    return module


def heads(**changes: Any) -> SyntheticHeads:
    settings: dict[str, Any] = {"size": 32, "batch_size": 2, "drivers": 2, "workers": 0, "val_batches": 1}
    return SyntheticHeads(**settings | changes)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return to_float(next(iter(heads().train_dataloader())))


def trainer(folder: Path, **changes: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "callbacks": [Checkpoints(str(folder), every_n_steps=2)],
    }
    return L.Trainer(**settings | changes)


class Losses(L.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.seen.append(outputs["loss"].item())


@pytest.fixture(scope="module")
def trained(encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Animator, Path]:
    """Two steps of the image phase, and their checkpoint; neither to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    module = animator(encoders)
    trainer(folder, max_steps=2).fit(module, heads())
    return module, folder / "last"


@pytest.mark.parametrize("phase", ["image", "video"])
def test_each_phase_trains_its_part_alone(encoders: Path, tmp_path: Path, phase: str) -> None:
    module = animator(encoders, phase=phase)
    module.setup("fit")  # what training starts from
    before = copy.deepcopy(module.network.state_dict())
    trainer(tmp_path, max_steps=2).fit(module, heads())
    temporal = {name for name in before if ".temporal." in name}
    moved = {name for name, tensor in module.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert temporal
    assert moved
    assert moved <= temporal if phase == "video" else not moved & temporal
    if phase == "image":
        assert {name.split(".")[0] for name in moved} == {"reference", "denoiser"}


def test_frozen_parts_are_nowhere_but_in_use(trained: tuple[Animator, Path]) -> None:
    module, last = trained
    frozen = {id(parameter) for part in module._frozen for parameter in part.parameters()}
    assert frozen
    assert not frozen & {id(p) for group in module.optimizers().param_groups for p in group["params"]}
    assert not any(p.requires_grad for part in module._frozen for p in part.parameters())
    names = [name.removeprefix("model.") for name in stored(last) if name.startswith("model.")]
    assert {name.split(".")[0] for name in names} == {"network", "average"}
    averages = {name.removeprefix("average.") for name in names if name.startswith("average.")}
    assert averages == module.network.state_dict().keys()  # and of nothing else


# What helps a training from nothing, all of it
FROM_NOTHING: dict[str, Any] = {
    "network": dataclasses.replace(TINY_PIXELS, shell=0.3),
    "loss": DiffusionLoss("sample", "zero_terminal_snr", timesteps="rising", region_eyes=4, own_features=0.05),
    "optimisation": AnimatorOptimisation(2e-3, muon=0.02, weight_decay=0, warmup_steps=3, teacher_poses=True),
}


@pytest.mark.parametrize("settings", [{}, FROM_NOTHING], ids=["base", "nothing"])
def test_resumed_run_repeats_the_uninterrupted_one(encoders: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    whole, half, rest = Losses(), Losses(), Losses()
    undisturbed, resumed = animator(encoders, **settings), animator(encoders, **settings)
    trainer(tmp_path / "a", max_steps=4, callbacks=[whole]).fit(undisturbed, heads())
    stop = [half, Checkpoints(str(tmp_path / "b"), every_n_steps=2)]
    trainer(tmp_path / "b", max_steps=2, callbacks=stop).fit(animator(encoders, **settings), heads())
    saves = Checkpoints(str(tmp_path / "b"))
    saves.resume = tmp_path / "b" / "last"
    trainer(tmp_path / "b", max_steps=4, callbacks=[rest, saves]).fit(resumed, heads())
    assert half.seen + rest.seen == whole.seen
    assert len(set(whole.seen)) == 4
    assert all(map(torch.equal, undisturbed.average.parameters(), resumed.average.parameters()))


@pytest.mark.parametrize(
    ("prediction", "schedule", "noise_left"),
    # Stable Diffusion's schedule ends at σ = 0.03, not at 0; latents are half the pixels.
    [
        ("epsilon", "stable_diffusion", 0.3),
        ("v_prediction", "stable_diffusion", 0.3),
        ("v_prediction", "zero_terminal_snr", 1e-4),
        ("sample", "zero_terminal_snr", 1e-4),
    ],
)
def test_a_network_that_knows_the_answer_has_no_error_and_draws_it(
    encoders: Path, batch: Batch, prediction: str, schedule: str, noise_left: float
) -> None:
    """With the exact answer in the network's place: training and sampler agree on what it means."""
    module = ready(encoders, loss=DiffusionLoss(prediction=prediction, schedule=schedule))
    source, driving = module.latents(batch)
    truth = driving[:1, :1].expand(1, 2, -1, -1, -1)
    alphas = module.noising.alphas_cumprod

    class Knows(nn.Module):
        encode_reference = module.network.encode_reference

        def forward(self, z: Tensor, t: Tensor, conditions: Any, temporal: bool = False) -> Tensor:
            a = alphas[t.long()][:, None, None, None, None]
            noise = (z - a.sqrt() * truth) / (1 - a).sqrt()
            answers = {"epsilon": noise, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * truth, "sample": truth}
            return answers[prediction].expand_as(z)

    conditions, motion = module.conditions(batch, source), module.motion(batch)
    module.network, module.average = Knows(), nn.ModuleDict()
    error = module.denoising_error(truth, conditions, torch.Generator().manual_seed(1))
    assert error.item() < 1e-6
    drawn = module.reenact(source[:1], motion)
    torch.testing.assert_close(drawn[0, 0], batch.driving[0, 0], atol=noise_left, rtol=0)


def test_one_clip_is_learnt_by_heart(encoders: Path, batch: Batch) -> None:
    loss = DiffusionLoss(prediction="sample", schedule="zero_terminal_snr", drop_expression=0, drop_all=0)
    module = ready(encoders, loss=loss)
    source, driving = (latent[:1] for latent in module.latents(batch))
    told = module.conditions(Batch(key=[], **{k: v[:1] for k, v in vars(batch).items() if torch.is_tensor(v)}), source)
    told = dataclasses.replace(told, reference=None)

    def error(seed: int) -> Tensor:
        conditions = dataclasses.replace(told, reference=module.network.encode_reference(source))
        return module.denoising_error(driving, conditions, torch.Generator().manual_seed(seed))

    def mean_error() -> float:
        with torch.no_grad():
            return sum(error(seed).item() for seed in range(16)) / 16

    before = mean_error()
    optimizer = torch.optim.AdamW(module.trained, 3e-3, weight_decay=0)
    for step in range(150):
        optimizer.zero_grad()
        error(100 + step).backward()
        optimizer.step()
    assert mean_error() < before / 5


def test_without_base_weights_conditions_count_from_the_first_step(encoders: Path, batch: Batch) -> None:
    untouched, begun = ready(encoders), animator(encoders)
    begun.setup("fit")
    for module, differs in ((untouched, False), (begun, True)):
        source, driving = module.latents(batch)
        told, t = module.conditions(batch, source), torch.full((len(source),), 500)
        blind = dataclasses.replace(told, keep=torch.zeros(len(source), dtype=torch.bool))
        for entered in (nullcontext(module.network), module.averaged()):
            with entered as network:
                difference = network(driving, t, told) - network(driving, t, blind)
            assert (difference.abs().max() > 1e-2) == differs


def test_rising_time_steps_are_drawn_in_proportion_to_themselves(encoders: Path, batch: Batch) -> None:
    module = ready(encoders)
    conditions = module.conditions(batch, module.latents(batch)[0])
    seen: list[Tensor] = []

    class Notes(nn.Module):
        def forward(self, z: Tensor, t: Tensor, conditions: Any, temporal: bool = False) -> Tensor:
            seen.append(t)
            return z

    module.network = Notes()
    latent, random = torch.zeros(4000, 1, 1, 1, 1), torch.Generator().manual_seed(0)
    for timesteps, mean, below_half in (("uniform", 1 / 2, 1 / 2), ("rising", 2 / 3, 1 / 4)):
        module.denoise(latent, conditions, random, timesteps)
        drawn = seen.pop() / 1000
        assert drawn.mean().item() == pytest.approx(mean, abs=0.02)
        assert (drawn < 0.5).float().mean().item() == pytest.approx(below_half, abs=0.03)
    module.denoising_error(latent, conditions, random)  # validation is of all alike
    assert seen.pop().float().mean().item() == pytest.approx(500, abs=20)


def test_a_region_counts_as_much_as_it_is_asked_to(encoders: Path, batch: Batch) -> None:
    def loss(**weights: float) -> float:
        module = ready(encoders, loss=DiffusionLoss("v_prediction", **weights))
        module.log_dict = lambda *_: None  # type: ignore[method-assign]
        return module.training_step(batch, 0).item()

    plain, once, twice = loss(), loss(region_mouth=1), loss(region_mouth=2)
    assert once > plain
    assert twice - plain == pytest.approx(2 * (once - plain), rel=1e-3)


def test_the_encoder_looks_at_what_the_network_thinks_the_picture_is(encoders: Path, batch: Batch) -> None:
    module = ready(encoders, loss=DiffusionLoss("sample", "zero_terminal_snr", own_features=0.1))
    module.log_dict = lambda values: logged.update(values)  # type: ignore[method-assign]
    logged: dict[str, Tensor] = {}
    total = module.training_step(batch, 0)
    assert total.item() == pytest.approx(
        logged["loss/denoising"].item() + 0.1 * logged["loss/own_features"].item(), rel=1e-5
    )
    _, driving = module.latents(batch)
    assert module.own_feature_loss(driving, batch.driving_pose, batch.driving).item() < 1e-4
    mouths = batch.driving.clone()
    mouths[batch.driving_region[:, :, None].expand_as(mouths) == MOUTH] = -1
    estimate = module.codec.encode(mouths.flatten(0, 1)).unflatten(0, mouths.shape[:2]).requires_grad_(True)
    module.own_feature_loss(estimate, batch.driving_pose, batch.driving).backward()
    assert estimate.grad is not None
    assert estimate.grad.any()
    assert all(p.grad is None for p in module.encoders.parameters())


def test_what_the_encoder_cannot_look_at_is_refused(encoders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"prediction is v_prediction; set loss\.prediction to sample"):
        DiffusionLoss("v_prediction", own_features=1)
    vae = SimpleNamespace(channels=48, name="some/vae", to=lambda _: vae)
    monkeypatch.setattr("dex.animator.trainer.load_codec", lambda _: vae)
    with pytest.raises(ValueError, match=r"some/vae gives none; set loss.own_features to 0, or codec"):
        ready(encoders, loss=DiffusionLoss("sample", own_features=1))


def test_where_all_poses_are_labelled_none_is_read(
    encoders: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ready(encoders)
    source, _ = module.latents(batch)
    expected = module.conditions(batch, source, labels=True)
    assert torch.equal(expected.driving_pose, batch.driving_pose)
    monkeypatch.setattr(module, "read_poses", lambda *_: pytest.fail("read"))
    torch.testing.assert_close(module.conditions(batch, source, labels=True).expression, expected.expression)
    some = dataclasses.replace(batch, source_pose_weight=torch.tensor([0.0, 1.0]))
    with pytest.raises(pytest.fail.Exception, match="read"):
        module.conditions(some, source, labels=True)


def test_labels_poses_are_told_in_training_alone(encoders: Path, batch: Batch, tmp_path: Path) -> None:
    module = ready(encoders, optimisation=AnimatorOptimisation(teacher_poses=True))
    module.log_dict = lambda *_: None  # type: ignore[method-assign]
    read = module.conditions(batch, module.latents(batch)[0])
    weight = torch.tensor([[1.0, 0.0], [0.5, 1.0]])
    batch = dataclasses.replace(batch, driving_pose_weight=weight, source_pose_weight=torch.tensor([0.0, 1.0]))
    told: list[Any] = []
    forward = module.network.forward

    def listen(z: Tensor, t: Tensor, conditions: Any, temporal: bool = False) -> Tensor:
        told.append(conditions)
        return forward(z, t, conditions, temporal)

    module.network.forward = listen  # type: ignore[method-assign]
    module.training_step(batch, 0)
    poses = told.pop()
    assert torch.equal(poses.driving_pose[0, 0], batch.driving_pose[0, 0])
    assert torch.equal(poses.driving_pose[0, 1], read.driving_pose[0, 1])  # nobody knows this one
    assert torch.equal(poses.driving_pose[1], batch.driving_pose[1])
    assert torch.equal(poses.source_pose, torch.stack([read.source_pose[0], batch.source_pose[1]]))
    assert not torch.equal(batch.source_pose[1], read.source_pose[1])
    module.drawn = 99
    module.validation_step(batch, 0)
    assert torch.equal(told.pop().driving_pose, read.driving_pose)


def test_muon_turns_matrices_and_adam_the_rest(encoders: Path, tmp_path: Path) -> None:
    module = animator(encoders, **FROM_NOTHING)
    trainer(tmp_path, max_steps=1).fit(module, heads())
    optimizer = module.optimizers(use_pl_optimizer=False)
    matrices, others = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    first = module.network.denoiser.conv_in
    assert id(first.weight) in matrices
    assert id(first.bias) in others
    assert matrices | others == {id(p) for p in module.trained}
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02 / 3, 2e-3 / 3])


def test_accumulated_gradients_are_refused(encoders: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"accumulate_grad_batches is 2, need 1: .* raise data.batch_size"):
        trainer(tmp_path, max_steps=1, accumulate_grad_batches=2).fit(animator(encoders), heads())


def test_a_precision_that_scales_gradients_is_refused(encoders: Path, tmp_path: Path) -> None:
    scaled = [MixedPrecision("16-mixed", "cpu")]
    with pytest.raises(ValueError, match=r"precision is 16-mixed: .* set trainer.precision to bf16-mixed or 32"):
        trainer(tmp_path, max_steps=1, plugins=scaled).fit(animator(encoders), heads())


def test_muon_is_refused_where_it_cannot_be(encoders: Path) -> None:
    with pytest.raises(ValueError, match=r"muon knows no weight decay; weight_decay is 0.01, set it to 0"):
        AnimatorOptimisation(muon=0.02)
    module = animator(encoders, **FROM_NOTHING)
    module._trainer = SimpleNamespace(strategy=FullySharded())
    with pytest.raises(ValueError, match=r"optimisation.muon needs whole matrices.*configs/strategy/ddp.yaml"):
        module.configure_model()


def test_conditions_are_dropped_as_often_as_asked(encoders: Path, batch: Batch) -> None:
    module = ready(encoders, loss=DiffusionLoss(drop_expression=0.1, drop_all=0.05))
    told = module.conditions(batch, module.latents(batch)[0])
    many = dataclasses.replace(told, source_pose=told.source_pose[:1].expand(20_000, 3, 4))
    dropped = module.dropped(many, torch.Generator().manual_seed(0))
    assert (~dropped.keep_expression).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (~dropped.keep).float().mean().item() == pytest.approx(0.05, abs=0.006)


def test_cached_latents_give_the_loss_of_online_encoding(encoders: Path, batch: Batch) -> None:
    module = ready(encoders)

    def loss(told: Batch) -> float:
        source, driving = module.latents(told)
        return module.denoising_error(driving, module.conditions(told, source), step_random(module, 0)).item()

    online = loss(batch)
    source, driving = module.latents(batch)
    module.codec.encode = None  # type: ignore[method-assign]  # would fail if it were called
    assert loss(dataclasses.replace(batch, source_latent=source, driving_latent=driving)) == online


@pytest.mark.parametrize(("phase", "learning"), [("image", {"denoiser", "reference"}), ("video", {"denoiser"})])
def test_averages_take_the_places_of_what_learns_and_give_them_back(
    encoders: Path, tmp_path: Path, phase: Literal["image", "video"], learning: set[str]
) -> None:
    module = animator(encoders, phase=phase)
    trainer(tmp_path, max_steps=3).fit(module, heads())
    trained = dict(module.network.named_children())
    assert set(module.average) == learning
    for name, average in module.average.items():
        assert not all(map(torch.equal, trained[name].parameters(), average.parameters()))
    with module.averaged() as network:
        assert all(network.get_submodule(name) is average for name, average in module.average.items())
    assert dict(module.network.named_children()) == trained


def test_validation_reads_the_reference_by_its_average(encoders: Path, batch: Batch) -> None:
    module = ready(encoders, sampled=0)
    source, driving = module.latents(batch)
    random = torch.Generator().manual_seed(0)
    away_from_zero(module.average["denoiser"])
    for parameter in module.average["reference"].parameters():
        parameter.fill_(1e-2)
    live = module.conditions(batch, source)
    module.on_validation_epoch_start()
    module.validation_step(batch, batch_idx=0)
    with module.averaged():
        expected = module.denoising_error(driving, module.conditions(batch, source), random)
        other = module.denoising_error(driving, live, random.manual_seed(0))
    torch.testing.assert_close(module.evaluation.compute()["denoising_error"], expected.detach())
    assert (expected - other).abs() > 1e-3


def test_export_draws_what_the_trainer_draws_and_starts_the_video_phase(
    trained: tuple[Animator, Path], batch: Batch, tmp_path: Path
) -> None:
    module, last = trained
    export(last, tmp_path / "export")
    network, content = load_animator(tmp_path / "export")
    assert (content["codec"], content["size"]) == ("space-to-depth:4", 32)
    source, driving = module.latents(batch)
    t = torch.tensor([500, 10])
    with module.averaged() as averaged:
        told = module.conditions(batch, source)
        expected = averaged(driving, t, told)
    exported = dataclasses.replace(told, reference=network.encode_reference(source, told.source_pose))
    torch.testing.assert_close(network(driving, t, exported), expected)

    video = animator(tmp_path / "export" / "encoders", phase="video", start=str(tmp_path / "export"))
    trainer(tmp_path / "video", max_steps=1).fit(video, heads())
    spatial = {name: tensor for name, tensor in video.network.state_dict().items() if ".temporal." not in name}
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in spatial.items())
    more = TINY_PIXELS.frames + 1
    other = dataclasses.replace(TINY_PIXELS, frames=more)
    video = animator(tmp_path / "export" / "encoders", start=str(tmp_path / "export"), network=other)
    with pytest.raises(ExportError, match=rf"network.frames is {more - 1} there, here {more}; model.start needs"):
        video.setup("fit")


def test_export_refuses_the_averages_of_another_version(
    trained: tuple[Animator, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_now = checkpoint.read_tensors

    def of_the_denoiser_alone(path: Path, prefix: str) -> dict[str, Tensor]:
        return stored_now(path, prefix + "denoiser." if prefix == "model.average." else prefix)

    monkeypatch.setattr(checkpoint, "read_tensors", of_the_denoiser_alone)
    with pytest.raises(ExportError, match="averages are none of this version of dex"):
        export(trained[1], tmp_path / "export")


def test_encoders_need_no_copy_where_the_motion_export_is_at_hand(
    trained: tuple[Animator, Path], tmp_path: Path
) -> None:
    last = trained[1]
    torch.manual_seed(0)
    save_generator(tmp_path / "motion", TINY_MOTION, MotionGenerator(TINY_MOTION).state_dict(), {})
    export(last, tmp_path / "a")
    export(last, tmp_path / "b", encoders="../motion")
    assert not (tmp_path / "b" / "encoders").exists()
    copied, shared = (load_backend(tmp_path / name, None, None, 0, None, None) for name in "ab")
    assert copied.encoders == shared.encoders
    save_generator(tmp_path / "other", TINY_MOTION, MotionGenerator(TINY_MOTION).state_dict(), {})
    with pytest.raises(ExportError, match=r"other: holds other encoders than .*Leave out --encoders"):
        export(last, tmp_path / "c", encoders="../other")


def test_a_whole_motion_export_has_encoders_too(encoders: Path, tmp_path: Path) -> None:
    trainer(tmp_path, max_steps=1).fit(animator(encoders.parent), heads())
    export(tmp_path / "last", tmp_path / "export")
    assert sorted(path.name for path in (tmp_path / "export" / "encoders").iterdir()) == [
        "config.json",
        "encoders.safetensors",
    ]
    theirs, copied = load_encoders(encoders), load_encoders(tmp_path / "export" / "encoders")
    assert theirs.config == copied.config
    torch.testing.assert_close(copied.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_an_export_draws_as_its_validation_did(encoders: Path, tmp_path: Path) -> None:
    module = animator(encoders, sampler=SamplerSettings(steps=7, scale=1.5, seed=3))
    trainer(tmp_path, max_steps=2).fit(module, heads())
    export(tmp_path / "last", tmp_path / "a")
    said = load_backend(tmp_path / "a", None, None, 1, None, None).provenance["sampler"]
    assert (said["steps"], said["scale"], said["delay"], said["seed"]) == (7, 1.5, 5, 1)
    said = load_backend(tmp_path / "a", None, None, 0, 4, None, 2).provenance["sampler"]
    assert (said["steps"], said["scale"], said["delay"]) == (4, 1.5, 2)
    config = tmp_path / "a" / "config.json"
    config.write_text(config.read_text().replace('"scale"', '"scales"'))
    with pytest.raises(ExportError, match=r"config.json: no sampler's settings .*scales"):
        load_backend(tmp_path / "a", None, None, 0, None, None)


def test_export_refuses_other_encoders(tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_generator(tmp_path / "s", TINY_MOTION, MotionGenerator(TINY_MOTION).state_dict(), {})
    module = animator(tmp_path / "s" / "encoders")
    trainer(tmp_path, max_steps=2).fit(module, heads())
    save_generator(tmp_path / "s", TINY_MOTION, MotionGenerator(TINY_MOTION).state_dict(), {})
    with pytest.raises(ExportError, match="not the encoders that this animator was trained on"):
        export(tmp_path / "last", tmp_path / "export")


def test_a_run_goes_on_with_its_own_encoders_only(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    torch.manual_seed(1)
    save_generator(folder, TINY_MOTION, MotionGenerator(TINY_MOTION).state_dict(), {})
    loaded = ready(folder / "encoders")
    trainer(tmp_path, max_steps=2).fit(animator(folder / "encoders"), heads())
    save_generator(folder, TINY_MOTION, MotionGenerator(TINY_MOTION).state_dict(), {})
    assert loaded.encoders_hash != ready(folder / "encoders").encoders_hash  # it says what it read, not what lies there
    saves = Checkpoints(str(tmp_path))
    saves.resume = tmp_path / "last"
    with pytest.raises(ExportError, match="not the encoders that this animator was trained on"):
        trainer(tmp_path, max_steps=4, callbacks=[saves]).fit(animator(folder / "encoders"), heads())


def test_an_animator_starts_from_one_of_its_own_task_only(encoders: Path, tmp_path: Path) -> None:
    trainer(tmp_path, max_steps=1).fit(animator(encoders, loss=DiffusionLoss("sample", "zero_terminal_snr")), heads())
    export(tmp_path / "last", tmp_path / "export")
    start = str(tmp_path / "export")
    animator(encoders, start=start, loss=DiffusionLoss("sample", "zero_terminal_snr")).setup("fit")
    with pytest.raises(ExportError, match=r"needs loss.prediction sample and loss.schedule zero_terminal_snr"):
        animator(encoders, start=start).setup("fit")
    torch.manual_seed(2)
    save_generator(tmp_path / "other", TINY_MOTION, MotionGenerator(TINY_MOTION).state_dict(), {})
    other = animator(tmp_path / "other", start=start, loss=DiffusionLoss("sample", "zero_terminal_snr"))
    with pytest.raises(ExportError, match=r"trained on other encoders; set model.encoders to .*export/encoders"):
        other.setup("fit")


def test_encoders_look_at_pictures_of_their_own_size(encoders: Path, batch: Batch) -> None:
    module = ready(encoders, loss=DiffusionLoss("sample", "zero_terminal_snr", own_features=0.1))
    seen: list[Tensor] = []
    encoder = module.encoders["expression_encoder"]
    encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    size = 2 * TINY_MOTION.size
    shape = (1, 1, 48, size // 4, size // 4)
    module.own_feature_loss(torch.zeros(shape), torch.eye(3, 4)[None, None], torch.zeros(1, 1, 3, size, size))
    assert seen
    assert all(picture.shape[-1] == TINY_MOTION.size for picture in seen)


def test_without_samples_nothing_is_drawn_or_shown(encoders: Path, batch: Batch, tmp_path: Path) -> None:
    module = animator(encoders, sampled=0)
    figures = trainer(tmp_path, limit_val_batches=1).validate(module, heads(), verbose=False)[0]
    assert set(figures) == {"val/denoising_error"}
    assert module.pictures(batch, 2) == {}


def test_the_image_phase_draws_each_frame_by_itself(encoders: Path, batch: Batch) -> None:
    """Also where it starts from a video phase's export, whose temporal attention is trained."""
    for phase, alone in (("image", True), ("video", False)):
        module = ready(encoders, phase=phase, start="an export of the video phase", sampler=SamplerSettings(steps=2))
        away_from_zero(module.average["denoiser"])
        source, _ = module.latents(batch)
        source_pose, driving_pose, codes = module.motion(batch)
        first = source_pose, driving_pose[:, :1], codes[:, :1]
        both, one = (module.reenact(source[:1], motion)[0, 0] for motion in (module.motion(batch), first))
        assert torch.allclose(both, one, atol=1e-4) == alone


def test_validation_measures_drawn_frames(encoders: Path, tmp_path: Path) -> None:
    module = animator(encoders)
    figures = trainer(tmp_path, limit_val_batches=1).validate(module, heads(), verbose=False)[0]
    assert set(figures) == {"val/denoising_error", "val/psnr", "val/copy_psnr"}
    val = to_float(next(iter(heads().val_dataloader())))
    difference = (val.source[:1, None] - val.driving[:1]) / 2
    by_hand = [-10 * math.log10(frame.square().mean().item()) for frame in difference[0]]
    assert figures["val/copy_psnr"] == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-4)
    assert "copying the source" in module.report(figures)
    assert module.pictures(val, 1)["preview/source_drivers_outputs"].shape[0] == 3


def test_nan_stops_with_keys(encoders: Path, tmp_path: Path) -> None:
    module = animator(encoders)
    with torch.no_grad():
        module.network.denoiser.conv_in.weight.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match=r"step 0: loss loss/denoising.*synthetic-"):
        trainer(tmp_path, max_steps=1).fit(module, heads())


def test_parts_that_do_not_fit_are_named(encoders: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"code has 8: set network\.expression_dim to 8"):
        ready(encoders, network=dataclasses.replace(TINY_PIXELS, expression_dim=16))
    with pytest.raises(ValueError, match="in_channels and out_channels to 12"):
        ready(encoders, codec="space-to-depth:2")
    with pytest.raises(ExportError, match="not found"):
        ready(tmp_path)
    with pytest.raises(ValueError, match="give one of them"):
        animator(encoders, base="a", start="b")


def test_noise_alone_at_the_end_takes_another_answer_than_noise(encoders: Path) -> None:
    with pytest.raises(ValueError, match=r"set loss\.prediction to v_prediction or sample"):
        DiffusionLoss(schedule="zero_terminal_snr")
    module = animator(encoders, loss=DiffusionLoss(prediction="sample", schedule="zero_terminal_snr"))
    latent, noise = torch.randn(2, 1, 2, 48, 8, 8)
    torch.testing.assert_close(module.noising.add_noise(latent, noise, torch.tensor([999])), noise)
