"""Methods see each span once, and make of it what they would of its copies."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.landmark_warp import LandmarkWarp
from benchmarks.make import make_synthetic
from benchmarks.manifest import Span
from benchmarks.material import SyntheticClips
from benchmarks.methods import CheckpointMethod, Method, maker_of
from tests.animation.conftest import checkpoint  # noqa: F401  the fixture
from tests.benchmarks.conftest import count


@pytest.fixture
def warp(weights_env: Path):  # type: ignore[no-untyped-def]
    with LandmarkWarp() as opened:
        yield opened


@pytest.fixture
def trained(checkpoint: Path) -> CheckpointMethod:  # noqa: F811
    return CheckpointMethod(checkpoint, 0, None, None)


@pytest.mark.parametrize(
    ("method", "work", "pictures"),
    [
        ("warp", "dex.faces.detect.FaceTracker.track", lambda calls: len(calls)),
        ("trained", "dex.animation.backends.MotionBackend.read_motion", lambda calls: sum(len(c[1]) for c in calls)),
    ],
)
def test_a_span_is_decoded_and_read_once(
    method: str,
    work: str,
    pictures: Callable[[list[tuple[object, ...]]], int],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: Method = request.getfixturevalue(method)
    manifest = make_synthetic("self", "s", 1, 128, 0)
    material, (pair,) = SyntheticClips.of(manifest), manifest.pairs
    decoded: list[Span] = []

    class Counted(SyntheticClips):
        def frames(self, span: Span) -> np.ndarray:
            decoded.append(span)
            return super().frames(span)

    calls = count(monkeypatch, work)
    made = maker_of(used, Counted.of(manifest))(pair)
    assert decoded == [pair.source, pair.pose]
    assert pictures(calls) == 1 + 16
    copies = [material.frames(span) for span in (pair.source, pair.pose, pair.expression)]
    assert np.array_equal(used.animate(*copies), made)
    assert pictures(calls) == 1 + 16 + 1 + 2 * 16
