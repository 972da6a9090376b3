"""Frames: what was said arrives as it was said, in whatever pieces, and nonsense is a ProtocolError."""

import struct
import zlib
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import pairwise
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durablestack.supervisor import wire
from durablestack.supervisor.wire import FrameReader, ProtocolError, frame

ID = UUID(int=7)
DUE = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
EXECUTE = wire.Execute(1, ID, "send email", 1, 3, DUE, '{"to": "näh 📮 \\u0000"}')
ORDERS: list[wire.Order] = [
    EXECUTE,
    wire.Execute(2**40, ID, "", 3, 3, DUE, None),
    wire.Execute(2, ID, "send email", 1, 3, DUE, None, "00-trace", 2**40, short=True),
    wire.Window(0, [EXECUTE]),
    wire.Window(wire.GENERATIONS - 1, [EXECUTE, wire.Follows(2), wire.Execute(3, ID, "", 1, 1, DUE, None)]),
    wire.Cancel(1),
    wire.Stop(),
    wire.Trust(1234.5),
    wire.Trust(None),
]
REPLIES: list[wire.Reply] = [
    wire.BootFailed("ImportError", "no", "Traceback\n"),
    wire.Ready(["send-email", "送信"]),
    wire.Ready([]),
    wire.Began(1),
    wire.Succeeded(1),
    wire.Succeeded(2, noticed_cancel=True, retires=True),
    wire.Succeeded(3, seconds=0.25, stdout=b"said \xff", stderr=b"e" * wire.OUTPUT_BYTES_MAX),
    wire.Failed(1, "ValueError", "no", "Traceback"),
    wire.Failed(2, "", "", "", retryable=False, retry_after_seconds=0.25, retires=True),
    wire.Spoilt(("resource limits", "descriptors"), uuid4(), "send-email"),
    wire.Failed(3, "x" * 200, "y" * 2_000, "\U0010ffff" * 16_384, retry_after_seconds=wire.RETRY_AFTER_SECONDS_MAX),
]


def bodies(pieces: Iterable[bytes], bytes_max: int = wire.REPLY_BYTES_MAX) -> list[bytes]:
    reader = FrameReader(bytes_max)
    return [body for piece in pieces for body in reader.feed(piece)]


def framed(body: bytes) -> bytes:
    return struct.pack("<II", len(body), zlib.crc32(body)) + body


def kind(message: object) -> str:
    return type(message).__name__


def test_every_message_has_its_example_here() -> None:
    assert {type(order) for order in ORDERS} == set(wire.Order.__args__)
    assert {type(reply) for reply in REPLIES} == set(wire.Reply.__args__)


@pytest.mark.parametrize("order", ORDERS, ids=kind)
def test_every_order_arrives_as_it_was_given(order: wire.Order) -> None:
    (body,) = bodies([frame(order)])
    assert wire.decode_order(body) == order


@pytest.mark.parametrize("reply", REPLIES, ids=kind)
def test_every_reply_arrives_as_it_was_given_and_within_the_cap(reply: wire.Reply) -> None:
    (body,) = bodies([frame(reply)])
    assert wire.decode_reply(body) == reply


STREAM = b"".join(frame(reply) for reply in REPLIES)


@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
@settings(deadline=None)
def test_frames_are_the_same_wherever_the_stream_is_split(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in pairwise(edges)]
    assert [wire.decode_reply(body) for body in bodies(pieces)] == REPLIES


def test_frames_are_put_together_byte_by_byte() -> None:
    stream = b"".join(frame(order) for order in ORDERS)
    pieces = (stream[at : at + 1] for at in range(len(stream)))
    assert [wire.decode_order(body) for body in bodies(pieces)] == ORDERS


@given(st.integers(0, len(frame(REPLIES[0])) - 1))
@settings(deadline=None)
def test_a_truncated_frame_yields_nothing(length: int) -> None:
    assert bodies([frame(REPLIES[0])[:length]]) == []


def test_what_came_before_a_truncated_frame_is_not_lost() -> None:
    assert len(bodies([frame(wire.Succeeded(1)) + frame(wire.Succeeded(2))[:-1]])) == 1


def test_an_empty_body_is_a_frame_but_no_reply() -> None:
    (body,) = bodies([framed(b"")])
    assert body == b""
    with pytest.raises(ProtocolError):
        wire.decode_reply(body)


@given(st.integers(4, len(frame(REPLIES[0])) - 1), st.integers(1, 255))
@settings(deadline=None)
def test_a_frame_with_any_damaged_byte_is_refused(at: int, flipped: int) -> None:
    damaged = bytearray(frame(REPLIES[0]))
    damaged[at] ^= flipped
    with pytest.raises(ProtocolError, match="a frame with a wrong checksum"):
        bodies([bytes(damaged)])


@pytest.mark.parametrize("length", [101, 2**31, 2**32 - 1])
def test_a_length_beyond_the_cap_is_refused_before_the_body_comes(length: int) -> None:
    with pytest.raises(ProtocolError, match=f"a frame of {length} bytes; at most 100 are allowed"):
        bodies([struct.pack("<II", length, 0)], bytes_max=100)


def test_a_length_at_the_cap_is_allowed() -> None:
    assert bodies([framed(b"x" * 100)], bytes_max=100) == [b"x" * 100]


@given(st.binary())
@settings(deadline=None)
def test_garbage_on_the_pipe_is_refused_or_waited_for_and_never_a_reply(garbage: bytes) -> None:
    try:
        found = bodies([garbage])
    except ProtocolError:
        return
    for body in found:
        with pytest.raises(ProtocolError):
            wire.decode_reply(body)


@given(st.binary())
@settings(deadline=None)
def test_a_body_of_garbage_is_no_reply(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="a frame that is no reply"):
        wire.decode_reply(body)


NESTED = b"\x91" * 100_000 + b"\xc0"


@pytest.mark.parametrize(
    "body",
    [
        NESTED,
        b"\x82\xa4type\xa9succeeded\xa6number" + NESTED,
        msgspec.msgpack.encode({"type": "succeeded"}),
        msgspec.msgpack.encode({"type": "succeeded", "number": "one"}),
        msgspec.msgpack.encode({"type": "execute", "number": 1}),
        msgspec.msgpack.encode({"type": "nonsense", "number": 1}),
        msgspec.msgpack.encode({"number": 1}),
        msgspec.msgpack.encode(["succeeded", 1]),
        msgspec.msgpack.encode(wire.Succeeded(1)) + b"\0",
        b"\xdd\xff\xff\xff\xff",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_of_no_known_shape_is_no_reply(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.decode_reply(body)


@pytest.mark.parametrize("delay", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_delay_that_nobody_can_count_with_is_no_reply(delay: float) -> None:
    body = msgspec.msgpack.encode(wire.Failed(1, "ValueError", "no", "", retry_after_seconds=delay))
    with pytest.raises(ProtocolError):
        wire.decode_reply(body)


@pytest.mark.parametrize("generation", [-1, wire.GENERATIONS])
def test_a_generation_that_is_no_byte_is_no_order(generation: int) -> None:
    with pytest.raises(msgspec.ValidationError):
        wire.decode_order(msgspec.msgpack.encode(wire.Window(generation, [EXECUTE])))


@pytest.mark.parametrize("order", [wire.Stop(), wire.Cancel(1), wire.Window(0, [EXECUTE])], ids=kind)
def test_a_window_holds_nothing_but_what_is_to_be_executed(order: wire.Order) -> None:
    with pytest.raises(msgspec.ValidationError):
        wire.decode_order(msgspec.msgpack.encode(wire.Window(0, [order])))  # type: ignore[list-item]


def test_a_message_is_one_frame() -> None:
    message = frame(wire.Window(0, [EXECUTE]))
    assert wire.decode_order(wire.only_body(message)) == wire.Window(0, [EXECUTE])
    for other in (b"", b"x", message[:-1], message + b"\0", message * 2, message[:8] + b"\0" + message[9:]):
        with pytest.raises(ProtocolError, match="a message that is not one frame"):
            wire.only_body(other)


def test_fields_that_a_later_version_may_add_are_passed_over() -> None:
    body = msgspec.msgpack.encode({"type": "succeeded", "number": 1, "progress": 0.5})
    assert wire.decode_reply(body) == wire.Succeeded(1)
