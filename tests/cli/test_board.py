"""What is read from a board's files: samples are those of real boards."""

from __future__ import annotations

import importlib.util

import pytest

from edgeloc.cli import board
from edgeloc.cli.board import Release, check_board

ORIN_RELEASE = """\
# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, \
DATE: Wed Jan  8 01:49:37 UTC 2025
# KERNEL_VARIANT: oot
TARGET_USERSPACE_LIB_DIR=nvidia
TARGET_USERSPACE_LIB_DIR_PATH=usr/lib/aarch64-linux-gnu/nvidia
"""
XAVIER_RELEASE = (
    "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, "
    "DATE: Tue Aug  1 19:57:35 UTC 2023\n"
)
DPKG = """\
Package: libnvinfer-headers-dev
Status: install ok installed
Version: 10.3.0.30-1+cuda12.5

Package: libnvinfer10
Status: install ok installed
Priority: optional
Architecture: arm64
Source: tensorrt
Version: 10.3.0.30-1+cuda12.5
Depends: libcudnn9-cuda-12, libcublas-12-6
Description: TensorRT runtime libraries
 Package: nvidia-jetpack is not this one

Package: python3-libnvinfer
Status: deinstall ok config-files
Version: 10.3.0.30-1+cuda12.5

Package: nvidia-jetpack
Status: install ok installed
Architecture: arm64
Version: 6.2+b77
Maintainer: NVIDIA Corporation

"""
NVPMODEL = """\
# FORMAT:
# < PARAM TYPE=PARAM_TYPE NAME=PARAM_NAME >
# < POWER_MODEL ID=id_num NAME=mode_name >
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online

< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
CPU_ONLINE CORE_0 1
< PM_CONFIG DEFAULT=1 FAN_CONFIG=DEFAULT >
"""
CUDA = """\
{
   "cuda" : {
      "name" : "CUDA SDK",
      "version" : "12.6.11"
   },
   "cuda_cccl" : {
      "name" : "CUDA C++ Core Compute Libraries",
      "version" : "12.6.37"
   }
}
"""
PC_DRIVER = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
BOARD_DRIVER = """\
NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build
GCC version:  collect2: error: ld returned 1 exit status
"""


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return root


@pytest.fixture
def orin(tmp_path):
    """The files of an Orin Nano with JetPack 6.2."""
    return write(
        tmp_path,
        {
            "etc/nv_tegra_release": ORIN_RELEASE,
            "etc/nvpmodel.conf": NVPMODEL,
            "var/lib/nvpmodel/status": "pmode:0001",
            "var/lib/dpkg/status": DPKG,
            "usr/local/cuda/version.json": CUDA,
            "proc/driver/nvidia/version": BOARD_DRIVER,
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        },
    )


def findings_of(root):
    return {finding.name: finding for finding in check_board(root)}


def test_release_of_boards():
    assert board.parse_release(ORIN_RELEASE) == Release(l4t="36.4.3", jetpack=6)
    assert board.parse_release(XAVIER_RELEASE) == Release(l4t="35.4.1", jetpack=5)
    thor = ORIN_RELEASE.replace("R36", "R38").replace("4.3", "2.0")
    assert board.parse_release(thor) == Release(l4t="38.2.0", jetpack=7)
    later = ORIN_RELEASE.replace("R36", "R52")
    assert board.parse_release(later) == Release(l4t="52.4.3", jetpack=None)
    assert board.parse_release("Debian GNU/Linux 12") is None


def test_only_installed_packages_count():
    names = ("libnvinfer10", "python3-libnvinfer", "nvidia-jetpack", "absent")
    assert board.package_versions(DPKG, names) == {
        "libnvinfer10": "10.3.0.30-1+cuda12.5",
        "nvidia-jetpack": "6.2+b77",
    }
    assert board.package_versions("", names) == {}
    # The last one of a file without its empty line.
    assert board.package_versions(DPKG.rstrip(), ["nvidia-jetpack"])


def test_power_modes_are_read_and_the_comments_are_not():
    assert board.parse_power_modes(NVPMODEL) == {0: "15W", 1: "25W", 2: "MAXN_SUPER"}
    assert board.parse_power_status("pmode:0008 fmode:quiet") == 8
    assert board.parse_power_status("") is None


def test_cuda_and_driver_versions():
    assert board.parse_cuda_version(CUDA) == "12.6.11"
    for broken in ("", "{", "[]", '{"cuda": 3}', "{}"):
        assert board.parse_cuda_version(broken) == ""
    assert board.parse_driver_version(PC_DRIVER) == "550.54.15"
    assert board.parse_driver_version(BOARD_DRIVER) == "540.4.0"
    assert board.parse_driver_version("") == ""


def test_a_board_is_described(orin):
    findings = findings_of(orin)
    assert findings["jetson"].value == (
        "NVIDIA Jetson Orin Nano Developer Kit, L4T 36.4.3, JetPack 6.2"
    )
    assert findings["cuda"].value == "toolkit 12.6.11, driver 540.4.0"
    assert findings["power mode"].value == (
        "25W (mode 1); there are also 15W, MAXN_SUPER"
    )
    assert {findings[name].status for name in ("jetson", "cuda", "power mode")} == {
        "ok"
    }


def test_an_old_jetpack_is_a_warning(orin):
    write(orin, {"etc/nv_tegra_release": XAVIER_RELEASE, "var/lib/dpkg/status": ""})
    finding = findings_of(orin)["jetson"]
    assert finding.value.endswith("L4T 35.4.1, JetPack 5")
    assert finding.status == "warn"
    assert "JetPack 6 or later" in finding.advice


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is here"
)
def test_tensorrt_that_python_does_not_find_is_a_warning(orin):
    finding = findings_of(orin)["tensorrt"]
    assert finding.status == "warn"
    assert finding.value.startswith("10.3.0.30-1+cuda12.5 is installed, but Python")
    assert finding.advice == "sudo apt install python3-libnvinfer"
    write(
        orin,
        {
            "var/lib/dpkg/status": DPKG.replace(
                "deinstall ok config-files", "install ok installed"
            )
        },
    )
    assert "--system-site-packages" in findings_of(orin)["tensorrt"].advice


def test_a_mode_that_the_board_does_not_tell_is_asked_for(orin):
    (orin / "var/lib/nvpmodel/status").unlink()
    finding = findings_of(orin)["power mode"]
    assert (finding.status, finding.value) == ("warn", "unknown")
    write(orin, {"var/lib/nvpmodel/status": "pmode:0007"})
    assert findings_of(orin)["power mode"].value.startswith("mode 7 (mode 7)")


def test_a_machine_without_anything_is_no_error(tmp_path):
    findings = findings_of(tmp_path)
    assert findings["jetson"].value == "no"
    assert findings["cuda"].status == "missing"
    assert "power mode" not in findings
