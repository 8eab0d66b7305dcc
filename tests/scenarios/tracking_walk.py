"""A walk through the small mapped room at video rate, answered frame by frame."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from site_fixture import (
    CAMERA,
    Beside,
    film_room,
    mapping_path,
    room,
    strange_images,
)

from edgeloc.clock import ManualClock
from edgeloc.runtime.estimator import Estimator
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.types import Frame, FrameBudget, PoseEstimate, PoseStatus, Rigid3

RATE_HZ = 20.0
STEP_NS = round(1e9 / RATE_HZ)
NUM_FRAMES = 16
MS = 1_000_000


@functools.cache
def walk_images():
    """0.8 s beside the mapping path."""
    recording = film_room(
        room(),
        Beside(mapping_path()),
        num_frames=NUM_FRAMES,
        rate_hz=RATE_HZ,
        start_s=1.0,
        seed=21,
    )
    return [(image.source.read(), image.cam_from_world) for image in recording.images]


@functools.cache
def strange_pictures():
    return [image.source.read() for image in strange_images()]


@dataclass
class Answer:
    """What was said of one frame, and how wrong it is."""

    estimate: PoseEstimate
    trace: object
    truth: Rigid3 | None
    offers: list

    @property
    def status(self):
        return self.estimate.status

    @property
    def rung(self):
        return self.estimate.rung

    @property
    def cause(self):
        return self.estimate.cause

    @property
    def position_error(self):
        pose = self.estimate.cam_from_world
        return float(np.linalg.norm(pose.origin_in_a - self.truth.origin_in_a))

    @property
    def is_wrong(self):
        """LOCALIZED, and beyond what it claims and what is tolerable."""
        if self.status is not PoseStatus.LOCALIZED:
            return False
        sigma = np.sqrt(np.trace(self.estimate.covariance[3:, 3:]))
        return self.position_error > 0.1 and self.position_error > 5 * sigma


class Walker:
    """Feeds frames to one estimator, on a clock that stands still unless told."""

    def __init__(self, built, *, clock=None, **options):
        self.clock = clock or ManualClock()
        self.estimator = Estimator(
            site=built.site,
            camera=CAMERA,
            options=EstimatorOptions(**options),
            clock=self.clock,
        )
        self.count = 0

    def step(self, image, truth=None, *, budget_ms=10_000, timestamp_ns=None):
        if timestamp_ns is None:
            timestamp_ns = 10**9 + self.count * STEP_NS
        now_ns = self.clock.now_ns()
        frame = Frame(
            frame_id=self.count, camera_id="c", timestamp_ns=timestamp_ns, image=image
        )
        self.count += 1
        budget = FrameBudget(
            start_ns=now_ns, deadline_ns=now_ns + budget_ms * MS, clock=self.clock
        )
        offers = []
        estimate, trace = self.estimator.explain(frame, budget, offer=offers.append)
        return Answer(estimate, trace, truth, offers)

    def walk(self, start, stop, **kwargs):
        return [self.step(*walk_images()[k], **kwargs) for k in range(start, stop)]
