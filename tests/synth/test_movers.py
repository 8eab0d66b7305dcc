"""Moving objects and their masks."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloc.geometry.camera import project
from edgeloc_tools.synth.movers import (
    PERSON_SIZE_M,
    Traffic,
    make_crowd,
    make_walkers,
)
from edgeloc_tools.synth.render import render
from edgeloc_tools.synth.scene import Scene, car_quads
from edgeloc_tools.synth.trajectory import look


def test_the_mask_is_where_the_picture_changes(room, vga):
    pose = look((-1.5, 0.0, 1.4), yaw_rad=0.0)
    walker = make_walkers(1, [((1.0, -1.0, 0.0), (1.0, 1.0, 0.0))])
    empty = render(room, vga, pose)
    shot = render(room.with_movers(walker), vga, pose, time_s=1.0)
    changed = (shot.image != empty.image).any(axis=2)
    assert not changed[~shot.moving].any()
    assert changed[shot.moving].mean() > 0.97
    assert 0.02 < shot.moving.mean() < 0.2
    assert not empty.moving.any()
    assert (shot.depth_m[shot.moving] <= empty.depth_m[shot.moving]).all()


def test_a_walker_is_where_it_walks(room, vga):
    pose = look((-1.5, 0.0, 1.4), yaw_rad=0.0)
    (walker,) = make_walkers(1, [((1.0, -1.0, 0.0), (1.0, 1.0, 0.0))])
    for time_s in (0.0, 0.5, 2.0 / walker.speed_m_s, 3.1 / walker.speed_m_s):
        walked = (time_s * walker.speed_m_s) % 4.0
        y = -1.0 + min(walked, 4.0 - walked)
        head = np.array([[1.0, y, 0.93 * PERSON_SIZE_M[1]]])
        at, _ = project(vga, pose.transform(head))
        moving = render(room.with_movers([walker]), vga, pose, time_s=time_s).moving
        assert moving[int(at[0, 1]), int(at[0, 0])]


@pytest.mark.parametrize("coverage", [0.1, 0.4, 0.8])
def test_a_crowd_hides_the_share_that_it_is_told(vga, coverage):
    crowd = make_crowd(3, vga, coverage=coverage)
    scene = Scene(name="crowd", quads=(), movers=(crowd,))
    for time_s in np.arange(0.0, 12.0, 1.7):
        pose = look((0.0, 0.1 * time_s, 1.5), yaw_rad=0.2 * time_s)
        shot = render(scene, vga, pose, time_s=float(time_s))
        assert shot.moving.mean() == pytest.approx(coverage, abs=0.03)


def test_a_crowd_moves(vga):
    scene = Scene(name="", quads=(), movers=(make_crowd(3, vga, coverage=0.4),))
    pose = look((0.0, 0.0, 1.5), yaw_rad=0.0)
    first, second = (render(scene, vga, pose, time_s=t).moving for t in (1.0, 1.5))
    assert 0.02 < (first != second).mean() < 0.5


def test_a_crowd_cannot_hide_everything(vga):
    with pytest.raises(ValueError, match=r"coverage=0\.95 must be in"):
        make_crowd(3, vga, coverage=0.95)


def test_traffic_drives_on_and_starts_again(rng):
    car = Traffic(
        quads=car_quads(rng, (30.0, 1.0)), velocity_m_s=(-7.0, 0.0, 0.0), period_s=4.0
    )
    pose = look((0.0, 0.0, 1.5), yaw_rad=0.0)
    at = [car.quads_at(t, pose)[0].origin for t in (0.0, 1.0, 5.0)]
    assert at[1] - at[0] == pytest.approx([-7.0, 0.0, 0.0])
    assert at[2] == pytest.approx(at[1])
