"""Training pairs from posed frames with depth."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeloc.errors import DatasetError
from edgeloc.geometry.camera import project, scaled_camera, unproject
from edgeloc.geometry.se3 import exp_so3
from edgeloc.types import CameraModel, Rigid3
from edgeloc_tools.datasets import open_recording
from edgeloc_tools.learn.corners import corners_in_view, find_corners
from edgeloc_tools.learn.photo_pairs import Photo, ViewOptions
from edgeloc_tools.learn.posed_frames import (
    PosedFrame,
    PosedFrames,
    covisible_pairs,
    load_posed_frames,
    map_pixels,
    sample_inverse_depth,
)
from edgeloc_tools.learn.posed_pairs import (
    View,
    covisible_views,
    draw_views,
    pair_of_views,
    posed_pair,
    seen_share,
)
from edgeloc_tools.synth.record import Capture, synth_recording
from edgeloc_tools.synth.render import render
from edgeloc_tools.synth.scene import make_room
from edgeloc_tools.synth.trajectory import room_walk

VIEWS = ViewOptions(width=160, height=120)
LENS = CameraModel(
    model="OPENCV",
    width=320,
    height=240,
    params=(260.0, 262.0, 158.0, 121.0, -0.12, 0.03, 0.001, -0.0005),
)
PINHOLE = CameraModel(
    model="PINHOLE", width=200, height=150, params=(150.0, 150.0, 100.0, 75.0)
)
FINE = 4
"""Pixels of the exact depth per pixel of a frame."""


@pytest.fixture(scope="module")
def scene():
    return make_room(3)


@pytest.fixture(scope="module")
def recording(scene):
    path = room_walk(3, scene.extent_m, duration_s=12.0, turns=0.25)
    return synth_recording(
        scene, path, LENS, capture=Capture(num_frames=5, rate_hz=1.0)
    )


@pytest.fixture(scope="module")
def room_frames(recording):
    return load_posed_frames(recording, options=VIEWS)


def on_wall(x_m=0.0, *, image=None, depth_m=4.0, yaw_rad=0.0):
    """A frame of a camera at x that looks at a wall at z = 4 m."""
    if image is None:
        image = np.full((150, 200, 3), 90, np.uint8)
    R = exp_so3([0.0, yaw_rad, 0.0])
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return PosedFrame(
        name=f"{x_m}",
        photo=Photo(image=image, corners=find_corners(grey)),
        inverse_depth=np.broadcast_to(
            np.float32(1.0) / np.asarray(depth_m, np.float32), (150, 200)
        ).copy(),
        camera=PINHOLE,
        cam_from_world=Rigid3(R=R, t=-R @ [x_m, 0.0, 0.0]),
        depth_noise=0.0,
    )


def squares(rng):
    """A picture of grey squares: many plain corners."""
    small = rng.integers(20, 236, (10, 14), dtype=np.uint8)
    grey = cv2.resize(small, (200, 150), interpolation=cv2.INTER_NEAREST)
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)


def whole(frame):
    """The view of the middle 160 x 120 px of a frame of 200 x 150 px."""
    shift = np.eye(3)
    shift[:2, 2] = 20.0, 15.0
    return View(frame=frame, frame_from_view=shift)


def grey_at_points(pair):
    """What both pictures of a pair show at its points, (2, N)."""
    out = []
    for image, points in zip(pair.images, pair.points, strict=True):
        at = points[pair.valid] - np.float32(0.5)
        map_x, map_y = (np.ascontiguousarray(at[:, k]) for k in (0, 1))
        out.append(cv2.remap(image, map_x, map_y, cv2.INTER_LINEAR).ravel())
    return np.stack(out)


def exact_depth(scene, frame):
    fine = scaled_camera(
        frame.camera,
        FINE,
        FINE,
        width=FINE * frame.camera.width,
        height=FINE * frame.camera.height,
    )
    return render(scene, fine, frame.cam_from_world).depth_m


def test_frames_are_pinhole_pictures_a_quarter_larger_than_a_view(room_frames):
    for frame in room_frames.frames:
        assert frame.photo.image.shape == (150, 200, 3)
        assert frame.inverse_depth.shape == (150, 200)
        assert (frame.camera.width, frame.camera.height) == (200, 150)
        assert frame.camera.model == "PINHOLE"
        assert frame.camera.focal_px == pytest.approx((162.5, 163.75))
        assert frame.camera.principal_point_px == pytest.approx((98.75, 75.625))
        assert np.isfinite(frame.inverse_depth).mean() > 0.75


@pytest.mark.parametrize(("lens", "limit_px"), [("none", 0.3), ("strong", 0.7)])
def test_points_are_mapped_as_the_renderer_sees_them(
    scene, room_frames, rng, lens, limit_px
):
    """Where the renderer's exact depth puts them; what is hidden is not seen.

    Depth that is drawn anew without the lens is the one of a point anywhere within its
    pixel.
    """
    frames = room_frames
    if lens == "none":
        path = room_walk(3, scene.extent_m, duration_s=12.0, turns=0.25)
        capture = Capture(num_frames=3, rate_hz=1.0)
        frames = load_posed_frames(
            synth_recording(scene, path, PINHOLE, capture=capture), options=VIEWS
        )
    num_hidden = num_seen = 0
    errors_px = []
    depth_of = [exact_depth(scene, frame) for frame in frames.frames]
    for a_idx, b_idx in frames.pairs:
        a, b = frames.frames[a_idx], frames.frames[b_idx]
        cell = rng.integers([0, 0], [FINE * 200, FINE * 150], (1500, 2))
        pixels = (cell + 0.5) / FINE
        there, seen = map_pixels(a, b, pixels)

        rays = unproject(a.camera, pixels)
        in_a = rays / rays[:, 2:] * depth_of[a_idx][cell[:, 1], cell[:, 0], None]
        in_b = (b.cam_from_world @ a.cam_from_world.inverse()).transform(in_a)
        truth, in_front = project(b.camera, in_b)
        inside = in_front & np.all((truth > 2) & (truth < [198, 148]), axis=1)
        met = np.full(len(pixels), np.inf)
        fine = np.floor(truth[inside] * FINE).astype(int)
        met[inside] = depth_of[b_idx][fine[:, 1], fine[:, 0]]
        hidden = inside & (met < 0.93 * in_b[:, 2])
        visible = inside & (np.abs(met / in_b[:, 2] - 1.0) < 0.01)

        errors_px.append(np.linalg.norm(there[seen] - truth[seen], axis=1))
        assert not np.any(seen & hidden)
        assert not np.any(seen & ~in_front)
        num_hidden += np.count_nonzero(hidden)
        num_seen += np.count_nonzero(seen & visible)
        assert np.count_nonzero(seen & visible) > 0.6 * np.count_nonzero(visible)
    assert num_hidden > 50
    assert num_seen > 1000
    errors = np.concatenate(errors_px)
    assert errors.max() < limit_px
    assert np.quantile(errors, 0.98) < 0.3
    assert np.median(errors) < 0.05


def test_a_point_behind_something_near_is_not_seen():
    box = np.full((150, 200), 4.0)
    box[:, :100] = 2.0
    a, b = on_wall(), on_wall(0.4, depth_m=box)
    pixels = np.array([[150.0, 70.0], [90.0, 70.0], [199.0, 5.0], [5.0, 70.0]])
    there, seen = map_pixels(a, b, pixels)
    # 0.4 m at 4 m and f = 150 px.
    np.testing.assert_allclose(there, pixels - [15.0, 0.0], atol=1e-4)
    assert seen.tolist() == [True, False, True, False]


def test_a_point_is_not_seen_where_the_way_back_ends_elsewhere():
    """2.5 % of depth is within the tolerance, but over this baseline it is 2.8 px."""
    near, far = on_wall(0.1), on_wall(3.0, depth_m=4.0 * 1.025)
    pixels = np.array([[170.0, 70.0]])
    assert not map_pixels(on_wall(), far, pixels)[1][0]
    assert map_pixels(on_wall(), near, pixels)[1][0]


def test_inverse_depth_is_exact_on_a_slanted_plane(rng):
    y, x = np.mgrid[:30, :40] + 0.5
    inverse = (0.2 + 0.01 * x - 0.003 * y).astype(np.float32)
    inverse[20, 20] = np.nan
    at = rng.uniform([0.5, 0.5], [39.5, 29.5], (300, 2))
    hole = np.all(np.abs(at - [20.5, 20.5]) < 1.0, axis=1)
    got = sample_inverse_depth(inverse, at)
    truth = 0.2 + 0.01 * at[:, 0] - 0.003 * at[:, 1]
    np.testing.assert_allclose(got[~hole], truth[~hole], atol=1e-6)
    outside = np.array(
        [[0.4, 5.0], [39.6, 5.0], [5.0, 29.6], [np.nan, 5.0], [20.5, 20]]
    )
    assert np.isnan(sample_inverse_depth(inverse, outside)).all()
    assert sample_inverse_depth(inverse, np.array([[39.5, 29.5]]))[0] == inverse[-1, -1]


def test_depth_at_its_edges_and_under_masks_is_not_known(recording):
    image = recording.images[0]
    depth = image.depth.read()
    depth[:, :160] = 2.0
    depth[:, 160:] = 3.0
    moving = np.zeros(depth.shape, bool)
    moving[:, 280:] = True
    changed = replace(image, depth=replace(image.depth, depth_m=depth), moving=moving)
    other = recording.images[1]
    frames = load_posed_frames(
        recording.subset([changed, changed_name(changed, "again"), other]),
        options=replace(VIEWS, width=320, height=240),
        overlap=(0.5, 1.0),
    )
    known = np.isfinite(frames.frames[0].inverse_depth)
    assert frames.frames[0].inverse_depth.shape == (240, 320)
    assert known[20:220, 20:150].all()
    assert known[20:220, 170:270].all()
    assert not known[20:220, 158:162].any()
    assert not known[:, 290:].any()


def changed_name(image, name):
    return replace(image, name=name)


def test_covisible_pairs_measure_the_overlap():
    frames = [on_wall(0.0), on_wall(2.0), on_wall(0.02), on_wall(0.0, yaw_rad=np.pi)]
    pairs, shares = covisible_pairs(frames, overlap=(0.25, 0.95))
    assert pairs.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]
    # 2 m at 4 m and f = 150 px are 75 of 200 px.
    np.testing.assert_allclose(shares, 1.0 - 75.0 / 200.0, atol=0.05)


def test_frames_are_drawn_by_their_overlap(room_frames, rng):
    assert len(room_frames.pairs) >= 8
    assert np.all((room_frames.overlaps >= 0.25) & (room_frames.overlaps <= 0.95))
    names = [f.name for f in room_frames.frames]
    allowed = {(names[a], names[b]) for a, b in room_frames.pairs}
    drawn = {tuple(f.name for f in room_frames.draw(rng)) for _ in range(200)}
    assert drawn <= allowed | {(b, a) for a, b in allowed}
    assert len(drawn) >= len(allowed)


def test_a_recording_without_depth_is_refused(recording):
    bare = recording.subset([replace(image, depth=None) for image in recording.images])
    with pytest.raises(DatasetError) as caught:
        load_posed_frames(bare)
    assert str(caught.value) == (
        "room-3: no image has depth, a pose and a camera, which posed training pairs "
        "need; give a recording with depth images"
    )


def test_a_recording_without_overlap_is_refused(recording):
    with pytest.raises(DatasetError) as caught:
        load_posed_frames(recording.subset(recording.images[:1]), options=VIEWS)
    assert str(caught.value) == (
        "room-3: of its 1 images with depth no two share 25% to 95% of what they show; "
        "give more images"
    )


def test_many_frames_are_thinned_evenly(recording):
    told = []
    frames = load_posed_frames(
        recording,
        options=VIEWS,
        max_frames=3,
        overlap=(0.01, 1.0),
        progress=lambda *args: told.append(args),
    )
    assert [f.name for f in frames.frames] == ["000000.png", "000002.png", "000004.png"]
    assert told[2] == ("posed frames", 3, 3)
    assert told[-1] == ("covisible frames", 3, 3)


def test_in_the_same_view_twice_points_correspond_to_themselves(rng):
    view = whole(on_wall(image=squares(rng)))
    pair = pair_of_views(view, view, rng, options=VIEWS, num_points=64)
    assert pair.valid.all()
    np.testing.assert_allclose(pair.points[0], pair.points[1], atol=1e-4)


def test_half_of_the_points_are_near_corners_of_the_first_view(rng):
    a, b = whole(on_wall(image=squares(rng))), whole(on_wall())
    pair = pair_of_views(a, b, rng, options=VIEWS, num_points=64)
    corners = corners_in_view(
        a.frame.photo.corners,
        np.linalg.inv(a.frame_from_view),
        width=VIEWS.width,
        height=VIEWS.height,
    )
    assert len(corners) > 40
    away = np.abs(pair.points[0][:, None] - corners).max(axis=2).min(axis=1)
    assert np.all(away[:32] <= 1.0 + 1e-4)
    assert np.count_nonzero(away[32:] > 1.0) > 20


def test_without_depth_nothing_corresponds(rng):
    far = np.full((150, 200), 4.0)
    far[:, :100] = np.nan
    view = whole(on_wall(image=squares(rng), depth_m=far))
    pair = pair_of_views(view, view, rng, options=VIEWS, num_points=64)
    assert np.count_nonzero(pair.valid) > 32
    assert np.all(pair.points[0, pair.valid, 0] > 80.0)


def test_a_pair_shows_the_same_at_corresponding_points(room_frames):
    plain = replace(VIEWS, strength=0.0)
    grey = []
    for idx in range(6):
        rng = np.random.default_rng([7, idx])
        pair = posed_pair(room_frames, rng, options=plain, num_points=128)
        assert pair.images.shape == (2, 120, 160)
        assert pair.images.dtype == np.float32
        assert pair.points.shape == (2, 128, 2)
        assert np.isfinite(pair.points).all()
        grey.append(grey_at_points(pair))
    a, b = np.concatenate(grey, axis=1)
    assert len(a) > 200
    assert np.corrcoef(a, b)[0, 1] > 0.85


def test_pairs_repeat_by_their_seed(room_frames):
    def draw(seed):
        rng = np.random.default_rng(seed)
        return posed_pair(room_frames, rng, options=VIEWS, num_points=64)

    one, again, another = draw(1), draw(1), draw(2)
    for field in fields(one):
        np.testing.assert_array_equal(
            getattr(one, field.name), getattr(again, field.name)
        )
    assert not np.array_equal(one.images, another.images)


def test_covisible_views_show_the_same_place(room_frames):
    for seed in range(5):
        pictures = covisible_views(room_frames, np.random.default_rng(seed), VIEWS)
        assert pictures.shape == (2, 120, 160)
        assert pictures.dtype == np.float32
        assert pictures.min() >= 0.0
        assert pictures.max() <= 1.0
        a, b = draw_views(
            room_frames, np.random.default_rng(seed), options=VIEWS, min_share=0.3
        )
        assert seen_share(a, b, VIEWS) >= 0.3
        assert a.frame is not b.frame


def test_the_best_views_are_taken_where_none_is_good_enough(rng):
    frames = PosedFrames(
        name="wall",
        frames=(on_wall(0.0), on_wall(3.5)),
        pairs=np.array([[0, 1], [1, 0]]),
        overlaps=np.full(2, 0.3),
    )
    a, b = draw_views(frames, rng, options=VIEWS, min_share=0.99)
    assert {a.frame.name, b.frame.name} == {"0.0", "3.5"}
    assert 0.0 < seen_share(a, b, VIEWS) < 0.99


def test_training_draws_the_share_of_posed_pairs(room_frames, rng):
    pytest.importorskip("torch")
    from edgeloc_tools.learn.recipe import FeatureRecipe
    from edgeloc_tools.learn.train_features import FeaturePairs

    image = squares(rng)
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    photos = [Photo(image=image, corners=find_corners(grey))]
    recipe = FeatureRecipe(steps=10, batch=2, points=32, views=VIEWS, posed_share=0.5)
    mixed = FeaturePairs(photos, recipe, frames=[room_frames])
    later = FeaturePairs(photos, recipe, frames=[room_frames], first=6)
    for index in range(2):
        for name, value in mixed[6 + index].items():
            np.testing.assert_array_equal(value, later[index][name])

    def posed(pairs, index):
        generator = np.random.default_rng([recipe.seed, index])
        if generator.random() >= recipe.posed_share:
            return False
        generator.choice(1, p=[1.0])
        expected = posed_pair(room_frames, generator, options=VIEWS, num_points=32)
        np.testing.assert_array_equal(pairs[index]["images"], expected.images)
        return True

    assert 1 <= sum(posed(mixed, index) for index in range(8)) <= 7
    without = FeaturePairs(photos, recipe)
    none = FeaturePairs(photos, replace(recipe, posed_share=0.0), frames=[room_frames])
    np.testing.assert_array_equal(without[3]["images"], none[3]["images"])


@pytest.mark.data
def test_two_frames_of_a_real_recording(shared_data: Path):
    """Depth and poses of redkitchen put points on what looks the same."""
    whole_recording = open_recording(
        format="7scenes", input=shared_data / "redkitchen", split="train"
    )
    images = [image for image in whole_recording.images if image.depth is not None]
    frames = load_posed_frames(whole_recording.subset([images[20], images[24]]))
    assert frames.pairs.tolist() == [[0, 1], [1, 0]]
    options = ViewOptions(any_rotation=0.0, strength=0.0)
    grey = []
    for seed in range(4):
        pair = posed_pair(
            frames, np.random.default_rng(seed), options=options, num_points=256
        )
        assert np.count_nonzero(pair.valid) > 80
        grey.append(grey_at_points(pair))
    a, b = np.concatenate(grey, axis=1)
    assert np.corrcoef(a, b)[0, 1] > 0.85
