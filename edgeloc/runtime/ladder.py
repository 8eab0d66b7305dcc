"""The ladder: which rungs there are, what each needs and costs, and what to try next.

A table and pure functions of it, without clocks, arrays or files: the estimator asks
`plan` what to do with the time that is left, does it, tells `LadderState.after` how it
went, and asks again.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol

from edgeloc.types import Cause, PoseStatus, Rung


class Need(str, enum.Enum):
    """What a way to answer cannot do without."""

    TRACKS = "TRACKS"
    """Landmarks whose pixels were known in the frame before."""
    PRIOR = "PRIOR"
    """A prediction that says where landmarks are to be looked for."""
    MOTION = "MOTION"
    """A prediction that is worth telling."""
    RETRIEVAL = "RETRIEVAL"
    """Global descriptors of keyframes."""
    TILES = "TILES"
    """Landmarks with descriptors."""
    SCENE_MODEL = "SCENE_MODEL"
    """A scene-coordinate network of the site."""
    KEYFRAME_FEATURES = "KEYFRAME_FEATURES"
    """Local features of keyframes, with or without landmarks."""
    POSE_MODEL = "POSE_MODEL"
    """A pose-regression network of the site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How far the knobs are turned down.

    Parameters
    ----------
    keypoints : float
        Share of the usual number.
    keyframes : float
        Share of the usual number of retrieved keyframes.
    samples : float
        Share of the usual bound of RANSAC's iterations.
    expected : mapping of str to float
        What a stage probably costs, relative to the full settings, before it was tried.
    """

    keypoints: float = 1.0
    keyframes: float = 1.0
    samples: float = 1.0
    expected: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


FULL = Settings()

KNOBS: tuple[Settings, ...] = (
    FULL,
    Settings(
        keypoints=0.5, expected={"features": 0.8, "match_pnp": 0.55, "guided": 0.6}
    ),
    Settings(
        keypoints=0.5,
        keyframes=0.5,
        expected={"features": 0.8, "match_pnp": 0.35, "guided": 0.6},
    ),
    Settings(
        keypoints=0.5,
        keyframes=0.5,
        samples=0.25,
        expected={"features": 0.8, "match_pnp": 0.25, "guided": 0.6},
    ),
)
"""Which knob is turned down first: keypoints, retrieved keyframes, RANSAC iterations.

Half of the keypoints halve the comparison with landmarks, which is most of the time;
fewer keyframes cost recall; fewer samples cost it only where most matches are wrong,
and save little where they are right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One way to answer.

    Parameters
    ----------
    name : str
        Unique; a rung may have several.
    rung : Rung
        What an answer is called.
    status : PoseStatus
        What an answer is worth.
    needs : frozenset of Need
        All of them.
    stages : tuple of str
        What is timed, in order. Stages that other steps of the frame have run already
        cost nothing again.
    settings : tuple of Settings
        From full to the least.
    """

    name: str
    rung: Rung
    status: PoseStatus
    needs: frozenset[Need]
    stages: tuple[str, ...]
    settings: tuple[Settings, ...] = (FULL,)


_DESCRIBE = ("preprocess", "features")

LADDER: tuple[Step, ...] = (
    Step(
        name="track",
        rung=Rung.TRACK,
        status=PoseStatus.LOCALIZED,
        needs=frozenset({Need.TRACKS}),
        stages=("preprocess", "track"),
    ),
    Step(
        name="guided",
        rung=Rung.TRACK,
        status=PoseStatus.LOCALIZED,
        needs=frozenset({Need.PRIOR, Need.TILES}),
        stages=(*_DESCRIBE, "track_map", "guided"),
        settings=KNOBS[:2],
    ),
    Step(
        name="relocalize",
        rung=Rung.RELOCALIZE,
        status=PoseStatus.LOCALIZED,
        needs=frozenset({Need.RETRIEVAL, Need.TILES}),
        stages=(*_DESCRIBE, "retrieve", "local_map", "match_pnp"),
        settings=KNOBS,
    ),
    Step(
        name="scene_coords",
        rung=Rung.SCENE_COORDS,
        status=PoseStatus.LOCALIZED,
        needs=frozenset({Need.SCENE_MODEL}),
        stages=(*_DESCRIBE, "scene_coords"),
    ),
    Step(
        name="local_sfm",
        rung=Rung.LOCAL_SFM,
        status=PoseStatus.LOCALIZED,
        needs=frozenset({Need.RETRIEVAL, Need.KEYFRAME_FEATURES}),
        stages=(*_DESCRIBE, "retrieve", "local_sfm"),
    ),
    Step(
        name="relative",
        rung=Rung.RELATIVE,
        status=PoseStatus.LOCALIZED,
        needs=frozenset({Need.RETRIEVAL, Need.KEYFRAME_FEATURES}),
        stages=(*_DESCRIBE, "retrieve", "relative"),
    ),
    Step(
        name="interpolate",
        rung=Rung.INTERPOLATE,
        status=PoseStatus.COARSE,
        needs=frozenset({Need.RETRIEVAL}),
        stages=(*_DESCRIBE, "retrieve", "interpolate"),
    ),
    Step(
        name="regress",
        rung=Rung.REGRESS,
        status=PoseStatus.COARSE,
        needs=frozenset({Need.POSE_MODEL}),
        stages=(*_DESCRIBE, "regress"),
    ),
    Step(
        name="predict",
        rung=Rung.PREDICT,
        status=PoseStatus.PREDICTED,
        needs=frozenset({Need.MOTION}),
        stages=(),
    ),
    Step(
        name="lost",
        rung=Rung.LOST,
        status=PoseStatus.LOST,
        needs=frozenset(),
        stages=(),
    ),
)
"""All rungs, best first."""

STEPS: Mapping[str, Step] = MappingProxyType({step.name: step for step in LADDER})

_DATA: Mapping[Rung, frozenset[Need]] = MappingProxyType(
    {
        Rung.RELOCALIZE: frozenset({Need.RETRIEVAL, Need.TILES}),
        Rung.SCENE_COORDS: frozenset({Need.SCENE_MODEL}),
        Rung.LOCAL_SFM: frozenset({Need.RETRIEVAL, Need.KEYFRAME_FEATURES}),
        Rung.RELATIVE: frozenset({Need.RETRIEVAL, Need.KEYFRAME_FEATURES}),
        Rung.INTERPOLATE: frozenset({Need.RETRIEVAL}),
        Rung.REGRESS: frozenset({Need.POSE_MODEL}),
    }
)


def site_data(rungs: Iterable[str]) -> frozenset[Need]:
    """Return what a site that carries data for some rungs has.

    Parameters
    ----------
    rungs : iterable of str
        `SiteManifest.rungs`; names that are not known here count for nothing.
    """
    names = set(rungs)
    return frozenset().union(
        *(needs for rung, needs in _DATA.items() if rung.value in names)
    )


class Costs(Protocol):
    """What stages are expected to take."""

    def cost_ns(self, stage: str, /, *, setting: int = 0, share: float = 1.0) -> int:
        """Return the expected time of a stage.

        Parameters
        ----------
        stage : str
            One of `Step.stages`.
        setting : int
            Index into `Step.settings`.
        share : float
            What it is probably worth of the full cost, before it was tried.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderState:
    """What is known about a frame so far.

    Parameters
    ----------
    have : frozenset of Need
        What there is.
    only : frozenset of str or None
        Names of the steps that are wanted; None = all.
    done : frozenset of str
        Stages that ran.
    tried : mapping of str to Cause
        Steps that ran, and why they gave nothing better; NONE for an answer.
    may_be_late : bool
        Whether a step may be started that will end after the deadline: its pose still
        serves the frames that follow.
    late_setting : int
        How far knobs are turned down for it: the sooner it ends, the less the picture
        has changed by then.
    turn_down : bool
        Whether knobs may be turned.
    """

    have: frozenset[Need]
    only: frozenset[str] | None = None
    done: frozenset[str] = frozenset()
    tried: Mapping[str, Cause] = field(default_factory=dict)
    may_be_late: bool = False
    late_setting: int = 0
    turn_down: bool = True

    def after(
        self, name: str, cause: Cause, *, stages: Iterable[str] = ()
    ) -> LadderState:
        """Return the state after a step ran.

        Parameters
        ----------
        name : str
            Of the step.
        cause : Cause
            NONE for an answer.
        stages : iterable of str
            That are done by now.
        """
        return replace(
            self,
            done=self.done | frozenset(stages),
            tried={**self.tried, name: cause},
        )

    def available(self) -> list[Step]:
        """Return the steps that could still be taken, best first."""
        return [
            step
            for step in LADDER
            if step.needs <= self.have
            and step.name not in self.tried
            and (self.only is None or step.name in self.only)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A step to take.

    Parameters
    ----------
    step : Step
        Which.
    setting : int
        Index into its settings.
    late : bool
        Whether it will probably end after the deadline.
    """

    step: Step
    setting: int = 0
    late: bool = False

    @property
    def settings(self) -> Settings:
        """The knobs."""
        return self.step.settings[self.setting]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do with the time that is left.

    Parameters
    ----------
    attempts : tuple of Attempt
        In this order: first what costs next to nothing and is there should all else
        fail, then the best that fits. Never empty.
    skipped : tuple of Step
        Better than what is attempted, and too expensive.
    """

    attempts: tuple[Attempt, ...]
    skipped: tuple[Step, ...] = ()


def step_cost_ns(
    step: Step, costs: Costs, *, setting: int = 0, done: frozenset[str] = frozenset()
) -> int:
    """Return what a step is expected to take, without the stages that are done."""
    expected = step.settings[setting].expected
    return sum(
        costs.cost_ns(stage, setting=setting, share=expected.get(stage, 1.0))
        for stage in step.stages
        if stage not in done
    )


def plan(state: LadderState, remaining_ns: int, costs: Costs) -> Plan:
    """Return what to do in which order.

    The best step that fits is chosen, with the knobs turned down as little as that
    takes; where none with a fix fits and `LadderState.may_be_late`, the best one, to be
    finished late. Steps below it that cost nothing, or whose
    stages it needs anyway, go first, so that there is an answer while it runs.

    Parameters
    ----------
    state : LadderState
        What there is and what was tried.
    remaining_ns : int
        Time to the deadline.
    costs : Costs
        Expected times.
    """
    available = state.available()
    skipped: list[Step] = []
    chosen: Attempt | None = None
    for step in available:
        setting = _setting_that_fits(step, state, remaining_ns, costs)
        if setting is not None:
            chosen = Attempt(step=step, setting=setting)
            break
        skipped.append(step)
    first = skipped[0] if skipped else None
    if (
        state.may_be_late
        and first is not None
        and (chosen is None or chosen.step.status is not PoseStatus.LOCALIZED)
        and first.status is PoseStatus.LOCALIZED
    ):
        setting = min(state.late_setting, len(first.settings) - 1)
        chosen = Attempt(step=first, setting=setting, late=True)
        skipped = []
    if chosen is None:
        return Plan(attempts=(Attempt(step=STEPS["lost"]),), skipped=tuple(skipped))
    nets = _nets(chosen, state, remaining_ns, costs)
    return Plan(attempts=(*nets, chosen), skipped=tuple(skipped))


def _setting_that_fits(
    step: Step, state: LadderState, remaining_ns: int, costs: Costs
) -> int | None:
    if not step.stages:
        return 0
    for setting in range(len(step.settings) if state.turn_down else 1):
        cost_ns = step_cost_ns(step, costs, setting=setting, done=state.done)
        if cost_ns <= remaining_ns:
            return setting
    return None


def _nets(
    chosen: Attempt,
    state: LadderState,
    remaining_ns: int,
    costs: Costs,
) -> list[Attempt]:
    """Return cheaper answers to have at hand, cheapest first."""
    nets = []
    rank = LADDER.index(chosen.step)
    for step in reversed(state.available()):
        if LADDER.index(step) <= rank or step.rung is Rung.LOST:
            continue
        if step.status is PoseStatus.LOCALIZED:
            # Another fix costs as much as the chosen one, and is tried if that fails.
            continue
        shared = [stage for stage in step.stages if stage in chosen.step.stages]
        own = frozenset(shared) | state.done
        extra_ns = step_cost_ns(step, costs, done=own)
        if step.stages and len(shared) < len(step.stages) - 1:
            continue
        if chosen.late or not step.stages:
            nets.append(Attempt(step=step, setting=0, late=False))
            continue
        cost_ns = step_cost_ns(
            chosen.step, costs, setting=chosen.setting, done=state.done
        )
        if cost_ns + extra_ns <= remaining_ns:
            # Same features: a step of its own settings would compute them twice.
            nets.append(Attempt(step=step))
    return nets
