"""A gallery behind HTTP: a page to search it by, the same as JSON for programs, and its videos by byte ranges.

    GET  /                 the page (page.html; everything it needs is in it)
    POST /search           {"query": "a hatching chick", "k": 12} -> ranked videos, their seconds and frame weights
    GET  /videos/{id}      a video's file; ranges, ETag and If-Range as in RFC 9110
    GET  /about            what the page needs to know of the gallery and of the limits
    GET  /healthz          that searches are being answered
    GET  /openapi.json     the description of all this; without a viewer, which would load scripts from elsewhere

Every refusal is JSON, {"error": "..."}, in words that name no file and nothing else of this machine. Whatever can grow
by asking is bounded below. Videos that are added or deleted meanwhile are there, or gone, with the next request.
"""

import asyncio
import base64
import hashlib
import ipaddress
import logging
import re
import signal
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from distill.errors import ExpectedError
from distill.retrieval.gallery import Gallery
from distill.serving.batching import Batcher, Busy
from distill.serving.guard import Guard
from distill.serving.messages import About, Answer, Answers, Health, Problem, Question, found

log = logging.getLogger(__name__)

MAX_BODY, MAX_HEADERS = 1 << 18, 1 << 14  # bytes
MAX_REQUESTS = 256  # under way at once, of any kind
BATCH, CAPACITY = 64, 256  # queries searched together; queries that may wait
GATHER = 0.003  # seconds that an idle worker waits for company
PATIENCE = 10.0  # seconds until a search that was not answered is given up
SLOWEST = 10.0  # seconds that a client has for its headers, and again for its body
GRACE = 10  # seconds that requests have to end when the server is stopped
PIECE = 1 << 18  # bytes of a range, for those that ask for pieces
RETRY = 1  # seconds after which an overloaded server is worth asking again
TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".webm": "video/webm",
    ".mov": "video/quicktime",
    ".mkv": "video/x-matroska",
    ".avi": "video/x-msvideo",
}
LOOPBACK = frozenset(("localhost", "127.0.0.1", "[::1]"))
RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))")  # one range; for several, the whole file is sent


class Newest:
    """A gallery as it is on disk: after videos were added or deleted, the next call gives the new generation.

    Safe to call from several threads. A generation that cannot be read leaves the former one in use, and a line in the
    log.
    """

    def __init__(self, gallery: Gallery):
        self._gallery, self._lock, self._complaint = gallery, threading.Lock(), ""

    def __call__(self) -> Gallery:
        with self._lock:
            try:
                self._gallery, self._complaint = self._gallery.refreshed(), ""
            except (ExpectedError, OSError) as error:
                if str(error) != self._complaint:  # once, not with every request
                    log.error("the gallery changed and cannot be read, so its former state is served: %s", error)
                self._complaint = str(error)
            return self._gallery


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": Problem, "description": HTTPStatus(code).phrase} for code in codes}


def application(gallery: Gallery, *, examples: Sequence[str] = (), hosts: frozenset[str] | None = None) -> Guard:
    """The web application, for any ASGI server; `serve` runs it.

    `examples` are queries that the page offers. Requests must be addressed to one of `hosts`, if given.
    """
    newest = Newest(gallery)
    page = files("distill.serving").joinpath("page.html").read_text(encoding="utf-8")

    def answer(queries: Sequence[str], k: int, candidates: int | None) -> list[Answer]:
        current = newest()
        if candidates is not None and not current.reranks:
            reason = "candidates: this gallery keeps one vector per video and nothing to rerank by; leave it out"
            raise HTTPException(409, reason)
        answers = zip(queries, current.search(queries, k, candidates), strict=True)
        return [Answer(query=query, hits=[found(hit) for hit in hits]) for query, hits in answers]

    batcher = Batcher(answer, batch=BATCH, capacity=CAPACITY, gather=GATHER, patience=PATIENCE)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.run())
        yield
        worker.cancel()
        with suppress(asyncio.CancelledError):
            await worker

    app = FastAPI(
        title="Find a moment",
        description="Searches the videos of a gallery in words.",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=_problems(400, 408, 413, 421, 431, 503),  # what the guard may say to any request
    )
    _explain_refusals(app)

    @app.head("/", include_in_schema=False)
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def home() -> HTMLResponse:
        """The page."""
        return HTMLResponse(page, headers={"Cache-Control": "no-cache"})

    @app.post("/search", responses=_problems(409, 422))
    async def search(question: Question) -> Answers:
        """Ranks the gallery's videos for a query, or for each of several."""
        queries, candidates = question.queries or [question.query], question.candidates or question.recall
        return Answers(results=await batcher.search(queries, question.k, candidates))

    @app.head("/videos/{video:path}", include_in_schema=False)
    @app.get("/videos/{video:path}", response_class=FileResponse, responses=_VIDEO)
    def video(request: Request, video: str, pieces: bool = False) -> Response:
        """The file of a video, or the range of its bytes that was asked for.

        With `pieces`, no more than the first piece of a range. A browser has six connections for all videos of a page,
        and holds one for each range that it does not read to the end; pieces end, and leave some for searches.
        """
        path = newest().file(video)
        if path is None:
            raise HTTPException(404, "this gallery has no such video, or does not know its file")
        return _file(request, path, pieces)

    @app.head("/about", include_in_schema=False)
    @app.get("/about")
    def about() -> About:
        """The gallery's size, queries to try, and the limits of a search."""
        return About(videos=len(newest()), examples=list(examples))

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> Health:
        """Answers while the server does."""
        return Health(status="ok", waiting=batcher.waiting)

    return Guard(
        app,
        headers=_security(page),
        hosts=hosts,
        max_headers=MAX_HEADERS,
        max_body=MAX_BODY,
        max_requests=MAX_REQUESTS,
        slowest=SLOWEST,
        retry=RETRY,
    )


_BYTES = {"content": {"video/*": {"schema": {"type": "string", "format": "binary"}}}}
_VIDEO: dict[int | str, dict[str, Any]] = {
    200: {"description": "the file", **_BYTES},
    206: {"description": "the range that was asked for", **_BYTES},
    304: {"description": "the file that If-None-Match names is still the one"},
    **_problems(404, 416, 422),
}


def _file(request: Request, path: Path, pieces: bool) -> Response:
    """A file, whole or in part. Starlette sends it; where it departs from the RFC is settled before."""
    try:
        about = path.stat()
    except OSError:
        about = None
    if about is None or not stat.S_ISREG(about.st_mode):
        raise HTTPException(404, "the file of this video is not there any more")
    headers = {"Cache-Control": "no-cache"}  # kept by the browser, but asked after: files may be replaced
    response = FileResponse(
        path, headers=headers, media_type=TYPES.get(path.suffix.lower(), "application/octet-stream"), stat_result=about
    )
    etag, known = response.headers["etag"], request.headers.get("if-none-match", "")
    if known.strip() == "*" or etag in [tag.strip().removeprefix("W/") for tag in known.split(",")]:
        return Response(status_code=304, headers=headers | {"ETag": etag})
    others = [header for header in request.scope["headers"] if header[0] != b"range"]
    if not _wants_range(request, response):
        request.scope["headers"] = others
        return response
    first, _, last = request.headers["range"].strip().removeprefix("bytes=").partition("-")
    if int(first) >= about.st_size if first else min(int(last), about.st_size) == 0:
        reason = f"the file has {about.st_size} bytes"
        raise HTTPException(416, reason, headers={"Content-Range": f"bytes */{about.st_size}"})
    if pieces and first:
        last = min(int(last or about.st_size), int(first) + PIECE - 1)
        request.scope["headers"] = [*others, (b"range", f"bytes={first}-{last}".encode())]
    return response


def _wants_range(request: Request, response: FileResponse) -> bool:
    """Whether one range of bytes is asked for, of the very file that is here now."""
    asked = RANGE.fullmatch(request.headers.get("range", "").strip())
    if asked is None or request.method != "GET" or (asked[2] and int(asked[2]) < int(asked[1])):
        return False
    return request.headers.get("if-range") in (None, response.headers["etag"], response.headers["last-modified"])


def _explain_refusals(app: FastAPI) -> None:
    """Every error as JSON, {"error": "..."}; what went wrong inside stands in the log alone."""

    def problem(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": reason}, status, headers)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        said = error.detail != HTTPStatus(error.status_code).phrase
        return problem(
            error.status_code, error.detail if said else _PLAIN.get(error.status_code, error.detail), error.headers
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:] if first["type"] != "json_invalid")
        reason = _INVALID.get(first["type"]) or first.get("ctx", {}).get("error") or first["msg"]
        status = 400 if first["type"] == "json_invalid" else 422
        return problem(status, f"{where}: {reason}" if where else str(reason))

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> JSONResponse:
        return problem(503, f"{error}; try again in a moment", {"Retry-After": str(RETRY)})

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        return problem(500, "something went wrong in the server; its log says what")


_INVALID = {
    "json_invalid": "the body is not valid JSON",
    "model_attributes_type": "the body is no JSON object; send one, as application/json",
    "missing": "the body is missing; send a JSON object, as application/json",
    "string_pattern_mismatch": "say in a few words what the video shows",
}
_PLAIN = {
    404: "there is nothing here; / is the page and /openapi.json lists the rest",
    405: "this address does not take that method; /openapi.json lists what it takes",
}


def _security(page: str) -> dict[str, str]:
    """Headers of every answer. The page may run its own script and style, recognised by their hashes, and no other."""

    def own(element: str) -> str:
        found = re.search(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
        assert found, f"the page has one <{element}>"
        return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"

    policy = {
        "default-src": "'none'",
        "script-src": own("script"),
        "style-src": own("style"),
        "connect-src": "'self'",
        "media-src": "'self'",
        "img-src": "data:",  # the icon
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
    }


class Connection(H11Protocol):
    """uvicorn's, with two more manners: headers must come in time, and what is no HTTP is refused as JSON too."""

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
        """Limits the time while headers are awaited, however slowly they drip in, until they are there."""
        awaited = self.conn.their_state is h11.IDLE
        if awaited and self._late is None:
            self._late = self.loop.call_later(SLOWEST, self.transport.abort)
        elif not awaited and self._late is not None:
            self._late.cancel()
            self._late = None

    def send_400_response(self, msg: str) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_NO_HTTP)
        self.transport.close()


_REASON = b'{"error": "this is not a valid HTTP request, or its headers are too large"}'
_NO_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
)
_NO_HTTP %= (len(_REASON), _REASON)


def serve(gallery: Gallery, *, host: str, port: int, examples: Sequence[str], ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or Ctrl-C, answers what has arrived by then, and returns. Runs in the main thread.

    `ready` is called with the server's address once connections are taken. Port 0 is any free one. A host or port that
    cannot be had is an `ExpectedError`. On a loopback address, requests must be addressed to localhost.
    """
    if not 0 <= port < 1 << 16:
        raise ExpectedError(f"--port {port}: expected 1 to 65535, or 0 for any that is free")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        why = error.strerror or str(error)
        raise ExpectedError(
            f"{host} port {port}: {why}; choose another --port or --host, or stop what uses it"
        ) from None
    bound, port = listener.getsockname()[:2]
    config = uvicorn.Config(
        application(gallery, examples=examples, hosts=LOOPBACK if ipaddress.ip_address(bound).is_loopback else None),
        http=Connection,
        h11_max_incomplete_event_size=MAX_HEADERS,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,  # the guard writes its own line, without queries
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn raises it again when all is done: leave by the front door
    ready(f"http://{f'[{bound}]' if family == socket.AF_INET6 else bound}:{port}/")
    uvicorn.Server(config).run(sockets=[listener])
