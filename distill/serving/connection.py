"""A connection of the server: limits of time for what a client sends and takes, and of their number.

uvicorn has a limit for idle connections between two requests and for the size of headers; it has none for the time in
which headers must come and answers be taken, and with too many connections it answers 503 but keeps them all.
"""

import asyncio
import resource

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from distill.errors import ExpectedError
from distill.serving import limits

OWN = 64  # descriptors of the gallery, of decoders and of Python itself
FEWEST = 16  # connections
_REASON = b'{"error": "this is not a valid HTTP request, or its headers are too large"}'
_NO_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
)
_NO_HTTP %= (len(_REASON), _REASON)


def most_connections() -> int:
    """Return how many connections may be open, after raising the limit of descriptors as far as it may be raised.

    Raises `ExpectedError` where that leaves too few.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Beside each connection there may be a file that is sent; and a burst is accepted before any of it can be refused.
    beside = OWN + limits.DOWNLOADS + limits.BACKLOG
    wanted = beside + limits.CONNECTIONS
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < beside + FEWEST:
        raise ExpectedError(
            f"this process may open {soft} files, but a server needs {beside + FEWEST}; raise the limit (ulimit -n)"
        )
    return min(limits.CONNECTIONS, soft - beside)


class Connection(H11Protocol):
    """A connection of uvicorn that is given up when its client is too slow, and answers invalid HTTP with JSON too.

    Above `most` connections, the one that has been silent for longest makes room.
    """

    most = limits.CONNECTIONS
    stopping = False  # the server is
    _heard = 0.0  # when the last bytes came
    _late: asyncio.TimerHandle | None = None  # for headers
    _stalled: asyncio.TimerHandle | None = None  # for what waits to be taken

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that whatever waits to be taken is timed
        self._heard = self.loop.time()
        self._watch()
        if self.stopping:  # it was accepted before, but uvicorn tells those alone that are here by then
            transport.abort()
        elif len(self.connections) > self.most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._late, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(limits.STALLED, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def shutdown(self) -> None:
        """Called by uvicorn when the server is stopped: let an answer that is being sent end, but not for ever."""
        super().shutdown()
        self.loop.call_later(limits.ABORT, self._hang_up)

    def send_400_response(self, msg: str) -> None:  # called by uvicorn, which would answer in plain text
        if self._idle or not self.cycle.response_started:
            self.transport.write(_NO_HTTP)
        self.transport.close()

    def _hang_up(self) -> None:
        if self._idle or self.cycle.response_started:
            self.transport.abort()

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        """Start a timer when headers are awaited and stop it when they are complete, so that bytes cannot extend it."""
        awaited = self.conn.their_state is h11.IDLE  # IDLE until the last header line has arrived
        if awaited and self._late is None:
            self._late = self.loop.call_later(limits.SLOWEST, self.transport.abort)
        elif not awaited and self._late is not None:
            self._late.cancel()
            self._late = None

    def _make_room(self) -> None:
        silent = [each for each in self.connections if isinstance(each, Connection) and each._idle]
        oldest = min(silent, key=lambda each: each._heard)  # this one, where all others are being answered
        self.connections.discard(oldest)
        oldest.transport.abort()
