"""Options of `edgeloc-run`: one strict dataclass, from TOML and the command line.

Every option is a key of the same name (dashes and all) in the TOML file. Unknown keys
and wrong values are errors, and all of them are reported at once. The command line
wins over the file, the file over the defaults. Relative paths in the file mean the same
as on the command line: relative to the current folder.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from edgeloc.errors import ConfigError

EMIT_CHOICES = ("asap", "fixed")
METHOD_CHOICES = (
    "auto",
    "structure",
    "scene-coords",
    "local-sfm",
    "relative",
    "interpolate",
    "regress",
)
RECORD_IMAGES_CHOICES = ("auto", "jpeg", "png", "reference", "none")
PACE_CHOICES = ("realtime", "every")
REALTIME_CHOICES = ("off", "auto", "require")
BACKEND_CHOICES = (
    *("auto", "ort-cpu", "ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx"),
)

REALTIME_BUDGET_MS = 33.0
"""Budget with ``--pace realtime`` when none is given: a frame of a 30 Hz camera."""

_MAX_BUDGET_MS = 60_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What `edgeloc-run` was asked to do; field names are option names with ``_``.

    Parameters
    ----------
    camera : str or None
        Source, see `edgeloc.runtime.sources.open_source`.
    map : str or None
        Site folder.
    trusted_key : str or None
        Public key with which the site has to be signed, see `edgeloc.tiles.signing`.
    intrinsics : str or None
        Calibration file, see `edgeloc.runtime.intrinsics.load_intrinsics`.
    budget_ms : float or None
        Time from the capture of a frame to its record; None goes by the pace, see
        `budget_ns_at`.
    emit : str
        "asap" or "fixed".
    method : str
        Which family of methods answers.
    cold : bool
        No prior between frames.
    pace : str or None
        "realtime" or "every"; None chooses by the source.
    rate : float or None
        Frames per second of a folder, or asked of a camera.
    backend : str
        Where networks run.
    engines : str or None
        Folder of TensorRT's engines; None = beside each model.
    threads : int
        Of each network on the CPU.
    out : tuple of str
        Sinks.
    odom : bool
        Records also have the smooth odometry frame.
    metrics : str or None
        Where Prometheus fetches numbers, see `edgeloc.runtime.metrics_server`.
    record : str or None
        Log of the run, see `edgeloc.runtime.record`.
    record_images : str
        How that keeps frames.
    max_frames : int or None
        Stop after that many records.
    max_keypoints : int or None
        Features per frame; None takes the site's number.
    seed : int
        Of RANSAC.
    mask : str or None
        What every frame shows of the vehicle, see
        `edgeloc.features.mask.load_static_mask`.
    segmenter : str or None
        Manifest of a segmentation network that finds what moves.
    ignore_classes : str or None
        Its classes to ignore, with commas; None for what is known to move.
    gnss : str or None
        Where NMEA sentences come from, see
        `edgeloc.runtime.prior_source.open_prior_source`.
    gnss_sigma_m : float or None
        Of positions, in place of what the receiver says.
    gnss_latency_ms : float
        How old sentences are when they arrive.
    compass : bool
        Headings and courses among them are used, too.
    compass_sigma_deg, compass_offset_deg : float
        Their least standard deviation, and what is added to them.
    gravity : str or None
        "X,Y,Z" in camera axes, "nmea" for roll and pitch among the sentences, or "imu"
        for what accelerations say on average.
    gravity_sigma_deg : float
        Standard deviation of that direction.
    imu : str or None
        Where angular rates come from, see `edgeloc.runtime.motion_lines` and
        `edgeloc.runtime.motion_source`.
    imu_extrinsics : str or None
        How the sensor is turned, see `edgeloc.runtime.extrinsics.load_extrinsics`.
    imu_latency_ms : float
        How old its lines are when they arrive; of a file, how long before the first
        frame it begins.
    wheel_odometry : str or None
        Where poses of the vehicle come from.
    wheel_odometry_extrinsics : str or None
        Where the vehicle's origin is seen from the camera.
    wheel_odometry_latency_ms : float
        As `imu_latency_ms`.
    wheel_odometry_drift_percent : float
        Share of the way by which they are off.
    single_process : bool
        Capture, estimator and publisher take turns in one process.
    realtime : str
        Whether to ask for real-time priority: "off", "auto" or "require".
    cpus : str or None
        Cores to run on, as in "2,4-5"; None for all.
    check, demo, quiet, debug : bool
        As on the command line.
    """

    camera: str | None = None
    map: str | None = None
    trusted_key: str | None = None
    intrinsics: str | None = None
    budget_ms: float | None = None
    emit: str = "asap"
    method: str = "auto"
    cold: bool = False
    pace: str | None = None
    rate: float | None = None
    backend: str = "auto"
    engines: str | None = None
    threads: int = 1
    out: tuple[str, ...] = ("jsonl:-",)
    odom: bool = False
    metrics: str | None = None
    record: str | None = None
    record_images: str = "auto"
    max_frames: int | None = None
    max_keypoints: int | None = None
    seed: int = 0
    mask: str | None = None
    segmenter: str | None = None
    ignore_classes: str | None = None
    gnss: str | None = None
    gnss_sigma_m: float | None = None
    gnss_latency_ms: float = 0.0
    compass: bool = False
    compass_sigma_deg: float = 10.0
    compass_offset_deg: float = 0.0
    gravity: str | None = None
    gravity_sigma_deg: float = 2.0
    imu: str | None = None
    imu_extrinsics: str | None = None
    imu_latency_ms: float = 0.0
    wheel_odometry: str | None = None
    wheel_odometry_extrinsics: str | None = None
    wheel_odometry_latency_ms: float = 0.0
    wheel_odometry_drift_percent: float = 5.0
    single_process: bool = False
    realtime: str = "auto"
    cpus: str | None = None
    check: bool = False
    demo: bool = False
    quiet: bool = False
    debug: bool = False

    def budget_ns_at(self, pace: str) -> int | None:
        """Return the budget of a frame, ns; None when there is no deadline.

        Parameters
        ----------
        pace : str
            "realtime": `REALTIME_BUDGET_MS` unless `budget_ms` is given. "every": each
            frame is to be localized, however long it takes, unless it is given.

        Raises
        ------
        ConfigError
            When records are to come at a deadline and there is none.
        """
        budget_ms = self.budget_ms
        if budget_ms is None and pace == "realtime":
            budget_ms = REALTIME_BUDGET_MS
        if budget_ms is not None:
            return round(budget_ms * 1e6)
        if self.emit == "fixed":
            raise ConfigError(
                "--emit fixed needs --budget-ms MS: with --pace every, which is what "
                "recordings run with, frames have no deadline"
            )
        return None

    def cpu_list(self) -> tuple[int, ...]:
        """Return the cores of `cpus`; () for all."""
        return () if self.cpus is None else parse_cpus(self.cpus)

    def as_options(self) -> dict[str, object]:
        """Return the resolved options by option name, for logs."""
        return {option_name(key): value for key, value in asdict(self).items()}


def parse_cpus(text: str) -> tuple[int, ...]:
    """Return the numbers of a list such as "0,2-3".

    Raises
    ------
    ValueError
        When it is not one.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)):
            raise ValueError("must be a list of cores such as 2,4-5")
        start, end = int(first), int(last or first)
        if not start <= end < 4096:
            raise ValueError("must be a list of cores such as 2,4-5")
        numbers.update(range(start, end + 1))
    return tuple(sorted(numbers))


class _ValueProblemError(ValueError):
    """One wrong value; collected, never seen outside this file."""


def option_name(field_name: str) -> str:
    """Return the option (without dashes in front) of a field of `RunConfig`."""
    return field_name.replace("_", "-")


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _ValueProblemError("must be a text that is not empty")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _ValueProblemError("must be true or false")
    return value


def _choice(choices: tuple[str, ...]) -> Callable[[object], str]:
    def convert(value: object) -> str:
        if value not in choices:
            raise _ValueProblemError(f"must be one of {', '.join(choices)}")
        return str(value)

    return convert


def _whole(minimum: int, maximum: int = 2**31 - 1) -> Callable[[object], int]:
    def convert(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _ValueProblemError("must be a whole number")
        if not minimum <= value <= maximum:
            raise _ValueProblemError(f"must be from {minimum} to {maximum}")
        return value

    return convert


def _positive(maximum: float) -> Callable[[object], float]:
    def convert(value: object) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise _ValueProblemError("must be a number")
        if not (math.isfinite(value) and 0 < value <= maximum):
            raise _ValueProblemError(f"must be > 0 and at most {maximum:g}")
        return float(value)

    return convert


def _between(minimum: float, maximum: float) -> Callable[[object], float]:
    def convert(value: object) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise _ValueProblemError("must be a number")
        if not minimum <= value <= maximum:
            raise _ValueProblemError(f"must be from {minimum:g} to {maximum:g}")
        return float(value)

    return convert


def parse_direction(text: str) -> tuple[float, float, float]:
    """Return the numbers of "X,Y,Z".

    Raises
    ------
    ValueError
        When it is no direction.
    """
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError:
        x = y = z = math.nan
    if not 1e-6 < math.hypot(x, y, z) < 1e6:
        raise ValueError("must be nmea, imu or a direction such as 0,1,0")
    return x, y, z


def _gravity(value: object) -> str:
    text = _text(value)
    if text not in {"nmea", "imu"}:
        try:
            parse_direction(text)
        except ValueError as exc:
            raise _ValueProblemError(str(exc)) from exc
    return text


def _cpus(value: object) -> str:
    # A single core is a number in TOML.
    text = str(value) if type(value) is int else _text(value)
    try:
        parse_cpus(text)
    except ValueError as exc:
        raise _ValueProblemError(str(exc)) from exc
    return text


def _texts(value: object) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not items:
        raise _ValueProblemError("must be a text or a list of texts")
    return tuple(_text(item) for item in items)


_CONVERTERS: Mapping[str, Callable[[object], object]] = {
    "camera": _text,
    "map": _text,
    "trusted_key": _text,
    "intrinsics": _text,
    "budget_ms": _positive(_MAX_BUDGET_MS),
    "emit": _choice(EMIT_CHOICES),
    "method": _choice(METHOD_CHOICES),
    "cold": _flag,
    "pace": _choice(PACE_CHOICES),
    "rate": _positive(10_000.0),
    "backend": _choice(BACKEND_CHOICES),
    "engines": _text,
    "threads": _whole(1, 256),
    "out": _texts,
    "odom": _flag,
    "metrics": _text,
    "record": _text,
    "record_images": _choice(RECORD_IMAGES_CHOICES),
    "max_frames": _whole(1),
    "max_keypoints": _whole(1, 1_000_000),
    "seed": _whole(0),
    "mask": _text,
    "segmenter": _text,
    "ignore_classes": _text,
    "gnss": _text,
    "gnss_sigma_m": _positive(1e5),
    "gnss_latency_ms": _between(0.0, 10_000.0),
    "compass": _flag,
    "compass_sigma_deg": _positive(180.0),
    "compass_offset_deg": _between(-360.0, 360.0),
    "gravity": _gravity,
    "gravity_sigma_deg": _positive(90.0),
    "imu": _text,
    "imu_extrinsics": _text,
    "imu_latency_ms": _between(-10_000.0, 10_000.0),
    "wheel_odometry": _text,
    "wheel_odometry_extrinsics": _text,
    "wheel_odometry_latency_ms": _between(-10_000.0, 10_000.0),
    "wheel_odometry_drift_percent": _positive(100.0),
    "single_process": _flag,
    "realtime": _choice(REALTIME_CHOICES),
    "cpus": _cpus,
    "check": _flag,
    "demo": _flag,
    "quiet": _flag,
    "debug": _flag,
}

_NUMBERS: Mapping[str, Callable[[str], int | float]] = {
    "budget_ms": float,
    "rate": float,
    "threads": int,
    "max_frames": int,
    "max_keypoints": int,
    "seed": int,
    "gnss_sigma_m": float,
    "gnss_latency_ms": float,
    "compass_sigma_deg": float,
    "compass_offset_deg": float,
    "gravity_sigma_deg": float,
    "imu_latency_ms": float,
    "wheel_odometry_latency_ms": float,
    "wheel_odometry_drift_percent": float,
}


def load_config_file(path: Path) -> dict[str, object]:
    """Read a TOML file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    dict
        Its keys and values, not checked yet.

    Raises
    ------
    ConfigError
        When it cannot be read or is not TOML.
    """
    parser = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        toml = import_module(parser)
    except ImportError as exc:
        raise ConfigError(
            f"{path}: reading TOML needs {parser}; "
            f"install it with `pip install {parser}`"
        ) from exc
    try:
        return dict(toml.loads(path.read_text(encoding="utf-8")))
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    except (toml.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: is not valid TOML ({exc})") from exc


def _from_file(
    values: Mapping[str, object], where: str, problems: list[str]
) -> dict[str, object]:
    names = {option_name(name): name for name in _CONVERTERS}
    out: dict[str, object] = {}
    for key, value in values.items():
        if key not in names:
            close = difflib.get_close_matches(key.replace("_", "-"), names, n=1)
            hint = f", did you mean {close[0]}" if close else ""
            problems.append(f"{where}: unknown key {key}{hint}")
            continue
        try:
            out[names[key]] = _CONVERTERS[names[key]](value)
        except _ValueProblemError as exc:
            problems.append(f"{where}: {key} {exc}, got {value!r}")
    return out


def _from_command_line(
    values: Mapping[str, Any], problems: list[str]
) -> dict[str, object]:
    out: dict[str, object] = {}
    for name, raw in values.items():
        value = raw
        try:
            if name in _NUMBERS and isinstance(raw, str):
                try:
                    value = _NUMBERS[name](raw)
                except ValueError:
                    value = None  # the converter says what it should have been
            out[name] = _CONVERTERS[name](value)
        except _ValueProblemError as exc:
            problems.append(f"--{option_name(name)} {exc}, got {raw!r}")
    return out


def _contradictions(config: RunConfig, problems: list[str]) -> None:
    if config.demo:
        problems.extend(
            f"--demo brings its own {name}: leave --{name} away"
            for name in ("camera", "map", "intrinsics")
            if getattr(config, name) is not None
        )
    elif not config.check:
        for name, what in (("camera", "SOURCE"), ("map", "SITE")):
            if getattr(config, name) is None:
                problems.append(f"--{name} {what} is missing (or use --demo)")
    elif config.map is None and config.camera is not None:
        problems.append("--check --camera also needs --map SITE")
    try:
        config.budget_ns_at(config.pace or "realtime")  # None: the source will say
    except ConfigError as exc:
        problems.append(str(exc))
    if config.single_process and config.realtime == "require":
        problems.append(
            "--realtime require is for processes of their own: leave --single-process "
            "away"
        )
    if config.ignore_classes is not None and config.segmenter is None:
        problems.append("--ignore-classes is for --segmenter, which is missing")
    if config.gnss is None:
        problems.extend(
            f"{option} reads the sentences of --gnss SOURCE, which is missing"
            for option, asked in (
                ("--gnss-sigma-m", config.gnss_sigma_m is not None),
                ("--compass", config.compass),
                ("--gravity nmea", config.gravity == "nmea"),
            )
            if asked
        )
    _motion_contradictions(config, problems)
    if config.quiet and config.debug:
        problems.append("--quiet and --debug exclude each other")
    if len(set(config.out)) != len(config.out):
        problems.append(f"--out is given twice for the same sink: {list(config.out)}")


def _motion_contradictions(config: RunConfig, problems: list[str]) -> None:
    if config.gravity == "imu" and config.imu is None:
        problems.append(
            "--gravity imu reads the lines of --imu SOURCE, which is missing"
        )
    for option, source, extrinsics, axes in (
        ("--imu", config.imu, config.imu_extrinsics, "cam_from_imu"),
        (
            "--wheel-odometry",
            config.wheel_odometry,
            config.wheel_odometry_extrinsics,
            "cam_from_base",
        ),
    ):
        if source is None and extrinsics is not None:
            problems.append(f"{option}-extrinsics is for {option}, which is missing")
        if source is not None and extrinsics is None:
            problems.append(
                f"{option} needs {option}-extrinsics: how it is turned to the camera, "
                f"x,y,z,qx,qy,qz,qw of {axes} or a file of Kalibr's"
            )
        told = option == "--imu" and config.gravity == "imu"
        if source is not None and config.cold and not told:
            problems.append(
                f"{option} tells of the way between frames, which --cold leaves out"
            )


def resolve_run_config(
    command_line: Mapping[str, Any], *, file: Path | None = None
) -> RunConfig:
    """Combine defaults, a TOML file and the command line, and check everything.

    Parameters
    ----------
    command_line : mapping of str to object
        By field name of `RunConfig`; numbers may still be text. Only what was given.
    file : Path, optional
        TOML file.

    Returns
    -------
    RunConfig

    Raises
    ------
    ConfigError
        One line that names every problem found.
    """
    problems: list[str] = []
    values = {
        item.name: item.default for item in fields(RunConfig) if item.default != MISSING
    }
    if file is not None:
        values.update(_from_file(load_config_file(file), str(file), problems))
    values.update(_from_command_line(command_line, problems))
    config = RunConfig(**values)
    _contradictions(config, problems)
    if problems:
        raise ConfigError("; ".join(problems))
    return config


def config_from_options(
    options: Mapping[str, object],
) -> tuple[RunConfig, list[str]]:
    """Return what `RunConfig.as_options` was made from, possibly by another version.

    Parameters
    ----------
    options : mapping of str to object
        From a log.

    Returns
    -------
    config : RunConfig
        With the defaults of this version where the other one had no such option.
    unknown : list of str
        Options that this version does not have.

    Raises
    ------
    ConfigError
        When a value is wrong.
    """
    known = {option_name(item.name) for item in fields(RunConfig)}
    given = {key: value for key, value in options.items() if value is not None}
    problems: list[str] = []
    values: dict[str, Any] = {}
    values |= _from_file(
        {key: value for key, value in given.items() if key in known}, "log", problems
    )
    if problems:
        raise ConfigError("; ".join(problems))
    return RunConfig(**values), sorted(set(given) - known)
