"""Intermediate results on disk, so that a long build goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[np.generic]]


class WorkFolder:
    """Arrays by key; a key names everything that the arrays depend on.

    Parameters
    ----------
    path : Path or None
        Folder, made on the first write; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def cached(self, key: Mapping[str, object], make: Callable[[], Arrays]) -> Arrays:
        """Return what is stored under `key`, or make and store it.

        Parameters
        ----------
        key : mapping
            JSON-serializable description of all inputs.
        make : callable
            Computes the arrays.
        """
        if self._path is None:
            return make()
        text = json.dumps(key, sort_keys=True)
        file = self._path / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"
        if file.is_file():
            try:
                # Opened here: np.load leaves a broken archive open.
                with (
                    file.open("rb") as opened,
                    np.load(opened, allow_pickle=False) as data,
                ):
                    return {name: data[name] for name in data.files}
            except (OSError, ValueError, EOFError, zipfile.BadZipFile):
                file.unlink()
        arrays = make()
        self._path.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        with temporary.open("wb") as stream:
            np.savez(stream, **dict(arrays))  # type: ignore[arg-type]
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
        return arrays

    def remove(self) -> None:
        """Delete the folder."""
        if self._path is not None and self._path.is_dir():
            shutil.rmtree(self._path)
