"""`edgeloc-build`: what it prints, what it refuses, and what it leaves on disk."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from site_fixture import CAMERA, RATE_HZ, mapping_path, room

from edgeloc import __version__
from edgeloc.tiles.reader import open_site
from edgeloc_tools.cli import build
from edgeloc_tools.datasets.registry import open_recording
from edgeloc_tools.synth.record import Capture, camera_json, make_recording

COMMANDS = ("map", "sfm", "quantize", "synth", "verify", "inspect")
QUICK = ("--features", "orb", "--max-keypoints", "300")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def facts(self):
        return json.loads(self.out)

    def assert_refused(self, code, message):
        """One line on stderr that begins with the command's name, nothing on stdout."""
        assert (self.code, self.out) == (code, "")
        lines = [line for line in self.err.splitlines() if "error: " in line]
        assert self.err.splitlines()[-1:] == lines
        assert lines[0].startswith("edgeloc-build")
        assert message in lines[0]
        assert "Traceback" not in self.err


@pytest.fixture
def edgeloc_build(capsys):
    """Call the command in this process."""

    def call(*arguments):
        try:
            code = build.main([str(argument) for argument in arguments])
        except SystemExit as exc:  # argparse leaves this way
            code = exc.code
        captured = capsys.readouterr()
        return Outcome(code=code, out=captured.out, err=captured.err)

    return call


def run_process(*arguments):
    """Call the command as people do."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "edgeloc_tools.cli.build"),
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Outcome(code=done.returncode, out=done.stdout, err=done.stderr)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Five frames of the room with depth, as a TUM RGB-D recording."""
    out = tmp_path_factory.mktemp("recording") / "walk"
    capture = Capture(num_frames=5, rate_hz=RATE_HZ, jpeg_quality=None)
    make_recording(
        out, scene=room(), path=mapping_path(), capture=capture, camera=CAMERA
    )
    return out


@pytest.fixture(scope="module")
def built(recording, tmp_path_factory):
    """The site of it and what the command said."""
    site = tmp_path_factory.mktemp("built") / "site"
    outcome = run_process(
        *("map", "--format", "tum", "--input", recording, "-o", site, *QUICK)
    )
    assert outcome.code == 0, outcome.err
    return site, outcome


def map_of(recording, site, *more):
    return ("map", "--format", "tum", "--input", recording, "-o", site, *QUICK, *more)


# Help


def test_help_names_every_command(edgeloc_build):
    outcome = edgeloc_build("--help")
    assert outcome.code == 0
    for command in COMMANDS:
        assert f"  {command} " in outcome.out
    assert "examples:\n  edgeloc-build map" in outcome.out
    assert "exit codes: 0 ok, 2 usage" in outcome.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(edgeloc_build, command):
    outcome = edgeloc_build(command, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"usage: edgeloc-build {command}")
    examples = outcome.out.split("examples:\n")[1]
    assert f"edgeloc-build {command} " in examples
    assert "--debug" in outcome.out
    assert max(len(line) for line in outcome.out.splitlines()) <= 100


def test_the_examples_of_every_command_parse(edgeloc_build):
    """An example that the parser refuses is worse than none."""
    parser = build.make_parser()
    for command in COMMANDS:
        text = edgeloc_build(command, "--help").out.split("examples:\n")[1]
        calls = [
            call.split()[1:]
            for line in text.replace("\\\n", " ").splitlines()
            for call in line.split("&&")
            if call.strip().startswith("edgeloc-build")
        ]
        assert calls
        for words in calls:
            assert parser.parse_args(words).command in COMMANDS


def test_version(edgeloc_build):
    assert edgeloc_build("--version").out == f"edgeloc-build {__version__}\n"
    assert edgeloc_build("map", "--version").out.endswith(f"{__version__}\n")


# map


def test_map_writes_a_site_and_prints_its_facts(built, recording):
    site, outcome = built
    facts = outcome.facts
    manifest = open_site(site, verify=True).manifest
    assert facts["site"] == str(site)
    assert facts["map_id"] == manifest.map_id
    assert facts["bytes"] == sum(
        file.stat().st_size for file in site.rglob("*") if file.is_file()
    )
    assert facts["num_images"] == 5
    assert facts["num_landmarks"] == manifest.num_landmarks > 300
    assert facts["used_depth"] == 1
    assert facts["recording"] == "walk"
    assert manifest.family.max_keypoints == 300
    # A log has lines and no control characters. Intermediate results are gone.
    assert outcome.err.splitlines()[-1].startswith("held-out frames: 5/5 in ")
    assert "\r" not in outcome.err
    assert [path.name for path in site.parent.iterdir()] == ["site"]


def test_the_same_recording_gives_the_same_site(built, recording, edgeloc_build):
    """In another process, over a site that is already there."""
    site, outcome = built
    again = edgeloc_build(*map_of(recording, site))
    assert again.code == 0
    assert again.facts["map_id"] == outcome.facts["map_id"]


def test_options_reach_the_build(recording, tmp_path, edgeloc_build):
    words = ("--no-depth", "--frames", ":4", "--features", "sift")
    outcome = edgeloc_build(*map_of(recording, tmp_path / "site", *words))
    assert outcome.code == 0, outcome.err
    assert outcome.facts["used_depth"] == 0
    assert outcome.facts["num_images"] == 4
    site = open_site(tmp_path / "site")
    assert site.manifest.family.name == "sift"


def test_an_interrupted_map_goes_on(
    built, recording, tmp_path, edgeloc_build, monkeypatch
):
    """Ctrl-C while matching: exit code 130, no site, and the next call goes on."""
    site = tmp_path / "site"

    def stop(self, step, done, total):
        if step == "matches":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("edgeloc_tools.progress.StderrProgress.__call__", stop)
        outcome = edgeloc_build(*map_of(recording, site))
    assert (outcome.code, outcome.out) == (130, "")
    assert [path.name for path in tmp_path.iterdir()] == ["site.work"]
    kept = len(list((tmp_path / "site.work").iterdir()))
    assert kept == 6  # features of five images, one block of pairs

    def not_again(*args, **kwargs):
        raise AssertionError("extracted again")

    monkeypatch.setattr("edgeloc_tools.mapping.survey.extract_features", not_again)
    outcome = edgeloc_build(*map_of(recording, site))
    assert outcome.code == 0, outcome.err
    assert outcome.facts["map_id"] == built[1].facts["map_id"]
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_work_folder_of_ones_own(recording, tmp_path, edgeloc_build, monkeypatch):
    def stop(self, step, done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeloc_tools.progress.StderrProgress.__call__", stop)
    words = map_of(recording, tmp_path / "site", "--work", tmp_path / "w")
    assert edgeloc_build(*words).code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


@pytest.mark.parametrize("content", ["folder", "file"])
def test_map_replaces_nothing_but_a_site(recording, tmp_path, edgeloc_build, content):
    """Neither somebody's folder nor a file; before any work is done."""
    target = tmp_path / "precious"
    if content == "folder":
        target.mkdir()
        (target / "thesis.tex").write_text("keep")
    else:
        target.write_text("keep")
    outcome = edgeloc_build(*map_of(recording, target))
    outcome.assert_refused(2, f"{target}: exists and is not a site; choose another")
    assert "features" not in outcome.err
    kept = target / "thesis.tex" if content == "folder" else target
    assert kept.read_text() == "keep"
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_map_fills_an_empty_folder(recording, tmp_path, edgeloc_build):
    (tmp_path / "site").mkdir()
    outcome = edgeloc_build(*map_of(recording, tmp_path / "site", "--frames", ":2"))
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "site" / "site.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("mapp",), "invalid choice: 'mapp'"),
        (("map",), "the following arguments are required: --format, --input, -o"),
        (
            ("map", "--format", "rosbag", "--input", "x", "-o", "y"),
            "argument --format: invalid choice: 'rosbag'",
        ),
        (("inspect",), "the following arguments are required: site"),
        (("verify", "a", "--fast"), "unrecognized arguments: --fast"),
        (
            ("map", "--format", "tum", "--input", "x", "-o", "y", "--stride", "two"),
            "argument --stride: invalid int value: 'two'",
        ),
    ],
)
def test_wrong_usage_is_one_line(edgeloc_build, words, message):
    outcome = edgeloc_build(*words)
    outcome.assert_refused(2, message)
    assert len(outcome.err.splitlines()) == 1
    assert outcome.err.rstrip().endswith("-h)")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--frames", "9:"), "--frames '9:' selects none of the 5 images of walk"),
        (("--stride", "0"), "--stride 0 must be at least 1"),
        (("--split", "test"), "--split is not an option of --format tum"),
        (("--features", "magic"), "feature family 'magic' is unknown, expected orb"),
        (("--max-keypoints", "3"), "max_keypoints 3 must be at least 16"),
        (("--frames", ":1"), "a map needs at least two posed images"),
    ],
)
def test_wrong_options_are_one_line(recording, tmp_path, edgeloc_build, words, message):
    outcome = edgeloc_build(*map_of(recording, tmp_path / "site", *words))
    outcome.assert_refused(2, message)
    assert not (tmp_path / "site").exists()


def test_a_recording_that_is_not_there(tmp_path, edgeloc_build):
    outcome = edgeloc_build(*map_of(tmp_path / "none", tmp_path / "site"))
    outcome.assert_refused(2, f"{tmp_path / 'none'}")
    assert list(tmp_path.iterdir()) == []


def test_a_recording_of_another_format(recording, tmp_path, edgeloc_build):
    outcome = edgeloc_build(
        *("map", "--format", "7scenes", "--input", recording, "-o", tmp_path / "site")
    )
    outcome.assert_refused(2, str(recording))


def test_an_image_that_is_damaged(recording, tmp_path, edgeloc_build):
    """Found while the features are extracted; the site is not written."""
    copy = tmp_path / "walk"
    shutil.copytree(recording, copy)
    image = sorted((copy / "rgb").iterdir())[2]
    image.write_bytes(image.read_bytes()[:40])
    outcome = edgeloc_build(*map_of(copy, tmp_path / "site"))
    outcome.assert_refused(2, f"{image}: is not a readable image")
    assert not (tmp_path / "site").exists()


def test_a_map_without_landmarks_is_a_map_error(recording, tmp_path, edgeloc_build):
    copy = tmp_path / "walk"
    shutil.copytree(recording, copy)
    import cv2

    for image in (copy / "rgb").iterdir():
        cv2.imwrite(str(image), np.full((240, 320, 3), 99, np.uint8))
    outcome = edgeloc_build(*map_of(copy, tmp_path / "site"))
    outcome.assert_refused(3, "only 0 features in 5 images")


def test_debug_shows_where_it_went_wrong(tmp_path, edgeloc_build):
    outcome = edgeloc_build("inspect", tmp_path, "--debug")
    assert outcome.code == 3
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("edgeloc-build: error: ")


# verify and inspect


def test_verify_says_so_of_a_good_site(built, edgeloc_build):
    site, _ = built
    outcome = edgeloc_build("verify", site)
    assert outcome == Outcome(0, f"{site}: every file is as it was written\n", "")


def test_inspect_prints_json(built, edgeloc_build):
    site, mapped = built
    outcome = edgeloc_build("inspect", site)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.facts["map_id"] == mapped.facts["map_id"]
    assert outcome.facts["landmarks"] == mapped.facts["num_landmarks"]
    assert outcome.facts["bytes"]["total"] == mapped.facts["bytes"]
    (camera,) = outcome.facts["cameras"].values()
    assert camera.endswith(" 320x240")
    assert outcome.facts["build"]["recording"] == "walk"


@pytest.mark.parametrize("command", ["verify", "inspect"])
@pytest.mark.parametrize("kind", ["missing", "empty", "file", "recording"])
def test_what_is_not_a_site_is_a_map_error(
    tmp_path, recording, edgeloc_build, command, kind
):
    path = tmp_path / "site"
    state = "has no site.json"
    if kind == "empty":
        path.mkdir()
    elif kind == "file":
        path.write_text("{}")
        state = "is not a folder"
    elif kind == "missing":
        state = "is not a folder"
    else:
        path = recording
    outcome = edgeloc_build(command, path)
    outcome.assert_refused(3, f"{path}: {state}; give a site that edgeloc-build wrote")


@pytest.mark.parametrize("part", ["site.json", "index-*.bin", "tiles/*"])
def test_verify_finds_one_flipped_byte_anywhere(built, tmp_path, edgeloc_build, part):
    site = tmp_path / "site"
    shutil.copytree(built[0], site)
    files = sorted(site.glob(part))
    data = bytearray(files[-1].read_bytes())
    data[len(data) // 2] ^= 0x01
    files[-1].write_bytes(data)
    outcome = edgeloc_build("verify", site)
    outcome.assert_refused(3, str(files[-1]))


def test_verify_finds_a_missing_tile(built, tmp_path, edgeloc_build):
    site = tmp_path / "site"
    shutil.copytree(built[0], site)
    tile = next((site / "tiles").iterdir())
    tile.unlink()
    edgeloc_build("verify", site).assert_refused(3, f"{tile}: cannot be read")


# synth


def test_synth_writes_a_recording_that_map_takes(tmp_path, edgeloc_build):
    camera = tmp_path / "camera.json"
    camera.write_text(camera_json(CAMERA))
    walk = tmp_path / "walk"
    words = ("--kind", "room", "--seed", 3, "--frames", 2, "--supersample", 1)
    outcome = edgeloc_build("synth", *words, "--intrinsics", camera, "-o", walk)
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err.endswith("2/2 frames\n")
    assert len(open_recording(format="tum", input=walk).images) == 2
    mapped = edgeloc_build(*map_of(walk, tmp_path / "site"))
    assert mapped.code == 0, mapped.err
    assert mapped.facts["num_images"] == 2


def test_synth_overwrites_nothing(tmp_path, edgeloc_build):
    (tmp_path / "mine.txt").write_text("keep")
    outcome = edgeloc_build("synth", "--frames", "1", "-o", tmp_path)
    outcome.assert_refused(2, f"{tmp_path}: exists and is not an empty folder")
    assert (tmp_path / "mine.txt").read_text() == "keep"


# As a process


def test_the_process_has_the_same_exit_codes(tmp_path):
    outcome = run_process("verify", tmp_path)
    outcome.assert_refused(3, "has no site.json")
    assert len(outcome.err.splitlines()) == 1


def test_help_of_the_process_is_light():
    """Nobody waits for pycolmap to read a page of text."""
    code = (
        "import sys\n"
        "from edgeloc_tools.cli.build import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'pycolmap', 'torch', 'matplotlib', 'onnxruntime', 'scipy'}\n"
        "print(*sorted(heavy & set(sys.modules)), file=sys.stderr, end='')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
