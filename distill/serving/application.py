"""The web application: a page to search a gallery by, the same as JSON for programs, and its videos by byte ranges.

    GET  /                 the page (page.html, which loads nothing else)
    POST /search           {"query": "a hatching chick", "k": 12} -> ranked videos, their seconds and frame weights
    GET  /videos/{id}      a video's file; ranges, ETag and If-Range as in RFC 9110
    GET  /posters/{id}     a small picture of a video, where the gallery keeps one
    GET  /about            the size of the gallery, examples and limits, for the page
    GET  /healthz          whether searches are answered
    GET  /openapi.json     the description of all this; without a viewer, which would load scripts from elsewhere

Every refusal is JSON, {"error": "..."}, in words that tell nothing of this machine. Videos that are added or deleted
while the server runs are there, or gone, with the next request.
"""

import base64
import hashlib
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException

from distill.data.tokens import is_cut
from distill.errors import ExpectedError
from distill.retrieval.gallery import Gallery
from distill.serving import limits
from distill.serving.batching import Batcher, Busy
from distill.serving.guard import Guard
from distill.serving.messages import About, Answer, Answers, Found, Health, Question, problems
from distill.serving.videos import poster_response, video_response

log = logging.getLogger(__name__)

_BYTES = {"content": {"video/*": {"schema": {"type": "string", "format": "binary"}}}}
_VIDEO: dict[int | str, dict[str, Any]] = {
    200: {"description": "the file", **_BYTES},
    206: {"description": "the range that was asked for", **_BYTES},
    304: {"description": "the file is still the one that If-None-Match names"},
    **problems(404, 416, 422),
}
_POSTER: dict[int | str, dict[str, Any]] = {
    200: {"description": "the picture", "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "the picture is still the one that If-None-Match names"},
    **problems(404, 422),
}
_INVALID = {
    "json_invalid": "the body is not valid JSON",
    "model_attributes_type": "the body is not a JSON object; send one, as application/json",
    "missing": "the body is missing; send a JSON object, as application/json",
    "string_pattern_mismatch": "empty; describe in a few words what the video shows",
}
_PLAIN = {
    404: "there is nothing here; / is the page and /openapi.json lists the rest",
    405: "this address does not take that method; /openapi.json lists what it takes",
}


class _IdConvertor(PathConvertor):
    """The id of a video in an address: any characters, of which Starlette's own takes no line ends."""

    regex = "(?s:.*)"


register_url_convertor("id", _IdConvertor())


class Newest:
    """The newest generation of the gallery, or the former one where that cannot be read. Any thread may call it."""

    def __init__(self, gallery: Gallery):
        self._gallery, self._lock, self._complaint = gallery, threading.Lock(), ""

    def __call__(self) -> Gallery:
        with self._lock:
            try:
                self._gallery, self._complaint = self._gallery.refreshed(), ""
            except (ExpectedError, OSError) as error:
                if str(error) != self._complaint:  # log once, not with every request
                    log.error("the gallery changed and cannot be read, so its former state is served: %s", error)
                self._complaint = str(error)
            return self._gallery


def application(gallery: Gallery, *, examples: Sequence[str] = (), hosts: frozenset[str] | None = None) -> Guard:
    """Return the web application, for any ASGI server; `server.serve` runs it.

    The page offers the queries in `examples`. If `hosts` is given, requests must be addressed to one of these names.
    """
    newest = Newest(gallery)
    page = files("distill.serving").joinpath("page.html").read_text(encoding="utf-8")
    batcher = _batcher(newest)
    app = FastAPI(
        title="Find a moment",
        description="Searches the videos of a gallery in words.",
        version="1",
        lifespan=lambda _: batcher.running(),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=problems(400, 408, 413, 421, 431, 503),  # the guard may give these to any request
    )
    _explain_refusals(app)
    _add_page(app, page, newest, examples)
    _add_search(app, batcher)
    _add_videos(app, newest)
    _add_posters(app, newest)
    return Guard(app, headers=_security(page), hosts=hosts)


def _batcher(newest: Newest) -> Batcher[Answer]:
    def answer(queries: Sequence[str], k: int, candidates: int | None) -> list[Answer]:
        current = newest()
        if candidates is not None and not current.reranks:
            reason = "candidates: this gallery keeps one vector per video and nothing to rerank by; leave it out"
            raise HTTPException(409, reason)
        answers, room = zip(queries, current.search(queries, k, candidates), strict=True), current.release.max_words
        return [
            Answer(query=query, cut=is_cut(query, room), hits=[Found.of(hit, current) for hit in hits])
            for query, hits in answers
        ]

    return Batcher(answer)


def _add_page(app: FastAPI, page: str, newest: Newest, examples: Sequence[str]) -> None:
    @app.head("/", include_in_schema=False)
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def home() -> HTMLResponse:
        """Return the page."""
        return HTMLResponse(page, headers={"Cache-Control": "no-cache"})

    @app.head("/about", include_in_schema=False)
    @app.get("/about")
    def about() -> About:
        """The size of the gallery, queries to try, and the limits of a search."""
        return About(videos=len(newest()), examples=list(examples))


def _add_search(app: FastAPI, batcher: Batcher[Answer]) -> None:
    @app.post("/search", responses=problems(409, 422))
    async def search(question: Question) -> Answers:
        """Rank the gallery's videos for a query, or for each of several."""
        queries, candidates = question.queries or [question.query], question.candidates or question.recall
        return Answers(results=await batcher.search(queries, question.k, candidates))

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> Health:
        """Whether searches are answered, and how many queries wait."""
        return Health(status="ok", waiting=batcher.waiting)


def _add_videos(app: FastAPI, newest: Newest) -> None:
    @app.head("/videos/{video:id}", include_in_schema=False)
    @app.get("/videos/{video:id}", response_class=FileResponse, responses=_VIDEO)
    def video(request: Request, video: str, pieces: bool = False) -> Response:
        """Return the file of a video, or the range of its bytes that was asked for.

        With `pieces`, an answer has no more than the first piece of a range. A browser has six connections for all
        videos of a page and holds one for each range that it does not read to the end; pieces end, so that a connection
        is left for searches.
        """
        path = newest().file(video)
        if path is None:
            raise HTTPException(404, "this gallery has no such video, or does not know its file")
        return video_response(request, path, pieces)


def _add_posters(app: FastAPI, newest: Newest) -> None:
    @app.head("/posters/{video:id}", include_in_schema=False)
    @app.get("/posters/{video:id}", response_class=Response, responses=_POSTER)
    def poster(request: Request, video: str) -> Response:
        """Return a small picture of a video, a JPEG of the frame that weighs most."""
        jpeg = newest().poster(video)
        if jpeg is None:
            raise HTTPException(404, "this gallery has no such video, or keeps no picture of it")
        return poster_response(request, jpeg)


def _explain_refusals(app: FastAPI) -> None:
    """Send every error as JSON, {"error": "..."}; only the log has the details of an internal error."""

    def problem(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": reason}, status, headers)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        status, reason = error.status_code, error.detail
        if reason == HTTPStatus(status).phrase:  # Starlette's own words
            reason = _PLAIN.get(status, reason)
        return problem(status, reason, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:] if first["type"] != "json_invalid")
        reason = _INVALID.get(first["type"]) or first.get("ctx", {}).get("error") or first["msg"]
        status = 400 if first["type"] == "json_invalid" else 422
        return problem(status, f"{where}: {reason}" if where else str(reason))

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> JSONResponse:
        return problem(503, f"{error}; try again in a moment", {"Retry-After": str(limits.RETRY)})

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        return problem(500, "the server failed; its log has the reason")


def _security(page: str) -> dict[str, str]:
    """Return the headers of every answer: the page may run its own script and style, known by their hashes, alone."""

    def hashed(element: str) -> str:
        content = re.search(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
        assert content, f"the page has one <{element}>"
        return f"'sha256-{base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()}'"

    policy = {
        "default-src": "'none'",
        "script-src": hashed("script"),
        "style-src": hashed("style"),
        "connect-src": "'self'",
        "media-src": "'self'",
        "img-src": "'self' data:",  # posters, and the icon
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
