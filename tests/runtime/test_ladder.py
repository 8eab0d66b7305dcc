"""The ladder as a table and as a state machine."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeloc.clock import ManualClock
from edgeloc.runtime.ladder import (
    KNOBS,
    LADDER,
    STEPS,
    LadderState,
    Need,
    plan,
    site_data,
    step_cost_ns,
)
from edgeloc.runtime.stage_timer import StageTimer
from edgeloc.types import Cause, PoseStatus, Rung

MS = 1_000_000
STAGES = sorted({stage for step in LADDER for stage in step.stages})
USUAL_MS = {
    "preprocess": 1,
    "track": 10,
    "features": 27,
    "track_map": 2,
    "guided": 8,
    "retrieve": 2,
    "local_map": 1,
    "match_pnp": 60,
    "interpolate": 1,
}
SITE = frozenset({Need.RETRIEVAL, Need.TILES})
MOVING = SITE | {Need.MOTION, Need.PRIOR}
TRACKING = MOVING | {Need.TRACKS}


class Table:
    """Costs by a table, ms."""

    def __init__(self, costs_ms):
        self.costs_ms = costs_ms

    def cost_ns(self, stage, /, *, setting=0, share=1.0):
        cost = self.costs_ms.get(stage, 0)
        return int(cost * MS * (share if setting else 1.0))


USUAL = Table(USUAL_MS)


def names(state, budget_ms, costs=USUAL):
    found = plan(state, int(budget_ms * MS), costs)
    return [attempt.step.name for attempt in found.attempts]


def test_the_rungs_are_those_of_the_types_in_their_order():
    in_ladder = list(dict.fromkeys(step.rung for step in LADDER))
    assert in_ladder == list(Rung)
    assert [step.name for step in LADDER] == list(STEPS)


def test_statuses_fall_along_the_ladder():
    order = list(PoseStatus)
    ranks = [order.index(step.status) for step in LADDER]
    assert ranks == sorted(ranks)


def test_every_step_but_lost_needs_something_and_lost_nothing():
    assert STEPS["lost"].needs == frozenset()
    assert STEPS["lost"].stages == STEPS["predict"].stages == ()
    for step in LADDER[:-1]:
        assert step.needs, step.name


def test_cheaper_steps_cost_less():
    """A wrong table would pass every test of the state machine."""
    costs = [
        step_cost_ns(STEPS[name], USUAL)
        for name in ("relocalize", "guided", "interpolate", "track", "predict")
    ]
    assert costs == sorted(costs, reverse=True)
    for setting in range(1, len(KNOBS)):
        assert step_cost_ns(STEPS["relocalize"], USUAL, setting=setting) < step_cost_ns(
            STEPS["relocalize"], USUAL, setting=setting - 1
        )


def test_knobs_go_down_one_after_the_other():
    """Keypoints, then retrieved keyframes, then RANSAC iterations."""
    knobs = [(s.keypoints, s.keyframes, s.samples) for s in KNOBS]
    assert knobs[0] == (1.0, 1.0, 1.0)
    for number, (before, after) in enumerate(itertools.pairwise(knobs)):
        lower = [b > a for b, a in zip(before, after, strict=True)]
        assert lower == [idx == number for idx in range(3)]


@pytest.mark.parametrize(
    ("have", "budget_ms", "expected"),
    [
        (TRACKING, 100, ["predict", "track"]),
        (TRACKING, 11, ["predict", "track"]),
        (TRACKING, 10, ["predict"]),
        (MOVING, 100, ["predict", "guided"]),
        (MOVING, 35, ["predict", "guided"]),
        (MOVING, 30, ["predict", "guided"]),
        (MOVING, 29, ["predict"]),
        (MOVING, 10, ["predict"]),
        (SITE, 100, ["interpolate", "relocalize"]),
        (SITE, 91, ["relocalize"]),
        (SITE, 31, ["interpolate"]),
        (SITE, 30, ["lost"]),
        (frozenset({Need.MOTION}), 0, ["predict"]),
        (frozenset(), 1000, ["lost"]),
    ],
)
def test_the_best_that_fits_is_chosen(have, budget_ms, expected):
    assert names(LadderState(have=have), budget_ms) == expected


@pytest.mark.parametrize(
    ("budget_ms", "setting"), [(91, 0), (90, 1), (59, 1), (58, 2), (46, 3), (40, None)]
)
def test_knobs_are_turned_down_before_the_rung(budget_ms, setting):
    found = plan(LadderState(have=SITE), budget_ms * MS, USUAL).attempts[-1]
    if setting is None:
        assert found.step.name == "interpolate"
    else:
        assert (found.step.name, found.setting) == ("relocalize", setting)
        assert found.settings is KNOBS[setting]


def test_without_turning_knobs_the_rung_falls_at_once():
    state = LadderState(have=SITE, turn_down=False)
    assert names(state, 90) == ["interpolate"]


def test_stages_that_ran_cost_nothing_again():
    state = LadderState(have=SITE)
    assert names(state, 40) == ["interpolate"]
    after = state.after(
        "interpolate", Cause.NONE, stages=("preprocess", "features", "retrieve")
    )
    assert names(after, 61) == ["relocalize"]
    assert plan(after, 61 * MS, USUAL).attempts[0].setting == 0


def test_a_failed_step_gives_way_to_the_next():
    state = LadderState(have=TRACKING)
    seen = []
    while True:
        name = names(state, 1000)[-1]
        seen.append(name)
        if name == "lost":
            break
        state = state.after(name, Cause.FEW_INLIERS)
    assert seen == ["track", "guided", "relocalize", "interpolate", "predict", "lost"]


def test_late_steps_come_after_their_safety_nets():
    """Nothing LOCALIZED fits: the best is started all the same, after the others."""
    state = LadderState(have=MOVING, may_be_late=True)
    found = plan(state, 20 * MS, USUAL)
    assert [a.step.name for a in found.attempts] == ["predict", "guided"]
    assert [a.late for a in found.attempts] == [False, True]
    assert found.attempts[-1].setting == 0
    fits = plan(state, 100 * MS, USUAL)
    assert not any(a.late for a in fits.attempts)


def test_late_steps_may_be_hurried():
    state = LadderState(have=SITE, may_be_late=True, late_setting=2)
    chosen = plan(state, 20 * MS, USUAL).attempts[-1]
    assert (chosen.step.name, chosen.setting, chosen.late) == ("relocalize", 2, True)
    moving = LadderState(have=MOVING, may_be_late=True, late_setting=9)
    assert plan(moving, 20 * MS, USUAL).attempts[-1].setting == 1


def test_what_does_not_fit_is_named():
    found = plan(LadderState(have=MOVING), 29 * MS, USUAL)
    assert [step.name for step in found.skipped] == [
        "guided",
        "relocalize",
        "interpolate",
    ]


def test_a_method_takes_its_own_steps_only():
    state = LadderState(have=TRACKING, only=frozenset({"interpolate", "lost"}))
    assert names(state, 1000) == ["interpolate"]
    assert names(state, 1) == ["lost"]


def test_a_site_says_what_it_has():
    assert site_data(("RELOCALIZE", "INTERPOLATE")) == SITE
    assert site_data(("INTERPOLATE",)) == {Need.RETRIEVAL}
    assert site_data(("SCENE_COORDS", "teleport")) == {Need.SCENE_MODEL}
    assert site_data(()) == frozenset()


@pytest.mark.parametrize("step", LADDER, ids=lambda step: step.name)
def test_every_step_can_be_reached(step):
    """With what it needs, and where nothing better is to be had."""
    assert names(LadderState(have=step.needs), 10_000)[-1] in {
        s.name for s in LADDER[: LADDER.index(step) + 1]
    }
    tried = {s.name: Cause.FEW_MATCHES for s in LADDER[: LADDER.index(step)]}
    state = LadderState(have=step.needs, tried=tried)
    assert names(state, 10_000)[-1] == step.name


needs = st.frozensets(st.sampled_from(list(Need)))
costs_of = st.fixed_dictionaries({s: st.integers(0, 200) for s in STAGES}).map(Table)
budgets = st.integers(-50, 500)
states = st.builds(
    LadderState,
    have=needs,
    done=st.frozensets(st.sampled_from(STAGES)),
    tried=st.dictionaries(
        st.sampled_from(list(STEPS)[:-1]), st.just(Cause.FEW_INLIERS)
    ),
    may_be_late=st.booleans(),
    turn_down=st.booleans(),
)


@given(states, costs_of, budgets)
def test_what_is_chosen_fits_or_says_that_it_is_late(state, costs, budget_ms):
    found = plan(state, budget_ms * MS, costs)
    chosen = found.attempts[-1]
    cost_ns = step_cost_ns(chosen.step, costs, setting=chosen.setting, done=state.done)
    if chosen.late:
        assert state.may_be_late
        assert chosen.step.status is PoseStatus.LOCALIZED
    elif chosen.step.stages:
        assert cost_ns <= budget_ms * MS
    for attempt in found.attempts:
        assert attempt.step.needs <= state.have
        assert attempt.step.name not in state.tried


@given(states, costs_of, budgets, st.integers(0, 300))
def test_more_time_never_gives_a_worse_rung(state, costs, budget_ms, more_ms):
    less = plan(state, budget_ms * MS, costs).attempts[-1]
    more = plan(state, (budget_ms + more_ms) * MS, costs).attempts[-1]
    if not less.late:
        assert LADDER.index(more.step) <= LADDER.index(less.step)
    else:
        assert more.late or more.step.status is PoseStatus.LOCALIZED


@given(states, costs_of, budgets)
def test_lost_only_without_a_prediction(state, costs, budget_ms):
    chosen = plan(state, budget_ms * MS, costs).attempts[-1]
    if chosen.step.name == "lost":
        assert Need.MOTION not in state.have or "predict" in state.tried


@given(states, costs_of, budgets)
def test_safety_nets_are_worse_and_do_not_cost_the_better_its_time(
    state, costs, budget_ms
):
    *nets, chosen = plan(state, budget_ms * MS, costs).attempts
    ranks = [LADDER.index(net.step) for net in nets]
    assert ranks == sorted(ranks, reverse=True)
    assert all(rank > LADDER.index(chosen.step) for rank in ranks)
    if not chosen.late:
        chosen_ns = step_cost_ns(
            chosen.step, costs, setting=chosen.setting, done=state.done
        )
        for net in nets:
            own = state.done | frozenset(chosen.step.stages)
            extra_ns = step_cost_ns(net.step, costs, done=own)
            assert extra_ns == 0 or chosen_ns + extra_ns <= budget_ms * MS


@given(states, costs_of, budgets)
def test_climbing_ends(state, costs, budget_ms):
    """Whatever fails, after as many attempts as there are steps nothing is left."""
    for _ in range(len(LADDER)):
        attempt = plan(state, budget_ms * MS, costs).attempts[0]
        if attempt.step.name == "lost":
            return
        state = state.after(attempt.step.name, Cause.FEW_MATCHES)
    raise AssertionError


# What stages cost


def spend(timer, clock, ms, stage="features", setting=0):
    timer.start_frame()
    with timer.stage(stage, setting=setting):
        clock.advance_ns(round(ms * MS))
    timer.end_frame()


def test_the_cost_is_the_95_percent_quantile():
    clock = ManualClock()
    timer = StageTimer(clock)
    rng = np.random.default_rng(0)
    for ms in rng.uniform(10.0, 20.0, 200):
        spend(timer, clock, ms)
    assert 18.5 * MS < timer.cost_ns("features") < 20.0 * MS


def test_one_hiccup_in_forty_frames_changes_nothing():
    clock = ManualClock()
    timer = StageTimer(clock)
    for k in range(40):
        spend(timer, clock, 300.0 if k == 25 else 10.0)
    assert timer.cost_ns("features") == 10 * MS


def test_a_new_pace_is_learned():
    clock = ManualClock()
    timer = StageTimer(clock)
    for ms in [10.0] * 40 + [30.0] * 3:
        spend(timer, clock, ms)
    assert timer.cost_ns("features") == 30 * MS
    for _ in range(40):
        spend(timer, clock, 10.0)
    assert timer.cost_ns("features") == 10 * MS


def test_a_setting_costs_its_share_until_it_was_tried():
    clock = ManualClock()
    timer = StageTimer(clock)
    assert timer.cost_ns("features") == 0
    spend(timer, clock, 5.0)
    assert timer.cost_ns("features", setting=2, share=0.5) == 2.5 * MS
    spend(timer, clock, 4.0, setting=2)
    assert timer.cost_ns("features", setting=2, share=0.5) == 4 * MS
    assert timer.cost_ns("features") == 5 * MS


def test_what_was_measured_without_frames_holds_until_one_came():
    clock = ManualClock()
    timer = StageTimer(clock)
    spend(timer, clock, 50.0)
    timer.call_provisional()
    assert timer.cost_ns("features") == 50 * MS
    spend(timer, clock, 5.0)
    assert timer.cost_ns("features") == 5 * MS
    spend(timer, clock, 7.0)
    assert timer.cost_ns("features") == 7 * MS


def test_what_is_skipped_becomes_affordable_again():
    clock = ManualClock()
    timer = StageTimer(clock)
    spend(timer, clock, 300.0)
    for _ in range(30):
        timer.forget_a_little("features", "unknown")
    assert timer.cost_ns("features") < 70 * MS


def test_a_fix_is_no_safety_net_of_another():
    """With time for everything, worse fixes wait until the better one has failed."""
    costs = Table({**USUAL_MS, "local_sfm": 40, "relative": 90})
    both = SITE | {Need.KEYFRAME_FEATURES}
    state = LadderState(have=both)
    assert names(state, 1000, costs) == ["interpolate", "relocalize"]
    for failed, then in (("relocalize", "local_sfm"), ("local_sfm", "relative")):
        state = state.after("interpolate", Cause.NONE, stages=())
        state = state.after(failed, Cause.FEW_INLIERS, stages=())
        assert names(state, 1000, costs)[-1] == then
    features = LadderState(have=both - {Need.TILES})
    assert names(features, 1000, costs) == ["interpolate", "local_sfm"]
