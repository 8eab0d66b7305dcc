"""Structure from motion: poses and intrinsics for plain photos or a video.

`run_sfm` works in `OUT/work` in steps (images, features, matches, model); each leaves a
marker with what it was made from, so that a second run goes on where the first one
stopped. Scale, gravity and alignment come last and are always redone, in milliseconds.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeloc.clock import Clock, MonotonicClock
from edgeloc.errors import ConfigError, DatasetError, MapError
from edgeloc.types import CameraModel
from edgeloc_tools.datasets.recording import ImageFile, Recording
from edgeloc_tools.datasets.sfm_facts import FORMAT_VERSION
from edgeloc_tools.mapping import sfm_colmap, sfm_diagnose, sfm_work, sfm_world
from edgeloc_tools.mapping.sfm_colmap import CameraGroup
from edgeloc_tools.mapping.sfm_plan import SfmOptions, camera_groups, image_pairs
from edgeloc_tools.mapping.sfm_world import Placement

MIN_IMAGES = 3
WARN_BELOW_REGISTERED = 0.8
_LOG = logging.getLogger(__name__)
_FEATURE_CHUNK = 4
"""Images between two lines of progress, at least; more with more threads."""
_PAIR_CHUNK = 256
_REPORT_EVERY_NS = 2_000_000_000


Progress = Callable[[str], None]


class _Reporter:
    """Says what happens, with counts and seconds, not more often than is useful."""

    def __init__(self, progress: Progress, clock: Clock) -> None:
        self._progress = progress
        self._clock = clock
        self._begun_ns = clock.now_ns()
        self._said_ns = self._begun_ns
        self.warnings: list[str] = []

    def say(self, text: str) -> None:
        self._progress(text)
        self._said_ns = self._clock.now_ns()

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.say(f"warning: {text}")

    def start(self) -> None:
        self._begun_ns = self._said_ns = self._clock.now_ns()

    def elapsed_s(self) -> float:
        return (self._clock.now_ns() - self._begun_ns) * 1e-9

    def count(self, step: str, done: str) -> None:
        if self._clock.now_ns() - self._said_ns >= _REPORT_EVERY_NS:
            self.say(f"{step}: {done}, {self.elapsed_s():.0f} s")

    def done(self, step: str, result: str) -> None:
        self.say(f"{step}: {result}, {self.elapsed_s():.1f} s")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    recording: Recording
    options: SfmOptions
    work: sfm_work.Workspace
    report: _Reporter

    @property
    def names(self) -> list[str]:
        return [image.name for image in self.recording.images]


def _step(
    run: _Run,
    name: str,
    inputs: Mapping[str, Any],
    make: Callable[[bool], Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the facts of a step, made now by `make(go_on)` unless finished before."""
    facts = run.work.finished(name, inputs)
    if facts is not None:
        run.report.say(f"{name}: finished before")
        return facts
    go_on, changed = run.work.begin(name, inputs)
    if changed:
        run.report.say(f"{name}: made again, since {'; '.join(changed)}")
    elif go_on:
        run.report.say(f"{name}: going on after an interruption")
    run.report.start()
    made = {**make(go_on), f"{name}_seconds": round(run.report.elapsed_s(), 2)}
    run.work.finish(name, inputs, made)
    return made


def _place_images(run: _Run) -> dict[str, Any]:
    sizes: dict[str, list[int]] = {}
    focals: dict[str, float | None] = {}
    turned: dict[str, int] = {}
    num_masks = 0
    if run.work.masks.exists():
        shutil.rmtree(run.work.masks)
    sfm_work.remove_strangers(run.work.images, run.names)
    for image in run.recording.images:
        width, height = sfm_work.place_image(
            image, run.work.images, copy=run.options.copy_images
        )
        sizes[image.name] = [width, height]
        num_masks += sfm_work.place_mask(image, run.work.masks)
        focals[image.name] = None
        if isinstance(image.source, ImageFile):
            focals[image.name] = sfm_colmap.exif_focal_factor(image.source.path)
            orientation = sfm_work.exif_orientation(image.source.path)
            if orientation != 1:
                turned[image.name] = orientation
        run.report.count("images", f"{len(sizes)}/{len(run.names)} placed")
    masks = f", {num_masks} masks" if num_masks else ""
    run.report.done("images", f"{len(sizes)} images{masks}")
    return {"sizes": sizes, "exif_focal": focals, "exif_orientation": turned}


def _extract(
    run: _Run, groups: Sequence[CameraGroup], *, go_on: bool
) -> dict[str, Any]:
    database = run.work.database
    if not go_on:
        for suffix in ("", "-wal", "-shm", "-journal"):
            database.with_name(database.name + suffix).unlink(missing_ok=True)
    done = set(sfm_colmap.keypoint_counts(database))
    threads = run.options.num_threads
    chunk_size = max(
        _FEATURE_CHUNK, 2 * (threads if threads > 0 else os.cpu_count() or 1)
    )
    masked = {n for n in run.names if sfm_work.mask_file(run.work.masks, n).is_file()}
    for group in groups:
        # COLMAP refuses images without a mask as soon as it is given a mask folder.
        for masks, members in (
            (None, [n for n in group.names if n not in masked]),
            (run.work.masks, [n for n in group.names if n in masked]),
        ):
            pending = [name for name in members if name not in done]
            for start in range(0, len(pending), chunk_size):
                chunk = pending[start : start + chunk_size]
                sfm_colmap.extract(
                    database,
                    run.work.images,
                    group=group,
                    names=chunk,
                    max_keypoints=run.options.max_keypoints,
                    max_side_px=run.options.max_side_px,
                    masks=masks,
                    num_threads=run.options.num_threads,
                )
                done.update(chunk)
                if len(done) < len(run.names):
                    run.report.count("features", f"{len(done)}/{len(run.names)} images")
    counts = sfm_colmap.keypoint_counts(database)
    if unread := [n for n in run.names if n not in counts]:
        run.report.warn(
            f"COLMAP could not use {len(unread)} images, for example {unread[0]}: save "
            "them again as 8-bit JPEG or PNG"
        )
    median = float(np.median([counts.get(n, 0) for n in run.names]))
    run.report.done(
        "features", f"{len(counts)} images, {median:.0f} features each (median)"
    )
    return {"median_features": median}


def _match(run: _Run, *, go_on: bool) -> dict[str, Any]:
    options = run.options
    if not go_on:
        sfm_colmap.clear_matches(run.work.database)
    how, pairs = image_pairs(
        [n for n in run.names if n in sfm_colmap.keypoint_counts(run.work.database)],
        matching=options.matching,
        overlap=options.overlap,
        exhaustive_up_to=options.exhaustive_up_to,
    )
    if options.matching == "auto" and how == "sequential":
        run.report.say(
            f"matches: more than {options.exhaustive_up_to} images are taken for a "
            "sequence; use --matching exhaustive for unordered photos"
        )
    tried = {
        frozenset((p.name_a, p.name_b))
        for p in sfm_colmap.pair_stats(run.work.database)
    }
    pending = [p for p in pairs if frozenset(p) not in tried]
    listing = run.work.folder / "pairs.txt"
    for start in range(0, len(pending), _PAIR_CHUNK):
        chunk = pending[start : start + _PAIR_CHUNK]
        listing.write_text("".join(f"{a} {b}\n" for a, b in chunk), encoding="utf-8")
        sfm_colmap.match_pairs(
            run.work.database,
            listing,
            num_threads=options.num_threads,
            random_seed=options.random_seed,
        )
        left = len(pending) - start - len(chunk)
        if left:
            run.report.count("matches", f"{len(pairs) - left}/{len(pairs)} pairs")
    listing.unlink(missing_ok=True)
    verified = sum(
        p.num_inliers >= sfm_diagnose.MIN_PAIR_INLIERS
        for p in sfm_colmap.pair_stats(run.work.database)
    )
    run.report.done("matches", f"{verified} of {len(pairs)} pairs match ({how})")
    return {"matching": how, "num_pairs": len(pairs), "num_verified_pairs": verified}


def _map(run: _Run, groups: Sequence[CameraGroup]) -> dict[str, Any]:
    options, work = run.options, run.work
    by_name = sfm_colmap.camera_ids(work.database)
    constant = sorted(
        {
            by_name[name]
            for g in groups
            if g.camera is not None and not options.refine_intrinsics
            for name in g.names
            if name in by_name
        }
    )
    refine = len(constant) < len(set(by_name.values()))
    registered = 0

    def on_image() -> None:
        nonlocal registered
        registered += 1
        run.report.count("model", f"about {registered + 1} images registered")

    scratch = work.folder / "models"
    shutil.rmtree(scratch, ignore_errors=True)
    models: list[Any] = []
    if any(
        p.num_inliers >= sfm_diagnose.MIN_PAIR_INLIERS
        for p in sfm_colmap.pair_stats(work.database)
    ):
        models = sfm_colmap.map_images(
            work.database,
            work.images,
            out=scratch,
            method=options.mapper,
            constant_camera_ids=constant,
            refine=refine,
            num_threads=options.num_threads,
            random_seed=options.random_seed,
            on_image=on_image,
        )
    shutil.rmtree(scratch, ignore_errors=True)
    if not models or models[0].num_reg_images() < MIN_IMAGES:
        _fail(run)
    best = models[0]
    sfm_colmap.adjust_bundle(
        best,
        constant_camera_ids=constant,
        refine=refine,
        num_threads=options.num_threads,
    )
    fresh = work.folder / "model.new"
    shutil.rmtree(fresh, ignore_errors=True)
    sfm_colmap.write_model(best, fresh)
    sfm_work.replace_folder(fresh, work.model)
    facts = sfm_colmap.model_facts(best)
    run.report.done(
        "model",
        f"{facts['num_registered']} of {len(run.names)} images, "
        f"{facts['num_points']} points, {facts['mean_reproj_error_px']:.2f} px",
    )
    return {"num_images_in_other_models": [m.num_reg_images() for m in models[1:]]}


def _fail(run: _Run) -> None:
    """Write what is known into `sfm.json` and raise."""
    work = run.work
    pairs = sfm_colmap.pair_stats(work.database)
    states = sfm_diagnose.image_states(
        run.names, sfm_colmap.keypoint_counts(work.database), pairs
    )
    why = sfm_diagnose.explain_failure(states, pairs, work.database, work.images)
    model = work.out / "sparse" / "0"
    if model.exists():
        previous = work.out / "sparse" / "previous"
        shutil.rmtree(previous, ignore_errors=True)
        model.replace(previous)
    sfm_work.write_json(
        work.out / "sfm.json",
        {
            "format_version": FORMAT_VERSION,
            "status": "failed",
            "reason": why,
            "num_images": len(states),
            "num_verified_pairs": sum(
                p.num_inliers >= sfm_diagnose.MIN_PAIR_INLIERS for p in pairs
            ),
            "images": [asdict(s) for s in states],
        },
    )
    raise MapError(f"no model: {why} (details in {work.out / 'sfm.json'})")


def _parallax_deg(model: Any) -> float:  # noqa: ANN401 - pycolmap has no stubs
    poses = sfm_colmap.poses(model)
    centers = {
        i: poses[str(model.images[i].name)].origin_in_a for i in model.reg_image_ids()
    }
    angles = sfm_colmap.max_ray_angles_rad(model, centers)
    return math.degrees(float(np.median(angles))) if len(angles) else 0.0


def _lost_images(run: _Run, registered: Mapping[str, Any]) -> list[dict[str, Any]]:
    pairs = sfm_colmap.pair_stats(run.work.database)
    states = sfm_diagnose.image_states(
        run.names, sfm_colmap.keypoint_counts(run.work.database), pairs
    )
    return [
        {**asdict(s), "reason": sfm_diagnose.explain_image(s, run.work.images)}
        for s in states
        if s.name not in registered
    ]


def _summary(
    run: _Run,
    facts: Mapping[str, Any],
    placement: Placement,
    lost: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    geo = placement.geo_reference
    options = {
        k: v
        for k, v in asdict(run.options).items()
        if k not in {"intrinsics", "distances", "gravity", "resume"}
    }
    return {
        "format_version": FORMAT_VERSION,
        "status": "ok",
        "name": run.recording.name,
        "model": "sparse/0",
        "num_images": len(run.names),
        **facts,
        "metric": placement.metric,
        "scale_source": placement.scale_source,
        "gravity_source": placement.gravity_source,
        "gravity_in_world": (
            None
            if placement.gravity_in_world is None
            else list(placement.gravity_in_world)
        ),
        "geo_reference": None if geo is None else asdict(geo),
        "world_frame": placement.world_frame,
        "alignment": dict(placement.details),
        "not_registered": list(lost),
        "warnings": list(run.report.warnings),
        "pycolmap": sfm_colmap.version(),
        "options": options,
    }


def _check(recording: Recording, options: SfmOptions) -> None:
    names = {image.name for image in recording.images}
    if len(names) < MIN_IMAGES:
        raise DatasetError(
            f"{recording.name}: {len(names)} images, structure from motion needs at "
            f"least {MIN_IMAGES}"
        )
    asked = [(n, "--distance") for d in options.distances for n in (d.name_a, d.name_b)]
    if options.gravity is not None and options.gravity.image is not None:
        asked.append((options.gravity.image, "--gravity"))
    for name, option in asked:
        if name not in names:
            raise ConfigError(f"{option}: there is no image {name!r} in the recording")


def _camera_inputs(camera: CameraModel | None) -> Any:  # noqa: ANN401 - JSON
    return None if camera is None else asdict(camera)


def _make_model(run: _Run) -> dict[str, Any]:
    """Do all steps that are not finished and return their facts."""
    options = run.options
    base = sfm_work.image_inputs(run.recording, copy=options.copy_images)
    placed = _step(run, "images", base, lambda _: _place_images(run))
    groups = camera_groups(
        run.recording, options, placed["sizes"], placed["exif_focal"]
    )
    features = {
        **base,
        "pycolmap": sfm_colmap.version(),
        "max_keypoints": options.max_keypoints,
        "max_side_px": options.max_side_px,
        "camera_model": options.camera_model,
        "cameras": options.cameras,
        "intrinsics": {g.names[0]: _camera_inputs(g.camera) for g in groups},
    }
    made = _step(
        run, "features", features, lambda go_on: _extract(run, groups, go_on=go_on)
    )
    matches = {
        **features,
        "matching": options.matching,
        "overlap": options.overlap,
        "exhaustive_up_to": options.exhaustive_up_to,
        "random_seed": options.random_seed,
    }
    matched = _step(run, "matches", matches, lambda go_on: _match(run, go_on=go_on))
    model = {
        **matches,
        "mapper": options.mapper,
        "refine_intrinsics": options.refine_intrinsics,
    }
    mapped = _step(run, "model", model, lambda _: _map(run, groups))
    return {
        "images_seconds": placed["images_seconds"],
        **made,
        **matched,
        **mapped,
        "exif_orientation": placed["exif_orientation"],
    }


def run_sfm(
    recording: Recording,
    out: Path,
    *,
    options: SfmOptions | None = None,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> Recording:
    """Return the recording with poses and intrinsics; also written to `out`.

    Writes `out/sparse/0` (COLMAP, binary and text), `out/images` (links, or decoded
    frames), `out/sfm.json` (facts) and `out/work`, which may be deleted.

    Parameters
    ----------
    recording : Recording
        At least 3 images; cameras that are in it are kept, others are estimated.
    out : Path
        New folder, or that of an earlier run, which is continued.
    options : SfmOptions, optional
        How.
    progress : callable, optional
        Gets a line for each step; to the log by default.
    clock : Clock, optional
        For the times in these lines.

    Returns
    -------
    Recording
        Only the images that have a pose now, with their cameras.

    Raises
    ------
    ConfigError
        When options make no sense for this recording or pycolmap is missing.
    DatasetError
        When an image cannot be used.
    MapError
        When there is no model; `out/sfm.json` says more.
    """
    options = options or SfmOptions()
    _check(recording, options)
    sfm_colmap.load_pycolmap()
    report = _Reporter(progress or _LOG.info, clock or MonotonicClock())
    work = sfm_work.Workspace(out)
    if not options.resume:
        work.forget()
    run = _Run(recording=recording, options=options, work=work, report=report)
    facts = _make_model(run)

    model = sfm_colmap.read_model(work.model)
    facts["median_parallax_deg"] = _parallax_deg(model)
    registered = sfm_colmap.poses(model)
    turned = facts.pop("exif_orientation")
    placement = sfm_world.place(
        registered,
        recording,
        align_to=options.align_to,
        distances=options.distances,
        gravity=options.gravity,
        estimate_gravity=options.estimate_gravity,
        view_from_cam={k: sfm_work.view_from_camera(v) for k, v in turned.items()},
        rng=np.random.default_rng(options.random_seed),
    )
    sfm_colmap.transform(model, placement.world_from_model)
    lost = _lost_images(run, registered)
    for text in placement.warnings:
        report.warn(text)
    if len(registered) < WARN_BELOW_REGISTERED * len(recording.images):
        report.warn(
            f"only {len(registered)} of {len(recording.images)} images are in the "
            f"model, for example {lost[0]['name']} is not: {lost[0]['reason']} "
            "(all in sfm.json)"
        )
    if facts["median_parallax_deg"] < math.degrees(sfm_diagnose.SMALL_PARALLAX_RAD):
        report.warn(
            f"the median parallax is {facts['median_parallax_deg']:.1f}°: depths are "
            "uncertain; move the camera sideways while recording"
        )

    fresh = out / "work" / "sparse.new"
    shutil.rmtree(fresh, ignore_errors=True)
    sfm_colmap.write_model(model, fresh)
    sfm_work.replace_folder(fresh, out / "sparse" / "0")
    summary = _summary(run, {**facts, **sfm_colmap.model_facts(model)}, placement, lost)
    sfm_work.write_json(out / "sfm.json", summary)

    poses = sfm_colmap.poses(model)
    camera_of, cameras = sfm_colmap.cameras(model)
    images = [
        replace(
            image,
            camera_id=camera_of[image.name],
            cam_from_world=poses[image.name],
        )
        for image in recording.images
        if image.name in poses
    ]
    return replace(
        recording,
        images=tuple(images),
        cameras=cameras,
        metric=placement.metric,
        gravity_in_world=placement.gravity_in_world,
        geo_reference=(
            None if placement.geo_reference is None else asdict(placement.geo_reference)
        ),
        pose_source=f"structure from motion (COLMAP {sfm_colmap.version()})",
    )


def read_summary(out: Path) -> dict[str, Any]:
    """Return `sfm.json` of an output folder.

    Raises
    ------
    DatasetError
        When it is missing or not one.
    """
    path = out / "sfm.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise DatasetError(f"{path}: cannot be read ({exc})") from exc
    if not isinstance(value, dict) or value.get("format_version") != FORMAT_VERSION:
        raise DatasetError(
            f"{path}: is not an sfm.json of format_version {FORMAT_VERSION}"
        )
    return value
