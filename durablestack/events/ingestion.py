"""Posts events to the hosted service, in batches, and again if it may help.

It lives in its thread, waits there, and has no say in anything else. It speaks https, follows no redirect and asks
no proxy, so that the credentials go to the configured host and nowhere else.
"""

from __future__ import annotations

import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import quote, urlsplit
from uuid import uuid4

from durablestack.errors import OptionsError
from durablestack.options import EventingOptions

from .batches import Batch, Batches
from .delivery import Seldom
from .event import Event

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 10.0
_POST_WITHIN_SECONDS = 30.0
_BACKOFF_SECONDS_FIRST = 0.5
_BACKOFF_SECONDS_MAX = 30.0
_BACKOFF_SECONDS_CLOSING = 0.2
_ANSWER_BYTES_MAX = 65_536
_WORTH_ANOTHER_TRY = frozenset({408, 409, 425, 429})


class IngestionSink:
    """An EventSink.

    Args:
        service_name: what the application is called there, if it has a name.
        closing: once it is set, pauses between tries are short.

    Raises:
        OptionsError: a credential cannot be sent.
    """

    def __init__(
        self, options: EventingOptions, *, worker_name: str, service_name: str | None, closing: threading.Event
    ) -> None:
        assert options.tenant_id is not None
        assert options.client_secret is not None
        self._tenant_id = _sendable("tenant_id", options.tenant_id)
        self._client_secret = options.client_secret
        _sendable("client_secret", options.client_secret.reveal())
        url = urlsplit(options.ingestion_api_base_url)
        self._encrypted, self._host, self._port = url.scheme == "https", url.hostname or "", url.port
        self._path = quote(url.path.rstrip("/") + options.ingestion_path, safe="/%?=&:@,;~!$'()*+")
        self._tries_max = 1 + options.ingestion_max_retry_attempts
        self._closing = closing
        self._batches = Batches(
            tenant_id=self._tenant_id,
            worker_name=worker_name,
            service_name=service_name,
            events_max=options.ingestion_max_batch_size,
            bytes_max=options.ingestion_max_request_body_bytes,
        )
        self._connection: HTTPConnection | None = None  # open during one `emit` at most
        self._tls: ssl.SSLContext | None = None
        self._losses = Seldom()

    def emit(self, events: Sequence[Event]) -> None:
        try:
            for batch in self._batches.of(events):
                self._deliver(batch)
        finally:
            self._disconnect()
            if too_large := self._batches.too_large:
                self._batches.too_large = 0
                self._lost(too_large, "they are larger than eventing.ingestion_max_request_body_bytes allows")

    def close(self) -> None:
        if self._losses.untold:
            log.warning("%d more events were not taken by %s", self._losses.untold, self._host)

    def _deliver(self, batch: Batch) -> None:
        """Post until it is taken, or refused, or tried often enough. It is the same post each time."""
        why = ""
        for tries in range(self._tries_max):
            if tries:
                self._pause(tries)
            try:
                status = self._post(batch.body)
            except (OSError, HTTPException) as error:
                self._disconnect()
                why = f"{type(error).__name__}: {str(error)!r}"
                continue
            if 200 <= status < 300:
                return
            why = f"it answered {status}"
            if status not in _WORTH_ANOTHER_TRY and status < 500:
                break
        self._lost(batch.event_count, why)

    def _post(self, body: bytes) -> int:
        """Post once; return the status of the answer."""
        if self._connection is None:
            self._connection = self._connect()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "durablestack-python",
            "X-DurableStack-TenantId": self._tenant_id,
            "X-DurableStack-ClientSecret": self._client_secret.reveal(),
            "X-Correlation-Id": str(uuid4()),
        }
        connection = self._connection
        too_long = threading.Timer(_POST_WITHIN_SECONDS, _shut, [connection])
        too_long.daemon = True
        too_long.start()
        try:
            connection.request("POST", self._path, body, headers)
            answer = connection.getresponse()
            answer.read(_ANSWER_BYTES_MAX)
        finally:
            too_long.cancel()
        if not answer.isclosed():  # it goes on and on
            self._disconnect()
        if answer.status < 200:
            raise HTTPException(f"an answer of status {answer.status}, and no other")
        return answer.status

    def _connect(self) -> HTTPConnection:
        if not self._encrypted:
            return HTTPConnection(self._host, self._port, timeout=_TIMEOUT_SECONDS)
        self._tls = self._tls or ssl.create_default_context()
        return HTTPSConnection(self._host, self._port, timeout=_TIMEOUT_SECONDS, context=self._tls)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _pause(self, tries: int) -> None:
        seconds = min(_BACKOFF_SECONDS_FIRST * 2.0 ** (tries - 1), _BACKOFF_SECONDS_MAX) * random.uniform(0.8, 1.2)
        if self._closing.wait(seconds):
            time.sleep(min(seconds, _BACKOFF_SECONDS_CLOSING))

    def _lost(self, count: int, why: str) -> None:
        if told := self._losses.count(count):
            log.warning("%d events were not taken by %s, and are dropped: %s", told, self._host, why)


def _shut(connection: HTTPConnection) -> None:
    """Whoever reads from it reads an end."""
    sock = connection.sock
    if sock is not None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _sendable(name: str, credential: str) -> str:
    if not (credential.isascii() and credential.isprintable() and credential == credential.strip()):
        raise OptionsError(f"eventing.{name} holds characters that cannot be sent: spaces at an end, or beyond ASCII")
    return credential
