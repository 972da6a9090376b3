"""The child process: takes one run at a time and executes it.

    main thread       takes an order --> Began, execute the job, reply; until there is none, and none comes
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
from contextlib import suppress
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
from .leases import boottime
from .orders import Orders, OrdersLost
from .usage import Meter
from .watchdog import Watchdog
from .written import Written

_EXIT_BOOT_FAILED = 70
EXIT_ORPHANED = 71
"""Without its pipe a child cannot tell anything: the supervisor is gone, or a job closed our descriptor."""

EXIT_REENTERED = 72
"""The program that started the supervisor starts one again while a child imports it."""

_Reply = wire.Succeeded | wire.Failed

_LOOK_AT_PIPE_MILLISECONDS = 500
_NO_MEMORY_PAUSE_SECONDS = 0.05


class Ends(Struct, frozen=True):
    """A child's ends of what leads to its supervisor; and the other ends of what it writes to."""

    control: socket.socket
    orders: socket.socket
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
        Orders(ends.orders),
        Written(ends.stdout_reader, ends.stderr_reader),
    )
    application = _load(targets, settings, pipe)
    pipe.send(wire.Ready(list(application.jobs.names)))
    threading.Thread(target=_listen, args=(pipe, orders), name="durablestack-listener", daemon=True).start()
    try:
        _serve(orders, application, pipe, written)
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


def _serve(orders: Orders, application: Application, pipe: _ControlPipe, written: Written) -> None:
    """Execute order by order. What is to be said of one is said together with the beginning of the next, if there is
    one already."""
    while (taken := orders.take()) is not None:
        unsaid: _Reply | None = None
        while taken is not None:
            unsaid = _execute(*taken, application, pipe, written, unsaid)
            if unsaid.retires:
                pipe.send(unsaid)
                orders.wait_stopped()
                return
            try:
                taken = orders.waiting()
            except OrdersLost:
                pipe.send(unsaid)
                raise
        if unsaid is not None:
            pipe.send(unsaid)


def _execute(
    order: wire.Execute,
    cancel_flag: CancelFlag,
    application: Application,
    pipe: _ControlPipe,
    written: Written,
    unsaid: _Reply | None,
) -> _Reply:
    if order.tells_output:
        written.take()  # what was written between two runs belongs to neither
    meter = Meter()
    began_at = perf_counter()
    reply = _perform_traced(order, cancel_flag, application, pipe, meter, unsaid)
    seconds = perf_counter() - began_at
    _flush_output()
    # What a job has changed here shall meet no other job; what it has left running the supervisor finds below us,
    # as long as we are there: the order to stop comes after that.
    left = application.residue.found
    stdout, stderr = written.take() if order.tells_output else (b"", b"")
    if isinstance(reply, wire.Succeeded) and not reply.noticed_cancel:  # nobody asks what a success has used
        retires = reply.retires or bool(left)
        return wire.Succeeded(order.number, False, retires, left, wire.UNKNOWN, seconds, stdout, stderr)
    used = wire.Used(*astuple(meter.read()))
    retires = reply.retires or bool(left)
    return replace(reply, retires=retires, left=left, used=used, seconds=seconds, stdout=stdout, stderr=stderr)


def _perform_traced(
    order: wire.Execute,
    cancel_flag: CancelFlag,
    application: Application,
    pipe: _ControlPipe,
    meter: Meter,
    unsaid: _Reply | None,
) -> _Reply:
    execution = tracing.Execution(
        run_id=order.run_id,
        job_name=order.job_name,
        attempt=order.attempt,
        worker_name=application.settings.worker_name,
        trace_context=order.trace_context,
    )
    with tracing.executing(execution, application.settings.trace_relation) as span:
        began = wire.Began(order.number, span.trace_id, span.span_id, *meter.before, boottime())
        pipe.send(began if unsaid is None else replace(unsaid, next=began))
        reply = _perform(order, cancel_flag, application)
        if isinstance(reply, wire.Failed):
            span.failed(reply.error_type, reply.error_message)
    return reply


def _perform(order: wire.Execute, cancel_flag: CancelFlag, application: Application) -> wire.Succeeded | wire.Failed:
    try:
        registration = application.jobs.find(order.job_name)
    except UnknownJob as error:
        return wire.Failed(order.number, "UnknownJob", str(error), "")
    context = JobContext(
        run_id=order.run_id,
        job_name=order.job_name,
        attempt=order.attempt,
        max_attempts=order.max_attempts,
        scheduled_for=order.scheduled_for,
        cancel_flag=cancel_flag,
        container=application.container,
    )
    address_space = AddressSpace(order.address_space_limit)
    try:
        with address_space:
            result = execute(registration, order.payload, context, cancel_flag, application.runner)
    except MemoryError:  # not even its error could be told within the limit
        result = Raised(
            error_type="MemoryError",
            error_message=f"there was none left under the limit of {order.address_space_limit} bytes",
            error_detail="",
            retryable=True,
            retry_after_seconds=None,
            process_is_spent=True,
        )
    is_spent = result.process_is_spent or address_space.was_near
    if isinstance(result, Returned):
        return wire.Succeeded(order.number, result.noticed_cancel, retires=is_spent)
    return wire.Failed(
        order.number,
        result.error_type,
        result.error_message,
        result.error_detail,
        result.retryable,
        result.retry_after_seconds,
        retires=is_spent,
    )


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(BaseException):  # a job closed it, or put something of its own there
            stream.flush()
