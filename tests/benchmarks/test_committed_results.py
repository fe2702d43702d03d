"""The result files of this repository are whole, of shipped protocols, and what docs/results.md prints."""

from pathlib import Path

import pytest

from benchmarks.controlled.measuring import metric_id
from benchmarks.controlled.tables import cell, line, load, mean, pooled, shown, table
from benchmarks.manifest import FOLDER, Manifest, find
from benchmarks.results import Result
from benchmarks.suite import verify, with_comparisons
from benchmarks.tables import render

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
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
    "path", [path for path in sorted(RESULTS.glob("controlled*/*.json")) if "estimator" not in path.name], ids=str
)
def test_figures_of_the_controlled_experiment_are_those_of_their_pairs(path: Path) -> None:
    assert len(verify(path, None, "", None, None)) == 3
    content = Result.load(path).content
    assert content["model"]["dirty"] is False
    assert str(content["model"]["seed"]) in path.stem or content["model"]["letter"] == ""
    assert "/tmp" not in path.read_text()
    command = " ".join(content["command"])
    assert command.startswith(f"python -m benchmarks.controlled --preset {content['dataset']['name']}")
    assert content["model"]["seed"] is None or f"--only {content['model']['name']} --seeds" in command
    for entry in content["metrics"]:
        assert (entry["extractor"] is not None) == ("fit_and_network" in entry["id"])
        assert entry["ci95"] is None or "10000 resamples" in entry["ci_method"]


def test_the_table_of_the_controlled_experiment_is_in_the_docs() -> None:
    found = load(RESULTS / "controlled", "small")
    assert table(found) in (ROOT / "docs" / "experiments.md").read_text()
    for more in (load(RESULTS / name, "small") for name in ("controlled_256", "controlled_grid")):
        assert table(more).split("\n\n")[2] in (ROOT / "docs" / "experiments.md").read_text()  # differences
        for result in (one for one in more if one.content["model"]["letter"]):
            cells = [cell(*figure) for figure in pooled([result])]
            cells.append(shown(mean([result], metric_id("pose_leakage/normalised"))))
            assert line(cells)[1:] in (ROOT / "docs" / "experiments.md").read_text()
    long = table(load(RESULTS / "controlled", "long")).splitlines()
    for row in (long[2], next(row for row in long if row.startswith("| everything |"))):
        assert row in (ROOT / "docs" / "experiments.md").read_text()


IN_README = {
    "the method": "everything",
    "the method, 6,000 steps more": "everything",
    "without pose augmentation": "no-pose-augmentation",
    "without its transforms alone": "no-image-transforms",
    "without its second camera alone": "no-second-camera",
    "without expression augmentation": "no-expression-augmentation",
    "without both augmentations": "no-augmentation",
    "one code for pose and expression": "joint-motion-code",
    "stage 2, the method": "animator",
    "stage 2 without reference warping": "no-reference-warping",
    "stage 2 without ray map": "no-ray-map",
    "*the truth*": "oracle",
    "*the truth, with one code for both*": "joint-code",
    "*copy of the source*": "copy-source",
    "*one picture for all*": "constant",
}


@pytest.mark.parametrize("words", IN_README)
def test_the_readme_has_the_figures_of_the_result_files(words: str) -> None:
    """References without their intervals."""
    preset = "long" if "more" in words else "small"
    of = [result for result in load(RESULTS / "controlled", preset) if result.method == IN_README[words]]
    cells = [cell(value, None if words.startswith("*") else interval) for value, interval in pooled(of)]
    assert line([words, *cells]).replace(" 0.00 [0.00, 0.00] |", " 0.00 |") in (ROOT / "README.md").read_text()


def test_tables_of_the_docs_are_printed_from_them() -> None:
    results = [Result.load(path) for path in FILES]
    with_comparisons(results)
    tables = render(results, "md")
    assert (ROOT / "docs" / "results.md").read_text().endswith(tables)
    for protocol in FOLDER.glob("*.jsonl"):
        name, _, task = protocol.stem.rpartition("-")
        assert f"**{name}, {task}," in tables
    assert tables.count("| quickstart |") == 2
