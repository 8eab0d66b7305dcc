"""A synthetic city with a GNSS receiver: what it saves, and what it may not spoil.

Run as ``python -m edgeloc_tools.evaluate.city_priors --out DIR --km 10``. The same
frames are localized by the estimator without a prior, with positions of 5 m standard
deviation, and with positions that claim as much and are 100 m off.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeloc.cli.common import EXIT_OK, run_command
from edgeloc.clock import MonotonicClock
from edgeloc.localize.pose_prior import PosePrior, PositionPrior
from edgeloc.runtime.aids import Aids
from edgeloc.runtime.estimator import Estimator
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.tiles.reader import Site, open_site
from edgeloc.types import Frame, FrameBudget, PoseStatus
from edgeloc_tools.evaluate.city import (
    CACHE_BYTES,
    MAX_ERROR_M,
    CityQuery,
    make_city,
    prepare_queries,
)
from edgeloc_tools.evaluate.city_frames import KnownFrames
from edgeloc_tools.evaluate.city_streets import CAMERA
from edgeloc_tools.evaluate.metrics import pose_error
from edgeloc_tools.evaluate.text import markdown_table, number, percent
from edgeloc_tools.files import write_atomically

SIGMA_M = 5.0
WRONG_BY_M = 100.0
WANTED_SHARE = 0.01
_FAR_M = 5.0
"""A pose so far off was never seen in the picture."""
_HOUR_NS = 3600 * 10**9


class OnePrior:
    """Says the same of every frame, until it is told otherwise."""

    def __init__(self) -> None:
        self.prior = PosePrior()

    def at(self, timestamp_ns: int, /) -> PosePrior:  # noqa: ARG002
        """Return what it was told."""
        return self.prior

    def close(self) -> None:
        """Nothing feeds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorOutcome:
    """How frames were localized with one kind of prior.

    Parameters
    ----------
    name : str
        Of the kind.
    recall : float
        Share of frames within `MAX_ERROR_M`.
    looked_at, most_looked_at : float
        Share of keyframes that retrieval compared with a frame: the mean, and the most.
    num_frames, num_far, num_rejected : int
        Frames; those localized more than 5 m off; priors rejected by the evidence.
    """

    name: str
    recall: float
    looked_at: float
    most_looked_at: float
    num_frames: int
    num_far: int
    num_rejected: int


def localize_with(
    name: str,
    site: Site,
    files: Sequence[Path],
    *,
    sigma_m: float | None,
    wrong_by_m: float = 0.0,
    seed: int = 0,
) -> PriorOutcome:
    """Localize frames, each by itself, with a prior for each.

    Parameters
    ----------
    name : str
        Of the kind of prior.
    site : Site
        The city.
    files : sequence of Path
        Of `CityQuery.save`.
    sigma_m : float or None
        Claimed horizontal standard deviation, which is also that of the noise; twice as
        much in height. None = no prior.
    wrong_by_m : float
        What positions are off besides, in any direction on the ground.
    seed : int
        Of the noise.
    """
    rng = np.random.default_rng([seed, 3 << 20])
    known, priors, clock = KnownFrames(site), OnePrior(), MonotonicClock()
    estimator = Estimator(
        site=site,
        camera=CAMERA,
        options=EstimatorOptions(
            method="structure", cold=True, cache_bytes=CACHE_BYTES
        ),
        clock=clock,
        family=known,
        retrieval=known,
        aids=Aids(priors=priors),
    )
    picture = np.zeros((CAMERA.height, CAMERA.width), np.uint8)
    errors_m, compared = [], []
    for frame_id, file in enumerate(files):
        asked = CityQuery.load(file)
        known.asked = asked.query
        if sigma_m is not None:
            sigmas = sigma_m * np.array([1.0, 1.0, 2.0])
            angle = rng.uniform(0.0, 2.0 * np.pi)
            off = wrong_by_m * np.array([np.cos(angle), np.sin(angle), 0.0])
            center = (
                asked.cam_from_world.origin_in_a + off + rng.normal(size=3) * sigmas
            )
            position = PositionPrior(center=center, covariance=np.diag(sigmas**2))
            priors.prior = PosePrior(position=position)
        now_ns = clock.now_ns()
        estimate, trace = estimator.explain(
            Frame(frame_id=frame_id, camera_id="", timestamp_ns=now_ns, image=picture),
            FrameBudget(start_ns=now_ns, deadline_ns=now_ns + _HOUR_NS, clock=clock),
        )
        localized = estimate.status is PoseStatus.LOCALIZED
        pose = estimate.cam_from_world if localized else None
        errors_m.append(pose_error(pose, asked.cam_from_world)[0])
        compared.append(trace.num_compared / len(site.keyframes))
    off_m = np.array(errors_m)
    return PriorOutcome(
        name=name,
        recall=float(np.mean(off_m <= MAX_ERROR_M)),
        looked_at=float(np.mean(compared)),
        most_looked_at=float(np.max(compared)),
        num_frames=len(off_m),
        num_far=int(np.count_nonzero(np.isfinite(off_m) & (off_m > _FAR_M))),
        num_rejected=estimator.trust.num_rejected_priors,
    )


def compare(site: Site, files: Sequence[Path], *, seed: int = 0) -> list[PriorOutcome]:
    """Localize frames without a prior, with a good one, and with a wrong one."""
    return [
        localize_with("none", site, files, sigma_m=None, seed=seed),
        localize_with(f"{SIGMA_M:g} m", site, files, sigma_m=SIGMA_M, seed=seed),
        localize_with(
            f"{SIGMA_M:g} m claimed, {WRONG_BY_M:g} m off",
            site,
            files,
            sigma_m=SIGMA_M,
            wrong_by_m=WRONG_BY_M,
            seed=seed,
        ),
    ]


def report(outcomes: Sequence[PriorOutcome]) -> str:
    """Return the table of the three kinds of prior."""
    header = [
        "prior", "keyframes looked at, mean / most", f"within {MAX_ERROR_M} m",
        f"localized more than {_FAR_M:g} m off", "priors rejected by the picture",
    ]  # fmt: skip
    rows = [
        [
            one.name,
            f"{number(100 * one.looked_at)} % / {number(100 * one.most_looked_at)} %",
            percent(one.recall),
            f"{one.num_far} of {one.num_frames}",
            f"{one.num_rejected} of {one.num_frames}",
        ]
        for one in outcomes
    ]
    return markdown_table(header, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the city, localize in it, print the table."""
    parser = argparse.ArgumentParser(prog="city_priors", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the site")
    parser.add_argument("--km", type=float, default=10.0, help="streets, km")
    parser.add_argument("--landmarks", type=int, default=200, help="per keyframe")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    def body() -> int:
        path = args.out / f"city-{args.km:g}km"
        if not (path / "site.json").is_file():
            make_city(
                path,
                km=args.km,
                landmarks_per_keyframe=args.landmarks,
                seed=args.seed,
            )
        files = prepare_queries(
            path,
            args.out / f"city-{args.km:g}km-queries",
            count=args.queries,
            seed=args.seed,
        )
        text = report(compare(open_site(path), files, seed=args.seed))
        write_atomically(args.out / f"priors-{args.km:g}km.md", f"{text}\n".encode())
        sys.stdout.write(f"{text}\n")
        return EXIT_OK

    return run_command("city_priors", body, debug=True)


if __name__ == "__main__":
    raise SystemExit(main())
