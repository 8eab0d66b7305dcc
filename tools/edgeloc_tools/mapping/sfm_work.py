"""The work folder of structure from motion: images on disk and finished steps."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from edgeloc.errors import ConfigError, DatasetError
from edgeloc.types import FloatArray
from edgeloc_tools.datasets.recording import ImageFile, RecordedImage, Recording
from edgeloc_tools.files import write_atomically

STEPS = ("images", "features", "matches", "model")
"""In order; each needs those before it."""
_COLMAP_READS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".ppm")
"""Not WebP. What is in the file counts, not its ending."""
_EXIF_UPRIGHT = 1
_EXIF_ORIENTATION = 0x0112


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, readable and in stable order."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def replace_folder(new: Path, old: Path) -> None:
    """Put the folder `new` in the place of `old`, whose former content goes."""
    for file in sorted(new.iterdir()):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    old.parent.mkdir(parents=True, exist_ok=True)
    retired = old.with_name(f".{old.name}.{os.getpid()}.old")
    if old.exists():
        old.replace(retired)
    new.replace(old)
    shutil.rmtree(retired, ignore_errors=True)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return in words how the inputs of a step differ, at most 6 of them."""
    out = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            added, gone = after.keys() - before.keys(), before.keys() - after.keys()
            edited = [k for k in after.keys() & before.keys() if after[k] != before[k]]
            parts = [(len(added), "new"), (len(gone), "gone"), (len(edited), "changed")]
            out.append(f"{key}: " + ", ".join(f"{n} {word}" for n, word in parts if n))
        else:
            out.append(f"{key}: {before} -> {after}")
    return out[:6]


class Workspace:
    """`OUT/work`: what is finished, and from which inputs.

    Parameters
    ----------
    out : Path
        The output folder.

    Raises
    ------
    ConfigError
        When the folder holds something else.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out / "work"
        if out.exists() and not out.is_dir():
            raise ConfigError(f"{out}: is a file, give a folder for the model")
        if out.is_dir() and any(out.iterdir()) and not self.folder.is_dir():
            raise ConfigError(
                f"{out}: is not empty and not from `edgeloc-build sfm`; "
                "give another output folder"
            )
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def images(self) -> Path:
        """The images, as COLMAP and later steps read them."""
        return self.out / "images"

    @property
    def masks(self) -> Path:
        """Masks by COLMAP's naming."""
        return self.folder / "masks"

    @property
    def database(self) -> Path:
        """COLMAP's database."""
        return self.folder / "database.db"

    @property
    def model(self) -> Path:
        """The largest model, before scale and alignment."""
        return self.folder / "model"

    def _marker(self, step: str, state: str) -> Path:
        return self.folder / f"{step}.{state}.json"

    def _read(self, step: str, state: str) -> dict[str, Any] | None:
        try:
            value = json.loads(self._marker(step, state).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) and "inputs" in value else None

    def finished(self, step: str, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the facts of a step if it was finished from the same inputs."""
        done = self._read(step, "done")
        if done is None or done["inputs"] != _plain(inputs):
            return None
        facts = done.get("facts", {})
        return facts if isinstance(facts, dict) else {}

    def begin(self, step: str, inputs: Mapping[str, Any]) -> tuple[bool, list[str]]:
        """Mark a step as begun; the steps after it are no longer finished.

        Returns
        -------
        (bool, list of str)
            Whether an interrupted attempt from the same inputs can be continued, and
            what changed since an earlier finished or interrupted one.
        """
        earlier = self._read(step, "done") or self._read(step, "begun")
        plain = _plain(inputs)
        changed = changes(earlier["inputs"], plain) if earlier is not None else []
        for later in STEPS[STEPS.index(step) :]:
            self._marker(later, "done").unlink(missing_ok=True)
            if later != step:
                self._marker(later, "begun").unlink(missing_ok=True)
        write_json(self._marker(step, "begun"), {"inputs": plain})
        return earlier is not None and not changed, changed

    def finish(
        self, step: str, inputs: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> None:
        """Mark a step as finished."""
        write_json(
            self._marker(step, "done"), {"inputs": _plain(inputs), "facts": facts}
        )
        self._marker(step, "begun").unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove everything that was finished."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the value looks like after JSON, to compare with what was read."""
    plain = json.loads(json.dumps(value))
    assert isinstance(plain, dict)
    return plain


def _file_state(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError as exc:
        raise DatasetError(f"{path}: cannot be read ({exc.strerror})") from exc
    return f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"


def fingerprint(image: RecordedImage) -> str:
    """Return a short text that changes when the pixels or the mask of an image may."""
    source = image.source
    files = (
        getattr(s, "path", None) for s in (source, getattr(source, "reader", None))
    )
    parts = [
        # Addresses in a default repr differ in each process.
        re.sub(r" at 0x[0-9a-f]+", "", repr(source)),
        *(_file_state(path) for path in files if isinstance(path, Path)),
        *map(str, image.mask_key()),
        image.camera_id,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def exif_orientation(path: Path) -> int:
    """Return the EXIF orientation of a JPEG, 1 (upright) when there is none.

    Pixels are used as they are stored, by COLMAP and by `ImageFile` alike; this only
    tells how the camera was held.
    """
    with path.open("rb") as file:
        data = file.read(1 << 16)
    start = data.find(b"Exif\x00\x00")
    if not data.startswith(b"\xff\xd8") or start < 0:
        return _EXIF_UPRIGHT
    tiff = data[start + 6 :]
    order = {b"II": "little", b"MM": "big"}.get(tiff[:2])
    if order is None:
        return _EXIF_UPRIGHT

    def number(offset: int, size: int) -> int:
        # order is "little" or "big" by the lookup above
        return int.from_bytes(
            tiff[offset : offset + size], "little" if order == "little" else "big"
        )

    table = number(4, 4)
    for entry in range(min(number(table, 2), 1000)):
        at = table + 2 + 12 * entry
        if number(at, 2) == _EXIF_ORIENTATION:
            return number(at + 8, 2) or _EXIF_UPRIGHT
    return _EXIF_UPRIGHT


def view_from_camera(orientation: int) -> FloatArray:
    """Return the rotation from the stored picture to the one that is shown, (3, 3).

    Parameters
    ----------
    orientation : int
        EXIF; 3, 6 and 8 are the turned ones, mirrored ones do not come from cameras.
    """
    turns = {
        3: [[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 1.0]],
        6: [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
        8: [[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
    }
    return np.array(turns[orientation]) if orientation in turns else np.eye(3)


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or re.search(r"[\s]", name):
        # COLMAP's text files and pair lists separate by blanks.
        raise DatasetError(
            f"{name!r}: COLMAP needs image names that are relative and without blanks; "
            "rename the image"
        )


def _link_or_copy(source: Path, target: Path, *, copy: bool) -> None:
    target.unlink(missing_ok=True)
    if not copy:
        try:
            target.symlink_to(source.resolve())
        except OSError:
            pass  # a file system without links: copy
        else:
            return
    shutil.copyfile(source, target)


def _encode(image: RecordedImage, target: Path) -> None:
    pixels = image.source.read()
    suffix = target.suffix.lower()
    if suffix not in _COLMAP_READS:
        suffix = ".jpg"
    lossy = suffix in {".jpg", ".jpeg"}
    options = [cv2.IMWRITE_JPEG_QUALITY, 97] if lossy else []
    ok, data = cv2.imencode(suffix, pixels, options)
    if not ok:
        raise DatasetError(f"{image.name}: cannot be written as {target}")
    target.unlink(missing_ok=True)
    target.write_bytes(data.tobytes())


def place_image(image: RecordedImage, folder: Path, *, copy: bool) -> tuple[int, int]:
    """Make the file of an image that COLMAP and later steps read.

    Files are linked where COLMAP can read them; frames of a video and other formats
    are written, as JPEG where the name does not say what.

    Parameters
    ----------
    image : RecordedImage
        The image.
    folder : Path
        Where; the file has the image's name.
    copy : bool
        Copy files instead of linking them.

    Returns
    -------
    (int, int)
        Width and height, px.

    Raises
    ------
    DatasetError
        When the image cannot be read or its name cannot be used.
    """
    _check_name(image.name)
    target = folder / image.name
    target.parent.mkdir(parents=True, exist_ok=True)
    source = image.source
    if (
        isinstance(source, ImageFile)
        and source.path.is_file()
        and source.path.suffix.lower() in _COLMAP_READS
    ):
        _link_or_copy(source.path, target, copy=copy)
    else:
        _encode(image, target)
    height, width = ImageFile(target).read().shape[:2]
    return width, height


def mask_file(folder: Path, name: str) -> Path:
    """Return where COLMAP looks for the mask of an image."""
    return folder / f"{name}.png"


def place_mask(image: RecordedImage, folder: Path) -> bool:
    """Make the mask of an image as COLMAP wants it: `NAME.png`, 0 = no features.

    Returns
    -------
    bool
        Whether the image has a mask.
    """
    mask = image.read_mask()
    if mask is None:
        return False
    target = mask_file(folder, image.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(target), mask):
        raise DatasetError(f"{target}: the mask cannot be written")
    return True


def remove_strangers(folder: Path, names: Sequence[str]) -> None:
    """Remove images of an earlier run that are no longer wanted."""
    wanted = {folder / name for name in names}
    if folder.is_dir():
        for path in sorted(folder.rglob("*")):
            if (path.is_file() or path.is_symlink()) and path not in wanted:
                path.unlink()


def image_inputs(recording: Recording, *, copy: bool) -> dict[str, Any]:
    """Return what the images step depends on."""
    return {
        "images": {image.name: fingerprint(image) for image in recording.images},
        "copy_images": copy,
    }
