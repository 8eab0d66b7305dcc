"""Whether `SiteContents` agree with themselves and fit the format."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeloc.errors import MapError
from edgeloc.tiles.bits import MAX_NUMBER
from edgeloc.tiles.codec import (
    DTYPES,
    MAX_COORDINATE,
    MAX_DESCRIPTORS_PER_LANDMARK,
    MAX_KEYPOINT_PX,
)
from edgeloc.tiles.layout import (
    KeyframeFeatures,
    KeyframeTable,
    LandmarkTable,
    SiteContents,
)
from edgeloc.tiles.manifest import (
    CODEBOOK_ROLES,
    DESCRIPTOR_DTYPES,
    GLOBAL_CODINGS,
    MAX_CAMERAS,
    MAX_KEYFRAMES,
    MODEL_ROLES,
    needed_codebooks,
)
from edgeloc.types import Float32Array, FloatArray, IntArray


def _require(ok: object, message: str) -> None:
    if not ok:
        raise MapError(f"cannot write the site: {message}")


def _require_bounded(
    values: FloatArray | Float32Array, low: float, high: float, *, name: str
) -> None:
    # NaN fails both comparisons.
    _require(
        np.all((values >= low) & (values <= high)),
        f"{name} must be finite and from {low:g} to {high:g}",
    )


def _require_shape(
    array: npt.NDArray[np.generic], shape: tuple[int, ...], *, name: str
) -> None:
    _require(array.shape == shape, f"{name} has shape {array.shape}, expected {shape}")


def _check_offsets(
    offsets: IntArray, num_lists: int, num_elements: int, *, name: str
) -> None:
    _require_shape(offsets, (num_lists + 1,), name=name)
    _require(
        offsets[0] == 0
        and offsets[-1] == num_elements
        and np.all(offsets[1:] >= offsets[:-1]),
        f"{name} must ascend from 0 to {num_elements}",
    )


def _check_keyframes(
    keyframes: KeyframeTable, cameras: set[str], *, global_coding: str
) -> None:
    num = len(keyframes)
    _require(num > 0, "it has no keyframes: nothing could be retrieved")
    _require(
        num <= MAX_KEYFRAMES, f"it has {num} keyframes, at most {MAX_KEYFRAMES} fit"
    )
    _require(
        len(cameras) <= MAX_CAMERAS,
        f"it has {len(cameras)} cameras, at most {MAX_CAMERAS} fit",
    )
    ids = keyframes.keyframe_ids
    _require_shape(ids, (num,), name="keyframes.keyframe_ids")
    _require(
        ids.dtype.kind in "iu"
        and ids[0] >= 0
        and ids[-1] <= MAX_NUMBER
        and np.all(ids[1:] > ids[:-1]),
        "keyframes.keyframe_ids must be integers, ascending from 0 or more, at most "
        f"{MAX_NUMBER}",
    )
    _require(
        len(keyframes.camera_ids) == num and set(keyframes.camera_ids) <= cameras,
        "keyframes.camera_ids must name one of the site's cameras for each keyframe",
    )
    R = keyframes.R
    _require_shape(R, (num, 3, 3), name="keyframes.R")
    _require_bounded(R, -1.1, 1.1, name="keyframes.R")
    gram = R @ np.swapaxes(R, 1, 2)
    _require(
        np.all(np.abs(gram - np.eye(3)) < 1e-6) and np.all(np.linalg.det(R) > 0),
        "keyframes.R must be rotations",
    )
    t = keyframes.t
    _require_shape(t, (num, 3), name="keyframes.t")
    _require_bounded(t, -MAX_COORDINATE, MAX_COORDINATE, name="keyframes.t")
    global_codes = keyframes.global_codes
    _require(
        global_codes.ndim == 2 and len(global_codes) == num,
        f"keyframes.global_codes has shape {global_codes.shape}, expected ({num}, G)",
    )
    dtypes = GLOBAL_CODINGS.get(global_coding)
    _require(
        dtypes is not None,
        f"global_coding is {global_coding!r}, expected one of "
        f"{', '.join(GLOBAL_CODINGS)}",
    )
    _require(
        global_codes.dtype.name in (dtypes or ()),
        f"keyframes.global_codes are {global_codes.dtype}, expected "
        f"{' or '.join(dtypes or ())} for {global_coding!r}",
    )
    _require(
        global_codes.dtype.kind != "f" or np.all(np.isfinite(global_codes)),
        "keyframes.global_codes must be finite",
    )


def _check_landmarks(landmarks: LandmarkTable, contents: SiteContents) -> None:
    num = len(landmarks)
    family = contents.family
    _require_shape(landmarks.points3D, (num, 3), name="landmarks.points3D")
    _require_bounded(
        landmarks.points3D,
        -MAX_COORDINATE,
        MAX_COORDINATE,
        name="landmarks.points3D",
    )
    _require_shape(landmarks.sigmas, (num,), name="landmarks.sigmas")
    _require_bounded(landmarks.sigmas, 0.0, 1e30, name="landmarks.sigmas")
    _require_shape(
        landmarks.num_observations, (num,), name="landmarks.num_observations"
    )
    _require(
        np.all(landmarks.num_observations >= 0),
        "landmarks.num_observations must not be negative",
    )
    descriptors = landmarks.descriptors
    _require(
        family.stored_dtype in DESCRIPTOR_DTYPES,
        f"family.stored_dtype is {family.stored_dtype!r}, expected one of "
        f"{', '.join(DESCRIPTOR_DTYPES)}",
    )
    _require_shape(
        descriptors, (len(descriptors), family.stored_dim), name="landmarks.descriptors"
    )
    _require(
        descriptors.dtype == np.dtype(family.stored_dtype),
        f"landmarks.descriptors are {descriptors.dtype}, the family says "
        f"{family.stored_dtype}",
    )
    _require(
        descriptors.dtype.kind != "f" or np.all(np.isfinite(descriptors)),
        "landmarks.descriptors must be finite",
    )
    _check_offsets(
        landmarks.descriptor_offsets,
        num,
        len(descriptors),
        name="landmarks.descriptor_offsets",
    )
    most = int(np.diff(landmarks.descriptor_offsets).max(initial=0))
    _require(
        most <= MAX_DESCRIPTORS_PER_LANDMARK,
        f"a landmark has {most} descriptors, at most {MAX_DESCRIPTORS_PER_LANDMARK} "
        "fit: keep fewer",
    )


def _check_features(features: KeyframeFeatures, contents: SiteContents) -> None:
    num, family = len(features), contents.family
    _require_shape(features.keypoints, (num, 2), name="features.keypoints")
    _require_bounded(
        features.keypoints, 0.0, MAX_KEYPOINT_PX, name="features.keypoints"
    )
    _require_shape(features.sigmas, (num,), name="features.sigmas")
    _require_bounded(features.sigmas, 0.0, 1e30, name="features.sigmas")
    descriptors = features.descriptors
    _require_shape(descriptors, (num, family.stored_dim), name="features.descriptors")
    _require(
        descriptors.dtype == np.dtype(family.stored_dtype),
        f"features.descriptors are {descriptors.dtype}, the family says "
        f"{family.stored_dtype}",
    )
    _require(
        descriptors.dtype.kind != "f" or np.all(np.isfinite(descriptors)),
        "features.descriptors must be finite",
    )
    _check_offsets(
        features.offsets, len(contents.keyframes), num, name="features.offsets"
    )


def check_contents(contents: SiteContents) -> None:
    """Raise `MapError` at the first thing that does not fit.

    Parameters
    ----------
    contents : SiteContents
        What is to be written. What only site.json holds is left to `decode_manifest`.
    """
    _check_keyframes(
        contents.keyframes,
        set(contents.cameras),
        global_coding=contents.global_coding,
    )
    _check_landmarks(contents.landmarks, contents)
    if contents.features is not None:
        _check_features(contents.features, contents)
    visible = contents.visible_landmark_idx
    _check_offsets(
        contents.visible_offsets,
        len(contents.keyframes),
        len(visible),
        name="visible_offsets",
    )
    _require(
        np.all((visible >= 0) & (visible < len(contents.landmarks))),
        "visible_landmark_idx must be indices of landmarks",
    )
    begins = np.zeros(len(visible) + 1, dtype=np.bool_)
    begins[contents.visible_offsets] = True
    _require(
        np.all((visible[1:] > visible[:-1]) | begins[1:-1]),
        "visible_landmark_idx must ascend within each keyframe",
    )
    _check_roles("models", set(contents.models), MODEL_ROLES)
    _check_roles("codebooks", set(contents.codebooks), CODEBOOK_ROLES)
    for role in needed_codebooks(contents.family, contents.global_coding):
        _require(
            role in contents.codebooks,
            f"codebooks[{role!r}] is missing: codes say nothing without it",
        )
    arrays = {
        f"retrieval_arrays[{name!r}]": array
        for name, array in contents.retrieval_arrays.items()
    }
    for role, codebook in contents.codebooks.items():
        for name, array in codebook.arrays.items():
            arrays[f"codebooks[{role!r}].arrays[{name!r}]"] = array
    for name, array in arrays.items():
        _require(
            array.dtype.name in DTYPES
            and (array.dtype.kind != "f" or np.all(np.isfinite(array))),
            f"{name} must be finite and of the types {', '.join(DTYPES)}",
        )
    step, origin = contents.position_step, contents.grid_origin
    _require(
        step is None or 0 < step < MAX_COORDINATE,
        f"position_step is {step!r}, expected a size like 0.001, or None",
    )
    _require(
        origin is None or all(abs(v) <= MAX_COORDINATE for v in origin),
        f"grid_origin is {origin!r}, expected coordinates up to {MAX_COORDINATE:g}",
    )


def _check_roles(name: str, found: set[str], known: tuple[str, ...]) -> None:
    _require(
        found <= set(known),
        f"{name} are for {' and '.join(known)}, not {', '.join(sorted(found))}",
    )
