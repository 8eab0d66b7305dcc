"""What is measured of a feature family that matches images with known geometry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeloc.errors import DatasetError
from edgeloc.features.extract import extract_features, to_grey
from edgeloc.features.family import FeatureFamily
from edgeloc.features.match import MatchOptions, match_descriptors
from edgeloc.types import BoolArray, Features, FloatArray
from edgeloc_tools.datasets.recording import ImageFile
from edgeloc_tools.evaluate.correspondence import (
    KnownWarp,
    fit_clicked_pair,
    repeatability,
)
from edgeloc_tools.evaluate.warps import (
    KINDS,
    WarpedImage,
    held_out_photos,
    homography_pair,
    rotated,
    scaled,
)
from edgeloc_tools.progress import Progress, silent, track

WXBS_KEYPOINTS = 2000
WARP_KEYPOINTS = 1000
RADII_PX = (1.0, 3.0, 5.0)
CORRECT_PX = 3.0
ANGLES_DEG = (0.0, 15.0, 30.0, 45.0, 60.0, 90.0, 120.0, 150.0, 180.0)
SCALES = (0.4, 0.5, 0.63, 0.8, 1.0, 1.25, 1.6, 2.0, 2.5)
CHANCE_PAIRS = 20_000
NOISE = 3.0
"""Standard deviation, grey values, between an image and the same turned or scaled."""


NO_RATIO_TEST = MatchOptions(max_ratio=1.0, min_similarity=-1.0)
"""All mutual nearest neighbours."""

CATEGORIES: Mapping[str, str] = {
    "WLABS": "night + appearance",
    "WGLBS": "viewpoint + night",
    "WGABS": "viewpoint + appearance",
    "WGALBS": "viewpoint + appearance + night",
    "WGSBS": "viewpoint + sensor",
}
"""Names of the folders of WxBS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WideBaseline:
    """One family on one WxBS pair.

    Parameters
    ----------
    category, pair : str
        Folder and name.
    num_matches : int
        After the ratio test.
    num_correct, num_epipolar : int
        Of them correct, and correct by the epipolar geometry alone.
    num_chance : float
        Correct ones expected of as many matches between keypoints drawn by chance.
    num_mutual : int
        Correct ones without the ratio test: all mutual nearest neighbours.
    mutual_chance : float
        The same as `num_chance` for these.
    """

    category: str
    pair: str
    num_matches: int
    num_correct: int
    num_epipolar: int
    num_chance: float
    num_mutual: int
    mutual_chance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WarpScore:
    """One family on one warped photo.

    Parameters
    ----------
    num_keypoints : int
        The smaller number of both images, in the area that both show.
    num_matches : int
        After the ratio test.
    num_correct : tuple of int
        By `RADII_PX`.
    repeatability : tuple of float
        By `RADII_PX`; NaN without keypoints.
    errors_px : tuple of float
        Of the matches within `CORRECT_PX`.
    """

    num_keypoints: int
    num_matches: int
    num_correct: tuple[int, ...]
    repeatability: tuple[float, ...]
    errors_px: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyScores:
    """All measurements of a family.

    Parameters
    ----------
    family : str
        Its name.
    wide : tuple of WideBaseline
        By pair.
    rotation, scale : mapping of str to float
        Mean number of correct matches per image, by degrees and by factor.
    homography : mapping of str to (mapping of str to float)
        Means over pairs, by kind of change.
    """

    family: str
    wide: tuple[WideBaseline, ...]
    rotation: Mapping[str, float]
    scale: Mapping[str, float]
    homography: Mapping[str, Mapping[str, float]]


def scores_from(stored: Mapping[str, Any]) -> FamilyScores:
    """Return the scores that `dataclasses.asdict` has taken apart."""
    return FamilyScores(
        family=stored["family"],
        wide=tuple(WideBaseline(**row) for row in stored["wide"]),
        rotation=stored["rotation"],
        scale=stored["scale"],
        homography=stored["homography"],
    )


def matched(
    a: Features, b: Features, family: FeatureFamily, options: MatchOptions | None = None
) -> tuple[FloatArray, FloatArray]:
    """Return the matched keypoints of both images, (M, 2) each.

    Parameters
    ----------
    a, b : Features
        Of both images.
    family : FeatureFamily
        Theirs.
    options : MatchOptions, optional
        Mutual nearest neighbours with the family's ratio by default.
    """
    idx_a, idx_b, _ = match_descriptors(
        family.decode(a.descriptors),
        family.decode(b.descriptors),
        options or MatchOptions(max_ratio=family.match_ratio),
    )
    return (
        np.asarray(a.keypoints[idx_a], np.float64),
        np.asarray(b.keypoints[idx_b], np.float64),
    )


def wxbs_pairs(folder: Path) -> list[Path]:
    """Return the folders of the pairs, by category and name.

    Raises
    ------
    DatasetError
        When there are none.
    """
    pairs = [
        path.parent
        for category in CATEGORIES
        for path in sorted((folder / category).glob("*/corrs.txt"))
    ]
    if not pairs:
        raise DatasetError(f"{folder}: has no WxBS pairs (CATEGORY/NAME/corrs.txt)")
    return pairs


def measure_wide(
    folder: Path, family: FeatureFamily, *, max_keypoints: int = WXBS_KEYPOINTS
) -> WideBaseline:
    """Return how a family does on one WxBS pair.

    Parameters
    ----------
    folder : Path
        With 01.jpg, 02.jpg and corrs.txt.
    family : FeatureFamily
        To measure.
    max_keypoints : int
        Per image.
    """
    clicks = np.loadtxt(folder / "corrs.txt", ndmin=2)
    truth = fit_clicked_pair(clicks[:, :2], clicks[:, 2:4])
    features = [
        extract_features(
            ImageFile(folder / name).read(), family, max_keypoints=max_keypoints
        )
        for name in ("01.jpg", "02.jpg")
    ]
    points_a, points_b = matched(features[0], features[1], family)
    mutual_a, mutual_b = matched(features[0], features[1], family, NO_RATIO_TEST)
    rng = np.random.default_rng(0)
    by_chance = [
        np.asarray(f.keypoints, np.float64)[
            rng.integers(0, len(f.keypoints), CHANCE_PAIRS)
        ]
        for f in features
        if len(f.keypoints)
    ]
    passing = float(truth.correct(*by_chance).mean()) if len(by_chance) == 2 else 0.0
    return WideBaseline(
        category=folder.parent.name,
        pair=folder.name,
        num_matches=len(points_a),
        num_correct=_count(truth.correct, points_a, points_b),
        num_epipolar=_count(truth.on_epipolar_line, points_a, points_b),
        num_chance=passing * len(points_a),
        num_mutual=_count(truth.correct, mutual_a, mutual_b),
        mutual_chance=passing * len(mutual_a),
    )


def _count(
    rule: Callable[[FloatArray, FloatArray], BoolArray],
    points_a: FloatArray,
    points_b: FloatArray,
) -> int:
    return int(np.count_nonzero(rule(points_a, points_b))) if len(points_a) else 0


def measure_warp(
    pair: WarpedImage, features_a: Features, family: FeatureFamily
) -> WarpScore:
    """Return how a family does on an image and its warped copy.

    Parameters
    ----------
    pair : WarpedImage
        Both.
    features_a : Features
        Of the first image, which several pairs share.
    family : FeatureFamily
        To measure.
    """
    features_b = extract_features(
        pair.b, family, max_keypoints=WARP_KEYPOINTS, mask=pair.mask_b
    )
    points_a, points_b = matched(features_a, features_b, family)
    error_px = pair.warp.error_px(points_a, points_b)
    all_a = np.asarray(features_a.keypoints, np.float64)
    all_b = np.asarray(features_b.keypoints, np.float64)
    return WarpScore(
        num_keypoints=_num_shared(pair.warp, all_a, all_b),
        num_matches=len(points_a),
        num_correct=tuple(int(np.count_nonzero(error_px <= r)) for r in RADII_PX),
        repeatability=tuple(
            repeatability(pair.warp, all_a, all_b, radius_px=r) for r in RADII_PX
        ),
        errors_px=tuple(error_px[error_px <= CORRECT_PX].tolist()),
    )


def _num_shared(warp: KnownWarp, points_a: FloatArray, points_b: FloatArray) -> int:
    return int(min(warp.shared_a(points_a).sum(), warp.shared_b(points_b).sum()))


def summary(scores: Sequence[WarpScore]) -> dict[str, float]:
    """Return means over pairs, as rows of the table.

    Shares are means of each pair's share, so that photos with many features do not
    decide alone; localization is the median over all correct matches.
    """
    errors_px = np.concatenate([np.asarray(s.errors_px, np.float64) for s in scores])
    out = {
        "keypoints": float(np.mean([s.num_keypoints for s in scores])),
        "matches": float(np.mean([s.num_matches for s in scores])),
    }
    for idx, radius in enumerate(RADII_PX):
        at = f"{radius:g}px"
        repeated = [s.repeatability[idx] for s in scores]
        correct = [s.num_correct[idx] / max(s.num_matches, 1) for s in scores]
        out[f"repeatability_{at}"] = float(np.nanmean(repeated))
        out[f"accuracy_{at}"] = float(np.mean(correct))
        out[f"correct_{at}"] = float(np.mean([s.num_correct[idx] for s in scores]))
    out["score"] = float(
        np.mean(
            [
                s.num_correct[RADII_PX.index(CORRECT_PX)] / max(s.num_keypoints, 1)
                for s in scores
            ]
        )
    )
    out["localization_px"] = (
        float(np.median(errors_px)) if len(errors_px) else float("nan")
    )
    return out


def turned_images(data: Path) -> list[Path]:
    """Return the images that are turned and scaled: photos, and frames of a video."""
    frames = sorted((data / "redkitchen" / "seq-02").glob("*.color.jpg"))
    return [*held_out_photos(data / "photos")[::7], *frames[::50]]


def measure_family(
    family: FeatureFamily,
    *,
    data: Path,
    num_photos: int | None = None,
    progress: Progress = silent,
) -> FamilyScores:
    """Return all measurements of a family.

    Parameters
    ----------
    family : FeatureFamily
        To measure.
    data : Path
        The recordings folder.
    num_photos : int, optional
        Of the homographies and, a quarter of it, turned; all by default.
    progress : callable
        Told about each step.
    """
    wide = [
        measure_wide(path, family)
        for path in track(wxbs_pairs(data / "wxbs"), f"{family.name}: WxBS", progress)
    ]
    turned = turned_images(data)
    photos = held_out_photos(data / "photos")
    if num_photos is not None:
        turned, photos = turned[: max(1, num_photos // 4)], photos[:num_photos]
    rotation, scale = _measure_turned(turned, family, progress)
    homography: dict[str, list[WarpScore]] = {kind: [] for kind in KINDS}
    for idx, path in enumerate(track(photos, f"{family.name}: warps", progress)):
        image = to_grey(ImageFile(path).read())
        features = extract_features(image, family, max_keypoints=WARP_KEYPOINTS)
        for number_of_kind, kind in enumerate(KINDS):
            pair = homography_pair(image, kind, seed=(idx, number_of_kind))
            homography[kind].append(measure_warp(pair, features, family))
    return FamilyScores(
        family=family.name,
        wide=tuple(wide),
        rotation=rotation,
        scale=scale,
        homography={kind: summary(scores) for kind, scores in homography.items()},
    )


def _measure_turned(
    paths: Sequence[Path], family: FeatureFamily, progress: Progress
) -> tuple[dict[str, float], dict[str, float]]:
    at = RADII_PX.index(CORRECT_PX)
    rotation: dict[str, list[int]] = {f"{angle:g}": [] for angle in ANGLES_DEG}
    scale: dict[str, list[int]] = {f"{factor:g}": [] for factor in SCALES}
    for path in track(paths, f"{family.name}: turns and scales", progress):
        image = to_grey(ImageFile(path).read())
        features = extract_features(image, family, max_keypoints=WARP_KEYPOINTS)
        # Another exposure: without noise, whole turns would be the same pixels again.
        noise = np.random.default_rng(0).normal(scale=NOISE, size=image.shape)
        again = np.clip(np.round(image + noise), 0, 255).astype(np.uint8)
        for angle in ANGLES_DEG:
            pair = rotated(again, angle)
            score = measure_warp(pair, features, family)
            rotation[f"{angle:g}"].append(score.num_correct[at])
        for factor in SCALES:
            pair = scaled(again, factor)
            first = features
            if factor > 1.0:
                small = scaled(image, 1.0 / factor).b
                first = extract_features(small, family, max_keypoints=WARP_KEYPOINTS)
            score = measure_warp(pair, first, family)
            scale[f"{factor:g}"].append(score.num_correct[at])
    return (
        {key: float(np.mean(values)) for key, values in rotation.items()},
        {key: float(np.mean(values)) for key, values in scale.items()},
    )
