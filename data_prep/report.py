"""report.json with every decision, a summary of one screen, a page of histograms, a contact sheet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Shaped

from data_prep import histograms
from data_prep.pipeline import Record
from dex.data.shards import StoredClip
from dex.files import replacing, write_atomic
from dex.video import ClipReader

NAME = "report.json"

_SHEET_CLIPS, _SHEET_COLUMNS, _MOMENTS, _TILE = 48, 4, 4, 112
_SHOWN = 12  # lines of the summary's lists


def write(out: Path, records: Sequence[Record], begun_with: dict) -> str:
    """Writes report.json and report.txt last of all: they mark a finished run. Returns the summary."""
    records = sorted(records, key=lambda record: record.file)
    totals = _totals(records)
    content = {
        "schema": 1,
        "settings": begun_with,
        "totals": totals,
        "histograms": _all_histograms(records),
        "sources": [asdict(record) for record in records],
    }
    text = summary(records)
    write_atomic(out / "report.txt", text.encode(errors="backslashreplace"))
    write_atomic(out / NAME, json.dumps(content, indent=1).encode())
    return text


def load(out: Path) -> dict | None:
    """The report of a finished run."""
    path = out / NAME
    return json.loads(path.read_bytes()) if path.is_file() else None


def records_of(report: dict) -> list[Record]:
    return [Record(**source) for source in report["sources"]]


def summary(records: Sequence[Record]) -> str:
    """One screen: the yield by reason, and the files that gave nothing."""
    totals = _totals(records)
    seen, taken = totals["seconds"], totals["clip_seconds"]
    share = 100 / seen if seen else 0.0
    lines = [
        f"{totals['files']} files, {seen:.1f} s of video → {totals['clips']} clips, {taken:.1f} s, "
        f"{totals['clip_frames']} frames",
        f"{'':42}{'spans':>7}{'seconds':>10}{'share':>8}{'whole files':>13}",
        f"{'taken':42}{totals['clips']:7}{taken:10.1f}{taken * share:7.1f}%{'':>13}",
    ]
    table = sorted(totals["reasons"].items(), key=lambda item: (-item[1]["seconds"], -item[1]["files"], item[0]))
    for reason, cost in table[:_SHOWN]:
        lines.append(
            f"{reason[:41]:42}{cost['spans']:7}{cost['seconds']:10.1f}{cost['seconds'] * share:7.1f}%{cost['files']:13}"
        )
    empty = [record for record in records if not record.clips]
    lines += [f"files without a clip: {len(empty)}"] if empty else []
    for record in empty[:_SHOWN]:
        lines.append(f"  {record.file}: {', '.join(filter(None, [record.reason, record.detail]))}")
    if len(empty) > _SHOWN:
        lines.append(f"  … and {len(empty) - _SHOWN} more: see {NAME}")
    return "\n".join(lines) + "\n"


def _totals(records: Iterable[Record]) -> dict:
    reasons: dict[str, dict] = {}
    counts: Counter[str] = Counter()
    clip_frames, seconds = 0, 0.0
    for record in records:
        counts["files"] += 1
        counts["clips"] += len(record.clips)
        seconds += record.seconds
        clip_frames += sum(clip["frames"] for clip in record.clips)
        for span in record.rejected:
            cost = reasons.setdefault(span["reason"], {"spans": 0, "seconds": 0.0, "files": 0})
            cost["spans"] += 1
            cost["seconds"] += span["seconds"]
        if not record.clips:
            reasons.setdefault(record.reason, {"spans": 0, "seconds": 0.0, "files": 0})["files"] += 1
    clip_seconds = sum(clip["seconds"] for record in records for clip in record.clips)
    return {**counts, "seconds": seconds, "clip_seconds": clip_seconds, "clip_frames": clip_frames, "reasons": reasons}


def _all_histograms(records: Iterable[Record]) -> histograms.Counts:
    counts = histograms.empty()
    for record in records:
        counts = histograms.add(counts, record.histograms)
    return counts


def draw_histograms(path: Path, records: Iterable[Record]) -> None:
    """A page of yaw, pitch and face size over frames and of length over clips."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to load, needed once
    from matplotlib.figure import Figure

    counts = _all_histograms(records)
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots(2, 2)
    for axis, (name, (edges, label)) in zip(axes.flat, histograms.BINS.items(), strict=True):
        axis.bar(edges[:-1], counts[name], width=np.diff(edges), align="edge", edgecolor="white", linewidth=0.4)
        axis.set(xlabel=label, ylabel="clips" if name == "seconds" else "frames")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def draw_contact_sheet(path: Path, clips: Sequence[StoredClip]) -> None:
    """Up to 48 clips, evenly chosen, each by four frames from its beginning to its end."""
    ordered = sorted(clips, key=lambda clip: clip.meta.key)
    count = min(len(ordered), _SHEET_CLIPS)
    strips = [_strip(ordered[at * len(ordered) // count]) for at in range(count)]
    columns = min(_SHEET_COLUMNS, count)
    strips += [np.full_like(strips[0], 255)] * (-count % columns)
    rows = [np.hstack(strips[at : at + columns]) for at in range(0, len(strips), columns)]
    encoded = cv2.imencode(".png", cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))[1]
    write_atomic(path, encoded.tobytes())


def _strip(clip: StoredClip) -> Shaped[np.ndarray, "h w 3"]:
    reader = ClipReader(clip.members["mp4"](), frames=clip.meta.frames)
    moments = np.linspace(0, len(reader) - 1, _MOMENTS).round().astype(int).tolist()
    tiles = [cv2.resize(frame, (_TILE, _TILE), interpolation=cv2.INTER_AREA) for frame in reader.get(moments)]
    strip = cv2.copyMakeBorder(np.hstack(tiles), 16, 4, 4, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    cv2.putText(strip, clip.meta.key[-64:], (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA)
    return strip
