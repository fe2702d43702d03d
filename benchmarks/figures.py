"""Figures of a command that measures for minutes, and their file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dex.files import write_atomic


def measured(measure: Callable[[], dict[str, Any]], into: Path | None) -> dict[str, Any]:
    """What `measure` finds, also written to the JSON file `into`, whose folder is made before. Leaves the program with
    one line where anything is wrong, a device that lacks memory included."""
    try:
        if into:
            into.parent.mkdir(parents=True, exist_ok=True)
            if into.is_dir():
                raise IsADirectoryError(f"--json {into} is a folder, need the name of a file")
        figures = measure()
        if into:
            write_atomic(into, (json.dumps(figures, indent=1) + "\n").encode())
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("DEX_TRACEBACK"):  # as in dex.fit
            raise
        sys.exit(f"error: {error}".partition("\n")[0])
    return figures
