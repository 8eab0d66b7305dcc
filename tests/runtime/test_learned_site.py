"""Sites built with networks: from images to poses, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import site_fixture as room
from model_factory import (
    FEATURES,
    RETRIEVAL,
    constant_network,
    feature_network,
    write_features,
    write_retrieval,
)

from edgeloc.errors import MapError, MapModelMismatchError, ModelError
from edgeloc.inference.backend import BackendOptions
from edgeloc.runtime.estimator import Estimator
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.runtime.site_models import open_site_family, open_site_retrieval
from edgeloc.tiles.reader import open_site, verify_site
from edgeloc.types import Cause, PoseStatus, Rung
from edgeloc_tools.mapping.build import build_site
from edgeloc_tools.mapping.options import BuildOptions
from edgeloc_tools.model_files import write_model

CPU = BackendOptions(backend="ort-cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return write_features(folder), write_retrieval(folder)


@pytest.fixture(scope="module")
def built(models, tmp_path_factory) -> room.BuiltSite:
    """Half of the room, with networks for everything."""
    recording = room.mapping_recording()
    options = BuildOptions(
        features=str(models[0]),
        retrieval=str(models[1]),
        backend=CPU,
        max_keypoints=600,
    )
    out = tmp_path_factory.mktemp("learned") / "site"
    return room.build(out, recording.subset(recording.images[:8]), options)


@pytest.fixture
def path(built, tmp_path) -> Path:
    return Path(shutil.copytree(built.path, tmp_path / "site"))


def estimator(path: Path, **options) -> Estimator:
    return Estimator(
        site=open_site(path),
        camera=room.CAMERA,
        options=EstimatorOptions(backend=CPU, **options),
    )


def test_a_site_carries_what_it_was_built_with(built, models):
    manifest = built.site.manifest
    assert (manifest.family.name, manifest.family.stored_dtype) == (
        "tiny-features",
        "uint8",
    )
    assert manifest.family.coding == "pq"
    assert manifest.family.stored_dim == 8
    assert manifest.global_dim == RETRIEVAL.descriptor_dim
    assert set(manifest.models) == {"features", "retrieval"}
    assert manifest.build["retrieval"] == "tiny-retrieval"
    assert set(built.site.retrieval_arrays) & {"mean", "centroids"} == set()
    network = built.path / manifest.models["features"].network.file
    assert network.read_bytes() == models[0].with_suffix(".onnx").read_bytes()
    verify_site(built.path)


def test_frames_are_localized_with_networks_alone(path):
    """The site is all that is needed: it was copied away from its models."""
    localizer = estimator(path, cold=True)
    localizer.warm_up()
    near = [image for image in room.query_images() if image.cam_from_world][:5]
    errors = []
    for idx, image in enumerate(near):
        frame = room.frame_of(image.source.read(), idx)
        estimate, trace = localizer.explain(frame, room.budget_of())
        assert set(estimate.stage_ns) >= {"preprocess", "features", "retrieve"}
        assert 400 < len(trace.query.features) <= 600
        assert estimate.status is PoseStatus.LOCALIZED
        errors.append(room.pose_error(estimate, image.cam_from_world))
    assert np.median([error.position_m for error in errors]) < 0.02
    assert np.median([error.rotation_deg for error in errors]) < 0.5


def test_retrieval_finds_the_keyframes_that_look_there(built, path):
    localizer = estimator(path, num_retrieved=2, cold=True)
    keyframes = built.site.keyframes
    for image in room.query_images()[:5]:
        frame = room.frame_of(image.source.read())
        _, trace = localizer.explain(frame, room.budget_of())
        best = keyframes.index_of(trace.retrieved.keyframe_ids[:1])[0]
        turn = keyframes.R[best] @ image.cam_from_world.R.T
        angle_deg = np.rad2deg(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
        assert angle_deg < 25


@pytest.mark.parametrize("role", ["features", "retrieval"])
def test_a_site_whose_model_is_missing_or_changed_is_refused(path, role):
    [network] = path.glob(f"models/*/{role}.onnx")
    raw = bytearray(network.read_bytes())
    raw[len(raw) // 2] ^= 1
    network.write_bytes(bytes(raw))
    with pytest.raises(MapError, match=f"{role}.onnx: does not have the SHA-256"):
        estimator(path)
    network.unlink()
    with pytest.raises(MapError, match=rf"{role}.onnx: cannot be read .*copy the site"):
        estimator(path)


def with_family(site, **changes):
    family = replace(site.manifest.family, **changes)
    return replace(site, manifest=replace(site.manifest, family=family))


def test_a_site_of_another_model_is_refused(built):
    """Of another size than its model, and of a family for which it carries none."""
    other = with_family(built.site, coding="plain", stored_dim=32)
    message = r"holds tiny-features uint8\[32\] descriptors, its feature family makes t"
    with pytest.raises(MapModelMismatchError, match=message):
        open_site_family(other, options=CPU)
    bare = replace(built.site, manifest=replace(built.site.manifest, models={}))
    with pytest.raises(MapModelMismatchError, match="was built with the features 'tin"):
        open_site_family(bare)
    with pytest.raises(MapError, match="the retrieval model lacks centroids, mean"):
        open_site_retrieval(bare, dim=192)
    with pytest.raises(MapModelMismatchError, match="global descriptors have 191 elem"):
        open_site_retrieval(built.site, dim=191, options=CPU)


def test_an_orb_site_with_other_bytes_is_refused(orb_site):
    other = with_family(orb_site.site, stored_dim=64)
    with pytest.raises(MapModelMismatchError, match=r"holds orb uint8\[64\] desc"):
        open_site_family(other)


class Broken:
    """A backend that fails from the second image on."""

    input_names = ("image",)
    asynchronous = False

    def __init__(self, backend):
        self.backend = backend
        self.output_names = backend.output_names
        self.calls = 0

    def submit(self, inputs):
        self.calls += 1
        if 2 <= self.calls <= 3:
            raise ModelError("features.onnx: fails on image (1, 1, 240, 320): gone")
        return self.backend.submit(inputs)

    def describe(self):
        return "broken"


def test_a_network_that_fails_costs_the_frame_and_nothing_else(path, caplog):
    """Expectation: LOST with cause BACKEND_ERROR, one warning, and on with the next."""
    localizer = estimator(path, cold=True)
    network = localizer._parts.family.network
    network._backend = Broken(network._backend)
    image = room.query_images()[0].source.read()
    estimates = [
        localizer.step(room.frame_of(image, idx), room.budget_of()) for idx in range(5)
    ]
    lost = [e.status is PoseStatus.LOST for e in estimates]
    assert lost == [False, True, True, False, False]
    assert (estimates[1].rung, estimates[1].cause) == (Rung.LOST, Cause.BACKEND_ERROR)
    assert caplog.messages == ["features.onnx: fails on image (1, 1, 240, 320): gone"]


def test_a_network_that_fails_at_once_is_an_error_before_the_first_frame(
    built, tmp_path
):
    """NaN descriptors: found by the warm-up, not by the first frame."""
    outputs = {
        "descriptors": np.full((1, 64, 30, 40), np.nan, np.float32),
        "reliability": np.zeros((1, 1, 30, 40), np.float32),
    }
    broken = write_model(tmp_path, FEATURES, constant_network(outputs))
    localizer = Estimator(
        site=built.site,
        camera=room.CAMERA,
        options=EstimatorOptions(backend=CPU),
        family=open_family_at(broken),
    )
    with pytest.raises(ModelError, match="'descriptors' has NaN or infinite values"):
        localizer.warm_up()


def open_family_at(path: Path):
    from edgeloc.features.registry import open_family

    return open_family(str(path), options=CPU)


def test_a_build_goes_on_from_its_work_folder_only_with_the_same_models(
    models, tmp_path, monkeypatch
):
    """Cached features are those of the very network, its manifest included."""
    from edgeloc_tools.mapping import survey as module

    recording = room.small_recording()
    kept = tmp_path / "work"
    extracted = []
    real = module.extract_features

    def counting(*args, **kwargs):
        extracted.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "extract_features", counting)
    monkeypatch.setattr(module.WorkFolder, "remove", lambda self: None)
    options = BuildOptions(
        features=str(models[0]), retrieval="vlad", backend=CPU, max_keypoints=200
    )
    for expected, changed in ((5, options), (0, options)):
        extracted.clear()
        build_site(recording, out=tmp_path / "s", options=changed, work=kept)
        assert len(extracted) == expected
    other = replace(FEATURES, input=replace(FEATURES.input, scale=1 / 256))
    path = write_model(tmp_path / "other", other, feature_network())
    extracted.clear()
    options = replace(options, features=str(path))
    build_site(recording, out=tmp_path / "s", options=options, work=kept)
    assert len(extracted) == 5
    site = open_site(tmp_path / "s")
    assert set(site.manifest.models) == {"features"}
    assert "centroids" in site.retrieval_arrays
