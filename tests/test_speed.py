"""What makes a step cheaper leaves its results alone."""

import copy
import shutil
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from benchmarks.counting import Meter
from dex.motion.trainer import MotionTrainer, Optimisation
from dex.speed import checkpoint_blocks, compile_blocks, to_channels_last
from tests.motion.conftest import Steady, tiny_data, tiny_trainer

PLAIN = {"learning_rate": 2e-3, "discriminator_learning_rate": 2e-3, "teacher_poses": 5}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).sin().exp()


def trained(steps: int = 3, **changes: Any) -> MotionTrainer:
    torch.manual_seed(0)
    module = tiny_trainer(optimisation=Optimisation(**{**PLAIN, **changes}))
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0, callbacks=[Steady(1e-3)],
    )  # fmt: skip
    trainer.fit(module, tiny_data())
    return module


@pytest.fixture(scope="module")
def plain() -> MotionTrainer:
    return trained()


@pytest.mark.parametrize("option", ["gradient_checkpointing", "fused", "channels_last"])
def test_training_is_the_same_with_and_without(plain: MotionTrainer, option: str) -> None:
    other = trained(**{option: option != "channels_last"})
    assert plain.state_dict().keys() == other.state_dict().keys()
    for name, tensor in plain.generator.state_dict().items():
        torch.testing.assert_close(other.generator.state_dict()[name], tensor, rtol=2e-3, atol=2e-3)


def test_checkpointed_blocks_keep_their_inputs_only() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(*(Block() for _ in range(3)))
    again = copy.deepcopy(plain)
    checkpoint_blocks(again, (Block,))
    x = torch.randn(2, 4)
    kept = {}
    for name, network in (("plain", plain), ("again", again)):
        with Meter() as meter:
            for parameter in network.parameters():
                meter.see(parameter)
            before = meter.now
            loss = network(x).sum()
            kept[name] = meter.now - before
        loss.backward()
    assert kept["again"] == 4 * (2 * x.numel() + 1)  # float32: the input of the second and third block, and the loss
    assert kept["plain"] >= 3 * 4 * 2 * x.numel()
    for ours, theirs in zip(again.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert again.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_give_the_same() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(*(Block() for _ in range(3)))
    compiled = copy.deepcopy(plain)
    compile_blocks(compiled, (Block,))
    x = torch.randn(2, 4)
    torch.testing.assert_close(compiled(x), plain(x))
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_channels_last_leaves_other_weights_alone() -> None:
    flat, deep = nn.Conv2d(4, 8, 3), nn.Conv3d(4, 8, 3)
    to_channels_last(nn.Sequential(flat, deep))
    assert flat.weight.is_contiguous(memory_format=torch.channels_last)
    assert deep.weight.is_contiguous()
