"""The guard before the web application: limits for every request, security headers, and one line of log each.

Plain ASGI. The guard reads a request's body whole, and within limits, before the application sees the request, and ends
the work on an answer whose client is gone.
"""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from distill.serving import limits

LARGE = "/search/file"  # the address whose requests hold a file
GONE = 499  # in the log, of a client that left before its answer began; as nginx has it
SENT = ("/videos/", "/posters/")  # the addresses whose answers are files
CROWDS = {
    "search": "too many requests are under way",
    "download": "too many files are being sent",
    "file": "too many files are searched by",
}

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class Refused(Exception):
    """The refusal of a request: its status, and the reason that the client is told."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Guard:
    """An application behind the limits of distill/serving/limits.py, whose answers all get `headers`.

    Requests must be addressed to one of `hosts` (None: any), which keeps out a page of another site that has its name
    point to this machine (DNS rebinding).
    """

    def __init__(self, app: App, *, headers: dict[str, str], hosts: frozenset[str] | None):
        self._app, self._hosts = app, hosts
        self._under_way: Counter[str] = Counter()  # by kind; changed by one thread alone, so it needs no lock
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, kind = time.monotonic(), 0, _kind(scope["path"])
        under_way = True

        async def send_with_headers(message: Message) -> None:
            nonlocal status, under_way
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *self._headers]
            elif not message.get("more_body", False):
                under_way = False  # before it is sent: the client's next request may come with the same breath
                self._under_way[kind] -= 1
            await send(message)

        self._under_way[kind] += 1
        try:
            await self._admit(scope, receive, send_with_headers)
        finally:
            self._under_way[kind] -= under_way
            path = scope["raw_path"].decode("ascii", "backslashreplace")  # as sent: not decoded, and without its query
            took = 1000 * (time.monotonic() - began)
            log.info("%s %s %d %.0f ms", scope["method"], path[:200], status or GONE, took)

    async def _admit(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        try:
            most, seconds = self._check(scope)
            body = await self._body(receive, most, seconds)
        except Refused as refused:
            await _refuse(receive, send, refused)
            return
        if body is not None:  # else the client is gone
            await self._answer(scope, body, receive, send)

    async def _answer(self, scope: MutableMapping[str, Any], body: bytes, receive: Receive, send: Send) -> None:
        """Let the application answer, until it has or its client is gone."""
        waiting = [{"type": "http.request", "body": body, "more_body": False}]
        own, complete = asyncio.current_task(), False
        assert own is not None, "a server gives every request a task"
        gone = asyncio.ensure_future(receive())  # after the body, only the end can come

        def left(_: object) -> None:
            if not (complete or gone.cancelled()):
                own.cancel()

        async def replay() -> Message:
            return waiting.pop() if waiting else await asyncio.shield(gone)

        async def watched_send(message: Message) -> None:
            nonlocal complete
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        gone.add_done_callback(left)
        try:
            await self._app(scope, replay, watched_send)
        except asyncio.CancelledError:
            if not gone.done() or complete or own.uncancel():
                raise  # the server itself ends the request
        finally:
            gone.remove_done_callback(left)
            gone.cancel()

    def _check(self, scope: MutableMapping[str, Any]) -> tuple[int, float]:
        """Return how many bytes the body may have, and in how many seconds it must come."""
        kind = _kind(scope["path"])
        large = kind == "file"
        most, seconds = (limits.MAX_FILE, limits.FILE_SLOWEST) if large else (limits.MAX_BODY, limits.SLOWEST)
        size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(n) + len(v) for n, v in scope["headers"])
        if size > limits.MAX_HEADERS:
            raise Refused(431, f"address and headers are too large; at most {limits.MAX_HEADERS} bytes are read")
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host  # "[::1]:8000", "localhost"
        if self._hosts is not None and name not in self._hosts:
            raise Refused(
                421, "this server answers to localhost only; to reach it from elsewhere, start it with --host"
            )
        at_once = {"search": limits.MAX_REQUESTS, "download": limits.DOWNLOADS, "file": limits.FILES}
        if self._under_way[kind] > at_once[kind]:
            raise Refused(503, f"{CROWDS[kind]}; try again in a moment")
        length = headers.get(b"content-length", b"0")
        if len(length) > 15 or int(length) > most:  # h11 accepts digits only
            raise _too_large(most)
        return most, seconds

    async def _body(self, receive: Receive, most: int, seconds: float) -> bytes | None:
        """Return the whole body; None if the client has gone."""
        body = bytearray()
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:  # a chunked body states no length beforehand
                        raise _too_large(most)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise Refused(408, f"the request's body did not come within {seconds:g} seconds") from None


def _kind(path: str) -> str:
    """Return which crowd a request joins."""
    if path == LARGE:
        return "file"
    return "download" if path.startswith(SENT) else "search"


async def _refuse(receive: Receive, send: Send, refused: Refused) -> None:
    """Answer with the reason, and close: what comes of the body would be read without limits else."""
    body = json.dumps({"error": str(refused)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))
    if refused.status == 503:
        headers.append((b"retry-after", str(limits.RETRY).encode()))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await _linger(receive)
    await send({"type": "http.response.body", "body": b""})


async def _linger(receive: Receive) -> None:
    """Read on for a moment: where a connection is closed before all is read, the client may never see the answer."""
    heard = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(limits.LINGER):
            while heard < limits.LINGERING:
                message = await receive()
                heard += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def _too_large(most: int) -> Refused:
    return Refused(413, f"the request's body is too large; at most {most} bytes are read")
