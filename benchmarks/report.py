"""Result files as one self-contained page: no script, nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.films import Film
from benchmarks.results import Result
from benchmarks.tables import cell, columns, grouped, heading, notes, number, title

_THUMB = 96  # pixels
_CELLS = ("pp", "pe", "ep", "ee")
_WORDS = {
    "pp": "pose follows its driver",
    "pe": "pose moves under an expression edit",
    "ep": "expression moves under a pose edit",
    "ee": "expression follows its driver",
}
_STYLE = """
:root { color-scheme: light dark; --line: #8885; --dot: #2a6fb0; --mean: #d5592b; }
@media (prefers-color-scheme: dark) { :root { --dot: #7ab6ee; --mean: #ffa36b; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; } thead th { vertical-align: bottom; white-space: normal; min-width: 7rem; }
.notes { font-size: 13px; opacity: .85; } .plots { display: flex; flex-wrap: wrap; gap: 1.5rem; }
svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif; fill: currentColor; }
figure { margin: 0 0 1.5rem; } figcaption { font-size: 13px; } .film img { display: block; height: 96px; }
.film div { display: flex; align-items: center; gap: .6rem; } .film span { width: 8rem; flex: none; font-size: 12px; }
pre { font-size: 12px; white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def html(results: Sequence[Result], films: Sequence[Film] = ()) -> str:
    """The tables with their intervals, each pair as a point, influence matrices, the worst pairs as filmstrips, and
    what the numbers were made with."""
    body = "".join(_section(group) for group in grouped(results))
    if films:
        body += "<h2>Worst pairs</h2>" + "".join(_film(film) for film in films)
    body += "<h2>Provenance</h2>" + "".join(_provenance(result) for result in results)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Portrait animation: results</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><h1>Portrait animation: results</h1>{body}</body></html>\n"
    )


def _section(group: list[Result]) -> str:
    entries = columns(group)
    head = "".join(f'<th scope="col">{escape(heading(entry))}</th>' for entry in entries)
    rows = ""
    for result in group:
        cells = "".join(f"<td>{_cell(result, entry['id'], group)}</td>" for entry in entries)
        rows += f'<tr><th scope="row">{escape(result.method)}</th>{cells}</tr>'
    below = "".join(f"<li>{escape(note)}</li>" for note in notes(group))
    plots = "".join(_strip(group, entry) for entry in entries if entry["id"] in group[0].pairs[0]["values"])
    maps = "".join(_matrix(result) for result in group)
    return (
        f'<h2>{escape(title(group))}</h2><div class="wide"><table>'
        f'<thead><tr><th scope="col">method</th>{head}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><ul class="notes">{below}</ul>'
        + (f'<h3>Influence</h3><div class="plots">{maps}</div>' if maps else "")
        + f'<h3>Every pair</h3><div class="plots">{plots}</div>'
    )


def _cell(result: Result, name: str, group: list[Result]) -> str:
    text = cell(result, name, group, lambda value: f"\0{value}\1")
    return escape(text).replace("\0", "<b>").replace("\1", "</b>")


def _strip(group: list[Result], entry: dict[str, Any]) -> str:
    """A line a method: a point a pair, the mean and its interval above them."""
    name, width, left, row = entry["id"], 420, 120, 26
    values = {r.method: [p["values"].get(name) for p in r.pairs] for r in group}
    read = [value for column in values.values() for value in column if value is not None]
    if not read:
        return ""
    low, high = min(read), max(read)
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return left + (value - low) / span * (width - left - 12)

    parts = []
    for line, result in enumerate(group):
        y = 14 + line * row
        parts.append(f'<text x="0" y="{y + 4}">{escape(_short(result.method))}</text>')
        dots = [value for value in values[result.method] if value is not None]
        parts += [f'<circle cx="{x(v):.1f}" cy="{y}" r="3" fill="var(--dot)" fill-opacity=".45"/>' for v in dots]
        own = result.metric(name)
        if own is not None and own["value"] is not None:
            if own["ci95"]:
                a, b = (x(min(max(bound, low), high)) for bound in own["ci95"])
                parts.append(f'<path d="M{a:.1f} {y}H{b:.1f}" stroke="var(--mean)" stroke-width="2.5"/>')
            parts.append(f'<path d="M{x(own["value"]):.1f} {y - 8}v16" stroke="var(--mean)" stroke-width="2.5"/>')
    bottom = 14 + len(group) * row
    parts.append(f'<path d="M{left} {bottom - 8}H{width - 12}" stroke="currentColor" stroke-opacity=".4"/>')
    parts.append(f'<text x="{left}" y="{bottom + 8}">{number(low)}</text>')
    parts.append(f'<text x="{width - 12}" y="{bottom + 8}" text-anchor="end">{number(high)}</text>')
    drawing = f'<svg viewBox="0 0 {width} {bottom + 14}" width="{width}" role="img">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(heading(entry))}</figcaption>{drawing}</figure>"


def _short(name: str, letters: int = 17) -> str:
    return name if len(name) <= letters else name[: letters - 1] + "…"


def _matrix(result: Result) -> str:
    """Heat-map of the influence matrix: rows are what is measured, columns what is edited."""
    metrics = result.content["metrics"]
    found = {key: next((e for e in metrics if e["id"].startswith(f"influence_{key}.")), None) for key in _CELLS}
    if any(entry is None or entry["value"] is None for entry in found.values()):
        return ""
    parts = []
    for place, key in enumerate(_CELLS):
        entry = found[key]
        assert entry is not None
        column, line = 90 + place % 2 * 80, 22 + place // 2 * 60
        share = min(max(entry["value"], 0.0), 1.0)
        colour, ink = f"hsl(210 60% {92 - 62 * share:.0f}%)", "#fff" if share > 0.5 else "#111"
        parts.append(
            f'<rect x="{column}" y="{line}" width="76" height="56" rx="4" fill="{colour}">'
            f"<title>{_WORDS[key]}</title></rect>"
            f'<text x="{column + 38}" y="{line + 33}" text-anchor="middle" fill="{ink}">{number(entry["value"])}</text>'
        )
    labels = (
        '<text x="128" y="14" text-anchor="middle">edit pose</text>'
        '<text x="208" y="14" text-anchor="middle">edit expr.</text>'
        '<text x="0" y="54">pose moves</text><text x="0" y="114">expr. moves</text>'
    )
    drawing = f'<svg viewBox="0 0 260 146" width="260" role="img">{labels}{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(result.method)}</figcaption>{drawing}</figure>"


def _film(film: Film) -> str:
    value = "no face" if film.value is None else number(film.value)
    strips = "".join(
        f'<div><span>{escape(label)}</span><img alt="{escape(label)}" src="{_picture(frames)}"></div>'
        for label, frames in film.rows
    )
    caption = f"{film.method}, {film.pair}: {film.metric} {value}"
    return f'<figure class="film wide"><figcaption>{escape(caption)}</figcaption>{strips}</figure>'


def _picture(frames: np.ndarray) -> str:
    """Frames side by side as a PNG inside the page."""
    small = [np.asarray(Image.fromarray(f).resize((_THUMB, _THUMB), Image.Resampling.LANCZOS)) for f in frames]
    buffer = io.BytesIO()
    Image.fromarray(np.hstack(small)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _provenance(result: Result) -> str:
    content = {key: value for key, value in result.content.items() if key not in ("metrics", "comparisons")}
    summary = f"{result.method}, {result.content['dataset']['name']}, {result.content['task']}"
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(json.dumps(content, indent=1))}</pre></details>"
