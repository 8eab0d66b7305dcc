"""Numbers for Prometheus over HTTP, on loopback unless told otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import TracebackType
from urllib.parse import urlsplit

from edgeloc.errors import ConfigError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_CLIENT_TIMEOUT_S = 2.0
"""One client is served at a time, so that a slow one must not keep its place."""


class MetricsServer:
    """Answers ``GET /metrics`` from a daemon thread of this process.

    Not for a process that must keep deadlines: rendering the text takes the
    interpreter lock for a millisecond or two.

    Parameters
    ----------
    address : str
        ``PORT`` on 127.0.0.1, or ``HOST:PORT``; port 0 takes any that is free.
    text : callable
        Returns the numbers; called in the thread.

    Raises
    ------
    ConfigError
        When the address is wrong or taken.
    """

    def __init__(self, address: str, text: Callable[[], str]) -> None:
        host, port = parse_address(address)
        handler = type("_Handler", (_Handler,), {"render": staticmethod(text)})
        try:
            self._server = _Server((host, port), handler)
        except (OSError, UnicodeError) as exc:
            reason = getattr(exc, "strerror", None) or exc
            raise ConfigError(
                f"--metrics {address}: cannot be listened on ({reason})"
            ) from exc
        bound_host, bound_port = self._server.server_address[:2]
        self.url = f"http://{bound_host!s}:{bound_port}/metrics"
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.2},
            name="edgeloc-metrics",
            daemon=True,
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening; a second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of ``PORT`` or ``HOST:PORT``.

    Parameters
    ----------
    address : str
        An IPv4 address or a name for HOST.

    Raises
    ------
    ConfigError
        When it is neither.
    """
    host, _, port = address.rpartition(":")
    # The range of ports is 16 bits; int() also takes signs, spaces and underscores.
    if not (port.isascii() and port.isdecimal() and int(port) < 65536) or ":" in host:
        raise ConfigError(f"--metrics {address}: expected PORT or HOST:PORT")
    return host or "127.0.0.1", int(port)


class _Server(HTTPServer):
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet about a client that left in the middle."""
        del request, client_address


class _Handler(BaseHTTPRequestHandler):
    timeout = _CLIENT_TIMEOUT_S
    server_version = "edgeloc"
    sys_version = ""

    @staticmethod
    def render() -> str:
        """Return the numbers; replaced by each server."""
        return ""

    def do_GET(self) -> None:
        """Answer with the numbers."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer with the headers alone."""
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        if urlsplit(self.path).path != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND, explain="the numbers are at /metrics")
            return
        body = self.render().encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing: a scrape every few seconds is no news."""
        del format, args
