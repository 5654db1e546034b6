"""An S3 server in a process of its own, which can be killed, and a relay before it that cuts connections."""

import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import s3fs

REQUEST = re.compile(rb"^GET /[^ ?]*?([^/ ?]+)[ ?]")


class Store:
    """moto's server on a port of this machine, with the content of its buckets in its memory alone."""

    def __init__(self, log: Path):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.log = log
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Begin with no bucket, and wait until it answers."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        """End the server as a power cut does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Relay(socketserver.ThreadingTCPServer):
    """Passes connections on to a server; `cut` says by name after how many bytes the next answers for a file end."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int):
        super().__init__(("127.0.0.1", 0), _Passing)
        self.port = port
        self.cut: dict[str, list[int]] = {}
        self.seen: Counter[str] = Counter()
        self.slow = 0.0  # seconds before each packet of an answer
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


class _Passing(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        relay, self.left = self.server, sys.maxsize  # bytes of answers until the connection is cut
        assert isinstance(relay, Relay)
        try:
            there = socket.create_connection(("127.0.0.1", relay.port), 5)
        except OSError:
            return  # the client finds its connection closed
        with there:
            threading.Thread(target=self._back, args=(relay, there), daemon=True).start()
            with suppress(OSError):
                while data := self.request.recv(65536):
                    if found := REQUEST.match(data):
                        name = found[1].decode()
                        relay.seen[name] += 1
                        cuts = relay.cut.get(name)
                        self.left = cuts.pop(0) if cuts else sys.maxsize
                    there.sendall(data)

    def _back(self, relay: Relay, there: socket.socket) -> None:
        with suppress(OSError):
            while data := there.recv(65536):
                time.sleep(relay.slow)
                self.request.sendall(data[: self.left])
                self.left -= len(data)
                if self.left <= 0:
                    break
        for end in (there, self.request):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def use(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process, and those it starts, ask the server of this URL for `s3://`, with made-up credentials."""
    settings = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, value in {**settings, "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # one made before asks the server of before
