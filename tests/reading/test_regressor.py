"""What no drawing explains is read by a network taught on degraded renders: it helps there and harms nowhere."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dex.batch import EYES, FACE, MOUTH
from dex.data.synthetic.controls import LOWEST, NAMES, to_blendshapes
from dex.data.synthetic.head import Head, make_head
from dex.data.synthetic.render import render
from dex.data.synthetic.splits import identity_seed
from dex.reading import estimate, fit, regressor, teach
from dex.reading.degrade import EACH, Degraded, make, soft
from dex.reading.regressor import SIDE, Regressor, regress, taught, upright


@pytest.fixture(scope="module")
def heads() -> list[Head]:
    """Of identities that neither the network nor what is measured has."""
    return [make_head(identity_seed("test", 2**23 + number)) for number in range(8)]


def drawn(heads: list[Head], exact: bool) -> Degraded:
    return make(np.random.default_rng(5), heads, len(heads), exact)


def missed(found: Tensor, pictures: Degraded) -> float:
    """Mean square error of the controls in deviations²; 1 is what the mean expression has."""
    return float(((found - pictures.controls) / torch.from_numpy(fit.prior()[1]).float()).square().mean())


def test_the_network_reads_what_a_drawing_does_not_explain_and_leaves_what_it_does(heads: list[Head]) -> None:
    for pictures, share, more in ((drawn(heads, False), 0.85, 0.0), (drawn(heads, True), 1.0, 0.02)):
        asked = (pictures.heads, pictures.pictures, pictures.pose[:, None], 2)
        alone, together = fit.read(*asked), estimate.read(*asked)
        assert torch.equal(alone.pose, together.pose)
        assert torch.equal(alone.residual, together.residual)
        assert missed(together.controls, pictures) < share * missed(alone.controls, pictures) + more


def test_a_face_is_upright_whatever_its_pose(heads: list[Head]) -> None:
    turned = np.array([[0.1, -0.1, roll, x, y, scale] for roll, x, y, scale in ((0, 0, 0, 0), (0.4, 0.1, -0.1, -0.2))])
    pose = fit.poses(turned)
    shown = render(heads[0], to_blendshapes(np.zeros((2, len(NAMES)), np.float32)), pose, 128)
    mask, seen = torch.from_numpy(shown.mask)[:, None], torch.from_numpy(pose)
    for label in (EYES, MOUTH):
        one, two = upright((mask == label).float().expand(-1, 3, -1, -1), seen)[:, 0]
        assert one.shape == (SIDE, SIDE)
        assert (middle(one) - middle(two)).abs().max() < 1  # pixel
    assert upright((mask >= FACE).float().expand(-1, 3, -1, -1), seen).mean() > 0.6  # it fills what the network sees


def middle(mask: Tensor) -> Tensor:
    """Row and column."""
    rows, columns = mask.sum(1), mask.sum(0)
    return torch.stack([(weight * torch.arange(len(weight))).sum() / weight.sum() for weight in (rows, columns)])


def test_degraded_renders_are_a_function_of_the_generator(heads: list[Head]) -> None:
    one, two, exact = drawn(heads, False), drawn(heads, False), drawn(heads, True)
    assert torch.equal(one.pictures, two.pictures)
    assert torch.equal(one.pose, two.pose)
    assert one.pictures.shape == (EACH * len(heads), 3, fit.SIZE, fit.SIZE)
    assert one.pictures.min() >= 0
    assert one.pictures.max() <= 1
    assert ((one.controls >= torch.from_numpy(LOWEST)) & (one.controls <= 1)).all()
    # of exact ones the drawing of the truth is the picture
    settings = np.concatenate([fit.parameters(exact.pose), exact.controls.double().numpy()], 1)
    again = [fit.draw(head, setting[None])[0][0] for head, setting in zip(exact.heads, settings, strict=True)]
    error = (torch.stack(again) - exact.pictures).square().mean(dim=(1, 2, 3)).sqrt()
    assert error.median() < 0.01
    settings = np.concatenate([fit.parameters(one.pose), one.controls.double().numpy()], 1)
    again = [fit.draw(head, setting[None])[0][0] for head, setting in zip(one.heads, settings, strict=True)]
    assert (torch.stack(again) - one.pictures).square().mean().sqrt() > 0.05


def test_each_picture_has_its_own_blur() -> None:
    pictures = torch.rand(3, 3, 32, 32)
    found = soft(pictures, torch.tensor([0.0, 1.0, 3.0]).view(-1, 1, 1, 1))
    assert torch.allclose(found[0], pictures[0], atol=1e-5)
    assert found[1].std() > 1.5 * found[2].std()
    assert torch.allclose(found.mean(), pictures.mean(), atol=0.01)


def test_reading_takes_no_random_number_and_no_precision_of_a_training(heads: list[Head]) -> None:
    pictures = drawn(heads, False)
    taught.cache_clear()
    torch.manual_seed(3)
    first = regress(pictures.pictures, pictures.neutral, pictures.pose)
    drawn_after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn_after)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(regress(pictures.pictures, pictures.neutral, pictures.pose), first)
    assert ((first >= torch.from_numpy(LOWEST)) & (first <= 1)).all()


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "regressor.safetensors"
    other.write_bytes(regressor.WEIGHTS.read_bytes()[:-1] + b"\0")
    monkeypatch.setattr(regressor, "WEIGHTS", other)
    taught.cache_clear()
    with pytest.raises(ValueError, match=r"regressor.safetensors: sha256 is .*, need "):
        taught()
    taught.cache_clear()


def test_teaching_is_one_command_that_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = []
    for name in ("one", "two"):
        out = tmp_path / name / "regressor.safetensors"
        monkeypatch.setattr(teach, "UNSEEN", 2)
        monkeypatch.setattr("sys.argv", ["teach", "--steps", "2", "--identities", "3", "--out", str(out)])
        teach.main()
        written.append(out.read_bytes())
        Regressor().load_state_dict({key: value.float() for key, value in load_file(out).items()})
    assert written[0] == written[1]
    said = capsys.readouterr().out
    assert "R², degraded: jaw_open" in said
    assert "| exact |" in said
    assert "sha256" in said
    monkeypatch.setattr("sys.argv", ["teach", "--steps", "0"])
    with pytest.raises(SystemExit, match="--steps 0"):
        teach.main()
