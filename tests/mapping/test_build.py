"""From a recording to a site: where its landmarks lie, and what can go wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from site_fixture import (
    CAMERA,
    NUM_FRAMES,
    ORB,
    QUICK,
    SIFT,
    build,
    mapping_recording,
    room,
    small_recording,
    with_pose,
)

from edgeloc.errors import ConfigError, DatasetError, MapError
from edgeloc.geometry.camera import project
from edgeloc.geometry.se3 import exp_so3
from edgeloc.tiles.reader import (
    assemble_local_map,
    open_site,
    verify_site,
    visible_point3D_ids,
)
from edgeloc.types import Rigid3
from edgeloc_tools.datasets.recording import ImageFile, Recording
from edgeloc_tools.mapping import draft, survey
from edgeloc_tools.mapping.build import build_site
from edgeloc_tools.mapping.coverage import coverage_png
from edgeloc_tools.mapping.inspect import describe_site
from edgeloc_tools.mapping.options import BuildOptions
from edgeloc_tools.mapping.survey import default_keypoints
from edgeloc_tools.synth.record import ImageArray


def distance_to_surfaces(points, scene):
    """Distance from points to the nearest rectangle of a scene."""
    nearest = np.full(len(points), np.inf)
    for quad in scene.quads:
        along = points - quad.origin
        u = along @ quad.edge_u / (quad.edge_u @ quad.edge_u)
        v = along @ quad.edge_v / (quad.edge_v @ quad.edge_v)
        on_quad = (
            np.clip(u, 0, 1)[:, None] * quad.edge_u
            + np.clip(v, 0, 1)[:, None] * quad.edge_v
        )
        nearest = np.minimum(nearest, np.linalg.norm(along - on_quad, axis=1))
    return nearest


def landmarks_of(site):
    tiles = [site.read_tile(k) for k in range(len(site.tiles))]
    return (
        np.concatenate([tile.landmarks.points3D for tile in tiles]),
        np.concatenate([tile.landmarks.sigmas for tile in tiles]),
        np.concatenate([tile.landmarks.num_observations for tile in tiles]),
    )


def bytes_of(path):
    return {
        file.relative_to(path): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


# What is in the site


def test_landmarks_with_measured_depth_lie_on_the_surfaces(orb_site):
    """Read back from disk; walls are 1 to 5 m away, a pixel is 4 mm at 1 m."""
    points, sigmas, _ = landmarks_of(orb_site.site)
    distance = distance_to_surfaces(points, room())
    assert np.median(distance) < 0.01
    assert np.quantile(distance, 0.95) < 0.06
    # Their uncertainties are honest: within three of them, but for wrong matches.
    assert np.mean(distance < 3 * sigmas + 0.002) > 0.9
    assert np.median(sigmas) < 0.05


def test_triangulated_landmarks_lie_on_the_surfaces(sift_site):
    points, sigmas, observations = landmarks_of(sift_site.site)
    assert observations.min() >= 2
    distance = distance_to_surfaces(points, room())
    assert np.median(distance) < 0.02
    assert np.quantile(distance, 0.9) < 0.15
    # Sigmas are those across the line of sight; the depth is off by more.
    sure = sigmas < np.median(sigmas)
    assert np.median(distance[sure]) < 0.7 * np.median(distance[~sure])


@pytest.mark.parametrize("fixture", ["orb_site", "sift_site"])
def test_keyframes_see_their_landmarks_where_they_are(fixture, request):
    """Ids, tiles, poses and intrinsics fit together: landmarks reproject inside."""
    site = request.getfixturevalue(fixture).site
    images = mapping_recording().images
    assert len(site.keyframes) == NUM_FRAMES
    visible = visible_point3D_ids(site.read_tile, site, site.keyframes.keyframe_ids)
    for idx, ids in enumerate(visible):
        # Keyframes are in the order of their tiles.
        image = images[site.keyframes.keyframe_ids[idx]]
        pose = site.keyframes.cam_from_world(idx)
        np.testing.assert_allclose(
            pose.origin_in_a, image.cam_from_world.origin_in_a, atol=1e-3
        )
        np.testing.assert_allclose(pose.R, image.cam_from_world.R, atol=1e-4)
        assert len(ids) > 20
        local = assemble_local_map(
            site.read_tile, site, site.keyframes.keyframe_ids[[idx]]
        )
        pixels, in_front = project(CAMERA, pose.transform(local.points3D))
        assert in_front.all()
        assert np.all(pixels > -4.0)
        assert np.all(pixels < [CAMERA.width + 4.0, CAMERA.height + 4.0])


@pytest.mark.parametrize("fixture", ["orb_site", "sift_site"])
def test_facts_are_those_of_the_site(fixture, request):
    built = request.getfixturevalue(fixture)
    facts, manifest = built.result.facts, built.site.manifest
    points, _, observations = landmarks_of(built.site)
    keyframe_ids = built.site.keyframes.keyframe_ids
    visible = visible_point3D_ids(built.site.read_tile, built.site, keyframe_ids)
    assert facts["num_images"] == NUM_FRAMES == len(keyframe_ids)
    assert facts["num_landmarks"] == manifest.num_landmarks == len(points)
    assert facts["num_observations"] == sum(map(len, visible))
    assert observations.sum() == pytest.approx(facts["num_observations"], rel=0.05)
    assert facts["num_matches"] > 500
    assert 0.1 < facts["reproj_rmse_px"] < 1.5
    assert facts["used_depth"] == (fixture == "orb_site")
    assert facts["recording"] == manifest.name == "room-3"
    assert facts["pose_source"] == "exact"
    assert dict(manifest.build) == dict(facts)
    assert manifest.metric
    assert manifest.gravity_in_world == (0.0, 0.0, -1.0)
    assert dict(manifest.cameras) == {"camera": CAMERA}
    assert set(manifest.rungs) == {"RELOCALIZE", "INTERPOLATE"}
    verify_site(built.path)


def test_small_tiles_are_small_and_many(orb_site):
    tiles = orb_site.site.tiles
    assert len(tiles) >= 3
    assert max(tile.num_bytes for tile in tiles) <= ORB.max_tile_bytes


@pytest.mark.parametrize("fixture", ["orb_site", "sift_site"])
def test_inspect_tells_what_is_in_the_site(fixture, request):
    built = request.getfixturevalue(fixture)
    told = describe_site(built.path)
    points, _, observations = landmarks_of(built.site)
    sizes = {str(name): len(data) for name, data in bytes_of(built.path).items()}
    assert told["bytes"]["total"] == sum(sizes.values())
    assert told["bytes"]["tiles"] == sum(
        size for name, size in sizes.items() if name.startswith("tiles/")
    )
    assert told["bytes"]["index"] == sizes[built.site.manifest.index.file]
    assert told["landmarks"] == len(points)
    assert told["keyframes"] == NUM_FRAMES
    assert told["descriptors"] >= told["landmarks"]
    assert told["observations_per_landmark"][0] == observations.min()
    assert told["observations_per_landmark"][2] == observations.max()
    assert told["map_id"] == built.result.manifest.map_id
    assert told["features"] == ("orb" if fixture == "orb_site" else "sift")
    assert told["build"] == dict(built.result.facts)
    centers = [i.cam_from_world.origin_in_a for i in mapping_recording().images]
    np.testing.assert_allclose(told["extent"], np.ptp(centers, axis=0), atol=3e-3)


def test_inspect_tells_where_held_out_frames_failed(tmp_path, monkeypatch):
    """Two of five frames, whose fixes are taken away."""
    real = draft.calibrate

    def with_failures(run, coarse, checked, *, keyframe_spacing):
        frames = [
            replace(frame, xi=None) if frame.image_idx in {1, 3} else frame
            for frame in run.frames
        ]
        run = replace(run, frames=frames)
        return real(run, coarse, checked, keyframe_spacing=keyframe_spacing)

    monkeypatch.setattr(draft, "calibrate", with_failures)
    built = build(tmp_path / "site", small_recording(), QUICK)
    failed = {1, 3} | set(built.result.held_out.weak_image_idx)
    images = small_recording().images
    wanted = [images[idx].cam_from_world.origin_in_a for idx in sorted(failed)]
    told = describe_site(built.path)["weak_spots"]
    np.testing.assert_allclose(told, wanted, atol=3e-3)
    assert coverage_png(built.path)[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("family", "width", "height", "expected"),
    [
        ("orb", 320, 240, 1000),
        ("orb", 640, 480, 1000),
        ("orb", 960, 480, 2100),
        ("orb", 1920, 1080, 2500),
        ("sift", 640, 480, 2000),
        ("sift", 960, 480, 3000),
        ("sift", 1920, 1080, 4000),
    ],
)
def test_larger_images_get_more_keypoints(family, width, height, expected):
    camera = replace(CAMERA, width=width, height=height)
    assert default_keypoints(family, camera) == expected


# Building again


@pytest.fixture(scope="module")
def quick_site(tmp_path_factory):
    """The site of `small_recording`, built in one go without a work folder."""
    out = tmp_path_factory.mktemp("quick") / "site"
    return build(out, small_recording(), QUICK)


@pytest.fixture
def counts(monkeypatch):
    """How often the expensive parts of a build are called."""
    calls = {"extract_features": 0, "match_pair": 0}

    def count(name):
        real = getattr(survey, name)

        def counted(*args, **kwargs):
            calls[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(survey, name, counted)

    for name in calls:
        count(name)
    return calls


class StopAt:
    """Progress that is interrupted, as by Ctrl-C, when one step has got so far."""

    def __init__(self, step, done):
        self.step, self.done = step, done

    def __call__(self, step, done, total):
        if (step, done) == (self.step, self.done):
            raise KeyboardInterrupt


def stop_build(recording, tmp_path, step, done):
    with pytest.raises(KeyboardInterrupt):
        build_site(
            recording,
            out=tmp_path / "site",
            options=QUICK,
            work=tmp_path / "work",
            progress=StopAt(step, done),
        )
    assert not (tmp_path / "site").exists()


def resume(recording, tmp_path):
    result = build_site(
        recording, out=tmp_path / "site", options=QUICK, work=tmp_path / "work"
    )
    # Nothing is left over beside the site.
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
    return result.manifest


def test_two_builds_give_the_same_bytes(tmp_path, quick_site):
    again = build(tmp_path / "site", small_recording(), QUICK)
    assert bytes_of(again.path) == bytes_of(quick_site.path)
    assert again.result.facts == quick_site.result.facts


@pytest.mark.parametrize(
    ("step", "done", "num_extracted"),
    [("features", 1, 4), ("matches", 10, 0), ("landmarks", 0, 0)],
)
def test_an_interrupted_build_goes_on(
    tmp_path, counts, quick_site, step, done, num_extracted
):
    """The same site comes out, and what was done is not done again."""
    stop_build(small_recording(), tmp_path, step, done)
    counts["extract_features"] = 0
    manifest = resume(small_recording(), tmp_path)
    assert counts["extract_features"] == num_extracted
    assert manifest.map_id == quick_site.result.manifest.map_id
    verify_site(tmp_path / "site")


def test_a_build_may_be_interrupted_again_and_again(tmp_path, counts, quick_site):
    for step, done in (
        ("features", 3),
        ("features", 5),
        ("matches", 10),
        ("held-out frames", 2),
    ):
        stop_build(small_recording(), tmp_path, step, done)
    manifest = resume(small_recording(), tmp_path)
    assert counts == {"extract_features": 5, "match_pair": 10}
    assert bytes_of(tmp_path / "site") == bytes_of(quick_site.path)
    assert manifest.map_id == quick_site.result.manifest.map_id


def test_an_interrupted_build_leaves_the_old_site_as_it_was(tmp_path, quick_site):
    out = tmp_path / "site"
    recording = small_recording()
    old = build(out, recording.subset(recording.images[:3]), QUICK)
    before = bytes_of(out)
    for step, done in (("features", 2), ("held-out frames", 5)):
        with pytest.raises(KeyboardInterrupt):
            build_site(recording, out=out, options=QUICK, progress=StopAt(step, done))
        assert bytes_of(out) == before
    built = build(out, recording, QUICK)
    assert built.site.manifest.map_id == quick_site.site.manifest.map_id
    assert built.site.manifest.map_id != old.site.manifest.map_id


def test_poses_that_were_corrected_meanwhile_are_used(tmp_path, counts, quick_site):
    """Matches are checked against the poses: those of wrong poses are made again."""
    recording = small_recording()
    wrong = [
        with_pose(image, Rigid3(R=exp_so3([0, 0.02, 0]), t=[0, 0.1 * k, 0]) @ pose)
        for k, image in enumerate(recording.images)
        if (pose := image.cam_from_world) is not None
    ]
    stop_build(recording.subset(wrong), tmp_path, "matches", 10)
    manifest = resume(recording, tmp_path)
    assert manifest.map_id == quick_site.result.manifest.map_id
    assert counts["extract_features"] == 5


def test_depth_whose_scale_was_corrected_meanwhile_is_used(tmp_path, quick_site):
    recording = small_recording()
    wrong = [
        replace(
            image,
            depth=replace(
                image.depth, metres_per_unit=0.5, depth_m=0.5 * image.depth.depth_m
            ),
        )
        for image in recording.images
    ]
    stop_build(recording.subset(wrong), tmp_path, "features", 5)
    manifest = resume(recording, tmp_path)
    assert manifest.map_id == quick_site.result.manifest.map_id


def test_progress_names_every_step_and_ends_each(tmp_path):
    told = []
    recording = small_recording()
    build_site(
        recording.subset(recording.images[:3]),
        out=tmp_path / "site",
        options=QUICK,
        progress=lambda *call: told.append(call),
    )
    steps = list(dict.fromkeys(step for step, _, _ in told))
    assert steps == ["features", "matches", "landmarks", "held-out frames"]
    for step in steps:
        done = [(done, total) for name, done, total in told if name == step]
        assert done == sorted(done)
        assert done[-1][0] == done[-1][1]


# What takes part


def test_images_without_a_pose_are_left_out(tmp_path):
    recording = small_recording()
    images = [with_pose(recording.images[0], None), *recording.images[1:]]
    built = build(tmp_path / "site", recording.subset(images), QUICK)
    assert built.result.facts["num_images"] == 4


def test_depth_is_left_out_on_demand(tmp_path):
    options = replace(QUICK, use_depth=False)
    built = build(tmp_path / "site", small_recording(), options)
    _, _, observations = landmarks_of(built.site)
    assert built.result.facts["used_depth"] == 0
    assert observations.min() >= 2


def masked(recording, mask):
    return recording.subset([replace(image, moving=mask) for image in recording.images])


def test_masks_keep_landmarks_off(tmp_path):
    """Nothing on the left half of the pictures becomes a landmark."""
    left = np.zeros((CAMERA.height, CAMERA.width), bool)
    left[:, : CAMERA.width // 2] = True
    built = build(tmp_path / "site", masked(small_recording(), left), QUICK)
    site = built.site
    for idx in range(len(site.keyframes)):
        local = assemble_local_map(
            site.read_tile, site, site.keyframes.keyframe_ids[[idx]]
        )
        in_cam = site.keyframes.cam_from_world(idx).transform(local.points3D)
        assert len(local) > 20
        # A pixel of the finder's window and the reprojection error.
        assert project(CAMERA, in_cam)[0][:, 0].min() > CAMERA.width // 2 - 6


def test_an_image_without_features_does_no_harm(tmp_path):
    """A frame of a blank wall, with depth, among good ones."""
    recording = small_recording()
    grey = np.full((CAMERA.height, CAMERA.width, 3), 127, np.uint8)
    blank = replace(recording.images[2], source=ImageArray(grey))
    images = [*recording.images[:2], blank, *recording.images[3:]]
    built = build(tmp_path / "site", recording.subset(images), QUICK)
    per_keyframe = [
        len(ids)
        for ids in visible_point3D_ids(
            built.site.read_tile, built.site, built.site.keyframes.keyframe_ids
        )
    ]
    assert per_keyframe[2] == 0
    assert min(per_keyframe[:2] + per_keyframe[3:]) > 20


def test_large_images_are_scaled_down_and_landmarks_stay(tmp_path):
    options = replace(QUICK, max_side_px=240)
    built = build(tmp_path / "site", small_recording(), options)
    points, _, _ = landmarks_of(built.site)
    assert np.median(distance_to_surfaces(points, room())) < 0.015
    assert built.site.manifest.family.max_side_px == 240


def test_two_equal_rooms_in_one_recording_make_a_site(tmp_path):
    """Held-out frames are all found in the other room; the scale grew without bound."""
    recording = small_recording()
    off = Rigid3(R=exp_so3([0.0, 0.0, 2.0]), t=np.array([40.0, 7.0, 0.0]))
    copies = [
        replace(
            image,
            name=f"copy/{image.name}",
            cam_from_world=image.cam_from_world @ off.inverse(),
        )
        for image in recording.images
    ]
    images = [*recording.images, *copies]
    built = build(tmp_path / "site", recording.subset(images), QUICK)
    assert built.result.held_out.fix.scale > 1e3
    assert open_site(built.path).manifest.covariance_scale > 1e3


# What is refused


def refused(recording, tmp_path, options=QUICK):
    """The one line that a build is refused with; nothing is written."""
    with pytest.raises((ConfigError, MapError)) as caught:
        build_site(
            recording, out=tmp_path / "site", options=options, work=tmp_path / "work"
        )
    assert not (tmp_path / "site").exists()
    message = str(caught.value)
    assert "\n" not in message
    return type(caught.value), message


def test_no_poses(tmp_path):
    recording = small_recording()
    images = [with_pose(image, None) for image in recording.images]
    assert refused(recording.subset(images), tmp_path) == (
        DatasetError,
        "room-3: no image has both a pose and a camera; make poses with "
        "`edgeloc-build sfm`",
    )


def test_no_camera(tmp_path):
    recording = replace(small_recording(), cameras={})
    assert refused(recording, tmp_path) == (
        DatasetError,
        "room-3: no image has both a pose and a camera; make poses with "
        "`edgeloc-build sfm`",
    )


def test_one_image(tmp_path):
    recording = small_recording()
    assert refused(recording.subset(recording.images[:1]), tmp_path) == (
        DatasetError,
        "room-3: a map needs at least two posed images",
    )


def test_an_image_of_another_size(tmp_path):
    recording = small_recording()
    half = cv2.resize(recording.images[1].source.read(), (160, 120))
    odd = replace(recording.images[1], source=ImageArray(half))
    images = [recording.images[0], odd, *recording.images[2:]]
    assert refused(recording.subset(images), tmp_path) == (
        DatasetError,
        "000001.png: is 160x120 px, its camera 'camera' says 320x240",
    )


def test_a_mask_of_another_size(tmp_path):
    """OpenCV failed an assertion: an internal error for a wrong file."""
    small = np.zeros((120, 160), bool)
    assert refused(masked(small_recording(), small), tmp_path) == (
        DatasetError,
        "000000.png: its mask is 160x120 px, the image 320x240; make them the same "
        "size",
    )


def test_an_image_file_that_is_gone(tmp_path):
    recording = small_recording()
    path = tmp_path / "gone.png"
    images = [replace(i, source=ImageFile(path)) for i in recording.images]
    assert refused(recording.subset(images), tmp_path) == (
        DatasetError,
        f"{path}: is missing",
    )


@pytest.mark.parametrize(
    ("recording_of", "why"),
    [
        (lambda r: blank(r), "blank"),
        (lambda r: masked(r, np.ones((CAMERA.height, CAMERA.width), bool)), "masked"),
    ],
    ids=["blank", "masked"],
)
def test_nothing_to_be_seen(tmp_path, recording_of, why):
    assert refused(recording_of(small_recording()), tmp_path) == (
        MapError,
        "only 0 features in 5 images: are they blank, or masked out?",
    )


def blank(recording: Recording) -> Recording:
    grey = ImageArray(np.full((CAMERA.height, CAMERA.width, 3), 90, np.uint8))
    return recording.subset([replace(i, source=grey) for i in recording.images])


def test_images_that_do_not_overlap(tmp_path):
    """Two pictures of opposite walls, without depth."""
    recording = mapping_recording()
    two = recording.subset([recording.images[0], recording.images[-1]])
    assert refused(two, tmp_path, SIFT) == (
        MapError,
        "room-3: no landmark passed the gates; are the poses and the intrinsics right, "
        "and do the images overlap?",
    )


def test_poses_that_have_nothing_to_do_with_the_images_show_in_the_facts(tmp_path):
    """A few wrong matches fit by chance; no held-out frame is found with them."""
    images = mapping_recording().images[::3]
    turned = [
        with_pose(image, Rigid3(R=exp_so3([0, 2.0 * k, 0]), t=[0, 0, 3.0 * k]) @ pose)
        for k, image in enumerate(images)
        if (pose := image.cam_from_world) is not None
    ]
    built = build(tmp_path / "site", mapping_recording().subset(turned), SIFT)
    facts = built.result.facts
    assert facts["num_landmarks"] < 100
    assert facts["held_out_frames"] == len(images)
    assert facts["held_out_localized"] == 0
    assert facts["held_out_median_error"] == -1.0
    assert built.site.manifest.covariance_scale >= 4.0


def test_a_family_that_does_not_exist(tmp_path):
    assert refused(small_recording(), tmp_path, BuildOptions(features="magic")) == (
        ConfigError,
        "feature family 'magic' is unknown, expected orb, sift, edgeloc or the path of "
        "a model manifest (.json)",
    )


def test_too_few_keypoints():
    with pytest.raises(ConfigError, match="max_keypoints 8 must be at least 16"):
        BuildOptions(max_keypoints=8)


def test_a_folder_that_is_not_a_site_is_not_replaced(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "mine.txt").write_text("keep")
    with pytest.raises(MapError, match="exists and is not a site"):
        build_site(small_recording(), out=tmp_path / "site", options=QUICK)
    assert bytes_of(tmp_path / "site") == {Path("mine.txt"): b"keep"}
