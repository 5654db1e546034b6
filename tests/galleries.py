"""Random changes to a folder of videos and to its gallery, each followed by searches that a dictionary answers too.

    python tests/galleries.py --walks 100 --seed 0

The reference keeps a vector per file, as the encoder gives it for the file alone, and sorts; it shares nothing with
segments, generations, masks or chunks. Prints the first difference, with the changes that led to it, and ends with 1.
"""

import argparse
import math
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

if not __package__:
    sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import numpy as np
import torch
from test_gallery import ColourEncoder

from distill.data.video import write_video
from distill.errors import ExpectedError
from distill.log import progress
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.similarity import unit
from distill.retrieval import Gallery, upkeep
from distill.retrieval.indexing import build_gallery
from distill.retrieval.where import Where

DIM, GRID, SHADES = 16, 4, 3 * 4 * 4
CENTRES = 16  # of an approximate index, which takes as many videos at least
NEAR = {"float32": 1e-4, "float16": 2e-3, "int8": 2e-2}  # by which a score may differ from the reference's
FOLDERS = ("", "a", "a/b", "c")
NAMES = [str(PurePosixPath(folder) / f"v{number}") for folder in FOLDERS for number in range(8)]


class Mosaics(ColourEncoder):
    """Encodes a video by the colours of a grid, and a text by its characters; nothing is learned."""

    def __init__(self, path: Path):
        super().__init__(path, None)
        self.project = torch.randn(SHADES, DIM, generator=torch.Generator().manual_seed(0))

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        seeds = (torch.Generator().manual_seed(hash_of(text)) for text in texts)
        return TextFeatures(sentence=torch.stack([torch.randn(DIM, generator=seed) for seed in seeds]))

    def encode_frames(self, pixels: torch.Tensor, real: torch.Tensor) -> VideoFeatures:
        tiles = torch.nn.functional.adaptive_avg_pool2d(pixels.float().flatten(0, 1), GRID).flatten(1)
        frames = ((tiles - 128) / 64 @ self.project).reshape(*pixels.shape[:2], DIM)
        vector = (frames * real.unsqueeze(-1)).sum(1)
        return VideoFeatures(vector=vector, frames=frames, relevance=None, real=real)


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[-6:], "little")


class Walk:
    """One folder, its gallery, and what both should hold."""

    def __init__(self, folder: Path, seed: int):
        self.draw, self.pixels = random.Random(seed), np.random.default_rng(seed)
        self.videos, self.path = folder / "videos", folder / "gallery"
        self.encoder = Mosaics(folder / "release")
        self.files: dict[str, tuple[torch.Tensor, float]] = {}  # as they are in the folder: vector and seconds
        self.rows: dict[str, tuple[torch.Tensor, float]] = {}  # as they are in the gallery
        self.excluded: set[str] = set()
        self.clock = 10**18
        self.said: list[str] = []
        for name in self.draw.sample(NAMES, 20):
            self.write(name)
        self.kind = self.draw.choice(list(NEAR))
        self.index(vectors=self.kind)
        self.rows = dict(self.files)
        self.opened = Gallery.open(self.path, self.encoder)

    def write(self, name: str) -> None:
        """Put a new file there, or another in its place."""
        path, seconds = self.videos / f"{name}.mp4", self.draw.randint(1, 4)
        path.parent.mkdir(parents=True, exist_ok=True)
        tiles = self.pixels.integers(0, 256, (seconds, GRID, GRID, 3), np.uint8)
        write_video(path, tiles.repeat(4, 0).repeat(8, 1).repeat(8, 2), fps=4)
        self.clock += 10**9
        os.utime(path, ns=(self.clock, self.clock))
        self.files[name] = (unit(self.encoder.encode_video(path).vector)[0], float(seconds))

    def index(self, **how) -> None:
        build_gallery(self.encoder, self.videos, self.path, workers=1, **how)

    def step(self) -> None:
        """Change something, and compare."""
        changes = [self.add, self.change, self.remove, self.append, self.sync, self.delete, self.restore]
        change = self.draw.choice([*changes, self.add, self.sync, self.compact, self.approximate, self.calibrate])
        self.said.append(change.__name__)
        change()
        self.compare()

    def add(self) -> None:
        free = [name for name in NAMES if name not in self.files]
        if free:
            self.write(self.draw.choice(free))

    def change(self) -> None:
        if self.files:
            self.write(self.draw.choice(sorted(self.files)))

    def remove(self) -> None:
        if len(self.files) > 1:
            name = self.draw.choice(sorted(self.files))
            (self.videos / f"{name}.mp4").unlink()
            del self.files[name]

    def append(self) -> None:
        self.index(append=True)
        self.rows |= {n: f for n, f in self.files.items() if n not in self.rows and n not in self.excluded}

    def sync(self) -> None:
        self.index(sync=True)
        self.rows = {name: file for name, file in self.files.items() if name not in self.excluded}

    def delete(self) -> None:
        if self.rows:
            names = self.draw.sample(sorted(self.rows), self.draw.randint(1, min(3, len(self.rows))))
            upkeep.delete(self.path, names)
            self.excluded |= set(names)
            self.rows = {name: row for name, row in self.rows.items() if name not in names}

    def restore(self) -> None:
        if self.excluded:
            name = self.draw.choice(sorted(self.excluded))
            upkeep.restore(self.path, [name])
            self.excluded.discard(name)

    def compact(self) -> None:
        upkeep.compact(self.path)

    def approximate(self) -> None:
        if len(self.rows) >= CENTRES:
            upkeep.approximate(self.path)

    def calibrate(self) -> None:
        if self.rows:
            upkeep.calibrate(self.path, self.encoder, [f"bank {number}" for number in range(9)])

    def compare(self) -> None:
        """Search in all ways, through a gallery that follows or one that is opened anew."""
        new = self.draw.random() < 0.3
        self.opened = Gallery.open(self.path, self.encoder) if new else self.opened.refreshed()
        assert len(self.opened) == len(self.rows), f"{len(self.opened)} videos, not {len(self.rows)}"
        assert {name for name in NAMES if name in self.opened} == set(self.rows)
        query = f"query {self.draw.random()}"
        asked = unit(self.encoder.encode_text([query]).sentence)[0]
        whole = {name: float(vector @ asked) for name, (vector, _) in self.rows.items()}
        for k in (1, 5, len(NAMES)):
            (hits,) = self.opened.search([query], k, exact=True, calibrated=False)
            self.same(hits, whole, k)
            (near,) = self.opened.search([query], k)
            self.near(near, whole, k)
            where = Where(self.draw.choice(FOLDERS), self.draw.choice([None, 1.5]), self.draw.choice([None, 3.5]))
            (some,) = self.opened.search([query], k, calibrated=False, where=where)
            self.same(some, {name: score for name, score in whole.items() if self.meant(name, where)}, k)
        if self.rows:
            like = self.draw.choice(sorted(self.rows))
            scores = {name: float(vector @ self.rows[like][0]) for name, (vector, _) in self.rows.items()}
            del scores[like]
            self.same(self.opened.like(like, len(NAMES)), scores, len(NAMES), 2)

    def meant(self, name: str, where: Where) -> bool:
        least, most = where.min_seconds or 0.0, where.max_seconds or math.inf
        inside = not where.folder or name.startswith(f"{where.folder}/")
        return inside and least <= self.rows[name][1] <= most

    def same(self, hits, scores: dict[str, float], k: int, vectors: int = 1) -> None:
        """These are the best, in their order as far as stored scores can tell, each with its file and length."""
        self.near(hits, scores, k, vectors)
        far = 2 * vectors * NEAR[self.kind]
        best = sorted(scores.values(), reverse=True)[:k]
        for hit, score in zip(hits, best, strict=True):
            assert abs(hit.score - score) < far, f"{hit.video} has {hit.score}, where {score} belongs"

    def near(self, hits, scores: dict[str, float], k: int, vectors: int = 1) -> None:
        """These are so many of the videos, none twice, with their own scores."""
        names = [hit.video for hit in hits]
        assert len(names) == len(set(names)) == min(k, len(scores)), f"{names} of {sorted(scores)}"
        for hit in hits:
            assert abs(hit.score - scores[hit.video]) < vectors * NEAR[self.kind], (hit, scores[hit.video])
            assert hit.duration == self.rows[hit.video][1]
            assert hit.source == str(self.videos / f"{hit.video}.mp4")


def walk(folder: Path, seed: int, steps: int) -> None:
    """Walk so many steps; raises `AssertionError` with the way that was gone."""
    shutil.rmtree(folder, ignore_errors=True)
    least, upkeep.LEAST = upkeep.LEAST, CENTRES
    try:
        going = Walk(folder, seed)
        try:
            for _ in range(steps):
                going.step()
            upkeep.verify(going.path)
        except (AssertionError, ExpectedError) as error:
            raise AssertionError(f"walk {seed}, {going.kind}, after {', '.join(going.said)}: {error}") from error
    finally:
        upkeep.LEAST = least


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, walks, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--walks", type=int, default=100, metavar="N", help="how many (default 100)")
    parser.add_argument("--steps", type=int, default=60, metavar="N", help="of each (default 60)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="galleries-") as folder:
        for number in progress(range(args.seed, args.seed + args.walks), "walk"):
            walk(Path(folder) / "walk", number, args.steps)
    print(f"{args.walks} walks of {args.steps} changes: every answer is that of the reference")


if __name__ == "__main__":
    main()
