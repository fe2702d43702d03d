"""The doctor finds what is missing, names the package, and installs it only where it may."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dex import doctor, weights


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> str:
    """A library that no machine has, from a package of that name."""
    monkeypatch.setattr(doctor, "LIBRARIES", {"libm.so.6": "libc6", "libnosuch-dex.so.9": "libnosuch9"})
    return "libnosuch-dex.so.9"


@pytest.fixture
def apt_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts an apt-get that only notes its calls in front of PATH; returns the note."""
    note, program = tmp_path / "calls", tmp_path / "bin" / "apt-get"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$DEBIAN_FRONTEND $*" >> {note}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return note


def test_the_loader_itself_is_asked(missing: str) -> None:
    assert doctor.missing_libraries() == [missing]


def test_root_on_debian_installs_what_is_missing(
    missing: str, apt_get: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert doctor.install_libraries() == 1  # this apt-get installs nothing, and the loader is asked again
    assert apt_get.read_text().splitlines() == [
        "noninteractive update",
        "noninteractive install -y --no-install-recommends libnosuch9",
    ]
    assert missing in capsys.readouterr().err
    answers = iter([[missing], []])
    monkeypatch.setattr(doctor, "missing_libraries", lambda: next(answers))
    assert doctor.install_libraries() == 0


def test_anyone_else_is_told_the_package(
    missing: str, apt_get: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert doctor.main(["--install"]) == 1
    assert not apt_get.exists()
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert missing in error
    assert "apt-get install -y --no-install-recommends libnosuch9" in error


def test_nothing_is_installed_where_nothing_is_missing(
    apt_get: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "LIBRARIES", {"libm.so.6": "libc6"})
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert doctor.main(["--install"]) == 0
    assert not apt_get.exists()
    assert "libm.so.6" in capsys.readouterr().out


def test_report_fails_only_for_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = doctor.Finding("a", "all right")
    note = doctor.Finding("b", "small", "make it larger", needed=False)
    bad = doctor.Finding("c", "gone", "bring it back")
    monkeypatch.setattr(doctor, "CHECKS", (lambda: iter([fine, note]),))
    assert doctor.report() == 0
    monkeypatch.setattr(doctor, "CHECKS", (lambda: iter([fine, bad]), lambda: iter([note])))
    assert doctor.report() == 1
    lines = capsys.readouterr().out.splitlines()[-5:]
    assert [line.split()[0] for line in lines] == ["ok", "missing", "→", "note", "→"]


def test_packages_are_compared_with_what_the_package_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["numpy", "torch>=99", "no-such-package>=1", 'other-missing>=2; extra == "prep"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: declared)
    core, prep, dev = list(doctor._packages())[:3]
    assert core.needed
    assert "torch" in core.found
    assert "is not >=99" in core.found
    assert "no-such-package is not installed" in core.found
    assert not prep.needed
    assert prep.found == "other-missing is not installed"
    assert dev.remedy == ""


def test_a_checkout_that_is_not_installed_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[str]:
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "requires", absent)
    (finding,) = doctor._packages()
    assert finding.needed
    assert "pip install" in finding.remedy


def test_report_on_this_machine(tmp_path: Path) -> None:
    """The command as a user runs it; what it says of the weights is checked against a folder that holds one."""
    (tmp_path / weights.entry("yunet").file).touch()
    done = subprocess.run(
        [sys.executable, "-m", "dex.doctor"],
        capture_output=True,
        text=True,
        env={**os.environ, "DEX_WEIGHTS": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert "Traceback" not in done.stderr
    lines = {line[9:26].strip(): line for line in done.stdout.splitlines() if line[:1].strip()}
    assert {"python", "cores, memory", "torch", "device", "decoders", "ffmpeg in PyAV", "weights"} <= set(lines)
    assert lines["weights"].endswith(f"{tmp_path}: yunet")
    assert "CPU" in lines["device"]
    assert done.returncode == any(line.startswith("missing") for line in done.stdout.splitlines())
