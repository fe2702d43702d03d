"""What this machine has, what is missing, and how to mend it.

python -m dex.doctor            the report; exit status 1 where something needed is missing
python -m dex.doctor --install  only the system libraries: installs them as root on Debian, else names the packages
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from dex import weights
from dex.cores import usable_cores

# What the wheels of OpenCV and MediaPipe expect of the system: soname → Debian package.
LIBRARIES = {
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libGLESv2.so.2": "libgles2",
    "libgthread-2.0.so.0": "libglib2.0-0",
}
# Distributions that install the same module and overwrite one another's files.
_RIVALS = [
    {"decord", "decord2"},
    {"opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"},
]
_INSTALL = "pip install -c constraints.txt -e '.[prep,dev]'"
# Loader workers hand batches over through shared memory; containers often get 64 MB.
_SMALL_SHM = 1 << 30


@dataclass(frozen=True)
class Finding:
    topic: str
    found: str
    remedy: str = ""  # empty: nothing to mend
    needed: bool = True  # False: the program runs without, with less


def missing_libraries() -> list[str]:
    """Sonames of `LIBRARIES` that the dynamic loader, asked itself, does not find."""
    return [soname for soname in LIBRARIES if not _loads(soname)]


def _loads(soname: str) -> bool:
    try:
        ctypes.CDLL(soname)
    except OSError:
        return False
    return True


def _apt_get(sonames: list[str]) -> str:
    return f"apt-get install -y --no-install-recommends {' '.join(LIBRARIES[soname] for soname in sonames)}"


def install_libraries() -> int:
    """Installs what is missing with apt-get where that is possible; exit status 1 where something stays missing."""
    missing = missing_libraries()
    if not missing:
        print(f"system libraries: {', '.join(LIBRARIES)} are here")
        return 0
    if os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in ("apt-get update", _apt_get(missing)):
            print(command, flush=True)
            subprocess.run(command.split(), env=environment, stdin=subprocess.DEVNULL, check=False)
        missing = missing_libraries()
    if missing:
        print(
            f"error: missing for OpenCV and MediaPipe: {', '.join(missing)}. On Debian and Ubuntu run as root: "
            f"{_apt_get(missing)}. Elsewhere install the packages that hold these files.",
            file=sys.stderr,
        )
    return 1 if missing else 0


def _python() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()}, {platform.platform()}")


def _packages() -> Iterator[Finding]:
    """Every dependency that the package declares, compared with what is installed."""
    wrong: dict[str, list[str]] = {"": [], "prep": [], "dev": []}
    try:
        declared = metadata.requires("dex-portrait") or []
    except metadata.PackageNotFoundError:
        yield Finding("packages", "dex-portrait itself is not installed in this Python", _INSTALL)
        return
    for line in declared:
        requirement = Requirement(line)
        extra = next((e for e in ("prep", "dev") if requirement.marker and f'"{e}"' in str(requirement.marker)), "")
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong[extra].append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong[extra].append(f"{requirement.name} {version} is not {requirement.specifier}")
    for extra, faults in wrong.items():
        topic = f"packages[{extra}]" if extra else "packages"
        yield Finding(topic, "; ".join(faults) or "complete", _INSTALL if faults else "", needed=not extra)
    installed = {(distribution.name or "").lower().replace("_", "-") for distribution in metadata.distributions()}
    for rivals in _RIVALS:
        if len(both := sorted(rivals & installed)) > 1:
            yield Finding("packages", f"{' and '.join(both)} overwrite each other", f"a new .venv: {_INSTALL}")


def _machine() -> Iterator[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding("cores, memory", f"{usable_cores()} cores, {memory / 2**30:.1f} GiB")
    if Path("/dev/shm").is_dir():
        free = shutil.disk_usage("/dev/shm").free
        remedy = "give the container more (docker run --shm-size=8g), or train with --data.init_args.workers 0"
        yield Finding(
            "shared memory", f"{free / 2**30:.2f} GiB free", remedy if free < _SMALL_SHM else "", needed=False
        )


def _torch() -> Iterator[Finding]:
    """torch, and the device a run would get."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        yield Finding("torch", str(error), _INSTALL)
        return
    yield Finding("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        yield Finding("device", f"CPU (CUDA {torch.version.cuda or 'not'} built in, no usable GPU found)")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = torch.cuda.get_device_properties(index)
        yield Finding("device", f"cuda:{index} {card.name}, {card.total_memory / 2**30:.0f} GiB")


def _decoders() -> Iterator[Finding]:
    try:
        av = importlib.import_module("av")
        decord = importlib.import_module("decord")
    except (ImportError, OSError) as error:
        yield Finding("decoders", str(error), _INSTALL)
        return
    libraries = ", ".join(f"{name} {'.'.join(map(str, version))}" for name, version in av.library_versions.items())
    yield Finding("decoders", f"PyAV {av.__version__}, decord {decord.__version__}")
    yield Finding("ffmpeg in PyAV", libraries)
    if "libx264" not in av.codecs_available:
        yield Finding(
            "H.264 encoder", "this build of PyAV has no libx264", "pip install --force-reinstall av (the wheel)"
        )


def _face_detection() -> Iterator[Finding]:
    """MediaPipe and the system libraries it loads, some of them only when it starts to work."""
    try:
        version = metadata.version("mediapipe")
    except metadata.PackageNotFoundError:
        yield Finding("mediapipe", "not installed; data_prep needs it", _INSTALL, needed=False)
        return
    missing = missing_libraries()
    found = f"{', '.join(missing)} missing" if missing else "complete"
    yield Finding("system libraries", found, "python -m dex.doctor --install" if missing else "")
    # In a process of its own: a broken library may kill the process that loads it.
    code = "import cv2; from mediapipe.tasks.python import vision"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode == 0:
        yield Finding("mediapipe", f"{version} imports")
    else:
        last = (done.stderr.strip().splitlines() or [f"the import ended with status {done.returncode}"])[-1]
        yield Finding("mediapipe", f"{version}: {last}", f"python -m dex.doctor --install; {_INSTALL}")


def _weights() -> Iterator[Finding]:
    folder = weights.default_folder()
    here = [name for name, weight in weights.REGISTRY.items() if (folder / weight.file).is_file()]
    yield Finding(
        "weights",
        f"{folder}: {', '.join(here) or 'none'}",
        "" if here else "python -m dex.weights list, then fetch; or set DEX_WEIGHTS to a folder that holds them",
        needed=False,
    )


CHECKS = (_python, _packages, _machine, _torch, _decoders, _face_detection, _weights)


def report() -> int:
    """Prints every finding as it comes; exit status 1 where something needed is missing."""
    failed = False
    for check in CHECKS:
        for finding in check():
            state = "ok" if not finding.remedy else "missing" if finding.needed else "note"
            print(f"{state:8} {finding.topic:17} {finding.found}", flush=True)
            if finding.remedy:
                print(f"{'':8} {'':17} → {finding.remedy}")
            failed = failed or state == "missing"
    return int(failed)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dex.doctor", description=__doc__.partition("\n")[0])
    parser.add_argument("--install", action="store_true", help="install the missing system libraries, or name them")
    return install_libraries() if parser.parse_args(arguments).install else report()


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `… | head` ends quietly
    sys.exit(main())
