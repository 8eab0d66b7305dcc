"""Clock frequencies and temperatures, from sysfs.

A clock that follows the load makes frame times vary: the governor has to see a burst
before it reacts. A hot chip slows down, whatever was set.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgeloc.cli.finding import OK, WARN, Finding, read_int, read_text

_GPU = re.compile(r"gpu|ga10b|gv11b|gp10b|gb10b", re.I)
# Cooling devices that slow work down; fans are not among them.
_THROTTLES = re.compile(
    r"throttle|cpufreq|devfreq|processor|powerclamp|cpu-idle|hot-surface", re.I
)
_NEAR_LIMIT_C = 5.0
_PIN = "sudo jetson_clocks on a Jetson, `cpupower frequency-set -g performance` on a PC"


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuClock:
    """How the clock of one core is governed; frequencies in kHz.

    Parameters
    ----------
    governor : str
        Its name.
    low_khz, high_khz : int
        Limits between which the governor chooses.
    top_khz : int
        What the core could do.
    """

    governor: str
    low_khz: int
    high_khz: int
    top_khz: int

    @property
    def steady(self) -> bool:
        """Whether the clock does not wait for load."""
        return self.governor == "performance" or self.low_khz == self.high_khz


def cpu_clocks(root: Path = Path("/")) -> list[CpuClock]:
    """Return clocks of all cores that have a governor."""
    found = []
    for folder in sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq")):
        governor = read_text(folder / "scaling_governor").strip()
        numbers = [
            read_int(folder / name)
            for name in ("scaling_min_freq", "scaling_max_freq", "cpuinfo_max_freq")
        ]
        low, high, top = numbers
        if governor and low is not None and high is not None:
            found.append(
                CpuClock(
                    governor=governor,
                    low_khz=low,
                    high_khz=high,
                    top_khz=high if top is None else top,
                )
            )
    return found


def check_clocks(root: Path = Path("/")) -> list[Finding]:
    """Return whether clocks are steady; nothing where they cannot be seen.

    Parameters
    ----------
    root : Path
        Of the file system.

    Returns
    -------
    list of Finding
    """
    findings = []
    clocks = cpu_clocks(root)
    if clocks:
        steady = all(clock.steady for clock in clocks)
        governors = ", ".join(sorted({clock.governor for clock in clocks}))
        low = min(clock.low_khz for clock in clocks) / 1000
        high = max(clock.high_khz for clock in clocks) / 1000
        top = max(clock.top_khz for clock in clocks) / 1000
        findings.append(
            Finding(
                name="cpu clocks",
                status=OK if steady else WARN,
                value=f"{governors}, {low:.0f} to {high:.0f} MHz of {top:.0f}",
                advice=""
                if steady
                else f"clocks follow the load, frame times vary: {_PIN}",
            )
        )
    for folder in sorted(root.glob("sys/class/devfreq/*")):
        low_hz, high_hz = (read_int(folder / f"{end}_freq") for end in ("min", "max"))
        if not _GPU.search(folder.name) or low_hz is None or high_hz is None:
            continue
        steady = low_hz == high_hz
        findings.append(
            Finding(
                name="gpu clock",
                status=OK if steady else WARN,
                value=f"{low_hz / 1e6:.0f} to {high_hz / 1e6:.0f} MHz",
                advice="" if steady else "it follows the load: sudo jetson_clocks",
            )
        )
    return findings


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """A temperature sensor; degrees Celsius.

    Parameters
    ----------
    name : str
        Its type.
    temperature_c : float
        Now.
    limit_c : float or None
        Where the chip begins to slow down; None when the sensor has no such limit.
    """

    name: str
    temperature_c: float
    limit_c: float | None


def thermal_zones(root: Path = Path("/")) -> list[Zone]:
    """Return the sensors that can be read."""
    zones = []
    for folder in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        millidegrees = read_int(folder / "temp")
        # What is switched off says nothing, or -256 degrees.
        if millidegrees is None or millidegrees <= -40_000:
            continue
        limits = [
            limit
            for kind in sorted(folder.glob("trip_point_*_type"))
            if read_text(kind).strip() in {"passive", "hot", "critical"}
            and (limit := read_int(kind.with_name(kind.name[:-4] + "temp")))
            # Unused ones are 0 or below.
            and limit > 0
        ]
        zones.append(
            Zone(
                name=read_text(folder / "type").strip() or folder.name,
                temperature_c=millidegrees / 1000,
                limit_c=min(limits) / 1000 if limits else None,
            )
        )
    return zones


def active_throttles(root: Path = Path("/")) -> list[str]:
    """Return what slows the machine down now because of heat or current."""
    return sorted(
        {
            kind
            for folder in root.glob("sys/class/thermal/cooling_device*")
            if _THROTTLES.search(kind := read_text(folder / "type").strip())
            and (read_int(folder / "cur_state") or 0) > 0
        }
    )


def check_thermal(root: Path = Path("/")) -> list[Finding]:
    """Return how hot the machine is; nothing where that cannot be seen.

    Parameters
    ----------
    root : Path
        Of the file system.

    Returns
    -------
    list of Finding
    """
    zones = thermal_zones(root)
    if not zones:
        return []
    hottest = max(zones, key=lambda zone: zone.temperature_c)
    value = f"{hottest.temperature_c:.0f} C ({hottest.name})"
    near = [
        zone
        for zone in zones
        if zone.limit_c is not None
        and zone.temperature_c >= zone.limit_c - _NEAR_LIMIT_C
    ]
    if near:
        value += "; at their limit: " + ", ".join(
            f"{zone.name} {zone.temperature_c:.0f} of {zone.limit_c:.0f} C"
            for zone in near
        )
    throttles = active_throttles(root)
    if throttles:
        value += f"; slowed down by {', '.join(throttles)}"
    hot = bool(near or throttles)
    return [
        Finding(
            name="temperature",
            status=WARN if hot else OK,
            value=value,
            advice="cool the board, or choose a lower power mode: a chip that slows "
            "down misses deadlines"
            if hot
            else "",
        )
    ]
