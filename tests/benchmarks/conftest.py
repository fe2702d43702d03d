"""What tests of several benchmarks share."""

import importlib
from collections.abc import Callable

import pytest

Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """The one line by which `python -m benchmarks.MODULE ARGUMENTS` refuses, run in this process: an import less."""

    def run(module: str, *arguments: object) -> str:
        monkeypatch.setattr("sys.argv", [module, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(f"benchmarks.{module}").main()
        printed = capsys.readouterr().err
        if isinstance(ended.value.code, str):  # which the interpreter prints, before it ends with 1
            printed, ended.value.code = f"{printed}{ended.value.code}\n", 1
        assert ended.value.code == 1
        assert printed.startswith("error: ")
        assert printed.count("\n") == 1, printed
        return printed

    return run
