"""Tables and the page: what stands in them, what marks it, and that nothing in them can run or be fetched."""

import csv
import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.films import Film, films, worst
from benchmarks.report import html
from benchmarks.results import Result
from benchmarks.suite import with_comparisons
from benchmarks.tables import number, render

AED, PSNR = "aed.mp_blendshapes_l1mean.v1", "psnr.v1"
VOID = {"meta", "img"}


def entry(name: str, values: list[float | None], better: str) -> dict[str, Any]:
    read = [value for value in values if value is not None]
    mean = float(np.mean(read)) if read else None
    return {
        "id": name,
        "value": mean,
        "unit": "coef" if name == AED else "dB",
        "better": better,
        "aggregation": "mean over pairs of means over frames",
        "n": len(read),
        "ci95": None if mean is None else [mean - 0.01, mean + 0.01],
        "ci_method": None,
        "seed_sd": None,
        "fail_rate": 0.05 if name == AED else None,
        "extractor": {"name": "reader", "sha256": "ab" * 32, "licence": "MIT"} if name == AED else None,
        "floor": None,
        "note": None,
    }


def result(method: str, aed: list[float | None], psnr: list[float | None], manifest: str = "m") -> Result:
    content = {
        "task": "self",
        "dataset": {"name": "set", "manifest_sha256": manifest},
        "pairs": {"count": len(aed)},
        "model": {"name": method},
        "metrics": [entry(AED, aed, "lower"), entry(PSNR, psnr, "higher")],
        "comparisons": [],
    }
    pairs = [
        {"id": f"p{i}", "identity": str(i), "values": {AED: a, PSNR: p}}
        for i, (a, p) in enumerate(zip(aed, psnr, strict=True))
    ]
    return Result(content, pairs)


COPY = result("copy-source", [0.2, 0.2], [20.0, 20.0])
ORACLE = result("oracle", [0.0, 0.0], [100.0, 100.0])
GOOD = result("good", [0.1, 0.1], [25.0, 25.0])
WORSE = result("aworse", [0.3, 0.3], [21.0, 21.0])


def rows(text: str) -> dict[str, list[str]]:
    lines = [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines}


def test_rows_are_in_order_and_marked() -> None:
    table = rows(render([WORSE, COPY, GOOD, ORACLE], "md"))
    assert list(table) == ["method", "---", "oracle", "copy-source", "aworse", "good"]
    assert table["method"] == [f"{AED} [coef] ↓", f"{PSNR} [dB] ↑"]
    assert table["good"][0] == "0.100 [0.090, 0.110]"
    assert table["aworse"] == ["0.300 [0.290, 0.310] †", "21.00 [20.99, 21.01]"]
    assert "†" not in table["oracle"][0]


def test_bold_only_with_a_test_that_says_so() -> None:
    assert "**0.100" not in render([COPY, GOOD, WORSE], "md")
    for method, other in ((GOOD, "aworse"), (WORSE, "good")):
        method.content["comparisons"] = [{"metric": AED, "other": other, "p_holm": 0.01}]
        method.content["comparisons"].append({"metric": PSNR, "other": other, "p_holm": 0.2})
    table = rows(render([COPY, GOOD, WORSE], "md"))
    assert table["good"][0].startswith("**0.100")
    assert not table["good"][1].startswith("**")
    assert not table["aworse"][0].startswith("**")
    for method in (GOOD, WORSE):
        method.content["comparisons"] = []


def test_alone_with_a_value_is_not_the_best() -> None:
    blind = result("blind", [None, None], [20.0, 30.0])
    assert "**" not in rows(render([GOOD, blind], "md"))["good"][0]


def test_reference_rows_take_no_part_in_tests() -> None:
    with_comparisons([COPY, GOOD, WORSE])
    assert COPY.content["comparisons"] == []
    assert {c["other"] for c in GOOD.content["comparisons"]} == {"aworse"}
    for method in (GOOD, WORSE):
        method.content["comparisons"] = []


def test_films_are_of_the_protocol_that_was_scored(tmp_path: Path) -> None:
    assert films([GOOD], tmp_path, "synthetic-v1-self", None) == []  # of the same task, and nothing was read


def test_what_could_not_be_measured_is_said() -> None:
    blind = result("blind", [None, None], [20.0, 30.0])
    blind.content["metrics"][0]["note"] = "not measurable: no face"
    text = render([blind, COPY], "md")
    assert rows(text)["blind"][0] == "not measurable"
    assert "no face read in 5.0 % of the frames" in text
    assert "reader (sha256 abababababab, MIT)" in text
    assert "small n" in text


def test_protocols_are_never_mixed() -> None:
    text = render([GOOD, result("good", [0.4], [9.0], manifest="other")], "md")
    assert text.count("| method |") == 2


def test_csv_has_a_line_a_number() -> None:
    lines = list(csv.DictReader(io.StringIO(render([COPY, GOOD], "csv"))))
    assert len(lines) == 4
    assert (lines[2]["method"], lines[2]["metric"], lines[2]["value"]) == ("good", AED, "0.1")


def test_tex_is_escaped() -> None:
    text = render([COPY, result("my_method", [0.1, 0.3], [1.0, 2.0])], "tex")
    assert r"my\_method" in text
    assert r"aed.mp\_blendshapes" in text
    assert r"$\downarrow$" in text


def test_numbers_have_three_digits() -> None:
    assert [number(x) for x in (0.01234, 12.345, 123.45, 1234.5, -0.5)] == ["0.012", "12.35", "123.5", "1234", "-0.500"]


def test_the_worst_come_first_and_those_unread_before_them() -> None:
    name, pairs = worst(result("m", [0.1, None, 0.4, 0.2], [1.0, 2.0, 3.0, 4.0]), count=3)
    assert name == AED
    assert [pair for pair, _ in pairs] == ["p1", "p2", "p3"]


class _Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        assert tag != "script"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_alone() -> None:
    evil = result("<b>evil</b>", [0.1, 0.2], [1.0, 2.0])
    for key, value in {"pp": 1.0, "pe": 0.1, "ep": 0.2, "ee": 0.9}.items():
        evil.content["metrics"].append(entry(f"influence_{key}.mp.v1", [value], "none"))
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    film = Film("<b>evil</b>", "p0", AED, None, [("source", frames[:1]), ("output", frames)])
    page = html([COPY, evil], [film])
    parser = _Balanced()
    parser.feed(page)
    assert not parser.open
    assert len(parser.links) == 2
    assert all(link.startswith("data:image/png;base64,") for link in parser.links)
    assert "<b>evil" not in page
    assert "http" not in page
    assert "edit pose" in page
    assert "no face" in page


def test_quoted_numbers_stand_in_tables_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["published"]) == 0
    tables = capsys.readouterr().out.split("\n\n**")
    assert all("quoted from the" in table for table in tables)
    (ours,) = (table for table in tables if "disentangled, own" in table and "DeX-Portrait paper" in table)
    assert "| DeX-Portrait | .631 | .0546 | .100 |" in ours
    assert "| LivePortrait | .458 | .0695 | .195 |" in ours


def test_numbers_of_the_few_frames_with_a_face_are_marked_and_never_best() -> None:
    good, blind = (result(name, [0.3, 0.3, 0.3], [20.0, 20.0, 20.0]) for name in ("good", "blind"))
    for entry, lost in ((good.metric(AED), 0.05), (blind.metric(AED), 0.9)):
        assert entry is not None
        entry["fail_rate"] = lost
    blind.content["comparisons"] = [{"metric": AED, "other": "good", "p_holm": 0.01}]
    best = blind.metric(AED)
    assert best is not None
    best["value"] = 0.1
    table = render([good, blind], "md")
    assert "0.100 [0.290, 0.310] ‡ |" in table
    assert "‡ no face read in more than 10 % of the frames" in table
    assert table.count("‡") == 2
    assert "ddagger" in render([good, blind], "tex")
