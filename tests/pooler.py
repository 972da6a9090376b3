"""A pooler of PostgreSQL sessions that gives each transaction another one, as PgBouncer does in transaction mode.

client ──> Client (one thread) ──takes one of the sessions at its first message──> server
              └─ puts it back as soon as the server says that it is in no transaction (ReadyForQuery, 'I')

Whatever a client leaves on a session, another one finds there: settings, prepared statements, locks.
"""

import contextlib
import random
import selectors
import socket
import struct
import threading
from types import TracebackType
from typing import NamedTuple, Self

from servers import free_port

PROTOCOL_3, SSL, GSS = 196_608, 80_877_103, 80_877_104
TIMEOUT_SECONDS = 30.0
STARTUP = b"user\0postgres\0database\0postgres\0\0"


class Message(NamedTuple):
    kind: bytes
    body: bytes

    def __bytes__(self) -> bytes:
        return self.kind + struct.pack(">I", len(self.body) + 4) + self.body


SESSION_ENDED = Message(b"E", b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0")


def read_exactly(side: socket.socket, count: int) -> bytes:
    read = b""
    while len(read) < count:
        if not (chunk := side.recv(count - len(read))):
            raise ConnectionResetError
        read += chunk
    return read


def read_message(side: socket.socket) -> Message:
    kind = read_exactly(side, 1)
    (length,) = struct.unpack(">I", read_exactly(side, 4))
    return Message(kind, read_exactly(side, length - 4))


class TransactionPooler:
    """Listens on `port` of the loopback while it is entered.

    As PgBouncer does, it gives each client a key of its own to cancel with; with `tells_process` that of some session,
    whose process the client then takes for the one that it speaks to. With `ends_after_commit` a session that has
    committed is over, and its client is told so by the server's words for that.
    """

    def __init__(
        self, target_port: int, *, sessions: int = 4, tells_process: bool = False, ends_after_commit: bool = False
    ) -> None:
        self._tells_process = tells_process
        self.ends_after_commit = ends_after_commit
        self._target = ("127.0.0.1", target_port)
        self._lock = threading.Lock()
        self._returned = threading.Condition(self._lock)
        self._free: list[socket.socket] = []
        self._count = sessions
        self._clients: list[socket.socket] = []
        self.greeting = b""
        self.taken = 0  # how often a session was taken, by any client
        self.flushed_in_vain = 0  # after a Sync: if its answer comes first, a session is taken for nothing, and kept

    def __enter__(self) -> Self:
        self._free = [self.new_session() for _ in range(self._count)]
        self._listener = socket.create_server(("127.0.0.1", free_port()))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for side in (self._listener, *self._clients):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)  # whose threads close them
        for session in self._free:
            session.close()

    def new_session(self) -> socket.socket:
        session = socket.create_connection(self._target, TIMEOUT_SECONDS)
        session.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        session.sendall(struct.pack(">II", len(STARTUP) + 8, PROTOCOL_3) + STARTUP)
        told: list[Message] = []
        while not told or told[-1].kind != b"Z":
            told.append(read_message(session))
        self.greeting = b"".join(bytes(message) for message in told if self._tells_process or message.kind != b"K")
        return session

    def take(self) -> socket.socket:
        with self._returned:
            assert self._returned.wait_for(lambda: self._free, TIMEOUT_SECONDS), "no session is given back"
            self.taken += 1
            return self._free.pop(random.randrange(len(self._free)))

    def put_back(self, session: socket.socket) -> None:
        with self._returned:
            self._free.append(session)
            self._returned.notify()

    def _accept(self) -> None:
        with contextlib.suppress(OSError), self._listener:  # until it is shut down
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._clients.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            greet(client, self.greeting)
            Client(self, client).serve()


def greet(client: socket.socket, greeting: bytes) -> None:
    while True:
        length, code = struct.unpack(">II", read_exactly(client, 8))
        read_exactly(client, length - 8)
        if code == PROTOCOL_3:
            return client.sendall(greeting)
        if code not in (SSL, GSS):  # a cancel, of which nothing is expected
            raise ConnectionResetError
        client.sendall(b"N")


class Client:
    """What comes in parts is passed on in parts: whoever has sent one may wait for what the other one has to say."""

    def __init__(self, pooler: TransactionPooler, client: socket.socket) -> None:
        self._pooler = pooler
        self._client = client
        self._session: socket.socket | None = None
        self._asks = Messages()
        self._answers = Messages()
        self._awaited = 0  # answers that end with ReadyForQuery
        self._asked_last = b""
        self._answered_last = b""

    def serve(self) -> None:
        try:
            while self._forward_some():
                pass
        finally:
            if self._session is not None:  # in the middle of something that nobody will end
                self._session.close()
                self._pooler.put_back(self._pooler.new_session())

    def _forward_some(self) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self._client, selectors.EVENT_READ)
            if self._session is not None:
                selector.register(self._session, selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select()]
        return self._answer(self._session) if self._session in ready and self._session else self._request()

    def _request(self) -> bool:
        for message in self._asks.read(self._client):
            if message.kind == b"X":
                return False
            self._session = self._session or self._pooler.take()  # for whatever it asks, if it is a Flush alone
            self._awaited += message.kind in (b"Q", b"S")
            self._pooler.flushed_in_vain += (self._asked_last, message.kind) == (b"S", b"H")
            self._asked_last = message.kind
            self._session.sendall(bytes(message))
        return True

    def _answer(self, session: socket.socket) -> bool:
        for message in self._answers.read(session):
            if message.kind == b"Z":
                self._awaited -= 1
                if self._awaited == 0 and message.body == b"I":
                    self._session = None
                    self._pooler.put_back(session)
            if message.kind == b"Z" and self._answered_last == b"COMMIT\0" and self._pooler.ends_after_commit:
                self._client.sendall(bytes(SESSION_ENDED))
                return False
            self._answered_last = message.body if message.kind == b"C" else b""
            self._client.sendall(bytes(message))
        return True


class Messages:
    """Of one side, as they become whole."""

    def __init__(self) -> None:
        self._read = b""

    def read(self, side: socket.socket) -> list[Message]:
        if not (chunk := side.recv(65536)):
            raise ConnectionResetError
        self._read += chunk
        whole: list[Message] = []
        while len(self._read) >= 5 and len(self._read) > (length := struct.unpack_from(">I", self._read, 1)[0]):
            whole.append(Message(self._read[:1], self._read[5 : length + 1]))
            self._read = self._read[length + 1 :]
        return whole
