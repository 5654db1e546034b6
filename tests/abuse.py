"""Clients that do not behave, against a running server of a gallery, until this process is ended.

    python tests/abuse.py "slow headers" 127.0.0.1 8000 videos/1

`ABUSES` is the table of them. Each function is called again some time after it has ended or the server has hung up.
"""

import asyncio
import random
import resource
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

BIG = 1 << 30  # bytes that are announced and never come
SEARCH = b'{"query": "a red square", "k": 12}'


@dataclass(frozen=True)
class Target:
    """A server, and the address of one of its videos."""

    host: str
    port: int
    video: str

    @asynccontextmanager
    async def connected(
        self, receive: int | None = None
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection, with so small a buffer for what the server sends if `receive` says so."""
        connection = socket.socket()
        connection.setblocking(False)
        if receive is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        try:
            await asyncio.get_running_loop().sock_connect(connection, (self.host, self.port))
        except BaseException:
            connection.close()
            raise
        reader, writer = await asyncio.open_connection(sock=connection, limit=1024)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


Abuse = Callable[[Target], Awaitable[None]]


def request(path: str, body: bytes | int = b"", method: str = "GET", host: str = "localhost", more: str = "") -> bytes:
    """Return a request; a number in place of the body announces so many bytes and sends none."""
    length, content = (body, b"") if isinstance(body, int) else (len(body), body)
    head = f"{method} /{path} HTTP/1.1\r\nHost: {host}\r\n{more}"
    if length:
        head += f"Content-Length: {length}\r\nContent-Type: application/json\r\n"
    return head.encode() + b"\r\n" + content


async def slow_headers(target: Target) -> None:
    """A byte of the headers now and then."""
    async with target.connected() as (_, writer):
        for byte in request("about", more="A: " + "a" * 2000 + "\r\n"):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.2)


async def silent(target: Target) -> None:
    """Connect and say nothing."""
    async with target.connected() as (reader, _):
        await reader.read()


async def half_open(target: Target) -> None:
    """Ask, and close one's own side before the answer comes."""
    async with target.connected() as (reader, writer):
        writer.write(request("search", SEARCH, "POST"))
        writer.write_eof()
        await reader.read()


async def not_reading(target: Target) -> None:
    """Ask for a video and never take it."""
    async with target.connected(receive=4096) as (_, writer):
        writer.write(request(target.video))
        await writer.drain()
        await asyncio.sleep(3600)


async def flood(target: Target) -> None:
    """Search as fast as answers come, each time on a new connection."""
    async with target.connected() as (reader, writer):
        writer.write(request("search", SEARCH, "POST", more="Connection: close\r\n"))
        await reader.read()


async def pipeline(target: Target) -> None:
    """Two hundred requests at once on one connection, and of the answers only the first bytes."""
    async with target.connected(receive=4096) as (reader, writer):
        writer.write(request("about") * 200)
        await reader.read(100)
        await asyncio.sleep(1)


async def foreign_host(target: Target) -> None:
    """Be refused for the host, and then send a body without an end."""
    await _send_after(target, request("search", BIG, "POST", host="evil.example"))


async def early_refusal(target: Target) -> None:
    """Be refused for the size of the body, and then send it all the same."""
    await _send_after(target, request("search", BIG, "POST"))


async def dripping_refusal(target: Target) -> None:
    """Be refused for the size of the body, and then send a byte of it now and then."""
    await _send_after(target, request("search", BIG, "POST"), piece=b"a", pause=0.2)


async def bad_chunks(target: Target) -> None:
    """Send a body in chunks that are none."""
    async with target.connected() as (reader, writer):
        writer.write(request("search", method="POST", more="Transfer-Encoding: chunked\r\n") + b'5\r\n{"que\r\nzz\r\n')
        await reader.read()


async def garbage(target: Target) -> None:
    """Send what is no HTTP."""
    async with target.connected() as (reader, writer):
        writer.write(random.randbytes(3000) + b"\r\n\r\n")
        await reader.read()


async def reset(target: Target) -> None:
    """Ask for a video, and reset the connection while it comes."""
    async with target.connected() as (reader, writer):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.write(request(target.video))
        await reader.read(1000)


async def wrong_files(target: Target) -> None:
    """Search by files that are none, and leave before the answer."""
    async with target.connected() as (_, writer):
        writer.write(request("search/file", random.randbytes(100_000), "POST"))
        await writer.drain()
        await asyncio.sleep(random.random() / 10)


async def _send_after(target: Target, asked: bytes, piece: bytes = b"a" * 65536, pause: float = 0.0) -> None:
    async with target.connected() as (_, writer):
        writer.write(asked)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)


ABUSES: dict[str, tuple[Abuse, int, float]] = {  # by how many clients at once, and seconds until each comes back
    "slow headers": (slow_headers, 100, 0.1),
    "silent connections": (silent, 1500, 5.0),
    "half-open connections": (half_open, 20, 0.01),
    "nobody reads": (not_reading, 300, 0.1),
    "flood": (flood, 50, 0.0),
    "pipelines": (pipeline, 20, 0.01),
    "foreign hosts": (foreign_host, 20, 0.01),
    "bodies refused early": (early_refusal, 20, 0.01),
    "dripping bodies refused early": (dripping_refusal, 200, 0.1),
    "broken chunks": (bad_chunks, 20, 0.01),
    "no HTTP": (garbage, 20, 0.01),
    "resets": (reset, 20, 0.01),
    "files that are none": (wrong_files, 10, 0.01),
}


async def abused(target: Target, name: str) -> None:
    """Abuse for ever."""
    abuse, clients, pause = ABUSES[name]

    async def client() -> None:
        await asyncio.sleep(pause * random.random())
        while True:
            with suppress(OSError):  # the server hangs up, or takes no connection
                await abuse(target)
            await asyncio.sleep(pause)

    await asyncio.gather(*(client() for _ in range(clients)))


def main() -> None:
    """Abuse as the command line says."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    name, host, port, video = sys.argv[1:]
    asyncio.run(abused(Target(host, int(port), video), name))


if __name__ == "__main__":
    main()
