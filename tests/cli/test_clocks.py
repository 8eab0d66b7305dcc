"""Clocks and temperatures, from copies of what sysfs shows on boards and PCs."""

from __future__ import annotations

import pytest

from edgeloc.cli.clocks import (
    Zone,
    active_throttles,
    check_clocks,
    check_thermal,
    cpu_clocks,
    thermal_zones,
)


def write(root, files):
    for name, text in files.items():
        path = root / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", "utf-8")
    return root


def core(number, *, governor="schedutil", low=729600, high=1510400):
    folder = f"devices/system/cpu/cpu{number}/cpufreq"
    return {
        f"{folder}/scaling_governor": governor,
        f"{folder}/scaling_min_freq": low,
        f"{folder}/scaling_max_freq": high,
        f"{folder}/cpuinfo_max_freq": 1510400,
    }


def zone(number, kind, temperature, **trips):
    folder = f"class/thermal/thermal_zone{number}"
    files = {f"{folder}/type": kind, f"{folder}/temp": temperature}
    for trip, (name, limit) in enumerate(trips.items()):
        files[f"{folder}/trip_point_{trip}_type"] = name
        files[f"{folder}/trip_point_{trip}_temp"] = limit
    return files


@pytest.fixture
def orin(tmp_path):
    """An Orin Nano as it comes."""
    return write(
        tmp_path,
        {
            **core(0),
            **core(1),
            "class/devfreq/17000000.gpu/min_freq": 306000000,
            "class/devfreq/17000000.gpu/max_freq": 624750000,
            "class/devfreq/15480000.nvdec/min_freq": 192000000,
            "class/devfreq/15480000.nvdec/max_freq": 793600000,
            **zone(0, "cpu-thermal", 47843, critical=104500, passive=99000),
            **zone(1, "gpu-thermal", 48187, critical=104500, passive=99000),
            **zone(2, "cv0-thermal", -256000),
            **zone(8, "tj-thermal", 48187, active=51000, passive=-256000),
            "class/thermal/cooling_device0/type": "pwm-fan",
            "class/thermal/cooling_device0/cur_state": 2,
            "class/thermal/cooling_device1/type": "cpu-throttle-alert",
            "class/thermal/cooling_device1/cur_state": 0,
        },
    )


def findings_of(root):
    findings = [*check_clocks(root), *check_thermal(root)]
    return {finding.name: finding for finding in findings}


def test_clocks_that_follow_the_load_are_a_warning(orin):
    findings = findings_of(orin)
    assert findings["cpu clocks"].value == "schedutil, 730 to 1510 MHz of 1510"
    assert findings["cpu clocks"].status == "warn"
    assert "jetson_clocks" in findings["cpu clocks"].advice
    # And the GPU's, but not the video decoder's.
    assert findings["gpu clock"].value == "306 to 625 MHz"
    assert findings["gpu clock"].status == "warn"
    assert len(findings) == 3


def test_pinned_clocks_are_right(orin):
    write(orin, {**core(0, low=1510400), **core(1, governor="performance")})
    write(orin, {"class/devfreq/17000000.gpu/min_freq": 624750000})
    assert [clock.steady for clock in cpu_clocks(orin)] == [True, True]
    findings = findings_of(orin)
    assert findings["cpu clocks"].status == findings["gpu clock"].status == "ok"


def test_one_core_that_is_not_pinned_is_seen(orin):
    write(orin, core(0, low=1510400))
    assert findings_of(orin)["cpu clocks"].status == "warn"


def test_sensors_that_are_off_and_limits_that_are_none_do_not_count(orin):
    assert thermal_zones(orin) == [
        Zone(name="cpu-thermal", temperature_c=47.843, limit_c=99.0),
        Zone(name="gpu-thermal", temperature_c=48.187, limit_c=99.0),
        Zone(name="tj-thermal", temperature_c=48.187, limit_c=None),
    ]
    assert findings_of(orin)["temperature"].value == "48 C (gpu-thermal)"
    assert findings_of(orin)["temperature"].status == "ok"


def test_a_hot_chip_is_a_warning(orin):
    write(orin, zone(1, "gpu-thermal", 95500, critical=104500, passive=99000))
    finding = findings_of(orin)["temperature"]
    assert finding.status == "warn"
    assert finding.value == (
        "96 C (gpu-thermal); at their limit: gpu-thermal 96 of 99 C"
    )


def test_throttling_is_a_warning_and_a_fan_is_not(orin):
    assert active_throttles(orin) == []
    write(orin, {"class/thermal/cooling_device1/cur_state": 1})
    assert active_throttles(orin) == ["cpu-throttle-alert"]
    finding = findings_of(orin)["temperature"]
    assert finding.status == "warn"
    assert finding.value.endswith("slowed down by cpu-throttle-alert")


def test_a_machine_without_sysfs_has_no_lines(tmp_path):
    assert findings_of(tmp_path) == {}
    write(tmp_path, {"class/thermal/thermal_zone0/type": "acpitz"})
    write(tmp_path, {"devices/system/cpu/cpu0/cpufreq/scaling_governor": "x"})
    assert findings_of(tmp_path) == {}
