"""Whether `SiteContents` agree with themselves and fit the format."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeloc.errors import MapError
from edgeloc.tiles.codec import MAX_COORDINATE, MAX_COUNT, MAX_IDS
from edgeloc.tiles.layout import KeyframeTable, LandmarkTable, SiteContents
from edgeloc.tiles.manifest import DESCRIPTOR_DTYPES, MODEL_ROLES
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


def _check_keyframes(keyframes: KeyframeTable, cameras: set[str]) -> None:
    num = len(keyframes)
    _require(num > 0, "it has no keyframes: nothing could be retrieved")
    ids = keyframes.keyframe_ids
    _require_shape(ids, (num,), name="keyframes.keyframe_ids")
    _require(
        ids.dtype.kind in "iu" and ids[0] >= 0 and np.all(ids[1:] > ids[:-1]),
        "keyframes.keyframe_ids must be integers, ascending from 0 or more",
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
    _require_bounded(
        np.asarray(global_codes, np.float32), -1.0, 1.0, name="keyframes.global_codes"
    )


def _check_landmarks(landmarks: LandmarkTable, contents: SiteContents) -> None:
    num = len(landmarks)
    family = contents.family
    _require(num < MAX_IDS, f"it has {num} landmarks, the format ends at {MAX_IDS}")
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
        most <= MAX_COUNT,
        f"a landmark has {most} descriptors, at most {MAX_COUNT} fit: keep fewer",
    )


def check_contents(contents: SiteContents) -> None:
    """Raise `MapError` at the first thing that does not fit.

    Parameters
    ----------
    contents : SiteContents
        What is to be written. What only site.json holds is left to `decode_manifest`.
    """
    _check_keyframes(contents.keyframes, set(contents.cameras))
    _check_landmarks(contents.landmarks, contents)
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
    _require(
        set(contents.models) <= set(MODEL_ROLES),
        f"models are for {' and '.join(MODEL_ROLES)}, not {', '.join(contents.models)}",
    )
    for name, array in contents.retrieval_arrays.items():
        _require(
            array.dtype == np.float32 and np.all(np.isfinite(array)),
            f"retrieval_arrays[{name!r}] must be finite float32",
        )
