"""The comparison of interpolation with the most similar keyframe."""

import numpy as np
from site_fixture import mapping_recording, query_images

from edgeloc.localize.interpolate import WEIGHTINGS
from edgeloc_tools.evaluate.interpolation import TOP_1, median_errors, without_gate


def test_every_weighting_answers_every_frame(orb_site):
    recording = mapping_recording().subset(query_images())
    errors = median_errors(without_gate(orb_site.site), recording)
    assert list(errors) == [TOP_1, *WEIGHTINGS]
    assert np.isfinite(list(errors.values())).all()


def test_mapping_frames_find_themselves(orb_site):
    """The most similar keyframe of a mapping frame is itself, at no distance."""
    errors = median_errors(orb_site.site, mapping_recording())
    assert errors[TOP_1][0] < 2e-3  # what poses are stored with
    assert errors["csi"][0] < 0.5


def test_the_gate_is_off_and_the_site_untouched(orb_site):
    before = orb_site.site.retrieval_arrays["calibration"].copy()
    assert without_gate(orb_site.site).retrieval_arrays["calibration"][0] == -1.0
    np.testing.assert_array_equal(orb_site.site.retrieval_arrays["calibration"], before)
