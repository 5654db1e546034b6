"""The readers: what is done with every kind of artefact, as a command of the project would do it.

A reader gives back what it read as values that can be compared. Numbers that people are shown must be finite.
"""

import math
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from test_convert import options

from distill.config import read_recipe
from distill.conversion.convert import convert
from distill.data.frames import FrameSet
from distill.data.labelset import LabelSet
from distill.data.padding import real
from distill.data.sampler import Clip4ClipSampler
from distill.data.vectorfiles import VectorFiles
from distill.evaluation.report import report
from distill.evaluation.result import read_result
from distill.labelling.given import GivenVectors
from distill.labelling.sealing import merge_labels
from distill.model.clip import ClipModel
from distill.model.towers import ClipConfig, Towers
from distill.packing.clips import read_annotations
from distill.packing.packing import PackConfig, pack
from distill.recipe import Recipe
from distill.release.release import Release, load
from distill.retrieval import Gallery, upkeep
from distill.retrieval.export import export
from distill.retrieval.indexing import build_gallery
from distill.retrieval.ledger import Ledger
from distill.training import checkpoint
from tools.search import _queries

PACK = PackConfig(sampler=Clip4ClipSampler(kind="clip4clip", num_frames=2), size=32)


@dataclass
class Whole:
    """Everything that readers need beside the damaged artefact, opened once."""

    folder: Path
    scratch: Path  # a new place to write to
    frames: FrameSet
    release: Release
    two_stage: Release


def frames(path: Path, whole: Whole) -> Any:
    found = FrameSet(path)
    return [[asdict(video), found.pixels(number)] for number, video in enumerate(found.videos)]


def labels(path: Path, whole: Whole) -> Any:
    read = []
    for coarse in ("features", "topk"):
        found = LabelSet(path, whole.frames, coarse=coarse, on_mismatch="interpolate")
        found.require(coarse, "the campaign")
        pairs = [(n, caption) for n, video in enumerate(whole.frames.videos) for caption in range(len(video.captions))]
        read += [found.batch(pairs), found.interaction_weights()]
    return read


def release(path: Path, whole: Whole) -> Any:
    found = load(path)
    text = found.embed_text(["a red square"])
    video = found.encode_video(np.full((4, 32, 32, 3), 99, np.uint8)).vector
    return finite([text, video])


def gallery(path: Path, whole: Whole) -> Any:
    found = Gallery.open(path, whole.release)
    posters = [found.poster(name) for name in ("red", "green", "blue")]
    return [_searched(found), posters, asdict(Ledger.read(path, found.manifest))]


def built(path: Path, whole: Whole) -> Any:
    """A gallery, when all has been built of it that can be."""
    upkeep.approximate(path)
    upkeep.calibrate(path, whole.release, ["a red square", "something blue", "a circle"])
    export(path, "bigfile", whole.scratch / "out")
    return gallery(path, whole)


def tokens(path: Path, whole: Whole) -> Any:
    return _searched(Gallery.open(path, whole.two_stage))


def _searched(found: Gallery) -> Any:
    hits = found.search(["a red square", "something blue"], 3)
    like = [found.like(name, 2) for name in ("red", "blue") if name in found]
    said = [found.search_captions(name, 2) for name in ("red",) if name in found]
    return finite([[asdict(hit) for part in answers for hit in part] for answers in (hits, like, said)])


def unfinished(path: Path, whole: Whole) -> Any:
    """The folder that a killed index left, which another one continues."""
    build_gallery(whole.release, whole.folder / "frames", path)
    found = Gallery.open(path, whole.release)
    return finite([asdict(hit) for hit in found.search(["a red square"], 3)[0]])


def latest(path: Path, whole: Whole) -> Any:
    found = checkpoint.latest(path)
    return None if found is None else [found[0], found[1], found[2].model_dump()]


def vectors(path: Path, whole: Whole) -> Any:
    """Vectors from elsewhere as features of all captions and videos."""
    found, seen = GivenVectors(VectorFiles(path), whole.frames), real(whole.frames, range(len(whole.frames)))
    texts = [caption.text for video in whole.frames.videos for caption in video.captions]
    nothing = torch.empty(*seen.shape, 3, 0, 0, dtype=torch.uint8)
    features = found.encode_texts(texts).tensors() | found.encode_videos(whole.frames.videos, nothing, seen).tensors()
    return finite(features)


def recipe(path: Path, whole: Whole) -> Any:
    return finite(read_recipe(path / "student.yaml", [], Recipe).model_dump(mode="json"))


def authors(suffix: str) -> Callable[[Path, Whole], Any]:
    def read(path: Path, whole: Whole) -> Any:
        convert(path / f"model{suffix}", "clip4clip", whole.scratch / "out", options("clip4clip"))
        return finite(dict(load(whole.scratch / "out").model.state_dict()))

    return read


def annotations(layout: str, name: str) -> Callable[[Path, Whole], Any]:
    def read(path: Path, whole: Whole) -> Any:
        return [asdict(clip) for clip in read_annotations(path / name, layout, whole.folder / "video")]

    return read


def towers(path: Path, whole: Whole) -> Any:
    return finite(dict(ClipModel(Towers.from_config(ClipConfig(model=str(path)))).state_dict()))


def unsealed(path: Path, whole: Whole) -> Any:
    """The folder that a label job left, joined with nothing."""
    merge_labels([path], whole.scratch / "out")
    return labels(whole.scratch / "out", whole)


def downloads(path: Path, whole: Whole) -> Any:
    manifest = pack(path, "webdataset", path, whole.scratch / "out", PACK, workers=1)
    return [manifest.counts, frames(whole.scratch / "out", whole)]


def video(path: Path, whole: Whole) -> Any:
    return [finite(whole.release.encode_video(path / f"{name}.mp4").vector) for name in ("red", "green", "blue")]


def result(path: Path, whole: Whole) -> Any:
    found = read_result(path / "result.json")
    report(found, [found])
    return finite(found.model_dump(mode="json"))


def queries(path: Path, whole: Whole) -> Any:
    return _queries(Namespace(query=None, queries=str(path / "queries.txt")))


@dataclass(frozen=True)
class Reader:
    """A reader, whether its artefact has a manifest, and whether it compares every file with its hash in there."""

    read: Callable[[Path, Whole], Any]
    sealed: bool = False
    hashed: bool = False


READERS = {
    "frames": Reader(frames, sealed=True, hashed=True),
    "labels": Reader(labels, sealed=True, hashed=True),
    "release": Reader(release, sealed=True, hashed=True),
    "gallery": Reader(gallery, sealed=True),
    "tokens": Reader(tokens, sealed=True),
    "checkpoint": Reader(latest),
    "recipe": Reader(recipe),
    "vectors": Reader(vectors),
    "tables": Reader(vectors),
    "authors.pt": Reader(authors(".pt")),
    "authors.bin": Reader(authors(".bin")),
    "authors.safetensors": Reader(authors(".safetensors")),
    "towers": Reader(towers),
    "unsealed": Reader(unsealed),
    "approximate": Reader(gallery, sealed=True),
    "built": Reader(built, sealed=True),
    "unfinished": Reader(unfinished, hashed=True),
    "csv": Reader(annotations("csv", "all.csv")),
    "msrvtt": Reader(annotations("msrvtt", "train.csv")),
    "msvd": Reader(annotations("msvd", "train_list.txt")),
    "vatex": Reader(annotations("vatex", "train_list.txt")),
    "lsmdc": Reader(annotations("lsmdc", "train.csv")),
    "activitynet": Reader(annotations("activitynet", "train.json")),
    "didemo": Reader(annotations("didemo", "train_data.json")),
    "downloads": Reader(downloads),
    "video": Reader(video),
    "result": Reader(result),
    "queries": Reader(queries),
}


class NotFiniteError(Exception):
    """A reader gave a number that is none."""


def finite(value: Any) -> Any:
    """The value itself, all of whose numbers are finite."""
    if isinstance(value, torch.Tensor):
        good = bool(value.isfinite().all())
    elif isinstance(value, float):
        good = math.isfinite(value)
    else:
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        good = all(finite(child) is child for child in children)
    if not good:
        raise NotFiniteError("a number that is not finite")
    return value
