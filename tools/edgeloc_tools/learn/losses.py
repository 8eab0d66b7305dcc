"""Losses of the feature network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sample_map(dense: Tensor, points: Tensor, *, width: int, height: int) -> Tensor:
    """Return a dense map at points, bilinear.

    Parameters
    ----------
    dense : Tensor of shape (B, C, h, w)
        Map of an image of `width` x `height` px.
    points : Tensor of shape (B, N, 2)
        Px, corner convention.

    Returns
    -------
    Tensor of shape (B, N, C)
    """
    size = points.new_tensor([width, height])
    grid = (points / size * 2.0 - 1.0)[:, None]
    sampled = functional.grid_sample(dense, grid, mode="bilinear", align_corners=False)
    return sampled[:, :, 0].transpose(1, 2)


def dual_softmax_loss(
    a: Tensor,
    b: Tensor,
    points_b: Tensor,
    valid: Tensor,
    *,
    sharpness: float = 20.0,
    min_apart_px: float = 4.0,
) -> tuple[Tensor, Tensor]:
    """Return the loss of descriptors whose rows correspond, and who found its partner.

    Cross-entropy over both directions of the similarity matrix, as in XFeat [1]_,
    section 3.3; points closer than `min_apart_px` to the true one are no negatives.

    Parameters
    ----------
    a, b : Tensor of shape (B, N, D)
        L2-normalised.
    points_b : Tensor of shape (B, N, 2)
        Positions of `b`, px.
    valid : Tensor of shape (B, N), bool
        Rows that count.

    Returns
    -------
    loss : Tensor of shape ()
    correct : Tensor of shape (B, N), float32
        1 where a row and its partner are mutual nearest neighbours.

    References
    ----------
    .. [1] Potje et al., "XFeat: accelerated features for lightweight image matching",
       CVPR 2024.
    """
    similarity = torch.einsum("bnd,bmd->bnm", a, b) * sharpness
    count = similarity.shape[1]
    itself = torch.eye(count, dtype=torch.bool)
    near = torch.cdist(points_b, points_b) < min_apart_px
    ignored = (near & ~itself) | ~valid[:, None, :] | ~valid[:, :, None]
    ignored = ignored & ~itself
    similarity = similarity.masked_fill(ignored, -1e4)
    forward = functional.log_softmax(similarity, 2).diagonal(dim1=1, dim2=2)
    backward = functional.log_softmax(similarity, 1).diagonal(dim1=1, dim2=2)
    weight = valid.float() / valid.sum().clamp(min=1)
    loss = -((forward + backward) * weight).sum()
    with torch.no_grad():
        rows = torch.arange(count)
        correct = (similarity.argmax(2) == rows) & (similarity.argmax(1) == rows)
    return loss, (correct & valid).float()


def reliability_loss(logits: Tensor, correct: Tensor, valid: Tensor) -> Tensor:
    """Return the binary cross-entropy of reliability at points, (B, N)."""
    loss = functional.binary_cross_entropy_with_logits(
        logits, correct, reduction="none"
    )
    return (loss * valid).sum() / valid.sum().clamp(min=1)
