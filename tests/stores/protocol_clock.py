"""Stores whose clock stands still until somebody moves it: the time of the database becomes a parameter.

clock.seconds += 10 ──> InMemoryStore(clock)
                   └──> SqlStore(…, dialect whose {now} is :virtual_now) ──bind──> every statement
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from exam import Place

from durablestack.runs import Run
from durablestack.stores.contract import Store
from durablestack.stores.dialects.dialect import Dialect, Parameters
from durablestack.stores.memory import InMemoryStore
from durablestack.stores.sql import SqlStore

START = datetime(2030, 1, 1, tzinfo=UTC)


class VirtualClock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)


class VirtualDialect(Dialect, frozen=True, kw_only=True):
    """Words in which `:virtual_now` stands where the database would look at its own clock."""

    clock: Callable[[], datetime]

    def bind(self, parameters: Parameters) -> dict[str, Any]:
        return Dialect.bind(self, {**parameters, "virtual_now": self.clock()})


class Arena:
    """One place of one provider, used by one schedule after the other: time and tables begin anew with each."""

    def __init__(self, store: Store, clock: VirtualClock) -> None:
        self._store = store
        self._clock = clock

    def begin(self) -> tuple[Store, VirtualClock]:
        self._clock.seconds = 0.0
        match self._store:
            case InMemoryStore():
                self._store = InMemoryStore(self._clock.now)
            case SqlStore() as store:
                with store._connections.transaction() as tx:
                    for words in ("delete from {attempts}", "delete from {runs}", "delete from {workers}"):
                        tx.run(store.dialect.render("", words, store.prefix), {})
        return self._store, self._clock

    def rows(self) -> dict[UUID, Run]:
        return {run.id: run for run in self._store.list_runs(take=1000)}


@contextmanager
def open_arena(place: Place) -> Iterator[Arena]:
    """The tables of a place, migrated, and gone after the block."""
    store, clock = place.open(), VirtualClock()
    try:
        store.migrate()
        if isinstance(store, SqlStore):
            store = SqlStore(store._connections, _virtual(store.dialect, clock), store.prefix)
        yield Arena(store, clock)
    finally:
        store.close()
        place.drop_tables()


def _virtual(dialect: Dialect, clock: VirtualClock) -> VirtualDialect:
    type_of_now = {"sqlserver": "datetime2(6)"}.get(dialect.name, dialect.timestamp)
    real, virtual = dialect.now, f"cast(:virtual_now as {type_of_now})"
    if dialect.name == "sqlite":  # where an instant is text, and 'now' is one
        real, virtual = "'now'", ":virtual_now"
    words = {
        field: getattr(dialect, field).replace(real, virtual)
        for field in ("now", "now_plus_seconds", "now_minus_seconds")
    }
    words["statement_seconds"] = "0.0"  # how far claims have come is kept for real seconds, of which none passes
    return VirtualDialect(**{**msgspec.structs.asdict(dialect), **words}, clock=clock.now)
