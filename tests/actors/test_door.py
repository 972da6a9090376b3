"""Steps are taken on the event loop, which does other things while they wait; what blocks is done in a thread."""

import select
import socket
import threading
from collections.abc import Iterator

import anyio
import pytest

from durablestack.errors import StoreError
from durablestack.stores.steps import Steps, Wait, in_one
from durablestack.supervisor.door import ask_store_in_steps

pytestmark = pytest.mark.anyio


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def nothing() -> None:
    return


class Reading:
    """Steps that wait until something can be read, and what they know at their end."""

    def __init__(self, ours: socket.socket, seconds: float = 30.0) -> None:
        self._ours, self._seconds = ours, seconds
        self.closed = False

    def steps(self) -> Steps[bytes | None]:
        try:
            has_come = yield Wait(self._ours.fileno(), select.POLLIN, self._seconds)
            return self._ours.recv(9) if has_come else None
        finally:
            self.closed = True


async def test_the_loop_goes_on_while_a_socket_is_waited_for(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    begun = anyio.Event()
    answers: list[bytes | None] = []

    async def ask() -> None:
        answers.append(await ask_store_in_steps(Reading(ours).steps(), begun=begun.set))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await begun.wait()
        assert not answers
        theirs.send(b"here")
    assert answers == [b"here"]


async def test_steps_are_told_that_their_time_is_over(pair: tuple[socket.socket, socket.socket]) -> None:
    assert await ask_store_in_steps(Reading(pair[0], seconds=0.01).steps(), begun=nothing) is None


async def test_a_socket_with_room_is_there_for_who_wants_to_write(pair: tuple[socket.socket, socket.socket]) -> None:
    def steps() -> Steps[bool]:
        has_come: bool = yield Wait(pair[0].fileno(), select.POLLIN | select.POLLOUT, 30.0)
        return has_come

    assert await ask_store_in_steps(steps(), begun=nothing)


async def test_a_call_is_made_in_a_thread_and_its_error_is_that_of_the_steps() -> None:
    assert await ask_store_in_steps(in_one(threading.get_ident), begun=nothing) != threading.get_ident()

    def fails() -> None:
        raise StoreError("it cannot be done")

    with pytest.raises(StoreError, match="cannot be done"):
        await ask_store_in_steps(in_one(fails), begun=nothing)
