"""The HTTP server of a gallery: uvicorn with time limits for headers, stopped in order by a signal."""

import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Sequence

import uvicorn

from distill.errors import ExpectedError
from distill.retrieval.gallery import Gallery
from distill.serving import limits
from distill.serving.application import application
from distill.serving.connection import Connection, most_connections

LOOPBACK = frozenset(("localhost", "127.0.0.1", "[::1]"))


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        Connection.stopping = True
        await super().shutdown(sockets)


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
    Connection.most = most_connections()
    if not 0 <= port < 1 << 16:
        raise ExpectedError(f"--port {port}: expected 1 to 65535, or 0 for any free port")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=limits.BACKLOG)
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
        backlog=limits.BACKLOG,
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
    _Server(config).run(sockets=[listener])
