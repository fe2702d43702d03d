"""What pictures are read by: right on real faces, the same as the packages they come from, closed to wrong files."""

import dataclasses
import hashlib
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pytorch_fid import inception
from torch import Tensor, nn

from dex import weights
from dex.metrics import MetricError
from dex.metrics.extractors.faces import MediaPipeReader, ScriptReader
from dex.metrics.extractors.features import Features, I3d, check_count
from dex.metrics.extractors.identity import TEMPLATE, ArcFace, IdentityCosine, similarity
from dex.metrics.extractors.perceptual import Perceptual
from dex.pose import geodesic, split_pose
from dex.weights import WeightsError


def register(name: str, state: object, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of random numbers, or of a network as TorchScript, in the place of a registered one."""
    file = folder / weights.REGISTRY[name].file
    state.save(str(file)) if isinstance(state, torch.jit.ScriptModule) else torch.save(state, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    changed = dataclasses.replace(weights.REGISTRY[name], sha256=digest, size=file.stat().st_size)
    monkeypatch.setitem(weights.REGISTRY, name, changed)
    monkeypatch.setenv("DEX_WEIGHTS", str(folder))


def computed_elsewhere() -> pytest.RaisesExc[NotImplementedError]:
    """The meta device computes shapes only: what was computed there is noticed where it is fetched."""
    return pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor")


def portrait(folder: Path, name: str, size: int = 320) -> np.ndarray:
    with Image.open(folder / "portraits" / name) as file:
        return np.asarray(file.convert("RGB").resize((size, size)))


@pytest.fixture
def reader(weights_env: Path):  # type: ignore[no-untyped-def]
    with MediaPipeReader() as opened:
        yield opened


def test_turned_picture_turns_the_pose(reader: MediaPipeReader, talking_heads: Path) -> None:
    upright = portrait(talking_heads, "sadtalker_happy.png")
    turned = np.asarray(Image.fromarray(upright).rotate(-20, resample=Image.Resampling.BICUBIC))
    read = reader.read(np.stack([upright, turned]))
    angle = torch.rad2deg(geodesic(*split_pose(read.pose)[0]))
    assert angle.item() == pytest.approx(20, abs=2)
    assert read.found.all()
    assert read.expression.shape == (2, 52)


def test_no_face_is_nan_and_clips_do_not_touch(reader: MediaPipeReader, talking_heads: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (2, 256, 256, 3), dtype=np.uint8)
    face = portrait(talking_heads, "sadtalker_sad.png")[None]
    first, blind, again = reader.read(face), reader.read(noise), reader.read(face)
    assert blind.pose.isnan().all()
    assert not blind.found.any()
    assert torch.equal(first.pose, again.pose)
    assert torch.equal(first.expression, again.expression)


def test_one_person_and_strangers(reader: MediaPipeReader, talking_heads: Path) -> None:
    """Anchors of this network: median 0.83 for one person in two sources, 0.01 for strangers."""
    names = ("sadtalker_happy.png", "sadtalker_sad.png", "facenet-pytorch_rudd.jpg", "facenet-pytorch_jolie.jpg")
    embedder = ArcFace()
    rows = []
    for name in names:
        frames = portrait(talking_heads, name, 512)[None]
        rows.append(embedder.embed(frames, reader.read(frames).points)[0])
    cosine = torch.stack(rows) @ torch.stack(rows).T
    assert torch.allclose(cosine.diag(), torch.ones(4, dtype=torch.float64))
    assert cosine[0, 1] > 0.55
    assert max(cosine[0, 2], cosine[0, 3], cosine[2, 3]) < 0.3


def test_face_without_points_has_no_embedding(weights_env: Path) -> None:
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    assert ArcFace().embed(frames, torch.full((2, 5, 2), torch.nan)).isnan().all()


def test_similarity_is_recovered() -> None:
    angle, scale, shift = 0.4, 2.5, np.array([3.0, -7.0])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert np.allclose(similarity(TEMPLATE, TEMPLATE @ turn.T + shift), np.column_stack([turn, shift]))


def test_identity_cosine_leaves_out_what_was_not_read() -> None:
    metric = IdentityCosine()
    a = torch.eye(3, dtype=torch.float64)
    b = a.clone()
    b[2] = torch.nan
    metric.update(a, b)
    metric.update(a, a.roll(1, 0))
    found = metric.compute()
    assert found["csim"] == pytest.approx(0.5)
    assert found["fail_rate"] == pytest.approx(1 / 6)


def test_lpips_is_the_package_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    convolutions = [m for m in reference.net.modules() if isinstance(m, nn.Conv2d)]
    state = {f"features.{i}.{k}": getattr(m, k) for i, m in enumerate(convolutions) for k in ("weight", "bias")}
    register("vgg16", state, tmp_path, monkeypatch)
    a, b = torch.rand(2, 5, 3, 64, 64)
    with torch.no_grad():
        expected = reference(a, b, normalize=True).flatten()
    assert torch.allclose(Perceptual("vgg16").distance(a, b), expected, rtol=1e-4)
    with computed_elsewhere():
        Perceptual("vgg16", "meta").distance(a, b)


def test_perceptual_wants_float_pictures_in_range(weights_env: Path) -> None:
    distance = Perceptual("stlpips_alex").distance
    picture = torch.rand(1, 3, 64, 64)
    assert distance(picture, picture).item() == pytest.approx(0, abs=1e-6)
    assert distance(picture, 1 - picture).item() > 0.05
    with pytest.raises(MetricError, match="divide 8-bit"):
        distance((picture * 255).byte(), picture)
    with pytest.raises(MetricError, match=r"need \[0, 1\]"):
        distance(picture * 2 - 1, picture)
    with pytest.raises(MetricError, match="need one of"):
        Perceptual("squeeze")


def test_inception_is_pytorch_fid_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = inception._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    for name, block in (
        ("Mixed_5b", inception.FIDInceptionA(192, 32)),
        ("Mixed_5c", inception.FIDInceptionA(256, 64)),
        ("Mixed_5d", inception.FIDInceptionA(288, 64)),
        ("Mixed_6b", inception.FIDInceptionC(768, 128)),
        ("Mixed_6c", inception.FIDInceptionC(768, 160)),
        ("Mixed_6d", inception.FIDInceptionC(768, 160)),
        ("Mixed_6e", inception.FIDInceptionC(768, 192)),
        ("Mixed_7b", inception.FIDInceptionE_1(1280)),
        ("Mixed_7c", inception.FIDInceptionE_2(2048)),
    ):
        setattr(network, name, block)
    made = network.state_dict()
    register("inception_fid", made, tmp_path, monkeypatch)
    features = Features("inception")
    pictures = torch.rand(3, 3, 80, 80)
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: made)
    with torch.no_grad():
        expected = inception.InceptionV3([3]).eval()(pictures)[0].flatten(1)
    assert torch.allclose(features.features(pictures), expected)
    assert expected.shape == (3, features.dimensions)
    with computed_elsewhere():
        Features("inception", "meta").features(pictures)


def test_wrong_inception_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register("inception_fid", {}, tmp_path, monkeypatch)
    file = tmp_path / weights.REGISTRY["inception_fid"].file
    file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(weights.WeightsError, match="is right"):
        Features("inception")


class _Linear(nn.Module):
    """A network of any extractor's interface: means of the picture, times fixed numbers. It refuses pictures on another
    device than its own."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.arange(numbers, dtype=torch.float32))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        assert x.device == self.weight.device
        assert y is None or y.device == self.weight.device
        return x.flatten(1).mean(dim=1, keepdim=True) * self.weight


def scripted(numbers: int, path: Path) -> str:
    torch.jit.script(_Linear(numbers)).save(str(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_i3d_of_a_user(tmp_path: Path) -> None:
    file = tmp_path / "i3d.pt"
    digest = scripted(400, file)
    videos = torch.full((2, 16, 3, 32, 32), 0.75)
    assert torch.allclose(I3d(file, digest).features(videos), 0.5 * torch.arange(400.0).expand(2, -1))
    with pytest.raises(MetricError, match="N × 16"):
        I3d(file, digest).features(videos[:, :8])
    with pytest.raises(MetricError, match="was not opened"):
        I3d(file, "0" * 64)
    with pytest.raises(MetricError, match="no such file"):
        I3d(tmp_path / "none.pt", digest)
    file.write_bytes(b"no network")
    with pytest.raises(WeightsError, match=r"i3d.pt: cannot be read as TorchScript"):
        I3d(file, hashlib.sha256(b"no network").hexdigest())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_networks_are_moved_and_fed_where_they_are_asked_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mobilefacenet_arcface", "efficientnet_lite0", "stlpips_alex"):
        register(name, torch.jit.script(_Linear(3)), tmp_path, monkeypatch)
    pictures, points = torch.rand(2, 3, 64, 64), torch.from_numpy(TEMPLATE).expand(2, 5, 2)
    frames = np.zeros((2, 112, 112, 3), np.uint8)
    reads = {
        "identity": lambda: ArcFace("meta").embed(frames, points),
        "features": lambda: Features("effnet_lite0", "meta").features(pictures),
        "perceptual": lambda: Perceptual("stlpips_alex", "meta").distance(pictures, pictures),
        "videos": lambda: I3d(tmp_path / "i3d.pt", scripted(400, tmp_path / "i3d.pt"), "meta").features(
            torch.rand(1, 16, 3, 32, 32)
        ),
    }
    for read in reads.values():
        with computed_elsewhere():
            read()


def test_too_few_videos_for_fvd() -> None:
    with pytest.raises(MetricError, match="below 256"):
        check_count(255, force=False)
    check_count(256, force=False)
    check_count(50, force=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_network_of_a_user_reads_faces(weights_env: Path, talking_heads: Path, tmp_path: Path) -> None:
    settings = {
        "name": "mine",
        "file": "mine.pt",
        "sha256": scripted(10, tmp_path / "mine.pt"),
        "licence": "MIT",
        "size": 64,
        "range": "0..1",
        "margin": 1.4,
        "expression": [0, 6],
        "rotation": [7, 10],
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(settings))
    frames = np.stack([portrait(talking_heads, "sadtalker_happy.png"), np.zeros((320, 320, 3), np.uint8)])
    with ScriptReader.from_file(path) as reader:
        read = reader.read(frames)
        assert reader.names == ("mine", "mine", "mp", "mine")
        assert reader.sources["mine"].sha256 == settings["sha256"]
    assert read.found.tolist() == [True, False]
    with computed_elsewhere(), ScriptReader.from_file(path, "meta") as reader:
        reader.read(frames)
    mean = read.expression[0, 1]
    assert 0.1 < mean < 0.9
    assert torch.allclose(read.expression[0], mean * torch.arange(6.0).double(), rtol=1e-5)
    angle = geodesic(split_pose(read.pose[:1])[0], torch.eye(3, dtype=torch.float64)[None])
    turned = (mean * torch.tensor([7.0, 8, 9], dtype=torch.float64).norm()) % (2 * torch.pi)
    assert torch.cos(angle).item() == pytest.approx(torch.cos(turned).item(), abs=1e-4)

    # Without a rotation of its own, what takes pose as well is neither network's alone.
    path.write_text(yaml.safe_dump({key: value for key, value in settings.items() if key != "rotation"}))
    with ScriptReader.from_file(path) as reader:
        assert reader.names == ("mine", "mp", "mp", "mine_mp")
        assert reader.sources["mine_mp"].name == "mine + face_landmarker + yunet"
        hashes = {reader.sources[name].sha256 for name in reader.names}
        assert len(hashes) == 3

    for change, words in (
        ({"sha256": "0" * 64}, "was not opened"),
        ({"range": "0..2"}, "range '0..2'"),
        ({"name": "smirk.v2"}, "name 'smirk.v2'"),
        ({"name": "mp"}, "none of mp, mp_blendshapes"),
        ({"file": "none.pt"}, "is missing"),
        ({"colour": "red"}, "colour"),
        ({"size": 64.5}, "size is 64.5, need a whole number above 0"),
        ({"margin": "wide"}, "margin is 'wide', need a number above 0"),
        ({"expression": 50}, r"expression is 50, need \[first, last \+ 1\]"),
        ({"expression": [6, 0]}, r"expression is \[6, 0\], need"),
        ({"rotation": [7, 9]}, r"rotation is \[7, 9\], need \[first, first \+ 3\]"),
    ):
        path.write_text(yaml.safe_dump(settings | change))
        with pytest.raises(MetricError, match=words):
            ScriptReader.from_file(path)
    path.write_text("[")
    with pytest.raises(MetricError, match="cannot be read"):
        ScriptReader.from_file(path)
