"""From a posed recording to a site."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgeloc.clock import MonotonicClock
from edgeloc.tiles.reader import SiteManifest
from edgeloc.tiles.writer import write_site
from edgeloc_tools.datasets.recording import Recording, source_bytes
from edgeloc_tools.mapping.calibrate import HeldOut
from edgeloc_tools.mapping.curve import SHRINKS, CurvePoint, measure_curve
from edgeloc_tools.mapping.draft import Draft, Fitted
from edgeloc_tools.mapping.held_out import HeldOutRun
from edgeloc_tools.mapping.keyframe_features import FeatureHeldOut
from edgeloc_tools.mapping.options import BuildOptions
from edgeloc_tools.mapping.shrink import RankedMap
from edgeloc_tools.mapping.survey import Survey, survey_recording
from edgeloc_tools.mapping.value import join_trials
from edgeloc_tools.mapping.work import WorkFolder
from edgeloc_tools.progress import Progress, silent


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BuildResult:
    """What a build made.

    Parameters
    ----------
    manifest : SiteManifest
        Of the site written.
    facts : mapping of str to (str, int or float)
        Counts and figures for people.
    held_out : HeldOut
        How held-out mapping frames localized.
    curve : sequence of CurvePoint
        The same at several sizes, when it was asked for.
    counted_bytes : int
        Size of the site without networks and the codebooks that come with edgeloc.
    tried : HeldOutRun
        How held-out frames localized in the whole map.
    cost : mapping of str to (int or float)
        "build_seconds" and "training_bytes", the images and depth that went in. Not in
        the site: the same images make the same bytes.
    """

    manifest: SiteManifest
    facts: Mapping[str, str | int | float]
    held_out: HeldOut
    curve: Sequence[CurvePoint]
    counted_bytes: int
    tried: HeldOutRun
    cost: Mapping[str, int | float] = field(default_factory=dict)


def build_site(
    recording: Recording,
    *,
    out: Path,
    options: BuildOptions | None = None,
    work: Path | None = None,
    progress: Progress = silent,
) -> BuildResult:
    """Build a site from the posed images of a recording and write it.

    Parameters
    ----------
    recording : Recording
        Images without pose or camera are left out.
    out : Path
        Site folder.
    options : BuildOptions
        Options.
    work : Path or None
        Folder for intermediate results; an interrupted build with the same one goes on
        where it stopped.
    progress : callable
        Told about each step.

    Raises
    ------
    ConfigError
        When not even a small part of the map fits into the budget.
    DatasetError
        When the recording has fewer than two posed images.
    MapError
        When no landmarks come out of it.
    """
    options = options or BuildOptions()
    begin_ns = MonotonicClock().now_ns()
    folder = WorkFolder(work)
    survey = survey_recording(
        recording, options=options, folder=folder, progress=progress
    )
    result = build_from_survey(survey, out=out, options=options, progress=progress)
    folder.remove()
    cost = {
        "build_seconds": round((MonotonicClock().now_ns() - begin_ns) * 1e-9, 1),
        "training_bytes": source_bytes(survey.posed, depth=options.use_depth),
    }
    return replace(result, cost=cost)


def build_from_survey(
    survey: Survey,
    *,
    out: Path,
    options: BuildOptions,
    tried: HeldOutRun | None = None,
    progress: Progress = silent,
) -> BuildResult:
    """Make the map of what was measured in the images, and write its site.

    Parameters
    ----------
    survey : Survey
        What was measured.
    out : Path
        Site folder.
    options : BuildOptions
        Options; those of the survey are as they were there.
    tried : HeldOutRun, optional
        How held-out frames localized in the whole map, when another build told: then no
        frame is held out of this one.
    progress : callable
        Told about each step.

    Raises
    ------
    ConfigError, MapError
        As `build_site`.
    """
    draft = Draft(survey, options, progress)
    whole = draft.whole()
    everything = tried or HeldOutRun(frames=(), trials=())
    if options.keeps_landmarks and tried is None:
        everything = draft.localize_held_out(
            lambda fold: draft.whole_without(fold).landmark_map
        )
    fitted = Fitted(part=whole.landmark_map, estimate=None)
    run = everything
    ranked: RankedMap | None = None
    if options.is_cut:
        ranked = draft.ranked(whole, trials=join_trials(everything.trials))
    ranked_without = functools.cache(
        lambda fold: draft.ranked(
            draft.whole_without(fold), trials=everything.trials_without(fold)
        )
    )

    def run_within(budget_bytes: float) -> HeldOutRun:
        return draft.localize_held_out(
            lambda fold: ranked_without(fold).within(
                budget_bytes * draft.share_without(fold)
            )
        )

    if options.budget_bytes is not None and ranked is not None:
        fitted = draft.fit(
            ranked, options.budget_bytes, draft.calibrated(everything, fitted.part)
        )
        if fitted.estimate is not None and tried is None:
            run = run_within(fitted.estimate)
    held_out = draft.calibrated(run, fitted.part)
    by_features: FeatureHeldOut | None = None
    if options.keeps_features:
        by_features = draft.localize_by_features(held_out.coarse)
        if not options.keeps_landmarks:
            # What TRACK follows then are the points of LOCAL_SFM.
            held_out = replace(held_out, fix=by_features.calibration("local_sfm"))
    curve: list[CurvePoint] = []
    if options.curve and ranked is not None:
        curve = measure_curve(
            run_within, [share * ranked.total_bytes for share in SHRINKS]
        )
    facts = {
        **draft.facts(),
        **(
            {**fitted.part.facts(), **held_out.facts()}
            if options.keeps_landmarks
            else {}
        ),
        **({} if by_features is None else by_features.facts()),
        "interpolate": str(held_out.interpolate),
    }
    manifest = write_site(
        out,
        draft.contents(fitted.part, held_out, facts, by_features=by_features),
        max_tile_bytes=options.max_tile_bytes,
    )
    return BuildResult(
        manifest=manifest,
        facts=facts,
        held_out=held_out,
        curve=curve,
        counted_bytes=draft.counted_bytes(manifest),
        tried=everything,
    )
