"""Result files as tables, one a protocol: rows are methods, columns are metrics by their full names."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any, Literal

from benchmarks.results import REFERENCES, Result

_SMALL = 30  # pairs
_ALPHA = 0.05
_MOST_LOST = 0.1  # share of frames without a face above which what reads faces cannot be compared
_COPY = "copy-source"
_ARROWS = {"higher": "↑", "lower": "↓", "none": ""}
_TEX = {"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "†": r"$^\dagger$"}
_TEX |= {"‡": r"$^\ddagger$"}
_TEX |= {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "°": r"$^\circ$", "–": "--"}


def grouped(results: Sequence[Result]) -> list[list[Result]]:
    """Results of one task and manifest, the references first, in their order, then the others by name."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        key = (result.content["task"], result.content["dataset"]["manifest_sha256"])
        groups.setdefault(key, []).append(result)

    def place(result: Result) -> tuple[int, str]:
        known = result.method in REFERENCES
        return REFERENCES.index(result.method) if known else len(REFERENCES), result.method

    return [sorted(group, key=place) for group in groups.values()]


def columns(group: Sequence[Result]) -> list[dict[str, Any]]:
    """An entry of each metric that any of the results has, in the order of their files."""
    found: dict[str, dict[str, Any]] = {}
    for result in group:
        for entry in result.content["metrics"]:
            found.setdefault(entry["id"], entry)
    return list(found.values())


def title(group: Sequence[Result]) -> str:
    content = group[0].content
    small = ", small n: mind the intervals" if content["pairs"]["count"] < _SMALL else ""
    return f"{content['dataset']['name']}, {content['task']}, {content['pairs']['count']} pairs{small}"


def heading(entry: dict[str, Any]) -> str:
    unit = f" [{entry['unit']}]" if entry["unit"] else ""
    return f"{entry['id']}{unit} {_ARROWS[entry['better']]}".rstrip()


def cell(result: Result, name: str, group: Sequence[Result], strong: Callable[[str], str] = str) -> str:
    """Value and interval; † where it does not beat copying the source; `strong` where it is the best for certain."""
    entry = result.metric(name)
    if entry is None:
        return "–"
    if entry["value"] is None:
        return "not measurable" if entry["note"] else "–"
    text = number(entry["value"])
    if entry["ci95"]:
        text += f" [{number(entry['ci95'][0])}, {number(entry['ci95'][1])}]"
    text = strong(text) if is_best(result, entry, group) else text
    text += " †" if fails_to_beat_copying(result, entry, group) else ""
    return text + (" ‡" if is_selective(entry) else "")


def number(value: float) -> str:
    """Three digits or more."""
    size = abs(value)
    return f"{value:.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.{2 if size >= 10 else 3}f}"


def fails_to_beat_copying(result: Result, entry: dict[str, Any], group: Sequence[Result]) -> bool:
    copy = next((r.metric(entry["id"]) for r in group if r.method == _COPY), None)
    if result.method in REFERENCES or copy is None or copy["value"] is None or entry["better"] == "none":
        return False
    return not _better(entry["value"], copy["value"], entry)


def is_selective(entry: dict[str, Any]) -> bool:
    """Measured only where a face could be found, and often none was: the frames that remain are the easy ones."""
    return entry["fail_rate"] is not None and entry["fail_rate"] > _MOST_LOST


def is_best(result: Result, entry: dict[str, Any], group: Sequence[Result]) -> bool:
    """Of the methods that are no reference, and by p < 0.05 against each other one."""
    if result.method in REFERENCES or entry["better"] == "none" or is_selective(entry):
        return False
    others = {r.method: r.metric(entry["id"]) for r in group if r is not result and r.method not in REFERENCES}
    rivals = {method: e["value"] for method, e in others.items() if e is not None and e["value"] is not None}
    known = {c["other"]: c["p_holm"] for c in result.content["comparisons"] if c["metric"] == entry["id"]}
    return bool(rivals) and all(
        _better(entry["value"], value, entry) and known.get(method, 1.0) < _ALPHA for method, value in rivals.items()
    )


def _better(value: float, than: float, entry: dict[str, Any]) -> bool:
    return value > than if entry["better"] == "higher" else value < than


def notes(group: Sequence[Result]) -> list[str]:
    """What stands below a table."""
    lines = []
    if any(fails_to_beat_copying(r, e, group) for r in group for e in r.content["metrics"] if e["value"] is not None):
        lines.append(f"† does not beat {_COPY}.")
    if any(is_selective(e) for r in group for e in r.content["metrics"]):
        lines.append(f"‡ no face read in more than {100 * _MOST_LOST:.0f} % of the frames: not comparable.")
    for result in group:
        lost = {e["fail_rate"] for e in result.content["metrics"] if e["fail_rate"]}
        if lost:
            lines.append(
                f"{result.method}: no face read in {100 * max(lost):.1f} % of the frames, in the output or what "
                "it is compared with; these are left out."
            )
    extractors = {e["extractor"]["name"]: e["extractor"] for e in columns(group) if e["extractor"]}
    lines += [f"Read by {e['name']} (sha256 {e['sha256'][:12]}, {e['licence']})." for e in extractors.values()]
    for entry in columns(group):
        if entry["floor"] is not None:
            lines.append(
                f"Floor of {entry['id']}: {number(entry['floor'])} (real against real, split half: of half as many "
                "pictures, which alone makes it larger than what stands in the column)."
            )
        if anchors := {name: value for name, value in entry.get("anchors", {}).items() if value is not None}:
            words = ", ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in anchors.items())
            lines.append(f"Anchors of {entry['id']} on this set: {words}.")
        if entry["value"] is None and entry["note"]:
            lines.append(f"{entry['id']}: {entry['note']}.")
    return list(dict.fromkeys(lines))


def render(results: Sequence[Result], style: Literal["md", "csv", "tex"]) -> str:
    """All results, a table a protocol (md, tex), or a line a method and metric (csv)."""
    if style == "csv":
        return _csv(results)
    return "\n\n".join((_markdown if style == "md" else _tex)(group) for group in grouped(results)) + "\n"


def _markdown(group: Sequence[Result]) -> str:
    entries = columns(group)
    lines = [f"**{title(group)}**", "", "| method | " + " | ".join(heading(e) for e in entries) + " |"]
    lines.append("| --- |" + " --- |" * len(entries))
    for result in group:
        cells = [cell(result, e["id"], group, lambda text: f"**{text}**") for e in entries]
        lines.append("| " + " | ".join([result.method.replace("|", r"\|"), *cells]) + " |")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(group))])


def _tex(group: Sequence[Result]) -> str:
    entries = columns(group)
    lines = [rf"\begin{{tabular}}{{l{'r' * len(entries)}}}", r"\toprule"]
    lines += [" & ".join(["method", *(escaped(heading(e)) for e in entries)]) + r" \\", r"\midrule"]
    for result in group:
        cells = [cell(result, e["id"], group, lambda text: f"\0{text}\1") for e in entries]
        cells = [escaped(text).replace("\0", r"\textbf{").replace("\1", "}") for text in cells]
        lines.append(" & ".join([escaped(result.method), *cells]) + r" \\")
    below = [f"% {note}" for note in [title(group), *notes(group)]]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *below])


def escaped(text: str) -> str:
    """For TeX."""
    return "".join(_TEX.get(letter, letter) for letter in text)


def _csv(results: Sequence[Result]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["task", "dataset", "method", "metric", "value", "low", "high", "n", "fail_rate", "unit", "better", "note"]
    )
    for group in grouped(results):
        for result in group:
            for e in result.content["metrics"]:
                low, high = e["ci95"] or (None, None)
                content = result.content
                row = [content["task"], content["dataset"]["name"], result.method, e["id"], e["value"], low, high]
                writer.writerow([*row, e["n"], e["fail_rate"], e["unit"], e["better"], e["note"]])
    return buffer.getvalue()
