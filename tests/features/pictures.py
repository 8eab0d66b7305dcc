"""Pictures with corners at known places, averaged over their pixels like photos."""

from __future__ import annotations

import numpy as np

_OVERSAMPLING = 8


def _render(height, width, value) -> np.ndarray:
    """The mean of `value(x, y)`, corner convention, over each pixel, in [0, 1]."""
    y, x = (np.mgrid[: _OVERSAMPLING * height, : _OVERSAMPLING * width] + 0.5) / (
        _OVERSAMPLING
    )
    fine = value(x, y).reshape(height, _OVERSAMPLING, width, _OVERSAMPLING)
    return fine.mean(axis=(1, 3)).astype(np.float32)


def _turned(x, y, at, angle_deg):
    angle = np.deg2rad(angle_deg)
    dx, dy = x - at[0], y - at[1]
    across = dx * np.cos(angle) + dy * np.sin(angle)
    return across, dy * np.cos(angle) - dx * np.sin(angle)


def saddle(size, at, *, angle_deg=0.0, contrast=0.6) -> np.ndarray:
    """Two dark and two bright quarters that meet at `at`."""

    def value(x, y):
        across, down = _turned(x, y, at, angle_deg)
        return 0.5 + 0.5 * contrast * np.sign(across) * np.sign(down)

    return _render(*size, value)


def wedge(size, at, *, angle_deg=0.0) -> np.ndarray:
    """A bright quarter on dark ground."""

    def value(x, y):
        across, down = _turned(x, y, at, angle_deg)
        return 0.2 + 0.6 * ((across > 0) & (down > 0))

    return _render(*size, value)


def dots(size, points, *, contrasts, sigma_px=0.8, level=0.2) -> np.ndarray:
    """Bright round spots on grey ground."""

    def value(x, y):
        return level + sum(
            contrast * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * sigma_px**2))
            for (u, v), contrast in zip(points, contrasts, strict=True)
        )

    return _render(*size, value)
