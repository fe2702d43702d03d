"""The soak finds a leak where there is one, and none where there is none."""

import sys

import numpy as np
import pytest

from benchmarks.soak import line, run


def test_a_leak_is_seen_through_noise() -> None:
    random = np.random.default_rng(0)
    steady = [(int(1e9 + 2e6 * random.normal()), 40) for _ in range(100)]
    leaking = [(memory + 1_000_000 * number, 40 + number) for number, (memory, _) in enumerate(steady)]
    flat, grown = line("flat", steady), line("grown", leaking)
    assert abs(flat["memory_drift_mb"]) < flat["memory_noise_mb"]
    assert flat["files_drift"] == pytest.approx(0)
    assert grown["memory_drift_mb"] == pytest.approx(49, abs=2)  # of the 50 looks after the warm-up
    assert grown["files_drift"] == pytest.approx(49)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_training_and_its_loaders_are_watched() -> None:
    figures = run(steps=12, workers=1, interval=0.02, arguments=["--data.init_args.val_batches", "1"])
    names = [process["name"] for process in figures["processes"]]
    assert names[0] == "training"
    assert any(name.startswith("its process") for name in names)
    assert all(process["memory_mb"] > 50 for process in figures["processes"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_training_that_fails_is_told() -> None:
    with pytest.raises(ValueError, match="the training ended with"):
        run(steps=1, workers=0, interval=0.2, arguments=["--no-such-option"])
