"""A TCP proxy that misbehaves on demand: freezes, refuses, resets, slows down, works one way only, and cuts a commit
in two.

client ──> Connection (one thread) ──> target
              │   reads `mode` and the armed cut of its TcpProxy before it forwards anything
              └─ only this thread touches the two sockets, so that a close is a real close;
                 the others change the mode and wake it up
"""

import contextlib
import re
import selectors
import socket
import struct
import threading
import time
from enum import Enum, auto
from types import TracebackType
from typing import Literal, NamedTuple, Self

from servers import PORT_FIRST, PORT_LAST, free_port

CHUNK_BYTES = 65_536
SEND_TIMEOUT_SECONDS = 10.0
DIAL_TIMEOUT_SECONDS = 5.0
ANSWER_TIMEOUT_SECONDS = 2.0
QUIET_SECONDS = 0.05
PIECE_SECONDS = 0.05
JOIN_TIMEOUT_SECONDS = 15.0
COMMIT = b"commit"
SYNC = b"S\0\0\0\4"  # with PostgreSQL the end of a pipeline, which commits what nobody has begun

When = Literal["before", "after"]


class Mode(Enum):
    """What is forwarded; what is held back is forwarded later, even if its sender has gone meanwhile."""

    PASS = auto()
    FROZEN = auto()
    REFUSING = auto()
    ANSWERS_HELD = auto()
    REQUESTS_HELD = auto()
    ANSWERS_DROPPED = auto()

    @property
    def takes_requests(self) -> bool:
        return self in (Mode.PASS, Mode.ANSWERS_HELD, Mode.ANSWERS_DROPPED)

    @property
    def takes_answers(self) -> bool:
        return self in (Mode.PASS, Mode.REQUESTS_HELD, Mode.ANSWERS_DROPPED)


class Slowness(NamedTuple):
    """Each piece is held for `seconds`, and no more than `bytes_per_second` get through, each way."""

    seconds: float = 0.0
    bytes_per_second: int | None = None

    @property
    def piece_bytes(self) -> int:
        return CHUNK_BYTES if self.bytes_per_second is None else max(1, int(self.bytes_per_second * PIECE_SECONDS))

    def hold_seconds(self, piece: bytes) -> float:
        return self.seconds + (len(piece) / self.bytes_per_second if self.bytes_per_second else 0.0)


class Cut:
    """The order to cut the first commit that follows `marker` on one connection."""

    def __init__(self, when: When, marker: bytes) -> None:
        if not marker:
            raise ValueError("the marker is empty")
        self.when = when
        self.marker = marker


class Prepared:
    """The statements that a server keeps for one connection: later no more is sent than their names."""

    PARSE = re.compile(rb"P.{4}(durablestack_\w+)\0([^\0]+)\0", re.DOTALL)
    BIND = re.compile(rb"B.{4}\0(durablestack_\w+)\0", re.DOTALL)

    def __init__(self) -> None:
        self._texts: dict[bytes, bytes] = {}

    def spelled_out(self, chunk: bytes) -> bytes:
        """The client's bytes, after the texts of the statements that they name."""
        self._texts.update(self.PARSE.findall(chunk))
        named = [self._texts.get(name, b"") for name in self.BIND.findall(chunk)]
        return b"".join([*named, chunk])


class CommitWatch:
    """Looks for the marker, then for the commit, in the client's bytes of one connection."""

    def __init__(self, cut: Cut) -> None:
        self.cut = cut
        self._marked = False
        self._tail = b""

    def sees_commit(self, chunk: bytes) -> bool:
        text = self._tail + chunk
        if not self._marked:
            _, marker, rest = text.partition(self.cut.marker)
            if not marker:
                self._tail = _last(text, len(self.cut.marker) - 1)
                return False
            self._marked, text = True, rest
        self._tail = _last(text, len(COMMIT) - 1)
        return COMMIT in text.lower() or SYNC in text


def _last(text: bytes, length: int) -> bytes:
    return text[max(0, len(text) - length) :]


class TcpProxy:
    """Listens on `port` of the loopback while it is entered."""

    def __init__(self, target_host: str, target_port: int, *, connections_max: int = 128) -> None:
        self.target = (target_host, target_port)
        self.mode = Mode.PASS  # these two: written under `_lock` by the test's thread, read by every connection
        self.slowness = Slowness()
        self.cut_done = threading.Event()
        self.answers_dropped = threading.Event()  # at least one
        self.cuts = 0  # written by the connection that cuts, before its client can notice
        self.accepted = 0  # written by the listening thread
        self._connections_max = connections_max
        self._lock = threading.Lock()
        self._cut: Cut | None = None
        self._connections: set[Connection] = set()
        self._listening: Listening | None = None
        self._port: int | None = None

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.refuse()

    @property
    def port(self) -> int:
        if self._port is None:
            raise RuntimeError("the proxy was not entered")
        return self._port

    @property
    def connections(self) -> int:
        """How many are open now; `accepted` counts them all."""
        with self._lock:
            return len(self._connections)

    def pass_through(self) -> None:
        """Forward again, after whatever mode. A connection that lost answers is reset."""
        self._switch(Mode.PASS)
        self._listen()

    def slow_down(self, *, seconds: float = 0.0, bytes_per_second: int | None = None) -> None:
        """Forward, but slowly: hold each piece so long, let so many bytes through."""
        self._switch(Mode.PASS, Slowness(seconds, bytes_per_second))
        self._listen()

    def hold_answers(self) -> None:
        """Forward what clients say; what the target says is held back until `pass_through`."""
        self._switch(Mode.ANSWERS_HELD)
        self._listen()

    def hold_requests(self) -> None:
        """Hold back what clients say until `pass_through`, even if they have gone by then; forward the answers."""
        self._switch(Mode.REQUESTS_HELD)
        self._listen()

    def drop_answers(self) -> None:
        """Forward what clients say, and throw away what the target says."""
        self._switch(Mode.ANSWERS_DROPPED)
        self._listen()

    def freeze(self) -> None:
        """Accept, and forward nothing in either direction; nothing is under way when this returns."""
        self._switch(Mode.FROZEN)
        self._listen()

    def thaw(self) -> None:
        """Go on after `freeze`: what was held back is forwarded."""
        self.pass_through()

    def refuse(self) -> None:
        """Reset every connection, and let nobody connect."""
        self._switch(Mode.REFUSING)
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        self.reset_all()

    def reset_all(self) -> None:
        """Reset (RST) the connections that exist, on both sides."""
        for connection in self._open_connections():
            connection.reset()

    def cut_commit(self, when: When, marker: bytes) -> None:
        """Arm one cut; a cut that is still armed is replaced."""
        with self._lock:
            self.cut_done.clear()
            self._cut = Cut(when, marker)

    def disarm(self) -> None:
        """Cut nothing, if nothing was cut yet."""
        with self._lock:
            self._cut = None

    def armed_cut(self) -> Cut | None:
        with self._lock:
            return self._cut

    def take(self, cut: Cut) -> bool:
        """Whether the caller is the one that cuts."""
        with self._lock:
            if self._cut is not cut:
                return False
            self._cut = None
            self.cuts += 1
            return True

    def adopt(self, client: socket.socket) -> None:
        with self._lock:
            self.accepted += 1
            if self.mode is Mode.REFUSING or len(self._connections) >= self._connections_max:
                close_hard(client)
                return
            connection = Connection(self, client)
            self._connections.add(connection)
            connection.start()  # inside the lock: whoever finds it in the set can join its thread

    def forget(self, connection: "Connection") -> None:
        with self._lock:
            self._connections.discard(connection)

    def _open_connections(self) -> list["Connection"]:
        with self._lock:
            return list(self._connections)

    def _switch(self, mode: Mode, slowness: Slowness = Slowness()) -> None:  # noqa: B008, a frozen value
        with self._lock:
            self.mode, self.slowness = mode, slowness
        for connection in self._open_connections():
            connection.notice_mode()

    def _listen(self) -> None:
        if self._listening is not None:
            return
        listener = self._bind()
        self._port = listener.getsockname()[1]
        self._listening = Listening(self, listener)

    def _bind(self) -> socket.socket:
        for _ in range(10):
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", self._port or free_port()))
                listener.listen(128)
            except OSError:  # lost the race for the port
                listener.close()
                time.sleep(0.05)
            else:
                listener.setblocking(False)
                return listener
        raise RuntimeError(f"cannot listen on {self._port or f'any port of {PORT_FIRST}-{PORT_LAST}'}")


class Waker:
    """Ends another thread's `select`."""

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it will wake up anyway; closed: it is gone
            self._writer.send(b"!")

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.reader.recv(CHUNK_BYTES)

    def close(self) -> None:
        self.reader.close()
        self._writer.close()


class Listening:
    """The thread that accepts, until it is closed; then the port refuses."""

    def __init__(self, proxy: TcpProxy, listener: socket.socket) -> None:
        self._proxy = proxy
        self._listener = listener
        self._waker = Waker()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"proxy-{listener.getsockname()[1]}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._waker.wake()
        join(self._thread)
        self._listener.close()
        self._waker.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._waker.reader, selectors.EVENT_READ)
            while not self._closing.is_set():
                selector.select()
                with contextlib.suppress(OSError):  # the client is gone already, or it was only the waker
                    self._proxy.adopt(self._listener.accept()[0])


class Connection:
    """One client and its way to the target; bounded by the proxy's `connections_max`."""

    def __init__(self, proxy: TcpProxy, client: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server: socket.socket | None = None
        self._watch: CommitWatch | None = None
        self._prepared = Prepared()
        self._lossy = False
        self._waker = Waker()
        self._resetting = threading.Event()
        self._forwarding = threading.Lock()  # held while bytes are under way
        self._thread = threading.Thread(target=self._run, name="proxy-connection", daemon=True)

    def start(self) -> None:
        self._client.settimeout(SEND_TIMEOUT_SECONDS)
        self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._thread.start()

    def notice_mode(self) -> None:
        """When this returns, no byte moves that the new mode forbids."""
        with self._forwarding:
            self._waker.wake()

    def reset(self) -> None:
        self._resetting.set()
        self._waker.wake()
        join(self._thread)

    def _run(self) -> None:
        try:
            while not self._resetting.is_set() and self._step():
                pass
        except OSError:  # one side is gone, so is the other
            self._resetting.set()
        finally:
            self._close_both()
            self._proxy.forget(self)
            with self._forwarding:
                self._waker.close()

    def _step(self) -> bool:
        """Wait for something, and do it; False when the connection has ended."""
        ready = self._wait()
        if self._waker.reader in ready:
            self._waker.drain()
            return True
        with self._forwarding:
            mode = self._proxy.mode
            if self._resetting.is_set():
                return True
            if self._server is None:
                if mode.takes_requests:
                    self._dial()
                return True
            if mode is Mode.PASS and self._lossy:
                self._resetting.set()
                return False
            if self._server in ready and mode.takes_answers:  # first: it belongs to what was asked before
                return self._forward_answer(self._server, mode)
            if self._client in ready and mode.takes_requests:
                return self._forward_request(self._server)
            return True

    def _wait(self) -> list[object]:
        mode = self._proxy.mode
        with selectors.DefaultSelector() as selector:
            selector.register(self._waker.reader, selectors.EVENT_READ)
            if (self._server is None and mode.takes_requests) or (mode is Mode.PASS and self._lossy):
                return []  # nothing to wait for: dial, or reset
            if self._server is not None and mode.takes_answers:
                selector.register(self._server, selectors.EVENT_READ)
            if self._server is not None and mode.takes_requests:
                selector.register(self._client, selectors.EVENT_READ)
            return [key.fileobj for key, _ in selector.select()]

    def _dial(self) -> None:
        self._server = socket.create_connection(self._proxy.target, DIAL_TIMEOUT_SECONDS)
        self._server.settimeout(SEND_TIMEOUT_SECONDS)
        self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _forward_answer(self, server: socket.socket, mode: Mode) -> bool:
        chunk = self._piece_from(server)
        if mode is Mode.ANSWERS_DROPPED:
            self._lossy = True
            self._proxy.answers_dropped.set()
        else:
            self._client.sendall(chunk)
        return chunk != b""

    def _piece_from(self, side: socket.socket) -> bytes:
        slowness = self._proxy.slowness
        piece = side.recv(slowness.piece_bytes)
        self._resetting.wait(slowness.hold_seconds(piece))
        return piece

    def _forward_request(self, server: socket.socket) -> bool:
        chunk = self._piece_from(self._client)
        if (cut := self._cut_to_make(chunk)) is not None:
            self._make(cut, chunk, server)
            return False
        server.sendall(chunk)
        return chunk != b""

    def _cut_to_make(self, chunk: bytes) -> Cut | None:
        chunk = self._prepared.spelled_out(chunk)
        cut = self._proxy.armed_cut()
        if cut is None:
            return None
        if self._watch is None or self._watch.cut is not cut:
            self._watch = CommitWatch(cut)
        return cut if self._watch.sees_commit(chunk) and self._proxy.take(cut) else None

    def _make(self, cut: Cut, chunk: bytes, server: socket.socket) -> None:
        try:
            if cut.when == "after":
                server.sendall(chunk)
                self._swallow_answer(server)
                close_hard(self._client)
            else:
                self._resetting.set()
                self._close_both()
        finally:
            self._proxy.cut_done.set()

    def _swallow_answer(self, server: socket.socket) -> None:
        """Read the whole answer: until bytes came and then none for a moment, or the time is up."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_SECONDS
        server.settimeout(ANSWER_TIMEOUT_SECONDS)
        with contextlib.suppress(TimeoutError):
            while time.monotonic() < deadline and server.recv(CHUNK_BYTES):
                server.settimeout(QUIET_SECONDS)

    def _close_both(self) -> None:
        for side in (self._client, self._server):
            if side is not None:
                close_hard(side) if self._resetting.is_set() else side.close()


def close_hard(side: socket.socket) -> None:
    """Close with RST instead of FIN."""
    with contextlib.suppress(OSError):  # closed already
        side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    side.close()


def join(thread: threading.Thread) -> None:
    thread.join(JOIN_TIMEOUT_SECONDS)
    if thread.is_alive():
        raise RuntimeError(f"{thread.name} does not end")
