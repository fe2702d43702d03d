"""Every benchmark with a `main` is a command of its own."""

import runpy
from pathlib import Path

import pytest

import benchmarks

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
