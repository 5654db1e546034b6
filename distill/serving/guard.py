"""The guard before the web application: limits for every request, security headers, and one line of log each.

Plain ASGI. The guard reads a request's body whole, and within limits, before the application sees the request.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from distill.serving import limits

LARGE = "/search/file"  # the address whose requests hold a file

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
        self._app, self._hosts, self._requests, self._files = app, hosts, 0, 0
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        large = scope["path"] == LARGE
        self._requests += 1  # the event loop is one thread, so no lock is needed
        self._files += large
        try:
            await self._admit(scope, receive, send_with_headers)
        finally:
            self._requests -= 1
            self._files -= large
            path = scope["raw_path"].decode("ascii", "backslashreplace")  # as sent: not decoded, and without its query
            log.info("%s %s %d %.0f ms", scope["method"], path[:200], status, 1000 * (time.monotonic() - began))

    async def _admit(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        try:
            most, seconds = self._check(scope)
            body = await self._body(receive, most, seconds)
        except Refused as refused:
            await self._refuse(send, refused)
            return
        if body is None:
            return  # the client is gone
        # The application gets the body as one message, and after it the real messages: a disconnect ends its answer.
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, replay, send)

    def _check(self, scope: MutableMapping[str, Any]) -> tuple[int, float]:
        """Return how many bytes the body may have, and in how many seconds it must come."""
        large = scope["path"] == LARGE
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
        if self._requests > limits.MAX_REQUESTS:
            raise Refused(503, "too many requests are under way; try again in a moment")
        if large and self._files > limits.FILES:
            raise Refused(503, "too many files are searched by; try again in a moment")
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

    async def _refuse(self, send: Send, refused: Refused) -> None:
        body = json.dumps({"error": str(refused)}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if refused.status == 503:
            headers.append((b"retry-after", str(limits.RETRY).encode()))
        if refused.status == 408:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _too_large(most: int) -> Refused:
    return Refused(413, f"the request's body is too large; at most {most} bytes are read")
