"""`edgeloc-power`: the mode is chosen by name, and what was before comes back.

The board's two tools cannot be here; those that stand for them keep their state in
files, and print what the real ones print.
"""

from __future__ import annotations

import shutil

import pytest
from board_scripts import script

MODES = """\
# < POWER_MODEL ID=id_num NAME=mode_name >
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 FAN_CONFIG=DEFAULT >
"""


@pytest.fixture
def jetson(board):
    (board.root / "modes").write_text(MODES)
    (board.root / "mode").write_text("0\n")
    (board.root / "clocks").write_text("schedutil\n")
    script(
        board.bin / "nvpmodel",
        f"cd {board.root}",
        'if [ "$1" = -q ]; then',
        '  echo "NVPM WARN: fan mode is not set!" >&2',
        '  echo "NV Power Mode: $(cat mode)W"',
        "  cat mode",
        # Asks before it restarts the board, and does nothing without an answer.
        'elif [ "$2" = 2 ]; then read -r answer; [ "$answer" = YES ]',
        'else echo "$2" >mode; fi',
    )
    script(
        board.bin / "jetson_clocks",
        f"cd {board.root}",
        'case ${1:-} in --store) cp clocks "$2" ;; --restore) cp "$2" clocks ;;',
        "*) echo pinned >clocks ;; esac",
    )
    return board


def power(jetson, action, conf="MODE=keep\nCLOCKS=pin\n"):
    (jetson.root / "power.conf").write_text(conf)
    return jetson.run(
        "edgeloc-power",
        action,
        EDGELOC_POWER_CONF=str(jetson.root / "power.conf"),
        EDGELOC_NVPMODEL_CONF=str(jetson.root / "modes"),
    )


def state(jetson):
    names = ("mode", "clocks")
    return tuple((jetson.root / name).read_text().strip() for name in names)


def test_clocks_are_pinned_and_come_back(jetson):
    assert power(jetson, "on").returncode == 0
    assert state(jetson) == ("0", "pinned")
    # A second start must not take pinned clocks for those of before.
    assert power(jetson, "on").returncode == 0
    assert power(jetson, "off").returncode == 0
    assert state(jetson) == ("0", "schedutil")
    assert list((jetson.state / "power").iterdir()) == []


def test_a_mode_is_set_by_its_name_and_comes_back(jetson):
    done = power(jetson, "on", "MODE=25W\nCLOCKS=follow\n")
    assert done.returncode == 0
    assert "mode 1, clocks follow" in done.stderr
    assert state(jetson) == ("1", "schedutil")
    assert power(jetson, "off").returncode == 0
    assert state(jetson) == ("0", "schedutil")


def test_a_mode_of_another_board_is_an_error_that_names_those_of_this_one(jetson):
    done = power(jetson, "on", "MODE=MAXN\n")
    assert done.returncode == 2
    assert "MODE=MAXN is no mode of this board: 15W 25W MAXN_SUPER" in done.stderr
    assert state(jetson) == ("0", "schedutil")


def test_a_board_is_never_restarted_behind_the_users_back(jetson):
    done = power(jetson, "on", "MODE=MAXN_SUPER\nCLOCKS=pin\n")
    assert done.returncode == 0
    assert "needs a restart of the board: sudo nvpmodel -m 2" in done.stderr
    assert state(jetson) == ("0", "pinned")


def test_status_names_the_modes(jetson):
    done = power(jetson, "status")
    assert done.stdout.splitlines() == ["mode: 0", "modes: 15W 25W MAXN_SUPER"]


@pytest.mark.skipif(shutil.which("nvpmodel") is not None, reason="this is a Jetson")
def test_other_machines_are_left_alone(board):
    done = board.run("edgeloc-power", "on")
    assert done.returncode == 0
    assert "this is no Jetson" in done.stderr
    assert list(board.state.iterdir()) == []
