"""A TCP proxy that stands between a client and a real server, and breaks what passes as a test wishes."""

import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

Fault = Literal["none", "503", "cut upload", "cut download", "slow", "reset"]
BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass
class FaultyProxy:
    """Passes connections on to `port`; the next `num_faults` of them meet `fault`."""

    port: int
    fault: Fault = "none"
    num_faults: int = 0
    num_met: int = 0
    """Faults that happened."""
    num_connections: int = 0
    """Connections that clients made."""
    methods: list[bytes] = field(default_factory=list)
    """Of all requests."""
    delay_seconds: float = 0.0
    """How long each request is on its way: the latency of a store that is far away."""
    _listener: socket.socket = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "FaultyProxy":
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.close()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def break_next(self, fault: Fault, num_faults: int) -> None:
        """Begin to break connections."""
        with self._lock:
            self.fault, self.num_faults, self.num_met = fault, num_faults, 0

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.num_connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _meets_fault(self, size: int, least: int) -> bool:
        with self._lock:
            if self.num_met >= self.num_faults or size < least:
                return False
            self.num_met += 1
            return True

    def _serve(self, client: socket.socket) -> None:
        """Each direction in a thread; a break closes both sides."""
        server = socket.create_connection(("127.0.0.1", self.port))
        threading.Thread(target=self._pass, args=(server, client, "cut download"), daemon=True).start()
        self._pass(client, server, "cut upload")

    def _pass(self, source: socket.socket, target: socket.socket, cut: Fault) -> None:
        num_passed = 0
        try:
            while piece := source.recv(1 << 16):
                num_passed += len(piece)
                upload = cut == "cut upload"
                if upload and piece.startswith((b"GET ", b"HEAD ")):
                    self.methods.append(piece.split()[0])
                if upload and self.fault == "503" and self._meets_fault(1, 0):
                    source.sendall(BUSY)
                    break
                if upload and self.fault == "reset" and self._meets_fault(1, 0):
                    source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    source.close()  # with a reset, not with an end
                    break
                if self.fault == cut and self._meets_fault(num_passed, 1 << 17):
                    break
                if upload and self.fault == "slow" and self._meets_fault(1, 0):
                    threading.Event().wait(1.0)
                if upload and self.delay_seconds:
                    threading.Event().wait(self.delay_seconds)
                target.sendall(piece)
        except OSError:
            pass
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
