"""A hosted service of our own, on loopback: keeps what is posted to it, and answers as told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

CUT = 0
"""For an answer: the connection is closed without one."""


class Post(NamedTuple):
    path: str
    headers: Message
    raw: bytes

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.raw)
        return body

    @property
    def events(self) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = self.body["events"]
        return events


class Collector:
    """Answers with the given statuses, one after the other, and then with the last of them for ever."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.posts: list[Post] = []
        self.answers = [202]
        self.answer_headers: dict[str, str] = {}
        self.answer_body = b"{}"
        self.hold = threading.Event()
        self.hold.set()

    def take(self, post: Post) -> int:
        self.posts.append(post)
        self.hold.wait(60)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for post in self.posts for event in post.events]


@contextmanager
def collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            status = made.take(Post(self.path, self.headers, self.rfile.read(length)))
            if status == CUT:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in made.answer_headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(made.answer_body)))
            self.end_headers()
            try:
                self.wfile.write(made.answer_body)
            except OSError:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.block_on_close = False
    made = Collector(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()
