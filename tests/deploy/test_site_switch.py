"""`edgeloc-site`: sites are installed, switched and rolled back, whole at all times."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
from board_scripts import script

import edgeloc

DEMO = Path(edgeloc.__file__).parent / "demo" / "site"
MAP_ID = json.loads((DEMO / "site.json").read_text("utf-8"))["map_id"]


def running(board):
    return (board.state / "site").readlink().name


@pytest.fixture
def two_sites(board):
    """A board on which `second` runs and `first` ran before."""
    for name in ("first", "second"):
        shutil.copytree(DEMO, board.state / "sites" / name)
        assert board.run("edgeloc-site", "use", name).returncode == 0
    return board


@pytest.fixture
def service(two_sites):
    """The same with a service, which works with a site as long as it is not broken.

    systemctl cannot run here: this one notes what it is asked.
    """
    board = two_sites
    script(board.bin / "systemctl", f'echo "$*" >>{board.root}/asked')
    script(
        board.programs / "edgeloc-health",
        f'[ "$(basename "$(readlink {board.state}/site)")" != broken ]',
    )
    shutil.copytree(DEMO, board.state / "sites" / "broken")
    return board


def test_a_site_is_checked_copied_and_run(board):
    source = board.root / "demo"
    shutil.copytree(DEMO, source)
    engines = source / "models" / "0123" / "engines"
    engines.mkdir(parents=True)
    (engines / "features-tensorrt.plan").write_bytes(b"of another machine")
    done = board.run("edgeloc-site", "install", source)
    assert done.returncode == 0, done.stderr
    assert running(board) == MAP_ID
    assert list(board.state.rglob("*.plan")) == []
    assert f"{MAP_ID} runs now" in done.stderr
    copied = board.state / "site" / "site.json"
    assert copied.read_bytes() == (DEMO / "site.json").read_bytes()
    # A relative link: the state may be mounted elsewhere.
    assert (board.state / "site").readlink() == Path("sites", MAP_ID)
    again = board.run("edgeloc-site", "install", DEMO)
    assert again.returncode == 2
    assert "exists; give another NAME" in again.stderr


def test_a_damaged_site_changes_nothing(board, tmp_path):
    assert board.run("edgeloc-site", "install", DEMO, "good").returncode == 0
    bad = tmp_path / "bad"
    shutil.copytree(DEMO, bad)
    tile = next((bad / "tiles").glob("*.tile"))
    tile.write_bytes(tile.read_bytes()[:-100])
    done = board.run("edgeloc-site", "install", bad, "newer")
    assert done.returncode == 3
    assert "nothing was changed" in done.stderr
    assert running(board) == "good"
    assert [path.name for path in (board.state / "sites").iterdir()] == ["good"]
    assert board.run("edgeloc-site", "install", tmp_path).returncode == 3


def test_rollback_goes_back_and_forth(two_sites):
    assert running(two_sites) == "second"
    listed = two_sites.run("edgeloc-site", "list").stdout.splitlines()
    assert [line[:9] for line in listed] == ["< first  ", "> second "]
    assert two_sites.run("edgeloc-site", "rollback").returncode == 0
    assert running(two_sites) == "first"
    assert two_sites.run("edgeloc-site", "rollback").returncode == 0
    assert running(two_sites) == "second"


def test_there_is_nothing_to_roll_back_to_at_first(board):
    assert board.run("edgeloc-site", "install", DEMO, "only").returncode == 0
    done = board.run("edgeloc-site", "rollback")
    assert done.returncode == 3
    assert "there is no site before this one" in done.stderr
    assert running(board) == "only"


def test_a_site_with_which_the_service_fails_is_taken_back(service):
    done = service.run("edgeloc-site", "use", "broken")
    assert done.returncode == 3
    assert "did not work with broken: second runs again" in done.stderr
    assert running(service) == "second"
    # And what ran before that is still what a rollback leads to.
    assert service.run("edgeloc-site", "rollback").returncode == 0
    assert running(service) == "first"
    asked = (service.root / "asked").read_text().splitlines()
    assert asked.count("restart edgeloc") == 3


def test_the_service_can_be_left_alone(service):
    done = service.run("edgeloc-site", "use", "broken", EDGELOC_NO_RESTART="1")
    assert done.returncode == 0
    assert running(service) == "broken"
    assert not (service.root / "asked").exists()


def test_only_sites_out_of_use_are_removed(two_sites):
    shutil.copytree(DEMO, two_sites.state / "sites" / "old")
    for name in ("first", "second"):
        done = two_sites.run("edgeloc-site", "remove", name)
        assert done.returncode == 2
        assert "switch first" in done.stderr
    assert two_sites.run("edgeloc-site", "remove", "old").returncode == 0
    names = {path.name for path in (two_sites.state / "sites").iterdir()}
    assert names == {"first", "second"}


@pytest.mark.parametrize("name", ["../etc", "-rf", "", "a b", ".hidden"])
def test_names_stay_within_the_folder(two_sites, name):
    for command in ("use", "remove"):
        done = two_sites.run("edgeloc-site", command, name)
        assert done.returncode == 2
        assert "letters, digits" in done.stderr
    assert running(two_sites) == "second"


def test_a_reader_finds_a_whole_site_at_every_moment(two_sites):
    """What opens `site` while it is switched gets one site or the other."""
    seen, missing, stop = set(), [], threading.Event()

    def read_once():
        try:
            text = (two_sites.state / "site" / "site.json").read_text("utf-8")
            seen.add(running(two_sites))
        except OSError as exc:
            missing.append(exc)
        else:
            assert json.loads(text)["map_id"] == MAP_ID

    def read():
        while not stop.is_set():
            read_once()

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(10):
        assert two_sites.run("edgeloc-site", "rollback").returncode == 0
    stop.set()
    reader.join()
    assert seen == {"first", "second"}
    assert missing == []
