"""Recordings of procedural scenes, on disk (TUM RGB-D and nerfstudio) or in memory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edgeloc.errors import ConfigError
from edgeloc.geometry.camera import to_opencv_px
from edgeloc.geometry.se3 import quat_from_rotation
from edgeloc.types import (
    BoolArray,
    ByteArray,
    CameraModel,
    Float32Array,
    FloatArray,
    Rigid3,
)
from edgeloc_tools.datasets.recording import DepthMap, RecordedImage, Recording
from edgeloc_tools.files import write_atomically
from edgeloc_tools.synth.effects import (
    Light,
    add_sensor_noise,
    average,
    exposure_times_s,
    jpeg,
)
from edgeloc_tools.synth.render import Rendering, render
from edgeloc_tools.synth.scene import Scene
from edgeloc_tools.synth.trajectory import CameraPath, rolling_poses

CAMERA_ID = "camera"
DEPTH_UNITS_PER_M = 5000
"""The scale of TUM RGB-D; what is further than 13.1 m is written as unknown."""

DEFAULT_CAMERA = CameraModel(
    model="PINHOLE", width=640, height=480, params=(500.0, 500.0, 320.0, 240.0)
)

Progress = Callable[[int, int], None]
"""Called with the number of frames done and of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """How a scene is filmed.

    Parameters
    ----------
    num_frames : int
        At least 1.
    rate_hz : float
        Frames per second.
    start_s : float
        Time of the first frame on the path.
    seed : int
        Of the sensor noise.
    light : Light
        Illumination.
    noise_sigma : float
        Sensor noise at black, grey levels.
    exposure_s, exposure_steps : float, int
        Motion blur; none with one step.
    readout_s : float
        Of a rolling shutter, first to last row; 0 is a global shutter.
    jpeg_quality : int or None
        1 to 100; None writes PNG.
    supersample : int
        Rays along each side of a pixel.
    """

    num_frames: int
    rate_hz: float = 10.0
    start_s: float = 0.0
    seed: int = 0
    light: Light = field(default_factory=Light)
    noise_sigma: float = 1.0
    exposure_s: float = 0.0
    exposure_steps: int = 1
    readout_s: float = 0.0
    jpeg_quality: int | None = 95
    supersample: int = 1

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.exposure_steps < 1 or self.supersample < 1:
            raise ConfigError(
                f"{self.num_frames=}, {self.exposure_steps=} and {self.supersample=} "
                "must be >= 1"
            )
        if not self.rate_hz > 0:
            raise ConfigError(f"{self.rate_hz=} must be > 0")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"{self.jpeg_quality=} must be 1 to 100")
        if min(self.noise_sigma, self.exposure_s, self.readout_s) < 0:
            raise ConfigError("noise, exposure and readout must be >= 0")

    def time_s(self, index: int) -> float:
        """Return the middle of the exposure of a frame."""
        return self.start_s + index / self.rate_hz


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SynthFrame:
    """One frame with its exact ground truth.

    Parameters
    ----------
    index : int
        From 0.
    time_s : float
        Middle of the exposure (of the middle row).
    cam_from_world : Rigid3
        The pose then.
    image : ndarray of shape (H, W, 3), uint8
        BGR, with all effects but JPEG.
    depth_m : ndarray of shape (H, W), float32
        Along z, 0 where there is nothing.
    moving : ndarray of shape (H, W), bool
        True on moving objects.
    """

    index: int
    time_s: float
    cam_from_world: Rigid3
    image: ByteArray
    depth_m: Float32Array
    moving: BoolArray


def film(
    scene: Scene, path: CameraPath, camera: CameraModel, capture: Capture
) -> Iterator[SynthFrame]:
    """Yield the frames of a camera that moves along a path.

    Parameters
    ----------
    scene : Scene
        The place.
    path : CameraPath
        The motion.
    camera : CameraModel
        Intrinsics.
    capture : Capture
        Rate, light, blur, noise and shutter.

    Yields
    ------
    SynthFrame
        Equal arguments give equal frames.
    """

    def expose(time_s: float) -> Rendering:
        poses: Rigid3 | list[Rigid3] = path.pose_at(time_s)
        if capture.readout_s > 0:
            poses = rolling_poses(
                path, time_s, readout_s=capture.readout_s, num_rows=camera.height
            )
        return render(
            scene,
            camera,
            poses,
            light=capture.light,
            time_s=time_s,
            supersample=capture.supersample,
        )

    for index in range(capture.num_frames):
        time_s = capture.time_s(index)
        instants = exposure_times_s(time_s, capture.exposure_s, capture.exposure_steps)
        shots = [expose(float(instant)) for instant in instants]
        # An odd number of instants has the middle one among them.
        odd = len(shots) % 2 == 1
        truth = shots[len(shots) // 2] if odd else expose(time_s)
        image = shots[0].image
        if len(shots) > 1:
            image = average([shot.image for shot in shots])
        image = add_sensor_noise(
            image,
            np.random.default_rng([capture.seed, 7, index]),
            sigma=capture.noise_sigma * capture.light.noise_scale,
        )
        yield SynthFrame(
            index=index,
            time_s=time_s,
            cam_from_world=path.pose_at(time_s),
            image=image,
            depth_m=truth.depth_m,
            moving=truth.moving,
        )


@dataclass(frozen=True, slots=True, eq=False)
class ImageArray:
    """An image in memory, as `ImageSource`."""

    image: ByteArray

    def read(self) -> ByteArray:
        """Return a copy, as from a file."""
        return np.array(self.image)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DepthArray(DepthMap):
    """Depth in memory."""

    depth_m: FloatArray

    def read(self) -> FloatArray:
        """Return depth along z, (H, W) float64, m, 0 = unknown."""
        return np.array(self.depth_m)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SynthImage(RecordedImage):
    """An image in memory with its mask."""

    moving: BoolArray

    def read_mask(self) -> ByteArray:
        """Return 0 on moving objects, 255 elsewhere, (H, W) uint8."""
        return np.where(self.moving, 0, 255).astype(np.uint8)


def timestamp_ns(time_s: float) -> int:
    """Return a timestamp; the first second is left free of frames."""
    return 1_000_000_000 + round(time_s * 1e9)


def synth_recording(
    scene: Scene,
    path: CameraPath,
    camera: CameraModel = DEFAULT_CAMERA,
    *,
    capture: Capture,
    depth: bool = True,
) -> Recording:
    """Return a recording that is held in memory.

    Parameters
    ----------
    scene, path, camera, capture
        As of `film`.
    depth : bool
        Whether the images carry depth.

    Returns
    -------
    Recording
        Its images are `SynthImage`.
    """
    images = []
    for frame in film(scene, path, camera, capture):
        image = frame.image
        if capture.jpeg_quality is not None:
            image = jpeg(image, capture.jpeg_quality)
        name = f"{frame.index:06d}.png"
        depth_map = DepthArray(
            path=Path(name),
            metres_per_unit=1.0,
            camera=camera,
            depth_m=frame.depth_m.astype(np.float64),
        )
        images.append(
            SynthImage(
                name=name,
                camera_id=CAMERA_ID,
                source=ImageArray(image),
                timestamp_ns=timestamp_ns(frame.time_s),
                cam_from_world=frame.cam_from_world,
                depth=depth_map if depth else None,
                moving=frame.moving,
            )
        )
    return Recording(
        name=scene.name,
        images=tuple(images),
        cameras={CAMERA_ID: camera},
        gravity_in_world=(0.0, 0.0, -1.0),
        pose_source="exact",
    )


def make_recording(
    out: Path,
    *,
    scene: Scene,
    path: CameraPath,
    capture: Capture,
    camera: CameraModel = DEFAULT_CAMERA,
    depth: bool = True,
    masks: bool | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a recording as a folder.

    One set of images with two indexes: as in TUM RGB-D ``rgb.txt depth.txt
    groundtruth.txt intrinsics.txt`` (with timestamps; no fisheye lens), and as in
    nerfstudio ``transforms.json`` (with masks, 0 on moving objects). Beside them
    ``camera.json``. The folder appears when it is complete.

    Parameters
    ----------
    out : Path
        Must not exist, or be empty.
    scene, path, camera, capture
        As of `film`.
    depth : bool
        Whether to write depth (16-bit PNG, `DEPTH_UNITS_PER_M`).
    masks : bool, optional
        Whether to write masks; by default when something moves.
    progress : callable, optional
        Called after each frame.

    Raises
    ------
    ConfigError
        When `out` is not empty or cannot be written, or the lens has rational terms,
        which neither format can say.
    """
    if camera.model == "FULL_OPENCV" and any(camera.distortion[5:]):
        raise ConfigError(
            "recordings cannot carry k4, k5 and k6 of FULL_OPENCV; set them to 0"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{out}: exists and is not an empty folder; choose another -o"
        )
    with_masks = bool(scene.movers) if masks is None else masks
    work = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(work, ignore_errors=True)
        for name in ("rgb", *["depth"] * depth, *["masks"] * with_masks):
            (work / name).mkdir(parents=True)
        _write_frames(
            work,
            film(scene, path, camera, capture),
            capture=capture,
            camera=camera,
            progress=progress,
        )
        if out.exists():
            out.rmdir()
        work.rename(out)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error}") from error


def _write_frames(
    work: Path,
    frames: Iterable[SynthFrame],
    *,
    capture: Capture,
    camera: CameraModel,
    progress: Progress | None,
) -> None:
    rgb, depth, poses = [], [], []
    entries: list[dict[str, object]] = []
    suffix = "png" if capture.jpeg_quality is None else "jpg"
    options = [cv2.IMWRITE_JPEG_QUALITY, capture.jpeg_quality or 95]
    for frame in frames:
        stamp = stamp_text(frame.time_s)
        name = f"rgb/{stamp}.{suffix}"
        _write_image(work / name, frame.image, options if suffix == "jpg" else [])
        world_from_gl = np.eye(4)
        world_from_cam = frame.cam_from_world.inverse()
        world_from_gl[:3, :3] = world_from_cam.R @ np.diag([1.0, -1.0, -1.0])
        world_from_gl[:3, 3] = world_from_cam.t
        entry: dict[str, object] = {
            "file_path": name,
            "transform_matrix": world_from_gl.tolist(),
        }
        if (work / "depth").is_dir():
            units = np.rint(frame.depth_m.astype(np.float64) * DEPTH_UNITS_PER_M)
            units[units >= np.iinfo(np.uint16).max] = 0
            file = f"depth/{stamp}.png"
            _write_image(work / file, units.astype(np.uint16), [])
            depth.append(f"{stamp} {file}")
            entry["depth_file_path"] = file
        if (work / "masks").is_dir():
            file = f"masks/{stamp}.png"
            mask = np.where(frame.moving, 0, 255).astype(np.uint8)
            _write_image(work / file, mask, [])
            entry["mask_path"] = file
        rgb.append(f"{stamp} {name}")
        poses.append(tum_line(frame.time_s, frame.cam_from_world))
        entries.append(entry)
        if progress is not None:
            progress(frame.index + 1, capture.num_frames)
    listing = "# timestamp filename"
    write_text(work / "rgb.txt", "\n".join([listing, *rgb, ""]))
    if depth:
        write_text(work / "depth.txt", "\n".join([listing, *depth, ""]))
    header = "# timestamp tx ty tz qx qy qz qw (world_from_cam)"
    write_text(work / "groundtruth.txt", "\n".join([header, *poses, ""]))
    write_text(work / "camera.json", camera_json(camera))
    write_text(work / "transforms.json", _transforms_json(camera, entries))
    if camera.model != "OPENCV_FISHEYE":
        fx, fy = camera.focal_px
        cx, cy = to_opencv_px(camera.principal_point_px).tolist()
        lens = _lens(camera)
        numbers = [fx, fy, cx, cy, *(lens[k] for k in ("k1", "k2", "p1", "p2", "k3"))]
        write_text(
            work / "intrinsics.txt",
            "# fx fy cx cy k1 k2 p1 p2 k3 (OpenCV convention: the centre of the first "
            f"pixel is 0, 0); depth scale {DEPTH_UNITS_PER_M} per metre\n"
            f"{' '.join(repr(number) for number in numbers)}\n",
        )


def _lens(camera: CameraModel) -> dict[str, float]:
    """Return the distortion under nerfstudio's names."""
    names = {
        "OPENCV": ("k1", "k2", "p1", "p2"),
        "FULL_OPENCV": ("k1", "k2", "p1", "p2", "k3"),
    }.get(camera.model, ("k1", "k2", "k3", "k4"))
    known = dict(zip(names, camera.distortion, strict=False))
    return {name: known.get(name, 0.0) for name in ("k1", "k2", "k3", "k4", "p1", "p2")}


def _transforms_json(camera: CameraModel, entries: list[dict[str, object]]) -> str:
    fx, fy = camera.focal_px
    cx, cy = camera.principal_point_px
    fisheye = camera.model == "OPENCV_FISHEYE"
    record = {
        "camera_model": "OPENCV_FISHEYE" if fisheye else "OPENCV",
        "w": camera.width,
        "h": camera.height,
        "fl_x": fx,
        "fl_y": fy,
        "cx": cx,
        "cy": cy,
        **_lens(camera),
        "metric": True,
        "depth_unit_scale_factor": 1 / DEPTH_UNITS_PER_M,
        "frames": entries,
    }
    return json.dumps(record, indent=1) + "\n"


def stamp_text(time_s: float) -> str:
    """Return a timestamp in seconds, to the nanosecond."""
    stamp = timestamp_ns(time_s)
    return f"{stamp // 1_000_000_000}.{stamp % 1_000_000_000:09d}"


def tum_line(time_s: float, cam_from_world: Rigid3) -> str:
    """Return a line of a TUM trajectory: world_from_cam."""
    world_from_cam = cam_from_world.inverse()
    w, x, y, z = quat_from_rotation(world_from_cam.R)
    numbers = [*world_from_cam.t, x, y, z, w]
    return " ".join([stamp_text(time_s), *(f"{number:.12f}" for number in numbers)])


def camera_json(camera: CameraModel) -> str:
    """Return intrinsics as JSON: model, width, height, params (COLMAP order)."""
    record = {
        "model": camera.model,
        "width": camera.width,
        "height": camera.height,
        "params": list(camera.params),
    }
    return json.dumps(record) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    write_atomically(path, text.encode())


def _write_image(
    path: Path, image: npt.NDArray[np.integer[Any]], options: list[int]
) -> None:
    done, coded = cv2.imencode(path.suffix, image, options)
    if not done:
        raise ConfigError(f"{path}: OpenCV cannot write this kind of image")
    path.write_bytes(coded.tobytes())


def write_video(path: Path, images: Iterable[ByteArray], *, rate_hz: float) -> int:
    """Write a video: MPEG-4 for .mp4, Motion JPEG for .avi; OpenCV reads both.

    Parameters
    ----------
    path : Path
        Its ending chooses the format.
    images : iterable of ndarray of shape (H, W, 3), uint8
        All of one size.
    rate_hz : float
        Frames per second.

    Returns
    -------
    int
        Size of the file, bytes.

    Raises
    ------
    ConfigError
        When the ending is another, there is no image, or OpenCV lacks the encoder.
    """
    codecs = {".mp4": "mp4v", ".avi": "MJPG"}
    if path.suffix not in codecs:
        raise ConfigError(f"{path}: a video ends in .mp4 or .avi")
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    writer: cv2.VideoWriter | None = None
    for image in images:
        if writer is None:
            codec = cv2.VideoWriter.fourcc(*codecs[path.suffix])
            size = (image.shape[1], image.shape[0])
            writer = cv2.VideoWriter(str(partial), codec, rate_hz, size)
            if not writer.isOpened():
                raise ConfigError(
                    f"{path}: this OpenCV cannot encode {codecs[path.suffix]}; "
                    "install opencv-python-headless"
                )
        writer.write(image)
    if writer is None:
        raise ConfigError(f"{path}: a video needs at least one frame")
    writer.release()
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    return path.stat().st_size
