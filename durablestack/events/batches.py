"""What the hosted service is sent: events in its words, in bodies within its limits, each with a key of its own."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from uuid import UUID, uuid4

import msgspec
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from .event import Event, EventType

_HEARTBEATS = "worker_heartbeat_batch"
_RUNTIME = f"Python {sys.version_info.major}.{sys.version_info.minor}"
_RUNTIME_VERSION = platform.python_version()
_SHORTENED_TEXT_LENGTH_MAX = 200
_WORKER_NAME_IN_KEY_LENGTH_MAX = 64
_SEQUENCE_MAX = 10**12

_encode = msgspec.json.Encoder().encode


class _Payload(Struct, rename="camel", omit_defaults=True, kw_only=True):
    message: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    error_detail: str | None = None
    duration_ms: int | None = None
    retry_at_utc: datetime | None = None
    trace_id: str | None = None
    span_id: str | None = None


class _HeartbeatsPayload(Struct, rename="camel", kw_only=True):
    heartbeat_count: int
    first_heartbeat_at_utc: datetime
    last_heartbeat_at_utc: datetime


class _Posted(Struct, rename="camel", kw_only=True):
    """An event as it is posted; what does not apply is null."""

    event_type: str
    event_version: int
    occurred_at_utc: datetime
    run_id: UUID | None
    job_name: str | None
    attempt: int | None
    max_attempts: int | None
    worker_name: str
    runtime: str = _RUNTIME
    runtime_version: str = _RUNTIME_VERSION
    duration_ms: int | None
    error_type: str | None
    error_message: str | None
    payload_json: str


class _Body(Struct, rename="camel", kw_only=True):
    tenant_id: str
    idempotency_key: str
    service_name: str | UnsetType
    events: list[msgspec.Raw]


class Batch(Struct, frozen=True):
    """One post. `key` tells repetitions of it from others; the body holds it too."""

    key: str
    body: bytes
    event_count: int


class Batches:
    """Puts events into bodies of at most `events_max` events and `bytes_max` bytes.

    Keys begin with the name of the worker, and are never used again: neither here nor after a restart of the worker.
    """

    def __init__(
        self, *, tenant_id: str, worker_name: str, service_name: str | None, events_max: int, bytes_max: int
    ) -> None:
        self.too_large = 0
        self._tenant_id = tenant_id
        self._service_name: str | UnsetType = UNSET if service_name is None else service_name
        self._key_prefix = f"{worker_name[:_WORKER_NAME_IN_KEY_LENGTH_MAX]}-{uuid4().hex}"
        self._sequence = 0
        self._events_max = events_max
        self._room_bytes = bytes_max - len(self._body(self._key(_SEQUENCE_MAX), []))

    def of(self, events: Sequence[Event]) -> Iterator[Batch]:
        """Bodies for these events, in order; the heartbeats among them become one. What fits in none is counted."""
        waiting: list[bytes] = []
        used_bytes = 0
        for encoded in self._encoded(events):
            if waiting and (len(waiting) == self._events_max or used_bytes + len(encoded) > self._room_bytes):
                yield self._batch(waiting)
                waiting, used_bytes = [], 0
            waiting.append(encoded)
            used_bytes += len(encoded) + 1  # and a comma
        if waiting:
            yield self._batch(waiting)

    def _encoded(self, events: Sequence[Event]) -> Iterator[bytes]:
        heartbeats = [event for event in events if event.event_type is EventType.WORKER_HEARTBEAT]
        for event in events:
            if event.event_type is EventType.WORKER_HEARTBEAT:
                continue
            encoded = _encode(_posted(event))
            if len(encoded) > self._room_bytes:
                encoded = _encode(_posted(_shortened(event)))
            yield from self._if_it_fits(encoded)
        if heartbeats:
            yield from self._if_it_fits(_encode(_posted_heartbeats(heartbeats)))

    def _if_it_fits(self, encoded: bytes) -> Iterator[bytes]:
        if len(encoded) <= self._room_bytes:
            yield encoded
        else:
            self.too_large += 1

    def _batch(self, encoded: list[bytes]) -> Batch:
        self._sequence += 1
        key = self._key(self._sequence)
        return Batch(key, self._body(key, encoded), len(encoded))

    def _key(self, sequence: int) -> str:
        return f"{self._key_prefix}-{sequence}"

    def _body(self, key: str, encoded: list[bytes]) -> bytes:
        return _encode(
            _Body(
                tenant_id=self._tenant_id,
                idempotency_key=key,
                service_name=self._service_name,
                events=[msgspec.Raw(each) for each in encoded],
            )
        )


def _posted(event: Event) -> _Posted:
    payload = _Payload(
        message=event.message,
        error_type=event.error_type,
        error_message=event.error_message,
        error_detail=event.error_detail,
        duration_ms=event.duration_ms,
        retry_at_utc=event.retry_at,
        trace_id=event.trace_id,
        span_id=event.span_id,
    )
    return _Posted(
        event_type=event.event_type,
        event_version=event.event_version,
        occurred_at_utc=event.occurred_at,
        run_id=event.run_id,
        job_name=event.job_name,
        attempt=event.attempt,
        max_attempts=event.max_attempts,
        worker_name=event.worker_name,
        duration_ms=event.duration_ms,
        error_type=event.error_type,
        error_message=event.error_message,
        payload_json=_encode(payload).decode(),
    )


def _posted_heartbeats(heartbeats: Sequence[Event]) -> _Posted:
    first = min(event.occurred_at for event in heartbeats)
    last = max(heartbeats, key=lambda event: event.occurred_at)
    payload = _HeartbeatsPayload(
        heartbeat_count=len(heartbeats), first_heartbeat_at_utc=first, last_heartbeat_at_utc=last.occurred_at
    )
    return replace(_posted(last), event_type=_HEARTBEATS, payload_json=_encode(payload).decode())


def _shortened(event: Event) -> Event:
    return replace(event, error_detail=None, message=_cut(event.message), error_message=_cut(event.error_message))


def _cut(text: str | None) -> str | None:
    return text and text[:_SHORTENED_TEXT_LENGTH_MAX]
