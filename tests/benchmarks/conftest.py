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
Called = Callable[..., str]


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
def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    """What `python -m benchmarks.MODULE ARGUMENTS` prints, run in this process: an import less."""

    def run(module: str, *arguments: object) -> str:
        monkeypatch.setattr("sys.argv", [module, *map(str, arguments)])
        importlib.import_module(f"benchmarks.{module}").main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(called: Called, capsys: pytest.CaptureFixture[str]) -> Called:
    """The one line by which it refuses, run in this process, too."""

    def run(module: str, *arguments: object) -> str:
        with pytest.raises(SystemExit) as ended:
            called(module, *arguments)
        printed, code = capsys.readouterr().err, ended.value.code
        if isinstance(code, str):
            printed += f"{code}\n"  # by the interpreter, which then ends with 1
        else:
            assert code == 1
        assert printed.startswith("error: ")
        assert printed.count("\n") == 1, printed
        return printed

    return run
