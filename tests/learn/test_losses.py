"""Losses of the feature network."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from edgeloc_tools.learn.losses import (
    dual_softmax_loss,
    reliability_loss,
    sample_map,
)
from edgeloc_tools.learn.train_retrieval import contrastive_loss


def test_sampling_follows_the_corner_convention():
    # Cell j stands for pixel 8 j + 4.
    ramp = torch.arange(5.0).expand(1, 1, 3, 5)
    at = torch.tensor([[[4.0, 12.0], [8.0, 12.0], [33.0, 4.0]]])
    sampled = sample_map(ramp, at, width=40, height=24)
    torch.testing.assert_close(sampled[0, :, 0], torch.tensor([0.0, 0.5, 3.625]))


def test_equal_descriptors_have_almost_no_loss_and_all_match():
    rows = functional.normalize(torch.eye(6)[None], dim=2)
    points = torch.arange(12.0).reshape(1, 6, 2) * 50
    valid = torch.ones(1, 6, dtype=torch.bool)
    loss, correct = dual_softmax_loss(rows, rows, points, valid)
    assert float(loss) < 1e-6
    assert correct.sum() == 6
    shuffled, wrong = dual_softmax_loss(rows, rows.flip(1), points, valid)
    assert float(shuffled) > 30
    assert wrong.sum() == 0


def test_neighbours_are_no_negatives_and_rows_filled_up_do_not_count():
    same = functional.normalize(torch.ones(1, 3, 4), dim=2)
    near = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [2.0, 1.0]]])
    valid = torch.ones(1, 3, dtype=torch.bool)
    loss, _ = dual_softmax_loss(same, same, near, valid)
    assert float(loss) < 1e-6
    far = near * 100
    loss, _ = dual_softmax_loss(same, same, far, valid)
    assert float(loss) == pytest.approx(2 * math.log(3.0), rel=1e-5)
    only = torch.tensor([[True, False, False]])
    loss, correct = dual_softmax_loss(same, same, far, only)
    assert float(loss) < 1e-6
    assert correct[0, 1:].sum() == 0


def test_reliability_learns_the_share_that_matches():
    correct = torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0]])
    valid = torch.tensor([[True, True, True, True, False]])
    logit = torch.full((1, 5), -1.0986)  # 1 in 4
    best = reliability_loss(logit, correct, valid)
    assert reliability_loss(logit + 0.3, correct, valid) > best
    assert reliability_loss(logit - 0.3, correct, valid) > best


def test_the_same_place_twice_in_a_batch_is_no_negative():
    views = functional.normalize(torch.ones(3, 8), dim=1)
    loss, first = contrastive_loss(
        views, views, torch.tensor([4, 4, 9]), temperature=0.1
    )
    # The first two have one negative each, the third two.
    assert float(loss) == pytest.approx((2 * math.log(2) + math.log(3)) / 3, rel=1e-5)
    apart = torch.eye(3)
    loss, first = contrastive_loss(
        apart, apart, torch.tensor([4, 5, 9]), temperature=0.1
    )
    assert float(loss) < 1e-3
    assert float(first) == 1.0
    _, none = contrastive_loss(
        apart, apart.roll(1, 0), torch.tensor([4, 5, 9]), temperature=0.1
    )
    assert float(none) == 0.0
