"""COLMAP models, against models that pycolmap writes and hand-made wrong ones."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from edgeloc.errors import DatasetError
from edgeloc.types import CameraModel
from edgeloc_tools.datasets import open_recording
from edgeloc_tools.datasets.colmap_binary import _MODEL_NAMES

CAMERAS = "1 PINHOLE 32 24 30 31 16 12\n"
IMAGES = "1 1 0 0 0 0.5 0 2 1 a.png\n\n2 0 1 0 0 0 0 3 1 sub/b 2.png\n1 2 -1 3 4 7\n"


@pytest.fixture
def text_model(tmp_path, write_image, write_text) -> Path:
    write_text(tmp_path / "cameras.txt", CAMERAS)
    write_text(tmp_path / "images.txt", "# comment\n" + IMAGES)
    write_image(tmp_path / "images" / "a.png")
    write_image(tmp_path / "images" / "sub" / "b 2.png")
    return tmp_path


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> tuple[Path, object]:
    """A model with two rigs of two cameras each, written by pycolmap both ways."""
    pycolmap = pytest.importorskip("pycolmap")
    options = pycolmap.SyntheticDatasetOptions(
        num_rigs=2, num_cameras_per_rig=2, num_frames_per_rig=2, num_points3D=5
    )
    pycolmap.set_random_seed(0)
    model = pycolmap.synthesize_dataset(options)
    folder = tmp_path_factory.mktemp("reference")
    for kind in ("text", "binary"):
        (folder / kind).mkdir()
    model.write_text(str(folder / "text"))
    model.write_binary(str(folder / "binary"))
    (folder / "images").mkdir()
    for image in model.images.values():
        (folder / "images" / image.name).touch()
    return folder, model


def copy_of(reference, tmp_path, kind: str) -> Path:
    folder, _ = reference
    shutil.copytree(folder, tmp_path / "model")
    return tmp_path / "model" / kind


def open_colmap(path: Path, **options):
    return open_recording(format="colmap", input=path, **options)


@pytest.mark.parametrize("kind", ["text", "binary"])
@pytest.mark.parametrize("with_frames", [True, False])
def test_reads_what_pycolmap_writes(reference, tmp_path, kind, with_frames):
    folder = copy_of(reference, tmp_path, kind)
    if not with_frames:  # as COLMAP before 3.12 wrote it
        for path in [*folder.glob("frames.*"), *folder.glob("rigs.*")]:
            path.unlink()
    _, model = reference
    recording = open_colmap(folder)
    assert len(recording.images) == model.num_images() == 8
    assert not recording.metric
    by_name = {image.name: image for image in model.images.values()}
    for image in recording.images:
        expected = by_name[image.name]
        matrix = expected.cam_from_world().matrix()
        assert np.allclose(image.cam_from_world.R, matrix[:, :3], atol=1e-9)
        assert np.allclose(image.cam_from_world.t, matrix[:, 3], atol=1e-9)
        camera = recording.cameras[image.camera_id]
        assert image.camera_id == str(expected.camera_id)
        assert camera.model == expected.camera.model.name
        assert np.allclose(camera.params, expected.camera.params)
        assert (camera.width, camera.height) == (1024, 768)


@pytest.mark.parametrize("kind", ["text", "binary"])
def test_frames_go_before_the_images_file(reference, tmp_path, kind):
    """With rigs, the frames are the truth: poses in images are made from them."""
    folder = copy_of(reference, tmp_path, kind)
    before = open_colmap(folder)
    if kind == "binary":
        path = folder / "images.bin"
        data = bytearray(path.read_bytes())
        # u64 count, u32 id, 4 doubles q, then t: shift the first image's tx.
        offset = 8 + 4 + 32
        struct.pack_into("<d", data, offset, 100.0)
        path.write_bytes(bytes(data))
    else:
        path = folder / "images.txt"
        lines = path.read_text().splitlines()
        first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
        fields = lines[first].split()
        fields[5] = "100"
        lines[first] = " ".join(fields)
        path.write_text("\n".join(lines) + "\n")
    after = open_colmap(folder)
    for a, b in zip(before.images, after.images, strict=True):
        assert np.array_equal(a.cam_from_world.t, b.cam_from_world.t)
    (folder / f"frames.{'bin' if kind == 'binary' else 'txt'}").unlink()
    alone = open_colmap(folder)
    shifted = [
        image.cam_from_world.t[0]
        for image in alone.images
        if abs(image.cam_from_world.t[0] - 100.0) < 1e-9
    ]
    assert len(shifted) == 1


def test_binary_goes_before_text_and_sparse_0_is_found(reference, tmp_path):
    folder = copy_of(reference, tmp_path, "binary")
    project = tmp_path / "project"
    (project / "sparse").mkdir(parents=True)
    shutil.copytree(folder, project / "sparse" / "0")
    shutil.copytree(tmp_path / "model" / "images", project / "images")
    (project / "sparse" / "0" / "images.txt").write_text("nonsense\n")
    recording = open_colmap(project)
    assert len(recording.images) == 8
    assert recording.name == "project"


@pytest.mark.parametrize("name", ["cameras", "images", "rigs", "frames"])
def test_truncated_binary_files(reference, tmp_path, name):
    """Each cut of a file is a clear error, none reads past the end."""
    folder = copy_of(reference, tmp_path, "binary")
    path = folder / f"{name}.bin"
    data = path.read_bytes()
    cuts = {*range(min(len(data), 200)), *range(200, len(data), 37), len(data) - 1}
    for cut in sorted(cuts):
        path.write_bytes(data[:cut])
        with pytest.raises(DatasetError, match=rf"{name}\.bin: byte \d+: .*copy the"):
            open_colmap(folder)
    path.write_bytes(data + b"\0")
    with pytest.raises(DatasetError, match="1 bytes follow the last entry"):
        open_colmap(folder)


@pytest.mark.parametrize("name", ["cameras", "images", "rigs", "frames"])
def test_damaged_binary_files_give_an_answer_or_a_clear_error(
    reference, tmp_path, name, rng
):
    folder = copy_of(reference, tmp_path, "binary")
    path = folder / f"{name}.bin"
    data = path.read_bytes()
    messages = []
    for _ in range(100):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        try:
            open_colmap(folder)
        except DatasetError as exc:  # anything else fails the test
            messages.append(str(exc))
    assert messages
    assert not any("\n" in message for message in messages)


def test_huge_counts_are_refused_without_memory(reference, tmp_path):
    folder = copy_of(reference, tmp_path, "binary")
    path = folder / "images.bin"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    with pytest.raises(
        DatasetError, match="number of images 18446744073709551615 does"
    ):
        open_colmap(folder)


def test_model_numbers_are_colmaps():
    pycolmap = pytest.importorskip("pycolmap")
    members = pycolmap.CameraModelId.__members__
    known = {int(member): name for name, member in members.items() if int(member) >= 0}
    assert {i: name for i, name in enumerate(_MODEL_NAMES) if i in known} == known


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        (8, r"camera 5: camera model 'SIMPLE_RADIAL_FISHEYE' is not supported"),
        (7, r"camera 5: camera model 'FOV' is not supported, only SIMPLE_PINHOLE"),
        (99, r"camera 5: camera model 'number 99' is not supported"),
    ],
)
def test_unsupported_binary_camera_model(reference, tmp_path, model_id, message):
    folder = copy_of(reference, tmp_path, "binary")
    entry = struct.pack("<QIiQQ4d", 1, 5, model_id, 32, 24, 30, 16, 12, 0.1)
    (folder / "cameras.bin").write_bytes(entry)
    with pytest.raises(DatasetError, match=message):
        open_colmap(folder)


def test_text_model(text_model):
    recording = open_colmap(text_model)
    assert [image.name for image in recording.images] == ["a.png", "sub/b 2.png"]
    assert recording.images[0].cam_from_world.t.tolist() == [0.5, 0, 2]
    assert np.allclose(recording.images[1].cam_from_world.R, np.diag([1, -1, -1]))
    assert recording.cameras["1"].params == (30, 31, 16, 12)
    assert recording.images[0].source.read().shape == (24, 32, 3)


def test_given_images_folder_and_cameras(text_model, tmp_path):
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match="no folder 'images' beside the model; give"):
        open_colmap(text_model)
    camera = CameraModel(model="PINHOLE", width=32, height=24, params=(9, 9, 16, 12))
    recording = open_colmap(
        text_model, images=tmp_path / "elsewhere", cameras={"1": camera}
    )
    assert recording.cameras["1"] == camera


IMAGE = "1 1 0 0 0 0 0 0 1 a.png\n\n"
POINTS_LINE = r"images.txt:2: has 11 fields, expected the POINTS2D line"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "cameras.txt",
            "1 PINHOLE 32\n",
            r"cameras.txt:1: has 3 fields, expected 'CAM",
        ),
        (
            "cameras.txt",
            "1 FOV 32 24 1 2 3 4 5\n",
            "camera 1: camera model 'FOV' is not",
        ),
        (
            "cameras.txt",
            "1 PINHOLE 32 24 30 30 16\n",
            "PINHOLE takes 4 parameters, got",
        ),
        ("cameras.txt", "1 PINHOLE 32 24 30 x 16 12\n", "parameter 2 'x' is not a num"),
        (
            "cameras.txt",
            "1 PINHOLE 32 24 nan 30 16 12\n",
            "parameter 1 is 'nan', expect",
        ),
        (
            "cameras.txt",
            "1 PINHOLE -32 24 3 3 1 1\n",
            "WIDTH '-32' is not a whole numb",
        ),
        ("cameras.txt", "1 PINHOLE 32 24 -3 3 1 1\n", "focal length must be > 0"),
        ("cameras.txt", CAMERAS * 2, r"cameras.txt:2: CAMERA_ID 1 is there twice"),
        ("images.txt", "", "has no images"),
        (
            "images.txt",
            "1 1 0 0 0 0 0 0 1\n\n",
            r"images.txt:1: has 9 fields, expected",
        ),
        (
            "images.txt",
            "1 1 0 0 0 0 0 nan 1 a.png\n\n",
            r":1: tz is 'nan', expected a f",
        ),
        (
            "images.txt",
            "1 0 0 0 0 0 0 0 1 a.png\n\n",
            r"quaternion has length 0, expec",
        ),
        ("images.txt", "1 1 0 0 0 0 0 0 7 a.png\n\n", r"has camera 7, which is not in"),
        ("images.txt", IMAGE * 2, r"images.txt:3: IMAGE_ID 1 is there twice"),
        ("images.txt", IMAGE + "2" + IMAGE[1:], r"images.txt:3: name 'a.png' is there"),
        ("images.txt", IMAGES.replace("\n\n", "\n"), POINTS_LINE),
        (
            "images.txt",
            "1 1 0 0 0 0 0 0 1 z.png\n\n",
            r"images.txt:1: image .*z.png is ",
        ),
        ("images.txt", "\udcff", "is not UTF-8 text"),
    ],
)
def test_wrong_text_models(text_model, file, text, message):
    (text_model / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DatasetError, match=message) as caught:
        open_colmap(text_model)
    assert "\n" not in str(caught.value)


RIGS = "1 2 CAMERA 1 CAMERA 2 1 1 0 0 0 0 0 0\n"
FRAMES = "1 1 1 0 0 0 0 0 5 1 CAMERA 1 1\n"


@pytest.mark.parametrize(
    ("rigs", "frames", "message"),
    [
        (RIGS, FRAMES, None),
        (RIGS, FRAMES.replace("1 1 1", "1 9 1", 1), "frames.txt:1: frame 1 has rig 9"),
        (RIGS, FRAMES.replace("CAMERA 1 1", "CAMERA 1"), "frames.txt:1: has 12 fields"),
        (
            RIGS,
            FRAMES.replace("CAMERA 1 1", "CAMERA 2 1"),
            "image 1 is of camera 2, but",
        ),
        (RIGS.replace(" 0 0 0 0 0 0", " 0 0"), FRAMES, "rigs.txt:1: has 10 fields"),
        (RIGS * 2, FRAMES, "rigs.txt:2: RIG_ID 1 is there twice"),
    ],
)
def test_rigs_and_frames_as_text(text_model, write_text, rigs, frames, message):
    write_text(text_model / "rigs.txt", rigs)
    write_text(text_model / "frames.txt", frames)
    if message is None:
        first, second = open_colmap(text_model).images
        assert first.cam_from_world.t.tolist() == [0, 0, 5]
        assert second.cam_from_world.t.tolist() == [0, 0, 3]  # in no frame
        return
    with pytest.raises(DatasetError, match=message):
        open_colmap(text_model)


def test_missing_parts(text_model, tmp_path):
    (text_model / "cameras.txt").unlink()
    with pytest.raises(
        DatasetError, match=r"cameras.txt: is missing; export the whole"
    ):
        open_colmap(text_model)
    with pytest.raises(DatasetError, match="has no COLMAP model"):
        open_colmap(tmp_path / "images")


@pytest.mark.data
def test_fountain(shared_data):
    """Metres, and all cameras look at the fountain from one side."""
    recording = open_colmap(shared_data / "fountain")
    assert len(recording.images) == 7
    assert recording.images[0].name == "map/0000.jpg"
    pose = recording.images[0].cam_from_world
    assert pose.t.tolist() == [-3.480467039, -1.196483231, -9.844835207]
    assert recording.cameras["1"].params == (1379.74, 1382.08, 760.345, 503.405)
    # The viewing rays meet within the fountain's size (it is about 2 m wide).
    centres = np.array([image.cam_from_world.origin_in_a for image in recording.images])
    axes = np.array([image.cam_from_world.R[2] for image in recording.images])
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    meeting = np.linalg.solve(across.sum(0), np.einsum("nij,nj->i", across, centres))
    miss = np.linalg.norm(np.einsum("nij,nj->ni", across, meeting - centres), axis=1)
    assert miss.max() < 1.5
    assert recording.images[0].source.read().shape == (1024, 1536, 3)


@pytest.mark.data
def test_lund_door(shared_data):
    recording = open_colmap(shared_data / "lund_door")
    assert len(recording.images) == 9
    assert recording.cameras["1"].model == "OPENCV"
