"""Serves a gallery, asks it from several clients and keeps their answers: `python serve.py GALLERY OUT CLIENTS`.

Stops the server by SIGTERM at the end. Exit code 2 and one line if it answers wrongly or ends by itself.
"""

import ctypes
import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import httpx

from distill.errors import ExpectedError, door
from distill.publishing import publish, sweep

ROOT = Path(__file__).resolve().parents[2]
SEARCHES = 120
DIES_WITH_PARENT = 1  # Linux: PR_SET_PDEATHSIG


def main() -> None:
    """Serve, ask, write."""
    gallery, out, clients = sys.argv[1:]
    sweep(Path(out))  # what was not whole when this was killed
    command = [sys.executable, ROOT / "tools" / "serve.py", gallery, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=_with_parent) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if " at http://" not in line:
                raise ExpectedError("the server did not start")
            url = line.split(" at ")[1].split()[0]
            with ThreadPoolExecutor(int(clients)) as pool:
                answers = list(pool.map(lambda number: asked(url, number), range(SEARCHES)))
        finally:
            server.terminate()
    if server.returncode:
        raise ExpectedError(f"the server ended with {server.returncode}")
    publish(Path(out) / "answers.json", json.dumps(answers).encode())


def _with_parent() -> None:
    """Let the server end with this process, however that is killed."""
    ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGTERM)


def asked(url: str, number: int) -> list[str]:
    """The ids of the five best for the query of this number."""
    try:
        answer = httpx.post(f"{url}search", json={"query": f"a red square {number}", "k": 5}, timeout=60)
    except httpx.HTTPError as error:
        raise ExpectedError(f"the server is gone: {error}") from None
    if answer.status_code != 200:
        raise ExpectedError(f"the server answered with {answer.status_code}")
    return [hit["video"] for hit in answer.json()["results"][0]["hits"]]


if __name__ == "__main__":
    door(main)
