"""A real HTTP server on loopback that serves pictures and misbehaves on request: the paths say how."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What a test sees of the server."""

    url: str
    asked: Counter[str] = field(default_factory=Counter)
    """Requests by path."""
    busy: int = 0
    busiest: int = 0
    """Most requests that were under way at once."""


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[Site]:
    """Serve `files` by name; `once/` before a name fails the first time, `cut/`, `slow/`, `noai/`, ... always."""
    site, lock = Site(""), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with lock:
                site.asked[self.path] += 1
                first = site.asked[self.path] == 1
                site.busy += 1
                site.busiest = max(site.busiest, site.busy)
            try:
                self.answer(*self.path.removeprefix("/").rpartition("/")[::2], first)
            finally:
                with lock:
                    site.busy -= 1

        def answer(self, how: str, name: str, first: bool) -> None:
            data = files.get(name)
            if data is None:
                return self.send(404, b"<html>")
            if how == "once" and first:
                return self.send(503, b"", {"Retry-After": "0"})
            if how == "cut" or (how == "cut-once" and first):
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return None
            if how == "slow":
                time.sleep(3)
            if how == "pause":
                time.sleep(0.05)
            if how == "moved":
                return self.send(302, b"", {"Location": f"/{name}"})
            headers = {
                "noai": {"X-Robots-Tag": "noai, nofollow"},
                "others": {"X-Robots-Tag": "otherbot: noai"},
                "us": {"X-Robots-Tag": "tessera-data: noimageai"},
                "tdm": {"tdm-reservation": "1"},
            }
            return self.send(200, data, headers.get(how, {}))

        def send(self, status: int, data: bytes, headers: Mapping[str, str] = {}) -> None:  # noqa: B006
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *args: None  # type: ignore[method-assign] # clients that hang up are part of the tests
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
