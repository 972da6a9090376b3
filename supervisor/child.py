"""The child process: takes one run at a time from the pipe and executes it.

    main thread       orders.get() --> Began, execute the job, reply; until Stop
    listener thread   reads the pipe: Execute and Stop go into orders, Cancel sets the flag of the run, Trust is for
                      the watchdog; when the pipe closes the supervisor is gone, and with it the right to go on

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
from queue import SimpleQueue
from time import sleep  # a job may put something else in its place

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
from .usage import Meter
from .watchdog import Watchdog

_EXIT_BOOT_FAILED = 70
EXIT_ORPHANED = 71
"""Without its pipe a child cannot tell anything: the supervisor is gone, or a job closed our descriptor."""

EXIT_REENTERED = 72
"""The program that started the supervisor starts one again while a child imports it."""

_LOOK_AT_PIPE_MILLISECONDS = 500
_NO_MEMORY_PAUSE_SECONDS = 0.05

_Orders = SimpleQueue["tuple[wire.Execute, CancelFlag] | None"]


def main(
    control: socket.socket,
    stdout: Connection,
    stderr: Connection,
    stacks: Connection,
    targets: tuple[str, ...],
    settings: ChildSettings,
) -> None:
    """Where a child process begins. It does not return."""
    set_apart(stdout, stderr, stacks)
    pipe = _ControlPipe(control)
    application = _load(targets, settings, pipe)
    pipe.send(wire.Ready(list(application.jobs.names)))
    orders: _Orders = SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, orders), name="durablestack-listener", daemon=True).start()
    _serve(orders, application, pipe)
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


def _listen(pipe: _ControlPipe, orders: _Orders) -> None:
    try:
        _sort_orders(pipe, orders)
    finally:  # a child that does not listen is none, whatever a job has done to us
        os._exit(EXIT_ORPHANED)


def _sort_orders(pipe: _ControlPipe, orders: _Orders) -> None:
    flag, number = CancelFlag(), -1
    watchdog = Watchdog()
    while True:
        for order in pipe.receive():
            match order:
                case wire.Execute():
                    flag, number = CancelFlag(), order.number
                    orders.put((order, flag))
                case wire.Cancel() if order.number == number:
                    flag.set()
                case wire.Trust(until=until):
                    watchdog.trust_until(until)
                case wire.Stop():
                    orders.put(None)


def _serve(orders: _Orders, application: Application, pipe: _ControlPipe) -> None:
    while (taken := orders.get()) is not None:
        meter = Meter()
        reply = _perform_traced(*taken, application, pipe, meter)
        _flush_output()
        # What a job has changed here shall meet no other job; what it has left running the supervisor finds below us,
        # as long as we are there: the order to stop comes after that.
        left = application.residue.found
        used = wire.Used(*astuple(meter.read()))
        pipe.send(replace(reply, retires=reply.retires or bool(left), left=left, used=used))


def _perform_traced(
    order: wire.Execute, cancel_flag: CancelFlag, application: Application, pipe: _ControlPipe, meter: Meter
) -> wire.Succeeded | wire.Failed:
    execution = tracing.Execution(
        run_id=order.run_id,
        job_name=order.job_name,
        attempt=order.attempt,
        worker_name=application.settings.worker_name,
        trace_context=order.trace_context,
    )
    with tracing.executing(execution, application.settings.trace_relation) as span:
        pipe.send(wire.Began(order.number, span.trace_id, span.span_id, *meter.before))
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
