"""The answer to a request for a video, its file whole or one range of its bytes as in RFC 9110, or for its picture."""

import hashlib
import re
import stat
from pathlib import Path

from fastapi import Request
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException

from distill.serving import limits

TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".webm": "video/webm",
    ".mov": "video/quicktime",
    ".mkv": "video/x-matroska",
    ".avi": "video/x-msvideo",
}
HEADERS = {"Cache-Control": "no-cache"}  # browsers may keep it but must ask again: files may be replaced
# One range; a request for several gets the whole file.
RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))")


def video_response(request: Request, path: Path, pieces: bool) -> Response:
    """Return the file, the range that was asked for, or 304; with `pieces`, at most the first piece of a range.

    Starlette sends the file. Where it departs from the RFC, this function answers, or rewrites the Range header. Raises
    `HTTPException` 404 or 416.
    """
    try:
        about = path.stat()
    except OSError:
        about = None
    if about is None or not stat.S_ISREG(about.st_mode):
        raise HTTPException(404, "the file of this video is not there any more")
    response = FileResponse(
        path, headers=HEADERS, media_type=TYPES.get(path.suffix.lower(), "application/octet-stream"), stat_result=about
    )
    if _known(request, response.headers["etag"]):
        return Response(status_code=304, headers=HEADERS | {"ETag": response.headers["etag"]})
    others = [header for header in request.scope["headers"] if header[0] != b"range"]  # Starlette reads it from there
    if not _wants_range(request, response):
        request.scope["headers"] = others
        return response
    first, _, last = request.headers["range"].strip().removeprefix("bytes=").partition("-")
    if int(first) >= about.st_size if first else min(int(last), about.st_size) == 0:
        reason = f"the file has {about.st_size} bytes"
        raise HTTPException(416, reason, headers={"Content-Range": f"bytes */{about.st_size}"})
    if pieces and first:
        last = min(int(last or about.st_size), int(first) + limits.PIECE - 1)
        request.scope["headers"] = [*others, (b"range", f"bytes={first}-{last}".encode())]
    return response


def poster_response(request: Request, jpeg: bytes) -> Response:
    """Return a picture, or 304."""
    headers = HEADERS | {"ETag": f'"{hashlib.sha256(jpeg).hexdigest()[:32]}"'}
    if _known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(jpeg, headers=headers, media_type="image/jpeg")


def _known(request: Request, etag: str) -> bool:
    """Return whether the client has this version already, by If-None-Match."""
    known = request.headers.get("if-none-match", "")
    return known.strip() == "*" or etag in [tag.strip().removeprefix("W/") for tag in known.split(",")]


def _wants_range(request: Request, response: FileResponse) -> bool:
    """Return whether the request asks for one range of bytes, and of this version of the file."""
    asked = RANGE.fullmatch(request.headers.get("range", "").strip())
    if asked is None or request.method != "GET" or (asked[2] and int(asked[2]) < int(asked[1])):
        return False
    return request.headers.get("if-range") in (None, response.headers["etag"], response.headers["last-modified"])
