"""The child's end of its orders: each is taken once, by the child or back by the supervisor, and none is mistaken."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

import pytest

from durablestack.jobs.context import CancelFlag
from durablestack.supervisor import wire
from durablestack.supervisor.orders import Orders, OrdersLost
from workers import PATIENCE_SECONDS

DUE = datetime(2030, 1, 2, tzinfo=UTC)

Taken = tuple[wire.Execute, CancelFlag] | None


class Supervisor:
    """Puts orders in, and takes them back from the end that the child has too."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self.untaken = theirs.dup()
        self.orders = Orders(theirs)

    def put(self, *numbers: int) -> None:
        for number in numbers:
            self.send(execute(number))

    def send(self, order: wire.Order) -> None:
        self.ours.send(wire.frame(order))

    def take_back(self) -> list[int]:
        numbers = []
        with suppress(BlockingIOError):
            while message := self.untaken.recv(2 * wire.MESSAGE_BYTES_MAX, socket.MSG_DONTWAIT):
                order = wire.decode_order(wire.only_body(message))
                assert isinstance(order, wire.Execute | wire.Follows)
                numbers.append(order.number)
        return numbers

    def close(self) -> None:
        for end in (self.ours, self.untaken, self.orders._socket):
            end.close()


def execute(number: int, payload: str | None = None) -> wire.Execute:
    return wire.Execute(number, UUID(int=number), "job", 1, 3, DUE, payload)


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    made = Supervisor()
    yield made
    made.close()


@pytest.fixture
def orders(supervisor: Supervisor) -> Orders:
    return supervisor.orders


def number_of(taken: Taken) -> int:
    assert taken is not None
    return taken[0].number


def is_cancelled(taken: Taken) -> bool:
    assert taken is not None
    return taken[1].check()


def meanwhile(call: Callable[[], Taken]) -> Callable[[], Taken]:
    """Begin in a thread; what is returned waits for its result."""
    results: list[Taken] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()

    def result() -> Taken:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
        return results[0]

    return result


def test_orders_are_taken_one_by_one_in_the_order_in_which_they_were_given(
    supervisor: Supervisor, orders: Orders
) -> None:
    supervisor.put(1, 2, 3)
    assert [number_of(orders.take()), number_of(orders.waiting()), number_of(orders.waiting())] == [1, 2, 3]
    assert orders.waiting() is None


def test_a_child_without_orders_waits_for_the_next_one(supervisor: Supervisor, orders: Orders) -> None:
    result = meanwhile(orders.take)
    supervisor.put(7)
    assert number_of(result()) == 7


def test_what_was_not_taken_can_be_taken_back_and_is_not_taken_then(supervisor: Supervisor, orders: Orders) -> None:
    supervisor.put(1, 2, 3)
    assert number_of(orders.take()) == 1
    assert supervisor.take_back() == [2, 3]
    assert orders.waiting() is None
    supervisor.put(4)
    assert number_of(orders.take()) == 4


def test_each_order_is_taken_by_one_side_alone_however_they_compete(supervisor: Supervisor, orders: Orders) -> None:
    count = 2_000
    taken: list[int] = []
    took_all = threading.Event()

    def take() -> None:
        while (next_one := orders.take()) is not None:
            taken.append(number_of(next_one))
        took_all.set()

    threading.Thread(target=take).start()
    back = []
    for number in range(count):
        supervisor.put(number)
        if number % 3 == 0:
            back += supervisor.take_back()
    orders.stop()
    assert took_all.wait(PATIENCE_SECONDS)
    back += supervisor.take_back()
    assert sorted(taken + back) == list(range(count))
    assert taken == sorted(taken)
    assert taken, "this proves nothing otherwise"


# --- cancel


def test_a_cancel_of_the_order_that_is_executed_sets_its_flag(supervisor: Supervisor, orders: Orders) -> None:
    supervisor.put(1)
    taken = orders.take()
    orders.cancel(1)
    assert is_cancelled(taken)


def test_a_cancel_that_comes_before_its_order_is_taken_is_known_when_it_is(
    supervisor: Supervisor, orders: Orders
) -> None:
    supervisor.put(1, 2)
    orders.take()
    orders.cancel(2)
    taken = orders.take()
    assert number_of(taken) == 2
    assert is_cancelled(taken)


def test_a_cancel_that_comes_too_late_is_not_taken_for_that_of_the_next(supervisor: Supervisor, orders: Orders) -> None:
    supervisor.put(1, 2, 3)
    first, second = orders.take(), orders.take()
    orders.cancel(1)
    assert not is_cancelled(second)
    assert not is_cancelled(first), "it has ended"
    assert not is_cancelled(orders.take())


def test_each_order_has_a_flag_of_its_own(supervisor: Supervisor, orders: Orders) -> None:
    supervisor.put(1, 2)
    first = orders.take()
    orders.cancel(1)
    second = orders.take()
    assert (is_cancelled(first), is_cancelled(second)) == (True, False)


# --- stop


def test_after_a_stop_nothing_comes_any_more(orders: Orders) -> None:
    result = meanwhile(orders.take)
    orders.stop()
    assert result() is None
    assert orders.take() is None
    assert orders.waiting() is None
    orders.wait_stopped()


def test_what_was_given_before_the_stop_is_still_done(supervisor: Supervisor, orders: Orders) -> None:
    supervisor.put(1, 2)
    orders.stop()
    assert [number_of(orders.take()), number_of(orders.take())] == [1, 2]
    assert orders.take() is None


def test_a_child_that_is_to_retire_takes_nothing_more_and_waits_for_the_stop(
    supervisor: Supervisor, orders: Orders
) -> None:
    supervisor.put(1, 2)
    orders.take()
    waited = threading.Event()
    threading.Thread(target=lambda: (orders.wait_stopped(), waited.set())).start()
    assert supervisor.take_back() == [2]
    assert not waited.is_set()
    orders.stop()
    assert waited.wait(PATIENCE_SECONDS)


# --- long ones


def test_a_long_order_takes_its_turn_whichever_way_comes_first(supervisor: Supervisor, orders: Orders) -> None:
    long = execute(2, "x" * 100_000)
    supervisor.put(1)
    supervisor.send(wire.Follows(2))
    supervisor.put(3)
    assert number_of(orders.take()) == 1
    result = meanwhile(orders.take)
    orders.bring(long)
    taken = result()
    assert taken is not None
    assert taken[0] == long
    assert number_of(orders.take()) == 3
    orders.bring(execute(4, "early"))
    supervisor.send(wire.Follows(4))
    assert number_of(orders.take()) == 4


def test_a_long_order_that_was_taken_back_is_not_taken_for_another(supervisor: Supervisor, orders: Orders) -> None:
    for number in (1, 2, 3):
        orders.bring(execute(number, f"payload {number}"))
        supervisor.send(wire.Follows(number))
    assert number_of(orders.take()) == 1
    assert supervisor.take_back() == [2, 3]
    supervisor.put(4)
    assert number_of(orders.take()) == 4
    orders.bring(execute(5, "payload 5"))
    supervisor.send(wire.Follows(5))
    taken = orders.take()
    assert taken is not None
    assert (taken[0].number, taken[0].payload) == (5, "payload 5")


def test_a_long_order_can_be_cancelled_before_it_is_taken(supervisor: Supervisor, orders: Orders) -> None:
    orders.bring(execute(1, "x" * 100_000))
    supervisor.send(wire.Follows(1))
    orders.cancel(1)
    assert is_cancelled(orders.take())


# --- lost


def test_orders_are_lost_if_a_job_has_closed_their_socket(supervisor: Supervisor, orders: Orders) -> None:
    supervisor.put(1)
    fd = orders._socket.detach()
    os.close(fd)
    with pytest.raises(OrdersLost):
        orders.take()
    with pytest.raises(OrdersLost):
        orders.waiting()
    orders.stop()  # what is left to say does no harm


@pytest.mark.parametrize("nonsense", [b"x", b"garbage " * 64, wire.frame(wire.Stop()), wire.frame(execute(1)) * 2])
def test_orders_are_lost_if_something_else_wrote_to_their_socket(
    supervisor: Supervisor, orders: Orders, nonsense: bytes
) -> None:
    supervisor.ours.send(nonsense)
    with pytest.raises(OrdersLost):
        orders.take()


def test_what_a_job_forks_has_no_orders(supervisor: Supervisor, orders: Orders) -> None:
    if (pid := os.fork()) == 0:
        os._exit(int(orders._socket.fileno() != -1))
    assert os.waitpid(pid, 0)[1] == 0
    supervisor.put(1)
    assert number_of(orders.take()) == 1
