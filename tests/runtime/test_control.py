"""Messages between the supervisor and its workers."""

from __future__ import annotations

import socket

import pytest

from edgeloc.runtime.control import Control, ControlClosedError


@pytest.fixture
def ends():
    pair = [Control(end) for end in socket.socketpair()]
    yield pair
    for control in pair:
        control.close()


def test_messages_arrive_in_order_and_without_waiting(ends):
    one, two = ends
    assert two.receive() == []
    one.send({"a": 1})
    one.send({"b": "x" * 100_000})
    got = []
    while len(got) < 2:
        got += two.receive()
    assert got[0] == {"a": 1}
    assert len(got[1]["b"]) == 100_000


def test_waiting_for_one_keeps_the_others(ends):
    one, two = ends
    for message in ({"a": 1}, {"b": 2}, {"c": 3}):
        one.send(message)
    assert two.wait_for("b", 5) == {"b": 2}
    assert two.receive() == [{"a": 1}, {"c": 3}]


def test_waiting_ends_with_the_time_or_the_other_side(ends):
    one, two = ends
    with pytest.raises(ControlClosedError, match=r"no ready came in 0\.01 s"):
        two.wait_for("ready", 0.01)
    one.send({"error": "last words"})
    one.close()
    with pytest.raises(ControlClosedError, match="is gone"):
        two.wait_for("ready", 5)
    assert two.closed
    assert two.receive() == [{"error": "last words"}], "kept for who wants to know why"


def test_sending_to_nobody_is_no_error(ends):
    one, two = ends
    two.close()
    one.send({"a": 1})
