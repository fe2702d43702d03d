"""Files of the same bytes. Only files of equal size are read, so every part of a job array can look at all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from data_prep.layouts import Source
from dex.files import file_sha256


def duplicates(sources: Iterable[Source]) -> dict[str, str]:
    """File → the first file (by name) that holds the same bytes."""
    by_size: dict[int, list[Source]] = defaultdict(list)
    for source in sources:
        try:
            if source.path.is_file() and (size := source.path.stat().st_size):
                by_size[size].append(source)
        except OSError:
            continue  # reading it gives the reason
    copies: dict[str, str] = {}
    for group in by_size.values():
        first: dict[str, str] = {}
        for source in sorted(group, key=lambda source: source.file) if len(group) > 1 else ():
            try:
                original = first.setdefault(file_sha256(source.path), source.file)
            except OSError:
                continue
            if original != source.file:
                copies[source.file] = original
    return copies
