"""A local Hub: a real HTTP server that answers what huggingface_hub asks, keeps commits, and can be told to misbehave.

It follows the public protocol: repositories and revisions, preupload, git-lfs uploads (basic transfer), commits as
lines of JSON, pull requests, trees, and files with ETag and commit headers, large ones behind a redirect to another
host.
"""

import base64
import hashlib
import http.server
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 20_000  # bytes from which a file goes to git-lfs
WRITE, READ = "hf_write", "hf_read"  # tokens
RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit|paths-info)/([^/]+)(?:/(.*))?)?"
)


def blob_id(content: bytes) -> str:
    """git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_large(path: str, content: bytes) -> bool:
    return len(content) > LARGE or path.endswith((".safetensors", ".tar"))


@dataclass
class Repo:
    """One repository: what every commit holds, and which commit a branch or pull request stands for."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, ref: str, files: dict[str, bytes]) -> str:
        content = repr(sorted((path, sha256(body)) for path, body in files.items()))
        oid = hashlib.sha1(f"{self.refs.get(ref)} {content}".encode()).hexdigest()
        self.commits[oid], self.refs[ref] = files, oid
        return oid

    def at(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


class Hub(http.server.ThreadingHTTPServer):
    """`flip` and `fail` say of how many answers for a name a byte is turned, or an error comes in place of it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.seen: Counter[str] = Counter()
        self.flip: Counter[str] = Counter()
        self.fail: dict[str, tuple[int, int, dict[str, str]]] = {}  # part of a path: status, how often, headers
        self.drop: set[str] = set()  # files that a commit leaves out

    def make(self, kind: str, name: str, files: dict[str, bytes], *, private: bool = False) -> str:
        repo = self.repos[kind, name] = Repo(private)
        return repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n", **files})


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answered()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *args: object) -> None:
        pass

    def _answered(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else self._chunks()
        where = urlsplit(self.path)
        self.query = parse_qs(where.query)
        path = where.path
        self.server.seen[f"{self.command} {path.rpartition('/')[2]}"] += 1
        for part, (status, times, headers) in list(self.server.fail.items()):
            if part in path and times > 0:
                self.server.fail[part] = (status, times - 1, headers)
                return self._send(status, {"error": "as told"}, headers)
        if (found := RESOLVE.fullmatch(path)) is not None:
            return self._file("dataset" if found[1] else "model", found[2], unquote(found[3]), unquote(found[4]))
        if path.startswith("/cdn/"):
            return self._body(self.server.objects[path.rpartition("/")[2]], {}, path)
        if path.startswith("/lfs/"):
            self.server.objects[path.rpartition("/")[2]] = self.body
            return self._send(200, {})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch()
        if path == "/api/repos/create":
            return self._create()
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if (found := API.fullmatch(path)) is not None:
            return self._api(*found.groups())
        self._send(404, {"error": path})

    def _chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    @property
    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _may_write(self) -> bool:
        if self._token not in (READ, WRITE):
            self._send(
                401,
                {"error": "Invalid credentials"},
                {"X-Error-Message": "Invalid credentials in Authorization header"},
            )
        elif self._token == READ:
            self._send(403, {"error": "Forbidden"}, {"X-Error-Message": "you may not write"})
        return self._token == WRITE

    def _repo(self, kind: str, name: str) -> Repo | None:
        repo = self.server.repos.get((kind, name))
        if repo is None or (repo.private and self._token not in (READ, WRITE)):
            signed_in = self._token in (READ, WRITE)
            self._send(404 if signed_in else 401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str | None:
        oid = repo.at(revision)
        if oid is None:
            self._send(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
        return oid

    def _file(self, kind: str, name: str, revision: str, path: str) -> None:
        repo = self._repo(kind, name)
        oid = repo and self._commit_of(repo, revision)
        if not repo or not oid:
            return
        if path not in repo.commits[oid]:
            return self._send(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid})
        content = repo.commits[oid][path]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{blob_id(content)}"'}
        if is_large(path, content):
            digest = sha256(content)
            self.server.objects[digest] = content
            there = f"http://localhost:{self.server.server_port}/cdn/{path.replace('/', '_')}/{digest}"
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content)), "Location": there}
            return self._send(302, {}, headers | linked)
        self._body(content, headers, path)

    def _body(self, content: bytes, headers: dict[str, str], path: str) -> None:
        if self.command == "GET":
            for name in [name for name, times in self.server.flip.items() if name in path and times > 0]:
                self.server.flip[name] -= 1
                content = content[:-50] + bytes([content[-50] ^ 1]) + content[-49:]
        begin, status = 0, 200
        if (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")) is not None:
            begin, status = int(asked[1]), 206
            headers = headers | {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}
            content = content[begin : int(asked[2]) + 1] if asked[2] else content[begin:]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {
            "Content-Type": "application/json",
            **(headers or {}),
            "Content-Length": str(len(body)),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _create(self) -> None:
        if not self._may_write():
            return
        asked = json.loads(self.body)
        kind, name = asked.get("type", "model"), f"{asked.get('organization') or 'me'}/{asked['name']}"
        if (kind, name) in self.server.repos:
            return self._send(409, {"error": "You already created this repo"})
        self.server.make(kind, name, {}, private=asked.get("visibility") == "private")
        self._send(200, {"url": f"{self.server.url}/{'datasets/' if kind == 'dataset' else ''}{name}"})

    def _batch(self) -> None:
        if self._may_write():
            objects = json.loads(self.body)["objects"]
            upload = [
                {**one, "actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}} for one in objects
            ]
            self._send(200, {"transfer": "basic", "objects": upload})

    def _api(self, kinds: str, name: str, verb: str | None, revision: str | None, path: str | None) -> None:
        repo = self._repo(kind := kinds.removesuffix("s"), name)
        oid = repo and self._commit_of(repo, unquote(revision or "main"))
        if not repo or not oid:
            return
        files = repo.commits[oid]
        if verb in (None, "revision"):
            siblings = [{"rfilename": one} for one in files]
            self._send(200, {"id": name, "sha": oid, "private": repo.private, "siblings": siblings, "tags": []})
        elif verb == "tree":
            self._tree(files, unquote(path or ""), self.query.get("recursive") == ["true"])
        elif verb == "paths-info":
            wanted = parse_qs(self.body.decode())["paths"]
            self._send(200, [_entry(one, files[one]) for one in wanted if one in files])
        elif verb == "preupload":
            if self._may_write():
                asked = json.loads(self.body)["files"]
                modes = {
                    one["path"]: one["size"] > LARGE or one["path"].endswith((".safetensors", ".tar")) for one in asked
                }
                chosen = [
                    {"path": one, "uploadMode": "lfs" if large else "regular", "shouldIgnore": one in self.server.drop}
                    for one, large in modes.items()
                ]
                self._send(200, {"files": chosen})
        elif self._may_write():
            self._commit(repo, kind, name, oid)

    def _tree(self, files: dict[str, bytes], folder: str, recursive: bool) -> None:
        prefix = f"{folder}/" if folder else ""
        below = {one: body for one, body in files.items() if one.startswith(prefix)}
        if not below and folder:
            return self._send(404, {}, {"X-Error-Code": "EntryNotFound"})
        found = [_entry(one, body) for one, body in below.items() if recursive or "/" not in one.removeprefix(prefix)]
        folders = {
            prefix + one.removeprefix(prefix).partition("/")[0] for one in below if "/" in one.removeprefix(prefix)
        }
        self._send(
            200, found + [{"type": "directory", "path": one, "oid": "0" * 40, "size": 0} for one in sorted(folders)]
        )

    def _commit(self, repo: Repo, kind: str, name: str, oid: str) -> None:
        head, *lines = [json.loads(line) for line in self.body.decode().splitlines() if line]
        if head["value"].get("parentCommit", oid) != oid:
            return self._send(412, {"error": "A commit has happened since"})
        files = dict(repo.commits[oid])
        for line in lines:
            value = line["value"]
            if line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        pulls = sum(ref.startswith("refs/pr/") for ref in repo.refs)
        ref = f"refs/pr/{pulls + 1}" if self.query.get("create_pr") == ["1"] else "main"
        made = repo.commit(ref, files)
        page = f"{self.server.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        answer = {"success": True, "commitOid": made, "commitUrl": f"{page}/commit/{made}"}
        self._send(200, answer | ({"pullRequestUrl": f"{page}/discussions/{pulls + 1}"} if ref != "main" else {}))


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
    if is_large(path, content):
        entry |= {"lfs": {"oid": sha256(content), "size": len(content), "pointerSize": 130}}
    return entry


@contextmanager
def running() -> Iterator[Hub]:
    """A Hub on a port of this machine."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


def settings(hub: Hub, cache: str, token: str | None = WRITE) -> dict[str, str]:
    """The environment of a process that is to ask this Hub; huggingface_hub reads it where it is imported."""
    given = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": cache, "HF_HUB_DISABLE_XET": "1"}
    return given | {"HF_TOKEN": token or "", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", **_plain()}


def _plain() -> dict[str, str]:
    return {name: "" for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY") if name in os.environ}
