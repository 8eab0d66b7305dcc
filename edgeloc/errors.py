"""Errors of start-up and building, each with the exit code of the command line.

The tree::

    EdgelocError             70  anything else that went wrong in here
    ├── ConfigError           2  a wrong option, config key or input file
    │   ├── DatasetError      2  a recording that is wrong or partial
    │   └── LogFormatError    2  a log of a run that is not what LOG_FORMAT.md says
    ├── MapError              3  a site that cannot be used or built
    │   ├── TileFormatError   3  bytes on disk that are not what FORMAT.md says
    │   ├── TileMissingError  3  a tile that the site lists and the folder lacks
    │   │   └── TileSlowError   3  a tile that was not read in the time there was
    │   ├── MapModelMismatchError  3  a site built for other models
    │   └── UntrustedSiteError  3  a site that nobody trusted has signed
    ├── ModelError            4  a model file that cannot be used
    │   └── BackendUnavailableError  4  an inference backend that is missing
    └── CameraError           5  a camera or stream that cannot be opened or read

The frame loop does not raise: it answers with a status and a cause
(`edgeloc.types.PoseEstimate`). A message is one line: what, where, what to do.
"""

from __future__ import annotations


class EdgelocError(Exception):
    """Root of all errors that edgeloc raises on purpose."""

    exit_code = 70


class ConfigError(EdgelocError):
    """The caller asked for something that makes no sense: fix the call."""

    exit_code = 2


class DatasetError(ConfigError):
    """A recording is wrong or partial; the message names the file and the field."""


class LogFormatError(ConfigError):
    """A log of a run cannot be read; the message names the field."""


class MapError(EdgelocError):
    """A site cannot be used or built."""

    exit_code = 3


class TileFormatError(MapError):
    """The bytes of a map file violate the format.

    Parameters
    ----------
    message : str
        What is wrong.
    offset : int, optional
        Byte offset in the file at which it was found.
    """

    def __init__(self, message: str, *, offset: int | None = None) -> None:
        super().__init__(message if offset is None else f"{message} (byte {offset})")
        self.offset = offset


class TileMissingError(MapError):
    """A tile that the site lists is not there, or cannot be read."""


class TileSlowError(TileMissingError):
    """A tile was not read in time: this frame goes on without it, the next has it."""


class MapModelMismatchError(MapError):
    """The site was built for other models than those given."""


class UntrustedSiteError(MapError):
    """The site is not signed, or not by a key that was given."""


class ModelError(EdgelocError):
    """A model file cannot be used."""

    exit_code = 4


class BackendUnavailableError(ModelError):
    """An inference backend that was asked for is not installed or has no device."""


class CameraError(EdgelocError):
    """A camera, stream or clip cannot be opened or read."""

    exit_code = 5
