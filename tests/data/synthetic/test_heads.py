"""Synthetic heads: what a frame shows follows identity, expression and pose exactly as the conventions say."""

import itertools

import numpy as np
import pytest

from dex.data import synthetic
from dex.data.synthetic import BLENDSHAPES, LANDMARK_GROUPS, LANDMARK_NAMES, make_head, render, single
from dex.data.synthetic.render import deformed
from dex.data.synthetic.template import template

NEUTRAL = np.zeros((1, len(BLENDSHAPES)), np.float32)
EYES, MOUTH = 3, 4


def pose(yaw=0.0, pitch=0.0, roll=0.0, x=0.0, y=0.08, s=0.72):
    """[sR | t] with R from the definition R_z(roll) R_y(yaw) R_x(pitch), in float64: independent of the package."""
    a, b, c = np.radians((pitch, yaw, roll))
    rx = np.array([(1, 0, 0), (0, np.cos(a), -np.sin(a)), (0, np.sin(a), np.cos(a))])
    ry = np.array([(np.cos(b), 0, np.sin(b)), (0, 1, 0), (-np.sin(b), 0, np.cos(b))])
    rz = np.array([(np.cos(c), -np.sin(c), 0), (np.sin(c), np.cos(c), 0), (0, 0, 1)])
    return np.concatenate([s * rz @ ry @ rx, [[x], [y], [0]]], 1)[None].astype(np.float32)


def painted(part_colours=(), seed=0):
    """A head with flat light and no texture, whose parts have the given vertex colours; all else is black."""
    import dataclasses

    head = make_head(seed)
    albedo = np.zeros_like(head.albedo)
    for part, colour in part_colours:
        albedo[template().parts[part].slice] = colour
    light = np.array([(1, 1, 1), (0, 0, 0), (0, 0, -1)], np.float32)
    background = head.background.copy()[:2]
    background[:, 6:] = 0
    return dataclasses.replace(head, albedo=albedo, gloss=np.zeros_like(head.gloss), light=light, background=background)


def centroid(weights):
    """Mean position (x, y) in normalised coordinates of an image of weights."""
    size = weights.shape[0]
    axis = (2 * np.arange(size) + 1) / size - 1
    return np.array([(weights.sum(0) * axis).sum(), (weights.sum(1) * axis).sum()]) / weights.sum()


def test_seed_decides_the_head():
    a, b, other = make_head(5), make_head(5), make_head(6)
    assert np.array_equal(a.vertices, b.vertices)
    assert np.array_equal(a.textures, b.textures)
    assert synthetic.parameters_hash(a) == synthetic.parameters_hash(b) != synthetic.parameters_hash(other)
    assert np.abs(a.vertices[: len(template().directions)] - other.vertices[: len(template().directions)]).max() > 0.02
    expression, poses = (
        synthetic.sample_expression(np.random.default_rng(0), 3),
        synthetic.sample_pose(np.random.default_rng(1), 3),
    )
    assert np.array_equal(render(a, expression, poses, 64).image, render(b, expression, poses, 64).image)


def test_a_seed_means_the_same_head_everywhere():
    """Results name heads by seed: when this fails, raise GENERATOR's version, then write the new hash here."""
    assert synthetic.parameters_hash(make_head(0)) == "584107e3bfd7e031bc3f22121b219e946d797b78065577fa81688e6dc669fb5a"


def test_sizes_promised():
    assert synthetic.IDENTITY_MODES >= 20
    assert len(BLENDSHAPES) >= 12
    assert len(set(BLENDSHAPES)) == len(BLENDSHAPES)
    assert 2_500 <= len(make_head(1).faces) <= 6_000


@pytest.mark.parametrize("seed", range(3))
def test_landmarks_follow_the_pose_matrix(seed):
    head, rng = make_head(seed), np.random.default_rng(seed)
    expression, poses = synthetic.sample_expression(rng, 4), synthetic.sample_pose(rng, 4)
    flat = np.tile(np.eye(3, 4, dtype=np.float32), (4, 1, 1))
    found = synthetic.landmarks(head, expression, poses)
    frontal = synthetic.landmarks(head, expression, flat)
    assert found.shape == (4, len(LANDMARK_NAMES), 2)
    # x_img = sR x_can + t is affine in x, y and z: with z unknown, four landmarks' worth of residual must vanish.
    points = deformed(head, expression)
    for n in range(4):
        z = np.array([points[n, np.abs(points[n, :, :2] - p).sum(1).argmin(), 2] for p in frontal[n]])
        canonical = np.concatenate([frontal[n], z[:, None]], 1).astype(np.float64)
        expected = canonical @ poses[n, :2, :3].T.astype(np.float64) + poses[n, :2, 3]
        assert np.abs(found[n] - expected).max() < 1e-4


@pytest.mark.parametrize(
    "component", [{}, {"x": 0.2}, {"y": -0.2}, {"s": 0.5}, {"roll": 20}, {"yaw": 20}, {"pitch": 15}]
)
def test_pixels_follow_the_pose_matrix(component):
    """The iris, painted white on a black head, is found where the matrix puts the eyeball's front."""
    head = painted([("eye_left", (1, 1, 1))])
    p = pose(**component)
    white = render(head, NEUTRAL, p, 256).image[0].astype(float).sum(2)
    part = template().parts["eye_left"]
    shown = head.vertices[part.slice][:16]  # the pole: the middle of the pupil
    expected = p[0, :2, :3] @ shown.mean(0) + p[0, :2, 3]
    assert white.sum() > 0
    assert np.abs(centroid(white) - expected).max() < 0.035  # an eye is about 0.25 wide; lids cover its rim unevenly


def nose(p):
    """Where the tip of the nose is seen: the skin's foremost pixel, by shading it white alone."""
    import dataclasses

    head = painted()
    tip = template().anchors[30]
    albedo = head.albedo.copy()
    albedo[tip] = 1
    white = render(dataclasses.replace(head, albedo=albedo), NEUTRAL, p, 256).image[0].astype(float).sum(2)
    return centroid(white)


def test_sign_of_every_pose_component():
    """As `dex.pose` says, on pixels: x right, y down, R = R_z R_y R_x; the nose is the foremost point (z < 0)."""
    still = nose(pose())
    assert nose(pose(yaw=20))[0] < still[0] - 0.1  # R_y takes (0, 0, -1) to (-sin, 0, -cos): left
    assert nose(pose(pitch=15))[1] > still[1] + 0.08  # R_x takes it to (0, +sin, -cos): down
    assert nose(pose(x=0.1))[0] == pytest.approx(still[0] + 0.1, abs=0.01)
    assert nose(pose(y=0.18))[1] == pytest.approx(still[1] + 0.1, abs=0.01)
    head = make_head(2)
    upright, turned = (synthetic.landmarks(head, NEUTRAL, pose(roll=r))[0] for r in (0, 15))
    eye_line = [
        e[LANDMARK_NAMES.index("left_pupil_0")] - e[LANDMARK_NAMES.index("right_pupil_0")] for e in (upright, turned)
    ]
    assert np.degrees(
        np.arctan2(eye_line[1][1], eye_line[1][0]) - np.arctan2(eye_line[0][1], eye_line[0][0])
    ) == pytest.approx(15, abs=0.01)
    assert eye_line[0][0] > 0  # the subject's left is on the right of the picture
    small, large = (np.count_nonzero(render(head, NEUTRAL, pose(s=s), 64).mask == 2) for s in (0.4, 0.8))
    assert large / small == pytest.approx(4, rel=0.15)


def test_pose_matrix_is_the_definition():
    found = synthetic.pose_matrix(*np.radians([[20.0], [-10.0], [5.0]]), np.array([(0.1, -0.2)]), np.array([0.7]))
    assert np.allclose(found, pose(20, -10, 5, 0.1, -0.2, 0.7), atol=1e-6)


@pytest.mark.parametrize("name", BLENDSHAPES)
def test_every_blendshape_shows_and_stays_local(name):
    head = make_head(3)
    before, after = (render(head, e[None], pose(), 128) for e in (single(name, 0.0), single(name)))
    changed = np.abs(before.image[0].astype(int) - after.image[0]).max(2) > 6
    here, there = (before.mask[0], after.mask[0])
    eyes, mouth = (here == EYES) | (there == EYES), (here == MOUTH) | (there == MOUTH)
    assert changed.sum() > 25
    if name.startswith(("jaw", "mouth", "cheek")):
        assert not (changed & eyes).any()
        moved = np.abs(deformed(head, single(name)[None]) - deformed(head, NEUTRAL))[0].max(1) > 0
        assert not moved[np.unique(template().lids)].any()
    else:
        assert not (changed & mouth).any()
    share = changed[:, 64:].sum() / changed.sum()  # the subject's left is on the right of the picture
    if not name.startswith("jaw"):
        assert share > 0.9 if name.endswith("Left") else share < 0.1 if name.endswith("Right") else 0.3 < share < 0.7


@pytest.mark.parametrize("seed", range(6))
def test_blink_covers_the_eyeball_and_jaw_shows_the_cavity(seed):
    eyes = [(f"{part}_{side}", (1, 0, 0)) for part in ("eye", "glint") for side in ("left", "right")]
    head = painted([*eyes, ("throat", (0, 1, 0))], seed)
    blink, jaw = single("eyeBlinkLeft") + single("eyeBlinkRight"), single("jawOpen")
    still, closed, opened = (render(head, e[None], pose(), 128).image[0].astype(int) for e in (NEUTRAL[0], blink, jaw))
    red = [(i[:, :, 0] > 60).sum() for i in (still, closed, opened)]
    assert red[0] > 80
    assert red[1] <= 0.03 * red[0]
    assert red[2] == red[0]
    green = [(i[:, :, 1] > 20).sum() for i in (still, closed, opened)]
    assert green[0] <= 3
    assert green[2] > 120


def test_gaze_turns_the_iris_where_it_says():
    head, t = make_head(4), template()

    def shift(name):
        start = t.parts["eye_left"].start
        return (deformed(head, single(name)[None]) - deformed(head, NEUTRAL))[0, start]

    assert shift("eyeLookOutLeft")[0] > 0.05
    assert shift("eyeLookInLeft")[0] < -0.05
    assert shift("eyeLookDownLeft")[1] > 0.05
    assert shift("eyeLookUpLeft")[1] < -0.05
    assert np.abs(shift("eyeLookOutRight")).max() == 0


def test_nose_hides_the_far_cheek():
    """Depth order: turned far aside, the far eye disappears behind the nose and the near one stays."""
    head = painted([("eye_left", (1, 0, 0)), ("eye_right", (0, 1, 0))])
    image = render(head, NEUTRAL, pose(yaw=75), 128).image[0]  # the nose points to the left of the picture
    near, far = (image[:, :, 0] > 60).sum(), (image[:, :, 1] > 60).sum()
    assert near > 20
    assert far == 0


def test_heads_at_and_over_the_border():
    head = make_head(7)
    whole = render(head, NEUTRAL, pose(s=0.4), 64).image[0]
    moved = render(head, NEUTRAL, pose(s=0.4, x=0.75), 64)  # 24 pixels to the right, partly outside
    found = moved.mask[0, :, 24:] > 0
    assert found.any()
    assert np.abs(moved.image[0, :, 24:][found].astype(int) - whole[:, :40][found]).mean() < 4
    for p in (pose(x=5), pose(x=-3, y=40), pose(s=30), pose(s=1e-3), pose(x=1e6)):
        drawn = render(head, NEUTRAL, p, 32)
        assert drawn.image.shape == (1, 32, 32, 3)
    assert not render(head, NEUTRAL, pose(x=5), 32).mask.any()


def test_samples_keep_the_head_in_the_frame():
    rng, heights, cut = np.random.default_rng(0), [], 0
    for seed in range(12):
        mask = render(make_head(seed), synthetic.sample_expression(rng, 4), synthetic.sample_pose(rng, 4), 64).mask
        for m in mask:
            rows = np.flatnonzero(((m == 2) | (m == 3) | (m == 4)).any(1))
            heights.append(len(rows) / 64)
            cut += (m[0] >= 2).any()
    assert 0.35 < np.median(heights) < 0.75  # the face without hair
    assert cut <= 5


def test_pose_and_expression_are_independent():
    rng = np.random.default_rng(0)
    e, p = (
        synthetic.sample_expression(rng, 4000),
        synthetic.sample_pose(rng, 4000).reshape(4000, -1)[:, [0, 1, 2, 3, 7]],
    )
    assert e.min() >= 0
    assert e.max() <= 1
    both = np.corrcoef(np.concatenate([e, p], 1).T)[: e.shape[1], e.shape[1] :]
    assert np.abs(both).max() < 0.08
    assert (e > 0.3).mean(0).min() > 0.02  # every blendshape occurs


def test_tracks_are_smooth_and_alive():
    rng = np.random.default_rng(0)
    poses, expressions = synthetic.motion_track(rng, 250, 25.0)
    scale = np.linalg.norm(poses[:, :, 0], axis=1)
    rotation = poses[:, :, :3] / scale[:, None, None]
    step = np.degrees(np.arccos(np.clip((np.einsum("nij,nij->n", rotation[1:], rotation[:-1]) - 1) / 2, -1, 1)))
    assert step.max() < 8
    assert step.mean() > 0.1
    assert np.abs(np.diff(poses[:, :2, 3], axis=0)).max() < 0.04
    assert expressions.shape == (250, len(BLENDSHAPES))
    assert expressions.min() >= 0
    assert expressions.max() <= 1
    assert expressions[:, BLENDSHAPES.index("eyeBlinkLeft")].max() == 1
    assert expressions[:, BLENDSHAPES.index("jawOpen")].std() > 0.1


def test_landmark_groups_lie_on_their_parts():
    head = make_head(8)
    points = synthetic.landmarks(head, NEUTRAL, pose())[0]
    mask = render(head, NEUTRAL, pose(), 256).mask[0]
    for label, group in ((MOUTH, LANDMARK_GROUPS["mouth"]), *((EYES, g) for g in LANDMARK_GROUPS["eyes"])):
        pixels = ((points[list(group)] + 1) * 128).astype(int)
        assert (mask[pixels[:, 1], pixels[:, 0]] == label).mean() > 0.8


def test_splits_are_disjoint_and_grids_complete():
    ranges = sorted(synthetic.SPLITS.values())
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))
    rng = np.random.default_rng(0)
    p, e = synthetic.factorial(synthetic.sample_pose(rng, 3), synthetic.sample_expression(rng, 4))
    assert len({(a.tobytes(), b.tobytes()) for a, b in zip(p, e, strict=True)}) == 12
    for low, high in synthetic.YAW_STRATA:
        yaw = np.degrees(np.arcsin(-synthetic.yaw_stratum(rng, 50, (low, high))[:, 2, 0] / 0.72))
        assert ((np.abs(yaw) >= low - 1e-3) & (np.abs(yaw) <= high + 1e-3)).all()
        assert (yaw > 0).any()
        assert (yaw < 0).any()


@pytest.mark.parametrize(
    ("expression", "poses", "message"),
    [
        (NEUTRAL[:, :3], pose(), "expression has shape"),
        (NEUTRAL, pose()[0], "pose has shape"),
        (NEUTRAL + 2, pose(), "need \\[0, 1\\]"),
        (NEUTRAL * np.nan, pose(), "finite"),
    ],
)
def test_wrong_input_is_named(expression, poses, message):
    with pytest.raises(ValueError, match=message):
        render(make_head(0), expression, poses, 32)
