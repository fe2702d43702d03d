"""The registry of third-party weights: what it opens, what it refuses, and what it says."""

import hashlib
import io
import os
import re
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dex import weights
from dex.weights import Weight, WeightsError

DATA = b"the right bytes" * 1000
URL = "https://example.org/tiny.bin"


def register(monkeypatch: pytest.MonkeyPatch, name: str, data: bytes, kind: str, url: str | None = URL) -> Weight:
    sha256 = hashlib.sha256(data).hexdigest()
    weight = Weight(f"{name}.bin", url, sha256, len(data), kind, "CC0-1.0", "tests", "the tests")  # type: ignore[arg-type]
    monkeypatch.setitem(weights.REGISTRY, name, weight)
    return weight


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty weights folder; `tiny` is registered."""
    register(monkeypatch, "tiny", DATA, "onnx")
    monkeypatch.setenv("DEX_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


class Response(io.BytesIO):
    """What urlopen returns."""

    url = URL


def serve(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], Response]) -> list[str]:
    """Answers every request with `answer()`; returns the list of requested addresses."""
    requested: list[str] = []

    def urlopen(url: str, timeout: float) -> Response:
        requested.append(url)
        return answer()

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return requested


# ---- the registry ----------------------------------------------------------------------------------------------------


def test_every_entry_is_complete() -> None:
    assert len({weight.file for weight in weights.REGISTRY.values()}) == len(weights.REGISTRY)
    for name, weight in weights.REGISTRY.items():
        assert re.fullmatch(r"[0-9a-f]{64}", weight.sha256), name
        assert weight.size > 0, name
        assert weight.url is None or weight.url.startswith("https://"), name
        assert weight.licence, name
        assert weight.use, name
        assert Path(weight.file).name == weight.file, name
        assert Path(weight.file).suffix not in {".pkl", ".pickle"}, name


def test_real_files_are_the_registered_ones(weights_env: Path) -> None:
    known = {weight.file: name for name, weight in weights.REGISTRY.items()}
    files = [path.name for path in weights_env.iterdir() if path.suffix != ".md"]
    assert files
    for file in files:
        assert weights.path(known[file]) == weights_env / file


# ---- path ------------------------------------------------------------------------------------------------------------


def test_folder_is_the_argument_then_the_environment_then_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (folder, tmp_path / "other", tmp_path / ".cache" / "dex" / "weights"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "tiny.bin").write_bytes(DATA)
    assert weights.path("tiny", tmp_path / "other") == tmp_path / "other" / "tiny.bin"
    assert weights.path("tiny") == folder / "tiny.bin"
    monkeypatch.delenv("DEX_WEIGHTS")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.path("tiny") == tmp_path / ".cache" / "dex" / "weights" / "tiny.bin"


def test_missing_file_names_file_address_and_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError) as caught:
        weights.path("tiny")
    for part in (str(folder / "tiny.bin"), URL, "python -m dex.weights fetch tiny", "DEX_WEIGHTS"):
        assert part in str(caught.value)
    with pytest.raises(WeightsError, match=f"fetch tiny --dir {folder}"):
        weights.path("tiny", folder)
    register(monkeypatch, "converted", DATA, "torchscript", url=None)
    with pytest.raises(WeightsError, match=r"converted\.bin is missing. No public address .* copy it there"):
        weights.path("converted")


@pytest.mark.parametrize("wrong", [DATA[:-1], DATA[:-1] + b"!"], ids=["truncated", "other"])
def test_wrong_content_is_an_error_that_names_the_command(folder: Path, wrong: bytes) -> None:
    (folder / "tiny.bin").write_bytes(wrong)
    with pytest.raises(WeightsError, match=r"tiny\.bin has (14999 bytes|sha256).*python -m dex\.weights fetch tiny"):
        weights.path("tiny")


def rewrite(file: Path, data: bytes) -> None:
    """At a later time: some kernels' clock of files ticks every few milliseconds only."""
    before = file.stat().st_mtime_ns
    file.write_bytes(data)
    os.utime(file, ns=(before + 10**7, before + 10**7))


def test_hash_is_computed_once_and_again_when_the_file_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: count.append(1) or digest(*a))
    (folder / "tiny.bin").write_bytes(DATA)
    weights.path("tiny")
    weights.path("tiny")
    assert len(count) == 1
    rewrite(folder / "tiny.bin", DATA[::-1])
    with pytest.raises(WeightsError, match="sha256"):
        weights.path("tiny")


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(WeightsError, match=r"'vgg61' is no registered weight.*vgg16"):
        weights.path("vgg61")


# ---- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # saving one, for the test
def test_load_torchscript_is_float32_frozen_and_lets_gradients_through(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout()).half()
    torch.jit.save(torch.jit.script(network), buffer)
    register(monkeypatch, "net", buffer.getvalue(), "torchscript")
    (folder / "net.bin").write_bytes(buffer.getvalue())
    loaded = weights.load_torchscript("net")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in loaded.parameters())
    x = torch.randn(4, 3, requires_grad=True)
    y = loaded(x)
    torch.testing.assert_close(y, network[0].float()(x))  # eval: no dropout
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_load_torchscript_opens_no_unregistered_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(3, 2)), buffer)
    register(monkeypatch, "net", b"x" * len(buffer.getvalue()), "torchscript")
    (folder / "net.bin").write_bytes(buffer.getvalue())
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("opened"))
    with pytest.raises(WeightsError, match="sha256"):
        weights.load_torchscript("net")


def test_load_state_dict_refuses_a_pickle_that_runs_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return print, ("run",)

    for content, good in (({"weight": torch.ones(2)}, True), ({"weight": Evil()}, False)):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        register(monkeypatch, "state", buffer.getvalue(), "state dict")
        (folder / "state.bin").write_bytes(buffer.getvalue())
        if good:
            assert torch.equal(weights.load_state_dict("state")["weight"], torch.ones(2))
        else:
            with pytest.raises(Exception, match=r"[Ww]eights.only"):
                weights.load_state_dict("state")


def test_a_weight_is_only_loaded_as_what_it_is(folder: Path) -> None:
    with pytest.raises(WeightsError, match="tiny is a onnx file, not a torchscript one"):
        weights.load_torchscript("tiny")


def test_real_perceptual_network_measures_no_distance_between_equal_pictures(weights_env: Path) -> None:
    network = weights.load_torchscript("stlpips_alex")
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    assert network(x, x).item() == pytest.approx(0, abs=1e-5)
    assert network(x, -x).item() > 0.05


# ---- fetching --------------------------------------------------------------------------------------------------------


def test_fetch_downloads_once_and_leaves_only_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested = serve(monkeypatch, lambda: Response(DATA))
    assert weights.fetch("tiny", folder / "new") == folder / "new" / "tiny.bin"
    weights.fetch("tiny", folder / "new")
    assert requested == [URL]
    assert [path.name for path in (folder / "new").iterdir()] == ["tiny.bin"]


@pytest.mark.parametrize("wrong", [DATA[:-1], DATA + b"more", b""], ids=["short", "long", "empty"])
def test_fetch_keeps_nothing_of_wrong_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch, wrong: bytes) -> None:
    serve(monkeypatch, lambda: Response(wrong))
    with pytest.raises(WeightsError, match=r"gave sha256 .* nothing was kept"):
        weights.fetch("tiny")
    assert list(folder.iterdir()) == []


def test_fetch_replaces_a_wrong_file_but_keeps_it_where_the_network_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tiny.bin").write_bytes(b"wrong")

    def unreachable() -> Response:
        raise urllib.error.URLError("Name or service not known")

    serve(monkeypatch, unreachable)
    with pytest.raises(WeightsError, match=f"{URL}.*Name or service not known.*copy it to .*tiny.bin"):
        weights.fetch("tiny")
    assert [path.read_bytes() for path in folder.iterdir()] == [b"wrong"]
    serve(monkeypatch, lambda: Response(DATA))
    assert weights.fetch("tiny").read_bytes() == DATA


def test_fetch_refuses_a_redirection_away_from_https(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plain() -> Response:
        response = Response(DATA)
        response.url = "http://example.org/tiny.bin"
        return response

    serve(monkeypatch, plain)
    with pytest.raises(WeightsError, match="not https"):
        weights.fetch("tiny")
    assert list(folder.iterdir()) == []


def test_fetch_respects_hf_hub_offline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested = serve(monkeypatch, lambda: Response(DATA))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE forbids downloads"):
        weights.fetch("tiny")
    assert requested == []
    (folder / "tiny.bin").write_bytes(DATA)
    assert weights.fetch("tiny") == folder / "tiny.bin"  # nothing to download


def test_fetch_into_a_folder_that_cannot_be_made_is_one_clear_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, lambda: Response(DATA))
    (folder / "file").touch()
    with pytest.raises(WeightsError, match="cannot fetch"):
        weights.fetch("tiny", folder / "file")


# ---- command line ----------------------------------------------------------------------------------------------------


def test_list_and_verify_report_what_is_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tiny.bin").write_bytes(DATA)
    assert weights.main(["list"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^tiny +here", out, re.MULTILINE)
    assert re.search(r"^vgg16 +absent +553\.4 MB", out, re.MULTILINE)
    assert weights.main(["verify"]) == 0
    assert capsys.readouterr().out.count("is right") == 1
    assert weights.main(["verify", "tiny", "vgg16", "--dir", str(folder)]) == 1
    rewrite(folder / "tiny.bin", DATA[::-1])
    assert weights.main(["verify"]) == 1


def test_errors_are_one_line_and_status_1(tmp_path: Path) -> None:
    """In a process of its own, with no proxy and an address that leads nowhere: no traceback, torch is not loaded."""
    program = "import sys, dex.weights as w; s = w.main(sys.argv[1:]); sys.exit(s if 'torch' not in sys.modules else 9)"
    for arguments in (["verify"], ["verify", "vgg16"], ["fetch", "stlpips_vgg"], ["fetch", "nonsense"], ["fetch"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments, "--dir", str(tmp_path)],
            capture_output=True,
            text=True,
            env={"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(weights.__file__).parents[1])},
        )
        assert done.returncode == 1, done
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("error: ")
