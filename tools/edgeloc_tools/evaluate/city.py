"""A city of any length: how opening, memory and relocalization grow with a site.

Run as ``python -m edgeloc_tools.evaluate.city --out DIR --km 100``. Makes a site of
procedural streets and one of a single street, and localizes the same kind of frames in
both: landmarks that a keyframe sees, projected into a camera beside it, with noise and
outliers. All but the extraction of features is what a device does.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edgeloc.cli.common import EXIT_OK, run_command
from edgeloc.clock import MonotonicClock
from edgeloc.errors import ConfigError, ModelError
from edgeloc.features.quantizer import ProductQuantizer
from edgeloc.geometry.camera import project
from edgeloc.geometry.se3 import rotation_angle_rad
from edgeloc.inference.manifest import shipped_folder
from edgeloc.localize.candidate import Candidate, Query
from edgeloc.localize.interpolate import widen_unconfirmed
from edgeloc.localize.near_keyframes import nearest_keyframes
from edgeloc.runtime.estimator_options import EstimatorOptions
from edgeloc.runtime.method_structure import StructureMethod
from edgeloc.runtime.site_models import open_keyframe_index
from edgeloc.runtime.site_parts import open_site_parts
from edgeloc.runtime.tile_cache import TileCache
from edgeloc.tiles.arrays import decode_codebook
from edgeloc.tiles.layout import Codebook
from edgeloc.tiles.reader import (
    Site,
    assemble_local_map,
    open_site,
)
from edgeloc.tiles.writer import write_site_in_blocks
from edgeloc.types import (
    Cause,
    Features,
    Float32Array,
    PoseStatus,
    Rigid3,
    Rung,
)
from edgeloc_tools.evaluate.city_frames import KnownFrames
from edgeloc_tools.evaluate.city_streets import (
    BLOCK_M,
    CAMERA,
    STREET_KEYFRAMES,
    City,
    draw_codes,
)
from edgeloc_tools.evaluate.text import markdown_table, number, percent
from edgeloc_tools.files import write_atomically
from edgeloc_tools.mapping.codebooks import codebook_path

FEATURES, PLACES = "edgeloc-features-small", "edgeloc-retrieval-small"
CODE_BYTES = 8
NUM_QUERIES = 200
CACHE_BYTES = 48 << 20
_ASIDE_M = 0.5
_TURN_RAD = 0.05
_NOISE_PX = 0.5
_FOUND = 0.7
"""Part of the landmarks in view that are found again."""
_WRONG = 0.3
"""Part of the keypoints that are no landmarks."""
_LOCAL_NOISE, _GLOBAL_NOISE = 0.6, 0.5
"""Length of what is added to a descriptor: cosines of 0.86 and 0.89."""
MAX_ERROR_M = 0.25


def shipped_codebook(model: str, num_parts: int) -> Codebook:
    """Return a codebook that comes with edgeloc.

    Raises
    ------
    ModelError
        When it is not there.
    """
    folder = shipped_folder()
    path = None if folder is None else codebook_path(model, num_parts, folder=folder)
    if path is None or not path.is_file():
        raise ModelError(f"the codebook of {num_parts} bytes for {model} is not here")
    return decode_codebook(path.read_bytes())


def make_city(
    path: Path,
    *,
    km: float,
    landmarks_per_keyframe: int = 200,
    global_bytes: int = 32,
    descriptors: Path | None = None,
    seed: int = 0,
) -> None:
    """Write the site of a city.

    Parameters
    ----------
    path : Path
        The site's folder.
    km : float
        Of streets, with a keyframe per metre.
    landmarks_per_keyframe : int
        200 are 20 million in 100 km.
    global_bytes : int
        Bytes of a global descriptor, 32 or 64.
    descriptors : Path, optional
        NumPy file of real descriptors, (N, D) float, or of their codes, (N, 8) uint8.
    seed : int
        Of everything.
    """
    codebook = shipped_codebook(FEATURES, CODE_BYTES)
    city = City(
        num_keyframes=round(km * 1000),
        landmarks_per_keyframe=landmarks_per_keyframe,
        descriptor_codebook=codebook,
        global_codebook=shipped_codebook(PLACES, global_bytes),
        seed=seed,
    )
    if descriptors is not None:
        rows = np.load(descriptors, allow_pickle=False)
        if rows.dtype != np.uint8:
            unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
            rows = city.descriptor_quantizer.encode(unit.astype(np.float32))
        if rows.ndim != 2 or rows.shape[1] != CODE_BYTES:
            raise ConfigError(f"{descriptors}: holds no codes of {CODE_BYTES} bytes")
        city = replace(city, real_codes=rows)
    write_site_in_blocks(path, city.blocks(), cell_size=BLOCK_M)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CityQuery:
    """A frame with known pose.

    Parameters
    ----------
    query : Query
        What a device would have made of its picture.
    cam_from_world : Rigid3
        The truth.
    """

    query: Query
    cam_from_world: Rigid3

    def save(self, path: Path) -> None:
        """Write a NumPy file."""
        np.savez(
            path,
            keypoints=self.query.features.keypoints,
            descriptors=self.query.descriptors,
            global_descriptor=self.query.global_descriptor,
            R=self.cam_from_world.R,
            t=self.cam_from_world.t,
        )

    @staticmethod
    def load(path: Path) -> CityQuery:
        """Read the file of `save`."""
        with np.load(path, allow_pickle=False) as data:
            keypoints = data["keypoints"]
            return CityQuery(
                query=Query(
                    camera=CAMERA,
                    features=Features(
                        keypoints=keypoints,
                        scores=np.ones(len(keypoints), np.float32),
                        sigmas=np.ones(len(keypoints), np.float32),
                        descriptors=np.zeros((len(keypoints), 0), np.uint8),
                    ),
                    descriptors=data["descriptors"],
                    global_descriptor=data["global_descriptor"],
                ),
                cam_from_world=Rigid3(R=data["R"], t=data["t"]),
            )


def make_query(site: Site, keyframe_idx: int, rng: np.random.Generator) -> CityQuery:
    """Return a frame taken half a metre beside a keyframe.

    Parameters
    ----------
    site : Site
        The city.
    keyframe_idx : int
        Row of the keyframe.
    rng : Generator
        Of noise and outliers.
    """
    quantizer = ProductQuantizer.from_arrays(site.codebook("descriptors").arrays)
    index = open_keyframe_index(site)
    keyframe_id = site.keyframes.keyframe_ids[[keyframe_idx]]
    seen = assemble_local_map(site.read_tile, site, keyframe_id)
    pose = site.keyframes.cam_from_world(keyframe_idx)
    yaw = rng.normal(scale=_TURN_RAD)
    turn = np.array(
        [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
    )
    aside = np.array([rng.choice([-1.0, 1.0]) * _ASIDE_M, 0.0, 0.0])
    pose = Rigid3(R=turn, t=-turn @ aside) @ pose
    # The map is off by as much as it says.
    off = rng.normal(size=seen.points3D.shape) * seen.sigmas[:, None]
    pixels, in_front = project(CAMERA, pose.transform(seen.points3D + off))
    size = np.array([CAMERA.width, CAMERA.height])
    found = in_front & np.all((pixels > 0) & (pixels < size), axis=1)
    found &= rng.random(len(found)) < _FOUND
    num_wrong = round(found.sum() * _WRONG / (1 - _WRONG))
    keypoints = np.concatenate(
        [
            pixels[found] + rng.normal(scale=_NOISE_PX, size=(int(found.sum()), 2)),
            rng.uniform([0, 0], size, (num_wrong, 2)),
        ]
    ).astype(np.float32)
    rows = np.concatenate(
        [
            quantizer.decode(seen.descriptors[found]),
            quantizer.decode(
                draw_codes(rng, num_wrong, quantizer, np.asarray(seen.descriptors))
            ),
        ]
    )
    order = rng.permutation(len(rows))
    vector = index.descriptors(np.array([keyframe_idx]))
    return CityQuery(
        query=Query(
            camera=CAMERA,
            features=Features(
                keypoints=keypoints[order],
                scores=np.ones(len(order), np.float32),
                sigmas=np.ones(len(order), np.float32),
                descriptors=np.zeros((len(order), 0), np.uint8),
            ),
            descriptors=_noisy(rows[order], _LOCAL_NOISE, rng),
            global_descriptor=_noisy(vector, _GLOBAL_NOISE, rng)[0],
        ),
        cam_from_world=pose,
    )


def _noisy(rows: Float32Array, length: float, rng: np.random.Generator) -> Float32Array:
    noisy = rows + rng.normal(scale=length / rows.shape[1] ** 0.5, size=rows.shape)
    noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
    return np.asarray(noisy, np.float32)


class CityLocalizer:
    """RELOCALIZE as `Estimator` does it, for frames whose features are known.

    Parameters
    ----------
    site : Site
        The city.
    cache_bytes : int
        Bound of the tiles in memory.
    """

    def __init__(self, site: Site, *, cache_bytes: int) -> None:
        self._site = site
        self._options = EstimatorOptions(cold=True, cache_bytes=cache_bytes)
        known = KnownFrames(site)
        self._parts = open_site_parts(
            site,
            CAMERA,
            self._options,
            clock=MonotonicClock(),
            family=known,
            retrieval=known,
        )
        self._method = StructureMethod(self._parts)

    @property
    def tiles(self) -> TileCache:
        """Tiles in memory."""
        return self._parts.tiles

    def forget(self) -> None:
        """Drop all tiles in memory."""
        self.tiles.close()
        self._parts = replace(
            self._parts,
            tiles=TileCache(self._site, max_bytes=self._options.cache_bytes),
        )
        self._method = StructureMethod(self._parts)

    def localize(self, query: Query) -> Candidate:
        """Return what RELOCALIZE says of a frame."""
        self.tiles.start_frame()
        found = self._parts.index.search(
            query.global_descriptor, k=self._options.num_retrieved
        )
        return self._method.solve(query, found)


def resident_bytes() -> int:
    """Return the memory of this process that is resident, mapped files included."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured of one site, in a process of its own.

    Parameters
    ----------
    num_keyframes, num_landmarks, num_tiles, num_bytes : int
        The site.
    open_ms, open_cpu_ms, again_ms, ready_ms : float
        The first `open_site`, its processor time, the median of five more, and the
        search and codebooks.
    opened_bytes, after_bytes, most_bytes : int
        Resident beyond the process's base: after opening, after all frames, at most.
    errors_m, errors_deg : list of float
        Per frame; infinite when not localized.
    frame_reads, frame_bytes : list of int
        Tiles read for a frame without any in memory, and their bytes.
    stages_ms : dict of str to float
        Functions that look at all keyframes, the median.
    """

    num_keyframes: int
    num_landmarks: int
    num_tiles: int
    num_bytes: int
    open_ms: float
    open_cpu_ms: float
    again_ms: float
    ready_ms: float
    opened_bytes: int
    after_bytes: int
    most_bytes: int
    errors_m: list[float] = field(default_factory=list)
    errors_deg: list[float] = field(default_factory=list)
    frame_reads: list[int] = field(default_factory=list)
    frame_bytes: list[int] = field(default_factory=list)
    stages_ms: dict[str, float] = field(default_factory=dict)

    @property
    def localized(self) -> float:
        """Share of frames within a quarter of a metre."""
        return float(np.mean(np.array(self.errors_m) <= MAX_ERROR_M))


def _timed(body: Callable[[], object]) -> float:
    begin = time.perf_counter()
    body()
    return 1e3 * (time.perf_counter() - begin)


def measure(path: Path, queries: Sequence[Path], *, cache_bytes: int) -> Measured:
    """Measure a site; what counts is the memory of a process that does nothing else.

    Parameters
    ----------
    path : Path
        The site.
    queries : sequence of Path
        Files of `CityQuery.save`.
    cache_bytes : int
        Bound of the tiles in memory.
    """
    CityQuery.load(queries[0])
    gc.collect()
    base = resident_bytes()
    begin, cpu = time.perf_counter(), time.process_time()
    site = open_site(path)
    open_ms = 1e3 * (time.perf_counter() - begin)
    open_cpu_ms = 1e3 * (time.process_time() - cpu)
    begin = time.perf_counter()
    localizer = CityLocalizer(site, cache_bytes=cache_bytes)
    ready_ms = 1e3 * (time.perf_counter() - begin)
    opened = resident_bytes()
    most = opened
    errors_m, errors_deg = [], []
    for file in queries:
        asked = CityQuery.load(file)
        fix = localizer.localize(asked.query)
        error_m, error_deg = _errors(fix, asked.cam_from_world)
        errors_m.append(error_m)
        errors_deg.append(error_deg)
        most = max(most, resident_bytes())
    after = resident_bytes()
    frame_reads, frame_bytes = [], []
    for file in queries:
        localizer.forget()
        localizer.localize(CityQuery.load(file).query)
        frame_reads.append(localizer.tiles.frame_reads)
        frame_bytes.append(localizer.tiles.frame_bytes)
    stages_ms = _stages(site, CityQuery.load(queries[0]), localizer)
    again_ms = float(np.median([_timed(lambda: open_site(path)) for _ in range(5)]))
    manifest = site.manifest
    return Measured(
        num_keyframes=manifest.num_keyframes,
        num_landmarks=manifest.num_landmarks,
        num_tiles=manifest.num_tiles,
        num_bytes=manifest.total_bytes,
        open_ms=open_ms,
        open_cpu_ms=open_cpu_ms,
        again_ms=again_ms,
        ready_ms=ready_ms,
        opened_bytes=opened - base,
        after_bytes=after - base,
        most_bytes=most - base,
        errors_m=errors_m,
        errors_deg=errors_deg,
        frame_reads=frame_reads,
        frame_bytes=frame_bytes,
        stages_ms=stages_ms,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """Times of frames, ms.

    Parameters
    ----------
    kept_wall, kept_cpu : list of float
        The cache kept from frame to frame.
    cold_wall, cold_cpu : list of float
        Without any tile in memory before the frame.
    """

    kept_wall: list[float] = field(default_factory=list)
    kept_cpu: list[float] = field(default_factory=list)
    cold_wall: list[float] = field(default_factory=list)
    cold_cpu: list[float] = field(default_factory=list)


def measure_latencies(
    sites: Sequence[tuple[Path, Sequence[Path]]], *, cache_bytes: int
) -> list[Latencies]:
    """Time the frames of some sites in turn, so that all meet the same machine.

    Parameters
    ----------
    sites : sequence of (Path, sequence of Path)
        Sites, and as many files of `CityQuery.save` for each.
    cache_bytes : int
        Bound of the tiles in memory.
    """
    localizers = [
        CityLocalizer(open_site(path), cache_bytes=cache_bytes) for path, _ in sites
    ]
    found = [Latencies() for _ in sites]
    for cold in (False, True):
        for files in zip(*(files for _, files in sites), strict=True):
            for localizer, file, times in zip(localizers, files, found, strict=True):
                asked = CityQuery.load(file)
                if cold:
                    localizer.forget()
                wall, cpu = time.perf_counter(), time.process_time()
                localizer.localize(asked.query)
                cpu_ms = 1e3 * (time.process_time() - cpu)
                wall_ms = 1e3 * (time.perf_counter() - wall)
                (times.cold_wall if cold else times.kept_wall).append(wall_ms)
                (times.cold_cpu if cold else times.kept_cpu).append(cpu_ms)
    return found


def _errors(fix: Candidate, truth: Rigid3) -> tuple[float, float]:
    pose = fix.cam_from_world
    if fix.status is not PoseStatus.LOCALIZED or pose is None:
        return float("inf"), float("inf")
    off = np.linalg.norm(pose.origin_in_a - truth.origin_in_a)
    angle = rotation_angle_rad((pose.R @ truth.R.T)[None])[0]
    return float(off), float(np.degrees(angle))


def _stages(site: Site, asked: CityQuery, localizer: CityLocalizer) -> dict[str, float]:
    """Return the times of what may grow with the number of keyframes, ms."""
    keyframes, pose = site.keyframes, asked.cam_from_world
    index = open_keyframe_index(site)
    coarse = Candidate(
        status=PoseStatus.COARSE,
        rung=Rung.INTERPOLATE,
        cause=Cause.NONE,
        cam_from_world=pose,
        covariance=np.eye(6),
    )
    vector = asked.query.global_descriptor
    ids = keyframes.keyframe_ids[:10]
    localizer.forget()
    bodies: dict[str, Callable[[], object]] = {
        "search": lambda: index.search(vector, k=10),
        "nearest_keyframes": lambda: nearest_keyframes(keyframes, pose, k=3),
        "widen_unconfirmed": lambda: widen_unconfirmed(coarse, keyframes),
        "index_of": lambda: keyframes.index_of(ids),
        "tiles_near": lambda: localizer.tiles.tiles_near(pose.origin_in_a, 50.0),
    }
    return {
        name: float(np.median([_timed(body) for _ in range(9)]))
        for name, body in bodies.items()
    }


def prepare_queries(path: Path, folder: Path, *, count: int, seed: int) -> list[Path]:
    """Write the files of frames spread over a site.

    Parameters
    ----------
    path : Path
        The site.
    folder : Path
        For the files.
    count : int
        How many.
    seed : int
        Of where they are, noise and outliers.
    """
    site = open_site(path)
    rng = np.random.default_rng([seed, 2 << 30])
    num = len(site.keyframes)
    chosen = (
        rng.permutation(num)[:count] if count <= num else rng.integers(0, num, count)
    )
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number_, keyframe_idx in enumerate(chosen.tolist()):
        files.append(folder / f"{number_:04d}.npz")
        make_query(site, keyframe_idx, rng).save(files[-1])
    return files


def _measure_apart(path: Path, queries: Path, *, cache_bytes: int) -> Measured:
    """Measure a site in a new process."""
    done = subprocess.run(
        [
            sys.executable, "-m", "edgeloc_tools.evaluate.city",
            "--measure", str(path), "--out", str(queries),
            "--cache-mb", repr(cache_bytes / 2**20),
        ],
        check=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    return Measured(**json.loads(done.stdout))


def _percentiles(values: Sequence[float]) -> str:
    p50, p95 = np.percentile(values, [50, 95])
    return f"{number(p50)} / {number(p95)}"


def report(measured: Sequence[Measured], latencies: Sequence[Latencies]) -> str:
    """Return the table that compares a city with a street.

    Parameters
    ----------
    measured : sequence of 2 Measured
        The street and the city.
    latencies : sequence of 2 Latencies
        The same.
    """
    street, city = measured

    def ratio(name: str) -> str:
        a, b = (np.percentile(getattr(m, name), [50, 95]) for m in latencies)
        return f"{number(b[0] / a[0])} / {number(b[1] / a[1])}"

    def mb(num_bytes: float) -> str:
        return f"{number(num_bytes / 1e6)} MB"

    rows: list[list[str]] = []

    def add(name: str, cell: Callable[[Measured], str], last: str = "") -> None:
        rows.append([name, cell(street), cell(city), last])

    add("keyframes", lambda m: f"{m.num_keyframes:,}")
    add("landmarks", lambda m: f"{m.num_landmarks:,}")
    add("tiles", lambda m: f"{m.num_tiles:,}")
    add("size of the site", lambda m: mb(m.num_bytes))
    add("first opening", lambda m: f"{number(m.open_ms)} ms", "< 50 ms")
    add("the same, processor time", lambda m: f"{number(m.open_cpu_ms)} ms")
    add("opening again, median", lambda m: f"{number(m.again_ms)} ms", "< 50 ms")
    add("search and codebooks ready", lambda m: f"{number(m.ready_ms)} ms")
    add("memory after opening", lambda m: mb(m.opened_bytes))
    add("memory after all frames", lambda m: mb(m.after_bytes), "< 150 MB")
    add("memory at most", lambda m: mb(m.most_bytes), "< 150 MB")
    for name, label in (
        ("cold_wall", "no tile in memory, p50 / p95 ms"),
        ("cold_cpu", "the same, processor time"),
        ("kept_wall", "tiles kept, p50 / p95 ms"),
        ("kept_cpu", "the same, processor time"),
    ):
        rows.append(
            [
                label,
                *(_percentiles(getattr(one, name)) for one in latencies),
                f"x {ratio(name)} (≤ 1.5)",
            ]
        )
    add(f"localized within {MAX_ERROR_M} m", lambda m: percent(m.localized))
    add(
        "median error",
        lambda m: (
            f"{number(100 * float(np.median(m.errors_m)))} cm, "
            f"{number(float(np.median(m.errors_deg)))}°"
        ),
    )
    add(
        "tile reads per frame, median / most",
        lambda m: f"{np.median(m.frame_reads):.0f} / {max(m.frame_reads)}",
    )
    add(
        "bytes read per frame, median / most",
        lambda m: f"{mb(float(np.median(m.frame_bytes)))} / {mb(max(m.frame_bytes))}",
    )
    for name in city.stages_ms:
        add(name, lambda m, name=name: f"{number(m.stages_ms[name])} ms")  # type: ignore[misc]
    return markdown_table(["", "one street", "city", "wanted"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the sites, measure them, print the table."""
    parser = argparse.ArgumentParser(prog="city", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the sites")
    parser.add_argument("--km", type=float, default=2.0, help="streets, km")
    parser.add_argument("--landmarks", type=int, default=200, help="per keyframe")
    parser.add_argument("--global-bytes", type=int, choices=(32, 64), default=32)
    parser.add_argument("--descriptors", type=Path, help=".npy of real descriptors")
    parser.add_argument("--queries", type=int, default=NUM_QUERIES)
    parser.add_argument("--cache-mb", type=float, default=CACHE_BYTES / 2**20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    cache_bytes = round(args.cache_mb * 2**20)

    def body() -> int:
        if args.measure is not None:
            files = sorted(args.out.glob("*.npz"))
            found = measure(args.measure, files, cache_bytes=cache_bytes)
            sys.stdout.write(
                json.dumps({n: getattr(found, n) for n in Measured.__slots__})
            )
            return EXIT_OK
        measured: list[Measured] = []
        sites: list[tuple[Path, Sequence[Path]]] = []
        for name, km in (("street", STREET_KEYFRAMES / 1000), ("city", args.km)):
            path = args.out / f"{name}-{km:g}km"
            if not (path / "site.json").is_file():
                begin = time.perf_counter()
                make_city(
                    path,
                    km=km,
                    landmarks_per_keyframe=args.landmarks,
                    global_bytes=args.global_bytes,
                    descriptors=args.descriptors,
                    seed=args.seed,
                )
                taken = time.perf_counter() - begin
                sys.stderr.write(f"{path}: written in {taken:.0f} s\n")
            folder = args.out / f"{name}-{km:g}km-queries"
            files = prepare_queries(path, folder, count=args.queries, seed=args.seed)
            sites.append((path, files))
            measured.append(_measure_apart(path, folder, cache_bytes=cache_bytes))
        text = report(measured, measure_latencies(sites, cache_bytes=cache_bytes))
        write_atomically(args.out / f"city-{args.km:g}km.md", f"{text}\n".encode())
        sys.stdout.write(f"{text}\n")
        return EXIT_OK

    return run_command("city", body, debug=True)


if __name__ == "__main__":
    raise SystemExit(main())
