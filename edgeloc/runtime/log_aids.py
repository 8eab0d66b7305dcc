"""What helped an estimator beside the picture, as a log has it: see LOG_FORMAT.md."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeloc.errors import LogFormatError
from edgeloc.fields import Field
from edgeloc.geometry.upright import Vertical
from edgeloc.localize.pose_prior import HeadingPrior, PosePrior, PositionPrior
from edgeloc.runtime.sensed_motion import RelativeMotion, SensedMotion
from edgeloc.types import ByteArray, FloatArray, Rigid3

_MAX_SIDE_PX = 65535
_MAX_MASK_BYTES = 64 << 20
_MAX_MASKS = 1000
_MAX_RATES = 100_000
_SINCE_VERSION_3 = ("motions",)
_ZLIB_LEVEL = 1
"""Masks have few edges: more effort saves little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedMask:
    """A mask, one bit for each pixel.

    Parameters
    ----------
    width, height : int
        Of the picture, px.
    bits : bytes
        Row by row without gaps, the first pixel in the highest bit; 0 = ignore.
    """

    width: int
    height: int
    bits: bytes

    @staticmethod
    def of(mask: ByteArray) -> LoggedMask:
        """Return a mask as it is logged: of its values only whether they are 0."""
        height, width = mask.shape
        return LoggedMask(
            width=width, height=height, bits=np.packbits(mask != 0).tobytes()
        )

    def mask(self) -> ByteArray:
        """Return it again, (H, W) uint8, of 0 and 255."""
        bits = np.unpackbits(
            np.frombuffer(self.bits, np.uint8), count=self.width * self.height
        )
        return np.asarray(bits.reshape(self.height, self.width) * np.uint8(255))

    def to_payload(self) -> dict[str, Any]:
        """Return the plain types that are written."""
        return {
            "size": [self.width, self.height],
            "bits": zlib.compress(self.bits, _ZLIB_LEVEL),
        }

    @staticmethod
    def from_field(entry: Field) -> LoggedMask:
        """Return the mask of a payload."""
        facts = entry.members({"size", "bits"})
        width, height = (
            side.integer(1, _MAX_SIDE_PX) for side in facts["size"].items(2)
        )
        num_bytes = (width * height + 7) // 8
        if num_bytes > _MAX_MASK_BYTES:
            facts["size"].fail("the size of a picture")
        # No more is unpacked than there should be, whatever was packed.
        unpacker = zlib.decompressobj()
        packed = facts["bits"].binary(1, _MAX_MASK_BYTES)
        try:
            bits = unpacker.decompress(packed, num_bytes)
            whole = unpacker.decompress(unpacker.unconsumed_tail, 1) == b""
        except zlib.error:
            bits, whole = b"", False
        if len(bits) != num_bytes or not whole or not unpacker.eof:
            facts["bits"].fail(f"{num_bytes} bytes, compressed with zlib")
        return LoggedMask(width=width, height=height, bits=bits)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionAids:
    """What helped in a whole session.

    Parameters
    ----------
    static_mask : LoggedMask or None
        Of every frame, before its margin.
    segmenter : bool
        Whether a network made masks; those are with the frames.
    priors : bool
        Whether there were sensors of position, heading or tilt; what they said is with
        the answers.
    motions : bool
        The same of sensors of motion.
    """

    static_mask: LoggedMask | None
    segmenter: bool
    priors: bool
    motions: bool = False

    def to_payload(self) -> dict[str, Any]:
        """Return the plain types that are written."""
        mask = self.static_mask
        return {
            "static_mask": None if mask is None else mask.to_payload(),
            "segmenter": self.segmenter,
            "priors": self.priors,
            "motions": self.motions,
        }

    @staticmethod
    def from_field(entry: Field) -> SessionAids:
        """Return the facts of a payload."""
        facts = entry.members(
            {"static_mask", "segmenter", "priors"}, optional=_SINCE_VERSION_3
        )
        mask = facts["static_mask"]
        return SessionAids(
            static_mask=None if mask.value is None else LoggedMask.from_field(mask),
            segmenter=facts["segmenter"].flag(),
            priors=facts["priors"].flag(),
            motions="motions" in facts and facts["motions"].flag(),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoggedAids:
    """What helped with one answer.

    Parameters
    ----------
    prior : PosePrior
        What other sensors said, believed or not.
    motion : SensedMotion or None
        The way to the frame according to sensors, believed or not.
    masks : tuple of LoggedMask or None
        What the segmentation network said each time it ran; None where it failed.
    """

    prior: PosePrior = field(default_factory=PosePrior)
    motion: SensedMotion | None = None
    masks: tuple[LoggedMask | None, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing helped."""
        return self.prior.is_empty and self.motion is None and not self.masks

    def to_payload(self) -> dict[str, Any]:
        """Return the plain types that are written: only what there is."""
        prior = self.prior
        payload: dict[str, Any] = {}
        if prior.position is not None:
            position = prior.position
            payload["position"] = _binary(position.center, position.covariance)
        if prior.heading is not None:
            heading = prior.heading
            payload["heading"] = _binary(heading.heading_rad, heading.sigma_rad)
        if prior.vertical is not None:
            vertical = prior.vertical
            payload["vertical"] = _binary(
                vertical.down_in_cam, vertical.down_in_world, vertical.sigma_rad
            )
        if self.motion is not None:
            payload["motion"] = _motion_payload(self.motion)
        if self.masks:
            payload["masks"] = [
                None if mask is None else mask.to_payload() for mask in self.masks
            ]
        return payload

    @staticmethod
    def from_field(entry: Field) -> LoggedAids:
        """Return what a payload says."""
        facts = entry.members(
            (), optional=("position", "heading", "vertical", "motion", "masks")
        )
        if not facts:
            return NO_AIDS
        position = heading = vertical = None
        if "position" in facts:
            position = _position(facts["position"])
        if "heading" in facts:
            heading_rad, sigma_rad = _numbers(facts["heading"], 2)
            if not sigma_rad > 0:
                facts["heading"].fail("a heading with a sigma above 0")
            heading = HeadingPrior(
                heading_rad=float(heading_rad), sigma_rad=float(sigma_rad)
            )
        if "vertical" in facts:
            numbers = _numbers(facts["vertical"], 7)
            try:
                vertical = Vertical(
                    down_in_cam=numbers[:3],
                    down_in_world=numbers[3:6],
                    sigma_rad=float(numbers[6]),
                )
            except ValueError as exc:
                raise LogFormatError(f"{facts['vertical'].name}: {exc}") from exc
        return LoggedAids(
            prior=PosePrior(position=position, heading=heading, vertical=vertical),
            motion=_motion(facts["motion"]) if "motion" in facts else None,
            masks=_masks(facts["masks"]) if "masks" in facts else (),
        )


NO_AIDS = LoggedAids()
"""Of frames with nothing but their picture."""


def _binary(*numbers: FloatArray | float) -> bytes:
    flat = [np.ravel(number) for number in numbers]
    return np.concatenate(flat).astype("<f8").tobytes()


def _numbers(value: Field, count: int) -> FloatArray:
    numbers = np.frombuffer(value.binary(8 * count, 8 * count), "<f8")
    if not np.all(np.isfinite(numbers)):
        value.fail(f"{count} finite numbers")
    return numbers


def _position(value: Field) -> PositionPrior:
    numbers = _numbers(value, 12)
    return PositionPrior(
        center=numbers[:3], covariance=_covariance(value, numbers[3:], of="a place")
    )


def _covariance(value: Field, numbers: FloatArray, *, of: str) -> FloatArray:
    side = math.isqrt(len(numbers))
    covariance = numbers.reshape(side, side)
    if not np.array_equal(covariance, covariance.T) or not np.all(
        np.linalg.eigvalsh(covariance) > 0
    ):
        value.fail(f"{of} and a covariance")
    return covariance


def _masks(value: Field) -> tuple[LoggedMask | None, ...]:
    items = value.items()
    if len(items) > _MAX_MASKS:
        value.fail(f"a list of at most {_MAX_MASKS}")
    return tuple(
        None if item.value is None else LoggedMask.from_field(item) for item in items
    )


def _motion_payload(motion: SensedMotion) -> dict[str, Any]:
    way = motion.odometry
    return {
        "start_ns": motion.start_ns,
        "end_ns": motion.end_ns,
        "rate_times_ns": motion.rate_times_ns.astype("<i8").tobytes(),
        "rates": _binary(motion.rates_rad_s),
        "odometry": None
        if way is None
        else _binary(way.newer_from_older.R, way.newer_from_older.t, way.covariance),
    }


def _motion(value: Field) -> SensedMotion:
    facts = value.members({"start_ns", "end_ns", "rate_times_ns", "rates", "odometry"})
    start_ns = facts["start_ns"].integer(-(2**63), 2**63 - 1)
    packed = facts["rate_times_ns"].binary(0, 8 * _MAX_RATES)
    count, rest = divmod(len(packed), 8)
    if rest:
        facts["rate_times_ns"].fail("whole times")
    times_ns = np.frombuffer(packed, "<i8")
    if np.any(np.diff(times_ns) < 0):
        facts["rate_times_ns"].fail("times in their order")
    return SensedMotion(
        start_ns=start_ns,
        end_ns=facts["end_ns"].integer(start_ns, 2**63 - 1),
        rate_times_ns=times_ns,
        rates_rad_s=_numbers(facts["rates"], 3 * count).reshape(-1, 3),
        odometry=_odometry(facts["odometry"]),
    )


def _odometry(value: Field) -> RelativeMotion | None:
    if value.value is None:
        return None
    numbers = _numbers(value, 48)
    covariance = _covariance(value, numbers[12:], of="a motion")
    try:
        moved = Rigid3(R=numbers[:9].reshape(3, 3), t=numbers[9:12])
    except ValueError as exc:
        raise LogFormatError(f"{value.name}: {exc}") from exc
    return RelativeMotion(newer_from_older=moved, covariance=covariance)
