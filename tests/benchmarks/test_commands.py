"""Every benchmark with a `main` is a command of its own."""

import json
import runpy
from pathlib import Path

import pytest

import benchmarks
from benchmarks.figures import measured
from tests.benchmarks.conftest import Called

FOLDER = Path(benchmarks.__file__).parent
WITH_MAIN = [path.relative_to(FOLDER) for path in FOLDER.rglob("*.py") if "\ndef main(" in path.read_text()]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # another test has imported it
@pytest.mark.parametrize("path", sorted(WITH_MAIN), ids=str)
def test_it_tells_how_it_is_called(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = ".".join(part for part in ("benchmarks", *path.with_suffix("").parts) if part != "__main__")
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__", alter_sys=True)  # what `python -m` does
    assert ended.value.code == 0
    assert f"python -m {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["animator", "loader", "sample_speed", "score_speed", "soak", "train_speed"])
def test_where_figures_cannot_be_written_is_told_before_anything_is_measured(
    name: str, tmp_path: Path, refused: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"benchmarks.{name}.run", lambda *_: pytest.fail("measured before"))
    config = ["--config", "none.yaml"] if name == "train_speed" else []
    assert f"--json {tmp_path} is a folder" in refused(name, *config, "--json", tmp_path)
    (tmp_path / "file").touch()
    assert "File exists" in refused(name, *config, "--json", tmp_path / "file" / "f.json")


def test_figures_are_written_into_a_folder_that_is_made(tmp_path: Path) -> None:
    into = tmp_path / "new" / "f.json"
    assert measured(lambda: {"ms": 1}, into) == json.loads(into.read_text()) == {"ms": 1}
