"""Fewer bytes: what landmarks look like, what they are worth, maps within a budget."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from site_fixture import (
    CAMERA,
    budget_of,
    frame_of,
    mapping_recording,
    pose_error,
    query_images,
    small_recording,
)

from edgeloc.errors import ConfigError, DatasetError
from edgeloc.features.quantizer import ProductQuantizer
from edgeloc.inference.manifest import shipped_folder
from edgeloc.runtime.estimator import Estimator
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.tiles.arrays import decode_codebook
from edgeloc.tiles.layout import LandmarkTable
from edgeloc.tiles.reader import open_site, verify_site
from edgeloc.types import PoseStatus, Rigid3
from edgeloc_tools.datasets.join import join_recordings
from edgeloc_tools.evaluate.build_report import write_build_report
from edgeloc_tools.mapping.build import build_from_survey
from edgeloc_tools.mapping.compress import appearances, part_of, shared_views
from edgeloc_tools.mapping.landmarks import LandmarkMap, Observed
from edgeloc_tools.mapping.options import BuildOptions
from edgeloc_tools.mapping.survey import survey_recording
from edgeloc_tools.mapping.tracks import MappingImage
from edgeloc_tools.mapping.value import Trials, join_trials, landmark_values
from edgeloc_tools.mapping.work import WorkFolder


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


# By hand


def hand_made(rng, *, looks):
    """Four images, three landmarks in front of them, descriptors as given.

    `looks` has one row of descriptors per landmark and image; NaN = not seen.
    """
    points3D = np.array([[-0.4, 0.0, 4.0], [0.0, 0.0, 4.0], [0.4, 0.1, 4.0]])
    images, rows = [], []
    for k in range(4):
        seen = np.flatnonzero(~np.isnan(looks[:, k, 0]))
        pose = Rigid3(R=np.eye(3), t=np.array([-0.1 * k, 0.0, 0.0]))
        in_cam = pose.transform(points3D[seen])
        keypoints = 250.0 * in_cam[:, :2] / in_cam[:, 2:] + [160.0, 120.0]
        images.append(
            MappingImage(
                name=str(k),
                camera_id="c",
                camera=CAMERA,
                cam_from_world=pose,
                keypoints=keypoints.astype(np.float32),
                sigmas=np.ones(len(seen), np.float32),
                stored=np.zeros((len(seen), 8), np.uint8),
                descriptors=looks[seen, k].astype(np.float32),
                depth=np.full(len(seen), np.nan),
                depth_sigma=np.full(len(seen), np.nan),
            )
        )
        rows += [(landmark, k, i) for i, landmark in enumerate(seen)]
    landmark_idx, image_idx, keypoint_idx = np.array(sorted(rows)).T
    counts = np.bincount(landmark_idx, minlength=3)
    return images, LandmarkMap(
        landmarks=LandmarkTable(
            points3D=points3D,
            sigmas=np.full(3, 1e-3, np.float32),
            num_observations=counts,
            descriptor_offsets=np.concatenate([[0], np.cumsum(counts)]),
            descriptors=np.zeros((counts.sum(), 8), np.uint8),
        ),
        track_idx=np.array([5, 7, 9]),
        observed=Observed(
            landmark_idx=landmark_idx, image_idx=image_idx, keypoint_idx=keypoint_idx
        ),
        visible=[landmark_idx[image_idx == k] for k in range(4)],
        errors_px=np.zeros(len(landmark_idx)),
    )


@pytest.fixture
def two_faced(rng):
    """The second landmark looks one way in two images, another in the other two."""
    base = unit(rng.normal(size=(4, 8)))
    looks = np.repeat(base[:3, None], 4, axis=1)
    looks[1, 2:] = base[3]
    return base, *hand_made(rng, looks=looks)


def test_a_landmark_has_its_mean_or_two(two_faced):
    base, images, landmark_map = two_faced
    looks = appearances(images, landmark_map)
    np.testing.assert_array_equal(np.diff(looks.offsets), [1, 2, 1])
    np.testing.assert_allclose(looks.rows[0], base[0], atol=1e-6)
    similar = looks.rows[1:3] @ base[[1, 3]].T
    np.testing.assert_allclose(np.sort(similar.max(axis=1)), 1.0, atol=1e-5)
    assert looks.coherence[1] < 0.95 < looks.coherence[0]


def test_one_odd_measurement_is_no_appearance(rng):
    base = unit(rng.normal(size=(4, 8)))
    looks = np.repeat(base[:3, None], 4, axis=1)
    looks[1, 3] = base[3]
    images, landmark_map = hand_made(rng, looks=looks)
    assert np.diff(appearances(images, landmark_map).offsets).max() == 1


def test_kept_keyframes_see_for_their_neighbours(rng):
    looks = np.repeat(unit(rng.normal(size=(3, 1, 8))), 4, axis=1)
    looks[0, 2:] = np.nan
    looks[2, :2] = np.nan
    _, landmark_map = hand_made(rng, looks=looks)
    part = part_of(landmark_map, np.array([2, 1]), np.array([1, 1, 2, 2]))
    assert [v.tolist() for v in part.visible] == [[], [0], [0, 1], []]
    np.testing.assert_array_equal(part.track_idx, [7, 9])
    np.testing.assert_array_equal(
        part.landmarks.points3D, landmark_map.landmarks.points3D[1:]
    )
    assert len(part.landmarks.descriptors) == part.landmarks.descriptor_offsets[-1] == 6


def test_shared_views_are_shares_of_what_is_seen(rng):
    looks = np.repeat(unit(rng.normal(size=(3, 1, 8))), 4, axis=1)
    looks[0, 2:] = np.nan
    _, landmark_map = hand_made(rng, looks=looks)
    shared = shared_views(landmark_map)
    assert shared[0, 2] == pytest.approx(2 / 3)
    assert shared[2, 0] == 1.0


def test_what_held_out_frames_miss_is_worth_less(rng):
    looks = np.repeat(unit(rng.normal(size=(3, 1, 8))), 4, axis=1)
    images, landmark_map = hand_made(rng, looks=looks)
    coherence = np.ones(3)
    before = landmark_values(images, landmark_map, coherence=coherence)
    np.testing.assert_allclose(before, before[0], rtol=0.05)
    trials = join_trials(
        [
            Trials(
                track_idx=np.array([5, 9]),
                in_view=np.array([5, 5]),
                found=np.array([0, 5]),
            )
        ]
        * 2
    )
    assert trials.in_view.tolist() == [10, 10]
    after = landmark_values(images, landmark_map, coherence=coherence, trials=trials)
    assert after[0] < 0.5 * after[1] < after[2]


def test_vague_and_changing_landmarks_are_worth_less(rng):
    looks = np.repeat(unit(rng.normal(size=(3, 1, 8))), 4, axis=1)
    images, landmark_map = hand_made(rng, looks=looks)
    table = landmark_map.landmarks
    vague = dataclasses.replace(table, sigmas=np.array([1e-3, 1e-1, 1e-3], np.float32))
    values = landmark_values(
        images,
        dataclasses.replace(landmark_map, landmarks=vague),
        coherence=np.array([1.0, 1.0, 0.6]),
    )
    assert values[1] < 0.3 * values[0]
    assert values[2] < 0.5 * values[0]


# On a mapped room


@functools.cache
def survey():
    return survey_recording(
        mapping_recording(),
        options=BuildOptions(features="sift", max_keypoints=500),
        folder=WorkFolder(None),
    )


def built(out, **options):
    options = BuildOptions(features="sift", max_keypoints=500, **options)
    return build_from_survey(survey(), out=out, options=options)


def answers(site):
    """Return the position errors of the queries, inf where not LOCALIZED."""
    estimator = Estimator(
        site=open_site(site), camera=CAMERA, options=EstimatorOptions(cold=True)
    )
    errors = []
    for image in query_images():
        estimate = estimator.step(frame_of(image.source.read()), budget_of())
        good = estimate.status is PoseStatus.LOCALIZED
        errors.append(
            pose_error(estimate, image.cam_from_world).position_m if good else np.inf
        )
    return np.array(errors)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "site"
    return built(out, code_bytes=0), answers(out)


@pytest.fixture(scope="module")
def budgeted(tmp_path_factory):
    out = tmp_path_factory.mktemp("budgeted") / "site"
    return out, built(out, code_bytes=0, budget_bytes=120_000)


def test_quantized_maps_are_small_and_as_good(tmp_path, plain):
    result = built(tmp_path / "site", code_bytes=16)
    manifest = result.manifest
    assert (manifest.family.coding, manifest.family.stored_dim) == ("pq", 16)
    codebook = manifest.codebooks["descriptors"].num_bytes
    assert result.counted_bytes - codebook < 0.4 * plain[0].counted_bytes
    errors = answers(tmp_path / "site")
    assert np.median(errors) < 1.3 * np.median(plain[1])
    assert np.isfinite(errors).sum() >= np.isfinite(plain[1]).sum() - 1
    verify_site(tmp_path / "site")


def test_a_budget_is_kept_and_used(budgeted, plain):
    out, result = budgeted
    files = [p for p in out.rglob("*") if p.is_file()]
    assert result.counted_bytes == sum(p.stat().st_size for p in files)
    assert 0.9 * 120_000 < result.counted_bytes <= 120_000
    assert result.counted_bytes < 0.35 * plain[0].counted_bytes
    errors = answers(out)
    assert np.isfinite(errors).sum() >= np.isfinite(plain[1]).sum() - 1
    assert np.median(errors) < 3.0 * np.median(plain[1])


def test_a_budget_serves_better_than_chance(tmp_path):
    """The same bytes, filled with random landmarks, localize fewer or worse."""
    chosen = built(tmp_path / "a", code_bytes=0, budget_bytes=65_000)
    random = built(tmp_path / "b", code_bytes=0, budget_bytes=65_000, ranking="random")
    assert chosen.counted_bytes <= 65_000
    assert random.counted_bytes <= 65_000
    found = [np.isfinite(answers(tmp_path / name)) for name in "ab"]
    assert found[0].sum() > found[1].sum()


def test_a_budget_for_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is too small for room-3"):
        built(tmp_path / "site", code_bytes=0, budget_bytes=2_000)
    assert not (tmp_path / "site").exists()


def test_the_curve_falls_with_size(tmp_path):
    result = built(tmp_path / "site", code_bytes=0, curve=True)
    sizes = [point.num_bytes for point in result.curve]
    assert len(sizes) == 6
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(result.counted_bytes, rel=0.25)
    localized = [point.num_localized for point in result.curve]
    assert localized[0] > localized[-1]
    page = write_build_report(result, tmp_path / "report")[1].read_text()
    assert "data:image/svg+xml;base64," in page
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [p["num_bytes"] for p in report["curve"]] == sizes


def test_the_same_build_gives_the_same_bytes(budgeted, tmp_path):
    again = built(tmp_path / "again", code_bytes=0, budget_bytes=120_000)
    assert again.manifest.map_id == budgeted[1].manifest.map_id


# Codebooks that come with edgeloc


def test_shipped_codebooks_fit_their_models():
    folder = shipped_folder()
    assert folder is not None
    paths = sorted(folder.glob("*.codebook"))
    sizes = {}
    for path in paths:
        codebook = decode_codebook(path.read_bytes())
        assert codebook.name == path.stem
        quantizer = ProductQuantizer.from_arrays(codebook.arrays)
        sizes[path.stem] = (quantizer.num_parts, quantizer.dim)
        identity = quantizer.rotation @ quantizer.rotation.T
        np.testing.assert_allclose(identity, np.eye(quantizer.dim), atol=5e-3)
    assert sizes == {
        "edgeloc-features-small-pq8": (8, 64),
        "edgeloc-features-small-pq16": (16, 64),
        "edgeloc-retrieval-small-pq32": (32, 256),
        "edgeloc-retrieval-small-pq64": (64, 256),
    }


# Several recordings


def test_recordings_are_joined():
    day = small_recording()
    other = dataclasses.replace(CAMERA, params=(251.0, 250.0, 160.0, 120.0))
    camera_id = day.images[0].camera_id
    night = dataclasses.replace(day, name="night", cameras={camera_id: other})
    joined = join_recordings([day, night])
    assert len(joined.images) == 2 * len(day.images)
    assert joined.images[5].name == f"1/{day.images[0].name}"
    assert joined.cameras[joined.images[0].camera_id] == CAMERA
    assert joined.cameras[joined.images[5].camera_id] == other
    same = join_recordings([day, dataclasses.replace(day, name="again")])
    assert list(same.cameras) == [camera_id]


def test_recordings_of_different_units_are_not_joined():
    day = small_recording()
    night = dataclasses.replace(day, name="night", metric=False)
    with pytest.raises(DatasetError, match="night: its unit is arbitrary, that of"):
        join_recordings([day, night])
