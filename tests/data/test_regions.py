"""Region maps: right outlines, right areas, right nesting."""

import numpy as np
import pytest

from dex.batch import EYES, FACE, HEAD, MOUTH
from dex.data.regions import landmark_groups, region_maps
from dex.data.shards import ShardError
from tests.data.shards_for_tests import LANDMARKS


def ellipse(count: int, centre: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([centre[0] + radii[0] * np.cos(angle), centre[1] + radii[1] * np.sin(angle)], axis=-1)


def face() -> np.ndarray:
    """MediaPipe landmarks of a face of ellipses: face 0.5 × 0.6, eyes at (∓0.2, -0.1), mouth at (0, 0.3)."""
    groups, points = landmark_groups("mediapipe_478"), np.zeros((LANDMARKS, 2))
    points[list(groups.face)] = ellipse(len(groups.face), (0, 0), (0.5, 0.6))
    for eye, x in zip(groups.eyes, (-0.2, 0.2), strict=True):
        points[list(eye)] = ellipse(len(eye), (x, -0.1), (0.08, 0.04))
    points[list(groups.mouth)] = ellipse(len(groups.mouth), (0, 0.3), (0.15, 0.05))
    return points


@pytest.mark.parametrize("size", [64, 256])
def test_areas_are_those_of_the_ellipses(size: int) -> None:
    regions = region_maps(face()[None], "mediapipe_478", size)[0]
    pixel = (2 / size) ** 2
    area = {value: (regions >= value).sum() * pixel for value in (HEAD, FACE, EYES, MOUTH)}
    eyes = 2 * np.pi * (0.8 * 0.16) * (0.4 * 0.16)
    mouth = np.pi * (1.25 * 0.15) * (1.25 * 0.05)
    tolerance = 0.12 if size == 64 else 0.05  # a polygon of few corners is a little smaller
    assert area[HEAD] == pytest.approx(np.pi * 0.5 * 0.6 * 1.35**2, rel=tolerance)
    assert area[FACE] == pytest.approx(np.pi * 0.5 * 0.6, rel=tolerance)
    assert area[EYES] == pytest.approx(eyes + mouth, rel=tolerance)
    assert area[MOUTH] == pytest.approx(mouth, rel=tolerance)


def test_places_and_subpixel_convention() -> None:
    """Pixel centres are (2i + 1) / W - 1: a region's centre of mass is where the landmarks say."""
    size = 128
    regions = region_maps(face()[None], "mediapipe_478", size)[0]
    y, x = (2 * np.mgrid[:size, :size] + 1) / size - 1
    mouth = regions == MOUTH
    assert x[mouth].mean() == pytest.approx(0, abs=0.005)
    assert y[mouth].mean() == pytest.approx(0.3, abs=0.005)
    left = (regions == EYES) & (x < 0)
    assert (x[left].mean(), y[left].mean()) == pytest.approx((-0.2, -0.1), abs=0.005)
    assert y[regions == HEAD].mean() < -0.03  # more head above the face than below


def test_a_shut_and_tilted_eye_keeps_its_region() -> None:
    open_eyes, shut = face(), face()
    for eye in landmark_groups("mediapipe_478").eyes:
        shut[list(eye), 1] = -0.1
    tilt = np.radians(30)
    tilted = shut @ np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    regions = region_maps(np.stack([open_eyes, shut, tilted]), "mediapipe_478", 256)
    area = (regions == EYES).sum(axis=(1, 2))
    assert area[1] == area[0]
    assert area[2] == pytest.approx(area[0], rel=0.03)


def test_unknown_and_outlying_landmarks() -> None:
    unknown = face()
    unknown[7] = np.nan
    both = region_maps(np.stack([unknown, face()]), "mediapipe_478", 64)
    assert both[0].max() == 0
    assert both[1].max() == MOUTH
    assert region_maps(face()[None] + 5, "mediapipe_478", 64).max() == 0  # outside the picture
    half = region_maps(face()[None] + [1.0, 0.0], "mediapipe_478", 64)[0]
    assert half[:, :8].max() == 0
    assert (half[:, -1] == FACE).any()
    beside = np.stack([face() - [1.8, 0.0], face() + [1.8, 0.0]])  # the head ends 0.125 beside the picture
    assert region_maps(beside, "mediapipe_478", 64).max() == 0
    with pytest.raises(ShardError, match="'dlib_68'"):
        region_maps(face()[None], "dlib_68", 64)


def test_outlines_are_mediapipes() -> None:
    landmarker = pytest.importorskip("mediapipe.tasks.python.vision.face_landmarker")
    published = landmarker.FaceLandmarksConnections

    def edges(connections: list) -> set[frozenset[int]]:
        return {frozenset((edge.start, edge.end)) for edge in connections}

    def outline(indices: tuple[int, ...]) -> set[frozenset[int]]:
        return {frozenset(pair) for pair in zip(indices, indices[1:] + indices[:1], strict=True)}

    groups = landmark_groups("mediapipe_478")
    assert outline(groups.face) == edges(published.FACE_LANDMARKS_FACE_OVAL)
    assert outline(groups.eyes[0]) == edges(published.FACE_LANDMARKS_RIGHT_EYE)
    assert outline(groups.eyes[1]) == edges(published.FACE_LANDMARKS_LEFT_EYE)
    assert outline(groups.mouth) <= edges(published.FACE_LANDMARKS_LIPS)
