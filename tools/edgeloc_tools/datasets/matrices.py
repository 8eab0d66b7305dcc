"""Rigid transforms from matrices in files."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeloc.errors import DatasetError
from edgeloc.types import Rigid3

_MAX_SKEW = 1e-2
"""Largest deviation of R R^T from the identity that counts as rounding."""


def rigid_from_matrix(matrix: npt.ArrayLike, *, where: str) -> Rigid3:
    """Return the transform of a (4, 4) or (3, 4) matrix.

    The rotation is replaced by the nearest one, since files are rounded.

    Parameters
    ----------
    matrix : array_like of shape (4, 4) or (3, 4)
        Homogeneous matrix.
    where : str
        Begins the error's message.

    Raises
    ------
    DatasetError
        When the matrix is not finite or not rigid.
    """
    try:
        m = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError) as exc:
        raise DatasetError(f"{where}: is not a matrix of numbers") from exc
    if m.shape not in {(4, 4), (3, 4)}:
        raise DatasetError(f"{where}: has shape {m.shape}, expected a 4x4 matrix")
    if not np.all(np.isfinite(m)):
        raise DatasetError(f"{where}: has a value that is not finite; remove this pose")
    if m.shape == (4, 4) and np.abs(m[3] - [0.0, 0.0, 0.0, 1.0]).max() > 1e-6:
        raise DatasetError(f"{where}: last row is {m[3].tolist()}, expected 0 0 0 1")
    R = m[:3, :3]
    if np.abs(R @ R.T - np.eye(3)).max() > _MAX_SKEW or np.linalg.det(R) < 0:
        raise DatasetError(
            f"{where}: its left 3x3 part is not a rotation (determinant "
            f"{np.linalg.det(R):.4g})"
        )
    u, _, vt = np.linalg.svd(R)
    return Rigid3(R=u @ vt, t=m[:3, 3])
