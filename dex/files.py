"""Files that are whole or not there, and their hashes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, to write to in the `with` block. What is there at its end is synced and renamed:
    `path` is either the old file or the whole new one. After an exception nothing is left behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_left(folder: Path, pattern: str = "*") -> None:
    """Deletes what processes that were killed have left of `replacing` files of names like `pattern`. Not while another
    process writes there."""
    for left in folder.glob(f".{pattern}.tmp"):
        left.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """`path` is either the old file or the whole new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
