"""Numbers quoted from papers, for orientation: other sets, other extractors, other definitions of AED and APD than ours
and than each other's. They never stand in a table with measured ones."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

FILE = Path(__file__).with_name("published.csv")


def published() -> str:
    """A Markdown table for each paper, set and task."""
    with FILE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return "\n\n".join("\n".join(_table(rows, *key)) for key in dict.fromkeys(map(_key, rows))) + "\n"


def _key(row: dict[str, str]) -> tuple[str, str, str]:
    return row["paper"], row["set"], row["task"]


def _table(rows: list[dict[str, str]], paper: str, material: str, task: str) -> Iterator[str]:
    own = [row for row in rows if _key(row) == (paper, material, task)]
    metrics = list(dict.fromkeys(row["metric"] for row in own))
    values = {(row["method"], row["metric"]): row["value"] for row in own}
    yield f"**{task}, {material}: quoted from the {paper} paper, not reproduced here**"
    yield ""
    yield f"| method | {' | '.join(metrics)} |"
    yield "| --- |" + " --- |" * len(metrics)
    for method in dict.fromkeys(row["method"] for row in own):
        yield f"| {method} | {' | '.join(values.get((method, metric), '–') for metric in metrics)} |"
