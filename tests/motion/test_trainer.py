"""The motion trainer as a whole: it learns, repeats itself, resumes exactly, and stops on nonsense."""

import copy
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from dex.batch import Batch, to_float
from dex.callbacks.checkpoints import Checkpoints
from dex.checkpoint import CheckpointError, step_folder
from dex.data.augment import PoseAugmentation, pose_augment
from dex.export import export
from dex.motion.encoders import ExportError, load_encoders, load_generator, save_generator
from dex.motion.evaluation import MotionEvaluation
from dex.motion.generator import Generated
from dex.motion.losses import LossWeights
from dex.motion.pictures import feature_picture
from dex.motion.trainer import MotionTrainer, Optimisation
from dex.sharding import FullySharded
from dex.training import NonFiniteLossError, check_finite, step_random
from tests.motion.conftest import PIXEL_LOSSES, TINY, tiny_data, tiny_trainer

# They change only when the method, its sampling or its data change, and then on purpose. With a larger rate twenty
# steps make of another processor's rounding, in a pixel here and there, a loss that differs by a hundredth.
GOLDEN = {0: 5.05418, 1: 4.36891, 4: 4.44879, 9: 3.61968, 19: 3.23755}
GENTLE = Optimisation(learning_rate=2e-4, discriminator_learning_rate=2e-4, teacher_poses=5)


class Record(L.Callback):
    """Every step's losses and sample keys."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.keys: list[list[str]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, _: Any, batch: Batch, __: int) -> None:
        self.losses.append(trainer.callback_metrics["loss/total"].item())
        self.keys.append(batch.key)


def run(
    module: MotionTrainer, steps: int, folder: Path, resume: Path | None = None, every: int = 1000, **data: Any
) -> Record:
    record = Record()
    saves = Checkpoints(str(folder), every_n_steps=every, keep=10)
    saves.resume = resume
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=[record, saves],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        log_every_n_steps=1,
        default_root_dir=folder,
    )
    trainer.fit(module, tiny_data(**data))
    return record


def test_overfits_one_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    still = {"rotation": 0.0, "scale": 0.0, "translation": 0.0, "perspective": 0.0, "colour": 0.0}
    module = tiny_trainer(
        loss=LossWeights(l1=1, region_mouth=0.2, region_eyes=0.2, pose=0.5, adversarial=0),
        optimisation=Optimisation(learning_rate=5e-3, betas=(0.9, 0.99), teacher_poses=20, clip_norm=1),
        pose_augmentation=PoseAugmentation(**still),
    )
    batch = to_float(next(iter(tiny_data().train_dataloader())))
    losses = [step_alone(module, batch, step) for step in range(250)]
    assert min(losses[-10:]) < losses[0] / 5


def step_alone(module: MotionTrainer, batch: Batch, step: int) -> float:
    """One optimisation step without a Lightning trainer, on the L1 and pose losses of one batch."""
    if step == 0:
        module.test_optimizer = torch.optim.Adam(module.generator.parameters(), 5e-3, (0.9, 0.99))
    random = step_random(module, 0)
    *poses, view_pose = module.encode_poses(batch, random)
    expression = module.encode_expression(batch, random)
    terms = module.generator_losses(batch, module.generate(batch, *poses, expression, random), random)
    terms |= module.anchor_losses(batch, *poses, view_pose, expression)
    module.test_optimizer.zero_grad()
    sum(terms.values()).backward()
    torch.nn.utils.clip_grad_norm_(module.generator.parameters(), 1.0)
    module.test_optimizer.step()
    return terms["l1"].item()


def test_own_features_compare_faces_and_teach_the_decoder_alone() -> None:
    module = tiny_trainer(loss=LossWeights(own_features=1, adversarial=0))
    batch, random = to_float(next(iter(tiny_data().train_dataloader()))), torch.Generator().manual_seed(0)
    fake = torch.rand_like(batch.driving).requires_grad_(True)

    def loss_of(picture: torch.Tensor) -> torch.Tensor:
        made = Generated(picture, batch.source_pose, batch.driving_pose, torch.zeros(*batch.driving.shape[:2], 8))
        return module.generator_losses(batch, made, random)["own_features"]

    loss_of(fake).backward()
    moved = fake.grad.abs().mean(dim=2)
    assert moved.amax(dim=(2, 3)).min() > 0  # every picture
    corners = moved[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.mean() < moved.mean() / 2  # the face, not what surrounds it
    assert all(weight.grad is None for weight in module.generator.parameters())
    assert all(weight.requires_grad for weight in module.generator.expression_encoder.parameters())
    assert loss_of(batch.driving).item() == 0  # both behind the same augmentation


@pytest.mark.skipif(not torch.__version__.startswith("2.15."), reason="its weights are drawn as by torch 2.15")
def test_losses_of_twenty_steps_are_golden(tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    found = run(tiny_trainer(optimisation=GENTLE), 20, tmp_path).losses
    assert {step: found[step] for step in GOLDEN} == pytest.approx(GOLDEN, rel=5e-4)


SHELL = dataclasses.replace(TINY, shell=0.3)
WITH_MUON = Optimisation(learning_rate=2e-3, muon=0.02, warmup_steps=3, teacher_poses=5)


@pytest.mark.parametrize("settings", [{}, {"network": SHELL, "optimisation": WITH_MUON}], ids=["adam", "muon"])
def test_resumed_run_repeats_the_uninterrupted_one(settings: dict[str, Any], tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    whole_module = tiny_trainer(**settings)
    whole = run(whole_module, 8, tmp_path / "whole", every=5)
    L.seed_everything(99, verbose=False)  # whatever the second process starts with must not matter
    resumed_module = tiny_trainer(**settings)
    resumed = run(resumed_module, 8, tmp_path / "resumed", resume=step_folder(tmp_path / "whole", 5))
    assert resumed.keys == whole.keys[5:]
    assert resumed.losses == whole.losses[5:]
    for name, tensor in whole_module.state_dict().items():
        torch.testing.assert_close(resumed_module.state_dict()[name], tensor, rtol=0, atol=0)


def test_seed_changes_samples_and_losses(tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    one = run(tiny_trainer(), 2, tmp_path, seed=1)
    L.seed_everything(0, verbose=False)
    two = run(tiny_trainer(), 2, tmp_path, seed=2)
    assert one.keys != two.keys
    assert one.losses != two.losses


def test_step_counts_batches_although_two_optimisers_step(tmp_path: Path) -> None:
    module = tiny_trainer()
    before = copy.deepcopy(module.discriminator)
    assert len(run(module, 4, tmp_path).losses) == 4
    changed = [
        not torch.equal(a, b) for a, b in zip(before.parameters(), module.discriminator.parameters(), strict=True)
    ]
    assert any(changed)


def test_discriminator_waits_for_its_start(tmp_path: Path) -> None:
    module = tiny_trainer(loss=LossWeights(l1=1, pose=0.5, adversarial=1, adversarial_start=100))
    before = copy.deepcopy(module.discriminator.state_dict())
    run(module, 2, tmp_path)
    for name, tensor in module.discriminator.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_average_lags_behind_and_export_is_the_average(tmp_path: Path) -> None:
    module = tiny_trainer()
    run(module, 4, tmp_path, every=4)
    assert not any(parameter.requires_grad for parameter in module.average.parameters())
    live, lagging = module.generator.decoder.middle.weight, module.average.decoder.middle.weight
    assert not torch.equal(live, lagging)
    export(step_folder(tmp_path, 4), tmp_path / "export")
    generator, _ = load_generator(tmp_path / "export")
    assert generator.config == TINY
    batch = to_float(next(iter(tiny_data().val_dataloader())))
    expected = module.reenact(batch)
    source_pose = generator.pose_encoder(batch.source)
    driving_pose = generator.pose_encoder(batch.pose_view.flatten(0, 1)).unflatten(0, (2, 2))
    _, code = generator.read_motion(batch.expression_view.flatten(0, 1))
    torch.testing.assert_close(
        generator(batch.source, source_pose, driving_pose, code.unflatten(0, (2, 2))), expected.fake
    )
    encoders = load_encoders(tmp_path / "export" / "encoders")
    torch.testing.assert_close(encoders["pose_encoder"](batch.source), source_pose)
    export(step_folder(tmp_path, 4), tmp_path / "half", half=True)
    sizes = [(tmp_path / name / "generator.safetensors").stat().st_size for name in ("export", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    halved, _ = load_generator(tmp_path / "half")
    assert halved.decoder.middle.weight.dtype == torch.float32
    again = halved(batch.source, source_pose, driving_pose, code.unflatten(0, (2, 2)))
    torch.testing.assert_close(again, expected.fake, atol=4 / 255, rtol=0)  # two grey levels
    assert not any(parameter.requires_grad for parameter in encoders.parameters())


def test_geometry_is_exact_under_autocast() -> None:
    batch = to_float(next(iter(tiny_data().train_dataloader())))
    volume = torch.randn(2, 4, 3, 8, 8)

    def made() -> list[Tensor]:
        evaluation = MotionEvaluation()
        source = batch.driving_pose[:, 0].repeat_interleave(2, dim=0)
        evaluation._update_pose(batch, source, batch.driving_pose.flatten(0, 1))
        augmented = pose_augment(batch.source, PoseAugmentation(), torch.Generator().manual_seed(0))
        return [augmented, feature_picture(volume, 16), evaluation.pose_error.compute()]

    exact = made()
    with torch.autocast("cpu", torch.bfloat16):
        for found, wanted in zip(made(), exact, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_fine_tuning_begins_with_an_export_of_the_same_network(tmp_path: Path) -> None:
    run(tiny_trainer(), 2, tmp_path, every=2)
    export(step_folder(tmp_path, 2), tmp_path / "export")
    begun, _ = load_generator(tmp_path / "export")
    wider = dataclasses.replace(TINY, discriminator_width=16)  # of which nothing is in an export
    module = tiny_trainer(start=str(tmp_path / "export"), network=wider)
    module.setup("fit")
    for network in (module.generator, module.average):
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(tensor, begun.state_dict()[name], rtol=0, atol=0)
    anchored = tiny_trainer(start=str(tmp_path / "export"), loss=LossWeights(expression=1))
    anchored.setup("fit")
    assert anchored.read_out is not None
    assert not any(parameter.any() for parameter in anchored.read_out.parameters())  # a random one would teach nonsense
    other = tiny_trainer(start=str(tmp_path / "export"), network=dataclasses.replace(TINY, expression_dim=24))
    with pytest.raises(ExportError, match=r"export: model.network.expression_dim is \d+ there, here 24"):
        other.setup("fit")


def test_export_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        export(tmp_path / "last", tmp_path)
    with pytest.raises(ExportError, match="export"):
        load_generator(tmp_path)
    torch.save({"schema": 1, "step": 3, "module": {}}, tmp_path / "state.pt")
    with pytest.raises(ExportError, match="not a checkpoint of the motion trainer"):
        export(tmp_path, tmp_path)
    of_another_version = {"motion_config": {"size": 64, "wings": 2}}
    torch.save({"schema": 1, "step": 3, "module": of_another_version}, tmp_path / "state.pt")
    with pytest.raises(ExportError, match=r"none of this version of dex \(.*wings.*\). Export it with the version"):
        export(tmp_path, tmp_path)


def test_an_export_of_another_version_is_refused_in_words(tmp_path: Path) -> None:
    save_generator(tmp_path, TINY, tiny_trainer().generator.state_dict(), {})
    for folder, load in ((tmp_path, load_generator), (tmp_path, load_encoders), (tmp_path / "encoders", load_encoders)):
        config = folder / "config.json"
        content = json.loads(config.read_text())
        config.write_text(json.dumps(content | {"network": content["network"] | {"wings": 2}}))
        with pytest.raises(ExportError, match=r"config.json: its network is none of this version .*'wings'.* Export"):
            load(folder)


def test_a_precision_that_scales_gradients_is_refused(tmp_path: Path) -> None:
    trainer = L.Trainer(
        plugins=[MixedPrecision("16-mixed", "cpu")], accelerator="cpu", logger=False, default_root_dir=tmp_path
    )
    with pytest.raises(ValueError, match=r"precision is 16-mixed: .* set trainer.precision to bf16-mixed or 32"):
        trainer.fit(tiny_trainer(), tiny_data())


def test_a_rank_alone_says_what_is_not_finite_and_asks_no_other(tmp_path: Path) -> None:
    module = tiny_trainer()
    # Without `log_dir`, which Lightning fetches from the first rank.
    module._trainer = SimpleNamespace(default_root_dir=tmp_path, global_step=3, global_rank=1, world_size=2)
    batch = to_float(next(iter(tiny_data().train_dataloader())))
    with pytest.raises(NonFiniteLossError, match=r"step 3: loss l1 is not .* saved in .*nonfinite-step-3-rank-1.safe"):
        check_finite(module, {"l1": torch.tensor(float("nan")), "lpips": torch.tensor(1.0)}, batch)
    assert (tmp_path / "nonfinite-step-3-rank-1.safetensors").is_file()


def test_nan_stops_with_keys_and_the_batch_on_disk(tmp_path: Path) -> None:
    module = tiny_trainer()
    with torch.no_grad():
        module.generator.decoder.middle.bias[0] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"step 0: loss \w+.*synthetic-") as caught:
        run(module, 2, tmp_path)
    saved = list(tmp_path.glob("nonfinite-step-0.safetensors"))
    assert len(saved) == 1
    assert str(saved[0]) in str(caught.value)


@pytest.mark.parametrize("muon", [0.0, 0.02])
def test_frozen_things_stay_out_of_the_optimisers(muon: float) -> None:
    module = tiny_trainer(optimisation=Optimisation(muon=muon))
    optimised = {id(p) for o in module.configure_optimizers() for g in o.param_groups for p in g["params"]}
    assert not optimised & {id(p) for p in module.average.parameters()}
    learning = (module.generator, module.read_out, module.discriminator)
    assert optimised == {id(p) for network in learning for p in network.parameters()}


def test_muon_turns_all_matrices_but_the_pose_encoders(tmp_path: Path) -> None:
    module = tiny_trainer(optimisation=WITH_MUON, loss=dataclasses.replace(PIXEL_LOSSES, adversarial=0))
    run(module, 1, tmp_path)
    optimizer = module.optimizers(use_pl_optimizer=False)
    matrices, others = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    generator = module.generator
    assert {id(layer.weight) for layer in (generator.decoder.middle, generator.expression_encoder.linear)} <= matrices
    assert id(generator.decoder.middle.bias) in others
    assert {id(p) for p in generator.pose_encoder.parameters()} <= others
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.02 / 3, 2e-3 / 3])  # the first of three steps of warm-up


@pytest.mark.parametrize("optimisation", [Optimisation(encoders_every=2), Optimisation(encoders_every=2, muon=0.02)])
def test_encoders_learn_in_every_other_step_and_the_decoder_in_each(optimisation: Optimisation, tmp_path: Path) -> None:
    def moved(steps: int) -> dict[str, bool]:
        L.seed_everything(0, verbose=False)
        module = tiny_trainer(optimisation=optimisation)
        before = {name: copy.deepcopy(network.state_dict()) for name, network in module.generator.named_children()}
        run(module, steps, tmp_path / str(steps))
        learned = {
            name: any(not torch.equal(weight, before[name][key]) for key, weight in network.state_dict().items())
            for name, network in module.generator.named_children()
        }
        # A norm of 0 would say that a network has stopped learning.
        logged = {name.removeprefix("grad_norm/") for name in module.trainer.callback_metrics if "grad_norm" in name}
        assert logged - {"discriminator"} == {name for name, changed in learned.items() if changed}
        return learned

    encoders = {"pose_encoder", "expression_encoder"}
    assert {name for name, changed in moved(1).items() if not changed} == encoders
    assert all(moved(2).values())


def test_encoders_must_learn_at_some_time() -> None:
    with pytest.raises(ValueError, match="encoders_every is 0, need at least 1"):
        Optimisation(encoders_every=0)


def test_muon_is_refused_where_weights_are_sharded() -> None:
    module = tiny_trainer(optimisation=WITH_MUON)
    module._trainer = SimpleNamespace(strategy=FullySharded())
    with pytest.raises(ValueError, match=r"optimisation.muon needs whole matrices.*configs/strategy/ddp.yaml"):
        module.configure_model()


def test_learning_rate_warms_up_and_decays() -> None:
    settings = Optimisation(warmup_steps=10, decay_steps=100)
    assert settings.factor(0) == pytest.approx(0.1)
    assert settings.factor(50) == pytest.approx(0.5)
    assert settings.factor(100) == pytest.approx(0)
    assert Optimisation().factor(123_456) == 1


def test_settings_that_cannot_be_are_refused_before_training(tmp_path: Path) -> None:
    without = LossWeights(pose=0, expression=0)
    with pytest.raises(ValueError, match=r"anchors_first is 5, but loss.pose and loss.expression are 0"):
        tiny_trainer(loss=without, optimisation=Optimisation(anchors_first=5))
    module = tiny_trainer(loss=without, optimisation=Optimisation(teacher_poses=5))
    with pytest.raises(ValueError, match=r"loss.pose is 0, .* teacher_poses 5 .* set teacher_poses to 0"):
        run(module, 5, tmp_path)
    module = tiny_trainer(network=dataclasses.replace(TINY, size=64))
    with pytest.raises(ValueError, match=r"data.size is 32, model.network.size 64: .* set data.init_args.size to 64"):
        run(module, 1, tmp_path)
