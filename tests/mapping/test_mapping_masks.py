"""Masks keep features off what moves while a map is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeloc.errors import ConfigError, DatasetError
from edgeloc.features.segment import open_segmenter
from edgeloc.types import CameraModel, Rigid3
from edgeloc_tools.datasets.recording import ImageFile, RecordedImage, Recording
from edgeloc_tools.mapping.masks import MaskSources, mask_recording
from edgeloc_tools.mapping.options import BuildOptions
from edgeloc_tools.mapping.survey import survey_recording
from edgeloc_tools.mapping.work import WorkFolder
from edgeloc_tools.synth.colour_segmenter import write_colour_segmenter

CAMERA = CameraModel(
    model="PINHOLE", width=160, height=120, params=(150.0, 150.0, 80.0, 60.0)
)
LEFT_HALF = "-1,-1 80,-1 80,121 -1,121"


@pytest.fixture
def recording(tmp_path: Path, rng: np.random.Generator) -> Recording:
    """Two pictures full of texture; a magenta person stands in the second."""
    images = []
    for k in range(2):
        noise = rng.integers(0, 255, (30, 40), dtype=np.uint8)
        grey = cv2.resize(noise, (160, 120), interpolation=cv2.INTER_CUBIC)
        picture = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
        if k == 1:
            picture[20:110, 100:150, 1] = 10
            picture[20:110, 100:150, [0, 2]] |= 160
        name = f"run/{k}.png"
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture)
        images.append(
            RecordedImage(
                name=name,
                camera_id="front",
                source=ImageFile(path),
                cam_from_world=Rigid3(R=np.eye(3), t=np.array([0.1 * k, 0, 0])),
            )
        )
    return Recording(name="r", images=tuple(images), cameras={"front": CAMERA})


def keypoints(recording: Recording, work: Path | None = None) -> list[np.ndarray]:
    survey = survey_recording(
        recording, options=BuildOptions(features="orb"), folder=WorkFolder(work)
    )
    return [image.keypoints for image in survey.images]


def test_features_stay_off_a_hood(recording: Recording) -> None:
    masked = mask_recording(recording, MaskSources(hood=LEFT_HALF, margin_px=4))
    for free, kept in zip(keypoints(recording), keypoints(masked), strict=True):
        assert np.any(free[:, 0] < 80)
        assert len(kept) > 50
        assert kept[:, 0].min() > 83


def test_a_hood_is_as_large_as_pictures_of_a_camera_that_nobody_knows(
    recording: Recording,
) -> None:
    """Plain photos, before `edgeloc-build sfm`."""
    unknown = replace(recording, cameras={})
    first, _ = mask_recording(unknown, MaskSources(hood=LEFT_HALF, margin_px=0)).images
    mask = first.read_mask()
    assert mask is not None
    assert mask.shape == (120, 160)
    assert mask[60, :80].max() == 0
    assert mask[60, 82:].min() == 255


def test_a_folder_of_masks_by_name(recording: Recording, tmp_path: Path) -> None:
    """As COLMAP names them; the other picture has none."""
    folder = tmp_path / "masks"
    (folder / "run").mkdir(parents=True)
    mask = np.full((120, 160), 255, np.uint8)
    mask[60:] = 0
    cv2.imwrite(str(folder / "run" / "0.png.png"), mask)
    first, second = keypoints(mask_recording(recording, MaskSources(folder=folder)))
    assert first[:, 1].max() < 57
    assert second[:, 1].max() > 80
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"would be run/0.png.png"):
        mask_recording(recording, MaskSources(folder=tmp_path / "empty"))


def test_no_such_folder(recording: Recording, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        mask_recording(recording, MaskSources(folder=tmp_path / "none"))


def test_a_segmentation_network_keeps_features_off_people(
    recording: Recording, tmp_path: Path
) -> None:
    segmenter = open_segmenter(write_colour_segmenter(tmp_path))
    masked = mask_recording(recording, MaskSources(segmenter=segmenter))
    first, second = keypoints(masked)
    free = keypoints(recording)

    def on_person(points: np.ndarray) -> int:
        inside = (points > [100, 20]) & (points < [150, 110])
        return int(np.count_nonzero(inside.all(axis=1)))

    assert on_person(free[1]) > 30
    assert on_person(second) == 0
    assert on_person(first) > 30  # nobody there


def test_kept_features_are_those_of_the_mask(
    recording: Recording, tmp_path: Path
) -> None:
    """Intermediate results of another mask must not be taken for this one's."""
    work = tmp_path / "work"
    free = keypoints(recording, work)
    masked = mask_recording(recording, MaskSources(hood=LEFT_HALF))
    kept = keypoints(masked, work)
    wider = mask_recording(recording, MaskSources(hood=LEFT_HALF, margin_px=20))
    least = keypoints(wider, work)
    assert len(free[0]) > len(kept[0]) > len(least[0]) > 0
    assert least[0][:, 0].min() > 99


def test_masks_of_different_sizes_are_refused(
    recording: Recording, tmp_path: Path
) -> None:
    path = tmp_path / "own.png"
    cv2.imwrite(str(path), np.zeros((10, 10), np.uint8))
    images = tuple(replace(image, mask_path=path) for image in recording.images)
    own = replace(recording, images=images)
    masked = mask_recording(own, MaskSources(hood=LEFT_HALF))
    with pytest.raises(DatasetError, match="its masks are 10x10, 160x120 px"):
        masked.images[0].read_mask()
