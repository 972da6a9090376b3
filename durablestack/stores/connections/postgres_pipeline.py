"""A transaction on PostgreSQL whose statements are sent together, by libpq's pipeline.

    run, ask      a statement is put behind those before it; nothing is sent yet, unless they are long
    fetch, count  all of them are sent, and answers read up to that of this one (Flush)
    end           ... up to the last one (Sync)

psycopg's own pipeline goes to the server with each statement, and says Flush once more after the last Sync: a pooler
that has got its session back by then gives away another one, to somebody who asks for nothing.
"""

from __future__ import annotations

import itertools
import re
import secrets
import select
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ExecStatus, PipelineStatus

from ..steps import Wait, Waits, wait_here
from .transaction import Row

if TYPE_CHECKING:
    from psycopg.abc import Buffer
    from psycopg.pq.abc import PGconn, PGresult

_PREPARED_AFTER = 5
"""How often a connection sends a statement before the server is asked to keep it, with its plan."""

_PREPARED_MAX = 100
_SENT_TOGETHER_BYTES_MAX = 16 * 1024
"""What is longer is sent before it is ended, so that no commit has gone as long as it has not."""

_Key = tuple[bytes, tuple[int, ...]]
"""A statement and the types of its parameters."""

_Values = Sequence["Buffer | None"] | None
_Formats = Sequence[int] | None
_PARAMETER = re.compile(r"%\((\w+)\)s|%%")


class Keeper:
    """What the server keeps of a connection's statements: in the session, not in the transaction.

    Names are such that nobody else gives: on a session that is not ours our statements are unknown, and never others.
    """

    def __init__(self) -> None:
        self._uses: dict[_Key, int] = {}
        self._names: dict[_Key, bytes] = {}
        self._prefix = f"durablestack_{secrets.token_hex(8)}".encode()
        self._numbers = itertools.count()

    def name_of(self, key: _Key) -> bytes | None:
        return self._names.get(key)

    def should_keep(self, key: _Key) -> bool:
        if len(self._names) >= _PREPARED_MAX or len(self._uses) >= 10 * _PREPARED_MAX:
            return False
        self._uses[key] = uses = self._uses.get(key, 0) + 1
        return uses > _PREPARED_AFTER

    def keep(self, key: _Key) -> bytes:
        self._names[key] = name = b"%s_%d" % (self._prefix, next(self._numbers))
        return name

    def forget(self, key: _Key) -> None:
        """It was asked to, and something before failed."""
        self._names.pop(key, None)


class _Asked:
    """A statement that was put into the pipeline, its answer once that was read, and the rows of it once they were
    loaded."""

    __slots__ = ("keeps", "result", "rows")

    def __init__(self, keeps: _Key | None) -> None:
        self.keeps = keeps
        self.result: PGresult | None = None
        self.rows: list[Row] | None = None


class Pipeline:
    """The statements of one transaction. Also its `Transaction`.

    Args:
        connection: in autocommit, with `give_up_at`, and nobody else's meanwhile.
        keeper: None where the server is to keep no statement.
        waits: whether the thread in which statements are put may wait.

    All of its methods raise what psycopg raises. In the end, whatever it is, `leave` it.
    """

    may_notify = True

    def __init__(self, connection: Any, keeper: Keeper | None, *, waits: bool = True) -> None:
        self._connection = connection
        self._waits = waits
        self._pgconn: PGconn = connection.pgconn
        self._keeper = keeper
        self._adapters = Transformer(connection)
        self._encoding: str = connection.info.encoding
        self._pending: deque[_Asked] = deque()
        self._asked: list[_Asked] = []
        self._bytes_unsent = 0

    # --- the transaction

    def ask(self, statement: str, parameters: Mapping[str, Any]) -> Callable[[], list[Row]]:
        asked = self._put(statement, parameters)
        self._asked.append(asked)
        return lambda: self._rows(asked)

    def fetch(self, statement: str, parameters: Mapping[str, Any]) -> list[Row]:
        return self._rows(self._put(statement, parameters))

    def run(self, statement: str, parameters: Mapping[str, Any]) -> None:
        self._put(statement, parameters)

    def count(self, statement: str, parameters: Mapping[str, Any]) -> int:
        return self._read(self._put(statement, parameters)).command_tuples or 0

    def run_many(self, statement: str, parameters: Sequence[Mapping[str, Any]]) -> None:
        for each in parameters:
            self._put(statement, each)

    def copy(self, statement: str, portions: Callable[[str], Iterable[bytes]]) -> None:
        wait_here(self._synchronises())  # within a pipeline there is no way to
        cursor = self._connection.cursor()
        with cursor.copy(statement) as copy:
            for portion in portions(self._encoding):
                copy.write(portion)

    # --- its end

    def check(self) -> None:
        """Notice a line that was cut before, as long as nothing is sent."""
        while Wait(self._pgconn.socket, select.POLLIN, 0.0).here():
            self._pgconn.consume_input()

    def end(self, command: bytes = b"") -> None:
        """Send what there is, read all, and load what was asked for.

        Args:
            command: what comes last, such as a commit. The server is never asked to keep it: whoever reads along
                should see what it is.
        """
        wait_here(self.ends(command))

    def ends(self, command: bytes = b"") -> Waits[None]:
        """The same, for who waits elsewhere."""
        last = self._send(command, None, (), None) if command else None
        try:
            yield from self._synchronises()
        except psycopg.Error:
            if last is None or last.result is None:
                raise
            self._connection.close()  # it is committed, whatever became of the session after that
        for asked in self._asked:
            self._rows(asked)

    def _synchronises(self) -> Waits[None]:
        if self._pgconn.pipeline_status == PipelineStatus.OFF:
            return
        self._pgconn.pipeline_sync()
        error: psycopg.Error | None = None
        while (result := (yield from self._next_result())).status != ExecStatus.PIPELINE_SYNC:
            if not self._pending:  # the session ends instead
                raise error or self._error_of(result)
            try:
                self._take(result)
            except psycopg.Error as first:
                error = error or first
        self._pgconn.exit_pipeline_mode()
        if error is not None:
            raise error

    def leave(self) -> None:
        """However it has ended: out of the pipeline, or out of the connection."""
        if self._waits:
            with suppress(psycopg.Error):
                wait_here(self._synchronises())
        if self._pgconn.pipeline_status != PipelineStatus.OFF:
            self._connection.close()

    # --- sending

    def _put(self, statement: str, parameters: Mapping[str, Any]) -> _Asked:
        command, names = _numbered(statement, self._encoding)
        adapters = self._adapters
        values = adapters.dump_sequence([parameters[name] for name in names], [PyFormat.AUTO] * len(names))
        types, formats = adapters.types or (), adapters.formats
        asked = self._send(command, values, types, formats, self._keeper)
        self._bytes_unsent += sum([len(value) for value in values if value is not None])
        if self._waits:
            wait_here(self.sends_what_is_long())
        return asked

    def _send(
        self, command: bytes, values: _Values, types: tuple[int, ...], formats: _Formats, keeper: Keeper | None = None
    ) -> _Asked:
        if self._pgconn.pipeline_status == PipelineStatus.OFF:
            self._pgconn.enter_pipeline_mode()
        name = None if keeper is None else self._name(keeper, (command, types))
        if name is None:
            self._pgconn.send_query_params(command, values, types, formats)
        else:
            self._pgconn.send_query_prepared(name, values, formats)
        return self._sent()

    def _name(self, keeper: Keeper, key: _Key) -> bytes | None:
        """Where the server keeps the statement, or is about to."""
        if (name := keeper.name_of(key)) is not None or not keeper.should_keep(key):
            return name
        name = keeper.keep(key)
        self._pgconn.send_prepare(name, key[0], key[1])
        self._sent(keeps=key)
        return name

    def _sent(self, keeps: _Key | None = None) -> _Asked:
        asked = _Asked(keeps)
        self._pending.append(asked)
        return asked

    def sends_what_is_long(self) -> Waits[None]:
        if self._bytes_unsent > _SENT_TOGETHER_BYTES_MAX:
            yield from self._flush()

    def _flush(self) -> Waits[None]:
        while self._pgconn.flush():
            yield from self._wait(select.POLLIN | select.POLLOUT)
            self._pgconn.consume_input()  # what it says meanwhile: or neither of us could go on
        self._bytes_unsent = 0

    # --- reading

    def _rows(self, asked: _Asked) -> list[Row]:
        if asked.rows is None:
            result = self._read(asked)
            self._adapters.set_pgresult(result)
            asked.rows = self._adapters.load_rows(0, result.ntuples, tuple)
        return asked.rows

    def _read(self, asked: _Asked) -> PGresult:
        if asked.result is None:
            self._pgconn.send_flush_request()
            while asked.result is None:
                self._take(wait_here(self._next_result()))
        return asked.result

    def _take(self, result: PGresult) -> None:
        """The answer to the statement that has waited longest."""
        asked = self._pending.popleft()
        if result.status in (ExecStatus.FATAL_ERROR, ExecStatus.PIPELINE_ABORTED):
            if asked.keeps is not None and self._keeper is not None:
                self._keeper.forget(asked.keeps)
            raise self._error_of(result)
        asked.result = result

    def _error_of(self, result: PGresult) -> psycopg.Error:
        if result.status == ExecStatus.PIPELINE_ABORTED:
            return psycopg.errors.PipelineAborted("pipeline aborted")
        return psycopg.errors.error_from_result(result, self._encoding)

    def _next_result(self) -> Waits[PGresult]:
        """Without the nothing that follows each one.

        Raises:
            psycopg.OperationalError: the connection is lost, or there is no answer in time.
        """
        yield from self._flush()
        pgconn = self._pgconn
        for _ in range(2):
            while pgconn.is_busy():
                yield from self._wait(select.POLLIN)
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is not None:
                return result
        raise psycopg.OperationalError("the connection is lost")

    def _wait(self, events: int) -> Waits[None]:
        timeout_seconds = max(0.0, self._connection.give_up_at - time.monotonic())
        if not (yield Wait(self._pgconn.socket, events, timeout_seconds)):
            self._connection.give_up()


@lru_cache(maxsize=1000)
def _numbered(statement: str, encoding: str) -> tuple[bytes, tuple[str, ...]]:
    """`%(name)s` as libpq wants it, `$1`; and the names in that order."""
    numbers: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        name = match[1]
        return "%" if name is None else f"${numbers.setdefault(name, len(numbers) + 1)}"

    return _PARAMETER.sub(number, statement).encode(encoding), tuple(numbers)
