"""From a site and its mapping recording to a site that has a scene-coordinate head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from edgeloc.errors import ConfigError, ModelError
from edgeloc.geometry.se3 import log_se3
from edgeloc.inference.backend import BackendOptions
from edgeloc.inference.head import open_head
from edgeloc.inference.manifest import HeadSpec, InputSpec, ModelManifest
from edgeloc.localize.candidate import Candidate, Query
from edgeloc.localize.fix import FixCalibration
from edgeloc.localize.scene_coords import (
    SceneCoordsOptions,
    ScenePoints,
    calibration_arrays,
    pose_from_scene_points,
    scene_points,
)
from edgeloc.runtime.site_models import open_site_family
from edgeloc.tiles.add_models import add_models
from edgeloc.tiles.reader import Site, open_site
from edgeloc.types import Features, Float32Array, FloatArray, PoseStatus
from edgeloc_tools.datasets.recording import Recording
from edgeloc_tools.learn.card import write_card
from edgeloc_tools.learn.export import LICENSE
from edgeloc_tools.learn.head_models import HeadFiles, site_model, write_head
from edgeloc_tools.learn.pose_landmarks import place_by_poses
from edgeloc_tools.learn.scene_head import COMPARE, FLOAT_LAYERS, SceneHead, scene_graph
from edgeloc_tools.learn.site_views import SiteView, SiteViews, draw_views
from edgeloc_tools.learn.train_loop import LOG
from edgeloc_tools.learn.train_scene_coords import (
    SceneRecipe,
    SceneSamples,
    begin_head,
    collect_samples,
    train_scene_coords,
)
from edgeloc_tools.mapping.fix_calibration import fit_fix_calibration, held_out_runs
from edgeloc_tools.mapping.work import WorkFolder
from edgeloc_tools.progress import Progress, silent

ROLE, NAME = "scene_coords", "scene-coords"

_MAX_HELD_OUT = 40
_MAX_EXAMPLES = 4096
_MAX_WORSE, _MAX_WORSE_M = 1.25, 1e-3
"""How much less accurate a variant may be than the truth."""

Place = Callable[[Float32Array], ScenePoints]
"""From descriptors to positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutErrors:
    """How frames were localized.

    Parameters
    ----------
    num_frames : int
        Frames asked.
    positions : tuple of float
        Errors of those that were localized, m.
    """

    num_frames: int
    positions: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median error, m; inf when less than half were localized."""
        lost = [float("inf")] * (self.num_frames - len(self.positions))
        return float(np.median([*self.positions, *lost])) if self.num_frames else 0.0


def train_scene_head(
    site_path: Path,
    recording: Recording,
    *,
    out: Path,
    recipe: SceneRecipe,
    progress: Progress = silent,
) -> dict[str, object]:
    """Train a scene-coordinate head for a site and make it part of the site.

    Parameters
    ----------
    site_path : Path
        The site; it becomes its next version.
    recording : Recording
        What it was built from.
    out : Path
        Folder of the run: checkpoint, log, card, the head in all precisions.
    recipe : SceneRecipe
        How.
    progress : callable
        Told about each step.

    Returns
    -------
    dict
        Facts for people.

    Raises
    ------
    ConfigError
        When the recording is not that of the site, or `out` holds another run.
    MapError, ModelError
        When the site or its feature network cannot be used.
    """
    site = open_site(site_path)
    family = open_site_family(site, options=BackendOptions(backend="ort-cpu"))
    work = WorkFolder(out / "views")
    views = draw_views(
        recording,
        site,
        family,
        options=recipe.views,
        supervision=recipe.supervision,
        seed=recipe.seed,
        work=work,
        progress=progress,
    )
    by_reprojection = recipe.supervision == "poses" or (
        recipe.supervision == "auto" and not views.has_places
    )
    if by_reprojection:
        views = place_by_poses(views, work=work, progress=progress)
    elif not views.has_places:
        raise ConfigError(
            f"{recording.name}: supervision = {recipe.supervision!r} places none of "
            "its keypoints; take 'auto' or 'poses'"
        )
    samples = collect_samples(views, by_reprojection=by_reprojection)
    head = train_scene_coords(samples, out=out, recipe=recipe, progress=progress)
    calibration, held_out = _calibrate(head, samples, views, recipe=recipe)
    files = _write(head, samples, site, out=out)
    asked = [view for view in views.views if view.number == 0]
    asked = asked[:: max(1, len(asked) // _MAX_HELD_OUT)]
    kept, errors = _first_good(files, views, asked)
    manifest = add_models(
        site_path,
        {ROLE: site_model(ROLE, kept)},
        rungs=("SCENE_COORDS",),
        arrays=calibration_arrays(calibration),
    )
    write_card(
        out,
        name=NAME,
        role=ROLE,
        recipe=asdict(recipe),
        data=[
            f"{len(views.images)} images of {recording.name}",
            f"{len(samples.rows)} keypoints in {len(views.views)} views, by their "
            + ("poses alone" if by_reprojection else "positions"),
        ],
        log=out / LOG,
    )
    return {
        "site": str(site_path),
        "map_id": manifest.map_id,
        "model": kept.stem,
        "bytes": manifest.models[ROLE].network.num_bytes,
        "prototypes": head.compare.out_channels,
        "keypoints": len(samples.rows),
        "loss": "reprojection" if by_reprojection else "position",
        "held_out_frames": held_out.num_frames,
        "held_out_localized": len(held_out.positions),
        "held_out_median_error": _rounded(held_out.median),
        "seen_median_error": {name: _rounded(e.median) for name, e in errors.items()},
        "covariance_scale": round(calibration.scale, 3),
    }


def _rounded(value: float) -> float:
    return round(value, 5) if np.isfinite(value) else -1.0


def _calibrate(
    trained: SceneHead,
    samples: SceneSamples,
    views: SiteViews,
    *,
    recipe: SceneRecipe,
) -> tuple[FixCalibration, HeldOutErrors]:
    """Return what makes covariances of the trained head honest.

    Errors are those of heads that have not seen the frames: heads are good before they
    are trained, so that one is begun without every run of frames that is held out.
    Those heads claim wider covariances than the trained one will, and the trained one
    claims narrower ones for these frames, which it knows, than it will for others: the
    scale is the geometric mean of what the two need.
    """
    raw: list[tuple[FloatArray, FloatArray, FloatArray]] = []
    errors = []
    num_asked = 0
    for run, asked in held_out_runs(len(views.images), max_frames=_MAX_HELD_OUT):
        use = ~np.isin(samples.image_idx, run)
        head = begin_head(
            samples, max_bytes=recipe.max_bytes, seed=recipe.seed, use=use
        )
        for view in views.views:
            if view.number or view.image_idx not in asked:
                continue
            num_asked += 1
            fix = localize_view(view, views, torch_place(head, samples))
            if fix.cam_from_world is None:
                continue
            errors.append(_position_error(view, views, fix))
            claim = localize_view(view, views, torch_place(trained, samples))
            if claim.covariance is not None and fix.covariance is not None:
                xi = log_se3(views.pose(view) @ fix.cam_from_world.inverse())
                raw.append((xi, fix.covariance, claim.covariance))
    wide, narrow = (
        fit_fix_calibration([row[0] for row in raw], [row[i] for row in raw])
        for i in (1, 2)
    )
    calibration = replace(wide, scale=math.sqrt(wide.scale * narrow.scale))
    return calibration, HeldOutErrors(num_frames=num_asked, positions=tuple(errors))


def torch_place(head: SceneHead, samples: SceneSamples) -> Place:
    """Return a head as a function, before it is exported."""

    def place(rows: Float32Array) -> ScenePoints:
        with torch.no_grad():
            points, log_sigma = head(torch.from_numpy(rows))
        return ScenePoints(
            points3D=points.numpy().astype(np.float64) + samples.origin,
            sigmas=log_sigma.exp().numpy(),
        )

    return place


def localize_view(view: SiteView, views: SiteViews, place: Place) -> Candidate:
    """Return the pose of a mapping image, from a head, its covariance not calibrated.

    Parameters
    ----------
    view : SiteView
        The image itself.
    views : SiteViews
        All of them.
    place : callable
        The head.
    """
    query = Query(
        camera=views.camera(view),
        features=Features(
            keypoints=view.keypoints,
            scores=np.zeros(len(view.keypoints), np.float32),
            sigmas=view.sigmas,
            descriptors=np.zeros((len(view.keypoints), 1), np.uint8),
        ),
        descriptors=view.descriptors,
        global_descriptor=np.zeros(0, np.float32),
    )
    return pose_from_scene_points(
        query,
        place(view.descriptors),
        calibration=FixCalibration(),
        options=SceneCoordsOptions(),
    )


def _position_error(view: SiteView, views: SiteViews, fix: Candidate) -> float:
    assert fix.cam_from_world is not None
    true = views.pose(view).origin_in_a
    return float(np.linalg.norm(fix.cam_from_world.origin_in_a - true))


def _write(
    head: SceneHead, samples: SceneSamples, site: Site, *, out: Path
) -> HeadFiles:
    dim = samples.rows.shape[1]
    manifest = ModelManifest(
        name=NAME,
        role=ROLE,
        file="",
        sha256="",
        precision="fp32",
        flavour="any",
        input=InputSpec(name="rows"),
        decoder="points-of-descriptors",
        outputs={name: name for name in ("points", "log_sigma")},
        descriptor_dim=dim,
        match_ratio=None,
        license=LICENSE,
        source=f"trained by edgeloc-build train scene-coords for {site.manifest.name}",
        head=HeadSpec(
            family=site.manifest.family.name,
            origin=(
                float(samples.origin[0]),
                float(samples.origin[1]),
                float(samples.origin[2]),
            ),
        ),
    )
    step = max(1, len(samples.rows) // _MAX_EXAMPLES)
    rows = samples.rows[::step].astype(np.float32)
    return write_head(
        out,
        manifest,
        scene_graph(head),
        examples=[rows[None, None]],
        float_layers=FLOAT_LAYERS,
        positive=(COMPARE,),
    )


def _first_good(
    files: HeadFiles, views: SiteViews, asked: Sequence[SiteView]
) -> tuple[Path, dict[str, HeldOutErrors]]:
    """Return the smallest variant that localizes as the truth does."""
    paths = {
        "fp32": files.truth,
        "int8-cpu": files.variants["int8-cpu"],
        "fp16": files.variants["fp16"],
    }
    errors: dict[str, HeldOutErrors] = {}
    for name, path in paths.items():
        head = open_head(path, role=ROLE, options=BackendOptions(backend="ort-cpu"))
        fixes = [
            (view, localize_view(view, views, lambda rows: scene_points(head, rows)))  # noqa: B023
            for view in asked
        ]
        errors[name] = HeldOutErrors(
            num_frames=len(asked),
            positions=tuple(
                _position_error(view, views, fix)
                for view, fix in fixes
                if fix.status is PoseStatus.LOCALIZED
            ),
        )
        limit = _MAX_WORSE * errors["fp32"].median + _MAX_WORSE_M
        if name != "fp32" and not errors[name].median > limit:
            return path, errors
    raise ModelError(
        f"{files.truth}: neither INT8 nor FP16 localizes as float32 does "
        f"({errors['fp32'].median:.4g} m); train with another recipe"
    )
