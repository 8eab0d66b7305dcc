"""From the outputs of a feature network to keypoints, scores and descriptors.

Pure functions on arrays. The cost is that of the passes over full-size maps, on one
core; everything after them touches only the candidates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np

from edgeloc.errors import ModelError
from edgeloc.features.corners import corner_response, parabola_peak
from edgeloc.types import BoolArray, ByteArray, Float32Array, IntArray

CELL_PX = 8
"""Side of a cell of the 65-channel heads."""
BORDER_PX = 4
"""Keypoints nearer to the border are left out: half of what they would be described
with is not in the image."""

_CORNER_RADIUS_PX = 3
_MIN_RESPONSE = 1e-6
"""Of contrast in [0, 1]: noise of half a grey value makes less."""
_RESPONSE_POWER = 0.25

_REFINE_PX = 2
"""Keypoints are refined in a window of this radius."""
_SAFE_LOGIT = 60.0
"""Below it no sum of 65 exponentials leaves float32."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecodeRequest:
    """What is wanted of the outputs.

    Parameters
    ----------
    max_keypoints : int
        Keep the strongest.
    width, height : int
        The part of the network's input that is image, px.
    tensor_width, tensor_height : int
        The network's input, padding included, px.
    image_from_tensor : ndarray of shape (2,), float32
        What positions (x, y) in the input are multiplied with to be those of `mask`.
    plane : ndarray of shape (tensor_height, tensor_width), float32
        The first channel of the network's input, for keypoints that are corners of the
        picture itself.
    mask : ndarray of shape (H, W), uint8, optional
        No keypoint where it is 0.
    """

    max_keypoints: int
    width: int
    height: int
    tensor_width: int
    tensor_height: int
    image_from_tensor: Float32Array
    plane: Float32Array
    mask: ByteArray | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoded:
    """Keypoints, strongest first.

    Parameters
    ----------
    keypoints : ndarray of shape (N, 2), float32
        Px of the network's input, corner convention.
    scores : ndarray of shape (N,), float32
        Larger is better.
    descriptors : ndarray of shape (N, D), float32
        L2-normalised.
    """

    keypoints: Float32Array
    scores: Float32Array
    descriptors: Float32Array


Outputs = Mapping[str, Float32Array]
Decoder = Callable[[Outputs, DecodeRequest], Decoded]


def cell_probabilities(logits: Float32Array) -> Float32Array:
    """Return the keypoint probability of every pixel.

    Parameters
    ----------
    logits : ndarray of shape (65, h, w), float32
        Of the softmax over the 64 pixels of a cell, row by row, and "none of them".

    Returns
    -------
    ndarray of shape (8 h, 8 w), float32
    """
    _, height, width = logits.shape
    flat = np.ascontiguousarray(logits).reshape(65, -1)
    low, high, _, _ = cv2.minMaxLoc(flat)
    if max(-low, high) > _SAFE_LOGIT:
        flat = flat - flat.max(axis=0)
    # cv2.exp is five times as fast as NumPy's where there is no AVX-512.
    exponentials = np.asarray(cv2.exp(flat), np.float32)
    shares = exponentials[:64]
    shares *= 1.0 / exponentials.sum(axis=0)
    heat = np.empty((height, CELL_PX, width * CELL_PX), np.float32)
    for row, plane in enumerate(shares.reshape(CELL_PX, CELL_PX, -1)):
        # (8, cells) to (cells, 8) is a row of every cell.
        heat[:, row] = cv2.transpose(plane).reshape(height, -1)
    return heat.reshape(height * CELL_PX, width * CELL_PX)


@functools.lru_cache(maxsize=4)
def _tie_break(height: int, width: int, side: int) -> Float32Array:
    """Return factors near 1 that differ within every window of `side` pixels."""
    y, x = np.arange(height) % side, np.arange(width) % side
    rank = y[:, None] * side + x
    return np.asarray(1.0 - 2.5e-7 * rank, np.float32)


def find_peaks(
    heat: Float32Array, request: DecodeRequest, *, radius_px: int, min_value: float
) -> IntArray:
    """Return the pixels that are the largest around, as flat indices.

    Parameters
    ----------
    heat : ndarray of shape (H, W), float32
        Map at the resolution of the network's input.
    request : DecodeRequest
        Says where keypoints may be.
    radius_px : int
        Half the side of the window, without its centre.
    min_value : float
        Smaller ones are no peaks; above 0.
    """
    side = 2 * radius_px + 1
    height, width = heat.shape
    # Equal neighbours, as quantized networks make them, are not all peaks.
    distinct = heat * _tie_break(height, width, side)
    largest = cv2.dilate(
        distinct,
        np.ones((side, side), np.uint8),
        borderType=cv2.BORDER_CONSTANT,
        borderValue=0.0,
    )
    peaks: BoolArray = distinct == largest
    peaks &= distinct >= np.float32(min_value)
    peaks[:BORDER_PX] = peaks[max(request.height - BORDER_PX, 0) :] = False
    peaks[:, :BORDER_PX] = peaks[:, max(request.width - BORDER_PX, 0) :] = False
    flat = np.flatnonzero(peaks)
    if request.mask is None:
        return flat
    centers = np.stack([flat % width + 0.5, flat // width + 0.5], axis=1)
    return flat[_allowed(centers.astype(np.float32), request)]


def _allowed(points: Float32Array, request: DecodeRequest) -> BoolArray:
    """Return which positions in the network's input the mask lets through."""
    if request.mask is None:
        return np.ones(len(points), np.bool_)
    at = (points * request.image_from_tensor).astype(np.int64)
    height, width = request.mask.shape
    x, y = np.clip(at[:, 0], 0, width - 1), np.clip(at[:, 1], 0, height - 1)
    return np.asarray(request.mask[y, x] != 0)


def _window_offsets(width: int) -> tuple[IntArray, Float32Array]:
    """Return flat indices and positions (x, y) of a window relative to its centre."""
    steps = np.arange(-_REFINE_PX, _REFINE_PX + 1)
    x, y = (grid.ravel() for grid in np.meshgrid(steps, steps))
    return y * width + x, np.stack([x, y], axis=1).astype(np.float32)


def refine_peaks(
    weights: Float32Array, peaks: IntArray, *, width: int
) -> tuple[Float32Array, Float32Array]:
    """Return the weighted mean of the pixel centres around each peak.

    Parameters
    ----------
    weights : ndarray of shape (N, 25), float32
        From `windows_around`, 0 or more.
    peaks : ndarray of shape (N,), int64
        Flat indices.
    width : int
        Of the map.

    Returns
    -------
    points : ndarray of shape (N, 2), float32
        Px, corner convention.
    mass : ndarray of shape (N,), float32
        Sums of the weights.
    """
    mass = weights.sum(axis=1)
    shift = (weights @ _window_offsets(width)[1]) / np.maximum(mass, 1e-12)[:, None]
    centers = np.stack([peaks % width, peaks // width], axis=1) + 0.5
    return np.asarray(centers + shift, np.float32), np.asarray(mass, np.float32)


def windows_around(heat: Float32Array, peaks: IntArray) -> Float32Array:
    """Return the values in the 5x5 window round each peak, (N, 25), row by row."""
    offsets, _ = _window_offsets(heat.shape[1])
    return np.asarray(heat.ravel().take(peaks[:, None] + offsets))


def sample_rows(
    planes: Float32Array, points: Float32Array, *, stride_px: tuple[float, float]
) -> Float32Array:
    """Return bilinear samples of a coarse map.

    Parameters
    ----------
    planes : ndarray of shape (C, h, w), float32
        Cell (i, j) stands for its middle: pixel ((j + 0.5) * stride, (i + 0.5) *
        stride), corner convention.
    points : ndarray of shape (N, 2), float32
        Px, corner convention.
    stride_px : (float, float)
        Width and height of a cell.

    Returns
    -------
    ndarray of shape (N, C), float32
    """
    _, height, width = planes.shape
    cells = points / np.asarray(stride_px, np.float32) - np.float32(0.5)
    x = np.clip(cells[:, 0], 0.0, width - 1.0)
    y = np.clip(cells[:, 1], 0.0, height - 1.0)
    left, above = x.astype(np.int64), y.astype(np.int64)
    right = np.minimum(left + 1, width - 1)
    below = np.minimum(above + 1, height - 1)
    # float32 minus int64 would be float64, and twice as slow.
    u, v = x - left.astype(np.float32), y - above.astype(np.float32)
    shares = np.stack([(1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v], axis=1)
    corners = np.stack([left, right, left, right], axis=1)
    corners += width * np.stack([above, above, below, below], axis=1)
    # One row per cell: a sample reads four short runs of memory.
    rows = np.asarray(cv2.transpose(planes.reshape(len(planes), -1)), np.float32)
    around = rows.reshape(-1, len(planes)).take(corners, axis=0)
    return np.asarray(np.matmul(shares[:, None], around)[:, 0], np.float32)


def normalize_rows(rows: Float32Array) -> Float32Array:
    """Return rows of length 1; rows of zeros stay."""
    length = np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    return np.asarray(rows / np.maximum(length, 1e-12), np.float32)


def _strongest(scores: Float32Array, request: DecodeRequest) -> IntArray:
    """Return the indices of the strongest, strongest first."""
    return np.argsort(-scores, kind="stable")[: request.max_keypoints]


def _sigmoid(values: Float32Array) -> Float32Array:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(values, -60.0, 60.0))), np.float32)


def _planes(outputs: Outputs, name: str, channels: int | None = None) -> Float32Array:
    """Return an output as (C, h, w), or say what it should have been."""
    output = outputs[name]
    if (
        output.ndim != 4
        or output.shape[0] != 1
        or 0 in output.shape
        or (channels is not None and output.shape[1] != channels)
    ):
        wanted = "C" if channels is None else channels
        raise ModelError(
            f"the output for {name!r} has shape {output.shape}, expected "
            f"(1, {wanted}, h, w)"
        )
    return np.asarray(output[0], np.float32)


def _require_size(
    planes: Float32Array, name: str, size: tuple[int, int], why: str
) -> None:
    if planes.shape[1:] != size:
        raise ModelError(
            f"the output for {name!r} is {planes.shape[2]}x{planes.shape[1]}, expected "
            f"{size[1]}x{size[0]}, {why}"
        )


def _cells(
    outputs: Outputs, name: str, channels: int, *, request: DecodeRequest
) -> Float32Array:
    planes = _planes(outputs, name, channels)
    size = (request.tensor_height // CELL_PX, request.tensor_width // CELL_PX)
    _require_size(planes, name, size, "one cell for 8x8 pixels of the input")
    return planes


def _describe(
    planes: Float32Array, points: Float32Array, request: DecodeRequest
) -> Float32Array:
    _, height, width = planes.shape
    stride_px = (request.tensor_width / width, request.tensor_height / height)
    return normalize_rows(sample_rows(planes, points, stride_px=stride_px))


def decode_edgeloc(outputs: Outputs, request: DecodeRequest) -> Decoded:
    """Decode the project's own network: dense descriptors and their reliability.

    Keypoints are corners of the picture itself, to a fifth of a pixel; the network says
    which of them are worth describing. The score of a corner is the fourth root of its
    response, so that contrast counts for little, times the reliability there. The first
    channel of the network's input has to be grey in [0, 1], or near that.
    """
    reliability = _cells(outputs, "reliability", 1, request=request)
    descriptors = _planes(outputs, "descriptors")
    response = corner_response(request.plane)
    peaks = find_peaks(
        response, request, radius_px=_CORNER_RADIUS_PX, min_value=_MIN_RESPONSE
    )
    at = np.stack([peaks % response.shape[1], peaks // response.shape[1]], axis=1)
    trust = _sigmoid(_at_cells(reliability, at.astype(np.float32) + np.float32(0.5)))
    scores = trust * np.power(response.ravel()[peaks], np.float32(_RESPONSE_POWER))
    best = _strongest(scores, request)
    points = (parabola_peak(response, at[best]) + 0.5).astype(np.float32)
    return Decoded(
        keypoints=points,
        scores=scores[best],
        descriptors=_describe(descriptors, points, request),
    )


def decode_xfeat(outputs: Outputs, request: DecodeRequest) -> Decoded:
    """Decode XFeat's [1]_ three maps: features, keypoint logits, reliability in [0, 1].

    References
    ----------
    .. [1] Potje et al., "XFeat: accelerated features for lightweight image matching",
       CVPR 2024.
    """
    reliability = _cells(outputs, "reliability", 1, request=request)
    descriptors = _planes(outputs, "descriptors")
    length = np.sqrt(np.einsum("chw,chw->hw", descriptors, descriptors))
    unit = (descriptors / np.maximum(length, 1e-12))[None]

    def reliable(points: Float32Array) -> Float32Array:
        return _at_cells(reliability, points)

    return _decode_cells(
        {**outputs, "descriptors": unit},
        request,
        reliable,
        radius_px=2,
        min_value=0.05,
    )


def decode_superpoint(outputs: Outputs, request: DecodeRequest) -> Decoded:
    """Decode SuperPoint's [1]_ two maps.

    References
    ----------
    .. [1] DeTone et al., "SuperPoint: self-supervised interest point detection and
       description", CVPR Workshops 2018.
    """

    def reliable(points: Float32Array) -> Float32Array:
        return np.ones(len(points), np.float32)

    return _decode_cells(outputs, request, reliable, radius_px=4, min_value=0.005)


def _at_cells(planes: Float32Array, points: Float32Array) -> Float32Array:
    return sample_rows(planes, points, stride_px=(CELL_PX, CELL_PX))[:, 0]


def _decode_cells(
    outputs: Outputs,
    request: DecodeRequest,
    reliable: Callable[[Float32Array], Float32Array],
    *,
    radius_px: int,
    min_value: float,
) -> Decoded:
    descriptors = _planes(outputs, "descriptors")
    heat = cell_probabilities(_cells(outputs, "keypoints", 65, request=request))
    peaks = find_peaks(heat, request, radius_px=radius_px, min_value=min_value)
    points, mass = refine_peaks(windows_around(heat, peaks), peaks, width=heat.shape[1])
    scores = mass * reliable(points)
    best = _strongest(scores, request)
    return Decoded(
        keypoints=points[best],
        scores=scores[best],
        descriptors=_describe(descriptors, points[best], request),
    )


def decode_aliked(outputs: Outputs, request: DecodeRequest) -> Decoded:
    """Decode a full-size score map in [0, 1] and dense descriptors, as of ALIKED [1]_.

    References
    ----------
    .. [1] Zhao et al., "ALIKED: a lighter keypoint and descriptor extraction network
       via deformable transformation", IEEE TIM 2023; the soft argmax and its
       temperature are those of its keypoint detection.
    """
    return _decode_scores(outputs, request, temperature=0.1, min_value=0.2)


def decode_disk(outputs: Outputs, request: DecodeRequest) -> Decoded:
    """Decode a full-size map of logits and dense descriptors, as of DISK [1]_.

    References
    ----------
    .. [1] Tyszkiewicz et al., "DISK: learning local features with policy gradient",
       NeurIPS 2020; peaks above 0 are keypoints, as in its inference.
    """
    decoded = _decode_scores(outputs, request, temperature=1.0, min_value=1e-6)
    return Decoded(
        keypoints=decoded.keypoints,
        scores=_sigmoid(decoded.scores),
        descriptors=decoded.descriptors,
    )


def _decode_scores(
    outputs: Outputs, request: DecodeRequest, *, temperature: float, min_value: float
) -> Decoded:
    descriptors = _planes(outputs, "descriptors")
    scores = _planes(outputs, "scores", 1)
    size = (request.tensor_height, request.tensor_width)
    _require_size(scores, "scores", size, "the size of the input")
    heat = np.ascontiguousarray(scores[0])
    peaks = find_peaks(heat, request, radius_px=2, min_value=min_value)
    peaks = peaks[_strongest(heat.ravel()[peaks], request)]
    values = heat.ravel()[peaks]
    relative = (windows_around(heat, peaks) - values[:, None]) / temperature
    points, _ = refine_peaks(
        np.exp(np.minimum(relative, 0.0)).astype(np.float32),
        peaks,
        width=heat.shape[1],
    )
    return Decoded(
        keypoints=points,
        scores=values,
        descriptors=_describe(descriptors, points, request),
    )


def decode_points(outputs: Outputs, request: DecodeRequest) -> Decoded:
    """Decode keypoints that the network itself has picked.

    Of shape (1, N, 2), scores (1, N) and descriptors (1, N, D), with or without the
    first axis; positions are px of the input with (0, 0) on the first pixel's centre,
    as in exports of SuperPoint, DISK and XFeat with their own top-k.
    """
    points, scores, descriptors = _lists(outputs)
    return _pick(points + np.float32(0.5), scores, descriptors, request=request)


def decode_points_normalized(outputs: Outputs, request: DecodeRequest) -> Decoded:
    """Decode as `decode_points`, with positions from -1 to 1.

    -1 and 1 are the centres of the first and the last pixel, as in exports of ALIKED.
    """
    points, scores, descriptors = _lists(outputs)
    last = np.array([request.tensor_width - 1, request.tensor_height - 1], np.float32)
    points = (points + 1) * (0.5 * last) + np.float32(0.5)
    return _pick(points, scores, descriptors, request=request)


def _lists(outputs: Outputs) -> tuple[Float32Array, Float32Array, Float32Array]:
    points, scores, descriptors = (
        outputs[name][0] if outputs[name].ndim == ndim + 1 else outputs[name]
        for name, ndim in (("keypoints", 2), ("scores", 1), ("descriptors", 2))
    )
    num = len(points) if points.ndim else 0
    if (
        points.shape != (num, 2)
        or scores.shape != (num,)
        or descriptors.ndim != 2
        or len(descriptors) != num
    ):
        shapes = ", ".join(f"{k} {outputs[k].shape}" for k in sorted(outputs))
        raise ModelError(
            f"the outputs are {shapes}, expected keypoints (1, N, 2), scores (1, N) "
            "and descriptors (1, N, D)"
        )
    return points, scores, descriptors


def _pick(
    points: Float32Array,
    scores: Float32Array,
    descriptors: Float32Array,
    *,
    request: DecodeRequest,
) -> Decoded:
    size = np.array([request.width, request.height], np.float32)
    inside = np.all((points >= 0) & (points <= size), axis=1)
    kept = np.flatnonzero(inside & _allowed(points, request))
    best = kept[_strongest(scores[kept], request)]
    return Decoded(
        keypoints=np.asarray(points[best], np.float32),
        scores=scores[best],
        descriptors=normalize_rows(descriptors[best]),
    )


DECODERS: Mapping[str, Decoder] = MappingProxyType(
    {
        "edgeloc": decode_edgeloc,
        "xfeat": decode_xfeat,
        "superpoint": decode_superpoint,
        "aliked": decode_aliked,
        "disk": decode_disk,
        "points": decode_points,
        "points-normalized": decode_points_normalized,
    }
)
"""By the name in a manifest."""
