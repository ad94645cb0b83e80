"""A reverse proxy with TLS, as a team puts one in front of its tracking server; its certificate is its own."""

import contextlib
import http.client
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

OF_ONE_CONNECTION = ("connection", "transfer-encoding", "content-length", "date", "server")


@dataclass(frozen=True)
class TlsProxy:
    """A running proxy."""

    uri: str
    """Its address."""
    certificate: Path
    """PEM file that a client has to trust."""


@contextlib.contextmanager
def tls_proxy(folder: Path, port: int) -> Iterator[TlsProxy]:
    """https://localhost:... in front of http://127.0.0.1:`port`."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *words.split(), *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(port))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield TlsProxy(f"https://localhost:{server.server_port}", certificate)
    finally:
        server.shutdown()
        server.server_close()


def _handler(port: int) -> type[BaseHTTPRequestHandler]:
    """Passes each request on, with its headers, and the answer back."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as inside:
                inside.request(self.command, self.path, body, dict(self.headers))
                answer = inside.getresponse()
                data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in OF_ONE_CONNECTION:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815

        def log_message(self, *words: object) -> None:
            """Says nothing."""

    return Handler
