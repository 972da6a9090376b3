"""What a run has written, read by its own child: all of it, up to a bound, and never at the price of waiting."""

import os
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest

from durablestack.supervisor import wire
from durablestack.supervisor.isolation import out_of_the_way
from durablestack.supervisor.written import Written

PIPE_BYTES = 65_536


class Streams:
    """Both streams of a child, to be written to, and to be read by the supervisor."""

    def __init__(self) -> None:
        self.readers: list[Connection] = []
        self.fds: list[int] = []
        lent = []
        for _ in range(2):
            reader, writer = Pipe(duplex=False)
            lent.append(reader)
            self.readers.append(Connection(os.dup(reader.fileno()), writable=False))
            self.fds.append(out_of_the_way(writer.fileno()))
            writer.close()
        self.written = Written(*lent)

    def write(self, stdout: bytes = b"", stderr: bytes = b"") -> None:
        for fd, text in zip(self.fds, (stdout, stderr), strict=True):
            while text:
                text = text[os.write(fd, text) :]

    def close(self) -> None:
        for fd in (*self.fds, *self.written._fds):
            try:
                os.close(fd)
            except OSError:
                continue
        for reader in self.readers:
            reader.close()


@pytest.fixture
def streams() -> Iterator[Streams]:
    made = Streams()
    yield made
    made.close()


def test_nothing_is_taken_of_a_run_that_wrote_nothing(streams: Streams) -> None:
    assert streams.written.take() == (b"", b"")


def test_both_streams_are_taken_apart_and_as_bytes(streams: Streams) -> None:
    streams.write(b"out \xff\x00", b"err\n")
    assert streams.written.take() == (b"out \xff\x00", b"err\n")


def test_what_was_taken_is_not_taken_again(streams: Streams) -> None:
    streams.write(b"first")
    streams.written.take()
    streams.write(stderr=b"second")
    assert streams.written.take() == (b"", b"second")


def test_what_the_supervisor_has_read_meanwhile_is_not_taken(streams: Streams) -> None:
    streams.write(b"0123456789")
    os.read(streams.readers[0].fileno(), 4)
    assert streams.written.take() == (b"456789", b"")


def test_a_full_pipe_is_taken_whole(streams: Streams) -> None:
    text = bytes(number % 256 for number in range(PIPE_BYTES))
    streams.write(text, text)
    assert streams.written.take() == (text, text)


def test_to_take_ends_although_somebody_goes_on_writing_and_the_end_is_kept(streams: Streams) -> None:
    stopped = threading.Event()

    def flood() -> None:
        while not stopped.is_set():
            os.write(streams.fds[0], b"x" * 4096)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        for _ in range(50):
            stdout, stderr = streams.written.take()
            assert len(stdout) <= wire.OUTPUT_BYTES_MAX
            assert stderr == b""
    finally:
        stopped.set()
        streams.written.take()
        thread.join()


def test_it_does_not_matter_that_a_job_has_closed_what_it_is_read_from(streams: Streams) -> None:
    streams.write(b"lost", b"kept")
    os.close(streams.written._fds[0])
    assert streams.written.take() == (b"", b"kept")
    os.close(streams.written._fds[1])
    assert streams.written.take() == (b"", b"")


def test_it_does_not_matter_that_nobody_can_write_any_more(streams: Streams) -> None:
    streams.write(b"last words")
    for fd in streams.fds:
        os.close(fd)
    assert streams.written.take() == (b"last words", b"")
    assert streams.written.take() == (b"", b"")


def test_what_a_job_forks_or_executes_cannot_read_it(streams: Streams) -> None:
    assert not any(map(os.get_inheritable, streams.written._fds))
    if (pid := os.fork()) == 0:
        closed = 0
        for fd in streams.written._fds:
            try:
                os.fstat(fd)
            except OSError:
                closed += 1
        os._exit(closed)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
