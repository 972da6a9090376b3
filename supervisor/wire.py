"""What the supervisor and its children say to each other.

    supervisor                                         child
        | <------------------- BootFailed(error, ...) -  |   the application cannot be loaded; or else
        | <-------------------------- Ready(jobs) -----  |
        | -- Trust(until) --------------------------->   |   where there is no guard: end yourself by then
        | == Window([Execute(number, ...), ...]) =====>  |   to be taken one after the other
        | == a permit for each of them ===============>  |   from where it is taken on the attempt counts
        | <-------------------- Began(number, ...) ----  |   of a run that is traced
        | -- Cancel(number) ------------------------->   |   please leave; force follows
        | <------------------- Succeeded(number, ...) -  |   one of the two
        | <---------------------- Failed(number, ...) -  |
        | <-------------------------- Spoilt(left) ----  |   it should have no other run
        | -- Stop() --------------------------------->   |   once nothing is left to take

A message is a frame: length and CRC-32 of the body, then the body, a tagged msgspec struct. Orders are numbered
per slot, so that a reply can be told from one to an earlier order. Frames are capped at both ends: a length that
is out of bounds, a wrong checksum or a body of no known shape is a ProtocolError, and the child is not to be trusted.

There are two ways to a child. What is to be executed goes through a socket that keeps messages apart (===), and for
each order there its permit, a few bytes, through a pipe that both sides read: before it begins an order, the child
takes a permit, and the supervisor takes permits back for what is to be done elsewhere. Each is taken once, by whoever
comes first, so that those taken back are of the latest orders. A permit names the generation of its order, which is
another one once permits were taken back: orders of an older one are void. All else goes through the control pipe (---),
to which the child always listens.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

REPLY_BYTES_MAX = 256 * 1024
ORDER_BYTES_MAX = 256 * 1024 * 1024
"""Orders hold a payload, whose size is limited where it is enqueued; this is only a bound on nonsense."""

MESSAGE_BYTES_MAX = 32 * 1024
"""Of an order in a message of its own; a longer one takes the control pipe."""

GENERATIONS = 2**32
PERMIT = struct.Struct("<I")
"""The generation. Written and read whole: a pipe keeps together what is written at once, up to PIPE_BUF."""

OUTPUT_BYTES_MAX = 64 * 1024
"""Of a stream, in a reply."""

RETRY_AFTER_SECONDS_MAX = 10 * 366 * 86_400
"""A delay that the supervisor can count with: neither NaN nor beyond what a timedelta holds."""

BYTES_MAX = 2**63 - 1
CPU_SECONDS_MAX = 1e9
"""What a database can take."""

CpuSeconds = Annotated[float, Meta(ge=0, le=CPU_SECONDS_MAX)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Written = Annotated[bytes, Meta(max_length=OUTPUT_BYTES_MAX)]
Left = Annotated[tuple[Annotated[str, Meta(max_length=50)], ...], Meta(max_length=50)]

_HEADER = struct.Struct("<II")


class ProtocolError(Exception):
    """What arrived is not a frame of ours."""


class Execute(Struct, frozen=True, tag="execute", array_like=True, omit_defaults=True, gc=False):
    number: int
    run_id: UUID
    job_name: str
    attempt: int
    max_attempts: int
    scheduled_for: datetime
    payload: str | None
    trace_context: str | None = None
    address_space_limit: int | None = None
    """In bytes, while the run lasts."""
    short: bool = False
    """Others may follow at once: the reply is to hold what the run has written, for nobody else could tell whose it
    is."""


class Follows(Struct, frozen=True, tag="follows", array_like=True):
    """In the place of an order that is too long for a window; it takes the control pipe."""

    number: int


class Window(Struct, frozen=True, tag="window", array_like=True):
    """Orders, in the order in which they are to be taken, each with a permit of this generation."""

    generation: Annotated[int, Meta(ge=0, lt=GENERATIONS)]
    orders: list[Execute | Follows]


class Cancel(Struct, frozen=True, tag="cancel", array_like=True):
    number: int


class Stop(Struct, frozen=True, tag="stop", array_like=True):
    pass


class Trust(Struct, frozen=True, tag="trust", array_like=True):
    """How long the run in hand may go on unless we say more, by the clock of `leases.boottime`; None: there is none."""

    until: float | None


class BootFailed(Struct, frozen=True, tag="boot_failed"):
    """`final`: another child would not fare better, for the application itself is wrong."""

    error_type: str
    error_message: str
    error_detail: str
    final: bool = False


class Ready(Struct, frozen=True, tag="ready"):
    """`tells_beginnings`: of each run, for it is traced. Else the supervisor sees which orders were taken."""

    job_names: list[str]
    tells_beginnings: bool = False


class Began(Struct, frozen=True, tag="began"):
    """The job's code is about to run, and is traced: the ids of the trace, if there is one; what CPU time
    the child has used before, for what it uses from here on is the attempt's; and when that is, by the clock of
    `leases.boottime`, for what it has started since is the attempt's too."""

    number: int
    trace_id: Annotated[str, Meta(max_length=32)] = ""
    span_id: Annotated[str, Meta(max_length=16)] = ""
    user_cpu_seconds: CpuSeconds = 0.0
    system_cpu_seconds: CpuSeconds = 0.0
    boottime: Seconds = 0.0


class Used(Struct, frozen=True, gc=False):
    """What the child measured of an attempt."""

    peak_memory_bytes: Annotated[int, Meta(ge=0, le=BYTES_MAX)] | None = None
    user_cpu_seconds: CpuSeconds | None = None
    system_cpu_seconds: CpuSeconds | None = None


UNKNOWN = Used()


class Succeeded(Struct, frozen=True, tag="succeeded", omit_defaults=True, gc=False):
    """`noticed_cancel`: the job knew that it should end. `retires`: the child is to get no further order
    but to stop; `left` says what of it is not as it was, in words."""

    number: int
    noticed_cancel: bool = False
    retires: bool = False
    left: Left = ()
    used: Used = UNKNOWN
    seconds: Seconds = 0.0
    """From the beginning of the job to its end, as the child saw it."""
    stdout: Written = b""
    stderr: Written = b""
    boottime: Seconds = 0.0
    """Of its beginning, where something is left that was started since."""


class Failed(Struct, frozen=True, tag="failed", omit_defaults=True):
    number: int
    error_type: str
    error_message: str
    error_detail: str
    retryable: bool = True
    retry_after_seconds: Annotated[float, Meta(ge=0, le=RETRY_AFTER_SECONDS_MAX)] | None = None
    retires: bool = False
    left: Left = ()
    used: Used = UNKNOWN
    seconds: Seconds = 0.0
    stdout: Written = b""
    stderr: Written = b""
    boottime: Seconds = 0.0


class Spoilt(Struct, frozen=True, tag="spoilt"):
    """Of a child that has no run: it is not as it was, and one of the latest runs has left it so, of which this was the
    last."""

    left: Left
    run_id: UUID
    job_name: str


Order = Execute | Window | Cancel | Stop | Trust
Reply = BootFailed | Ready | Began | Succeeded | Failed | Spoilt

_encode = msgspec.msgpack.Encoder().encode
_order_decoder: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def frame(message: Order | Reply) -> bytes:
    body = _encode(message)
    return _HEADER.pack(len(body), zlib.crc32(body)) + body


class FrameReader:
    """Puts frames together from whatever pieces arrive."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._rest = bytearray()  # the beginning of a frame, if that is all there is

    def feed(self, received: bytes) -> Iterator[bytes | bytearray]:
        """The bodies of the frames that are complete now.

        Raises:
            ProtocolError: a frame is too long, or damaged.
        """
        if self._rest:
            self._rest += received
        buffer = self._rest or received
        start, body_at = 0, _HEADER.size
        while body_at <= len(buffer):
            length, checksum = _HEADER.unpack_from(buffer, start)
            if length > self._bytes_max:
                raise ProtocolError(f"a frame of {length} bytes; at most {self._bytes_max} are allowed")
            end = body_at + length
            if len(buffer) < end:
                break
            body = buffer[body_at:end]
            if zlib.crc32(body) != checksum:
                raise ProtocolError("a frame with a wrong checksum")
            start, body_at = end, end + _HEADER.size
            yield body
        if self._rest:
            del self._rest[:start]
        else:
            self._rest += received[start:]


def only_body(message: bytes) -> bytes:
    """The body of the frame that a message is. Raises ProtocolError if it is none, or more than one."""
    body = message[_HEADER.size :]
    if len(message) < _HEADER.size or _HEADER.unpack_from(message) != (len(body), zlib.crc32(body)):
        raise ProtocolError("a message that is not one frame")
    return body


def decode_order(body: bytes | bytearray) -> Order:
    return _order_decoder.decode(body)


def decode_reply(body: bytes | bytearray) -> Reply:
    """Raises ProtocolError if the body is no reply."""
    try:
        return _reply_decoder.decode(body)
    except Exception as error:  # not only DecodeError: deep nesting raises RecursionError
        raise ProtocolError(f"a frame that is no reply: {type(error).__name__}") from None
