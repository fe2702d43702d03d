"""The commands, on synthetic heads through the real extractors: reference rows, repeatability, refusals."""

import json
import math
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.estimator import Estimator
from benchmarks.make import make_synthetic
from benchmarks.manifest import Span
from benchmarks.material import SyntheticClips, edited
from benchmarks.reading import Truth
from benchmarks.results import Result, environment
from benchmarks.scoring import Scorer
from benchmarks.suite import make_extractors, reading_device
from benchmarks.videos import write_video
from dex.metrics.extractors import Source
from dex.metrics.extractors.faces import FaceReading, MediaPipeReader
from dex.metrics.influence import Reading, distances_of, influence_of, selectivity, swap_distances, swap_error
from tests.animation.conftest import checkpoint  # noqa: F401  the fixture
from tests.benchmarks.conftest import count


def matrix_of(row: str) -> tuple[dict[str, float], float]:
    """Influence and swap error by exact readings of a reference row's videos, through the manifest's own tuples."""
    manifest = make_synthetic("disentangled", "d", 6, 64, 0)
    clips, sums, swaps, pairs = SyntheticClips.of(manifest), [], [], manifest.pairs

    def reading(pair, which) -> Reading:  # type: ignore[no-untyped-def]
        pose, expression = {
            "oracle": (pair.pose, pair.expression),
            "joint-code": (edited(pair), edited(pair)),
            "constant": (pairs[0].pose, pairs[0].pose),
            "driver": (pair.pose, pair.pose),
        }[which]
        return Reading(torch.from_numpy(clips.pose(pose)), torch.from_numpy(clips.expression(expression)))

    for none, pose, expression in zip(pairs[::3], pairs[1::3], pairs[2::3], strict=True):
        assert (none.edit, pose.edit, expression.edit) == ("none", "pose", "expression")
        outputs = [reading(pair, row) for pair in (none, pose, expression)]
        drivers = reading(none, "driver"), reading(pose, "driver")
        sums.append(distances_of(*outputs, *drivers).sum(dim=1))
        swaps.append(swap_distances(*(r.expression for r in (outputs[2], *drivers))).sum(dim=1))
    return influence_of(torch.stack(sums).sum(dim=0)), swap_error(torch.stack(swaps).sum(dim=0))


@pytest.mark.parametrize(
    ("row", "pp", "pe", "ep", "ee", "s", "x"),
    [("oracle", 1, 0, 0, 1, 1, 0), ("joint-code", 1, 1, 1, 1, 0, 0), ("driver", 1, 0, 1, 0, 0, 1)]
    + [("constant", 0, 0, 0, 0, 0, None)],  # of which the swap error says how far b is from anything
)
def test_reference_rows_have_the_stated_influence(
    row: str, pp: int, pe: int, ep: int, ee: int, s: int, x: int | None
) -> None:
    found, swap = matrix_of(row)
    for name, value in {"I_pp": pp, "I_pe": pe, "I_ep": ep, "I_ee": ee}.items():
        assert found[name] == pytest.approx(value, abs=1e-4), name
    assert selectivity(found) == pytest.approx(s, abs=1e-4)
    if x is not None:
        assert swap == pytest.approx(x, abs=1e-4)


def test_swap_error_is_scored_with_the_influence() -> None:
    """Of outputs whose expression is that of the pose's driver: all of it is missed."""
    manifest = make_synthetic("disentangled", "d", 6, 64, 0)
    clips = SyntheticClips.of(manifest)

    def faces(span: Span) -> FaceReading:
        numbers = (torch.from_numpy(part(span)) for part in (clips.pose, clips.expression))
        return FaceReading(*numbers, torch.zeros(span.count, 5, 2))

    names, source = MediaPipeReader.names, Source("reader", "ab", "MIT")
    reader = SimpleNamespace(names=names, sources=dict.fromkeys(names, source))
    extractors = SimpleNamespace(faces=reader, features=SimpleNamespace(dimensions=2), videos=None)
    truth = Truth(manifest, SimpleNamespace(), extractors)  # nobody knows the truth of other material
    truth.spans = {pair.pose: SimpleNamespace(faces=faces(pair.pose)) for pair in manifest.pairs}
    scorer = Scorer(truth)
    scorer._outputs = {pair.id: faces(pair.pose) for pair in manifest.pairs}
    *influence, swap, selective = scorer._influence()
    assert [round(entry["value"], 4) for entry in influence] == [1, 0, 1, 0]
    assert swap["id"] == "swap_error.mp_blendshapes.v1"
    assert (swap["better"], swap["n"], swap["extractor"]["name"]) == ("lower", 6, "reader")
    assert [swap["value"], *swap["ci95"]] == pytest.approx([1, 1, 1], abs=1e-6)
    assert selective["note"].startswith("not measurable")


@pytest.fixture(scope="module")
def protocol(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("protocol") / "tiny-self.jsonl"
    make_synthetic("self", "tiny", 3, 128, 0).save(path)
    return path


def run(protocol: Path, out: Path, *words: str) -> Result:
    name = words[words.index("--method") + 1]
    assert main(["run", "--protocol", str(protocol), "--out", str(out), *words]) == 0
    return Result.load(out / f"{name}-{protocol.stem}.json")


def test_every_network_gets_the_device_and_the_result_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    meta, asked = torch.device("meta"), []
    for name in ("ArcFace", "Perceptual", "Features", "I3d", "ScriptReader.from_file"):
        monkeypatch.setattr(f"benchmarks.suite.{name}", lambda *given: asked.append(given[-1]))
    made = make_extractors("vgg16", "inception", "arcface", Path("own.yaml"), Path("i3d.pt"), "", True, meta)
    assert asked == [meta] * 5
    assert environment(made.device)["device"] == "meta"
    assert environment(reading_device("cpu"))["device"] == platform.machine()
    assert reading_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_without_an_identity_network_there_is_no_csim(
    protocol: Path,
    tmp_path: Path,
    weights_env: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("benchmarks.suite.ArcFace", lambda device: pytest.fail("asked for"))
    found = run(protocol, tmp_path, "--method", "oracle", "--identity", "none")
    assert not any(entry["id"].startswith("csim") for entry in found.content["metrics"])
    assert found.metric("aed.mp_blendshapes_l1mean.v1")["value"] == pytest.approx(0, abs=1e-4)
    assert main(["table", str(tmp_path / "oracle-tiny-self.json")]) == 0
    assert "csim" not in capsys.readouterr().out


def test_weights_that_are_missing_are_told_before_any_video_is_made(
    protocol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEX_WEIGHTS", str(tmp_path / "nothing"))
    words = ["run", "--protocol", str(protocol), "--out", str(tmp_path), "--method", "oracle", "--perceptual", "vgg16"]
    assert main(words) == 1
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "videos").exists()


def test_oracle_is_perfect_and_copying_is_not(
    protocol: Path,
    tmp_path: Path,
    weights_env: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    oracle = run(protocol, tmp_path, "--method", "oracle")
    copy = run(protocol, tmp_path, "--method", "copy-source")
    perfect = {"psnr.v1": 100, "ssim.gauss11.v1": 1, "stlpips.alex.v1": 0, "fid.effnet_lite0.v1": 0}
    perfect |= {"aed.mp_blendshapes_l1mean.v1": 0, "apd.mp_geodesic_deg.v1": 0, "csim.mobilefacenet_arcface.v1": 1}
    for name, value in perfect.items():
        entry, worse = oracle.metric(name), copy.metric(name)
        assert entry is not None
        assert worse is not None
        assert entry["value"] == pytest.approx(value, abs=1e-4), name
        assert abs(worse["value"] - value) > 0.01, name
        assert entry["better"] == ("lower" if value == 0 else "higher")
    assert set(oracle.content) >= {"schema", "id", "task", "dataset", "pairs", "model", "preprocessing", "environment"}

    # The same again, from nothing and both at once: the very same numbers, and the truth was read a single time.
    baselines = ["baselines", "--protocol", str(protocol), "--out", str(tmp_path / "again")]
    with monkeypatch.context() as patched:
        patched.setattr("benchmarks.__main__.REFERENCE_ROWS", ("oracle", "copy-source"))
        made = count(patched, "benchmarks.suite.make_extractors")
        read = count(patched, "dex.metrics.extractors.faces.MediaPipeReader.read")
        assert main(baselines) == 0
        assert main(baselines) == 0  # every row is there
    assert len(made) == 1
    assert len(read) == 3 + 3 + 2 * 3  # sources, drivers, and the videos of two methods
    for first in (oracle, copy):
        again = Result.load(tmp_path / "again" / f"{first.method}-tiny-self.json")
        assert again.pairs == first.pairs
        assert again.content["metrics"] == first.content["metrics"]
        assert again.content["id"] == first.content["id"]

    files = [str(tmp_path / f"{name}-tiny-self.json") for name in ("oracle", "copy-source")]
    capsys.readouterr()
    assert main(["table", *files]) == 0
    assert "| copy-source |" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert main(["table", *files, "--format", "html", "--out", str(page)]) == 0
    assert main(["compare", *files]) == 0
    assert "oracle − copy-source" in capsys.readouterr().out

    videos = tmp_path / "videos" / "copy-source-tiny-self"
    options = ["--videos", str(videos), "--protocol", str(protocol)]
    assert main(["verify", files[1], *options]) == 0
    assert "numbers recomputed" in capsys.readouterr().out
    elsewhere = Result.load(Path(files[1]))
    elsewhere.content["environment"]["device"] = "another"
    next(e for e in elsewhere.content["metrics"] if e["id"] == "fid.effnet_lite0.v1")["value"] += 1e-5
    elsewhere.save(tmp_path / "elsewhere.json")
    with monkeypatch.context() as scored:
        scored.setattr("benchmarks.suite.score", lambda *_: copy)
        assert main(["verify", str(tmp_path / "elsewhere.json"), *options, "--device", "cpu"]) == 1
    assert f"(read on another, now on {platform.machine()}: last digits" in capsys.readouterr().err
    frames = np.zeros((16, 128, 128, 3), np.uint8)
    (videos / "self-0001").rename(tmp_path / "aside")
    write_video(videos / "self-0001", frames)
    with monkeypatch.context() as refused:
        refused.setattr("benchmarks.suite.score", lambda *_: pytest.fail("compared after minutes of scoring"))
        assert main(["verify", files[1], *options]) == 1
        assert "are not the videos" in capsys.readouterr().err
        other = tmp_path / "other.jsonl"
        make_synthetic("self", "tiny", 3, 128, 1).save(other)
        assert main(["verify", files[1], "--videos", str(videos), "--protocol", str(other)]) == 1
        assert "was scored with another manifest" in capsys.readouterr().err
        assert main(["verify", files[1], "--videos", str(tmp_path / "none"), "--protocol", str(protocol)]) == 1
        assert "none: no such folder" in capsys.readouterr().err

    # A video without a face: named, left out of what reads faces, and counted.
    assert main(["score", str(videos), "--protocol", str(protocol), "--name", "blind", "--out", str(tmp_path)]) == 0
    assert "no face in any frame of 1 videos" in capsys.readouterr().err
    blind = Result.load(tmp_path / "blind-tiny-self.json")
    entry = blind.metric("aed.mp_blendshapes_l1mean.v1")
    assert entry is not None
    assert entry["n"] == 2
    assert entry["fail_rate"] == pytest.approx(1 / 3)
    assert blind.pairs[1]["values"]["aed.mp_blendshapes_l1mean.v1"] is None
    assert blind.pairs[1]["values"]["psnr.v1"] is not None


def test_two_processes_score_as_one(protocol: Path, tmp_path: Path, weights_env: Path) -> None:
    one = run(protocol, tmp_path / "one", "--method", "copy-source")
    program = [sys.executable, "-m", "benchmarks", "run", "--method", "copy-source", "--devices", "2"]
    program += ["--protocol", str(protocol), "--out", str(tmp_path / "two")]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    two = Result.load(tmp_path / "two" / "copy-source-tiny-self.json")
    assert two.content["preprocessing"] == one.content["preprocessing"]
    assert two.pairs == one.pairs


def test_edited_result_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metric = {"id": "x.v1", "value": 2.0, "aggregation": "mean over pairs of means over frames"}
    result = Result({"schema": 1, "metrics": [metric]}, [{"id": "a", "values": {"x.v1": 1.0}}])
    path = tmp_path / "r.json"
    result.save(path)
    assert main(["verify", str(path)]) == 1
    assert "its pairs have 1.0" in capsys.readouterr().err
    content = json.loads(path.read_text())
    content["metrics"][0]["value"] = 1.0
    path.write_text(json.dumps(content))
    assert main(["verify", str(path)]) == 1
    assert "it was edited" in capsys.readouterr().err
    result.save(path)
    (tmp_path / "r.pairs.jsonl").write_text("{}")
    assert main(["verify", str(path)]) == 1
    assert "is not the file" in capsys.readouterr().err


def test_checkpoint_runs_and_goes_on_after_a_kill(
    protocol: Path,
    checkpoint: Path,  # noqa: F811
    tmp_path: Path,
    weights_env: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["run", "--checkpoint", str(checkpoint), "--protocol", str(protocol), "--out", str(tmp_path)]
    assert main(words) == 0
    videos = next((tmp_path / "videos").iterdir())
    (path,) = tmp_path.glob("*-tiny-self.json")
    first = Result.load(path)
    kept = videos / "self-0000" / "00000.png"
    written = kept.stat().st_mtime_ns
    for file in (videos / "self-0002").iterdir():
        file.unlink()
    (videos / "self-0002").rmdir()
    assert main(words) == 0
    assert kept.stat().st_mtime_ns == written
    assert Result.load(path).content["id"] == first.content["id"]
    assert set(first.content["model"]["checkpoint_sha256"]) == {
        "generator.safetensors",
        "encoders/encoders.safetensors",
    }
    # Videos of another protocol under the same name are not taken for these.
    other = tmp_path / "other" / protocol.name
    make_synthetic("self", "tiny", 3, 128, 1).save(other)
    assert main([*words[:4], str(other), *words[5:]]) == 1
    assert "holds videos of other weights, settings or another protocol" in capsys.readouterr().err
    (videos / "made.json").unlink()  # nobody knows of which
    assert main(words) == 1


def test_one_picture_is_no_pair_of_the_same_person() -> None:
    one, two, three = torch.eye(3)
    spans = [Span("a", 0, 1), Span("a", 1, 3), Span("b", 0, 1)]
    rows = [one[None], torch.stack([one, two, (one + two) / 2**0.5]), three[None]]
    drivers = {span: SimpleNamespace(embedding=embedding) for span, embedding in zip(spans, rows, strict=True)}
    manifest = SimpleNamespace(identity={"a": "A", "b": "B"})
    scorer = SimpleNamespace(manifest=manifest, truth=SimpleNamespace(spans=drivers))
    anchors = Scorer._anchors(scorer)["anchors"]
    # one · one, one · between twice over; b has been seen once
    assert anchors["same_person"] == pytest.approx((1 + 2 * 0.5**0.5) / 3)
    assert anchors["strangers"] == 0


def test_an_estimator_that_was_never_judged_does_not_count() -> None:
    assert Estimator({"yaw": 0.95, "expression": 0.9}, {"I_pe": 0.15, "I_ep": 0.0}).why_not is None
    assert Estimator({"yaw": 0.95, "expression": math.nan}, {"I_pe": 0.1, "I_ep": 0.0}).why_not is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "{tmp}/none", "--protocol", "{protocol}"], "no such folder"),
        (["score", "{tmp}", "--protocol", "{protocol}"], "3 of 3 videos"),
        (["score", "{tmp}", "--protocol", "vfhq"], "no such protocol"),
        (["run", "--checkpoint", "{tmp}", "--protocol", "{protocol}", "--out", "{tmp}"], "dex.export"),
        (["run", "--method", "joint-code", "--protocol", "{protocol}", "--out", "{tmp}"], "not defined for the self"),
        (["score", "{tmp}", "--protocol", "{protocol}", "--i3d", "{tmp}/i.pt"], "no such file"),
        (["score", "{tmp}", "--protocol", "{protocol}", "--perceptual", "x"], "need one of"),
        (["score", "{tmp}", "--protocol", "{protocol}", "--device", "x"], "--device x: "),
        (["score", "{tmp}", "--protocol", "{protocol}", "--device", "meta"], "--device meta: "),
        (["run", "--method", "oracle", "--protocol", "{protocol}", "--out", "{tmp}", "--devices", "x"], "--devices x"),
        (["table", "{tmp}/r.json"], "No such file"),
        (["compare", "{tmp}/r.json"], "two result files"),
        (["make", "--task", "cross", "--name", "x", "--clips", "1", "--out", "{tmp}/m.jsonl"], "at least 2"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    message: str,
    protocol: Path,
    tmp_path: Path,
    weights_env: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([word.format(tmp=tmp_path, protocol=protocol) for word in words]) == 1
    err = capsys.readouterr().err
    assert "error: " in err
    assert message in err
    assert "Traceback" not in err


def test_results_of_different_protocols_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for name in ("a", "b"):
        content = {"schema": 1, "task": "self", "metrics": [], "model": {"name": name}}
        content["dataset"] = {"name": name, "manifest_sha256": name}
        paths.append(tmp_path / f"{name}.json")
        Result(content, []).save(paths[-1])
    assert main(["compare", *map(str, paths)]) == 1
    assert "different protocols" in capsys.readouterr().err
