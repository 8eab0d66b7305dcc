"""The inputs of the packaged demo."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edgeloc_tools.datasets.registry import open_recording
from edgeloc_tools.synth.demo import (
    CLIP_FRAMES,
    COVERED,
    MAPPING_FRAMES,
    MAX_CLIP_BYTES,
    RATE_HZ,
    clip_path,
    clip_scene,
    cover_lens,
    demo_room,
    make_demo_inputs,
    mapping_path,
)
from edgeloc_tools.synth.render import render


@pytest.fixture(scope="module")
def scene():
    return clip_scene()


def test_the_person_is_met_and_never_fills_the_picture(scene, small):
    path = clip_path(scene)
    hidden = [
        render(scene, small, path.pose_at(t), time_s=float(t)).moving.mean()
        for t in np.arange(0, CLIP_FRAMES, 3) / RATE_HZ
    ]
    assert (np.array(hidden) > 0.03).sum() >= 6
    assert max(hidden) < 0.5


def test_the_clip_stays_clear_of_everything_and_near_the_mapped_places(scene, small):
    path, mapped = clip_path(scene), mapping_path(scene)
    known = np.array([mapped.position_at(t / 2.0) for t in range(MAPPING_FRAMES)])
    empty = demo_room()
    for t in np.arange(0, CLIP_FRAMES, 10) / RATE_HZ:
        assert render(empty, small, path.pose_at(t)).depth_m.min() > 0.25
        centre = path.position_at(float(t))
        assert np.linalg.norm(known - centre, axis=1).min() < 0.7


def test_a_covered_lens_shows_nothing():
    image = cover_lens(np.full((480, 640, 3), 128, np.uint8), 3)
    assert image.max() < 30
    assert len(cv2.FastFeatureDetector_create(20).detect(image)) == 0


@pytest.mark.slow
def test_the_demo_is_small_and_complete(tmp_path):
    make_demo_inputs(tmp_path)
    assert (tmp_path / "clip.mp4").stat().st_size < MAX_CLIP_BYTES
    mapping = open_recording(format="tum", input=tmp_path / "mapping")
    assert len(mapping.posed().images) == MAPPING_FRAMES
    truth = np.loadtxt(tmp_path / "clip_gt.txt")
    assert truth.shape == (CLIP_FRAMES, 8)
    video = cv2.VideoCapture(str(tmp_path / "clip.mp4"))
    brightness = []
    while True:
        ok, image = video.read()
        if not ok:
            break
        brightness.append(image.mean())
    video.release()
    assert len(brightness) == CLIP_FRAMES
    assert np.flatnonzero(np.array(brightness) < 20).tolist() == list(COVERED)
