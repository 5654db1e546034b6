"""The jobs that are killed: their commands, what an undisturbed one left, and an independent look at what is there.

The look uses the standard library and the source alone (annotations and captions), nothing of the project.
"""

import csv
import hashlib
import io
import json
import math
import struct
import tarfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT, metrics, tree_bytes
from PIL import Image

HERE = Path(__file__).resolve().parent
AFTERWARDS = ("report.html", "test_answers.safetensors")


class Job(ABC):
    """Something that is begun with `command` on any of `counts` processes, killed, and begun again until it ends."""

    name: str
    beginning: Path | None = None  # a folder of which the job begins with a copy
    ranks = True  # each of `counts` is a number of ranks; else one process has so many workers

    def __init__(self, twin: Path, counts: tuple[int, ...]):
        self.twin, self.counts = twin, counts

    @abstractmethod
    def command(self, out: Path, count: int) -> list[str | Path]:
        """The command line of every rank."""

    def finished(self, out: Path) -> bool:
        """Whether there is nothing left to do, so that the same command would begin another one."""
        return False

    def out(self, folder: Path) -> Path:
        """Where the job writes, when the campaign keeps its log in `folder`."""
        return folder / "out"

    @abstractmethod
    def differences(self, out: Path) -> Iterator[str]:
        """Say what is wrong with a finished job's folder, in words; nothing if all is well."""


class _Set(Job):
    """A job that ends in a sealed folder of shards."""

    def __init__(self, twin: Path, counts: tuple[int, ...], annotations: Path):
        super().__init__(twin, counts)
        with annotations.open(newline="") as file:
            self.source = Counter((row["video"], row["caption"]) for row in csv.DictReader(file))

    def differences(self, out: Path) -> Iterator[str]:
        yield from unlike(tree_bytes(out), tree_bytes(self.twin))
        yield from unfinished(out)
        found = Counter(self.rows(out))
        yield from (f"row {row} is there {found[row]} times" for row in found if found[row] != 1)
        yield from (f"row {row} is missing" for row in self.source.keys() - found.keys())
        yield from (f"row {row} comes from nowhere" for row in found.keys() - self.source.keys())

    @abstractmethod
    def rows(self, out: Path) -> Iterator[tuple[str, str]]:
        """Every (video, caption) of the shards, as often as it is there; raises ValueError if one is torn."""


class Pack(_Set):
    """Packs videos into frame shards of three."""

    name, ranks = "pack", False

    def __init__(self, twin: Path, counts: tuple[int, ...], annotations: Path, videos: Path):
        super().__init__(twin, counts, annotations)
        self.annotations, self.videos = annotations, videos

    def command(self, out: Path, count: int) -> list[str | Path]:
        return [HERE / "pack.py", self.annotations, self.videos, out, str(count)]

    def rows(self, out: Path) -> Iterator[tuple[str, str]]:
        for sample in samples(out):
            about = json.loads(sample.pop("json"))
            if len(sample) != len(about["timestamps"]):
                raise ValueError(f"{about['video']}: {len(sample)} pictures, {len(about['timestamps'])} times")
            for picture in sample.values():
                Image.open(io.BytesIO(picture)).load()
            yield from ((about["video"], caption["text"]) for caption in about["captions"])


class Dump(_Set):
    """Labels those frames in all tiers."""

    name = "dump"

    def __init__(self, twin: Path, counts: tuple[int, ...], annotations: Path, teacher: Path, frames: Path):
        super().__init__(twin, counts, annotations)
        self.teacher, self.frames = teacher, frames
        self.texts = {hashlib.sha256(caption.encode()).hexdigest(): caption for _, caption in self.source}

    def command(self, out: Path, count: int) -> list[str | Path]:
        command = [ROOT / "tools" / "dump_soft_labels.py", self.teacher, self.frames, "--out", out]
        return [*command, "--batch", "3", "--top", "5", "--tiers", "relevance", "topk", "features"]

    def rows(self, out: Path) -> Iterator[tuple[str, str]]:
        for sample in samples(out):
            about = json.loads(sample["labels.json"])
            scores = relevance(sample["labels.safetensors"])
            if len(scores) != len(about["captions"]) or not all(map(math.isfinite, sum(scores, ()))):
                raise ValueError(f"{about['video']}: {len(scores)} rows of scores, {len(about['captions'])} captions")
            yield from ((about["video"], self.texts[caption["text_sha256"]]) for caption in about["captions"])


class Train(Job):
    """Trains one recipe into OUT/NAME; equal to the bit where all starts had as many processes as the twin."""

    name = "train"

    def __init__(self, twin: Path, counts: tuple[int, ...], recipe: Path):
        super().__init__(twin, counts)
        self.recipe = recipe
        self.exact = len(counts) == 1

    def command(self, out: Path, count: int) -> list[str | Path]:
        # A checkpoint after every other step: kills fall before, into and after saving.
        changes = [f"out={out}", "train.checkpoint_every=2", "train.timeout_minutes=0.5"]
        return [ROOT / "distill" / "run.py", self.recipe, *changes]

    def finished(self, out: Path) -> bool:
        return (out / self.twin.name / "release").is_dir()

    def differences(self, out: Path) -> Iterator[str]:
        run, twin = out / self.twin.name, self.twin
        yield from unfinished(out)
        if [path.name for path in out.iterdir()] != [twin.name]:
            yield f"{out} holds more than one run: {sorted(path.name for path in out.iterdir())}"
        if names(run) != names(twin):
            yield f"files {sorted(names(run) ^ names(twin))} are there once only"
        found, expected = metrics(run), metrics(twin)
        steps = [row["step"] for row in found if "total" in row]
        if steps != list(range(1, len(steps) + 1)):
            yield f"metrics.jsonl has the steps {steps}"
        if len(found) != len(expected):
            yield f"metrics.jsonl has {len(found)} rows instead of {len(expected)}"
        if self.exact:
            weights = Path("release") / "model.safetensors"
            yield from unlike({"release": (run / weights).read_bytes()}, {"release": (twin / weights).read_bytes()})
        for a, b in zip(found, expected, strict=False):
            if a != b if self.exact else not nearly(a, b):
                yield f"row {a} instead of {b}"


def nearly(row: dict, other: dict) -> bool:
    """Whether two rows are of the same step and the same batch, with losses that differ by rounding at most."""
    if row["step"] != other["step"] or row.keys() != other.keys() or row.get("batch") != other.get("batch"):
        return False
    return math.isclose(row.get("total", 0), other.get("total", 0), rel_tol=1e-4)


def samples(folder: Path) -> Iterator[dict[str, bytes]]:
    """Every sample of every shard: its members by extension."""
    for path in sorted(folder.glob("*.tar")):
        found: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, extension = member.name.partition(".")
                file = archive.extractfile(member)
                assert file is not None and extension not in found.get(key, {}), f"{path}: {member.name}"
                found.setdefault(key, {})[extension] = file.read()
        yield from found.values()


def relevance(stored: bytes) -> list[tuple[float, ...]]:
    """The rows of `relevance` (float32) in a safetensors file, read by hand."""
    (length,) = struct.unpack("<Q", stored[:8])
    about = json.loads(stored[8 : 8 + length])["relevance"]
    rows, columns = about["shape"]
    begin, end = (8 + length + offset for offset in about["data_offsets"])
    values = struct.unpack(f"<{rows * columns}f", stored[begin:end])
    return [values[row * columns : (row + 1) * columns] for row in range(rows)]


def unlike(found: dict[str, bytes], expected: dict[str, bytes]) -> Iterator[str]:
    """Files that are not the same."""
    for name in sorted(found.keys() | expected.keys()):
        if name not in found or name not in expected:
            yield f"{name} is {'missing' if name in expected else 'too much'}"
        elif found[name] != expected[name]:
            yield f"{name} has other bytes"


def unfinished(folder: Path) -> Iterator[str]:
    """Return the files that killed processes left."""
    yield from (f"{path.relative_to(folder)} was left" for path in folder.rglob("*.part*"))


def names(folder: Path) -> set[str]:
    """Files of a run, without those that follow its release: a run that is killed before them has ended without."""
    paths = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {str(path) for path in paths if path.name not in AFTERWARDS}
