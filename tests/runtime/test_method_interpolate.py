"""INTERPOLATE on the device: what keyframes show, and what checking them changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from site_fixture import mapping_recording

from edgeloc.clock import MonotonicClock
from edgeloc.errors import MapError
from edgeloc.geometry.camera import project
from edgeloc.localize.interpolate import InterpolateOptions
from edgeloc.localize.rerank import RerankOptions, supporting_matches
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.runtime.method_interpolate import keyframe_views
from edgeloc.runtime.site_parts import open_site_parts
from edgeloc_tools.evaluate.run import Runner


@pytest.fixture(scope="module")
def parts(orb_site):
    camera = next(iter(orb_site.site.manifest.cameras.values()))
    return open_site_parts(
        orb_site.site, camera, EstimatorOptions(cold=True), clock=MonotonicClock()
    )


def test_landmarks_stand_where_a_keyframe_shows_them(parts):
    ids = parts.site.keyframes.keyframe_ids[:3]
    views = list(keyframe_views(parts, ids, 50))
    assert [len(view) for view in views] == [50, 50, 50]
    for view in views:
        ahead = np.column_stack([view.points, np.ones(len(view))])
        pixels, in_front = project(parts.camera, ahead)
        assert in_front.all()
        # In the picture, but for the noise of landmarks at its border.
        size = np.array([parts.camera.width, parts.camera.height])
        assert np.mean(np.all((pixels > -5) & (pixels < size + 5), axis=1)) > 0.98
        norms = np.linalg.norm(view.descriptors, axis=1)
        np.testing.assert_allclose(norms, 1.0, atol=1e-4)


def test_a_keyframe_supports_itself_most(parts):
    ids = parts.site.keyframes.keyframe_ids
    views = list(keyframe_views(parts, ids, 200))
    for idx in (0, len(ids) // 2, len(ids) - 1):
        support = supporting_matches(views[idx], views, RerankOptions()).support
        assert np.argmax(support) == idx
        assert support[idx] > 40


def test_settings_are_those_of_the_site(orb_site, parts):
    chosen = orb_site.result.held_out.interpolate
    assert parts.interpolate == chosen
    assert orb_site.site.manifest.build["interpolate"] == str(chosen)
    other = InterpolateOptions(weighting="csi", num_keyframes=2).to_arrays()
    arrays = {**orb_site.site.retrieval_arrays, **other}
    asked = InterpolateOptions(num_keyframes=3)
    for options, expected in ((None, "csi"), (asked, "bdi")):
        opened = open_site_parts(
            replace(orb_site.site, retrieval_arrays=arrays),
            parts.camera,
            EstimatorOptions(cold=True, interpolate=options),
            clock=MonotonicClock(),
        )
        assert opened.interpolate.weighting == expected
    arrays["interpolate"] = arrays["interpolate"] + 0.5
    with pytest.raises(MapError, match=r"no weighting 2.5; build the site again"):
        open_site_parts(
            replace(orb_site.site, retrieval_arrays=arrays),
            parts.camera,
            EstimatorOptions(cold=True),
            clock=MonotonicClock(),
        )


def test_checking_happens_alone_only(orb_site):
    """As a net below RELOCALIZE the answer must cost next to nothing."""
    recording = mapping_recording()
    image = recording.images[2]
    answers = {}
    for method in ("interpolate", "auto"):
        for rerank in (None, RerankOptions(score_weight=0.0)):
            runner = Runner(
                site=orb_site.site,
                cameras=recording.cameras,
                options=EstimatorOptions(
                    method=method,
                    cold=True,
                    interpolate=InterpolateOptions(rerank=rerank, num_keyframes=1),
                ),
                budget_ms=None,
            )
            pixels = np.roll(image.source.read(), 40, axis=1)
            _, trace, _ = runner.answer(image, pixels, frame_id=0)
            candidate = trace.candidates["INTERPOLATE"]
            key = method, rerank is None
            answers[key] = candidate.cam_from_world.origin_in_a
    np.testing.assert_array_equal(answers["auto", True], answers["auto", False])
