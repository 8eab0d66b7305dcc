"""`edgeloc-run`: one pose record per camera frame.

Heavy modules are imported where they are needed: ``--help`` and a wrong option answer
before NumPy or OpenCV load.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from edgeloc import __version__
from edgeloc.cli.common import (
    EXIT_OK,
    OneLineParser,
    run_command,
    set_up_logging,
    silence_opencv,
)
from edgeloc.config import (
    BACKEND_CHOICES,
    EMIT_CHOICES,
    METHOD_CHOICES,
    PACE_CHOICES,
    REALTIME_BUDGET_MS,
    REALTIME_CHOICES,
    RECORD_IMAGES_CHOICES,
    RunConfig,
    resolve_run_config,
)
from edgeloc.errors import ConfigError

if TYPE_CHECKING:
    from edgeloc.runtime.frame_source import FrameSource
    from edgeloc.runtime.telemetry import Telemetry

PROG = "edgeloc-run"

WORKER = (sys.executable, "-m", "edgeloc.cli.worker")
"""Starts a process of the run; tests put others in its place."""

_log = logging.getLogger(__name__)

_DESCRIPTION = """\
Localize a camera in a map: one JSON object per frame on standard output, logs on
standard error. Every option is also a key of the TOML file given with --config; the
command line wins.

SOURCE  /dev/videoN or N, a video file, a folder of images, an rtsp:// or http:// URL,
        or a GStreamer pipeline in quotes (it contains ' ! ')
SINK    jsonl:- (standard output, the default), jsonl:FILE, tum:FILE (poses as
        `timestamp_s tx ty tz qx qy qz qw` of world_from_cam, no line when LOST),
        udp://HOST:PORT (one msgpack datagram per frame)

A frame that cannot be decoded, or whose size is not the camera's, still gets its
record: LOST with cause CAMERA_STALL."""

_EXAMPLES = """\
  edgeloc-run --demo
  edgeloc-run --camera /dev/video0 --map site/ --intrinsics cameras.txt
  edgeloc-run --camera clip.mp4 --map site/ --out tum:poses.txt --cold
  edgeloc-run --camera rtsp://10.0.0.7/main --map site/ --out udp://127.0.0.1:9000
  edgeloc-run --camera images/ --map site/ --pace realtime --rate 15 --max-frames 100
  edgeloc-run --check --map site/

exit codes: 0 ok (also after SIGINT, SIGTERM or when the reader of standard output
leaves), 2 usage or configuration, 3 map, 4 model or backend, 5 camera, 70 other"""


def _one_of(choices: Sequence[str]) -> str:
    return "{" + ",".join(choices) + "}"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; values stay text, `edgeloc.config` checks them."""
    parser = OneLineParser(prog=PROG, description=_DESCRIPTION, examples=_EXAMPLES)
    parser.set_defaults(config=None)
    default = RunConfig()

    def add(option: str, metavar: str, text: str, **extra: Any) -> None:  # noqa: ANN401
        parser.add_argument(
            option, metavar=metavar, help=text, default=argparse.SUPPRESS, **extra
        )

    def flag(option: str, text: str, **extra: Any) -> None:  # noqa: ANN401
        extra.setdefault("action", "store_true")
        parser.add_argument(option, help=text, default=argparse.SUPPRESS, **extra)

    add("--camera", "SOURCE", "where frames come from")
    add("--map", "SITE", "folder made by edgeloc-build")
    add(
        "--trusted-key",
        "FILE",
        "refuse a site that is not signed with this public key (edgeloc-build keygen)",
    )
    add(
        "--intrinsics",
        "FILE",
        "calibration: COLMAP cameras.txt, JSON, ROS camera_info or Kalibr YAML; "
        "FILE#ID for one of several cameras (default: the site's camera when it has "
        "just one); scaled when the images have another size of the same shape",
    )
    add(
        "--budget-ms",
        "MS",
        f"time from capture to record (default with --pace realtime: "
        f"{REALTIME_BUDGET_MS:g}; with --pace every: no deadline); with --pace every "
        "and a recording, from the start of processing",
    )
    add(
        "--emit",
        _one_of(EMIT_CHOICES),
        "asap: when the answer is there; fixed: at timestamp + budget, never earlier, "
        f"for a constant latency; needs --budget-ms with --pace every (default: "
        f"{default.emit})",
    )
    add(
        "--method",
        _one_of(METHOD_CHOICES),
        f"which family of methods answers (default: {default.method})",
    )
    flag(
        "--cold",
        "no prior between frames: each is localized by itself, as benchmarks do",
        action=argparse.BooleanOptionalAction,
    )
    add(
        "--pace",
        _one_of(PACE_CHOICES),
        "realtime: frames come at their rate and are dropped when late; every: each "
        "frame is processed, and gets the time it needs unless --budget-ms is given "
        "(default: realtime for cameras and streams, every for files and folders)",
    )
    add(
        "--rate",
        "HZ",
        "frames per second of a folder (default: 30), in place of a video's own "
        "times, or asked of a /dev/video camera",
    )
    add(
        "--backend",
        _one_of(BACKEND_CHOICES),
        f"where networks run (default: {default.backend}); TensorRT's need engines, "
        "see edgeloc-build engine",
    )
    add(
        "--engines",
        "DIR",
        "folder of TensorRT engines (default: engines/ beside each model)",
    )
    add(
        "--threads",
        "N",
        f"CPU threads of each network (default: {default.threads})",
    )
    add(
        "--out",
        "SINK",
        "where records go; may be given several times (default: jsonl:-)",
        action="append",
    )
    flag(
        "--odom",
        "records also have odom, the camera in a frame in which it never jumps "
        "(cam_from_odom), and map_from_odom, where that frame lies in the map",
    )
    add(
        "--metrics",
        "PORT",
        "serve numbers for Prometheus at http://127.0.0.1:PORT/metrics; HOST:PORT "
        "listens elsewhere",
    )
    add(
        "--record",
        "FILE",
        "log the run, so that edgeloc-replay can run it again; behind what the file "
        "has of earlier runs",
    )
    add(
        "--record-images",
        _one_of(RECORD_IMAGES_CHOICES),
        "how the log keeps frames: as JPEG, as PNG, by reference to the file they come "
        "from, or not at all (default: reference for files, jpeg for cameras)",
    )
    add("--max-frames", "N", "stop after N records")
    add("--max-keypoints", "N", "features per frame (default: as the map was built)")
    add("--seed", "N", f"of RANSAC (default: {default.seed})")
    add(
        "--mask",
        "MASK",
        "what every frame shows of the vehicle itself, where no features are wanted: "
        "an image (0 = ignore), a TOML or JSON file of polygons, or 'X,Y X,Y X,Y' px",
    )
    add(
        "--segmenter",
        "MANIFEST",
        "segmentation network that keeps features off what moves, in frames that have "
        "the time for it",
    )
    add(
        "--ignore-classes",
        "NAMES",
        "its classes to ignore, with commas (default: people, vehicles, animals)",
    )
    add(
        "--gnss",
        "SOURCE",
        "NMEA sentences that narrow where to look, never needed and never believed "
        "against the picture: /dev/ttyUSB0@BAUD, tcp://HOST:PORT or a file that "
        "begins with the first frame; the site needs a geo-reference",
    )
    add(
        "--gnss-sigma-m",
        "M",
        "standard deviation of positions (default: what the receiver says)",
    )
    add(
        "--gnss-latency-ms",
        "MS",
        f"age of sentences when they arrive (default: {default.gnss_latency_ms:g})",
    )
    flag(
        "--compass",
        "take the camera's heading from HDT, HDM, PASHR, or VTG and RMC in motion",
        action=argparse.BooleanOptionalAction,
    )
    add(
        "--compass-sigma-deg",
        "DEG",
        "least standard deviation of a heading (default: "
        f"{default.compass_sigma_deg:g})",
    )
    add(
        "--compass-offset-deg",
        "DEG",
        "added to headings: the camera's direction on the vehicle, clockwise, and the "
        f"declination of a magnetic compass (default: {default.compass_offset_deg:g})",
    )
    add(
        "--gravity",
        "X,Y,Z|nmea|imu",
        "which way is down: in camera axes (x right, y down, z forward) of a camera "
        "that keeps its tilt, by roll and pitch in PASHR for one that looks ahead, or "
        "by the accelerations of --imu, for one that is carried",
    )
    add(
        "--gravity-sigma-deg",
        "DEG",
        f"standard deviation of that (default: {default.gravity_sigma_deg:g})",
    )
    add(
        "--imu",
        "SOURCE",
        "lines of an inertial sensor, `t_ns, wx, wy, wz, ax, ay, az` in rad/s as in "
        "EuRoC's data.csv, whose angular rates predict between fixes; SOURCE as of "
        "--gnss. For accelerations see --gravity",
    )
    add(
        "--imu-extrinsics",
        "FILE|NUMBERS",
        "how it is turned to the camera: Kalibr's camchain-imucam.yaml (T_cam_imu, "
        "timeshift_cam_imu), FILE#cam1 for one of several, or x,y,z,qx,qy,qz,qw of "
        "cam_from_imu, after = when it begins with a minus; needed",
    )
    add(
        "--imu-latency-ms",
        "MS",
        "age of lines when they arrive; of a file, how long before the first frame it "
        f"begins (default: {default.imu_latency_ms:g})",
    )
    add(
        "--wheel-odometry",
        "SOURCE",
        "lines `t x y z qx qy qz qw` (TUM; s, m) of a vehicle in the frame where its "
        "odometry began, used as --imu; SOURCE as of --gnss",
    )
    add(
        "--wheel-odometry-extrinsics",
        "FILE|NUMBERS",
        "as --imu-extrinsics, of cam_from_base or with T_cam_base; of a camera that "
        "looks ahead, with x of the base ahead and z up: 0,0,0,0.5,-0.5,0.5,0.5 where "
        "the turn is concerned; needed",
    )
    add("--wheel-odometry-latency-ms", "MS", "as --imu-latency-ms")
    add(
        "--wheel-odometry-drift-percent",
        "P",
        "share of the way and of turns by which it is off (default: "
        f"{default.wheel_odometry_drift_percent:g})",
    )
    flag(
        "--single-process",
        "capture, estimate and publish in turns in one process, without a watchdog: "
        "for debugging; recordings run so unless --pace realtime is given",
    )
    add(
        "--realtime",
        _one_of(REALTIME_CHOICES),
        "ask for real-time priority and locked memory, which keep records on time "
        f"while other work wants the same cores (default: {default.realtime})",
    )
    add("--cpus", "LIST", "cores to run on, as in 2,4-5 (default: all)")
    flag(
        "--check",
        "load and warm up everything that is named, without frames, print one line "
        "and exit; alone it checks the installation",
    )
    flag("--demo", "run on the packaged site and clip")
    add("--config", "FILE", "TOML file with options")
    flag("--quiet", "log only warnings and errors")
    flag("--debug", "log everything, and tracebacks")
    return parser


def demo_paths() -> tuple[Path, Path]:
    """Return the packaged clip and site.

    Raises
    ------
    ConfigError
        When this installation has none.
    """
    from importlib.resources import files

    folder = Path(str(files("edgeloc"))) / "demo"
    clip, site = folder / "clip.mp4", folder / "site"
    if not (clip.is_file() and site.is_dir()):
        raise ConfigError(
            f"--demo: {folder} has no clip.mp4 and site/; install the edgeloc wheel, "
            "or use --camera and --map"
        )
    return clip, site


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set; a second one ends the process."""
    stop = threading.Event()
    previous = {}

    def on_signal(number: int, _: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _pace_and_budget(config: RunConfig, source: FrameSource) -> tuple[str, int | None]:
    """Return the pace and the budget in ns; closes the source when it raises."""
    pace = config.pace or ("realtime" if source.live else "every")
    try:
        return pace, config.budget_ns_at(pace)
    except ConfigError:
        source.close()
        raise


@contextmanager
def _frozen_garbage() -> Iterator[None]:
    """Keep the collector off what start-up made: it lives as long as the run."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _run(config: RunConfig) -> int:
    """Run in processes where there are deadlines to keep, otherwise in this one."""
    from edgeloc.runtime.source_names import seems_live

    realtime = config.pace == "realtime" or (
        config.pace is None and seems_live(str(config.camera))
    )
    if realtime and not config.single_process:
        from edgeloc.runtime.supervisor import NotLiveError

        try:
            return _run_processes(config)
        except NotLiveError as exc:
            _log.info("%s: each of its frames is processed", exc)
    if not config.debug:
        silence_opencv()
    return _run_in_process(config)


def _run_processes(config: RunConfig) -> int:
    from edgeloc.clock import MonotonicClock
    from edgeloc.runtime.reporter import Reporter
    from edgeloc.runtime.supervisor import Supervisor
    from edgeloc.runtime.telemetry import Telemetry

    clock = MonotonicClock()
    telemetry = Telemetry()
    _log.debug("options: %s", json.dumps(config.as_options()))
    with ExitStack() as stack:
        reporter = Reporter(
            telemetry,
            clock=clock,
            terminal=_status_terminal(config),
            metrics=config.metrics,
        )
        stack.callback(reporter.close)
        supervisor = Supervisor(
            config,
            command=WORKER,
            clock=clock,
            telemetry=telemetry,
            reporter=reporter,
        )
        try:
            supervisor.run()
        finally:
            if supervisor.started:
                _log_summary(telemetry)
    return EXIT_OK


def _run_in_process(config: RunConfig) -> int:
    from edgeloc.clock import MonotonicClock
    from edgeloc.runtime.aids import open_aids
    from edgeloc.runtime.capture import (
        DirectFeed,
        FrameFeed,
        RealtimeFeed,
    )
    from edgeloc.runtime.loop import LoopOptions, run_loop
    from edgeloc.runtime.opening import (
        estimator_options,
        make_estimator,
        open_run_recorder,
        open_run_site,
        source_and_camera,
    )
    from edgeloc.runtime.reporter import Reporter
    from edgeloc.runtime.sinks import open_sinks
    from edgeloc.runtime.telemetry import Telemetry

    clock = MonotonicClock()
    options = estimator_options(config)
    site = open_run_site(config)
    map_id = site.manifest.map_id
    source, camera = source_and_camera(config, site, clock)
    pace, budget_ns = _pace_and_budget(config, source)
    feed: FrameFeed = (
        RealtimeFeed(source, clock=clock) if pace == "realtime" else DirectFeed(source)
    )
    with ExitStack() as stack:
        stack.callback(feed.close)
        sinks = open_sinks(config.out, clock=clock)
        for sink in sinks:
            stack.callback(sink.close)
        telemetry = Telemetry()
        reporter = Reporter(
            telemetry,
            clock=clock,
            terminal=_status_terminal(config),
            metrics=config.metrics,
        )
        stack.callback(reporter.close)
        aids = open_aids(config, site.manifest, camera, clock)
        stack.callback(aids.close)
        recorder = open_run_recorder(
            config,
            site,
            camera,
            live=source.live,
            offers=False,
            clock=clock,
            aids=aids,
        )
        if recorder is not None:
            stack.callback(recorder.close)
        estimator = make_estimator(
            options,
            site,
            camera,
            clock if recorder is None else recorder.clock,
            aids=aids if recorder is None else recorder.aids,
        )
        _log.info(
            "%s: %s %dx%d, map %s, pace %s, %s",
            __version__,
            source.name,
            *source.size,
            map_id,
            pace,
            "no deadline" if budget_ns is None else f"budget {budget_ns / 1e6:g} ms",
        )
        _log.debug("options: %s", json.dumps(config.as_options()))
        stack.callback(_log_summary, telemetry)
        stack.enter_context(_frozen_garbage())
        stop = stack.enter_context(_stop_on_signals())
        reporter.ready()
        run_loop(
            feed,
            estimator,
            [*sinks, reporter],
            LoopOptions(
                budget_ns=budget_ns,
                from_capture=pace == "realtime" or source.live,
                fixed=config.emit == "fixed",
                max_frames=config.max_frames,
                image_size=(camera.width, camera.height),
                map_id=map_id,
                odom=config.odom,
            ),
            clock=clock,
            stop=stop,
            telemetry=telemetry,
            recorder=recorder,
        )
    return EXIT_OK


def _status_terminal(config: RunConfig) -> TextIO | None:
    """Return where the status line goes: not between records on the same screen."""
    records_on_screen = "jsonl:-" in config.out and sys.stdout.isatty()
    return None if config.quiet or records_on_screen else sys.stderr


def _log_summary(telemetry: Telemetry) -> None:
    for line in telemetry.summary_lines():
        _log.info("%s", line)


def _check_site(config: RunConfig) -> dict[str, object]:
    from edgeloc.clock import MonotonicClock
    from edgeloc.runtime.aids import open_aids
    from edgeloc.runtime.intrinsics import load_intrinsics
    from edgeloc.runtime.opening import (
        estimator_options,
        make_estimator,
        open_run_site,
        source_and_camera,
    )
    from edgeloc.tiles.reader import verify_site

    clock = MonotonicClock()
    options = estimator_options(config)
    site = open_run_site(config)
    verify_site(Path(str(config.map)))
    facts: dict[str, object] = {"map": config.map, "map_id": site.manifest.map_id}
    if config.camera is not None:
        source, camera = source_and_camera(config, site, clock)
        facts["camera"] = source.name
        facts["size"] = list(source.size)
        _pace_and_budget(config, source)
        source.close()
    elif config.intrinsics is not None:
        camera = load_intrinsics(config.intrinsics)
    else:
        camera = next(iter(site.manifest.cameras.values()))
    aids = open_aids(config, site.manifest, camera, clock)
    try:
        make_estimator(options, site, camera, clock, aids=aids)
    finally:
        aids.close()
    return facts


def _check(config: RunConfig) -> int:
    from edgeloc.cli.doctor import require_installation
    from edgeloc.inference.backend import choose_backend

    if not config.debug:
        silence_opencv()

    facts: dict[str, object] = {"ok": True, "edgeloc": __version__}
    facts.update(require_installation())
    if config.map is None:
        try:
            clip, site = demo_paths()
        except ConfigError:
            facts["demo"] = "absent"
        else:
            config = replace(config, camera=str(clip), map=str(site))
    if config.map is not None:
        facts.update(_check_site(config))
    facts["backend"] = choose_backend(config.backend).name
    print(json.dumps(facts))
    return EXIT_OK


def _main(arguments: dict[str, Any]) -> int:
    file = arguments.pop("config")
    config = resolve_run_config(arguments, file=None if file is None else Path(file))
    set_up_logging(PROG, quiet=config.quiet, debug=config.debug)
    if config.backend not in {"auto", "ort-cpu"}:
        from edgeloc.inference.backend import choose_backend

        choose_backend(config.backend)
    if config.demo:
        clip, site = demo_paths()
        config = replace(config, camera=str(clip), map=str(site))
    return _check(config) if config.check else _run(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments, those of the process by default.

    Returns
    -------
    int
    """
    arguments = vars(build_parser().parse_args(argv))
    return run_command(
        PROG, lambda: _main(arguments), debug=bool(arguments.get("debug"))
    )


if __name__ == "__main__":
    sys.exit(main())
