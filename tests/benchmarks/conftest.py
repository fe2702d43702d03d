"""What tests of several benchmarks share."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name as resolve
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Refused = Callable[..., str]


def command(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`python -m benchmarks.MODULE ARGUMENTS` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip


def count(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[Any, ...]]:
    """The arguments of each call of a function or method from now on."""
    calls: list[tuple[Any, ...]] = []
    real: Callable[..., Any] = resolve(name)

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(given)
        return real(*given, **named)

    monkeypatch.setattr(name, counted)
    return calls


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """The one line by which `python -m benchmarks.MODULE ARGUMENTS` refuses, run in this process: an import less."""

    def run(module: str, *arguments: object) -> str:
        monkeypatch.setattr("sys.argv", [module, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(f"benchmarks.{module}").main()
        printed, code = capsys.readouterr().err, ended.value.code
        if isinstance(code, str):
            printed += f"{code}\n"  # by the interpreter, which then ends with 1
        else:
            assert code == 1
        assert printed.startswith("error: ")
        assert printed.count("\n") == 1, printed
        return printed

    return run
