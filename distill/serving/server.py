"""The HTTP server of a gallery: uvicorn with time limits for headers, stopped in order by a signal."""

import asyncio
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Sequence

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from distill.errors import ExpectedError
from distill.retrieval.gallery import Gallery
from distill.serving import limits
from distill.serving.application import application

LOOPBACK = frozenset(("localhost", "127.0.0.1", "[::1]"))
_REASON = b'{"error": "this is not a valid HTTP request, or its headers are too large"}'
_NO_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
)
_NO_HTTP %= (len(_REASON), _REASON)


class Connection(H11Protocol):
    """A connection of uvicorn that limits the time for headers and answers invalid HTTP with JSON too."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        """Start a timer when headers are awaited and stop it when they are complete, so that bytes cannot extend it."""
        awaited = self.conn.their_state is h11.IDLE  # IDLE until the last header line has arrived
        if awaited and self._late is None:
            self._late = self.loop.call_later(limits.SLOWEST, self.transport.abort)
        elif not awaited and self._late is not None:
            self._late.cancel()
            self._late = None

    def send_400_response(self, msg: str) -> None:  # called by uvicorn, which would answer in plain text
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_NO_HTTP)
        self.transport.close()


def serve(
    gallery: Gallery,
    *,
    host: str,
    port: int,
    examples: Sequence[str],
    second_look: bool,
    ready: Callable[[str], None],
) -> None:
    """Serve in the main thread until SIGTERM or Ctrl-C, answer the requests that have arrived by then, and return.

    Calls `ready` with the server's address once it accepts connections. Port 0 stands for any free one. On a loopback
    address, requests must be addressed to localhost. With `second_look`, searches take one unless they say otherwise.
    Raises `ExpectedError` if host or port cannot be used.
    """
    if not 0 <= port < 1 << 16:
        raise ExpectedError(f"--port {port}: expected 1 to 65535, or 0 for any free port")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        why = error.strerror or str(error)
        raise ExpectedError(
            f"{host} port {port}: {why}; choose another --port or --host, or stop the program that uses it"
        ) from None
    bound, port = listener.getsockname()[:2]
    config = uvicorn.Config(
        application(
            gallery,
            examples=examples,
            hosts=LOOPBACK if ipaddress.ip_address(bound).is_loopback else None,
            second_look=second_look,
        ),
        http=Connection,
        h11_max_incomplete_event_size=limits.MAX_HEADERS,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,  # the guard logs each request, without its query
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=limits.GRACE,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # no lines about starting and stopping
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn raises the signal again at the end; return instead
    ready(f"http://{f'[{bound}]' if family == socket.AF_INET6 else bound}:{port}/")
    uvicorn.Server(config).run(sockets=[listener])
