"""Logs of runs: what is written is read, and what is damaged is left out or refused."""

from __future__ import annotations

import itertools
import math
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_cases import (
    MOTION,
    PRIOR,
    assert_same_estimate,
    logged_answer,
    logged_frame,
    lost_estimate_of,
    session_of_test,
    small_log,
)

from edgeloc.errors import LogFormatError
from edgeloc.runtime import log_format
from edgeloc.runtime.log_aids import LoggedAids, LoggedMask, SessionAids
from edgeloc.runtime.log_format import (
    HEADER,
    MAGIC,
    Counters,
    ImageReference,
    LoggedAnswer,
    parse_payload,
    record_bytes,
)
from edgeloc.runtime.log_reader import LogReader, Step


def framed(payload):
    start = struct.pack("<II", len(payload), zlib.crc32(payload))
    return start + struct.pack("<I", zlib.crc32(start)) + payload


def payload_of(entry):
    return msgpack.packb(entry.to_payload())


def read_all(path):
    """Sessions with lists of their entries, and what was left out."""
    with LogReader(path) as log:
        sessions = [(session, list(entries)) for session, entries in log.sessions()]
        return sessions, log.damage


def records_in(data):
    """Offsets at which records begin, and the end of the last one."""
    offsets = [len(MAGIC)]
    while offsets[-1] < len(data):
        num_bytes = HEADER.unpack_from(data, offsets[-1])[0]
        offsets.append(offsets[-1] + HEADER.size + num_bytes)
    return offsets


@pytest.mark.parametrize(
    "entry",
    [
        session_of_test(),
        logged_frame(3),
        logged_frame(0, image=None, unreadable="is empty", before=()),
        logged_frame(
            1, image=ImageReference(name="1.png", index=0, pixels_sha256="0a" * 32)
        ),
        Counters(values={"dropped": 2}, end=True),
    ],
)
def test_entries_come_back_as_they_were(entry):
    assert parse_payload(payload_of(entry)) == entry


@pytest.mark.parametrize(
    "answer",
    [
        logged_answer(4),
        logged_answer(5, estimate=lost_estimate_of(5), readings=(9, 3, -(2**62))),
        LoggedAnswer(estimate=lost_estimate_of(6, reproj_rmse_px=math.inf)),
    ],
)
def test_answers_come_back_to_the_last_bit(answer):
    again = parse_payload(payload_of(answer))
    assert_same_estimate(answer.estimate, again.estimate)
    assert again.readings == answer.readings


def test_a_log_comes_back_step_by_step(tmp_path):
    path = tmp_path / "run.log"
    path.write_bytes(small_log(3))
    (found,), damage = read_all(path)
    session, entries = found
    assert damage == []
    assert session == session_of_test()
    assert [step.frame_id for step in entries[:3]] == [0, 1, 2]
    assert all(
        step.frame.frame_id == step.answer.estimate.frame_id for step in entries[:3]
    )
    assert entries[3] == Counters(values={"dropped": 2}, end=True)


def test_steps_without_a_frame_or_without_an_answer(tmp_path):
    path = tmp_path / "run.log"
    entries = [
        session_of_test(),
        logged_answer(0),  # the disk was too slow for the frame
        logged_frame(1),
        logged_frame(2),  # the answer of 1 is lost
        logged_answer(3),
        logged_frame(4),  # the program died in it
    ]
    path.write_bytes(b"".join(map(record_bytes, entries)))
    (found,), _ = read_all(path)
    steps = [(s.frame is not None, s.answer is not None, s.frame_id) for s in found[1]]
    assert steps == [
        (False, True, 0),
        (True, False, 1),
        (True, False, 2),
        (False, True, 3),
        (True, False, 4),
    ]


def test_a_log_cut_anywhere_gives_all_that_is_whole(tmp_path):
    data = small_log(3)
    path = tmp_path / "run.log"
    offsets = records_in(data)
    for length in range(len(MAGIC), len(data), 97):
        path.write_bytes(data[:length])
        sessions, damage = read_all(path)
        whole = sum(offset <= length for offset in offsets) - 1
        num_entries = 0
        for _, entries in sessions:
            num_entries += 1
            for entry in entries:
                if isinstance(entry, Step):
                    num_entries += (entry.frame is not None) + (
                        entry.answer is not None
                    )
                else:
                    num_entries += 1
        assert num_entries == whole
        cut = length not in offsets
        assert damage == (
            [f"the session breaks off at byte {offsets[whole]}"] if cut else []
        )


def test_a_later_session_is_found_behind_one_that_breaks_off(tmp_path):
    path = tmp_path / "run.log"
    data = small_log(2)
    path.write_bytes(data[: len(data) // 2] + small_log(3, map_id="second"))
    sessions, damage = read_all(path)
    assert [session.map_id for session, _ in sessions] == ["room", "second"]
    assert len(damage) == 1
    assert len(sessions[1][1]) == 4


def test_sessions_need_not_be_read_to_their_end(tmp_path):
    path = tmp_path / "run.log"
    path.write_bytes(small_log(3) + small_log(1))
    with LogReader(path) as log:
        assert [session.map_id for session, _ in log.sessions()] == ["room", "room"]


def test_a_damaged_record_is_left_out_and_the_rest_reads(tmp_path):
    path = tmp_path / "run.log"
    data = bytearray(small_log(3))
    offsets = records_in(bytes(data))
    data[offsets[3] + HEADER.size + 20] ^= 1  # inside the payload of the second frame
    path.write_bytes(data)
    (found,), damage = read_all(path)
    assert damage == [f"a record at byte {offsets[3]} is damaged, left out"]
    steps = [(s.frame_id, s.frame is not None) for s in found[1] if isinstance(s, Step)]
    assert steps == [(0, True), (1, False), (2, True)]


def test_a_session_whose_facts_are_damaged_is_left_out(tmp_path):
    path = tmp_path / "run.log"
    data = bytearray(small_log(1))
    data[len(MAGIC) + HEADER.size + 5] ^= 1
    path.write_bytes(bytes(data) + small_log(1, map_id="second"))
    sessions, damage = read_all(path)
    assert [session.map_id for session, _ in sessions] == ["second"]
    assert damage == [f"a record at byte {len(MAGIC)} is damaged, left out"]


# --- refusals


@pytest.mark.parametrize("data", [b"", b"\x89EDGELOG\n\x1a\n", b"{}" * 40, MAGIC[:-1]])
def test_something_else_is_refused(tmp_path, data):
    path = tmp_path / "run.log"
    path.write_bytes(data)
    with pytest.raises(LogFormatError, match=r"run\.log: is not a log of edgeloc-run"):
        LogReader(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(LogFormatError, match="cannot be read"):
        LogReader(tmp_path / "no.log")
    with pytest.raises(LogFormatError, match="cannot be read"):
        LogReader(tmp_path)


def changed(entry, path, value):
    """The payload of an entry with one value replaced, or removed."""
    payload = entry.to_payload()
    inside = payload
    for key in path[:-1]:
        inside = inside[key]
    if value is KeyError:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return msgpack.packb(payload)


SESSION, FRAME, ANSWER = session_of_test(), logged_frame(), logged_answer()
MASK = LoggedMask(width=3, height=2, bits=b"\xa8")
AIDS = LoggedAids(prior=PRIOR, motion=MOTION, masks=(MASK,))


@pytest.mark.parametrize(
    ("entry", "path", "value", "message"),
    [
        (SESSION, ["type"], "other", "type is 'other', expected one of session"),
        (SESSION, ["type"], KeyError, "type is missing"),
        (SESSION, ["format"], 4, "format version 4, this edgeloc reads 1, 2, 3"),
        (SESSION, ["aids"], {}, "aids.priors is missing"),
        (SESSION, ["more"], 1, "more is not a field of the format"),
        (SESSION, ["map_id"], "x", "map_id is not a field"),
        (SESSION, ["map", "sha256"], "AB" * 32, "map.sha256"),
        (SESSION, ["camera", "model"], "MAGIC", "camera.model"),
        (SESSION, ["camera", "params"], [1.0], "camera is not possible: PINHOLE takes"),
        (SESSION, ["camera", "params", 0], math.nan, r"camera.params\[0\] is nan"),
        (SESSION, ["camera", "width"], 10**6, "camera.width"),
        (SESSION, ["config", "rate"], {}, "config.rate is {}, expected text"),
        (SESSION, ["same_pixels"], 1, "same_pixels is 1, expected true or false"),
        (FRAME, ["frame_id"], -1, "frame_id is -1"),
        (FRAME, ["deadline_ns"], -1, "deadline_ns is -1"),
        (FRAME, ["before"], [2**62, 2**62, 2**62], "times of 64 bits"),
        (FRAME, ["before"], [1.5], r"before\[0\] is 1.5, expected an integer"),
        (FRAME, ["image", "kind"], "gif", "image.kind is 'gif'"),
        (FRAME, ["image", "data"], b"", "image.data is b'', expected binary data"),
        (FRAME, ["image"], {"kind": "none", "data": b"x"}, "image.data is not a field"),
        (
            FRAME,
            ["image"],
            {
                "kind": "reference",
                "name": "../x",
                "index": 0,
                "pixels_sha256": b"1" * 32,
            },
            "image.name is '../x', expected the name of a file",
        ),
        (
            ANSWER,
            ["status"],
            "LOST",
            "is not a possible answer: a pose is None exactly",
        ),
        (ANSWER, ["pose"], b"\0" * 96, "is not a possible answer: R is not a rotation"),
        (ANSWER, ["pose"], b"\0" * 95, "pose is .*, expected binary data of 96 bytes"),
        (ANSWER, ["covariance"], b"\xff" * 288, "covariance must be finite"),
        (ANSWER, ["reproj_rmse_px"], "x", "reproj_rmse_px is 'x', expected a number"),
        (ANSWER, ["stage_ns"], {"x": None}, "stage_ns.x is None, expected an integer"),
        (ANSWER, ["rung"], KeyError, "rung is missing"),
    ],
)
def test_intact_records_with_wrong_contents_are_refused(
    tmp_path, entry, path, value, message
):
    payload = changed(entry, path, value)
    with pytest.raises(LogFormatError, match=message):
        parse_payload(payload)
    # In a file, the message says where.
    file = tmp_path / "run.log"
    first = b"" if entry is SESSION else record_bytes(SESSION)[len(MAGIC) :]
    file.write_bytes(MAGIC + first + framed(payload))
    offset = len(MAGIC) + len(first)
    with pytest.raises(
        LogFormatError, match=f"run.log: record at byte {offset}: .*{message}"
    ):
        read_all(file)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",  # a list of four thousand million, of which none comes
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000,  # lists in lists
        b"\xc7\x04\x05abcd",  # an extension type
        msgpack.packb([1]),
        msgpack.packb({b"type": "session"}),
        b"\x82\xa4type\xa5frame\xa4type\xa5frame",  # a key twice
        msgpack.packb({"type": "counters", "values": {b"x": 1, "y": 2}, "end": True}),
        msgpack.packb({"type": msgpack.Timestamp(0)}),
    ],
)
def test_payloads_that_are_no_entries_are_refused(payload):
    with pytest.raises(LogFormatError) as caught:
        parse_payload(payload)
    assert "\n" not in str(caught.value)


def test_a_session_inside_a_session_is_refused(tmp_path):
    path = tmp_path / "run.log"
    path.write_bytes(record_bytes(SESSION) + record_bytes(SESSION)[len(MAGIC) :])
    with pytest.raises(LogFormatError, match="a session inside of a session"):
        read_all(path)
    path.write_bytes(MAGIC + record_bytes(FRAME))
    with pytest.raises(LogFormatError, match="a session begins without its facts"):
        read_all(path)


def test_a_record_that_claims_too_much_is_not_read(tmp_path):
    path = tmp_path / "run.log"
    start = struct.pack("<II", log_format.MAX_PAYLOAD_BYTES + 1, 0)
    path.write_bytes(
        record_bytes(SESSION) + start + struct.pack("<I", zlib.crc32(start)) + bytes(99)
    )
    _, damage = read_all(path)
    assert damage == [f"the session breaks off at byte {len(record_bytes(SESSION))}"]


# --- fuzzing: success or LogFormatError, nothing else

DATA = small_log(2)


def check_message(error):
    assert "\n" not in str(error)


def read_or_refuse(path):
    try:
        read_all(path)
    except LogFormatError as exc:
        check_message(exc)


def test_no_flipped_bit_breaks_the_reader(tmp_path):
    path = tmp_path / "run.log"
    rng = np.random.default_rng(1)
    for _ in range(300):
        data = bytearray(DATA)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        read_or_refuse(path)


def payload_parts():
    data, parts = DATA, []
    offsets = records_in(data)
    for start, end in itertools.pairwise(offsets):
        parts.append(data[start + HEADER.size : end])
    return parts


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_mutant_with_a_right_checksum_breaks_the_parser(data):
    payload = bytearray(data.draw(st.sampled_from(payload_parts())))
    for _ in range(data.draw(st.integers(1, 4))):
        # Most of a frame is its picture: look at the ends.
        near = data.draw(st.integers(0, min(len(payload) - 1, 400)))
        at = data.draw(st.sampled_from([near, len(payload) - 1 - near]))
        payload[at] = data.draw(st.integers(0, 255))
    try:
        parse_payload(bytes(payload))
    except LogFormatError as exc:
        check_message(exc)


@settings(max_examples=200, deadline=None)
@given(
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats()
        | st.binary(max_size=20)
        | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text(max_size=8), inner, max_size=4)
        ),
        max_leaves=12,
    ),
    kind=st.sampled_from(["session", "frame", "answer", "counters"]),
    entry=st.sampled_from([SESSION, FRAME, ANSWER, Counters()]),
    data=st.data(),
)
def test_no_value_in_the_place_of_another_breaks_the_parser(value, kind, entry, data):
    payload = entry.to_payload()
    payload[data.draw(st.sampled_from(sorted(payload)))] = value
    payload["type"] = data.draw(st.sampled_from([kind, payload["type"]]))
    try:
        parse_payload(msgpack.packb(payload))
    except LogFormatError as exc:
        check_message(exc)


def test_the_document_names_every_field():
    text = Path(log_format.__file__).with_name("LOG_FORMAT.md").read_text("utf-8")
    aids = SessionAids(static_mask=MASK, segmenter=True, priors=True, motions=True)
    entries = (replace(SESSION, aids=aids), FRAME, replace(ANSWER, aids=AIDS))
    described = {"map", "camera", "source", "image", "aids"}
    for entry in (*entries, Counters()):
        for key, value in entry.to_payload().items():
            assert re.search(rf"`{key}`", text), key
            if isinstance(value, dict) and key in described:
                for inner in value:
                    assert re.search(rf"`{inner}`", text), inner
    for inner in (*MASK.to_payload(), *AIDS.to_payload()["motion"]):
        assert re.search(rf"`{inner}`", text), inner
    assert text.startswith(
        f"# The log of a run, format version {log_format.FORMAT_VERSION}\n"
    )
    assert f"`{HEADER.size}` bytes" in text
    assert "89 45 44 47 45 4C 4F 47 0D 0A 1A 0A" in text
    assert MAGIC.hex(" ").upper() in text
