"""The loop over a recording, with an estimator that answers by script."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from synthetic_results import make_row

from edgeloc.clock import ManualClock
from edgeloc.errors import DatasetError
from edgeloc.geometry.se3 import exp_so3
from edgeloc.localize.candidate import Candidate, FrameTrace
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.runtime.picture import deciding_candidate, matches_for_drawing
from edgeloc.tiles.layout import KeyframeTable, PoseArrays
from edgeloc.types import (
    CameraModel,
    Cause,
    Matches2D3D,
    PoseEstimate,
    PoseStatus,
    RetrievalResult,
    Rigid3,
    Rung,
)
from edgeloc_tools.datasets.recording import RecordedImage, Recording
from edgeloc_tools.evaluate import run

CAMERA = CameraModel(
    model="PINHOLE", width=32, height=24, params=(30.0, 30.0, 16.0, 12.0)
)


@dataclass
class Pixels:
    """An image of one grey value, which tells the scripted estimator what to do."""

    value: int
    shape: tuple = (24, 32, 3)

    def read(self):
        return np.full(self.shape, self.value, np.uint8)


def centred_at(x):
    return Rigid3(R=np.eye(3), t=[-x, 0.0, 0.0])


@dataclass
class ScriptedEstimator:
    """Takes 5 ms; answers `grey value` centimetres off, LOST for 255."""

    site: object
    camera: CameraModel
    options: EstimatorOptions
    clock: ManualClock
    family: object = None
    made: list = field(default_factory=list)

    def __post_init__(self):
        self.site.estimators.append(self)
        self.frames = []
        self.warm = False

    def warm_up(self):
        self.warm = True
        self.clock.advance_ns(10**9)

    def explain(self, frame, budget):
        self.frames.append((frame, budget))
        self.clock.advance_ns(5_000_000)
        offset = int(frame.image.flat[0])
        lost = offset == 255
        pose = None if lost else centred_at(frame.frame_id + offset / 100.0)
        matches = Matches2D3D(
            points2D=np.array([[16.0, 12.0], [10.0, 10.0]]),
            points3D=np.array([[float(frame.frame_id), 0.0, 2.0], [0.0, 0.0, -5.0]]),
            point3D_ids=np.arange(2),
            scores=np.ones(2, np.float32),
        )
        candidate = Candidate(
            status=PoseStatus.LOST if lost else PoseStatus.LOCALIZED,
            rung=Rung.LOST if lost else Rung.RELOCALIZE,
            cause=Cause.FEW_INLIERS if lost else Cause.NONE,
            cam_from_world=pose,
            matches=matches,
            inlier_mask=np.array([not lost, False]),
        )
        estimate = PoseEstimate(
            frame_id=frame.frame_id,
            timestamp_ns=frame.timestamp_ns,
            status=candidate.status,
            rung=candidate.rung,
            cause=candidate.cause,
            cam_from_world=pose,
            covariance=None if lost else 1e-4 * np.eye(6),
            num_matches=2,
            num_inliers=candidate.num_inliers,
            stage_ns={"features": 3_000_000},
            deadline_met=budget.remaining_ns >= 0,
        )
        retrieved = RetrievalResult(
            keyframe_ids=np.array([20, 10]), scores=np.array([0.9, 0.8], np.float32)
        )
        trace = FrameTrace(retrieved=retrieved, candidates={"RELOCALIZE": candidate})
        return estimate, trace


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A site with keyframes 10 at x = 0 and 20 at x = 100."""
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / "0.tile").write_bytes(b"x" * 700)
    (tmp_path / "tiles" / "1.tile").write_bytes(b"x" * 300)
    (tmp_path / "site.json").write_bytes(b"x" * 50)
    monkeypatch.setattr(run, "Estimator", ScriptedEstimator)
    return SimpleNamespace(
        path=tmp_path,
        estimators=[],
        manifest=SimpleNamespace(
            map_id="abc",
            name="two",
            metric=True,
            family=SimpleNamespace(name="orb"),
            gravity_in_world=None,
        ),
        keyframes=KeyframeTable(
            keyframe_ids=np.array([10, 20]),
            camera_ids=("cam", "cam"),
            poses=PoseArrays(
                R=np.stack([np.eye(3), np.eye(3)]),
                t=np.array([[0.0, 0, 0], [-100.0, 0, 0]]),
            ),
            global_codes=np.ones((2, 1), np.float32),
        ),
    )


def recording_of(values, **fields):
    images = [
        RecordedImage(
            name=f"{idx}.png",
            camera_id=f"cam{idx % 2}",
            source=Pixels(value),
            cam_from_world=centred_at(idx),
        )
        for idx, value in enumerate(values)
    ]
    cameras = {"cam0": CAMERA, "cam1": CAMERA}
    return Recording(name="script", images=images, cameras=cameras, **fields)


def evaluate(site, recording, **fields):
    return run.evaluate(
        site, recording, options=EstimatorOptions(), clock=ManualClock(), **fields
    )


def test_rows_hold_errors_times_and_sizes(site):
    result = evaluate(site, recording_of([1, 10, 255]), budget_ms=33.0)
    assert [row.position_error for row in result.rows] == pytest.approx(
        [0.01, 0.1, math.inf]
    )
    assert [row.status for row in result.rows] == ["LOCALIZED", "LOCALIZED", "LOST"]
    assert result.rows[2].cause == "FEW_INLIERS"
    assert result.rows[0].wall_ms == pytest.approx(5.0)  # without the warm-up
    assert result.rows[0].stage_ms == {"features": 3.0}
    assert result.rows[0].position_sigma == pytest.approx(0.01)
    assert result.rows[0].nees == pytest.approx(1.0)
    assert result.rows[1].tvec == pytest.approx((-1.1, 0.0, 0.0))
    assert result.rows[2].qvec is None
    assert result.site.bytes_by_part == {"tiles": 1000, "site.json": 50}
    assert result.site.total_bytes == 1050
    assert result.summary.num_deadline_missed == 0


def test_one_warm_estimator_per_camera_and_deadlines_of_the_budget(site):
    evaluate(site, recording_of([1, 1, 1]), budget_ms=2.5)
    assert [len(e.frames) for e in site.estimators] == [2, 1]
    assert all(e.warm for e in site.estimators)
    _, budget = site.estimators[0].frames[0]
    assert budget.deadline_ns - budget.start_ns == 2_500_000
    frame, _ = site.estimators[0].frames[1]
    assert (frame.frame_id, frame.source) == (2, "2.png")
    assert frame.timestamp_ns == 2 * run.FRAME_PERIOD_NS


def test_late_answers_are_counted(site):
    result = evaluate(site, recording_of([1, 1]), budget_ms=4.0)
    assert result.summary.num_deadline_missed == 2


def test_without_a_budget_the_deadline_is_an_hour_away(site):
    evaluate(site, recording_of([1]))
    _, budget = site.estimators[0].frames[0]
    assert budget.deadline_ns - budget.start_ns == 3600 * 10**9


def test_wrong_but_confident_frames_are_found(site):
    # 31 cm is ten times the claimed 3 sigma of 1 cm, and a bit.
    result = evaluate(site, recording_of([29, 31, 200]))
    assert [row.wrong for row in result.rows] == [
        (),
        ("sigma",),
        ("position", "sigma"),
    ]
    assert result.summary.wrong_but_confident == ("1.png", "2.png")


def test_retrieval_is_measured_against_the_true_place(site):
    result = evaluate(site, recording_of([1, 1, 1]))
    # Truths at x = 0, 1 and 2 with keyframe 10, of rank 2, at x = 0; near is 1 m.
    assert [row.first_near_rank for row in result.rows] == [2, 2, None]
    assert [row.has_near_keyframe for row in result.rows] == [True, True, False]


def test_images_without_ground_truth_are_left_out_and_counted(site):
    recording = recording_of([1, 1])
    extra = RecordedImage(name="x.png", camera_id="cam0", source=Pixels(1))
    result = evaluate(site, recording.subset([*recording.images, extra]))
    assert result.summary.num_frames == 2
    assert result.num_without_pose == 1


def test_limit_takes_the_first_images_and_progress_counts_them(site):
    said = []
    result = evaluate(
        site,
        recording_of([1, 2, 3]),
        limit=2,
        progress=lambda *step: said.append(step),
    )
    assert [row.name for row in result.rows] == ["0.png", "1.png"]
    assert said == [("localize", 1, 2), ("localize", 2, 2)]


def test_picture_of_another_size_than_its_camera_is_an_error(site):
    recording = recording_of([1])
    odd = RecordedImage(
        name="odd.png",
        camera_id="cam0",
        source=Pixels(1, shape=(12, 16, 3)),
        cam_from_world=Rigid3.identity(),
    )
    with pytest.raises(
        DatasetError, match=r"odd\.png: the picture is 16x12, its camera"
    ):
        evaluate(site, recording.subset([odd]))


def test_worst_frames_are_explained_and_a_typical_one_with_them(site):
    result = evaluate(site, recording_of([1, 200, 255, 2, 3]), explain_worst=2)
    assert [(e.row.name, e.title) for e in result.explanations] == [
        ("1.png", "worst 1"),
        ("2.png", "worst 2"),
        ("3.png", "typical, for comparison"),
    ]
    shown = result.explanations[2]
    # The landmark at (3, 0, 2) seen from x = 3.02: 30 px * -0.01 beside the centre.
    assert shown.projected[0] == pytest.approx([16.0 - 0.3, 12.0], abs=1e-4)
    assert np.isnan(shown.projected[1]).all()  # behind the camera
    assert shown.inlier_mask.tolist() == [True, False]
    assert shown.retrieved[0] == (20, pytest.approx(0.9), pytest.approx(97.0))
    assert not result.explanations[1].inlier_mask.any()


def test_nothing_is_kept_when_nothing_is_to_be_explained(site):
    assert evaluate(site, recording_of([1, 200])).explanations == ()


def test_worst_first():
    rows = [
        make_row("good", 0.01, 0.1),
        make_row("lost", math.inf, math.inf),
        make_row("wrong", 2.0, 1.0, wrong=("position",)),
        make_row("turned", 0.1, 9.0),
        make_row("far", 0.4, 0.1),
    ]
    chosen = run.chosen_frames(rows, 4, position_unit=0.25)
    assert [rows[idx].name for idx, _ in chosen] == [
        "wrong",
        "lost",
        "turned",
        "far",
        "good",
    ]
    assert run.chosen_frames(rows, 0, position_unit=0.25) == []


def test_a_coarse_answer_is_explained_by_the_matches_that_failed():
    matches = Matches2D3D(
        points2D=np.zeros((3, 2)),
        points3D=np.zeros((3, 3)),
        point3D_ids=np.arange(3),
        scores=np.ones(3, np.float32),
    )
    failed = Candidate(
        status=PoseStatus.LOST,
        rung=Rung.LOST,
        cause=Cause.FEW_INLIERS,
        matches=matches,
    )
    pose = Rigid3(R=exp_so3([0.1, 0, 0]), t=[0, 0, 0])
    coarse = Candidate(
        status=PoseStatus.COARSE,
        rung=Rung.INTERPOLATE,
        cause=Cause.NONE,
        cam_from_world=pose,
    )
    estimate = PoseEstimate(
        frame_id=0,
        timestamp_ns=0,
        status=PoseStatus.COARSE,
        rung=Rung.INTERPOLATE,
        cause=Cause.FEW_INLIERS,
        cam_from_world=pose,
        covariance=np.eye(6),
    )
    trace = FrameTrace(candidates={"INTERPOLATE": coarse, "RELOCALIZE": failed})
    assert deciding_candidate(estimate, trace) is failed
    assert deciding_candidate(estimate, FrameTrace()) is None
    points2D, projected, inliers = matches_for_drawing(failed, None, CAMERA)
    assert np.isnan(projected).all()
    assert inliers.tolist() == [False, False, False]
    assert len(points2D) == 3
    assert len(matches_for_drawing(None, pose, CAMERA)[0]) == 0
