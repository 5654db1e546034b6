"""A gallery of the world's own mp4 files behind tools/serve.py, as a process on a free port."""

import json
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from conftest import ROOT, World
from test_release import make, release

from distill.data.video import write_video
from distill.model.second_look import SecondLook
from distill.release.release import load
from distill.retrieval.indexing import build_gallery
from distill.retrieval.sources import Cut

ODD = '<img src=x onerror=alert(1)> "ü" & #1? 50%.mp4'  # a file name that has to be quoted wherever it goes
LIMITED = "from distill.errors import door; from distill.serving import limits; from tools import serve"


@dataclass(frozen=True)
class Server:
    """A running tools/serve.py."""

    url: str
    process: subprocess.Popen
    log: Path

    def search(self, query: str, k: int = 3) -> list[dict[str, Any]]:
        """The hits of one query."""
        answer = httpx.post(f"{self.url}search", json={"query": query, "k": k}, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["results"][0]["hits"]

    def memory(self) -> int:
        """Resident bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def serving(gallery: Path, log: Path, may_open: int | None = None, **limits: float) -> Iterator[Server]:
    """Serves `gallery`; `limits` replace constants of distill/serving/limits.py. Killed at the end, if need be.

    The server may open no more than `may_open` files at once.
    """
    changes = "".join(f"; limits.{name} = {value!r}" for name, value in limits.items())
    main = f"{LIMITED}{changes}; door(lambda: serve.main({json.dumps([str(gallery), '--port', '0'])}))"
    arguments = (sys.executable, "-c", main) if limits else (sys.executable, "tools/serve.py", gallery, "--port", "0")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with log.open("wb") as file:
        process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=file)
    if may_open is not None:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (may_open, may_open))  # long before it has started
    assert process.stdout is not None
    try:
        line = process.stdout.readline().decode()
        assert " at http://" in line, f"{line}\n{log.read_text()}"
        yield Server(line.split(" at ")[1].split()[0], process, log)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def make_gallery(world: World, folder: Path, videos: int = 20, padding: int = 0) -> Path:
    """A gallery of copies of some clips under folder/videos, by a student with random weights."""
    (folder / "videos").mkdir(parents=True)
    clips = sorted((world.corpus / "videos").iterdir())[:videos]
    for number, clip in enumerate(clips):
        _copy(clip, folder / "videos" / (clip.name if number else ODD), padding)
    release(folder / "release", *make())
    build_gallery(load(folder / "release"), folder / "videos", folder / "gallery", workers=1)
    return folder / "gallery"


def _copy(source: Path, target: Path, padding: int) -> None:
    """Copies an mp4 file, as large as a long one if it shall be: followed by an empty box."""
    with target.open("wb") as file:
        file.write(source.read_bytes())
        if padding:
            file.write(struct.pack(">I4s", padding, b"free"))
            file.truncate(file.tell() + padding - 8)  # a hole: it takes no room on the disk


FILMS = {"holiday/beach/red.mp4": 4, "holiday/blue.mp4": 8, "city/green.mp4": 6, ODD: 2, "films/long.mp4": 24}
FILMS |= {f"many/{number}.mp4": 1 + number % 3 for number in range(6)}  # seconds of each file


def make_films(folder: Path) -> Path:
    """A gallery of eleven files in folders, of which one is cut into three spans; its release can look again."""
    draw = np.random.default_rng(3)
    for name, seconds in FILMS.items():
        shots = draw.integers(0, 256, (seconds, 6, 8, 3), dtype=np.uint8)
        clip = shots.repeat(4, axis=0).repeat(8, axis=1).repeat(8, axis=2)
        (folder / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(folder / "videos" / name, clip, fps=4)
    release(folder / "release", *make(), second_look=SecondLook(temperature=0.1, t2v=5.0, v2t=0.0))
    build_gallery(load(folder / "release"), folder / "videos", folder / "gallery", cut=Cut(10.0), workers=1)
    return folder / "gallery"
