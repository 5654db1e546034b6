"""The web application: a page to search a gallery by, the same as JSON for programs, and its videos by byte ranges.

    GET  /                 the page (page.html, which loads nothing else)
    POST /search           {"query": "a hatching chick", "k": 12} -> ranked videos, their seconds and frame weights
    POST /search/file      the bytes of a picture or a clip -> the videos most like it
    GET  /videos           a list of the videos, page by page
    GET  /videos/{id}      a video's file; ranges, ETag and If-Range as in RFC 9110
    GET  /posters/{id}     a small picture of a video, where the gallery keeps one
    GET  /about            the size of the gallery, examples and limits, for the page
    GET  /healthz          whether searches are answered
    GET  /openapi.json     the description of all this; without a viewer, which would load scripts from elsewhere

Every refusal is JSON, {"error": "..."}, in words that tell nothing of this machine. Videos that are added or deleted
while the server runs are there, or gone, with the next request.
"""

import asyncio
import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException

from distill.errors import ExpectedError, VideoError
from distill.retrieval.gallery import Gallery
from distill.retrieval.where import Where
from distill.serving import limits
from distill.serving.batching import Batcher, Busy
from distill.serving.guard import LARGE, Guard, Refused
from distill.serving.messages import (
    About,
    Answer,
    Answers,
    Browse,
    Filters,
    Health,
    Likeness,
    Listing,
    Question,
    problems,
)
from distill.serving.searches import Manner, Newest, Searches
from distill.serving.uploads import decoded
from distill.serving.videos import poster_response, video_response

_BYTES = {"content": {"video/*": {"schema": {"type": "string", "format": "binary"}}}}
_FILE = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
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


def application(
    gallery: Gallery,
    *,
    examples: Sequence[str] = (),
    hosts: frozenset[str] | None = None,
    second_look: bool = False,
) -> Guard:
    """Return the web application, for any ASGI server; `server.serve` runs it.

    The page offers the queries in `examples`. If `hosts` is given, requests must be addressed to one of these names.
    With `second_look`, searches take one where the gallery allows it, unless they say otherwise.
    """
    newest = Newest(gallery)
    page = files("distill.serving").joinpath("page.html").read_text(encoding="utf-8")
    searches = Searches(newest, second_look)
    batcher = Batcher(searches)
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
    _add_page(app, page, searches, examples)
    _add_search(app, batcher)
    _add_likeness(app, searches)
    _add_list(app, searches)
    _add_videos(app, newest)
    _add_posters(app, newest)
    return Guard(app, headers=_security(page), hosts=hosts)


def _add_page(app: FastAPI, page: str, searches: Searches, examples: Sequence[str]) -> None:
    @app.head("/", include_in_schema=False)
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def home() -> HTMLResponse:
        """Return the page."""
        return HTMLResponse(page, headers={"Cache-Control": "no-cache"})

    @app.head("/about", include_in_schema=False)
    @app.get("/about")
    def about() -> About:
        """The size of the gallery, its folders, queries to try, and the limits of a search."""
        return searches.about(examples)


def _add_search(app: FastAPI, batcher: Batcher[Manner, Answer | Refused]) -> None:
    @app.post("/search", responses=problems(404, 409, 422))
    async def search(question: Question) -> Answers:
        """Rank the gallery's videos for a query, for each of several, or by how much they are like a video."""
        manner = Manner(
            question.k,
            _meant(question),
            question.spans,
            bool(question.like),
            question.candidates or question.recall,
            question.second_look,
        )
        results = await batcher.search(question.queries or [question.like or question.query], manner)
        for result in results:
            if isinstance(result, Refused):
                raise result
        return Answers(results=[result for result in results if isinstance(result, Answer)])

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> Health:
        """Whether searches are answered, and how many queries wait."""
        return Health(status="ok", waiting=batcher.waiting)


def _add_likeness(app: FastAPI, searches: Searches) -> None:
    turn = asyncio.Lock()  # one file is decoded at a time

    @app.post(LARGE, responses=problems(409, 422), openapi_extra=_FILE)
    async def likeness(request: Request, asked: Annotated[Likeness, Query()]) -> Answer:
        """Rank the gallery's videos by how much they are like a picture (JPEG, PNG) or a clip, the request's body."""
        release = searches.release
        manner, content = Manner(asked.k, _meant(asked), asked.spans), await request.body()
        try:
            await asyncio.wait_for(turn.acquire(), limits.TURN)
        except TimeoutError:
            raise Busy("other files are being searched by") from None
        try:
            pixels = await decoded(release, content)
            return await asyncio.to_thread(searches.by_pixels, pixels, manner)
        except VideoError as error:
            raise Refused(422, f"the file cannot be searched by: {error}") from None
        finally:
            turn.release()


def _add_list(app: FastAPI, searches: Searches) -> None:
    @app.head("/videos", include_in_schema=False)
    @app.get("/videos", responses=problems(409, 422))
    def videos(page: Annotated[Browse, Query()]) -> Listing:
        """List the gallery's videos in its order, page by page."""
        return searches.browse(page, _meant(page))


def _meant(filters: Filters) -> Where:
    try:
        return filters.where()
    except ExpectedError as error:
        raise Refused(409, str(error)) from None


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

    @app.exception_handler(Refused)
    async def unanswered(_: Request, error: Refused) -> JSONResponse:
        return problem(error.status, str(error))

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
