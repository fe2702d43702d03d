"""Memory of a process, as the operating system counts it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path


def resident_bytes(process: int | str = "self") -> int:
    """Of a process by its number. Raises OSError where there is no such process, or no /proc (Linux only)."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def reset_peak() -> None:
    """Begins the count of `peak_resident_bytes` anew (Linux only)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_resident_bytes() -> int:
    """The most that this process has had at once since `reset_peak` (Linux only)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])


def return_freed() -> None:
    """Gives freed memory back to the system. The C library of Linux keeps it in pieces among what lives on: of scoring,
    10 MB more with each clip. Nothing happens elsewhere."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
