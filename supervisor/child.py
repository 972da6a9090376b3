"""The child process: takes one run at a time and executes it.

    main thread       takes an order --> execute the job, reply; until there is none, and none comes
    listener thread   reads the control pipe: Cancel sets the flag of its run, Stop ends the orders, Trust is for the
                      watchdog; when the pipe closes the supervisor is gone, and with it the right to go on

A child has no connection to the database.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from time import perf_counter, sleep  # a job may put something else in their place

from msgspec import Struct
from msgspec.structs import astuple, replace

from durablestack.errors import DurableStackError, JobDefinitionError, UnknownJob
from durablestack.events import tracing
from durablestack.jobs import JobContext
from durablestack.jobs.context import CancelFlag
from durablestack.jobs.execution import Raised, Returned, execute
from durablestack.text import ERROR_DETAIL_LENGTH_MAX, ERROR_MESSAGE_LENGTH_MAX, ERROR_TYPE_LENGTH_MAX, clean

from . import wire
from .address_space import AddressSpace
from .application import Application, ChildSettings
from .isolation import out_of_the_way, set_apart
from .orders import Orders, OrdersLost, Taken
from .usage import Meter
from .watchdog import Watchdog
from .written import Written

_EXIT_BOOT_FAILED = 70
EXIT_ORPHANED = 71
"""Without its pipe a child cannot tell anything: the supervisor is gone, or a job closed our descriptor."""

EXIT_REENTERED = 72
"""The program that started the supervisor starts one again while a child imports it."""

_Reply = wire.Succeeded | wire.Failed

_NOTHING_WRITTEN = (b"", b"")
_LOOK_AT_PIPE_MILLISECONDS = 2000
_NO_MEMORY_PAUSE_SECONDS = 0.05


class Ends(Struct, frozen=True):
    """A child's ends of what leads to its supervisor; and the other ends of what it writes to."""

    control: socket.socket
    orders: socket.socket
    permits: Connection
    stdout: Connection
    stderr: Connection
    stacks: Connection
    stdout_reader: Connection
    stderr_reader: Connection


def main(ends: Ends, targets: tuple[str, ...], settings: ChildSettings) -> None:
    """Where a child process begins. It does not return."""
    set_apart(ends.stdout, ends.stderr, ends.stacks)
    pipe, orders, written = (
        _ControlPipe(ends.control),
        Orders(ends.orders, ends.permits),
        Written(ends.stdout_reader, ends.stderr_reader),
    )
    application = _load(targets, settings, pipe)
    pipe.send(wire.Ready(list(application.jobs.names), tells_beginnings=tracing.loaded()))
    threading.Thread(target=_listen, args=(pipe, orders), name="durablestack-listener", daemon=True).start()
    try:
        _Work(orders, application, pipe, written).do()
    except OrdersLost:
        os._exit(EXIT_ORPHANED)
    application.leave()
    # neither threads nor exit handlers that a job left behind may keep the process
    os._exit(0)


class _ControlPipe:
    """The child's end. Closed in whatever a job forks or executes."""

    def __init__(self, control: socket.socket) -> None:
        fd = out_of_the_way(control.fileno())
        control.close()
        self._socket = socket.socket(fileno=fd)
        self._frames = wire.FrameReader(wire.ORDER_BYTES_MAX)
        os.register_at_fork(after_in_child=self._socket.close)

    def send(self, reply: wire.Reply) -> None:
        try:
            self._socket.sendall(wire.frame(reply))
        except OSError:
            os._exit(EXIT_ORPHANED)

    def receive(self) -> list[wire.Order]:
        received = self._receive_some()
        if not received:
            os._exit(EXIT_ORPHANED)
        try:
            return [wire.decode_order(body) for body in self._frames.feed(received)]
        except Exception:  # whatever wrote into our descriptor, it was not the supervisor
            os._exit(EXIT_ORPHANED)

    def _receive_some(self) -> bytes:
        while True:
            try:
                self._wait_readable()
                return self._socket.recv(65536)
            except OSError:
                return b""
            except MemoryError:  # the run has taken all there is; once it has ended there is more
                sleep(_NO_MEMORY_PAUSE_SECONDS)

    def _wait_readable(self) -> None:
        """Look again and again: a descriptor that a job closes under a waiting `recv` would never be missed."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while not poll.poll(_LOOK_AT_PIPE_MILLISECONDS):
            continue


def _load(targets: tuple[str, ...], settings: ChildSettings, pipe: _ControlPipe) -> Application:
    try:
        return Application(targets, settings, asyncio.Runner())
    except BaseException as error:  # whatever an application does when it is imported, it is told
        detail = "" if isinstance(error, DurableStackError) else traceback.format_exc()
        pipe.send(
            wire.BootFailed(
                clean(type(error).__qualname__, ERROR_TYPE_LENGTH_MAX),
                clean(str(error), ERROR_MESSAGE_LENGTH_MAX),
                clean(detail, ERROR_DETAIL_LENGTH_MAX),
                final=isinstance(error, JobDefinitionError),
            )
        )
        os._exit(_EXIT_BOOT_FAILED)


def _listen(pipe: _ControlPipe, orders: Orders) -> None:
    try:
        _sort_orders(pipe, orders)
    finally:  # a child that does not listen is none, whatever a job has done to us
        os._exit(EXIT_ORPHANED)


def _sort_orders(pipe: _ControlPipe, orders: Orders) -> None:
    watchdog = Watchdog()
    while True:
        for order in pipe.receive():
            match order:
                case wire.Execute():
                    orders.bring(order)
                case wire.Cancel():
                    orders.cancel(order.number)
                case wire.Trust(until=until):
                    watchdog.trust_until(until)
                case wire.Stop():
                    orders.stop()


class _Work:
    """Executes order by order. The reply to one is sent before the next one is taken: it counts whatever comes then."""

    def __init__(self, orders: Orders, application: Application, pipe: _ControlPipe, written: Written) -> None:
        self._orders = orders
        self._application = application
        self._pipe = pipe
        self._written = written
        self._meter = Meter()

    def do(self) -> None:
        """Until it is said that no order comes any more, or this process is fit for none."""
        while (taken := self._orders.take()) is not None:
            self._written.take()  # what was written between two runs belongs to neither
            if not self._do_in_a_row(taken):
                self._orders.wait_stopped()
                return

    def _do_in_a_row(self, taken: Taken) -> bool:
        """This order, and those that wait behind it; return whether the next run may meet this process."""
        following: Taken | None = taken
        while following is not None:
            order, cancel_flag = following
            some_follow = self._orders.some_follow
            reply = self._execute(order, cancel_flag, closely=not some_follow)
            self._pipe.send(reply)
            if reply.retires:
                return False
            following = self._orders.waiting()
        if not some_follow:
            return True
        left = self._application.residue.found  # not looked at closely: what seemed to follow was taken back
        if left:
            self._pipe.send(wire.Spoilt(left, order.run_id, order.job_name))
        return not left

    def _execute(self, order: wire.Execute, cancel_flag: CancelFlag, *, closely: bool) -> _Reply:
        """`closely`: there is time to look at all that the run may have left."""
        began_at = perf_counter()
        self._meter.begin(began_at)
        result = self._perform_traced(order, cancel_flag)
        ended_at = perf_counter()
        _flush()
        # What a job has changed here shall meet no other job; what it has left running the supervisor finds below us,
        # as long as we are there: the order to stop comes after that.
        residue = self._application.residue
        closely = closely or isinstance(result, Raised)
        left = residue.found if closely else residue.found_between(ended_at)
        stdout, stderr = self._written.take() if order.short else _NOTHING_WRITTEN
        retires = result.process_is_spent or bool(left)
        seconds = ended_at - began_at
        if isinstance(result, Returned) and not (retires or result.noticed_cancel):  # nobody asks what it has used
            return wire.Succeeded(order.number, seconds=seconds, stdout=stdout, stderr=stderr)
        return replace(
            _reply(order.number, result),
            retires=retires,
            left=left,
            used=wire.Used(*astuple(self._meter.read())),
            seconds=seconds,
            stdout=stdout,
            stderr=stderr,
            boottime=self._meter.since if left else 0.0,
        )

    def _perform_traced(self, order: wire.Execute, cancel_flag: CancelFlag) -> Returned | Raised:
        meter = self._meter
        if not tracing.loaded():
            return self._perform(order, cancel_flag)
        execution = tracing.Execution(
            run_id=order.run_id,
            job_name=order.job_name,
            attempt=order.attempt,
            worker_name=self._application.settings.worker_name,
            trace_context=order.trace_context,
        )
        with tracing.executing(execution, self._application.settings.trace_relation) as span:
            self._pipe.send(wire.Began(order.number, span.trace_id, span.span_id, *meter.cpu_before, meter.since))
            result = self._perform(order, cancel_flag)
            if isinstance(result, Raised):
                span.failed(result.error_type, result.error_message)
        return result

    def _perform(self, order: wire.Execute, cancel_flag: CancelFlag) -> Returned | Raised:
        application = self._application
        try:
            registration = application.jobs.find(order.job_name)
        except UnknownJob as error:
            return _raised("UnknownJob", str(error))
        context = JobContext(
            run_id=order.run_id,
            job_name=order.job_name,
            attempt=order.attempt,
            max_attempts=order.max_attempts,
            scheduled_for=order.scheduled_for,
            _cancel_flag=cancel_flag,
        )
        if application.container is not None:
            context.services = application.container.scope(context)
        if order.address_space_limit is None:
            return execute(registration, order.payload, context, cancel_flag, application.runner)
        address_space = AddressSpace(order.address_space_limit)
        try:
            with address_space:
                result = execute(registration, order.payload, context, cancel_flag, application.runner)
        except MemoryError:  # not even its error could be told within the limit
            limit = f"the limit of {order.address_space_limit} bytes"
            return _raised("MemoryError", f"there was none left under {limit}", process_is_spent=True)
        return replace(result, process_is_spent=True) if address_space.was_near else result


def _reply(number: int, result: Returned | Raised) -> _Reply:
    if isinstance(result, Returned):
        return wire.Succeeded(number, result.noticed_cancel)
    return wire.Failed(
        number,
        result.error_type,
        result.error_message,
        result.error_detail,
        result.retryable,
        result.retry_after_seconds,
    )


def _raised(error_type: str, error_message: str, *, process_is_spent: bool = False) -> Raised:
    return Raised(
        error_type=error_type,
        error_message=error_message,
        error_detail="",
        retryable=True,
        retry_after_seconds=None,
        process_is_spent=process_is_spent,
    )


def _flush() -> None:
    try:
        try:
            sys.stdout.flush()
        finally:
            sys.stderr.flush()
    except BaseException:  # a job closed one of them, or put something of its own there, or nothing
        return
