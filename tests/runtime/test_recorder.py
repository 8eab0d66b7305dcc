"""Recording: nothing waits for the disk, and what is written reads again."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from log_cases import (
    CAMERA,
    MS,
    assert_same_estimate,
    estimate_of,
    lost_estimate_of,
    picture,
    session_of_test,
    small_log,
)

from edgeloc.clock import ManualClock
from edgeloc.errors import ConfigError, LogFormatError
from edgeloc.runtime import record as record_module
from edgeloc.runtime.frame_source import UnreadableFrame
from edgeloc.runtime.log_format import (
    Counters,
    EncodedImage,
    ImageReference,
    SourceFacts,
)
from edgeloc.runtime.log_reader import LogReader, Step
from edgeloc.runtime.logged_images import LoggedImages, encoded_size
from edgeloc.runtime.record import (
    RecordingClock,
    RecordOptions,
    library_versions,
    open_recorder,
    pixels_sha256,
    session_of,
    source_facts,
)
from edgeloc.runtime.source_files import VideoSource
from edgeloc.types import Frame, FrameBudget


def frame_of(frame_id, *, source=None, image=None):
    return Frame(
        frame_id=frame_id,
        camera_id="0",
        timestamp_ns=frame_id * 33 * MS,
        image=picture(frame_id) if image is None else image,
        source=f"video0#{frame_id}" if source is None else source,
    )


def budget_of(frame, clock):
    start_ns = frame.timestamp_ns
    return FrameBudget(start_ns=start_ns, deadline_ns=start_ns + 33 * MS, clock=clock)


def read_sessions(path):
    with LogReader(path) as log:
        sessions = [(session, list(entries)) for session, entries in log.sessions()]
        assert log.damage == []
        return sessions


def record_frames(path, frames, *, options=None, clock=None, **session):
    clock = clock or ManualClock(1000)
    options = options or RecordOptions()
    recorder = open_recorder(
        path, session_of_test(**session), clock=clock, options=options
    )
    for frame in frames:
        recorder.frame(frame, budget_of(frame, clock))
        recorder.estimate(estimate_of(frame.frame_id))
    recorder.close()
    return recorder


def logged_images(path, **options):
    """What a reader gets for each frame of the first session."""
    ((session, entries),) = read_sessions(path)
    images = LoggedImages(session, **options)
    try:
        return [images.read(e.frame) for e in entries if isinstance(e, Step)]
    finally:
        images.close()


# --- what is written


def test_a_run_comes_back_with_its_clock(tmp_path):
    path = tmp_path / "run.log"
    clock = ManualClock(1000)
    recorder = open_recorder(path, session_of_test(), clock=clock)
    assert recorder.clock.now_ns() == 1000  # while things are loaded
    clock.advance_ns(50)
    assert recorder.clock.now_ns() == 1050
    frame = frame_of(0)
    budget = recorder.frame(frame, budget_of(frame, clock))
    assert (budget.start_ns, budget.deadline_ns) == (0, 33 * MS)
    clock.advance_ns(7)
    assert budget.remaining_ns == 33 * MS - 1057  # a reading, too
    other = threading.Thread(target=recorder.clock.now_ns)
    other.start()
    other.join()
    recorder.estimate(estimate_of(0))
    bad = UnreadableFrame(
        frame_id=1, camera_id="0", timestamp_ns=9, source="s", reason="is empty"
    )
    recorder.frame(bad, budget_of(bad, clock))
    recorder.estimate(lost_estimate_of(1))
    recorder.counters({"dropped": 3})
    recorder.close()
    ((session, (first, second, counters)),) = read_sessions(path)
    assert session == session_of_test()
    assert first.frame.before == (1000, 1050)
    assert first.answer.readings == (1057,)
    assert_same_estimate(first.answer.estimate, estimate_of(0))
    assert second.frame.unreadable == "is empty"
    assert second.frame.image is None
    assert_same_estimate(second.answer.estimate, lost_estimate_of(1))
    assert counters == Counters(
        values={
            "dropped": 3,
            "log_lost_frames": 0,
            "log_lost_answers": 0,
            "log_lost_records": 0,
        },
        end=True,
    )


@pytest.mark.parametrize("grey", [False, True])
def test_png_gives_the_same_pixels(tmp_path, grey):
    path = tmp_path / "run.log"
    image = picture(3)[:, :, 0] if grey else picture(3)
    record_frames(path, [frame_of(0, image=image)], images="png")
    (again,) = logged_images(path)
    np.testing.assert_array_equal(again, image)


def test_jpeg_gives_almost_the_same_pixels_in_less_bytes(tmp_path):
    image = cv2.GaussianBlur(picture(3), (9, 9), 3)
    sizes = {}
    for quality in (60, 95):
        path = tmp_path / f"{quality}.log"
        options = RecordOptions(jpeg_quality=quality)
        record_frames(path, [frame_of(0, image=image)], options=options, images="jpeg")
        (again,) = logged_images(path)
        assert np.abs(again.astype(int) - image).mean() < 6
        sizes[quality] = path.stat().st_size
    assert sizes[60] < sizes[95] < image.nbytes


def test_the_picture_may_change_once_it_is_given(tmp_path):
    """Frames live in memory that the capture process writes to again."""
    path = tmp_path / "run.log"
    clock, image = ManualClock(), picture(0)
    recorder = open_recorder(path, session_of_test(), clock=clock)
    for frame_id in range(4):
        image[:] = frame_id
        recorder.frame(
            frame_of(frame_id, image=image),
            FrameBudget(start_ns=0, deadline_ns=1, clock=clock),
        )
        image[:] = 99
    recorder.close()
    assert [int(again.max()) for again in logged_images(path)] == [0, 1, 2, 3]


def test_a_folder_is_referred_to_and_found_again(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        assert cv2.imwrite(str(folder / f"{i}.png"), picture(i))
    path = tmp_path / "run.log"
    source = source_facts(str(folder), live=False)
    assert source == SourceFacts(kind="folder", name=str(folder))
    frames = [frame_of(i, source=f"{i}.png") for i in range(3)]
    record_frames(path, frames, images="reference", source=source)
    assert path.stat().st_size < 4000
    for i, image in enumerate(logged_images(path)):
        np.testing.assert_array_equal(image, picture(i))
    # Elsewhere, with one file missing and one that is another picture.
    moved = folder.rename(tmp_path / "moved")
    (moved / "0.png").unlink()
    assert cv2.imwrite(str(moved / "1.png"), picture(7))
    with pytest.raises(LogFormatError, match=r"images: the log refers to .* --source"):
        logged_images(path)
    missing, other, same = logged_images(path, source=moved)
    assert missing == f"{moved / '0.png'} is not there"
    assert other == f"{moved}: has other pixels for 1.png than in the run"
    np.testing.assert_array_equal(same, picture(2))


def test_a_video_is_referred_to_and_found_again(tmp_path):
    video = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(
        str(video), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"FFV1"), 30.0, (64, 48)
    )
    for i in range(6):
        writer.write(picture(i))
    writer.release()
    source = VideoSource(
        cv2.VideoCapture(str(video)), name=str(video), clock=ManualClock()
    )
    frames = [source.read() for _ in range(6)]
    path = tmp_path / "run.log"
    facts = source_facts(str(video), live=False)
    assert facts.kind == "video"
    # Frames 1 and 2 were dropped.
    kept = [frames[i] for i in (0, 3, 4)]
    record_frames(path, kept, images="reference", source=facts)
    ((_, entries),) = read_sessions(path)
    reference = entries[1].frame.image
    assert reference == ImageReference(
        name="", index=3, pixels_sha256=pixels_sha256(frames[3].image)
    )
    for frame, image in zip(kept, logged_images(path), strict=True):
        np.testing.assert_array_equal(image, frame.image)


def test_one_image_is_in_its_folder(tmp_path):
    assert cv2.imwrite(str(tmp_path / "a.png"), picture(0))
    facts = source_facts(str(tmp_path / "a.png"), live=False)
    assert facts == SourceFacts(kind="folder", name=str(tmp_path))


def test_no_pictures_on_request(tmp_path):
    path = tmp_path / "run.log"
    record_frames(path, [frame_of(0)], images="none")
    assert logged_images(path) == ["the log has no picture of it"]


def test_a_bomb_is_not_decoded(tmp_path):
    """A PNG of a few bytes may claim to be 60000 x 60000."""
    data = bytearray(cv2.imencode(".png", picture(0))[1].tobytes())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    jpeg = bytearray(cv2.imencode(".jpg", picture(0))[1].tobytes())
    assert encoded_size(bytes(jpeg)) == (64, 48)
    assert encoded_size(bytes(data)) == (60_000, 60_000)
    assert encoded_size(b"GIF89a") is None
    assert encoded_size(jpeg[:20]) is None
    images = LoggedImages(session_of_test())
    frame = SimpleNamespace(image=EncodedImage(kind="png", data=bytes(data)))
    assert images.read(frame) == "its png is of size (60000, 60000), not the camera's"
    data[16:24] = (64).to_bytes(4, "big") + (48).to_bytes(4, "big")
    del data[60:]
    frame = SimpleNamespace(image=EncodedImage(kind="png", data=bytes(data)))
    assert images.read(frame) == "its png cannot be decoded"


# --- files


def test_a_second_run_goes_behind_the_first(tmp_path):
    path = tmp_path / "run.log"
    record_frames(path, [frame_of(0)])
    record_frames(path, [frame_of(0), frame_of(1)], map_id="second")
    found = read_sessions(path)
    assert [(session.map_id, len(entries)) for session, entries in found] == [
        ("room", 2),
        ("second", 3),
    ]


def test_another_file_is_not_touched(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="exists and is not a log of edgeloc-run"):
        record_frames(path, [])
    assert path.read_text() == "precious"


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"--record .*: cannot be written \(No such"):
        record_frames(tmp_path / "no" / "run.log", [])


def test_a_full_disk_costs_records_and_nothing_else(tmp_path, caplog):
    path = tmp_path / "run.log"
    clock = ManualClock()
    recorder = open_recorder(path, session_of_test(), clock=clock)
    real = recorder._file._file

    class Full:
        """Takes half of the third record, then has room again."""

        num_writes = 0

        def write(self, data):
            self.num_writes += 1
            if self.num_writes == 3:
                real.write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            return real.write(data)

        def __getattr__(self, name):
            return getattr(real, name)

    recorder._file._file = Full()
    for frame_id in range(3):
        frame = frame_of(frame_id)
        recorder.frame(frame, budget_of(frame, clock))
        recorder.estimate(estimate_of(frame_id))
    recorder.close()
    ((_, entries),) = read_sessions(path)
    steps = [(e.frame_id, e.frame is not None) for e in entries[:-1]]
    assert steps == [(0, True), (1, False), (2, True)]
    assert entries[-1].values["log_lost_records"] == 1
    assert "record lost (No space left on device)" in caplog.text


def test_the_log_has_a_limit(tmp_path, caplog):
    path = tmp_path / "run.log"
    options = RecordOptions(max_bytes=30_000)
    record_frames(path, [frame_of(i) for i in range(10)], options=options)
    assert 20_000 < path.stat().st_size <= 30_000
    assert "has reached 30000 bytes" in caplog.text
    read_sessions(path)


# --- a disk that is too slow


def test_a_disk_that_stands_still_costs_frames_and_no_time(
    tmp_path, monkeypatch, caplog
):
    path = tmp_path / "run.log"
    clock, go_on = ManualClock(), threading.Event()
    recorder = open_recorder(path, session_of_test(images="jpeg"), clock=clock)
    append = recorder._file.append

    def stuck(data):
        go_on.wait(30)
        append(data)

    monkeypatch.setattr(recorder._file, "append", stuck)
    slowest_s = 0.0
    for frame_id in range(100):
        frame = frame_of(frame_id)
        budget = budget_of(frame, clock)
        begin_s = time.perf_counter()
        recorder.frame(frame, budget)
        recorder.estimate(estimate_of(frame_id))
        slowest_s = max(slowest_s, time.perf_counter() - begin_s)
    assert slowest_s < 1.0  # of 30 s that the disk takes
    assert 90 <= recorder.num_lost_frames <= 92
    assert recorder.num_lost_answers == 0
    assert recorder._num_buffers == 8
    go_on.set()
    recorder.close()
    ((_, entries),) = read_sessions(path)
    assert [e.frame_id for e in entries[:-1]] == list(range(100))
    with_picture = sum(e.frame is not None for e in entries[:-1])
    assert with_picture == 100 - recorder.num_lost_frames
    assert entries[-1].values["log_lost_frames"] == recorder.num_lost_frames
    assert "the disk was too slow for" in caplog.text


def test_a_disk_that_never_moves_does_not_hold_the_end_up(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(record_module, "_CLOSE_S", 0.2)
    monkeypatch.setattr(record_module, "_QUEUE_LENGTH", 16)
    go_on = threading.Event()
    clock = ManualClock()
    recorder = open_recorder(tmp_path / "run.log", session_of_test(), clock=clock)
    monkeypatch.setattr(recorder._file, "append", lambda data: go_on.wait(30))
    for frame_id in range(50):
        frame = frame_of(frame_id)
        recorder.frame(frame, budget_of(frame, clock))
        recorder.estimate(estimate_of(frame_id))
    assert recorder.num_lost_answers > 20
    begin_s = time.perf_counter()
    recorder.close()
    recorder.close()
    assert time.perf_counter() - begin_s < 2.0
    assert "the end of the log is lost" in caplog.text
    go_on.set()
    recorder._thread.join(10)


def test_nothing_is_written_after_the_end(tmp_path):
    path = tmp_path / "run.log"
    recorder = record_frames(path, [frame_of(0)])
    size = path.stat().st_size
    frame = frame_of(1)
    recorder.frame(frame, budget_of(frame, ManualClock()))
    recorder.estimate(estimate_of(1))
    assert (recorder.num_lost_frames, recorder.num_lost_answers) == (1, 1)
    assert path.stat().st_size == size


def test_a_killed_process_leaves_what_it_saw(tmp_path):
    """The frame that killed it is in the log, without an answer."""
    path = tmp_path / "run.log"
    script = """
        import sys, time
        sys.path.insert(0, sys.argv[2])
        from pathlib import Path
        import test_recorder as t
        clock = t.ManualClock(1)
        recorder = t.open_recorder(Path(sys.argv[1]), t.session_of_test(), clock=clock)
        for i in range(3):
            frame = t.frame_of(i)
            recorder.frame(frame, t.budget_of(frame, clock))
            if i < 2:
                recorder.estimate(t.estimate_of(i))
        print("ready", flush=True)
        time.sleep(60)
    """
    folder = str(record_module.Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(path), folder],
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout.read(5) == b"ready"
        deadline_s = time.monotonic() + 30
        while path.read_bytes().count(b"\x89PNG") < 3:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        child.kill()
    assert child.returncode == -signal.SIGKILL
    ((_, entries),) = read_sessions(path)
    steps = [(e.frame_id, e.answer is not None) for e in entries]
    assert steps == [(0, True), (1, True), (2, False)]


# --- facts


def test_facts_of_a_session(tmp_path):
    (tmp_path / "site.json").write_bytes(b"{}")
    site = SimpleNamespace(path=tmp_path, manifest=SimpleNamespace(map_id="m"))
    facts = {
        "site": site,
        "camera": CAMERA,
        "config": {"method": "auto"},
        "offers": True,
        "clock": ManualClock(77),
    }
    live = source_facts("/dev/video0", live=True)
    session = session_of(source=live, images="auto", **facts)
    assert (session.images, session.same_pixels) == ("jpeg", False)
    assert session.map_sha256 == (
        "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    )
    assert session.start_ns == 77
    assert set(session.libraries) == {
        *("machine", "cpu", "opencv", "numpy", "onnxruntime", "scipy", "poselib")
    }
    assert session.libraries["numpy"] == np.__version__
    assert library_versions() == session.libraries
    folder = source_facts(str(tmp_path), live=False)
    session = session_of(source=folder, images="auto", **facts)
    assert (session.images, session.same_pixels) == ("reference", True)
    with pytest.raises(ConfigError, match="--record-images reference: /dev/video0 is"):
        session_of(source=live, images="reference", **facts)


def test_a_wrong_quality_is_refused():
    with pytest.raises(ConfigError, match="jpeg_quality 0 is not from 1 to 100"):
        RecordOptions(jpeg_quality=0)


def test_readings_are_bounded(monkeypatch):
    monkeypatch.setattr(record_module, "MAX_READINGS", 10)
    clock = RecordingClock(ManualClock())
    for _ in range(100):
        clock.now_ns()
    assert len(clock.take()) == 10
    assert clock.take() == ()


def test_a_small_log_is_small():
    """All of a frame but its picture takes less than a kilobyte."""
    per_frame = (len(small_log(11)) - len(small_log(1))) / 10
    pictures = sum(len(cv2.imencode(".png", picture(i))[1]) for i in range(11)) / 11
    assert per_frame - pictures < 1024
