"""The two UNets together: what each condition touches, what trains, and the sizes at full width."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dex.animator.config import AnimatorConfig, stable_diffusion
from dex.animator.storage import load_animator, save_animator
from dex.animator.unet import PLACES, AnimatorUNet, Conditions, Reference, blocks_of
from dex.motion.head_surface import CHANNELS, coordinates
from dex.pose import ray_map
from dex.saved import ExportError
from tests.animator.conftest import TINY, TINY_UNET, away_from_zero, random_conditions, random_poses
from tests.poses import identity_pose


def noisy(samples: int = 2, frames: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, frames, 4, 16, 16), torch.randint(0, 1000, (samples,))


def watch(network: AnimatorUNet) -> dict[str, list[Tensor]]:
    """What the denoiser is shown while it runs: the ray map, each block's warped feature and expression tokens."""
    seen: dict[str, list[Tensor]] = {"rays": [], "warped": [], "expression": []}
    network.denoiser.conv_in.register_forward_pre_hook(lambda _, given: seen["rays"].append(given[0][:, 4:]))
    for block in blocks_of(network.denoiser):
        block.warped_out.register_forward_pre_hook(lambda _, given: seen["warped"].append(given[0]))
        block.expression_attention.register_forward_pre_hook(lambda _, given: seen["expression"].append(given[1]))
    return seen


@torch.no_grad()
def test_identity_pose_is_the_identity_warp_at_every_block(moved: AnimatorUNet) -> None:
    given = random_conditions(moved)
    still = dataclasses.replace(given, driving_pose=given.source_pose[:, None].expand(-1, 3, 3, 4))
    seen = watch(moved)
    moved(*noisy(), still)
    assert seen["rays"][0].abs().max() < 1e-6
    assert len(seen["warped"]) == 16
    for warped, feature in zip(seen["warped"], given.reference.features, strict=True):
        torch.testing.assert_close(warped.flatten(2).mT, feature.repeat_interleave(3, 0), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_pose_and_expression_are_told_apart_to_the_bit(moved: AnimatorUNet) -> None:
    given, (z, timestep) = random_conditions(moved), noisy()
    expressive = dataclasses.replace(given, expression=torch.randn_like(given.expression))
    posed = dataclasses.replace(given, driving_pose=random_poses(2, 3))
    seen = watch(moved)
    outputs = [moved(z, timestep, conditions) for conditions in (given, expressive, posed)]

    def same(run: int, what: str) -> list[bool]:
        """Whether each thing shown in the first run was shown again in this one, bit by bit."""
        shown = seen[what]
        each = len(shown) // 3
        return [torch.equal(one, other) for one, other in zip(shown[:each], shown[each * run :], strict=False)]

    assert same(1, "rays") == [True]
    assert same(1, "warped") == [True] * 16
    assert not any(same(1, "expression"))
    assert same(2, "expression") == [True] * 16
    assert not any(same(2, "rays") + same(2, "warped"))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3
    assert (outputs[0] - outputs[2]).abs().max() > 1e-3


@torch.no_grad()
def test_the_ray_map_is_of_the_latents_size_for_each_frame(moved: AnimatorUNet) -> None:
    given = random_conditions(moved)
    seen = watch(moved)
    moved(*noisy(), given)
    expected = torch.stack([ray_map(given.source_pose, given.driving_pose[:, f], 16, 16) for f in range(3)], 1)
    torch.testing.assert_close(seen["rays"][0].unflatten(0, (2, 3)), expected)


@torch.no_grad()
def test_along_a_shell_both_networks_are_told_where_each_cell_looks(tiny: AnimatorConfig) -> None:
    network = AnimatorUNet(dataclasses.replace(tiny, shell=0.3))
    given, noise = random_conditions(network), noisy()
    seen = watch(network)
    assert torch.equal(network(*noise, given), network(*noise, None))  # at zero in the beginning, as all additions
    rays, places = seen["rays"][0].unflatten(0, (2, 3)).split([3, CHANNELS + PLACES], dim=2)
    expected = torch.stack([ray_map(given.source_pose, given.driving_pose[:, f], 16, 16) for f in range(3)], 1)
    torch.testing.assert_close(rays, expected)
    torch.testing.assert_close(places[1, :, :CHANNELS], coordinates(given.driving_pose[1], 16))
    picture = places[:, :, CHANNELS:].flatten(0, 1)
    assert torch.equal(picture[0], picture[5])
    assert len(picture[0].flatten(1).T.unique(dim=0)) == 16 * 16  # no two cells are told the same
    assert not seen["rays"][1].any()
    network.open_additions()
    assert (network(*noise, given) - network(*noise, None)).abs().max() > 1e-2
    network(*noise, dataclasses.replace(given, keep=torch.tensor([True, False])))
    kept = seen["rays"][-1].unflatten(0, (2, 3))
    assert torch.equal(kept[0], seen["rays"][0].unflatten(0, (2, 3))[0])
    assert not kept[1].any()
    source = torch.randn(2, 4, 16, 16)
    here, there = (network.encode_reference(source, pose).tokens[0] for pose in random_poses(2, 2))
    assert (here - there).abs().max() > 1e-2
    without = AnimatorUNet(dataclasses.replace(tiny, shell=0.3, ray_map=False))
    assert without.denoiser.conv_in.weight.shape[1] == tiny.latent_channels
    without.open_additions()


@torch.no_grad()
def test_dropping_a_condition_for_a_sample_equals_not_giving_it(moved: AnimatorUNet) -> None:
    given, (z, timestep) = random_conditions(moved), noisy()
    yes, no, first = torch.tensor([True, True]), torch.tensor([False, False]), torch.tensor([False, True])

    def run(conditions: Conditions | None) -> Tensor:
        return moved(z, timestep, conditions, temporal=True)

    full, without, nothing = run(given), run(given.without_expression()), run(None)
    for a, b in ((full, without), (full, nothing), (without, nothing)):
        assert (a - b).abs().max() > 1e-3
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(run(dataclasses.replace(given, keep=yes, keep_expression=yes)), full, **close)
    torch.testing.assert_close(run(dataclasses.replace(given, keep=no)), nothing, **close)
    torch.testing.assert_close(run(dataclasses.replace(given, keep=no, keep_expression=yes)), nothing, **close)
    torch.testing.assert_close(run(dataclasses.replace(given, keep_expression=no)), without, **close)
    mixed = run(dataclasses.replace(given, keep=first, keep_expression=yes))
    torch.testing.assert_close(mixed, torch.stack([nothing[0], full[1]]), **close)
    mixed = run(dataclasses.replace(given, keep=yes, keep_expression=first))
    torch.testing.assert_close(mixed, torch.stack([without[0], full[1]]), **close)


@torch.no_grad()
def test_frames_see_each_other_through_the_temporal_attention_alone(moved: AnimatorUNet) -> None:
    given, (z, timestep) = random_conditions(moved), noisy()
    other = z.clone()
    other[:, 0] = torch.randn_like(other[:, 0])
    apart = (moved(z, timestep, given) - moved(other, timestep, given)).abs().amax(dim=(0, 2, 3, 4))
    assert apart[0] > 1e-2
    assert apart[1:].max() < 1e-5
    joined = (moved(z, timestep, given, True) - moved(other, timestep, given, True)).abs().amax(dim=(0, 2, 3, 4))
    assert joined.min() > 1e-4


@torch.no_grad()
def test_temporal_attention_that_was_never_trained_adds_nothing(network: AnimatorUNet) -> None:
    assert not network.is_temporal()
    given, (z, timestep) = random_conditions(network), noisy()
    assert torch.equal(network(z, timestep, given, temporal=True), network(z, timestep, given, temporal=False))
    next(iter(network.temporal_parameters()))[:] += 1
    assert not network.is_temporal()  # what stands before a projection to zero
    network.denoiser.mid_block.attentions[0].transformer_blocks[0].temporal.proj_out.bias += 0.1
    assert network.is_temporal()


@torch.no_grad()
def test_samples_never_see_each_other(moved: AnimatorUNet) -> None:
    given, (z, timestep) = random_conditions(moved), noisy()
    whole = moved(z, timestep, given, temporal=True)
    for i in (slice(0, 1), slice(1, 2)):
        reference = Reference(
            tuple(tokens[i] for tokens in given.reference.tokens),
            tuple(feature[i] for feature in given.reference.features),
        )
        alone = Conditions(given.source_pose[i], given.driving_pose[i], reference, given.expression[i])
        torch.testing.assert_close(moved(z[i], timestep[i], alone, temporal=True), whole[i], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_source_is_projected_once_for_all_its_frames(moved: AnimatorUNet) -> None:
    """The reference's keys are of B sources, the frame's own of B·F; ∅ runs without the reference UNet."""
    given = random_conditions(moved)
    shapes: Counter[int] = Counter()
    for block in blocks_of(moved.denoiser):
        block.attn1.to_k.register_forward_pre_hook(lambda _, given: shapes.update([given[0].shape[0]]))
    moved.reference.register_forward_pre_hook(lambda *_: pytest.fail("the reference UNet ran within a step"))
    moved(*noisy(), given)
    assert shapes == {2: 16, 6: 16}
    shapes.clear()
    moved(*noisy(), None)
    assert shapes == {6: 16}


def test_the_temporal_window_is_bounded(network: AnimatorUNet) -> None:
    z, timestep = noisy(1, 7)
    with pytest.raises(ValueError, match="7 frames at once, the temporal attention was made for 6"):
        network(z, timestep, None, temporal=True)
    assert network(z, timestep, None).shape == z.shape


@pytest.mark.parametrize("size", [(16, 24), (10, 12), (9, 9)])
def test_other_latent_sizes(moved: AnimatorUNet, size: tuple[int, int]) -> None:
    """Oblong ones, and such as the UNet cannot halve evenly."""
    reference = moved.encode_reference(torch.randn(1, 4, *size))
    given = Conditions(random_poses(1), random_poses(1, 2), reference, torch.randn(1, 2, 16))
    z = torch.randn(1, 2, 4, *size)
    assert moved(z, torch.tensor([5]), given, temporal=True).shape == z.shape


# ---- training --------------------------------------------------------------------------------------------------------


def gradients(network: AnimatorUNet, temporal: bool) -> dict[str, Tensor]:
    """Of a loss through both UNets, the reference's included."""
    torch.manual_seed(3)
    network.zero_grad(set_to_none=True)
    given, (z, timestep) = random_conditions(network, samples=1, frames=2), noisy(1, 2)
    (network(z, timestep, given, temporal) - torch.randn_like(z)).square().mean().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def test_gradients_reach_every_parameter(moved: AnimatorUNet) -> None:
    names = {id(parameter): name for name, parameter in moved.named_parameters()}
    spatial, temporal = (
        {names[id(p)] for p in each} for each in (moved.spatial_parameters(), moved.temporal_parameters())
    )
    assert not spatial & temporal
    assert spatial | temporal == set(names.values())
    assert all(".temporal." in name for name in temporal)
    reached = gradients(moved, temporal=False)
    assert {name for name, gradient in reached.items() if gradient.any()} == spatial
    reached = gradients(moved, temporal=True)
    assert {name for name, gradient in reached.items() if gradient.any()} == spatial | temporal


def test_one_step_from_initialisation_wakes_every_addition(network: AnimatorUNet) -> None:
    """The zero layers learn first; what stands behind them, the reference UNet included, from the second step on."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    first = {name for name, gradient in gradients(network, temporal=True).items() if gradient.any()}
    additions = ("warped_out", "reference_out", "expression_attention.to_out", "temporal.proj_out")
    for addition in additions:
        assert sum(addition in name for name in first) >= 16
    assert not any(name.startswith("reference.") for name in first)
    optimizer.step()
    second = {name for name, gradient in gradients(network, temporal=True).items() if gradient.any()}
    assert second == {name for name, _ in network.named_parameters()}


def test_gradient_checkpointing_changes_no_gradient(moved: AnimatorUNet) -> None:
    plain = gradients(moved, temporal=True)
    moved.train().enable_gradient_checkpointing()
    calls: Counter[str] = Counter()
    for which in ("reference", "denoiser"):
        block = blocks_of(getattr(moved, which))[0]
        block.register_forward_pre_hook(lambda *_, which=which: calls.update([which]))
    again = gradients(moved, temporal=True)
    assert calls == {"reference": 2, "denoiser": 2}
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


@torch.no_grad()
def test_bf16_keeps_the_geometry_exact(moved: AnimatorUNet) -> None:
    """Weights in bf16: the output follows that of float32, the ray map is its rounding, not a coarser one."""
    given, (z, timestep) = random_conditions(moved), noisy()
    expected, seen = moved(z, timestep, given, True), watch(moved)
    moved(z, timestep, given)
    moved.to(torch.bfloat16)
    reference = Reference(
        tuple(tokens.bfloat16() for tokens in given.reference.tokens),
        tuple(feature.bfloat16() for feature in given.reference.features),
    )
    found = moved(z, timestep, dataclasses.replace(given, reference=reference), True)
    assert found.dtype == torch.float32
    assert (found - expected).square().mean().sqrt() < 0.05 * expected.std()
    assert torch.equal(seen["rays"][1], seen["rays"][0].bfloat16())
    for exact, coarse in zip(seen["warped"][:16], seen["warped"][16:], strict=True):
        torch.testing.assert_close(coarse.float(), exact, atol=0.02 * exact.abs().max().item(), rtol=0.01)


# ---- forms -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_saved_and_loaded_it_computes_the_same(moved: AnimatorUNet, tmp_path: Path) -> None:
    save_animator(tmp_path, moved.config, moved.state_dict(), {"provenance": {"step": 3}})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["animator.safetensors", "config.json"]
    loaded, content = load_animator(tmp_path)
    assert (loaded.config, content["provenance"]) == (TINY, {"step": 3})
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    given, (z, timestep) = random_conditions(moved), noisy()
    assert torch.equal(loaded(z, timestep, given, True), moved(z, timestep, given, True))
    source = torch.randn(1, 4, 16, 16)
    for mine, its in zip(moved.encode_reference(source).tokens, loaded.encode_reference(source).tokens, strict=True):
        assert torch.equal(mine, its)


def test_saved_in_half_precision_it_is_loaded_so(moved: AnimatorUNet, tmp_path: Path) -> None:
    save_animator(tmp_path, moved.config, {k: v.bfloat16() for k, v in moved.state_dict().items()}, {})
    loaded, _ = load_animator(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_an_export_that_cannot_be_read(network: AnimatorUNet, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"config\.json: not found"):
        load_animator(tmp_path)
    state = network.state_dict()
    del state["denoiser.conv_in.weight"]
    state["denoiser.conv_in.bias"] = torch.ones(1)
    save_animator(tmp_path, network.config, state, {})
    with pytest.raises(ExportError, match=r"missing \['denoiser.conv_in.weight'\].* shape \['denoiser.conv_in.bias'\]"):
        load_animator(tmp_path)
    (tmp_path / "animator.safetensors").write_bytes(b"")
    with pytest.raises(ExportError, match="cannot be read"):
        load_animator(tmp_path)
    (tmp_path / "animator.safetensors").unlink()
    with pytest.raises(ExportError, match="not found beside"):
        load_animator(tmp_path)
    (tmp_path / "config.json").write_text('{"schema": 1, "weights": "generator.safetensors"}')
    with pytest.raises(ExportError, match=r"belongs to generator\.safetensors, needed is animator\.safetensors"):
        load_animator(tmp_path)


@torch.no_grad()
def test_ablations_have_no_trace_of_what_they_leave_out() -> None:
    config = dataclasses.replace(TINY, ray_map=False, reference_warping=False)
    network = away_from_zero(AnimatorUNet(config))
    assert network.denoiser.conv_in.in_channels == 4
    assert not any("warped_out" in name for name, _ in network.named_parameters())
    given, (z, timestep) = random_conditions(network), noisy()
    posed = dataclasses.replace(given, driving_pose=random_poses(2, 3))
    assert torch.equal(network(z, timestep, given), network(z, timestep, posed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expression_tokens": 5}, "multiple of expression_tokens 5"),
        ({"expression_tokens": 0}, "expression_tokens is 0, need at least one"),
        ({"frames": 0}, "at least one"),
        ({"unet": {**TINY_UNET, "in_channels": 7}}, "7 and 4"),
        ({"unet": {**TINY_UNET, "class_embed_type": "timestep"}}, "class_embed_type"),
        ({"unet": {**TINY_UNET, "up_block_types": ["UpBlock2D"] * 4}}, "the last of up_block_types"),
        ({"unet": {**TINY_UNET, "mid_block_type": "UNetMidBlock2D"}}, "mid_block_type"),
    ],
)
def test_a_configuration_of_another_kind_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


# ---- full size -------------------------------------------------------------------------------------------------------


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_at_full_size() -> None:
    """Stable Diffusion 1.5's 859.5 M: what the method takes away, and what each addition brings."""
    base = 859_520_964
    with torch.device("meta"):
        network = AnimatorUNet(AnimatorConfig())
    parts: Counter[str] = Counter()
    for block in blocks_of(network.denoiser):
        assert not hasattr(block, "attn2")
        parts["expression_places"] += block.expression_places.numel()
        for name, child in block.named_children():
            parts[name] += count(child)
    widths = [320] * 5 + [640] * 5 + [1280] * 6
    # norm2: 2c; to_q and to_out: c² each, to_k and to_v: 768 c each, and to_out's bias
    text = sum(2 * c + 2 * c * c + 2 * 768 * c + c for c in widths)
    assert text == 43_987_520
    additions = {
        "warped_out": sum(c * c for c in widths),
        "reference_out": sum(c * c for c in widths),
        "expression_places": 16 * 32 * 16,
        "expression_norm": sum(2 * c for c in widths),
        "expression_attention": sum(2 * c * c + 2 * 16 * c + c for c in widths),
        "temporal": 272_850_880,
    }
    assert {name: parts[name] for name in additions} == additions
    ray_map = 3 * 320 * 9
    assert count(network.denoiser) == base - text + sum(additions.values()) + ray_map
    # The reference ends at the entrance of its last block, of 320 channels.
    c = 320
    tail = (4 * c * c + c) + 2 * c + (8 * c * c + 8 * c + 4 * c * c + c) + (c * c + c) + 2 * c + (4 * c * 9 + 4)
    assert count(network.reference) == base - text - tail
    assert sum(p.numel() for p in network.temporal_parameters()) == additions["temporal"]
    assert count(network) == count(network.denoiser) + count(network.reference) == 1_952_175_876


def test_shapes_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = []

    def warp(volume: Tensor, source: Tensor, driving: Tensor) -> Tensor:
        volumes.append(tuple(volume.shape))
        return volume

    monkeypatch.setattr("dex.animator.blocks.warp_volume", warp)
    with torch.device("meta"):
        network = AnimatorUNet(AnimatorConfig())
        assert network.denoiser.conv_in.in_channels == 4 + 3
        reference = network.encode_reference(torch.empty(1, 4, 64, 64))
        given = Conditions(identity_pose(1), identity_pose(1, 2), reference, torch.empty(1, 2, 512))
        assert network.expression_tokens(given.expression).shape == (2, 32, 16)
        out = network(torch.empty(1, 2, 4, 64, 64), torch.zeros(1), given, temporal=True)
    assert out.shape == (1, 2, 4, 64, 64)
    levels = [(10, 32, 64, 64), (40, 16, 32, 32), (160, 8, 16, 16), (320, 4, 8, 8)]
    order = [0] * 2 + [1] * 2 + [2] * 2 + [3] + [2] * 3 + [1] * 3 + [0] * 3
    assert volumes == [(2, *levels[level]) for level in order]
    tokens = [(1, 4096, 320), (1, 1024, 640), (1, 256, 1280), (1, 64, 1280)]
    assert [tuple(t.shape) for t in reference.tokens] == [tokens[level] for level in order]


@pytest.mark.slow
def test_full_size_runs_forward_and_backward() -> None:
    """The paper's widths: one frame of 256² (32² latent) forward through both UNets, one of 128² backward to the ray
    map's weights and to those of all warped features; about 9 GB. In float32, since some processors emulate bf16.
    At 512² the shapes above are all that changes."""
    network = AnimatorUNet(AnimatorConfig()).requires_grad_(False)
    watched = [network.denoiser.conv_in.weight, *(block.warped_out.weight for block in blocks_of(network.denoiser))]
    for weight in watched:
        weight.requires_grad_()
    network.enable_gradient_checkpointing()

    def noise(size: int) -> Tensor:
        reference = network.encode_reference(torch.randn(1, 4, size, size))
        given = Conditions(random_poses(1), random_poses(1, 1), reference, torch.randn(1, 1, 512))
        return network(torch.randn(1, 1, 4, size, size), torch.tensor([500]), given, temporal=True)

    with torch.no_grad():
        assert noise(32).isfinite().all()
    noise(16).square().mean().backward()
    assert all(weight.grad.isfinite().all() and weight.grad.any() for weight in watched)


def test_stable_diffusions_configuration_is_given_out_fresh() -> None:
    """A caller that changes its copy changes no other's."""
    AnimatorConfig().unet["layers_per_block"] = 1
    assert AnimatorConfig().unet == stable_diffusion()


def test_a_shell_has_a_depth() -> None:
    with pytest.raises(ValueError, match=r"shell is -0.3, need 0 \(none\) or a depth above 0"):
        AnimatorConfig(shell=-0.3)
