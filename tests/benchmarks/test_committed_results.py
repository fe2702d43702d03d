"""The result files of this repository are whole, of shipped protocols, and what docs/results.md prints."""

from pathlib import Path

import pytest

from benchmarks.manifest import FOLDER, Manifest, find
from benchmarks.results import Result
from benchmarks.suite import verify, with_comparisons
from benchmarks.tables import render

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
FILES = sorted(RESULTS.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_is_what_was_written_and_of_a_shipped_protocol(path: Path) -> None:
    assert len(verify(path, None, "", None, None)) == 2
    content = Result.load(path).content
    protocol = f"{content['dataset']['name']}-{content['task']}"
    assert content["pairs"]["count"] == len(Manifest.load(find(protocol)).pairs)
    assert content["model"]["dirty"] is False
    assert not any(word.startswith("/") for word in content["command"])


@pytest.mark.parametrize(
    "path", [path for path in sorted(RESULTS.glob("controlled/*.json")) if "estimator" not in path.name], ids=str
)
def test_figures_of_the_controlled_experiment_are_those_of_their_pairs(path: Path) -> None:
    assert len(verify(path, None, "", None, None)) == 3
    content = Result.load(path).content
    assert content["model"]["dirty"] is False
    assert str(content["model"]["seed"]) in path.stem or content["model"]["letter"] == ""
    assert "/tmp" not in path.read_text()


def test_tables_of_the_docs_are_printed_from_them() -> None:
    results = [Result.load(path) for path in FILES]
    with_comparisons(results)
    tables = render(results, "md")
    assert (RESULTS.parents[1] / "docs" / "results.md").read_text().endswith(tables)
    for protocol in FOLDER.glob("*.jsonl"):
        name, _, task = protocol.stem.rpartition("-")
        assert f"**{name}, {task}," in tables
    assert tables.count("| quickstart |") == 2
