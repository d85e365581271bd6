"""The HTTP door: `/metrics`, `/healthz` and `/readyz`, and nothing else.

Requests come from monitoring systems, so the door is small: GET and HEAD, no bodies, one request a
connection, a bounded number of connections, and a time limit for a whole request that a slow sender
cannot stretch. It runs on ordinary cores and only reads.
"""

from __future__ import annotations

import http.server
import io
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.openmetrics import exposition as openmetrics

from pintok_server.control.config import HttpAddress
from pintok_server.control.metrics import Collector, Source
from pintok_server.control.statistics import HEARTBEAT_AGE_MAX_S, Snapshot
from pintok_server.errors import ConfigError

CONNECTIONS_MAX = 32
REQUEST_TIMEOUT_S = 5.0

Answer = tuple[int, str, bytes]
_JSON = "application/json; charset=utf-8"


class _DeadlineReader(io.RawIOBase):
    """Reads from a socket until a moment, however the bytes trickle in."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the request took too long")
        self._connection.settimeout(left_s)
        return self._connection.recv_into(buffer)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    server_version = "pintok"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        deadline = time.monotonic() + REQUEST_TIMEOUT_S
        self.rfile = io.BufferedReader(_DeadlineReader(self.connection, deadline))

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        status, content_type, body = self.server.health.answer(path, self.headers.get("Accept", ""))
        self.connection.settimeout(REQUEST_TIMEOUT_S)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Requests are not logged: there is one every few seconds for ever."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, family: socket.AddressFamily, address: Any, health: Health) -> None:
        self.address_family = family
        self.health = health
        self._room = threading.BoundedSemaphore(CONNECTIONS_MAX)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # The base class looks up its own name here, which may take seconds without a name server.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away or was too slow is its own affair."""


class Health:
    """What the door answers, as functions of the statistics."""

    def __init__(self, source: Source, *, draining: Callable[[], bool]) -> None:
        self._source = source
        self._draining = draining
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(Collector(source))

    def answer(self, path: str, accept: str) -> Answer:
        """Status, content type and body for a path."""
        if path == "/metrics":
            if "application/openmetrics-text" in accept:
                body = openmetrics.generate_latest(self._registry)  # type: ignore[no-untyped-call]
                return 200, openmetrics.CONTENT_TYPE_LATEST, body
            return 200, exposition.CONTENT_TYPE_LATEST, exposition.generate_latest(self._registry)
        if path == "/healthz":
            return self._verdict(self.unhealthy(self._source.snapshot()))
        if path == "/readyz":
            return self._verdict(self.unready(self._source.snapshot()))
        return 404, _JSON, json.dumps({"error": "there is /metrics, /healthz and /readyz"}).encode()

    def unhealthy(self, snapshot: Snapshot | None) -> str | None:
        """Why the server is not alive, or None."""
        if snapshot is None:
            return "no datapath process runs"
        if snapshot.heartbeat_age_s > HEARTBEAT_AGE_MAX_S:
            return f"the datapath last came round {snapshot.heartbeat_age_s:.1f} s ago"
        return None

    def unready(self, snapshot: Snapshot | None) -> str | None:
        """Why the server should not be sent requests, or None."""
        reason = self.unhealthy(snapshot)
        if reason is not None or snapshot is None:
            return reason
        if self._draining():
            return "the server is being stopped"
        if snapshot.state != "ready":
            return f"the datapath is {snapshot.state}"
        if not snapshot.models:
            return "no model is loaded"
        return None

    @staticmethod
    def _verdict(reason: str | None) -> Answer:
        document = {"status": "ok"} if reason is None else {"status": "fail", "reason": reason}
        return 200 if reason is None else 503, _JSON, json.dumps(document).encode() + b"\n"


class HttpServer:
    """Serves the door in a thread of its own until closed."""

    def __init__(self, address: HttpAddress, health: Health) -> None:
        """Listen on `address`. Raises ConfigError when that is not possible."""
        try:
            info = socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._server = _Server(info[0], info[4], health)
        except OSError as error:
            raise ConfigError(
                f"cannot serve HTTP on {address}: {error.strerror or error}; "
                "choose another address with --http, or none with --no-http"
            ) from None
        self.address = HttpAddress(address.host, self._server.server_port)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.2},
            name="http",
            daemon=True,
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening and wait for the thread; requests being answered may be cut off."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
