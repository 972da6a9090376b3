"""The child's end of its orders: each is taken once, by the child or back by the supervisor, and none is mistaken."""

import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import cycle
from multiprocessing.connection import Connection
from uuid import UUID

import pytest
from msgspec import structs

from durablestack.jobs.context import CancelFlag
from durablestack.options import StartMethod
from durablestack.supervisor import wire
from durablestack.supervisor.order_pipe import OrderPipe
from durablestack.supervisor.orders import Orders, OrdersLost
from durablestack.supervisor.process import ChildProcess
from durablestack.supervisor.starter import Starter
from workers import PATIENCE_SECONDS, eventually

DUE = datetime(2030, 1, 2, tzinfo=UTC)

Taken = tuple[wire.Execute, CancelFlag] | None


class Supervisor:
    """Puts orders in, each with its permit, and takes permits back from the end that the child has too."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        permitted, self.permits = os.pipe()
        os.set_blocking(permitted, False)
        self.untaken = os.dup(permitted)
        self.generation = 0
        self.given: list[int] = []  # but for those taken back
        self.orders = Orders(theirs, Connection(permitted, writable=False))

    def put(self, *numbers: int) -> None:
        """In one window."""
        self.send([execute(number) for number in numbers])

    def follows(self, number: int) -> None:
        self.send([wire.Follows(number)])

    def send(self, orders: Sequence[wire.Execute | wire.Follows]) -> None:
        self.say(wire.frame(wire.Window(self.generation, [*orders])))
        self.permit(len(orders))
        self.given += [order.number for order in orders]

    def say(self, message: bytes) -> None:
        self.ours.send(message)

    def permit(self, count: int = 1) -> None:
        os.write(self.permits, wire.PERMIT.pack(self.generation) * count)

    def take_back(self) -> list[int]:
        count = 0
        with suppress(BlockingIOError):
            while taken := os.read(self.untaken, 4096):
                count += len(taken) // wire.PERMIT.size
        if count:
            self.generation = (self.generation + 1) % wire.GENERATIONS
        kept = len(self.given) - count
        back, self.given = self.given[kept:], self.given[:kept]
        return back

    def close(self) -> None:
        self.ours.close()
        for fd in (self.permits, self.untaken):
            os.close(fd)
        close_windows(self.orders)
        close_permits(self.orders)


def close_windows(orders: Orders) -> None:
    orders._windows.close()


def close_permits(orders: Orders) -> None:
    fd, orders._permits = orders._permits, -1  # it is closed once more in what this process forks
    with suppress(OSError):
        os.close(fd)


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
    back: list[int] = []
    number = windows = 0
    for size in cycle(range(1, 8)):
        numbers = range(number, min(number + size, count))
        supervisor.put(*numbers)
        number, windows = number + len(numbers), windows + 1
        if number == count:
            break
        if windows % 20 == 0:  # void windows are read when one is taken that came after them
            eventually(lambda last=number - 1: taken[-1:] == [last], what=f"order {number - 1}")
        elif windows % 3 == 0:
            back += supervisor.take_back()
    orders.stop()
    assert took_all.wait(PATIENCE_SECONDS)
    back += supervisor.take_back()
    assert sorted(taken + back) == list(range(count)), "each once"
    assert taken == sorted(taken)
    assert supervisor.given == taken, "those that were not taken back, and no others"
    assert taken, "this proves nothing otherwise"


# --- generations


def test_void_orders_that_the_child_has_received_are_never_begun(supervisor: Supervisor, orders: Orders) -> None:
    supervisor.put(1, 2, 3)
    assert number_of(orders.take()) == 1  # the whole window came with it
    assert supervisor.take_back() == [2, 3]
    supervisor.put(4, 5)
    assert [number_of(orders.take()), number_of(orders.take())] == [4, 5]
    assert orders.waiting() is None


def test_void_orders_that_are_still_on_their_way_are_never_begun(supervisor: Supervisor, orders: Orders) -> None:
    for first in (1, 3, 5):
        supervisor.put(first, first + 1)
        assert supervisor.take_back() == [first, first + 1]
    supervisor.put(7, 8)
    assert [number_of(orders.take()), number_of(orders.take())] == [7, 8]
    assert orders.waiting() is None


def test_void_orders_among_those_received_and_those_on_their_way_are_never_begun(
    supervisor: Supervisor, orders: Orders
) -> None:
    supervisor.put(1, 2, 3)
    supervisor.put(4, 5)
    assert number_of(orders.take()) == 1
    assert supervisor.take_back() == [2, 3, 4, 5]
    supervisor.put(6)
    supervisor.put(7)
    assert [number_of(orders.take()), number_of(orders.take())] == [6, 7]
    assert orders.waiting() is None


def test_several_windows_of_one_generation_are_taken_one_after_the_other(
    supervisor: Supervisor, orders: Orders
) -> None:
    supervisor.put(1, 2)
    supervisor.put(3)
    supervisor.put(4, 5, 6)
    assert [number_of(orders.take()) for _ in range(6)] == [1, 2, 3, 4, 5, 6]


def test_to_take_back_when_there_is_nothing_changes_nothing(supervisor: Supervisor, orders: Orders) -> None:
    assert supervisor.take_back() == []
    supervisor.put(1)
    assert number_of(orders.take()) == 1
    assert supervisor.take_back() == []
    supervisor.put(2)
    assert number_of(orders.take()) == 2


def test_generations_come_round_and_nothing_is_mistaken(supervisor: Supervisor, orders: Orders) -> None:
    number, seen = 0, set()
    supervisor.generation = wire.GENERATIONS - 3
    for _ in range(6):
        seen.add(supervisor.generation)
        supervisor.put(number, number + 1, number + 2)
        assert number_of(orders.take()) == number
        assert supervisor.take_back() == [number + 1, number + 2]
        number += 3
    assert seen == {wire.GENERATIONS - 3, wire.GENERATIONS - 2, wire.GENERATIONS - 1, 0, 1, 2}


def test_some_follow_as_long_as_a_window_is_not_done_or_seems_so(supervisor: Supervisor, orders: Orders) -> None:
    assert not orders.some_follow
    supervisor.put(1, 2)
    orders.take()
    assert orders.some_follow
    orders.take()
    assert not orders.some_follow
    supervisor.put(3, 4)
    orders.take()
    supervisor.take_back()
    assert orders.some_follow, "nobody has told the child"
    assert orders.waiting() is None
    supervisor.put(5)
    assert number_of(orders.take()) == 5
    assert not orders.some_follow


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


def test_a_permit_that_came_before_the_stop_is_not_lost_to_one_who_waits(
    supervisor: Supervisor, orders: Orders
) -> None:
    """Of the two that it waits for it may see the stop first."""
    for number in range(200):
        supervisor_of_this_turn = Supervisor()
        try:
            result = meanwhile(supervisor_of_this_turn.orders.take)
            supervisor_of_this_turn.put(number)
            supervisor_of_this_turn.orders.stop()
            assert number_of(result()) == number
            assert supervisor_of_this_turn.orders.take() is None
        finally:
            supervisor_of_this_turn.close()


def test_what_was_taken_back_before_the_stop_is_not_done(supervisor: Supervisor, orders: Orders) -> None:
    supervisor.put(1, 2, 3)
    assert number_of(orders.take()) == 1
    supervisor.take_back()
    orders.stop()
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
    supervisor.follows(2)
    supervisor.put(3)
    assert number_of(orders.take()) == 1
    result = meanwhile(orders.take)
    orders.bring(long)
    taken = result()
    assert taken is not None
    assert taken[0] == long
    assert number_of(orders.take()) == 3
    orders.bring(execute(4, "early"))
    supervisor.follows(4)
    assert number_of(orders.take()) == 4


def test_a_long_order_that_was_taken_back_is_not_taken_for_another(supervisor: Supervisor, orders: Orders) -> None:
    for number in (1, 2, 3):
        orders.bring(execute(number, f"payload {number}"))
        supervisor.follows(number)
    assert number_of(orders.take()) == 1
    assert supervisor.take_back() == [2, 3]
    supervisor.put(4)
    assert number_of(orders.take()) == 4
    orders.bring(execute(5, "payload 5"))
    supervisor.follows(5)
    taken = orders.take()
    assert taken is not None
    assert (taken[0].number, taken[0].payload) == (5, "payload 5")


def test_a_long_order_can_be_cancelled_before_it_is_taken(supervisor: Supervisor, orders: Orders) -> None:
    orders.bring(execute(1, "x" * 100_000))
    supervisor.follows(1)
    orders.cancel(1)
    assert is_cancelled(orders.take())


def test_a_long_order_takes_its_turn_among_those_of_one_window(supervisor: Supervisor, orders: Orders) -> None:
    orders.bring(execute(2, "long"))
    supervisor.send([execute(1), wire.Follows(2), execute(3)])
    assert [number_of(orders.take()) for _ in range(3)] == [1, 2, 3]


# --- lost


@pytest.mark.parametrize("close", [close_windows, close_permits])
def test_orders_are_lost_if_a_job_has_closed_what_they_come_through(
    supervisor: Supervisor, orders: Orders, close: Callable[[Orders], None]
) -> None:
    supervisor.put(1)
    close(orders)
    with pytest.raises(OrdersLost):
        orders.take()
    orders.stop()  # what is left to say does no harm


def test_orders_are_lost_if_nobody_can_give_a_permit_any_more(supervisor: Supervisor, orders: Orders) -> None:
    nobody = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nobody, supervisor.permits)
    os.close(nobody)
    with pytest.raises(OrdersLost):
        orders.take()


NONSENSE = [b"x", b"garbage " * 64, wire.frame(wire.Stop()), wire.frame(execute(1))]


@pytest.mark.parametrize("nonsense", [*NONSENSE, wire.frame(wire.Window(0, [execute(1)])) * 2])
def test_orders_are_lost_if_something_else_wrote_to_their_socket(
    supervisor: Supervisor, orders: Orders, nonsense: bytes
) -> None:
    supervisor.say(nonsense)
    supervisor.permit()
    with pytest.raises(OrdersLost):
        orders.take()


def test_orders_are_lost_if_a_permit_has_none(supervisor: Supervisor, orders: Orders) -> None:
    supervisor.put(1)
    supervisor.permit()
    assert number_of(orders.take()) == 1
    with pytest.raises(OrdersLost):
        orders.waiting()


def test_what_a_job_forks_has_no_orders(supervisor: Supervisor, orders: Orders) -> None:
    permits = orders._permits
    if (pid := os.fork()) == 0:
        try:
            os.fstat(permits)
        except OSError:
            os._exit(int(orders._windows.fileno() != -1))
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    supervisor.put(1)
    assert number_of(orders.take()) == 1


# --- as the supervisor puts them


class Given:
    """What a child is given by its supervisor comes out here, and not in a process."""

    def __init__(self) -> None:
        child = ChildProcess(Starter(StartMethod.SPAWN, ()), output_bytes_max=1024, name="child")
        ours, lent = child._new_ends()
        self.long: list[wire.Execute] = []
        self.pipe = OrderPipe(ours.orders, ours.permits, ours.untaken, self.long.append)
        self.orders = Orders(lent.orders, lent.permits)
        self._ends = [*structs.astuple(ours), *structs.astuple(lent)]

    def bring_long(self) -> None:
        """As its thread does, which listens to the other pipe."""
        for order in self.long:
            self.orders.bring(order)

    def taken(self) -> list[int]:
        """All that there is to take."""
        return [number_of(taken) for taken in iter(self.orders.waiting, None)]

    def close(self) -> None:
        for end in self._ends:
            with suppress(OSError):  # the child's were closed when it made them its own
                end.close()
        close_windows(self.orders)
        close_permits(self.orders)


@pytest.fixture
async def given() -> AsyncIterator[Given]:
    made = Given()
    yield made
    made.close()


@pytest.mark.anyio
async def test_a_window_is_put_at_once_and_what_is_taken_back_is_of_its_end(given: Given) -> None:
    assert given.pipe.put([execute(number) for number in range(5)]) == 5
    assert [number_of(given.orders.take()), number_of(given.orders.take())] == [0, 1]
    assert given.pipe.take_back() == 3
    assert given.pipe.take_back() == 0
    assert given.pipe.put([execute(5), execute(6)]) == 2
    assert given.taken() == [5, 6]


@pytest.mark.anyio
async def test_windows_that_are_too_long_for_a_message_go_in_several(given: Given) -> None:
    orders = [execute(number, "x" * 1_000) for number in range(100)]
    assert given.pipe.put(orders) == 100
    assert given.taken() == [*range(100)]


@pytest.mark.anyio
async def test_a_long_order_in_a_window_takes_its_turn(given: Given) -> None:
    long = execute(2, "x" * 2 * wire.MESSAGE_BYTES_MAX)
    assert given.pipe.put([execute(0), execute(1), long, execute(3)]) == 4
    given.bring_long()
    taken = [given.orders.take() for _ in range(4)]
    assert [number_of(each) for each in taken] == [0, 1, 2, 3]
    assert taken[2] is not None
    assert taken[2][0] == long


@pytest.mark.anyio
async def test_where_there_is_no_room_for_all_it_is_said_for_how_many_there_is_and_they_are_the_first(
    given: Given,
) -> None:
    put = 0
    while (count := given.pipe.put([execute(put + each, "x" * 7_000) for each in range(32)])) == 32:
        put += 32
    put += count
    assert given.taken() == [*range(put)]
    assert given.pipe.put([execute(put)]) == 1, "there is room again"
    assert given.taken() == [put]


@pytest.mark.anyio
async def test_what_is_put_for_a_child_that_is_gone_can_be_taken_back(given: Given) -> None:
    assert given.pipe.put([execute(0), execute(1)]) == 2
    assert number_of(given.orders.take()) == 0
    close_windows(given.orders)
    close_permits(given.orders)
    assert given.pipe.put([execute(2)]) == 1
    assert given.pipe.take_back() == 2


@pytest.mark.anyio
async def test_no_order_is_mistaken_for_one_that_was_taken_back_long_ago(given: Given) -> None:
    """However often orders are taken back from a child that is busy, and reads none of them."""
    assert given.pipe.put([execute(0), execute(1)]) == 2
    assert number_of(given.orders.take()) == 0
    assert given.pipe.take_back() == 1
    for number in range(2, 1_000):
        assert given.pipe.put([execute(number)]) == given.pipe.take_back()
    put = [10_000][: given.pipe.put([execute(10_000)])]
    assert given.taken() == put, "or there is no room for it"
